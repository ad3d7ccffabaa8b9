//! Nodes: each a namespace with containerd and a kubelet of its own, and the overlay among them.

mod settings;

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use testudo_netlink::{Netlink, open_netns};

use crate::certificates::{Certificates, private_folder};
use crate::cluster::Cluster;
use crate::image;
use crate::network;
use crate::place::{self, LOGS};
use crate::process::{self, Process};
use crate::programs::{CONTAINERD, CTR, KUBELET, Program};
use crate::wait;

/// How long a node may take to register, and then to become ready.
const PATIENCE: Duration = Duration::from_secs(300);
/// What pods of all nodes lie below, in each hierarchy of control groups.
const CONTROL_GROUPS: &str = "testudo-kube";

/// Where nodes have their folders, in a cluster's directory.
const FOLDER: &str = "nodes";
/// The image that every node has, in a cluster's directory.
const BUSYBOX_ARCHIVE: &str = "busybox.tar";
/// The part of the pods' addresses that a node was given, in its folder.
const POD_CIDR: &str = "pods";

/// One node of a cluster.
struct Node<'a> {
    cluster: &'a Cluster,
    number: u8,
}

/// What a node may have from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewNode<'a> {
    /// A taint with which it registers, as `key=value:Effect`.
    pub taint: Option<&'a str>,
    /// Archives of images that it has before its kubelet starts.
    pub images: &'a [&'a Path],
}

/// Starts the first nodes of a cluster and waits until all are ready for pods.
pub(crate) fn start(cluster: &Cluster, count: u8, say: &dyn Fn(&str)) -> Result<()> {
    let archive = cluster.directory().join(BUSYBOX_ARCHIVE);
    image::busybox()?.write(&archive)?;
    let numbers: Vec<u8> = (1..=count).collect();
    join(cluster, &numbers, NewNode::default(), say)
}

/// Starts one more beside those that run, and waits until it is ready for pods; its number, the lowest that
/// is free.
pub(crate) fn add(cluster: &Cluster, new: NewNode<'_>, say: &dyn Fn(&str)) -> Result<u8> {
    let there = numbers(cluster);
    let number = (1..=u8::MAX).find(|number| !there.contains(number));
    let number = number.context("a cluster has at most 255 nodes")?;
    let node = Node { cluster, number };
    join(cluster, &[number], new, say).map_err(|error| {
        let error = error.context(format!("{} could not be added", node.name()));
        match node.remove() {
            Ok(()) => error,
            Err(also) => error.context(format!("and not be removed: {also:#}")),
        }
    })?;
    Ok(number)
}

/// Ends a node and takes it out of the cluster's network. Its Node object stays.
pub(crate) fn remove(cluster: &Cluster, number: u8) -> Result<()> {
    ensure!(
        numbers(cluster).contains(&number),
        "there is no node {number}"
    );
    Node { cluster, number }.remove()
}

/// The numbers of the nodes of which anything is there, in order.
pub(crate) fn numbers(cluster: &Cluster) -> Vec<u8> {
    let entries = fs::read_dir(cluster.directory().join(FOLDER));
    let mut numbers: Vec<u8> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("node")?
                .parse()
                .ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Starts nodes, joins them to those that are there, and waits until they are ready for pods.
fn join(cluster: &Cluster, new: &[u8], with: NewNode<'_>, say: &dyn Fn(&str)) -> Result<()> {
    let old: Vec<u8> = numbers(cluster);
    let node = |number: &u8| Node {
        cluster,
        number: *number,
    };
    let nodes: Vec<Node<'_>> = new.iter().map(node).collect();
    let certificates = Certificates::load(&cluster.directory().join("pki"))?;
    for node in &nodes {
        node.start(&certificates, with)?;
    }
    match &nodes[..] {
        [one] => say(&format!("{} starts", one.name())),
        many => say(&format!("{} nodes start", many.len())),
    }
    let needed = cluster.running();
    let logs = cluster.directory().join(LOGS);
    let mut joined = Vec::new();
    for node in old.iter().map(node) {
        let pods = node.recorded_pods()?;
        let pods = pods.with_context(|| format!("{} is not whole", node.name()))?;
        joined.push((node.namespace(), node.number, pods));
    }
    for node in &nodes {
        let what = format!("{} does not register", node.name());
        // The controller manager gives it its part of the pods' addresses.
        let pods = wait::until(&what, PATIENCE, &needed, &logs, || node.pods())?;
        joined.push((node.namespace(), node.number, pods));
        node.write_network(pods)?;
    }
    let control_plane = place::namespace(cluster.name());
    cluster.network().join_pods(&control_plane, &joined)?;
    for node in &nodes {
        let what = format!("{} is not ready", node.name());
        wait::until(&what, PATIENCE, &needed, &logs, || node.is_ready())?;
    }
    Ok(())
}

/// Loads an image's archive into a node.
pub(crate) fn load(cluster: &Cluster, number: u8, archive: &Path) -> Result<()> {
    let node = Node { cluster, number };
    let mut command = node.enter()?;
    command
        .arg(format!(
            "/run/programs/{}/{}",
            text(&base(&CTR)?)?,
            CTR.name
        ))
        .args(["--namespace", "k8s.io", "images", "import", "--local"])
        .args(["--snapshotter", "native"])
        // The node sees other files at many paths: it is given them open.
        .arg("-")
        .stdin(fs::File::open(archive).with_context(|| archive.display().to_string())?);
    let output = command.output().context("nsenter could not be started")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", node.name(), archive.display(), text.trim());
    }
    Ok(())
}

