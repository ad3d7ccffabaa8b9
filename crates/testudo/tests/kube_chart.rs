//! The Helm chart on a real API server: what it refuses, what its roles allow, and that a token of one node
//! writes no other's objects.

mod common;
#[path = "kube_chart/monitoring.rs"]
mod monitoring;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testudo_kube_env::chart::{self, Chart, NAMESPACE};
use testudo_kube_env::{Cluster, Options};

use common::{BINARY, begin, seconds, wait_until};

const AGENT: &str = "system:serviceaccount:testudo-system:testudo-agent";
const CONTROLLER: &str = "system:serviceaccount:testudo-system:testudo-controller";
const POLICY: &str = "system:serviceaccount:testudo-system:testudo-policy";

struct World {
    cluster: Cluster,
    chart: Chart,
    dir: tempfile::TempDir,
}

/// What a command said, whether it succeeded or not.
struct Said {
    done: bool,
    out: String,
    err: String,
}

fn say(line: &str) {
    eprintln!("{line}");
}

fn said(mut command: Command) -> Said {
    let output = command.output().expect("a command starts");
    Said {
        done: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn helm(arguments: &[&str]) -> Said {
    let mut command = chart::helm(&say).expect("helm");
    command.args(arguments);
    said(command)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is text")
}

impl World {
    fn kubectl(&self, arguments: &[&str]) -> Said {
        let mut command = self.cluster.kubectl_command().expect("kubectl");
        command.args(arguments);
        said(command)
    }

    /// The same with a token instead of an administrator's certificate.
    fn with_token(&self, token: &str, arguments: &[&str]) -> Said {
        let mut command = self.cluster.kubectl_command().expect("kubectl");
        let authority = self.cluster.directory().join("pki/ca.crt");
        command
            .env("KUBECONFIG", "/dev/null")
            .arg(format!("--server={}", self.cluster.server()))
            .arg(format!("--certificate-authority={}", text(&authority)))
            .arg(format!("--token={token}"))
            .args(arguments);
        said(command)
    }

    fn file(&self, object: &Value) -> PathBuf {
        let path = self.dir.path().join("object.json");
        std::fs::write(&path, object.to_string()).expect("a file");
        path
    }

    #[track_caller]
    fn create(&self, object: &Value) {
        let file = self.file(object);
        let said = self.kubectl(&["create", "-f", text(&file)]);
        assert!(said.done, "{}", said.err);
    }

    /// A token of the agents' ServiceAccount: that of a pod on this node, or one that is bound to nothing.
    fn token(&self, node: Option<&str>) -> String {
        let pod = node.map(|node| format!("agent-on-{node}"));
        let mut words = vec!["create", "token", "testudo-agent", "-n", NAMESPACE];
        if let Some(pod) = &pod {
            words.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
        }
        let said = self.kubectl(&words);
        assert!(said.done, "{}", said.err);
        said.out.trim().to_owned()
    }
}

#[test]
fn the_chart_on_an_api_server() {
    let Some(_turn) = begin("the_chart_on_an_api_server") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let chart = chart::package(Path::new(BINARY), dir.path(), &say).expect("a chart");
    it_says_what_is_wrong_with_values(&chart);
    alerts_are_those_of_the_repository(&chart);
    let cluster = Cluster::up(&Options::named("kube-chart"), &say).expect("a control plane");
    let world = World {
        cluster,
        chart,
        dir,
    };
    manifests_are_accepted(&world);
    monitoring::it_is_accepted(&world);
    install(&world);
    roles_allow_what_is_needed_and_no_more(&world);
    nodes_and_pods(&world);
    an_agent_writes_its_own_objects_alone(&world);
    a_request_is_for_its_own_node_and_signer(&world);
    the_controller_makes_its_own_secrets_and_takes_off_its_own_taint(&world);
}

fn it_says_what_is_wrong_with_values(chart: &Chart) {
    let folder = text(&chart.folder);
    let said = helm(&["lint", "--strict", folder]);
    assert!(said.done, "{}{}", said.out, said.err);
    for (set, told) in [
        ("agent.datapth=user", "'datapth' not allowed"),
        (
            "agent.datapath=fast",
            "must be one of 'auto', 'kernel', 'user'",
        ),
        ("controller.replicas=0", "at '/controller/replicas'"),
        (
            "policy.spec.enforcement=strict",
            "at '/policy/spec/enforcement'",
        ),
        ("modules.names={esp4;reboot}", "at '/modules/names/0'"),
        ("agent.stateDir=here", "at '/agent/stateDir'"),
        ("agent.metrics.port=0", "at '/agent/metrics/port'"),
        ("agent.podPrefixes=calico", "must be one of 'node', 'none'"),
        ("policy.create=true", "policy.spec.overlay.type: Auto"),
        (
            "policy.create=true,policy.spec.overlay.type=Routed,agent.podPrefixes=none",
            "needs agent.podPrefixes: node",
        ),
        (
            "policy.create=true,policy.spec.overlay.type=Routed",
            "policy.spec.overlay.podCIDRs: Strict cannot close",
        ),
        (
            "policy.create=true,policy.spec.overlay.type=VXLAN,policy.spec.hostTraffic=true",
            "policy.spec.hostTraffic: ",
        ),
        (
            "policy.create=true,policy.spec.overlay.type=VXLAN,policy.spec.keying=PreSharedKey",
            "policy.spec.keying: ",
        ),
    ] {
        let said = helm(&["template", "testudo", folder, "--set", set]);
        assert!(!said.done && said.err.contains(told), "{set}: {}", said.err);
    }
    // Where agents take no prefixes from their Nodes they may not read them.
    for (value, reads) in [("node", true), ("none", false)] {
        let set = format!("--set=agent.podPrefixes={value},startupTaint.remove=false");
        let said = helm(&["template", "testudo", text(&chart.archive), &set]);
        assert!(said.done, "{}", said.err);
        assert_eq!(said.out.contains("--pod-cidrs-from-node"), reads);
        let role = said.out.split("---").find(|part| {
            part.contains("kind: ClusterRole\n") && part.contains("name: testudo-agent\n")
        });
        let role = role.expect("the agents' role");
        assert_eq!(role.contains("resources: [nodes]"), reads, "{value}");
    }
    // As it stands in the repository, without what packaging adds.
    let bare = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/testudo");
    let said = helm(&["template", "testudo", text(&bare)]);
    assert!(said.err.contains("cargo xtask chart"), "{}", said.err);
}

fn alerts_are_those_of_the_repository(chart: &Chart) {
    let said = helm(&[
        "template",
        "testudo",
        text(&chart.archive),
        "--set=prometheusRule.enabled=true,serviceMonitor.enabled=true",
        "--set=serviceMonitor.labels.release=prometheus",
    ]);
    assert!(said.done, "{}", said.err);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let alerts = std::fs::read_to_string(root.join("deploy/prometheus/alerts.yaml"));
    for line in alerts.expect("the alerts").lines() {
        assert!(said.out.contains(line), "{line}");
    }
    assert!(said.out.contains("release: prometheus"), "{}", said.out);
    for kind in ["kind: ServiceMonitor", "kind: PrometheusRule"] {
        assert!(said.out.contains(kind), "{kind}");
    }
}

/// What the API server says of every object, without making one.
fn manifests_are_accepted(world: &World) {
    let said = world.kubectl(&["create", "namespace", NAMESPACE]);
    assert!(said.done, "{}", said.err);
    let plain = text(&world.chart.manifests).to_owned();
    let all = world.dir.path().join("all.yaml");
    let everything = helm(&[
        "template",
        "testudo",
        text(&world.chart.archive),
        "--namespace",
        NAMESPACE,
        "--set=policy.create=true,policy.spec.overlay.type=Routed",
        "--set=policy.spec.overlay.podCIDRs={10.244.0.0/16}",
        "--set=agent.datapath=auto,agent.metrics.byPeer=true",
        "--set=apiServer.host=192.0.2.1,agent.verbosity=2,controller.verbosity=1",
        "--set=image.pullSecrets[0].name=registry,controller.caSecret=our-ca",
    ]);
    assert!(everything.done, "{}", everything.err);
    std::fs::write(&all, everything.out).expect("a file");
    for file in [&plain[..], text(&all)] {
        let said = world.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", file]);
        assert!(said.done, "{}", said.err);
        for object in [
            "daemonset.apps/testudo-agent",
            "deployment.apps/testudo-controller",
            "poddisruptionbudget.policy/testudo-controller",
            "validatingadmissionpolicy.admissionregistration.k8s.io/testudo-agent",
            "customresourcedefinition.apiextensions.k8s.io/nodeencryptions.testudo.dev",
        ] {
            assert!(said.out.contains(object), "{object}: {}", said.out);
        }
    }
}

fn install(world: &World) {
    let config = format!("--kubeconfig={}", text(&world.cluster.kubeconfig()));
    let archive = text(&world.chart.archive);
    let said = helm(&["install", "testudo", archive, "-n", NAMESPACE, &config]);
    assert!(said.done, "{}", said.err);
    assert!(said.out.contains("kubectl testudo init"), "{}", said.out);
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "nodeencryptions.testudo.dev",
        "encryptionpolicies.testudo.dev",
        "externalconnections.testudo.dev",
    ];
    assert!(world.kubectl(&wait).done);
}

/// Who, verb, resource with its group (and subresource, and name), whether it is allowed.
type Right = (&'static str, &'static str, &'static str, &'static str, bool);

const RIGHTS: [Right; 57] = [
    (AGENT, "watch", "encryptionpolicies.testudo.dev", "", true),
    (AGENT, "watch", "trustbundles.testudo.dev", "", true),
    (AGENT, "watch", "externalconnections.testudo.dev", "", true),
    (
        AGENT,
        "create",
        "externalconnections.testudo.dev",
        "",
        false,
    ),
    (
        AGENT,
        "patch",
        "externalconnections.testudo.dev/status",
        "x",
        false,
    ),
    (
        CONTROLLER,
        "patch",
        "externalconnections.testudo.dev/status",
        "x",
        true,
    ),
    (
        CONTROLLER,
        "patch",
        "externalconnections.testudo.dev",
        "x",
        false,
    ),
    (AGENT, "patch", "nodeencryptions.testudo.dev", "n1", true),
    (AGENT, "create", "nodeencryptions.testudo.dev", "", true),
    (
        AGENT,
        "patch",
        "nodeencryptions.testudo.dev/status",
        "n1",
        true,
    ),
    (
        AGENT,
        "create",
        "certificatesigningrequests.certificates.k8s.io",
        "",
        true,
    ),
    (AGENT, "delete", "nodeencryptions.testudo.dev", "n1", false),
    (
        AGENT,
        "patch",
        "encryptionpolicies.testudo.dev",
        "cluster",
        false,
    ),
    (
        AGENT,
        "patch",
        "encryptionpolicies.testudo.dev/status",
        "cluster",
        false,
    ),
    (AGENT, "patch", "trustbundles.testudo.dev", "cluster", false),
    (
        AGENT,
        "patch",
        "certificatesigningrequests.certificates.k8s.io",
        "x",
        false,
    ),
    (
        AGENT,
        "patch",
        "certificatesigningrequests.certificates.k8s.io/approval",
        "x",
        false,
    ),
    (
        AGENT,
        "patch",
        "certificatesigningrequests.certificates.k8s.io/status",
        "x",
        false,
    ),
    (
        AGENT,
        "sign",
        "signers.certificates.k8s.io",
        "testudo.dev/node",
        false,
    ),
    (AGENT, "get", "secrets", "testudo-ca", false),
    (AGENT, "list", "secrets", "", false),
    (AGENT, "watch", "nodes", "", true),
    (AGENT, "patch", "nodes", "n1", false),
    (AGENT, "get", "nodes/proxy", "n1", false),
    (AGENT, "list", "pods", "", false),
    (
        AGENT,
        "create",
        "serviceaccounts/token",
        "testudo-agent",
        false,
    ),
    (
        AGENT,
        "update",
        "leases.coordination.k8s.io",
        "testudo-controller",
        false,
    ),
    (CONTROLLER, "get", "secrets", "testudo-ca", true),
    (CONTROLLER, "update", "secrets", "testudo-ca", true),
    (
        CONTROLLER,
        "update",
        "secrets",
        "testudo-certificates",
        true,
    ),
    (CONTROLLER, "create", "secrets", "", true),
    (CONTROLLER, "get", "secrets", "other", false),
    (CONTROLLER, "list", "secrets", "", false),
    (CONTROLLER, "delete", "secrets", "testudo-ca", false),
    (
        CONTROLLER,
        "update",
        "leases.coordination.k8s.io",
        "testudo-controller",
        true,
    ),
    (
        CONTROLLER,
        "update",
        "leases.coordination.k8s.io",
        "other",
        false,
    ),
    (
        CONTROLLER,
        "patch",
        "encryptionpolicies.testudo.dev/status",
        "cluster",
        true,
    ),
    (
        CONTROLLER,
        "patch",
        "encryptionpolicies.testudo.dev",
        "cluster",
        false,
    ),
    (
        CONTROLLER,
        "delete",
        "nodeencryptions.testudo.dev",
        "n1",
        true,
    ),
    (
        CONTROLLER,
        "patch",
        "nodeencryptions.testudo.dev",
        "n1",
        false,
    ),
    (
        CONTROLLER,
        "patch",
        "trustbundles.testudo.dev",
        "cluster",
        true,
    ),
    (
        CONTROLLER,
        "patch",
        "certificatesigningrequests.certificates.k8s.io/approval",
        "x",
        true,
    ),
    (
        CONTROLLER,
        "patch",
        "certificatesigningrequests.certificates.k8s.io/status",
        "x",
        true,
    ),
    (
        CONTROLLER,
        "approve",
        "signers.certificates.k8s.io",
        "testudo.dev/node",
        true,
    ),
    (
        CONTROLLER,
        "sign",
        "signers.certificates.k8s.io",
        "testudo.dev/node",
        true,
    ),
    (
        CONTROLLER,
        "sign",
        "signers.certificates.k8s.io",
        "kubernetes.io/kube-apiserver-client",
        false,
    ),
    (
        CONTROLLER,
        "approve",
        "signers.certificates.k8s.io",
        "kubernetes.io/kubelet-serving",
        false,
    ),
    (CONTROLLER, "watch", "nodes", "", true),
    (CONTROLLER, "patch", "nodes", "n1", true),
    (CONTROLLER, "patch", "nodes/status", "n1", false),
    (CONTROLLER, "delete", "nodes", "n1", false),
    (CONTROLLER, "create", "pods", "", false),
    (CONTROLLER, "create", "events.events.k8s.io", "", true),
    (
        POLICY,
        "patch",
        "encryptionpolicies.testudo.dev",
        "cluster",
        true,
    ),
    (
        POLICY,
        "delete",
        "encryptionpolicies.testudo.dev",
        "cluster",
        false,
    ),
    (
        POLICY,
        "patch",
        "encryptionpolicies.testudo.dev/status",
        "cluster",
        false,
    ),
    (POLICY, "get", "secrets", "testudo-ca", false),
];

fn roles_allow_what_is_needed_and_no_more(world: &World) {
    // What `kubectl auth can-i --as` asks, in one call.
    let items: Vec<Value> = RIGHTS
        .iter()
        .map(|(who, verb, resource, name, _)| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
            json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": who,
                    "groups": [
                        "system:serviceaccounts",
                        format!("system:serviceaccounts:{NAMESPACE}"),
                        "system:authenticated",
                    ],
                    "resourceAttributes": {
                        "namespace": NAMESPACE,
                        "verb": verb,
                        "group": group,
                        "resource": resource,
                        "subresource": subresource,
                        "name": name,
                    },
                },
            })
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let file = world.file(&list);
    let said = world.kubectl(&["create", "-f", text(&file), "-o", "json"]);
    assert!(said.done, "{}", said.err);
    // One document after the other.
    let answers = serde_json::Deserializer::from_str(&said.out).into_iter::<Value>();
    let answers: Vec<Value> = answers.collect::<Result<_, _>>().expect("JSON");
    assert_eq!(answers.len(), RIGHTS.len());
    let wrong: Vec<&Right> = RIGHTS
        .iter()
        .zip(&answers)
        .filter(|(right, answer)| answer["status"]["allowed"] != right.4)
        .map(|(right, _)| right)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Two nodes that nothing runs on, and on each a pod with the agents' ServiceAccount.
