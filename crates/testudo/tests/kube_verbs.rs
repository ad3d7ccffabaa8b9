//! OpenShift's words on both stores, and the program as kubectl's plugin on a real cluster: two nodes with
//! agents in pods, which are asked through the API server.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use testudo_kube_env::{Cluster, Component, Options};

use common::{Answer, BINARY, begin, run, seconds, testudo, wait_until};

const NETWORK: &str = "networks.operator.openshift.io";

/// A merge patch of `ipsecConfig`.
fn ipsec(config: Value) -> String {
    json!({"spec": {"defaultNetwork": {"ovnKubernetesConfig": {"ipsecConfig": config}}}})
        .to_string()
}

/// The same sequence on any store.
fn openshifts_words(run: &dyn Fn(&[&str]) -> Answer, folder: &Path) {
    let merge = |config: Value| {
        let patch = ipsec(config);
        run(&["patch", NETWORK, "cluster", "--type=merge", "-p", &patch])
    };
    let apply = |text: &str, more: &[&str]| {
        let file = folder.join("openshift.yaml");
        std::fs::write(&file, text).expect("a file");
        let file = file.display().to_string();
        run(&[&["apply", "-f", &file], more].concat())
    };
    let stands = || {
        let policy = run(&["get", "policy", "cluster", "-o", "json"]).ok().json();
        let word = |pointer: &str| {
            policy
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        (
            word("/spec/mode").expect("a mode"),
            word("/spec/full/encapsulation").unwrap_or_else(|| "Auto".to_owned()),
        )
    };
    let is = |mode: &str, encapsulation: &str| {
        assert_eq!(stands(), (mode.to_owned(), encapsulation.to_owned()));
    };
    // There is no policy yet.
    let made = merge(json!({"mode": "Full"})).ok();
    is("Full", "Auto");
    assert!(made.err.contains("Geneve on UDP 6081"), "{made}");
    let policy = run(&["get", "policy", "cluster", "-o", "json"]).ok().json();
    assert_eq!(policy["spec"]["overlay"]["type"], "Geneve", "{policy}");
    merge(json!({"mode": "Full", "full": {"encapsulation": "Always"}})).ok();
    is("Full", "Always");
    let refused = merge(json!({"mode": "External"})).expect(1);
    assert!(refused.err.contains("the mode is External"), "{refused}");
    assert!(refused.err.contains("nothing was changed"), "{refused}");
    is("Full", "Always");

    // What would change is shown, and does not change.
    let path = "/spec/defaultNetwork/ovnKubernetesConfig/ipsecConfig";
    let off = json!([
        {"op": "remove", "path": format!("{path}/full")},
        {"op": "replace", "path": format!("{path}/mode"), "value": "Disabled"},
    ])
    .to_string();
    let shown = apply(&off, &["--diff"]).ok();
    for line in [
        "-  mode: Full",
        "+  mode: Disabled",
        "-    encapsulation: Always",
    ] {
        assert!(
            shown.out.lines().any(|found| found == line),
            "{line}: {shown}"
        );
    }
    let shown = run(&[
        "patch",
        "network.operator/cluster",
        "--type=json",
        "-p",
        &off,
        "--dry-run",
    ])
    .ok();
    assert_eq!(shown.out, "encryptionpolicy/cluster configured (dry run)\n");
    is("Full", "Always");
    run(&[
        "patch",
        "network.operator/cluster",
        "--type=json",
        "-p",
        &off,
    ])
    .ok();
    is("Disabled", "Auto");
    let again = run(&["patch", NETWORK, "cluster", "--type=json", "-p", &off]).expect(1);
    assert!(again.err.contains("there is no /spec"), "{again}");

    // The old words.
    merge(json!({})).ok();
    is("Full", "Auto");
    merge(json!(null)).ok();
    is("Disabled", "Auto");
    let manifest = "apiVersion: operator.openshift.io/v1\nkind: Network\nmetadata:\n  name: cluster\n\
        spec:\n  defaultNetwork:\n    type: OVNKubernetes\n    ovnKubernetesConfig:\n      mtu: 1354\n\
        \x20     ipsecConfig: {}\n";
    let applied = apply(manifest, &[]).ok();
    assert!(
        applied.err.contains("mtu: not Testudo's, passed over"),
        "{applied}"
    );
    is("Full", "Auto");
    let applied = apply(manifest, &[]).ok();
    assert_eq!(applied.out, "encryptionpolicy/cluster unchanged\n");
    let external = apply(&ipsec(json!({"mode": "External"})), &[]).ok();
    assert!(external.err.contains("do not set up"), "{external}");
    is("External", "Auto");
    merge(json!({"mode": "Disabled"})).ok();
    // Our own object, in our words.
    let patch = json!({"spec": {"enforcement": "Permissive"}}).to_string();
    run(&["patch", "encryptionpolicy", "cluster", "-p", &patch]).ok();
    run(&["patch", "pods", "cluster", "-p", &patch]).expect(2);
    refused_before_it_is_written(run, folder);
    is("Disabled", "Auto");
    run(&[
        "delete",
        "-f",
        &folder.join("openshift.yaml").display().to_string(),
    ])
    .expect(1);
    is("Disabled", "Auto");
}

/// A policy that the controller would not carry out is not written: neither as a patch nor as a manifest.
fn refused_before_it_is_written(run: &dyn Fn(&[&str]) -> Answer, folder: &Path) {
    let version = || {
        let policy = run(&["get", "policy", "cluster", "-o", "json"]).ok().json();
        policy["metadata"]["generation"].clone()
    };
    let before = version();
    let routed = json!({"mode": "Full", "enforcement": "Strict", "overlay": {"type": "Routed"}});
    for (spec, why) in [
        (
            &json!({"mode": "Full", "hostTraffic": true}),
            "spec.hostTraffic",
        ),
        (&routed, "spec.overlay.podCIDRs"),
    ] {
        let patch = json!({ "spec": spec }).to_string();
        let mut manifest = json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "EncryptionPolicy",
            "metadata": { "name": "cluster" },
            "spec": { "overlay": { "type": "VXLAN" } },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            manifest["spec"][key] = value.clone();
        }
        let file = folder.join("refused.yaml");
        std::fs::write(&file, manifest.to_string()).expect("a file");
        let file = file.display().to_string();
        for words in [
            &["patch", "encryptionpolicy", "cluster", "-p", &patch][..],
            &["apply", "-f", &file],
            &["apply", "-f", &file, "--dry-run"],
        ] {
            let refused = run(words).expect(1);
            assert!(refused.err.contains(why), "{refused}");
            assert!(refused.err.contains("nothing was changed"), "{refused}");
        }
    }
    assert_eq!(version(), before);
}

