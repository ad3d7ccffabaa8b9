//! An API server with our CRDs, accounts and roles, and ways to speak to it.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testudo_crypto::{KeyType, SigningKey};
use testudo_kube_env::{Cluster, Options};
use testudo_pki::{NodeIdentity, TrustBundle, certificate_request, request_to_pem};

use crate::common::{BINARY, run};
use crate::daemon::Daemon;

/// How long anything may take: many times what it takes on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const NAMESPACE: &str = "testudo-system";
pub(crate) const USAGES: [&str; 2] = ["digital signature", "ipsec end system"];

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn start() -> World {
        let options = Options::named("kube-controller");
        let cluster = Cluster::up(&options, &|line| eprintln!("{line}")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let world = World { cluster, dir };
        let mut crds = Command::new(BINARY);
        crds.arg("crds");
        let crds = world.file("crds.yaml", &run(crds).ok().out);
        world.kubectl(&["apply", "--server-side", "-f", &crds]);
        let wait = ["wait", "--for=condition=Established", "--timeout=90s"];
        world.kubectl(&[&wait[..], &["-f", &crds]].concat());
        for object in roles() {
            world.apply(&object);
        }
        world
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).unwrap()
    }

    pub(crate) fn apply(&self, object: &Value) {
        let file = self.file("object.json", &object.to_string());
        self.kubectl(&["apply", "-f", &file]);
    }

    /// An object as it stands; `None` when there is none. `what`: `node n1`.
    pub(crate) fn get(&self, what: &str) -> Option<Value> {
        let words = what.split(' ');
        let mut arguments: Vec<&str> = ["get", "--ignore-not-found", "-o", "json"].to_vec();
        arguments.extend(["-n", NAMESPACE]);
        arguments.extend(words);
        let text = self.kubectl(&arguments);
        (!text.trim().is_empty()).then(|| serde_json::from_str(&text).unwrap())
    }

    pub(crate) fn patch(&self, what: &str, patch: &Value, more: &[&str]) {
        let patch = patch.to_string();
        let mut arguments = vec!["patch", "-n", NAMESPACE, "--type=merge", "-p", &patch];
        arguments.extend(what.split(' '));
        arguments.extend(more);
        self.kubectl(&arguments);
    }

    /// A kubeconfig for whoever has this token.
    fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.cluster.kubeconfig()).unwrap();
        let mut config: Value = serde_saphyr::from_str(&text).unwrap();
        config["users"][0]["user"] = json!({ "token": token.trim() });
        self.file(&format!("{name}.kubeconfig"), &config.to_string())
            .into()
    }

    /// A token of a ServiceAccount of ours.
    pub(crate) fn token(&self, account: &str, node: Option<&str>) -> String {
        let mut arguments = vec!["create", "token", account, "-n", NAMESPACE];
        if let Some(node) = node {
            arguments.extend(["--bound-object-kind=Node", "--bound-object-name", node]);
        }
        self.kubectl(&arguments)
    }

    /// kubectl as somebody else.
    pub(crate) fn kubectl_as(&self, token: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let kubeconfig = self.kubeconfig("somebody", token);
        let mut command = self.cluster.kubectl_command()?;
        command.env("KUBECONFIG", kubeconfig).args(arguments);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts a controller under an account that may do what it needs and no more.
    pub(crate) fn controller(&self, name: &str, arguments: &[&str]) -> Daemon {
        let token = self.token("testudo-controller", None);
        let kubeconfig = self.kubeconfig(name, &token);
        Daemon::start(self.dir.path(), name, &kubeconfig, arguments)
    }

    /// Makes a Node; its UID.
    pub(crate) fn node(&self, name: &str) -> String {
        self.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }));
        let node = self.get(&format!("node {name}")).unwrap();
        node["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// The names in Lease and policy's status, for messages.
    pub(crate) fn holder(&self) -> String {
        let lease = self.get("lease testudo-controller");
        let holder = lease.map(|lease| lease["spec"]["holderIdentity"].clone());
        holder
            .and_then(|holder| holder.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// What nodes trust now.
    pub(crate) fn bundle(&self) -> TrustBundle {
        let object = self.get("trustbundle cluster").unwrap();
        let text = |field: &str| {
            object["spec"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let mut bundle = TrustBundle::from_pem(&text("certificates")).unwrap();
        let refused = bundle.add_revocation_lists_from_pem(&text("revocationLists"));
        assert!(refused.is_empty(), "{refused:?}");
        bundle
    }

    /// Reasons of our Events about something, each with its note.
    pub(crate) fn events(&self, reason: &str) -> Vec<Value> {
        let text = self.kubectl(&["get", "events.v1.events.k8s.io", "-A", "-o", "json"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let ours = items.into_iter().filter(|event| {
            event["reportingController"] == "testudo.dev/controller" && event["reason"] == reason
        });
        ours.collect()
    }

    /// Asks with this token; the name of the CertificateSigningRequest.
    pub(crate) fn ask(&self, asking: &Asking) -> String {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // What is said may be no name.
        let label = asking.node.replace(',', "-");
        let name = format!("test.{label}.{count}");
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {
                "name": name,
                "labels": { "testudo.dev/node": label },
                "annotations": {
                    "testudo.dev/node": asking.node,
                    "testudo.dev/uid": asking.uid,
                    "testudo.dev/proof": format!("{count:04x}"),
                    "testudo.dev/made": format!("{count:020}"),
                },
            },
            "spec": {
                "signerName": asking.signer,
                "request": base64(&[&asking.before, asking.request.as_bytes()].concat()),
                "usages": asking.usages,
            },
        });
        let file = self.file("request.json", &object.to_string());
        let create = ["create", "-f", &file];
        match &asking.token {
            Some(token) => self.kubectl_as(token, &create).unwrap(),
            None => self.kubectl(&create),
        };
        name
    }

    /// The certificate in PEM, or why there is none; waits for the answer.
    pub(crate) fn answer(&self, name: &str) -> Result<String, String> {
        wait(&format!("an answer to {name}"), || self.answered(name))
    }

    /// The same without waiting.
    pub(crate) fn answered(&self, name: &str) -> Option<Result<String, String>> {
        let request = self.get(&format!("csr {name}")).unwrap();
        let conditions = request["status"]["conditions"].as_array().cloned();
        for condition in conditions.unwrap_or_default() {
            if condition["type"] != "Approved" {
                return Some(Err(condition["message"].as_str().unwrap().to_owned()));
            }
        }
        let certificate = request["status"]["certificate"].as_str()?;
        Some(Ok(String::from_utf8(from_base64(certificate)).unwrap()))
    }

    /// Asks as the agent of this node does, and waits for the certificate.
    pub(crate) fn certificate(&self, node: &str, uid: &str) -> Vec<u8> {
        let name = self.ask(&self.own(node, uid));
        let pem = self.answer(&name).unwrap();
        testudo_pki::chain_from_pem(&pem).unwrap().remove(0)
    }

    /// What the agent of this node asks.
    pub(crate) fn own(&self, node: &str, uid: &str) -> Asking {
        Asking {
            token: Some(self.token("testudo-agent", Some(node))),
            node: node.to_owned(),
            uid: uid.to_owned(),
            before: Vec::new(),
            request: pkcs10(node, uid),
            usages: USAGES.map(str::to_owned).to_vec(),
            signer: "testudo.dev/node".to_owned(),
        }
    }
}

/// What is asked.
#[derive(Clone)]
pub(crate) struct Asking {
    /// None: the administrator asks.
    pub(crate) token: Option<String>,
    pub(crate) node: String,
    pub(crate) uid: String,
    /// What stands before the PEM.
    pub(crate) before: Vec<u8>,
    /// PKCS#10 in PEM.
    pub(crate) request: String,
    pub(crate) usages: Vec<String>,
    pub(crate) signer: String,
}

pub(crate) fn pkcs10(node: &str, uid: &str) -> String {
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let identity = NodeIdentity::new(node, uid).unwrap();
    request_to_pem(&certificate_request(&key, &identity).unwrap())
}

/// Waits for what must come.
#[track_caller]
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for at in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * at) & 63) as usize];
            text.push(if at > chunk.len() { '=' } else { digit.into() });
        }
    }
    text
}

