//! The chart on nodes whose pods talk without an overlay: agents take their pods' prefixes from their Nodes,
//! and what pods say to each other leaves sealed.
//!
//! This machine's kernel need have no ESP: agents have the userspace datapath.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use testudo_kube_env::chart::{self, Chart, NAMESPACE};
use testudo_kube_env::image::{self, BUSYBOX};
use testudo_kube_env::{Between, Cluster, Component, Options};

use common::{BINARY, begin, run, seconds, wait_until};

const NODES: u8 = 2;
/// All pods of the cluster.
const PODS: &str = "10.244.0.0/16";
/// What pods say to each other, as it is.
const CLEAR: &str = "src net 10.244.0.0/16 and dst net 10.244.0.0/16";
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
        let said = |arguments: &[&str]| self.cluster.kubectl(arguments).unwrap_or_default();
        let labels = "app.kubernetes.io/part-of=testudo";
        let logs = ["logs", "-n", NAMESPACE, "-l", labels, "--all-containers"];
        format!(
            "{}\n{}",
            said(&["get", "pods,nodeenc,encpol", "-A", "-o", "wide"]),
            said(&[&logs[..], &["--tail=20", "--prefix"]].concat())
        )
    }

    /// What a command says in a node, and whether it succeeded.
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

    /// The prefixes of a node's pods: as its Node says, and as its agent does.
    fn prefixes(&self, number: u8) -> [String; 2] {
        ["node", "nodeenc"].map(|kind| {
            let name = format!("node{number}");
            let field = "jsonpath={.spec.podCIDRs}";
            self.kubectl(&["get", kind, &name, "-o", field])
        })
    }

    /// Listens on the first node's port of the underlay.
    fn watch(&self, filter: &str) -> Watch {
        let file = self.dir.path().join("underlay.pcap");
        let namespace = format!("--net=/run/netns/testudo-kube-{}", self.cluster.name());
        let words = [&namespace, "tcpdump", "-n", "-U", "--immediate-mode"];
        let mut child = Command::new("nsenter")
            .args(words)
            .args(["-i", "node1", "-w"])
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
    /// Ends it; what it saw, a line a packet: of ESP, and of others.
    fn end(mut self) -> (usize, Vec<String>) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let signal = rustix::process::Signal::INT;
        rustix::process::kill_process(pid.expect("a process"), signal).expect("it runs");
        self.child.wait().expect("tcpdump");
        let mut command = Command::new("tcpdump");
        let output = command.args(["-n", "-r"]).arg(&self.file).output();
        let output = output.expect("tcpdump");
        let text = String::from_utf8_lossy(&output.stdout);
        let (sealed, rest): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.contains("ESP(spi="));
        (sealed.len(), rest.into_iter().map(str::to_owned).collect())
    }
}

#[test]
fn pods_of_a_routed_cluster_talk_sealed_with_the_chart_as_it_is() {
    let Some(_turn) = begin("pods_of_a_routed_cluster_talk_sealed_with_the_chart_as_it_is") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let chart = chart::package(Path::new(BINARY), dir.path(), &say).expect("a chart");
    let archive = dir.path().join("image.tar");
    let name = format!("{}:{}", image::NAME, env!("CARGO_PKG_VERSION"));
    let stripped = dir.path().join("stripped");
    let image = image::testudo(Path::new(BINARY), &stripped, &name).expect("an image");
    image.write(&archive).expect("an archive");
    let options = Options {
        nodes: NODES,
        between: Between::Routes,
        ..Options::named("kube-routed")
    };
    let world = World {
        cluster: Cluster::up(&options, &say).expect("nodes"),
        chart,
        dir,
    };
    for number in 1..=NODES {
        let loaded = world.cluster.load_image(number, &archive);
        loaded.expect("a loaded image");
    }
    install(&world);
    let address = pods(&world);
    in_clear(&world, &address);
    world.testudo(&[
        "init",
        "--overlay=routed",
        "--pod-cidr",
        PODS,
        "--timeout=240s",
    ]);
    sealed(&world, &address);
    another_prefix_is_followed(&world, &address);
    an_agent_begins_without_the_api_server(&world, &address);
    world.testudo(&["stop", "--timeout=240s"]);
    in_clear(&world, &address);
    removed(&world);
}

/// Nothing but the datapath and the modules, which are this machine's, is another value than the chart's.
fn install(world: &World) {
    world.kubectl(&["create", "namespace", NAMESPACE]);
    let archive = text(&world.chart.archive);
    let values = "--set=agent.datapath=user,modules.load=false";
    world.helm(&["install", "testudo", archive, values, "--wait", PATIENCE]);
    for number in 1..=NODES {
        wait_until("the prefixes of pods", seconds(120), || {
            let [node, agent] = world.prefixes(number);
            match node == agent && node.contains("10.244.") {
                true => Ok(()),
                false => Err(format!("{node} and {agent}: {}", world.state())),
            }
        });
    }
}

/// One on each node; the address of the second.
fn pods(world: &World) -> String {
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
    let ready = "--for=condition=Ready";
    world.kubectl(&["wait", ready, PATIENCE, "pod/pod1", "pod/pod2"]);
    world.kubectl(&["get", "pod", "pod2", "-o", "jsonpath={.status.podIP}"])
}

fn ping(count: u32, size: u32) -> Vec<String> {
    let text = format!("ping -c {count} -s {size} -i 0.2 -W 10");
    text.split(' ').map(str::to_owned).collect()
}