#[test]
fn openshifts_words_in_a_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("dir:{}", folder.path().join("store").display());
    let run = |words: &[&str]| testudo(&[&["--store", &store], words].concat());
    openshifts_words(&run, folder.path());
}

/// A cluster with our CRDs and the rights of an agent.
struct World {
    cluster: Cluster,
    dir: tempfile::TempDir,
    controller: Option<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            let _ = controller.kill();
            let _ = controller.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("controller.log"));
            eprintln!("--- the controller's log\n{}", log.unwrap_or_default());
            for what in [
                &["get", "pods", "-A", "-o", "wide"][..],
                &[
                    "logs",
                    "-n",
                    SYSTEM,
                    "-l",
                    "app.kubernetes.io/component=agent",
                    "--tail=30",
                    "--prefix",
                ],
            ] {
                eprintln!("--- {}\n{:?}", what.join(" "), self.cluster.kubectl(what));
            }
        }
    }
}

const SYSTEM: &str = "testudo-system";

/// What an agent's pod takes: this machine's own files stand for an image's. Its node is a namespace
/// that shows them.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: testudo-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: testudo-agent, namespace: testudo-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: testudo-agent}
rules:
- apiGroups: [testudo.dev]
  resources: [encryptionpolicies, externalconnections, nodeencryptions, trustbundles]
  verbs: [get, list, watch]
- apiGroups: [testudo.dev]
  resources: [nodeencryptions, nodeencryptions/status]
  verbs: [create, patch, update]
- apiGroups: [certificates.k8s.io]
  resources: [certificatesigningrequests]
  verbs: [get, list, watch, create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: testudo-agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: testudo-agent}
subjects:
- {kind: ServiceAccount, name: testudo-agent, namespace: testudo-system}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: testudo-agent, namespace: testudo-system}
spec:
  selector:
    matchLabels: &labels
      app.kubernetes.io/name: testudo
      app.kubernetes.io/component: agent
  template:
    metadata: {labels: *labels}
    spec:
      serviceAccountName: testudo-agent
      hostNetwork: true
      terminationGracePeriodSeconds: 5
      tolerations: [{operator: Exists}]
      containers:
      - name: agent
        image: testudo.dev/busybox:1
        imagePullPolicy: Never
        command: [testudo, agent, --node, $(NODE), --address, $(ADDRESS), --state-dir, /state,
                  --socket, /state/agent.sock, --datapath, user]
        env:
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        securityContext: {privileged: true}
        volumeMounts:
        - {name: state, mountPath: /state}
        - {name: testudo, mountPath: /usr/bin/testudo, readOnly: true}
        - {name: sbin, mountPath: /usr/sbin, readOnly: true}
        - {name: usrlib, mountPath: /usr/lib, readOnly: true}
        - {name: lib, mountPath: /lib, readOnly: true}
        - {name: lib64, mountPath: /lib64, readOnly: true}
      volumes:
      - {name: state, emptyDir: {}}
      - {name: testudo, hostPath: {path: BINARY, type: File}}
      - {name: sbin, hostPath: {path: /usr/sbin}}
      - {name: usrlib, hostPath: {path: /usr/lib}}
      - {name: lib, hostPath: {path: /lib}}
      - {name: lib64, hostPath: {path: /lib64}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- apiGroups: [testudo.dev]
  resources: ["*"]
  verbs: [get, list, watch]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: default}
