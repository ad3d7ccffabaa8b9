//! OVN, as Kube-OVN and OVN-Kubernetes lay it out: a logical switch a node, with the node's pods and
//! a port of the node itself, and one router between the switches.
//!
//! ```text
//!   n1-p1  n1-p2  n1-node             n2-p1  n2-p2  n2-node
//!     \      |      /                    \      |      /
//!   [ logical switch n1 ]             [ logical switch n2 ]
//!            | 10.244.1.1                      | 10.244.2.1
//!            +------- logical router "pods" ---+
//! ```
//!
//! In a namespace of their own on the underlay run the northbound and the southbound database and
//! northd; on each node, beside its Open vSwitch, ovn-controller, which hears of the southbound
//! database over the underlay and writes the node's flows. Nodes' packets to pods enter by the
//! node's own port; pods' packets to everywhere else leave by it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use testudo_netlink::MacAddress;

use super::tools::{self, NORTHBOUND, SOUTHBOUND, finish, socket, wait_for};
use super::words;
use crate::lab::Lab;
use crate::layout::{CentralLayout, Layout, NodeLayout, POD_BRIDGE};

/// TCP port of the southbound database.
const PORT: u16 = 6642;
/// The logical router.
const ROUTER: &str = "pods";
/// OVN's bridge on each node.
const BRIDGE: &str = "br-int";
/// The word for the namespace of the databases.
const CENTRAL: &str = "central";
/// How long all nodes may take until their switches have all flows, in seconds: in a guest that is
/// emulated and not alone.
const SYNC: u32 = 150;

/// OVN's central part.
pub(crate) struct Central<'a> {
    lab: &'a Lab,
}

impl<'a> Central<'a> {
    /// The lab's.
    pub(crate) fn of(lab: &'a Lab) -> Self {
        Self { lab }
    }

    /// The server of the northbound database: what is wanted.
    pub(crate) fn northbound(&self) -> Result<Command> {
        tools::database(self.lab, CENTRAL, &self.folder(), "nb", NORTHBOUND)
    }

    /// The server of the southbound database: what nodes do.
    pub(crate) fn southbound(&self) -> Result<Command> {
        let mut command = tools::database(self.lab, CENTRAL, &self.folder(), "sb", SOUTHBOUND)?;
        for address in self.lab.layout().central.iter().flat_map(|c| &c.addresses) {
            command.arg(format!("--remote=ptcp:{PORT}:{}", bracketed(*address)));
        }
        Ok(command)
    }

    /// The daemon that makes the one of the other.
    pub(crate) fn northd(&self) -> Result<Command> {
        let folder = self.folder();
        let mut command = tools::daemon(self.lab, CENTRAL, &folder, "ovn-northd")?;
        for (option, name) in [("ovnnb-db", "nb"), ("ovnsb-db", "sb")] {
            let socket = socket(&folder, name);
            command.arg(format!("--{option}=unix:{}", socket.display()));
        }
        Ok(command)
    }

    /// Writes the logical network.
    pub(crate) fn define(&self) -> Result<()> {
        wait_for(&socket(&self.folder(), "nb"))?;
        let mut nbctl = self.nbctl("30")?;
        finish(nbctl.args(network(self.lab.layout())))?;
        Ok(())
    }

    /// Waits until every port is bound and every switch has its flows.
    pub(crate) fn wait(&self) -> Result<()> {
        let timeout = SYNC.to_string();
        let ports = self.lab.layout().nodes.iter().flat_map(ports);
        let up = |port: Port| {
            words(&format!(
                "wait-until logical_switch_port {} up=true",
                port.name
            ))
        };
        let mut nbctl = self.nbctl(&timeout)?;
        finish(nbctl.args(ports.flat_map(up))).context("OVN does not bind all ports")?;
        let mut nbctl = self.nbctl(&timeout)?;
        finish(nbctl.args(["--wait=hv", "sync"])).context("a node of OVN does not answer")?;
        Ok(())
    }

    /// A program that asks or tells a database, `nb` or `sb`.
    pub(crate) fn client(&self, database: &str, program: &str) -> Result<Command> {
        let folder = self.folder();
        let mut command = tools::command(self.lab, CENTRAL, &folder, program)?;
        command.arg(format!("--db=unix:{}", socket(&folder, database).display()));
        Ok(command)
    }

    fn nbctl(&self, timeout: &str) -> Result<Command> {
        let mut command = self.client("nb", "ovn-nbctl")?;
        command.arg(format!("--timeout={timeout}"));
        Ok(command)
    }

    fn folder(&self) -> PathBuf {
        self.lab.directory().join("ovn")
    }
}

/// A logical port.
struct Port {
    /// Its name, which the node's interface bears as `iface-id`.
    name: String,
    /// The interface in the node.
    interface: String,
    mac: MacAddress,
    addresses: Vec<IpAddr>,
}

/// A node's ports: its own, then its pods'.
fn ports(node: &NodeLayout) -> Vec<Port> {
    let own = Port {
        name: format!("{}-node", node.name),
        interface: POD_BRIDGE.to_owned(),
        mac: MacAddress(node.vtep_mac),
        addresses: node.vteps.clone(),
    };
    let pods = (1..).zip(&node.pods).map(|(number, pod)| Port {
        name: format!("{}-{}", node.name, pod.name),
        interface: pod.name.clone(),
        mac: MacAddress(node.pod_mac(number)),
        addresses: pod.addresses.clone(),
    });
    std::iter::once(own).chain(pods).collect()
}