/// A command's beginning that runs what follows in a node's namespaces.
pub(crate) fn enter(cluster: &Cluster, number: u8) -> Result<Command> {
    Node { cluster, number }.enter()
}

/// A node's files as it sees them itself: a folder that leads there.
pub(crate) fn root(cluster: &Cluster, number: u8) -> Result<PathBuf> {
    let first = Node { cluster, number }.first_process()?;
    Ok(format!("/proc/{first}/root").into())
}

/// A node's network namespace.
pub(crate) fn namespace(cluster: &Cluster, number: u8) -> Result<OwnedFd> {
    network::open(&Node { cluster, number }.namespace())
}

/// The network namespace of the pod on a node that has this address.
pub(crate) fn pod_namespace(cluster: &Cluster, number: u8, address: IpAddr) -> Result<OwnedFd> {
    // containerd keeps them there, under names of its own.
    let folder = root(cluster, number)?.join("run/netns");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    for entry in entries.flatten() {
        // One that has just gone is not the one.
        let Ok(namespace) = open_netns(entry.path()) else {
            continue;
        };
        let addresses = Netlink::open_in(namespace.as_fd())?.addresses()?;
        if addresses.iter().any(|one| one.address.addr() == address) {
            return Ok(namespace);
        }
    }
    bail!("node{number} has no pod with the address {address}")
}

/// Removes the control groups of a cluster's pods, which are empty when its processes have ended.
pub(crate) fn remove_control_groups(name: &str) {
    remove_groups_of(name);
    for hierarchy in hierarchies() {
        // Fails while there are others.
        let _ = fs::remove_dir(hierarchy.join(CONTROL_GROUPS));
    }
}