"#;

impl World {
    fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).expect("kubectl")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).expect("a file");
        file.display().to_string()
    }

    /// `kubectl testudo ...`, with the kubeconfig where kubectl would look for it.
    fn plugin(&self, words: &[&str]) -> Answer {
        self.plugin_as(&self.cluster.kubeconfig(), words)
    }

    fn plugin_as(&self, kubeconfig: &Path, words: &[&str]) -> Answer {
        let mut path = std::ffi::OsString::from(self.cluster.programs());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        // `run` takes KUBECONFIG away.
        let mut command = Command::new("env");
        command
            .arg(format!("KUBECONFIG={}", kubeconfig.display()))
            .args(["kubectl", "testudo"])
            .args(words)
            .env("PATH", path);
        run(command)
    }

    fn start_controller(&mut self) {
        let log = File::create(self.dir.path().join("controller.log")).expect("a log");
        let controller = Command::new(BINARY)
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .arg("controller")
            .env_remove("TESTUDO_STORE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.controller = Some(controller.expect("the controller starts"));
    }

    /// A kubeconfig of a ServiceAccount that may read our objects, and nothing else.
    fn reader(&self) -> PathBuf {
        let token = self.kubectl(&["create", "token", "reader"]);
        let file = self.dir.path().join("reader.kubeconfig");
        std::fs::copy(self.cluster.kubeconfig(), &file).expect("a copy");
        let file_text = file.display().to_string();
        let config = ["--kubeconfig", &file_text, "config"];
        let user = ["set-credentials", "reader", "--token", token.trim()];
        self.kubectl(&[&config[..], &user].concat());
        let cluster =
            self.kubectl(&[&config[..], &["view", "-o", "jsonpath={.clusters[0].name}"]].concat());
        let context = [
            "set-context",
            "reader",
            "--user=reader",
            "--cluster",
            cluster.trim(),
        ];
        self.kubectl(&[&config[..], &context].concat());
        file
    }
}

