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
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testudo_netlink::MacAddress;

use crate::lab::Lab;
use crate::layout::{Layout, NodeLayout, POD_BRIDGE, VNI};

mod flows;
pub(crate) mod ovn;
mod tools;

pub(crate) use tools::check;
use tools::{PATIENCE, PAUSE, finish, succeeded, wait_for};

/// How long `ovs-vsctl` waits until the switch has done what the database says, in seconds.
const APPLY: u32 = 60;
/// How long after the kernel's start Open vSwitch has counted the processors.
const COUNTED: Duration = Duration::from_secs(12);
/// The database's name.
const DATABASE: &str = "db";

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

    /// The database server.
    pub(crate) fn database(&self) -> Result<Command> {
        let (node, folder) = (&self.node.name, self.folder());
        tools::database(self.lab, node, &folder, DATABASE, tools::VSWITCH)
    }

    /// The switch daemon.
    pub(crate) fn daemon(&self) -> Result<Command> {
        self.client_of_database("ovs-vswitchd")
    }

    /// OVN's daemon of the node, which writes the flows of its switch.
    pub(crate) fn controller(&self) -> Result<Command> {
        self.client_of_database("ovn-controller")
    }

    /// A program that asks or tells the database.
    pub(crate) fn client(&self, program: &str) -> Result<Command> {
        let mut command = self.command(program)?;
        command.arg(format!("--db=unix:{}", self.socket().display()));
        Ok(command)
    }

    fn client_of_database(&self, program: &str) -> Result<Command> {
        let mut command = tools::daemon(self.lab, &self.node.name, &self.folder(), program)?;
        command.arg(format!("unix:{}", self.socket().display()));
        Ok(command)
    }

    /// Makes the bridge and its ports, and writes the flows, unless OVN does. Both daemons run.
    pub(crate) fn configure(&self) -> Result<()> {
        wait_for(&self.socket())?;
        let (layout, node) = (self.lab.layout(), self.node);
        let mut vsctl = self.client("ovs-vsctl")?;
        vsctl
            .arg(format!("--timeout={APPLY}"))
            // What remains on its standard error is what the switch could not do; a busy machine is
            // else complained of there too.
            .arg("-vconsole:off")
            .args(match &layout.central {
                Some(central) => ovn::chassis(layout, node, central),
                None => ports(layout, node),
            });
        let said = finish(&mut vsctl)?;
        // It succeeds although the switch could not do it, and says so on its standard error.
        let refused = String::from_utf8_lossy(&said.stderr).trim().to_owned();
        ensure!(
            refused.is_empty(),
            "{refused}\nIs there Open vSwitch in this kernel? modprobe openvswitch; or run the lab \
             in a guest: docs/guest.md"
        );
        match &layout.central {
            Some(_) => Ok(()),
            None => self.write_flows(),
        }
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
        tools::socket(&self.folder(), DATABASE)
    }

    fn command(&self, program: &str) -> Result<Command> {
        tools::command(self.lab, &self.node.name, &self.folder(), program)
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
    lines.iter().flat_map(|line| words(line)).collect()
}

/// One command of a transaction.
fn words(line: &str) -> Vec<String> {
    let words = std::iter::once("--").chain(line.split_ascii_whitespace());
    words.map(str::to_owned).collect()
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
}
