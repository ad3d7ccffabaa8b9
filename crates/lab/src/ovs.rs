//! Open vSwitch in a node: a bridge of its own on the kernel's datapath, for the pods and for a
//! tunnel to each other node, as OVN and other networks built on Open vSwitch have it.
//!
//! ```text
//!   p1   p2                      ports of the pods
//!    |    |
//!  [ cni0: Open vSwitch ]------ to-n2, to-n3: Geneve (or VXLAN) with remote_ip and key
//!    |
//!   cni0                         the node's own port: gateways of the pods, overlay addresses
//! ```
//!
//! Each node has a database server and a switch daemon, with all sockets and files in
//! `nodes/NAME/ovs` of the lab. The supervisor keeps both running. The database keeps bridge and
//! ports; flows are not in it, so they are written again whenever the daemon is started again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testudo_netlink::MacAddress;

use crate::lab::{Lab, enter_on_spawn};
use crate::layout::{Layout, NodeLayout, POD_BRIDGE, VNI};
use crate::place::make_directory;
use crate::process::unblock_on_spawn;

mod flows;

/// How long a daemon may take until it answers.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long `ovs-vsctl` waits until the switch has done what the database says, in seconds.
const APPLY: u32 = 15;
/// How long after the kernel's start Open vSwitch has counted the processors.
const COUNTED: Duration = Duration::from_secs(12);
/// Between two looks at a daemon that starts.
const PAUSE: Duration = Duration::from_millis(20);

/// Where distributions have Open vSwitch's programs.
const FOLDERS: [&str; 5] = [
    "usr/sbin",
    "usr/bin",
    "usr/lib/openvswitch-switch",
    "usr/local/sbin",
    "usr/local/bin",
];
/// Where the database's schema is.
const SCHEMAS: [&str; 2] = [
    "usr/share/openvswitch/vswitch.ovsschema",
    "usr/local/share/openvswitch/vswitch.ovsschema",
];
/// Everything that a lab calls.
const PROGRAMS: [&str; 5] = [
    "ovs-vswitchd",
    "ovsdb-server",
    "ovsdb-tool",
    "ovs-vsctl",
    "ovs-ofctl",
];

/// Whether all of Open vSwitch that a lab needs is below `root`, or installed; else an error that
/// says what to install.
pub(crate) fn check(root: Option<&Path>) -> Result<()> {
    let root = root.unwrap_or(Path::new("/"));
    let missing = PROGRAMS
        .iter()
        .find(|program| find(root, program).is_none());
    let missing = missing.or_else(|| schema(root).is_none().then_some(&"vswitch.ovsschema"));
    if let Some(missing) = missing {
        bail!(
            "--switch ovs: {missing} of Open vSwitch is not below {}: apt-get install \
             openvswitch-switch, or --ovs-root FOLDER where that package is unpacked",
            root.display()
        );
    }
    Ok(())
}

fn find(root: &Path, program: &str) -> Option<PathBuf> {
    let mut places = FOLDERS.iter().map(|folder| root.join(folder).join(program));
    places.find(|path| path.is_file())
}

fn schema(root: &Path) -> Option<PathBuf> {
    let mut places = SCHEMAS.iter().map(|place| root.join(place));
    places.find(|path| path.is_file())
}

/// The libraries that were unpacked beside the programs.
fn libraries(root: &Path) -> Vec<PathBuf> {
    let of = |folder: &str| std::fs::read_dir(root.join(folder)).into_iter().flatten();
    ["usr/lib", "lib"]
        .into_iter()
        .flat_map(of)
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .collect()
}

/// Open vSwitch of one node.
pub(crate) struct Ovs<'a> {
    lab: &'a Lab,
    node: &'a NodeLayout,
}

impl<'a> Ovs<'a> {
    /// The one of the node `name`.
    pub(crate) fn of(lab: &'a Lab, name: &str) -> Result<Self> {
        let node = lab.layout().node(name);
        let node = node.with_context(|| format!("no node {name}"))?;
        Ok(Self { lab, node })
    }

    /// The database server; its database is made when there is none.
    pub(crate) fn database(&self) -> Result<Command> {
        let folder = self.folder();
        make_directory(&folder)?;
        let file = folder.join("conf.db");
        if !file.exists() {
            let schema = schema(self.root()).context("the database's schema is gone")?;
            let mut create = self.command("ovsdb-tool")?;
            finish(create.arg("create").arg(&file).arg(schema))?;
        }
        let mut command = self.command("ovsdb-server")?;
        command
            .arg(&file)
            .arg(format!("--remote=punix:{}", self.socket().display()))
            .arg(format!("--unixctl={}/ovsdb.ctl", folder.display()))
            .args(["-vsyslog:off", "-vconsole:info"]);
        Ok(command)
    }

    /// The switch daemon.
    pub(crate) fn daemon(&self) -> Result<Command> {
        let mut command = self.command("ovs-vswitchd")?;
        command
            .arg(format!("unix:{}", self.socket().display()))
            .arg(format!(
                "--unixctl={}/vswitchd.ctl",
                self.folder().display()
            ))
            .args(["-vsyslog:off", "-vconsole:info"]);
        Ok(command)
    }

    /// Makes the bridge and its ports, and writes the flows. Both daemons run.
    pub(crate) fn configure(&self) -> Result<()> {
        wait_for(&self.socket())?;
        let mut vsctl = self.command("ovs-vsctl")?;
        vsctl
            .arg(format!("--db=unix:{}", self.socket().display()))
            .arg(format!("--timeout={APPLY}"))
            .args(ports(self.lab.layout(), self.node));
        let said = finish(&mut vsctl)?;
        // It succeeds although the switch could not do it, and says so on its standard error.
        let refused = String::from_utf8_lossy(&said.stderr).trim().to_owned();
        ensure!(
            refused.is_empty(),
            "{refused}\nIs there Open vSwitch in this kernel? modprobe openvswitch; or run the lab \
             in a guest: docs/guest.md"
        );
        self.write_flows()
    }

