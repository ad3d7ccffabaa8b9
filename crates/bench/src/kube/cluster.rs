//! The control plane, the controller, and a way in for every node.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use testudo_kube_env::{Cluster, Options};
use testudo_model::{NodeName, NodeUid};
use testudo_store::Kubernetes;
use testudo_store_kube::{KubeOptions, KubeStore, Writer, crd};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Size;
use super::counters::Counters;
use crate::usage;

const NAMESPACE: &str = "testudo-system";
const ACCOUNT: &str = "testudo-agent";

/// Requests of setting up at once.
const AT_ONCE: usize = 16;

/// Seconds that a node's token is good for.
const TOKEN_LIFE: i64 = 24 * 3600;

/// A node and the store as its agent sees it.
pub(super) struct NodeStore {
    pub(super) name: NodeName,
    pub(super) uid: NodeUid,
    pub(super) number: u32,
    pub(super) store: KubeStore,
}

/// A control plane with our CRDs, and the controller.
pub(super) struct World {
    cluster: Cluster,
    controller: Option<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            // What has ended already is ended.
            let _ = controller.kill();
            let _ = controller.wait();
        }
    }
}

impl World {
    pub(super) fn start(testudo: &Path) -> anyhow::Result<Self> {
        ensure!(testudo.is_file(), "{} is not there", testudo.display());
        let cluster = Cluster::up(&Options::named("bench-kube"), &|line| {
            eprintln!("==> {line}")
        })?;
        let world = Self {
            cluster,
            controller: None,
        };
        let file = world.folder().join("crds.yaml");
        std::fs::write(&file, crd::manifest()).context("the CRDs")?;
        let file = file.display().to_string();
        world.kubectl(&["apply", "--server-side", "-f", &file])?;
        let wait = [
            "wait",
            "--for=condition=Established",
            "--timeout=120s",
            "--all",
            "crd",
        ];
        world.kubectl(&wait)?;
        world.kubectl(&["create", "namespace", NAMESPACE])?;
        world.kubectl(&["create", "serviceaccount", ACCOUNT, "-n", NAMESPACE])?;
        let role = "--verb=get,list,watch,create,patch,update";
        let kinds = "--resource=certificatesigningrequests.certificates.k8s.io,\
                     encryptionpolicies.testudo.dev,trustbundles.testudo.dev,\
                     nodeencryptions.testudo.dev,nodeencryptions.testudo.dev/status";
        world.kubectl(&["create", "clusterrole", "agents", role, kinds])?;
        let account = format!("--serviceaccount={NAMESPACE}:{ACCOUNT}");
        let binding = ["create", "clusterrolebinding", "agents"];
        world.kubectl(&[&binding[..], &["--clusterrole=agents", &account]].concat())?;
        Ok(world)
    }

    fn folder(&self) -> PathBuf {
        self.cluster.directory()
    }

    fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(words)
    }

    /// Of an administrator.
    pub(super) fn store(&self) -> KubeStore {
        store_at(self.cluster.kubeconfig(), Writer::Cli)
    }

    pub(super) fn start_controller(&mut self, testudo: &Path) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.folder().join("logs/testudo.log"))?;
        let child = Command::new(testudo)
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .arg("controller")
            .env_remove("TESTUDO_STORE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.controller = Some(child.context("the controller cannot be started")?);
        Ok(())
    }

    /// The controller's PID.
    pub(super) fn controller(&self) -> Option<u32> {
        self.controller.as_ref().map(Child::id)
    }

    fn api_server(&self) -> anyhow::Result<u32> {
        self.process("apiserver")
    }

    fn process(&self, name: &str) -> anyhow::Result<u32> {
        let all = self.cluster.processes().into_iter();
        let mut named = all.filter(|process| process.name.contains(name));
        let found = named.next().with_context(|| format!("no {name} runs"))?;
        u32::try_from(found.pid).context("a PID")
    }

    /// The API server's resident memory in KiB.
    pub(super) fn memory_of_api_server(&self) -> anyhow::Result<u64> {
        usage::resident(&self.api_server()?.to_string())
    }

    /// How long a node's object is.
    pub(super) fn size_of_object(&self) -> anyhow::Result<Size> {
        let text = self.kubectl(&[
            "get",
            "--raw",
            "/apis/testudo.dev/v1alpha1/nodeencryptions/n0001",
        ])?;
        let object: Value = serde_json::from_str(&text)?;
        let managed = object["metadata"]["managedFields"].to_string().len();
        Ok(Size {
            whole: text.trim_end().len(),
            managed,
        })
    }

    /// All that is counted, now.
    pub(super) fn counters(&self) -> anyhow::Result<Counters> {
        let metrics = self.kubectl(&["get", "--raw", "/metrics"])?;
        let mut counters = Counters::read(&metrics);
        let controller = self.controller().context("the controller")?;
        counters.controller = usage::cpu_of(controller)?.as_secs_f64();
        counters.server = usage::cpu_of(self.api_server()?)?.as_secs_f64();
        counters.etcd = usage::cpu_of(self.process("etcd")?)?.as_secs_f64();
        counters.agents = usage::cpu().as_secs_f64();
        Ok(counters)
    }

    /// Makes this many Nodes, and for each a store with a token that is bound to it.
    pub(super) async fn nodes(&self, number: u32) -> anyhow::Result<Vec<NodeStore>> {
        eprintln!("==> {number} nodes");
        let client = self.store().client().await?;
        let text = self.kubectl(&["config", "view", "--raw", "-o", "json"])?;
        let config: Arc<Value> = Arc::new(serde_json::from_str(&text)?);
        let folder = self.folder().join("agents");
        std::fs::create_dir_all(&folder)?;
        let limit = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for number in 0..number {
            let (client, config) = (client.clone(), Arc::clone(&config));
            let (folder, limit) = (folder.clone(), Arc::clone(&limit));
            tasks.spawn(async move {
                let _permit = limit.acquire().await?;
                node(number, client, &config, &folder).await
            });
        }
        let mut nodes = Vec::new();
        while let Some(done) = tasks.join_next().await {
            nodes.push(done??);
        }
        nodes.sort_by_key(|node| node.number);
        Ok(nodes)
    }
}

async fn node(
    number: u32,
    client: kube::Client,
    config: &Value,
    folder: &Path,
) -> anyhow::Result<NodeStore> {
    let text = format!("n{number:04}");
    let nodes: Api<Node> = Api::all(client.clone());
    let wanted: Node = serde_json::from_value(json!({ "metadata": { "name": text } }))?;
    let made = nodes.create(&PostParams::default(), &wanted).await?;
    let uid = made.metadata.uid.context("a node without a UID")?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: Vec::new(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(text.clone()),
                uid: Some(uid.clone()),
            }),
            expiration_seconds: Some(TOKEN_LIFE),
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(ACCOUNT, &PostParams::default(), &request)
        .await?;
    let Some(status) = answer.status else {
        bail!("no token for {text}");
    };
    let mut config = config.clone();
    config["users"][0]["user"] = json!({ "token": status.token });
    let file = folder.join(format!("{text}.kubeconfig"));
    std::fs::write(&file, config.to_string())?;
    let name = NodeName::new(&*text)?;
    Ok(NodeStore {
        store: store_at(file, Writer::Agent(name.clone())),
        uid: NodeUid::new(uid)?,
        name,
        number,
    })
}

fn store_at(kubeconfig: PathBuf, writer: Writer) -> KubeStore {
    let at = Kubernetes {
        kubeconfig: Some(kubeconfig),
        context: None,
    };
    KubeStore::new(KubeOptions { at, writer })
}
