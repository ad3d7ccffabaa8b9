//! Nodes: each a namespace with containerd and a kubelet of its own, and the overlay among them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde_json::json;

use crate::certificates::{Certificates, Subject, private_file, private_folder};
use crate::cluster::Cluster;
use crate::image;
use crate::network::{self, POD_MTU};
use crate::place::{self, LOGS};
use crate::process::Process;
use crate::programs::{BRIDGE, CONTAINERD, CTR, KUBELET, Program};
use crate::wait;

/// How long a node may take to register, and then to become ready.
const PATIENCE: Duration = Duration::from_secs(300);
/// What pods of all nodes lie below, in each hierarchy of control groups.
const CONTROL_GROUPS: &str = "testudo-kube";

/// One node of a cluster.
struct Node<'a> {
    cluster: &'a Cluster,
    number: u8,
}

/// Starts nodes and waits until all are ready for pods.
pub(crate) fn start(cluster: &Cluster, count: u8, say: &dyn Fn(&str)) -> Result<()> {
    let nodes: Vec<Node<'_>> = (1..=count).map(|number| Node { cluster, number }).collect();
    let archive = cluster.directory().join("busybox.tar");
    image::busybox()?.write(&archive)?;
    let certificates = Certificates::load(&cluster.directory().join("pki"))?;
    for node in &nodes {
        node.start(&certificates, &archive)?;
    }
    say(&format!("{count} nodes start"));
    let needed = cluster.running();
    let logs = cluster.directory().join(LOGS);
    let mut joined = Vec::new();
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

/// Removes the control groups of a cluster's pods, which are empty when its processes have ended.
pub(crate) fn remove_control_groups(name: &str) {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten();
    let tops = hierarchies
        .map(|entry| entry.path())
        .chain([top.to_owned()]);
    for hierarchy in tops {
        let ours = hierarchy.join(CONTROL_GROUPS);
        remove_groups(&ours.join(name));
        // Fails while there are others.
        let _ = fs::remove_dir(&ours);
    }
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
        self.cluster.directory().join("nodes").join(self.name())
    }

    fn start(&self, certificates: &Certificates, archive: &Path) -> Result<()> {
        let (name, folder) = (self.name(), self.folder());
        for part in ["images", "lib", "log", "sysctl", "cni"] {
            private_folder(&folder.join(part))?;
        }
        // Hard links: an image is there once.
        fs::hard_link(archive, folder.join("images/busybox.tar"))?;
        let control_plane = place::namespace(self.cluster.name());
        let network = self.cluster.network();
        network.add_node(&control_plane, &self.namespace(), self.number)?;
        self.write_certificates(certificates)?;
        self.write_settings()?;

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

    fn write_certificates(&self, certificates: &Certificates) -> Result<()> {
        let (name, folder) = (self.name(), self.folder());
        let address = IpAddr::from(self.cluster.network().node(self.number)?);
        let user = format!("system:node:{name}");
        let serving = format!("{name}-serving");
        certificates.sign(&Subject {
            file: &serving,
            name: &user,
            group: Some("system:nodes"),
            hosts: &[&name],
            addresses: &[address],
        })?;
        certificates.sign(&Subject {
            file: &name,
            name: &user,
            group: Some("system:nodes"),
            hosts: &[],
            addresses: &[],
        })?;
        for (from, to) in [
            ("ca.crt".to_owned(), "ca.crt"),
            (format!("{name}.crt"), "client.crt"),
            (format!("{name}.key"), "client.key"),
            (format!("{serving}.crt"), "serving.crt"),
            (format!("{serving}.key"), "serving.key"),
        ] {
            let bytes = fs::read(certificates.path(&from))?;
            private_file(&folder.join(to), &bytes)?;
        }
        let config = crate::certificates::kubeconfig(
            &name,
            &self.cluster.server(),
            [
                "/run/node/ca.crt",
                "/run/node/client.crt",
                "/run/node/client.key",
            ],
        );
        private_file(&folder.join("kubeconfig"), config.to_string().as_bytes())
    }

    fn write_settings(&self) -> Result<()> {
        let folder = self.folder();
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": "/run/node/ca.crt" },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": "/run/node/serving.crt",
            "tlsPrivateKeyFile": "/run/node/serving.key",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.control_group(),
            // Without classes of service, and on machines of any age: what is tested is the
            // network, and the machine's own limits are not ours to divide.
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            // To change it needs a capability that not every root has.
            "oomScoreAdj": 0,
            "protectKernelDefaults": true,
            "makeIPTablesUtilChains": false,
            "resolvConf": "/run/node/resolv.conf",
            "nodeStatusUpdateFrequency": "5s",
            "shutdownGracePeriod": "0s",
        });
        private_file(&folder.join("kubelet.json"), kubelet.to_string().as_bytes())?;
        private_file(&folder.join("resolv.conf"), b"nameserver 10.96.0.10\n")?;
        let plugins = base(&BRIDGE)?;
        let plugins = format!("/run/programs/{}", text(&plugins)?);
        let containerd = format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.cri.v1.images"]
  # It works on every file system, and images here are small.
  snapshotter = "native"

  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox}"

[plugins."io.containerd.cri.v1.runtime"]
  # To lower it needs a capability that not every root has.
  restrict_oom_score_adj = true

  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "/run/node/cni"

  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
            sandbox = image::BUSYBOX,
        );
        private_file(&folder.join("containerd.toml"), containerd.as_bytes())
    }

    fn control_group(&self) -> String {
        format!("/{CONTROL_GROUPS}/{}/{}", self.cluster.name(), self.name())
    }

    /// The plugin's settings, whose presence tells containerd that the node has a pod network.
    fn write_network(&self, pods: Ipv4Net) -> Result<()> {
        let settings = json!({
            "cniVersion": "1.0.0",
            "name": "testudo",
            "plugins": [{
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "mtu": POD_MTU,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pods.to_string() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                    "dataDir": "/run/cni",
                },
            }],
        });
        let path = self.folder().join("cni/10-testudo.conflist");
        private_file(&path, settings.to_string().as_bytes())
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

    fn enter(&self) -> Result<Command> {
        let name = self.name();
        let running = self.cluster.running();
        let process = running.iter().find(|process| process.name == name);
        let process = process.with_context(|| format!("{name} does not run"))?;
        let child = process
            .only_child()
            .with_context(|| format!("{name} begins"))?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={child}"))
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
