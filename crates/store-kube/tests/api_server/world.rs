//! An API server with our CRDs, and ways to it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use testudo_kube_env::{Cluster, Options};
use testudo_model::policy::Mode;
use testudo_model::{
    BootId, EncryptionPolicy, EncryptionPolicySpec, Kind, NodeEncryption, NodeEncryptionSpec,
    NodeName, NodeUid, Object,
};
use testudo_store::Kubernetes;
use testudo_store_kube::{KubeOptions, KubeStore, Writer, crd};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How long anything may take: many times what it takes on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The agents' ServiceAccount.
const NAMESPACE: &str = "testudo-system";
const ACCOUNT: &str = "testudo-agent";

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn agent(node: &str) -> Writer {
    Writer::Agent(NodeName::new(node).unwrap())
}

pub(crate) fn node(name: &str) -> NodeEncryption {
    let spec = NodeEncryptionSpec {
        uid: NodeUid::new(format!("uid-{name}")).unwrap(),
        boot_id: BootId::new("boot").unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        datapath: "user".to_owned(),
        agent_socket: Some("/run/testudo/n1.sock".to_owned()),
    };
    Object::new(name, spec)
}

pub(crate) fn policy(mode: Mode) -> EncryptionPolicy {
    let spec = EncryptionPolicySpec {
        mode,
        ..EncryptionPolicySpec::default()
    };
    Object::new("cluster", spec)
}

impl World {
    pub(crate) async fn start() -> World {
        let options = Options::named("store-kube");
        let cluster = Cluster::up(&options, &|line| eprintln!("{line}")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let world = World { cluster, dir };
        for definition in crd::all() {
            world.define(&definition).await;
        }
        world.kubectl(&["create", "namespace", NAMESPACE]);
        world.kubectl(&["create", "serviceaccount", ACCOUNT, "-n", NAMESPACE]);
        let role = "--verb=get,list,watch,create,patch";
        let kinds = "--resource=certificatesigningrequests.certificates.k8s.io";
        world.kubectl(&["create", "clusterrole", "agents", role, kinds]);
        let account = format!("--serviceaccount={NAMESPACE}:{ACCOUNT}");
        let binding = ["create", "clusterrolebinding", "agents"];
        world.kubectl(&[&binding[..], &["--clusterrole=agents", &account]].concat());
        world
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).unwrap()
    }

    pub(crate) fn create(&self, manifest: &Value) {
        let file = self.dir.path().join("object.json");
        std::fs::write(&file, manifest.to_string()).unwrap();
        self.kubectl(&["create", "-f", &file.display().to_string()]);
    }

    /// A store for whoever may do everything.
    pub(crate) fn store(&self, writer: Writer) -> KubeStore {
        self.store_at(&self.cluster.kubeconfig(), writer)
    }

    pub(crate) fn store_at(&self, kubeconfig: &Path, writer: Writer) -> KubeStore {
        let at = Kubernetes {
            kubeconfig: Some(kubeconfig.to_owned()),
            context: None,
        };
        KubeStore::new(KubeOptions { at, writer })
    }

    /// The store of a node's agent, with a token that is bound to the node.
    pub(crate) fn agents_store(&self, name: &str) -> KubeStore {
        let file = self.dir.path().join(format!("{name}.yaml"));
        let manifest = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        std::fs::write(&file, manifest.to_string()).unwrap();
        let file = file.display().to_string();
        self.kubectl(&["apply", "-f", &file]);
        let token = ["create", "token", ACCOUNT, "-n", NAMESPACE];
        let bound = ["--bound-object-kind=Node", "--bound-object-name", name];
        let token = self.kubectl(&[&token[..], &bound].concat());
        let kubeconfig = self.kubeconfig_with(&format!("{name}.kubeconfig"), |config| {
            config["users"][0]["user"] = json!({ "token": token.trim() });
        });
        self.store_at(&kubeconfig, agent(name))
    }

    /// The administrator's kubeconfig with a change.
    pub(crate) fn kubeconfig_with(&self, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let text = std::fs::read_to_string(self.cluster.kubeconfig()).unwrap();
        let mut config: Value = serde_saphyr::from_str(&text).unwrap();
        change(&mut config);
        let file = self.dir.path().join(name);
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// Installs a CRD and waits until the API server goes by it.
    pub(crate) async fn define(&self, definition: &Value) {
        let crds = ApiResource {
            group: "apiextensions.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "apiextensions.k8s.io/v1".to_owned(),
            kind: "CustomResourceDefinition".to_owned(),
            plural: "customresourcedefinitions".to_owned(),
        };
        let api = self.raw(&crds).await;
        let name = definition["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply("test").force();
        let patch = Patch::Apply(definition);
        api.patch(name, &params, &patch).await.unwrap();
        until("the CRD is established", async || {
            let raw = api.get(name).await.unwrap();
            let conditions = raw.data["status"]["conditions"].as_array().cloned();
            let conditions = conditions.unwrap_or_default();
            let bad = |kind: &str| {
                let found = conditions.iter().find(|c| c["type"] == kind);
                found.is_some_and(|c| c["status"] == "True")
            };
            assert!(!bad("NonStructuralSchema"), "{conditions:?}");
            bad("Established") && bad("NamesAccepted")
        })
        .await;
    }

    /// Objects as they stand in the API.
    pub(crate) async fn raw(&self, resource: &ApiResource) -> Api<DynamicObject> {
        let client = self.store(Writer::Cli).client().await.unwrap();
        Api::all_with(client, resource)
    }

    pub(crate) async fn raw_of<K: Kind>(&self) -> Api<DynamicObject> {
        self.raw(&ApiResource {
            group: "testudo.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "testudo.dev/v1alpha1".to_owned(),
            kind: K::KIND.to_owned(),
            plural: K::PLURAL.to_owned(),
        })
        .await
    }
}

/// Waits for what must come.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "not within {PATIENCE:?}: {what}");
}

/// A way to the API server that can be cut.
pub(crate) struct Cable {
    pub(crate) port: u16,
    to: String,
    carrying: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Cable {
    /// To `server`, `https://HOST[:PORT]`.
    pub(crate) async fn lay(server: &str) -> Cable {
        let to = server.trim_start_matches("https://").trim_end_matches('/');
        let to = match to.contains(':') {
            true => to.to_owned(),
            false => format!("{to}:443"),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cable = Cable {
            port: listener.local_addr().unwrap().port(),
            to,
            carrying: Arc::default(),
        };
        cable.carry(listener);
        cable
    }

    fn carry(&self, listener: TcpListener) {
        let (to, carrying) = (self.to.clone(), Arc::clone(&self.carrying));
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                let task = tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                carrying.lock().unwrap().push(task);
            }
        });
        self.carrying.lock().unwrap().push(task);
    }

    pub(crate) fn cut(&self) {
        for task in self.carrying.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    pub(crate) async fn mend(&self) {
        let address = ("127.0.0.1", self.port);
        self.carry(TcpListener::bind(address).await.unwrap());
    }
}
