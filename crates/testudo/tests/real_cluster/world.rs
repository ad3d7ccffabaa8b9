//! The cluster, the programs that speak with it, and the places between which packets go.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testudo_agent::api::{Gettable, Request, Response, StatusView, TunnelView, ask};
use testudo_kube_env::Cluster;
use testudo_kube_env::chart::{self, Chart, NAMESPACE};
use testudo_kube_env::image::BUSYBOX;
use testudo_netlink::run_in_netns;

use super::Datapath;
use crate::common::{BINARY, Places};

/// How long anything may take: a guest on a busy machine is many times slower than this one.
pub(super) const LONG: Duration = Duration::from_secs(400);
/// The same for kubectl and helm.
pub(super) const PATIENCE: &str = "--timeout=400s";
/// How long an agent may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks of which each starts a program.
const PAUSE: Duration = Duration::from_secs(1);
/// What all that the chart installs is labelled with.
pub(super) const OURS: &str = "app.kubernetes.io/part-of=testudo";

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) chart: Chart,
    /// The container image's archive.
    pub(super) image: PathBuf,
    pub(super) dir: tempfile::TempDir,
    pub(super) datapath: Datapath,
    /// By name: `pod1` is on `node1`.
    pub(super) places: BTreeMap<String, Place>,
    /// Datagrams sent, and lost, in all steps.
    pub(super) counted: (u32, u32),
    /// How many pairs of ports were used.
    pub(super) ports: RefCell<u16>,
}

/// Where packets begin and end: a pod, or a node itself, which is what a pod with the host's network has too.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) node: u8,
    pub(super) address: IpAddr,
    netns: OwnedFd,
}

impl Places for World {
    fn socket(&self, place: &str, address: SocketAddr) -> Result<UdpSocket, String> {
        let netns = self.place(place).netns.as_fd();
        let socket = run_in_netns(netns, || UdpSocket::bind(address)).map_err(|e| e.to_string())?;
        socket.map_err(|e| e.to_string())
    }
}

pub(super) fn say(line: &str) {
    eprintln!("{line}");
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is text")
}

/// Asks until it is so, not more often than a slow machine bears.
#[track_caller]
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        match look() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > LONG => {
                panic!("waited {} s for: {what}; last seen: {seen}", LONG.as_secs())
            }
            Err(_) => std::thread::sleep(asked.elapsed().max(PAUSE)),
        }
    }
}

impl World {
    #[track_caller]
    pub(super) fn kubectl(&self, arguments: &[&str]) -> String {
        let said = self.cluster.kubectl(arguments);
        said.unwrap_or_else(|error| panic!("{error:#}\n{}", self.state()))
    }

    #[track_caller]
    pub(super) fn helm(&self, arguments: &[&str]) {
        let mut command = chart::helm(&say).expect("helm");
        command
            .arg(format!("--kubeconfig={}", text(&self.cluster.kubeconfig())))
            .args(["--namespace", NAMESPACE])
            .args(arguments);
        let output = command.output().expect("helm starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{}", self.state());
    }