/// How many came back.
fn received(said: &str) -> u32 {
    let mut parts = said.split(", ");
    let received = parts.find_map(|part| part.strip_suffix(" packets received"));
    received.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// So many pings from the first pod to the second; how many came back.
fn pod_to_pod(world: &World, address: &str, count: u32, size: u32) -> u32 {
    let mut command = world.cluster.kubectl_command().expect("kubectl");
    command.args(["exec", "pod1", "--"]).args(ping(count, size));
    let output = command.arg(address).output().expect("kubectl");
    received(&String::from_utf8_lossy(&output.stdout))
}

/// The same from the first node itself.
fn host_to_pod(world: &World, address: &str, count: u32) -> u32 {
    let words = ping(count, 56);
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.insert(0, "busybox");
    words.push(address);
    received(&world.node(1, &words).1)
}

/// What is seen of it is seen by this watch.
fn in_clear(world: &World, address: &str) {
    let watch = world.watch(CLEAR);
    assert_eq!(pod_to_pod(world, address, 5, 56), 5, "{}", world.state());
    let (_, clear) = watch.end();
    assert!(clear.len() >= 10, "{clear:#?}");
}

fn sealed(world: &World, address: &str) {
    let watch = world.watch(&format!("ip proto 50 or udp port 4500 or ({CLEAR})"));
    assert_eq!(pod_to_pod(world, address, 20, 56), 20, "{}", world.state());
    // As large as a pod's packets may be.
    assert_eq!(pod_to_pod(world, address, 5, 1352), 5);
    let (sealed, clear) = watch.end();
    assert!(
        sealed >= 50 && clear.is_empty(),
        "{sealed} sealed, in clear: {clear:#?}"
    );
    eprintln!("25 pings from pod to pod: {sealed} packets of ESP, none in clear");
    // The node is no pod, and the other end is.
    let watch = world.watch(&format!("ip proto 50 or host {address}"));
    assert_eq!(host_to_pod(world, address, 5), 5, "{}", world.state());
    let (sealed, clear) = watch.end();
    assert!(
        sealed >= 10 && clear.is_empty(),
        "{sealed} sealed, in clear: {clear:#?}"
    );
    let status = world.testudo(&["status"]);
    assert!(status.contains("Strict"), "{status}");
}

/// What a person writes on a Node goes before what was assigned to it, while packets flow.
fn another_prefix_is_followed(world: &World, address: &str) {
    let watch = world.watch(CLEAR);
    let [own, _] = world.prefixes(2);
    let own = own.trim_matches(['[', ']', '"']);
    let word = format!("testudo.dev/pod-cidrs={own},10.244.200.0/24");
    world.kubectl(&["annotate", "node", "node2", &word]);
    let wanted = format!(r#"["{own}","10.244.200.0/24"]"#);
    wait_until("the second prefix", seconds(120), || {
        let [_, agent] = world.prefixes(2);
        if agent == wanted { Ok(()) } else { Err(agent) }
    });
    wait_until("tunnels of both prefixes", seconds(120), || {
        let tunnels = world.testudo(&["status", "--tunnels", "-o", "json"]);
        // Of both nodes, each with a range at one of its sides.
        match tunnels.matches("10.244.200.0-").count() {
            2.. => Ok(()),
            _ => Err(tunnels),
        }
    });
    assert_eq!(pod_to_pod(world, address, 5, 56), 5, "{}", world.state());
    let (_, clear) = watch.end();
    assert!(clear.is_empty(), "in clear: {clear:#?}");
}

/// It knows its pods' prefixes from before.
fn an_agent_begins_without_the_api_server(world: &World, address: &str) {
    let watch = world.watch(&format!("host {address}"));
    let api = Component::ApiServer;
    world.cluster.stop_component(api).expect("an outage");
    let find = "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in \
        '/usr/bin/testudo agent --store'*) echo ${p#/proc/};; esac; done 2>/dev/null";
    let agent = || world.node(1, &["sh", "-c", find]).1;
    let before = agent();
    let (killed, said) = world.node(1, &["kill", "-KILL", before.trim()]);
    assert!(killed, "{before}: {said}");
    wait_until("another agent", seconds(120), || match agent() {
        now if now.trim().is_empty() || now == before => Err(now),
        _ => Ok(()),
    });
    wait_until(
        "packets without the API server",
        seconds(120),
        || match host_to_pod(world, address, 3) {
            3 => Ok(()),
            some => Err(format!("{some} of 3")),
        },
    );
    world.cluster.start_component(api).expect("the end of it");
    world.cluster.ready().expect("an API server");
    let (_, clear) = watch.end();
    assert!(clear.is_empty(), "in clear: {clear:#?}");
    wait_until(
        "tunnels after the outage",
        seconds(120),
        || match pod_to_pod(world, address, 3, 56) {
            3 => Ok(()),
            some => Err(format!("{some} of 3; {}", world.state())),
        },
    );
}

/// Nothing of ours is left on a node, and pods talk as before.
fn removed(world: &World) {
    world.helm(&["uninstall", "testudo", "--wait", PATIENCE]);
    for number in 1..=NODES {
        let (done, tables) = world.node(number, &["nft", "list", "tables"]);
        assert!(done && !tables.contains("testudo"), "{tables}");
        let (there, link) = world.node(number, &["ip", "link", "show", "testudo0"]);
        assert!(!there, "{link}");
        let (done, rules) = world.node(number, &["ip", "rule"]);
        assert!(done && !rules.contains("50050"), "{rules}");
    }
}