    /// Writes the flows: into a switch that was just made, or that has been started again.
    pub(crate) fn write_flows(&self) -> Result<()> {
        let bridge = self.folder().join(format!("{POD_BRIDGE}.mgmt"));
        let flows = flows::of(self.lab.layout(), self.node);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A socket that a dead daemon has left refuses.
            match self.feed(&bridge, &flows) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn feed(&self, bridge: &Path, flows: &str) -> Result<()> {
        let mut command = self.command("ovs-ofctl")?;
        let mut child = command
            .args(["--timeout=5", "add-flows"])
            .arg(format!("unix:{}", bridge.display()))
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {command:?}"))?;
        if let Some(mut input) = child.stdin.take() {
            // When it has ended early, what it said is worth more than the broken pipe.
            let _ = input.write_all(flows.as_bytes());
        }
        let output = child.wait_with_output().context("wait for ovs-ofctl")?;
        succeeded(&command, output).map(|_| ())
    }

    fn folder(&self) -> PathBuf {
        self.lab.node_dir(&self.node.name).join("ovs")
    }

    fn socket(&self) -> PathBuf {
        self.folder().join("db.sock")
    }

    fn root(&self) -> &Path {
        self.lab
            .spec()
            .ovs_root
            .as_deref()
            .unwrap_or(Path::new("/"))
    }

    /// A program of Open vSwitch in the node's namespace that touches nothing but its own folder.
    fn command(&self, program: &str) -> Result<Command> {
        let root = self.root();
        let path = find(root, program).with_context(|| format!("{program} is gone"))?;
        let mut command = Command::new(path);
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.folder());
        }
        if root != Path::new("/") {
            let path = std::env::join_paths(libraries(root)).context("the libraries' path")?;
            command.env("LD_LIBRARY_PATH", path);
        }
        enter_on_spawn(&mut command, self.lab.netns(&self.node.name)?);
        unblock_on_spawn(&mut command);
        Ok(command)
    }
}

/// What `ovs-vsctl` is told: one transaction.
fn ports(layout: &Layout, node: &NodeLayout) -> Vec<String> {
    let mac = MacAddress(node.vtep_mac);
    let mut lines = vec![
        format!("add-br {POD_BRIDGE}"),
        format!("set bridge {POD_BRIDGE} fail_mode=secure other_config:hwaddr=\"{mac}\""),
        format!("set interface {POD_BRIDGE} mtu_request={}", layout.pod_mtu),
    ];
    for (number, pod) in (1..).zip(&node.pods) {
        let port = flows::pod_port(number);
        lines.push(format!("add-port {POD_BRIDGE} {}", pod.name));
        lines.push(format!("set interface {} ofport_request={port}", pod.name));
    }
    for other in layout.nodes.iter().filter(|other| other.name != node.name) {
        let name = format!("to-{}", other.name);
        lines.push(format!("add-port {POD_BRIDGE} {name}"));
        lines.push(format!(
            "set interface {name} type={} options:remote_ip=\"{}\" options:key={VNI} \
             options:dst_port={} ofport_request={}",
            layout.overlay,
            other.primary(),
            layout.overlay_port.unwrap_or_default(),
            flows::tunnel_port(other),
        ));
    }
    let words = |line: String| -> Vec<String> {
        let line = format!("-- {line}");
        line.split_ascii_whitespace().map(str::to_owned).collect()
    };
    lines.into_iter().flat_map(words).collect()
}

/// Open vSwitch counts the processors no earlier than ten seconds after the kernel's start. Until
/// then it believes that there are none, starts no thread for packets that have no flow in the
/// kernel yet, and forwards none of them ever after. In a guest a lab may be that early.
pub(crate) fn wait_for_processors() {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
    if let Some(left) = COUNTED.checked_sub(Duration::from_secs(seconds.unwrap_or(u64::MAX))) {
        std::thread::sleep(left);
    }
}

fn wait_for(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        ensure!(
            Instant::now() < deadline,
            "{}: nobody listens after {} s",
            socket.display(),
            PATIENCE.as_secs()
        );
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn finish(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {command:?}"))?;
    succeeded(command, output)
}

fn succeeded(command: &Command, output: Output) -> Result<Output> {
    if !output.status.success() {
        let program = Path::new(command.get_program()).file_name();
        bail!(
            "{}: {}: {}",
            program.unwrap_or_default().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use crate::spec::{LabSpec, Overlay};

    use super::*;

    #[test]
    fn a_port_for_each_pod_and_each_other_node() {
        let mut spec = LabSpec::new("a", PathBuf::new());
        spec.overlay = Overlay::Geneve;
        let layout = Layout::new(&spec);
        let told = ports(&layout, &layout.nodes[1]).join(" ");
        assert_eq!(told.matches("add-port").count(), 2 + 2, "{told}");
        let tunnel = "-- set interface to-n3 type=geneve options:remote_ip=\"172.18.0.3\" \
                      options:key=1 options:dst_port=6081 ofport_request=1003";
        assert!(told.contains(tunnel), "{told}");
        assert!(!told.contains("to-n2"), "{told}");
    }

    #[test]
    fn what_is_missing_is_said_with_a_remedy() {
        let error = check(Some(Path::new("/nonexistent"))).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("apt-get install openvswitch-switch"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }
}
