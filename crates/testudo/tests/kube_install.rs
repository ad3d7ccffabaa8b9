//! The chart on real nodes: installed with Helm, encrypting real pods' traffic, upgraded under load, removed.
//!
//! This machine's kernel need have no ESP: agents have the userspace datapath.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use testudo_kube_env::chart::{self, Chart, NAMESPACE};
use testudo_kube_env::image::{self, BUSYBOX};
use testudo_kube_env::{Cluster, Options};

use common::{BINARY, begin, run, seconds, wait_until};

const NODES: u8 = 2;
/// Long enough for a machine that has other things to do.
const PATIENCE: &str = "--timeout=240s";

struct World {
    cluster: Cluster,
    chart: Chart,
    dir: tempfile::TempDir,
}

fn say(line: &str) {
    eprintln!("{line}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is text")
}

impl World {
    fn kubectl(&self, arguments: &[&str]) -> String {
        let said = self.cluster.kubectl(arguments);
        said.unwrap_or_else(|error| panic!("{error:#}\n{}", self.state()))
    }

    fn helm(&self, arguments: &[&str]) {
        let mut command = chart::helm(&say).expect("helm");
        command
            .arg(format!("--kubeconfig={}", text(&self.cluster.kubeconfig())))
            .args(["--namespace", NAMESPACE])
            .args(arguments);
        let output = command.output().expect("helm starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{}", self.state());
    }

    fn testudo(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(BINARY);
        command.arg("--kubeconfig").arg(self.cluster.kubeconfig());
        command.args(arguments);
        run(command).expect(0).out
    }

    /// For an error: what runs, and what it says.
    fn state(&self) -> String {
        let pods = self
            .cluster
            .kubectl(&["get", "pods,nodeenc,encpol", "-A", "-o", "wide"]);
        let labels = "app.kubernetes.io/part-of=testudo";
        let logs = [
            "logs",
            "-n",
            NAMESPACE,
            "-l",
            labels,
            "--all-containers",
            "--tail=20",
            "--prefix",
        ];
        let logs = self.cluster.kubectl(&logs);
        format!("{}\n{}", pods.unwrap_or_default(), logs.unwrap_or_default())
    }

    fn node(&self, number: u8, command: &[&str]) -> (bool, String) {
        let mut enter = self.cluster.node_command(number).expect("a node");
        let output = enter.args(command).output().expect("nsenter");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    }

    fn apply(&self, object: &Value) {
        let path = self.dir.path().join("object.json");
        std::fs::write(&path, object.to_string()).expect("a file");
        self.kubectl(&["apply", "-f", text(&path)]);
    }

    fn pod_address(&self, pod: &str) -> String {
        self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
    }

    /// Listens on a node's port of the underlay.
    fn watch(&self, port: &str, filter: &str) -> Watch {
        let file = self.dir.path().join(format!("{port}.pcap"));
        let namespace = format!("--net=/run/netns/testudo-kube-{}", self.cluster.name());
        let mut child = Command::new("nsenter")
            .args([
                &namespace,
                "tcpdump",
                "-n",
                "-U",
                "--immediate-mode",
                "-i",
                port,
                "-w",
            ])
            .arg(&file)
            .arg(filter)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        // It says so when it listens.
        let mut line = String::new();
        let error = child.stderr.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(error), &mut line)
            .expect("a line");
        assert!(line.contains("listening on"), "{line}");
        Watch { child, file }
    }
}

/// A capture that runs.
struct Watch {
    child: Child,
    file: std::path::PathBuf,
}