pub(crate) fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|d| *d == digit).unwrap();
        word = word << 6 | u32::try_from(value).unwrap();
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits & 255) as u8);
        }
    }
    bytes
}

/// Accounts and roles: what docs/kubernetes.md says that each needs.
fn roles() -> Vec<Value> {
    let rule = |group: &str, resources: &[&str], verbs: &str, names: &[&str]| {
        let verbs: Vec<&str> = verbs.split(' ').collect();
        let mut rule = json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rule
    };
    let object = |kind: &str, name: &str| {
        let namespace = match kind {
            "ClusterRole" | "ClusterRoleBinding" | "Namespace" => None,
            _ => Some(NAMESPACE),
        };
        let (group, version) = match kind {
            "Namespace" | "ServiceAccount" => ("", "v1"),
            _ => ("rbac.authorization.k8s.io/", "v1"),
        };
        json!({
            "apiVersion": format!("{group}{version}"),
            "kind": kind,
            "metadata": { "name": name, "namespace": namespace },
        })
    };
    let role = |kind: &str, name: &str, rules: Vec<Value>| {
        let mut role = object(kind, name);
        role["rules"] = json!(rules);
        let mut binding = object(&format!("{kind}Binding"), name);
        binding["subjects"] = json!([
            { "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE },
        ]);
        let group = "rbac.authorization.k8s.io";
        binding["roleRef"] = json!({ "apiGroup": group, "kind": kind, "name": name });
        [role, binding]
    };
    let (ours, certificates, all) = ("testudo.dev", "certificates.k8s.io", &[][..]);
    let controller = vec![
        rule(
            ours,
            &["encryptionpolicies", "externalconnections"],
            "get list watch",
            all,
        ),
        rule(
            ours,
            &["encryptionpolicies/status", "externalconnections/status"],
            "patch update",
            all,
        ),
        rule(ours, &["nodeencryptions"], "get list watch delete", all),
        rule(
            ours,
            &["trustbundles"],
            "get list watch create patch update",
            all,
        ),
        rule(ours, &["trustbundles/status"], "patch update", all),
        rule(
            certificates,
            &["certificatesigningrequests"],
            "get list watch delete",
            all,
        ),
        rule(
            certificates,
            &[
                "certificatesigningrequests/approval",
                "certificatesigningrequests/status",
            ],
            "patch",
            all,
        ),
        rule(
            certificates,
            &["signers"],
            "approve sign",
            &["testudo.dev/node"],
        ),
        rule("", &["nodes"], "get list watch patch", all),
        rule("events.k8s.io", &["events"], "create patch", all),
    ];
    let own = vec![
        rule("", &["secrets"], "create", all),
        rule(
            "",
            &["secrets"],
            "get list watch update",
            &["testudo-ca", "testudo-certificates"],
        ),
        rule("", &["secrets"], "get list watch", &["given-ca"]),
        rule("coordination.k8s.io", &["leases"], "create", all),
        rule(
            "coordination.k8s.io",
            &["leases"],
            "get update",
            &["testudo-controller"],
        ),
    ];
    let agent = vec![rule(
        certificates,
        &["certificatesigningrequests"],
        "get list watch create",
        all,
    )];
    let mut all = vec![
        object("Namespace", NAMESPACE),
        object("ServiceAccount", "testudo-agent"),
        object("ServiceAccount", "testudo-controller"),
    ];
    all.extend(role("ClusterRole", "testudo-controller", controller));
    all.extend(role("Role", "testudo-controller", own));
    all.extend(role("ClusterRole", "testudo-agent", agent));
    all
}