fn nodes_and_pods(world: &World) {
    for node in ["n1", "n2"] {
        let taint = json!([{ "key": "testudo.dev/agent-not-ready", "effect": "NoSchedule" }]);
        world.create(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": node }, "spec": { "taints": taint },
        }));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("agent-on-{node}"), "namespace": NAMESPACE },
            "spec": {
                "nodeName": node,
                "serviceAccountName": "testudo-agent",
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "agent", "image": "none" }],
            },
        });
        world.create(&pod);
    }
}

fn node_encryption(node: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": "NodeEncryption",
        "metadata": { "name": node },
        "spec": { "uid": uid, "bootId": "b1", "addresses": ["192.0.2.1"], "datapath": "user" },
        "status": { "agentPid": 1 },
    })
}

fn an_agent_writes_its_own_objects_alone(world: &World) {
    let field = "jsonpath={.metadata.uid}";
    let [uid1, uid2] = ["n1", "n2"].map(|n| world.kubectl(&["get", "node", n, "-o", field]).out);
    let token = world.token(Some("n1"));
    let write = |token: &str, node: &str, uid: &str, also: &[&str]| {
        let file = world.file(&node_encryption(node, uid));
        let words = [
            "apply",
            "--server-side",
            "--field-manager=testudo-agent",
            "-f",
            text(&file),
        ];
        world.with_token(token, &[&words[..], also].concat())
    };
    // A policy is in force some moments after it was written.
    wait_until("the admission policy", seconds(60), || {
        let said = write(&token, "n2", &uid2, &["--dry-run=server"]);
        match said.err.contains("writes no other NodeEncryption") {
            true => Ok(()),
            false => Err(format!("{}{}", said.out, said.err)),
        }
    });
    let said = write(&token, "n1", &uid1, &[]);
    assert!(said.done, "{}", said.err);
    let status = write(&token, "n1", &uid1, &["--subresource=status"]);
    assert!(status.done, "{}", status.err);
    for (token, node, uid, told) in [
        (&token, "n2", &uid2, "agent of node n1 writes no other"),
        (&token, "n1", &uid2, "spec.uid is not that of node n1"),
        (&world.token(None), "n1", &uid1, "bound to no node"),
    ] {
        let said = write(token, node, uid, &[]);
        assert!(
            !said.done && said.err.contains(told),
            "{told}: {}",
            said.err
        );
    }
    // The other node's, which is there.
    let other = world.token(Some("n2"));
    assert!(write(&other, "n2", &uid2, &[]).done);
    let said = write(
        &token,
        "n2",
        &uid2,
        &["--subresource=status", "--force-conflicts"],
    );
    assert!(said.err.contains("writes no other"), "{}", said.err);
    // One that cannot be removed, or goes with another object.
    for metadata in [
        json!({ "name": "n1", "finalizers": ["example.org/stays"] }),
        json!({ "name": "n1", "ownerReferences": [{
            "apiVersion": "v1", "kind": "Node", "name": "n2", "uid": uid2,
        }] }),
    ] {
        let mut object = node_encryption("n1", &uid1);
        object["metadata"] = metadata;
        let file = world.file(&object);
        let words = ["apply", "--server-side", "--field-manager=testudo-agent"];
        let said = world.with_token(&token, &[&words[..], &["-f", text(&file)]].concat());
        let told = "neither finalizers nor owners";
        assert!(
            !said.done && said.err.contains(told),
            "{object}: {}",
            said.err
        );
    }
    // People may, where a role lets them.
    let file = world.file(&node_encryption("n3", "u3"));
    assert!(world.kubectl(&["apply", "-f", text(&file)]).done);
}