/// What `ovs-vsctl` is told on a node: one transaction.
pub(super) fn chassis(layout: &Layout, node: &NodeLayout, central: &CentralLayout) -> Vec<String> {
    // The family that the node's tunnels use.
    let remote = central
        .addresses
        .iter()
        .find(|address| address.is_ipv4() == node.primary().is_ipv4());
    let remote = remote.map_or_else(String::new, |address| bracketed(*address));
    let mut lines = vec![
        format!(
            "set open_vswitch . external_ids:system-id={} external_ids:ovn-bridge={BRIDGE} \
             external_ids:ovn-remote=\"tcp:{remote}:{PORT}\" external_ids:ovn-encap-type=geneve \
             external_ids:ovn-encap-ip=\"{}\" external_ids:ovn-remote-probe-interval=60000 \
             external_ids:ovn-openflow-probe-interval=60",
            node.name,
            node.primary(),
        ),
        format!("add-br {BRIDGE}"),
        format!("set bridge {BRIDGE} fail_mode=secure"),
    ];
    for port in ports(node) {
        let interface = &port.interface;
        lines.push(format!("add-port {BRIDGE} {interface}"));
        lines.push(format!(
            "set interface {interface} external_ids:iface-id={}",
            port.name
        ));
    }
    lines.push(format!(
        "set interface {POD_BRIDGE} type=internal mac=\"{}\" mtu_request={}",
        MacAddress(node.vtep_mac),
        layout.pod_mtu
    ));
    lines.iter().flat_map(|line| words(line)).collect()
}

/// What `ovn-nbctl` is told: one transaction.
fn network(layout: &Layout) -> Vec<String> {
    let mut told = words(&format!("lr-add {ROUTER}"));
    for node in &layout.nodes {
        let name = &node.name;
        // Locally administered, and nobody else's in the lab.
        let [a, b, c, d, _, last] = node.vtep_mac;
        let mac = MacAddress([a, b, c, d, 0xff, last]);
        told.extend(words(&format!("ls-add {name}")));
        let mut port = format!("lrp-add {ROUTER} to-{name} {mac}");
        for (gateway, cidr) in node.gateways.iter().zip(&node.pod_cidrs) {
            port += &format!(" {gateway}/{}", cidr.prefix_len());
        }
        told.extend(words(&port));
        for line in [
            format!("lsp-add {name} {name}-router"),
            format!("lsp-set-type {name}-router router"),
            format!("lsp-set-addresses {name}-router router"),
            format!("lsp-set-options {name}-router router-port=to-{name}"),
        ] {
            told.extend(words(&line));
        }
        for port in ports(node) {
            told.extend(words(&format!("lsp-add {name} {}", port.name)));
            told.extend(words(&format!("lsp-set-addresses {}", port.name)));
            let mut addresses = port.mac.to_string();
            for address in &port.addresses {
                addresses += &format!(" {address}");
            }
            // One word with spaces.
            told.push(addresses);
        }
        // What is for no pod goes to the node that it comes from.
        for (cidr, own) in node.pod_cidrs.iter().zip(&node.vteps) {
            let route = format!("--policy=src-ip lr-route-add {ROUTER} {cidr} {own}");
            told.extend(words(&route));
        }
    }
    told
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::{Family, LabSpec, Overlay};

    use super::*;

    fn layout(family: Family) -> Layout {
        let mut spec = LabSpec::new("a", PathBuf::new());
        (spec.overlay, spec.family) = (Overlay::Ovn, family);
        Layout::new(&spec)
    }

    #[test]
    fn a_switch_for_each_node_and_a_port_for_each_pod() {
        let told = network(&layout(Family::V4)).join(" ");
        assert_eq!(told.matches("ls-add").count(), 3, "{told}");
        assert_eq!(told.matches("lsp-add").count(), 3 * (1 + 1 + 2), "{told}");
        for part in [
            "-- lrp-add pods to-n2 02:54:53:54:ff:02 10.244.2.1/24 fd00:10:244:2::1/64",
            "-- lsp-set-addresses n2-p1 02:54:53:54:01:02 10.244.2.11 fd00:10:244:2::11",
            "-- lsp-set-addresses n2-node 02:54:53:54:00:02 10.244.2.254 fd00:10:244:2::fe",
            "-- --policy=src-ip lr-route-add pods fd00:10:244:2::/64 fd00:10:244:2::fe",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn a_node_finds_the_databases_over_the_family_of_its_tunnels() {
        for (family, remote, own) in [
            (Family::V4, "\"tcp:172.18.0.254:6642\"", "172.18.0.1"),
            (Family::Dual, "\"tcp:172.18.0.254:6642\"", "172.18.0.1"),
            (
                Family::V6,
                "\"tcp:[fd00:172:18::fe]:6642\"",
                "fd00:172:18::1",
            ),
        ] {
            let layout = layout(family);
            let central = layout.central.as_ref().unwrap();
            let told = chassis(&layout, &layout.nodes[0], central).join(" ");
            assert!(told.contains(remote), "{told}");
            assert!(told.contains(&format!("ovn-encap-ip=\"{own}\"")), "{told}");
            assert!(told.contains("set interface p2 external_ids:iface-id=n1-p2"));
        }
    }
}