impl Watch {
    /// Ends it; what it saw, a line a packet.
    fn end(mut self) -> Vec<String> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let signal = rustix::process::Signal::INT;
        rustix::process::kill_process(pid.expect("a process"), signal).expect("it runs");
        self.child.wait().expect("tcpdump");
        let mut command = Command::new("tcpdump");
        let output = command
            .args(["-n", "-r"])
            .arg(&self.file)
            .output()
            .expect("tcpdump");
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn helm_installs_upgrades_and_removes_it_under_traffic() {
    let Some(_turn) = begin("helm_installs_upgrades_and_removes_it_under_traffic") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let chart = chart::package(Path::new(BINARY), dir.path(), &say).expect("a chart");
    let archive = dir.path().join("image.tar");
    let name = format!("{}:{}", image::NAME, env!("CARGO_PKG_VERSION"));
    let stripped = dir.path().join("stripped");
    let image = image::testudo(Path::new(BINARY), &stripped, &name).expect("an image");
    let size = image.write(&archive).expect("an archive");
    eprintln!(
        "the image takes {:.1} MiB",
        size as f64 / f64::from(1 << 20)
    );
    let options = Options {
        nodes: NODES,
        ..Options::named("kube-install")
    };
    let world = World {
        cluster: Cluster::up(&options, &say).expect("nodes"),
        chart,
        dir,
    };
    for number in 1..=NODES {
        world
            .cluster
            .load_image(number, &archive)
            .expect("a loaded image");
    }
    install(&world);
    pods(&world);
    in_clear_before(&world);
    world.testudo(&["init", "--overlay", "vxlan", "--timeout", "240s"]);
    sealed(&world);
    agents_have_no_more_than_they_need(&world);
    nothing_was_forbidden(&world);
    upgraded_without_a_clear_packet(&world);
    removed(&world);
}

fn install(world: &World) {
    world.kubectl(&["create", "namespace", NAMESPACE]);
    // As nodes are that were registered with it: nothing but ours may start on them.
    let taint = "testudo.dev/agent-not-ready=:NoSchedule";
    world.kubectl(&["taint", "node", "--all", taint]);
    let archive = text(&world.chart.archive);
    let values = "--set=agent.datapath=user,modules.load=false";
    world.helm(&["install", "testudo", archive, values, "--wait", PATIENCE]);
    let ready = world.kubectl(&["get", "nodeenc", "-o", "name"]);
    assert_eq!(ready.lines().count(), usize::from(NODES), "{ready}");
    wait_until("the end of the startup taint", seconds(120), || {
        let taints = world.kubectl(&["get", "node", "-o", "jsonpath={.items[*].spec.taints}"]);
        match taints.contains("agent-not-ready") {
            false => Ok(()),
            true => Err(format!("{taints}\n{}", world.state())),
        }
    });
}

/// One on each node; the first sends to the second all the time.
fn pods(world: &World) {
    for number in 1..=NODES {
        world.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("pod{number}") },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": format!("node{number}") },
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "pod", "image": BUSYBOX }],
            },
        }));
    }
    world.kubectl(&[
        "wait",
        "--for=condition=Ready",
        PATIENCE,
        "pod/pod1",
        "pod/pod2",
    ]);
}

/// So many pings from one pod to the other; how many came back.
fn ping(world: &World, count: u32) -> u32 {
    let address = world.pod_address("pod2");
    let count = count.to_string();
    let words = [
        "exec", "pod1", "--", "ping", "-c", &count, "-i", "0.2", "-W", "10", &address,
    ];
    let output = world
        .cluster
        .kubectl_command()
        .expect("kubectl")
        .args(words)
        .output();
    let said = String::from_utf8_lossy(&output.expect("kubectl").stdout).into_owned();
    let received = said
        .split(", ")
        .find_map(|part| part.strip_suffix(" packets received"));
    received
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{said}"))
}

const OVERLAY: &str = "udp port 4789";

/// What is seen of it is seen by this watch.
fn in_clear_before(world: &World) {
    let watch = world.watch("node1", OVERLAY);
    assert_eq!(ping(world, 5), 5);
    let seen = watch.end();
    assert!(
        seen.iter().filter(|line| line.contains("VXLAN")).count() >= 10,
        "{seen:#?}"
    );
}

fn sealed(world: &World) {
    let watch = world.watch("node1", "udp port 4789 or ip proto 50 or udp port 4500");
    assert_eq!(ping(world, 20), 20);
    let seen = watch.end();
    let sealed = seen.iter().filter(|line| line.contains("ESP(spi=")).count();
    let clear: Vec<_> = seen.iter().filter(|line| line.contains("VXLAN")).collect();
    assert!(
        sealed >= 40 && clear.is_empty(),
        "{sealed} sealed, in clear: {clear:#?}"
    );
    eprintln!("20 pings: {sealed} packets of ESP, none in clear");
    let status = world.testudo(&["status"]);
    assert!(status.contains("Strict"), "{status}");
}