fn a_request_is_for_its_own_node_and_signer(world: &World) {
    let token = world.token(Some("n1"));
    let field = "jsonpath={.metadata.uid}";
    let [uid1, uid2] = ["n1", "n2"].map(|n| world.kubectl(&["get", "node", n, "-o", field]).out);
    let pkcs10 = pkcs10();
    let request = |name: &str, node: &str, uid: &str, signer: &str| {
        let annotations = json!({ "testudo.dev/node": node, "testudo.dev/uid": uid });
        let file = world.file(&json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": { "name": name, "annotations": annotations },
            "spec": {
                "signerName": signer, "request": pkcs10,
                "usages": ["digital signature", "ipsec end system"],
            },
        }));
        world.with_token(&token, &["create", "-f", text(&file)])
    };
    let told = "asks signer testudo.dev/node for its own certificate";
    let ours = "testudo.dev/node";
    for (name, node, uid, signer) in [
        ("of-another", "n2", &uid2, ours),
        // The Node that was made anew under the same name is another one.
        ("of-the-next", "n1", &uid2, ours),
        (
            "a-client",
            "n1",
            &uid1,
            "kubernetes.io/kube-apiserver-client",
        ),
    ] {
        let said = request(name, node, uid, signer);
        assert!(
            !said.done && said.err.contains(told),
            "{name}: {}",
            said.err
        );
    }
    let own = request("its-own", "n1", &uid1, ours);
    assert!(own.done, "{}", own.err);
}