/// A cluster's, or a node's, which lie below it.
fn remove_groups_of(name: &str) {
    for hierarchy in hierarchies() {
        remove_groups(&hierarchy.join(CONTROL_GROUPS).join(name));
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    let below = entries.map(|entry| entry.path());
    below.chain([top.to_owned()]).collect()
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

impl Node<'_> {
    fn name(&self) -> String {
        format!("node{}", self.number)
    }

    fn namespace(&self) -> String {
        format!("{}.{}", place::namespace(self.cluster.name()), self.name())
    }

    fn folder(&self) -> PathBuf {
        self.cluster.directory().join(FOLDER).join(self.name())
    }

    fn start(&self, certificates: &Certificates, with: NewNode<'_>) -> Result<()> {
        let (name, folder) = (self.name(), self.folder());
        for part in ["images", "lib", "log", "sysctl", "cni"] {
            private_folder(&folder.join(part))?;
        }
        let busybox = self.cluster.directory().join(BUSYBOX_ARCHIVE);
        for (index, archive) in [&*busybox].iter().chain(with.images).enumerate() {
            let place = folder.join("images").join(format!("{index}.tar"));
            // Hard links: an image is there once, where it is on the same file system.
            fs::hard_link(archive, &place)
                .or_else(|_| fs::copy(archive, &place).map(drop))
                .with_context(|| archive.display().to_string())?;
        }
        let control_plane = place::namespace(self.cluster.name());
        let network = self.cluster.network();
        network.add_node(&control_plane, &self.namespace(), self.number)?;
        self.write_certificates(certificates)?;
        self.write_settings(with.taint)?;

        let address = network.node(self.number)?.to_string();
        let programs = CONTAINERD.folder()?;
        let programs = programs.parent().context("programs lie in folders")?;
        let netns = network::path(&self.namespace());
        let words = [
            "nsenter",
            &format!("--net={}", netns.display()),
            "unshare",
            "--mount",
            "--propagation=slave",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "sh",
            "-c",
            include_str!("node.sh"),
            "node",
            text(&folder)?,
            text(programs)?,
            text(&base(&CONTAINERD)?)?,
            text(&base(&KUBELET)?)?,
            &name,
            &address,
            text(&self.cluster.directory().join(LOGS))?,
        ]
        .map(str::to_owned);
        Process::start(
            &name,
            &words,
            &self.cluster.log(&name),
            &self.cluster.record(),
        )?;
        Ok(())
    }

    fn control_group(&self) -> String {
        format!("/{CONTROL_GROUPS}/{}/{}", self.cluster.name(), self.name())
    }

    /// The same as it was written down: none of a node that never came so far.
    fn recorded_pods(&self) -> Result<Option<Ipv4Net>> {
        let path = self.folder().join(POD_CIDR);
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(None);
        };
        let pods = text.parse().with_context(|| path.display().to_string())?;
        Ok(Some(pods))
    }

    /// Ends all that it runs, and leaves nothing of it, here or with the others.
    fn remove(&self) -> Result<()> {
        let (name, cluster) = (self.name(), self.cluster);
        let control_plane = place::namespace(cluster.name());
        // At once, as when the plug is pulled: what it says while it ends nobody hears.
        cluster.network().unplug_node(&control_plane, self.number)?;
        let mut processes = Process::recorded(&cluster.record());
        processes.retain(|process| process.name == name);
        if let Some(left) = process::kill(&processes).first() {
            bail!("{name} (PID {}) does not end", left.pid());
        }
        Process::forget(&name, &cluster.record())?;
        if let Some(pods) = self.recorded_pods()? {
            let others = numbers(cluster).into_iter().filter(|n| *n != self.number);
            let others: Vec<String> = others
                .map(|number| Node { cluster, number }.namespace())
                .collect();
            cluster
                .network()
                .part_pods(&control_plane, &others, self.number, pods)?;
        }
        network::remove_namespace(&self.namespace())?;
        remove_groups_of(&format!("{}/{name}", cluster.name()));
        let folder = self.folder();
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())
    }

    /// The part of the pods' addresses that it was given.
    fn pods(&self) -> Result<Ipv4Net> {
        let field = "jsonpath={.spec.podCIDR}";
        let text = self.kubectl(&["get", "node", &self.name(), "-o", field])?;
        ensure!(!text.is_empty(), "it has no pod addresses yet");
        text.parse().with_context(|| format!("podCIDR {text:?}"))
    }

    fn is_ready(&self) -> Result<()> {
        let field =
            r#"jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.message}{end}"#;
        let text = self.kubectl(&["get", "node", &self.name(), "-o", field])?;
        ensure!(text.starts_with("True"), "Ready: {text}");
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let bounded = [arguments, &["--request-timeout=5s"]].concat();
        self.cluster.kubectl(&bounded)
    }

    /// Its first process, under which all others are.
    fn first_process(&self) -> Result<i32> {
        let name = self.name();
        let running = self.cluster.running();
        let process = running.iter().find(|process| process.name == name);
        let process = process.with_context(|| format!("{name} does not run"))?;
        process
            .only_child()
            .with_context(|| format!("{name} begins"))
    }

    fn enter(&self) -> Result<Command> {
        let first = self.first_process()?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={first}"))
            .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]);
        Ok(command)
    }
}

/// The name of a program's folder.
fn base(program: &Program) -> Result<PathBuf> {
    let folder = program.folder()?;
    Ok(folder.file_name().context("a folder has a name")?.into())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not text", path.display()))
}