/// Of capabilities, as the kernel has it of the processes.
fn agents_have_no_more_than_they_need(world: &World) {
    let script = "for p in /proc/[0-9]*; do \
        c=$(tr '\\0' ' ' <$p/cmdline); case $c in \
        '/usr/bin/testudo agent keep'*) echo keep $(grep CapEff $p/status);; \
        '/usr/bin/testudo agent'*) echo agent $(grep CapEff $p/status);; esac; done 2>/dev/null";
    let (done, said) = world.node(1, &["sh", "-c", script]);
    // NET_ADMIN (12) and NET_RAW (13); NET_BIND_SERVICE (10).
    assert!(
        done && said.contains("agent CapEff: 0000000000003000"),
        "{said}"
    );
    assert!(said.contains("keep CapEff: 0000000000000400"), "{said}");
}

/// What they asked of the API server their roles have.
fn nothing_was_forbidden(world: &World) {
    let labels = "app.kubernetes.io/part-of=testudo";
    let words = [
        "logs",
        "-n",
        NAMESPACE,
        "-l",
        labels,
        "--all-containers",
        "--tail=-1",
    ];
    let logs = world.kubectl(&words);
    assert!(logs.contains("leading"), "{logs}");
    let refused: Vec<&str> = logs
        .lines()
        .filter(|line| line.contains("forbid"))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let events = world.kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].reason}"]);
    for reason in ["AgentReady", "CertificateSigned", "Phase"] {
        assert!(events.contains(reason), "{reason}: {events}");
    }
}

/// The agents are replaced, one node at a time. With the userspace datapath packets are lost meanwhile, and
/// none leaves in clear.
fn upgraded_without_a_clear_packet(world: &World) {
    let watches = ["node1", "node2"].map(|port| world.watch(port, OVERLAY));
    let address = world.pod_address("pod2");
    let mut load = world.cluster.kubectl_command().expect("kubectl");
    load.args(["exec", "pod1", "--", "ping", "-i", "0.2", &address]);
    let mut load = load.stdout(Stdio::null()).spawn().expect("kubectl");
    let archive = text(&world.chart.archive);
    let change = "--set=agent.verbosity=1";
    let words = [
        "upgrade",
        "testudo",
        archive,
        "--reuse-values",
        change,
        "--wait",
        PATIENCE,
    ];
    world.helm(&words);
    world.kubectl(&[
        "rollout",
        "status",
        "daemonset/testudo-agent",
        "-n",
        NAMESPACE,
        PATIENCE,
    ]);
    wait_until("packets after the upgrade", seconds(120), || {
        match ping(world, 5) {
            5 => Ok(()),
            some => Err(format!("{some} of 5; {}", world.state())),
        }
    });
    load.kill().expect("it runs");
    load.wait().expect("kubectl");
    for watch in watches {
        let seen = watch.end();
        assert!(seen.is_empty(), "in clear: {seen:#?}");
    }
    let status = world.testudo(&["status"]);
    assert!(status.contains("Strict"), "{status}");
}

/// Nothing of ours is left on a node, and pods talk as before.
fn removed(world: &World) {
    world.helm(&["uninstall", "testudo", "--wait", PATIENCE]);
    for number in 1..=NODES {
        let (done, tables) = world.node(number, &["nft", "list", "tables"]);
        assert!(done && !tables.contains("testudo"), "{tables}");
        let (done, rules) = world.node(number, &["ip", "rule"]);
        assert!(done && !rules.contains("50050"), "{rules}");
        let (there, link) = world.node(number, &["ip", "link", "show", "testudo0"]);
        assert!(!there, "{link}");
        let (_, states) = world.node(number, &["ip", "xfrm", "policy"]);
        assert!(states.trim().is_empty(), "{states}");
    }
    let watch = world.watch("node1", OVERLAY);
    assert_eq!(ping(world, 5), 5);
    assert!(watch.end().len() >= 10);
    // What is kept on purpose.
    let kept = world.kubectl(&["get", "secret", "-n", NAMESPACE, "-o", "name"]);
    assert!(kept.contains("secret/testudo-ca"), "{kept}");
    let policy = world.kubectl(&["get", "encpol", "cluster", "-o", "jsonpath={.status.phase}"]);
    assert_eq!(policy, "Disabled");
    let ours = [
        "get",
        "pods,deployments,daemonsets,jobs,serviceaccounts,roles,clusterroles,validatingadmissionpolicies",
        "-n",
        NAMESPACE,
        "-l",
        "app.kubernetes.io/part-of=testudo",
        "-o",
        "name",
    ];
    wait_until("the end of the pods", seconds(120), || {
        let left = world.kubectl(&ours);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