/// A request as the API server wants it: PEM, and that in base64.
fn pkcs10() -> String {
    let script = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null \
                  -subj /CN=n1 2>/dev/null | openssl base64 -A";
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let said = said(command);
    assert!(said.done && !said.out.is_empty(), "{}", said.err);
    said.out
}

fn the_controller_makes_its_own_secrets_and_takes_off_its_own_taint(world: &World) {
    let impersonated = format!("--as={CONTROLLER}");
    let secret = |name: &str| {
        let words = [
            "create",
            "secret",
            "generic",
            name,
            "-n",
            NAMESPACE,
            &impersonated,
        ];
        world.kubectl(&words)
    };
    let said = secret("other");
    assert!(
        said.err.contains("testudo-certificates alone"),
        "{}",
        said.err
    );
    let said = secret("testudo-certificates");
    assert!(said.done, "{}", said.err);
    let patch = |patch: &Value| {
        let patch = patch.to_string();
        world.kubectl(&[
            "patch",
            "node",
            "n1",
            "--type=merge",
            "-p",
            &patch,
            &impersonated,
        ])
    };
    for refused in [
        json!({ "metadata": { "labels": { "a": "b" } } }),
        json!({ "metadata": { "annotations": { "a": "b" } } }),
        json!({ "metadata": { "finalizers": ["example.org/stays"] } }),
        json!({ "spec": { "unschedulable": true } }),
        json!({ "spec": { "taints": [{ "key": "other", "effect": "NoExecute" }] } }),
    ] {
        let said = patch(&refused);
        let told = "the taint testudo.dev/agent-not-ready alone";
        assert!(
            !said.done && said.err.contains(told),
            "{refused}: {}",
            said.err
        );
    }
    let said = world.kubectl(&["get", "node", "n1", "-o", "json"]);
    let node: Value = serde_json::from_str(&said.out).expect("JSON");
    let mut taints = node["spec"]["taints"].as_array().expect("taints").clone();
    taints.retain(|taint| taint["key"] != "testudo.dev/agent-not-ready");
    let said = patch(&json!({ "spec": { "taints": taints } }));
    assert!(said.done, "{}", said.err);
}