    /// What the program said, whatever came of it.
    pub(super) fn try_testudo(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(BINARY);
        let programs = self.cluster.programs();
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", text(&programs));
        command.env("PATH", path);
        command.arg("--kubeconfig").arg(self.cluster.kubeconfig());
        command
            .args(arguments)
            .env_remove("TESTUDO_STORE")
            .env_remove("KUBECONFIG");
        let output = command.output().expect("testudo starts");
        let error = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(format!("testudo {arguments:?}: {said}\n{error}")),
        }
    }

    #[track_caller]
    pub(super) fn testudo(&self, arguments: &[&str]) -> String {
        let said = self.try_testudo(arguments);
        said.unwrap_or_else(|error| panic!("{error}\n{}", self.state()))
    }

    /// For an error: what runs, and what it says.
    pub(super) fn state(&self) -> String {
        let kinds = ["get", "pods,nodeenc,encpol", "-A", "-o", "wide"];
        let events = ["get", "events", "-A", "--field-selector=type=Warning"];
        let logs = ["logs", "-n", NAMESPACE, "-l", OURS, "--all-containers"];
        let logs = [&logs[..], &["--tail=20", "--prefix"]].concat();
        let asked = [&kinds[..], &events[..], &logs[..]];
        let said = asked.map(|words| {
            let bounded = [words, &["--request-timeout=30s"]].concat();
            self.cluster.kubectl(&bounded).unwrap_or_default()
        });
        said.join("\n")
    }

    /// A command in a node: whether it was done, and what it said.
    pub(super) fn in_node(&self, number: u8, command: &[&str]) -> (bool, String) {
        let mut enter = self.cluster.node_command(number).expect("a node");
        let output = enter.args(command).output().expect("nsenter");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    }

    /// Makes a pod that does nothing, on a node that need not be there yet.
    pub(super) fn make_pod(&self, name: &str, node: u8) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": format!("node{node}") },
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "pod", "image": BUSYBOX }],
            },
        });
        let path = self.dir.path().join("pod.json");
        std::fs::write(&path, pod.to_string()).expect("a file");
        self.kubectl(&["apply", "-f", text(&path)]);
    }

    /// Waits for pods; from here on they and their nodes are places.
    pub(super) fn wait_pods(&mut self, pods: &[&str]) {
        let names: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let mut words = vec!["wait", "--for=condition=Ready", PATIENCE];
        words.extend(names.iter().map(String::as_str));
        self.kubectl(&words);
        let mut words = vec!["get", "-o", "json"];
        words.extend(names.iter().map(String::as_str));
        let said = self.kubectl(&words);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        // One is an object, several are a list.
        let one = std::slice::from_ref(&said);
        let items = said["items"].as_array().map_or(one, Vec::as_slice);
        for pod in items {
            let field = |text: &Value| text.as_str().expect("a field").to_owned();
            let node = field(&pod["spec"]["nodeName"]);
            let number = node.trim_start_matches("node").parse().expect("a number");
            let address = |text: &Value| field(text).parse().expect("an address");
            let (own, host) = (
                address(&pod["status"]["podIP"]),
                address(&pod["status"]["hostIP"]),
            );
            let netns = self.cluster.pod_namespace(number, own).expect("a pod");
            let here = Place {
                node: number,
                address: own,
                netns,
            };
            self.places.insert(field(&pod["metadata"]["name"]), here);
            let netns = self.cluster.node_namespace(number).expect("a node");
            let there = Place {
                node: number,
                address: host,
                netns,
            };
            self.places.insert(node, there);
        }
    }

    #[track_caller]
    pub(super) fn place(&self, name: &str) -> &Place {
        let place = self.places.get(name);
        place.unwrap_or_else(|| panic!("no place {name}"))
    }

    /// Asks a node's agent, by its socket: that needs no API server.
    pub(super) fn ask(&self, node: u8, request: &Request) -> Result<Response, String> {
        let root = self.cluster.node_root(node).map_err(|e| format!("{e:#}"))?;
        let socket = root.join(format!("run/testudo/node{node}.sock"));
        ask(&socket, request, ANSWER).map_err(|e| format!("node{node}: {e:#}"))
    }

    pub(super) fn status_of(&self, node: u8) -> Result<StatusView, String> {
        let get = Gettable::Status;
        let answer = self.ask(node, &Request::Get { get })?;
        answer.status.ok_or_else(|| "no status".to_owned())
    }

    pub(super) fn tunnels(&self, node: u8) -> Result<Vec<TunnelView>, String> {
        let get = Gettable::Tunnels;
        let answer = self.ask(node, &Request::Get { get })?;
        answer.tunnels.ok_or_else(|| "no tunnels".to_owned())
    }

    /// Waits until each node is Strict and has a tunnel to each other one, with the datapath that it is to have.
    #[track_caller]
    pub(super) fn wait_strict(&self) {
        let nodes = self.cluster.nodes();
        let datapath = match self.datapath {
            Datapath::Kernel => "kernel",
            Datapath::User => "user",
        };
        until("Strict and all tunnels up", || {
            for node in &nodes {
                let status = self.status_of(*node)?;
                let up = usize::try_from(status.tunnels_up).unwrap_or_default();
                if status.phase.to_string() != "Strict" || up + 1 != nodes.len() {
                    return Err(format!("{status:?}"));
                }
                assert_eq!(status.datapath, datapath, "{status:?}");
            }
            Ok(())
        });
    }

    /// The agent's process on a node.
    pub(super) fn agent(&self, node: u8) -> Result<i32, String> {
        let status = format!("/usr/bin/testudo\0agent\0--store=kube\0--node=node{node}\0");
        let inside = self.cluster.node_namespace(node).expect("a node");
        let same = |pid: i32| {
            let net = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            let ours = rustix::fs::fstat(&inside).ok()?;
            Some(std::os::unix::fs::MetadataExt::ino(&net) == ours.st_ino)
        };
        let entries = std::fs::read_dir("/proc").expect("/proc");
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found = pids.filter(|pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.starts_with(status.as_bytes()) && same(*pid) == Some(true)
        });
        found
            .next()
            .ok_or_else(|| format!("no agent on node{node}"))
    }
}