#[test]
fn the_plugin_leads_a_cluster_and_asks_its_agents_through_the_api_server() {
    let Some(_turn) =
        begin("the_plugin_leads_a_cluster_and_asks_its_agents_through_the_api_server")
    else {
        return;
    };
    let options = Options {
        nodes: 2,
        ..Options::named("kube-verbs")
    };
    let cluster = Cluster::up(&options, &|line| eprintln!("{line}")).expect("a cluster");
    let plugin = cluster.link_program("kubectl-testudo", Path::new(BINARY));
    plugin.expect("the plugin is linked");
    let mut world = World {
        cluster,
        dir: tempfile::tempdir().expect("a folder"),
        controller: None,
    };

    // kubectl finds it, and it speaks of itself as of a part of kubectl.
    let help = world.plugin(&["--help"]).ok();
    assert!(help.out.contains("Usage: kubectl testudo "), "{help}");
    let wrong = world.plugin(&["status", "--no-such-flag"]).expect(2);
    assert!(
        wrong.err.contains("Usage: kubectl testudo status"),
        "{wrong}"
    );

    let crds = world.plugin(&["crds"]).ok().out;
    let crds = world.file("crds.yaml", &crds);
    world.kubectl(&["apply", "--server-side", "-f", &crds]);
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "--all",
        "crd",
    ];
    world.kubectl(&wait);
    openshifts_words(&|words| world.plugin(words), world.dir.path());
    world.plugin(&["delete", "policy", "cluster"]).ok();
    let missing = world.plugin(&["start"]).expect(1);
    assert!(
        missing.err.contains("run `kubectl testudo init` first"),
        "{missing}"
    );

    let manifest = MANIFEST.replace("BINARY", BINARY);
    let manifest = world.file("agents.yaml", &manifest);
    world.kubectl(&["apply", "-f", &manifest]);
    world.start_controller();
    let node = world.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let rollout = [
        "rollout",
        "status",
        "-n",
        SYSTEM,
        "ds/testudo-agent",
        "--timeout=180s",
    ];
    world.kubectl(&rollout);

    // OpenShift's way to turn it on leads to Strict on a cluster that has no policy yet.
    let patch = ipsec(json!({"mode": "Full"}));
    world
        .plugin(&["patch", NETWORK, "cluster", "--type=merge", "-p", &patch])
        .ok();
    let strict = wait_until("all is settled", seconds(240), || {
        let status = world.plugin(&["status", "--wait", "--timeout", "20s"]);
        match status.code {
            Some(0) => Ok(status),
            _ => Err(status.to_string()),
        }
    });
    assert!(
        strict.out.contains("Phase Strict, 2 of 2 nodes"),
        "{strict}"
    );
    let tunnels = world
        .plugin(&["status", "--tunnels", "-o", "json"])
        .ok()
        .json();
    let of = |tunnel: &Value| tunnel["node"].as_str().map(str::to_owned);
    let all: Vec<&Value> = tunnels["tunnels"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(all.len(), 2, "{tunnels}");
    assert_ne!(of(all[0]), of(all[1]), "{tunnels}");
    assert!(all.iter().all(|tunnel| tunnel["up"] == true), "{tunnels}");
    let one = world
        .plugin(&["status", "--tunnels", "--node", &node, "-n", SYSTEM])
        .ok();
    assert!(one.out.contains("1 of 1 tunnels up"), "{one}");

    // A capture on a node's link, while keys are exchanged there.
    let file = world.dir.path().join("link.pcap").display().to_string();
    let words = [
        "capture",
        "--node",
        &node,
        "--seconds",
        "8",
        "--write",
        &file,
        "-o",
        "json",
    ];
    let (seen, rotated) = std::thread::scope(|scope| {
        let capture = scope.spawn(|| world.plugin(&words).ok().json());
        std::thread::sleep(seconds(3));
        let rotated = world.plugin(&["certs", "rotate", "--timeout", "50s"]).ok();
        (capture.join().expect("the capture"), rotated)
    });
    assert!(rotated.out.contains("2 certificates rotated"), "{rotated}");
    assert!(seen["ikePackets"].as_u64() > Some(0), "{seen}");
    assert_eq!(seen["clearOverlayPackets"], 0, "{seen}");
    let kept = common::pcap::read(Path::new(&file)).len();
    assert_eq!(Some(kept as u64), seen["packets"].as_u64(), "{seen}");
    let certificates = world.plugin(&["certs", "list", "-o", "json"]).ok().json();
    assert_eq!(
        certificates["certificates"].as_array().map(Vec::len),
        Some(2)
    );
    world.plugin(&["ca", "rotate", "--timeout", "55s"]).ok();
    world.plugin(&["stop", "--timeout", "50s"]).ok();
    world.plugin(&["start", "--timeout", "50s"]).ok();

    // What is missing or forbidden is said.
    let which = world.plugin(&["capture"]).expect(2);
    assert!(
        which.err.contains("--node") && which.err.contains(&node),
        "{which}"
    );
    let nobody = world.plugin(&["capture", "--node", "n9"]).expect(1);
    assert!(nobody.err.contains("no agent's pod runs on n9"), "{nobody}");
    let elsewhere = world
        .plugin(&["-n", "default", "status", "--tunnels", "--node", &node])
        .expect(1);
    assert!(
        elsewhere.err.contains("in namespace default"),
        "{elsewhere}"
    );
    let reader = world.reader();
    let may = world
        .plugin_as(&reader, &["--context", "reader", "status"])
        .ok();
    assert!(may.out.contains("Phase Strict"), "{may}");
    let words = ["--context", "reader", "status", "--tunnels"];
    let forbidden = world.plugin_as(&reader, &words).expect(1);
    assert!(
        forbidden.err.contains("cannot list resource \"pods\""),
        "{forbidden}"
    );
    let words = ["--context", "reader", "stop", "--wait=false"];
    let forbidden = world.plugin_as(&reader, &words).expect(1);
    assert!(forbidden.err.contains("forbids it"), "{forbidden}");
    let gone = world.cluster.stop_component(Component::ApiServer);
    gone.expect("the API server is stopped");
    for words in [
        &["status"][..],
        &["status", "--tunnels"],
        &["capture", "--node", &node],
    ] {
        let answer = world.plugin(words).expect(1);
        assert_eq!(answer.err.lines().count(), 1, "{answer}");
        assert!(answer.err.contains("cannot be reached"), "{answer}");
    }
}
