//! The cluster's network: a bridge in the control plane's namespace, which the machine's own
//! namespace reaches over a veth, and each node over another.
//!
//! ```text
//!   machine                     control plane                        node 1
//!   tkube7 198.18.7.254 ------- host |                            |- eth0 198.18.7.11
//!                                    | underlay 198.18.7.1        |
//!                                    |  node1 --------------------|
//!                                    lo 10.96.0.1 (the API server's service)
//! ```
//!
//! The addresses are of the block for benchmarks (RFC 2544), of which no machine has one to lose.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use testudo_netlink::{
    FdbEntry, LinkChange, LinkKind, MacAddress, Netlink, NewLink, Route, Vxlan, open_netns,
    run_in_netns,
};

/// The services' addresses; the first is the API server's own.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The API server's service, which the control plane's namespace answers itself: no proxy is needed.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The pods' addresses, of which each node gets a /24 from the controller manager.
pub(crate) const PODS: &str = "10.244.0.0/16";

/// The VXLAN network of all nodes, its port, and the device of a node: the overlay that pods'
/// packets to other nodes take.
const VXLAN_ID: u32 = 1;
const VXLAN_PORT: u16 = 4789;
const OVERLAY: &str = "vxlan0";
/// What a pod's packet may hold, so that it fits into the overlay's, and that into IPsec's.
pub(crate) const POD_MTU: u32 = 1380;

/// What stands behind the slot of a cluster without an overlay.
const ROUTES: &str = " routes";

/// The bridge that joins all.
const BRIDGE: &str = "underlay";

/// How pods' packets reach the pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// In VXLAN between the nodes, as with flannel.
    Vxlan,
    /// As they are, by routes to the other nodes, as with kube-router or Calico without encapsulation.
    Routes,
}

/// The addresses of a cluster: one slot of 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    slot: u8,
    between: Between,
}

impl Network {
    /// Makes the namespace of a control plane and joins it to the machine's. The slot is taken by
    /// the link's name, which only one can have.
    pub(crate) fn create(namespace: &str, between: Between) -> Result<Self> {
        add_namespace(namespace)?;
        let inside = open(namespace)?;
        let mut outer = Netlink::open()?;
        let network = Self::take(&mut outer, &inside, between)?;
        let link = outer.link_index(&network.link())?;
        outer.add_address(link, network.subnet(254)?)?;
        outer.set_up(link)?;

        let mut inner = Netlink::open_in(inside.as_fd())?;
        let loopback = inner.link_index("lo")?;
        inner.set_up(loopback)?;
        inner.add_address(loopback, IpNet::from(IpAddr::from(API_SERVICE)))?;
        inner.create_bridge(BRIDGE)?;
        let bridge = inner.link_index(BRIDGE)?;
        keep_address(&mut inner, bridge)?;
        inner.add_address(bridge, network.subnet(1)?)?;
        inner.set_up(bridge)?;
        let host = inner.link_index("host")?;
        inner.set_master(host, Some(bridge))?;
        inner.set_up(host)?;
        Ok(network)
    }

    /// Makes a node's namespace and joins it to the others.
    pub(crate) fn add_node(self, control_plane: &str, namespace: &str, number: u8) -> Result<()> {
        add_namespace(namespace)?;
        let (inside, centre) = (open(namespace)?, open(control_plane)?);
        let port = port_of(number);
        let mut hub = Netlink::open_in(centre.as_fd())?;
        hub.create_veth(&port, "eth0", Some(inside.as_fd()))?;
        let bridge = hub.link_index(BRIDGE)?;
        let link = hub.link_index(&port)?;
        hub.set_master(link, Some(bridge))?;
        hub.set_up(link)?;

        let mut node = Netlink::open_in(inside.as_fd())?;
        let loopback = node.link_index("lo")?;
        node.set_up(loopback)?;
        let eth0 = node.link_index("eth0")?;
        node.add_address(eth0, self.subnet(host_of(number)?)?)?;
        node.set_up(eth0)?;
        let services: IpNet = SERVICES.parse().context("the services' prefix")?;
        node.add_route(&Route::via(services, self.server().into()))?;
        set_in(&inside, "ipv4/ip_forward", "1")
    }

    /// A node's address.
    pub(crate) fn node(self, number: u8) -> Result<Ipv4Addr> {
        Ok(self.address(host_of(number)?))
    }

    /// Makes the way to other nodes' pods, of nodes each with the pods' prefix that it was given: routes, or
    /// a VXLAN device a node, which knows the others by entries of ours and learns nothing. What is there already stays.
    pub(crate) fn join_pods(
        self,
        control_plane: &str,
        nodes: &[(String, u8, Ipv4Net)],
    ) -> Result<()> {
        let centre = open(control_plane)?;
        let mut hub = Netlink::open_in(centre.as_fd())?;
        for (namespace, number, pods) in nodes {
            let own = self.node(*number)?;
            // The API server speaks with pods, and they with it, without the overlay.
            hub.replace_route(&Route::via((*pods).into(), own.into()))?;
            let inside = open(namespace)?;
            let mut node = Netlink::open_in(inside.as_fd())?;
            let others = || nodes.iter().filter(|(_, other, _)| other != number);
            if self.between == Between::Routes {
                for (_, other, theirs) in others() {
                    let gateway = self.node(*other)?.into();
                    node.replace_route(&Route::via((*theirs).into(), gateway))?;
                }
                continue;
            }
            let eth0 = node.link_index("eth0")?;
            if node.link(OVERLAY)?.is_none() {
                node.create_link(&NewLink {
                    name: OVERLAY,
                    kind: LinkKind::Vxlan(Vxlan {
                        id: VXLAN_ID,
                        port: VXLAN_PORT,
                        local: Some(own.into()),
                        device: Some(eth0),
                        learning: false,
                    }),
                    mtu: Some(POD_MTU),
                    address: Some(overlay_mac(self.slot, *number)),
                    netns: None,
                })?;
            }
            let overlay = node.link_index(OVERLAY)?;
            node.ensure_address(overlay, IpNet::from(IpAddr::from(pods.network())))?;
            node.set_up(overlay)?;
            for (_, other, theirs) in others() {
                let mac = overlay_mac(self.slot, *other);
                let gateway = theirs.network().into();
                node.set_neighbour(overlay, gateway, mac)?;
                node.add_fdb(FdbEntry {
                    link: overlay,
                    mac,
                    remote: self.node(*other)?.into(),
                })?;
                node.replace_route(&over_overlay(overlay, *theirs))?;
            }
        }
        Ok(())
    }

    /// Takes a node's link away, and with it all that it has to say.
    pub(crate) fn unplug_node(self, control_plane: &str, number: u8) -> Result<()> {
        let mut hub = Netlink::open_in(open(control_plane)?.as_fd())?;
        if let Some(port) = hub.link(&port_of(number))? {
            hub.delete_link(port.index)?;
        }
        Ok(())
    }

    /// Forgets a node's pods: the routes to them, and what the others' overlay knows of it.
    pub(crate) fn part_pods(
        self,
        control_plane: &str,
        others: &[String],
        number: u8,
        pods: Ipv4Net,
    ) -> Result<()> {
        let own = self.node(number)?.into();
        let mut hub = Netlink::open_in(open(control_plane)?.as_fd())?;
        gone(hub.delete_route(&Route::via(pods.into(), own)))?;
        for namespace in others {
            let mut node = Netlink::open_in(open(namespace)?.as_fd())?;
            if self.between == Between::Routes {
                gone(node.delete_route(&Route::via(pods.into(), own)))?;
                continue;
            }
            let link = node.link_index(OVERLAY)?;
            let gateway = IpAddr::from(pods.network());
            gone(node.delete_route(&over_overlay(link, pods)))?;
            gone(node.delete_fdb(FdbEntry {
                link,
                mac: overlay_mac(self.slot, number),
                remote: own,
            }))?;
            gone(node.delete_neighbour(link, gateway))?;
        }
        Ok(())
    }

    fn take(outer: &mut Netlink, inside: &OwnedFd, between: Between) -> Result<Self> {
        for slot in 0..=u8::MAX {
            let network = Self { slot, between };
            match outer.create_veth(&network.link(), "host", Some(inside.as_fd())) {
                Ok(()) => return Ok(network),
                Err(error) if error.is_exists() => {}
                Err(error) => return Err(error).context("a veth to the control plane"),
            }
        }
        bail!("there are 256 clusters: end some (cargo xtask kube status)")
    }

    /// Removes the link between the machine and the control plane; one that is not there is no error.
    pub(crate) fn remove_link(self) -> Result<()> {
        let mut outer = Netlink::open()?;
        if let Some(link) = outer.link(&self.link())? {
            outer.delete_link(link.index)?;
        }
        Ok(())
    }

    /// Reads what [`Display`](std::fmt::Display) wrote.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (slot, between) = match text.trim().strip_suffix(ROUTES) {
            Some(slot) => (slot, Between::Routes),
            None => (text.trim(), Between::Vxlan),
        };
        let slot = slot.parse().context("a cluster's slot")?;
        Ok(Self { slot, between })
    }

    /// The link's name in the machine's namespace.
    fn link(self) -> String {
        format!("tkube{}", self.slot)
    }

    fn address(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.slot, host)
    }

    fn subnet(self, host: u8) -> Result<IpNet> {
        let net = Ipv4Net::new(self.address(host), 24).context("a prefix length")?;
        Ok(net.into())
    }

    /// The control plane's address, for the machine and for nodes.
    pub(crate) fn server(self) -> Ipv4Addr {
        self.address(1)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let between = match self.between {
            Between::Vxlan => "",
            Between::Routes => ROUTES,
        };
        write!(f, "{}{between}", self.slot)
    }
}

/// Makes a bridge keep its link-layer address. One that nobody has set follows the least of its ports', and with
/// a node that comes or goes the API server could not be reached until all others have asked for it anew.
fn keep_address(netlink: &mut Netlink, bridge: u32) -> Result<()> {
    let found = netlink.link(BRIDGE)?.and_then(|link| link.address);
    let address = found.context("a bridge has an address")?;
    let change = LinkChange {
        address: Some(address),
        ..LinkChange::default()
    };
    Ok(netlink.change_link(bridge, &change)?)
}

/// A node's port on the bridge.
fn port_of(number: u8) -> String {
    format!("node{number}")
}

/// The way to another node's pods.
fn over_overlay(overlay: u32, pods: Ipv4Net) -> Route {
    Route {
        link: Some(overlay),
        onlink: true,
        ..Route::via(pods.into(), pods.network().into())
    }
}

/// What is to be gone may have gone before.
fn gone(done: testudo_netlink::Result<()>) -> Result<()> {
    match done {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// A node's last byte: nodes count from 1.
fn host_of(number: u8) -> Result<u8> {
    let host = number.checked_add(10).filter(|host| *host < 254);
    host.with_context(|| format!("there is no node {number}"))
}

/// A locally administered address for a node's overlay device.
fn overlay_mac(slot: u8, number: u8) -> MacAddress {
    MacAddress([0x02, 0x54, 0x4b, 0x00, slot, number])
}

fn set_in(namespace: &OwnedFd, setting: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{setting}");
    run_in_netns(namespace.as_fd(), || std::fs::write(&path, value))?.context(path.clone())
}

/// The file of a named namespace.
pub(crate) fn path(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

/// Opens a named namespace.
pub(crate) fn open(namespace: &str) -> Result<OwnedFd> {
    Ok(open_netns(path(namespace))?)
}

fn add_namespace(name: &str) -> Result<()> {
    ip(&["netns", "add", name])
}

/// Removes a named namespace; one that is not there is no error.
pub(crate) fn remove_namespace(name: &str) -> Result<()> {
    if path(name).exists() {
        ip(&["netns", "delete", name])?;
    }
    Ok(())
}

/// The named namespaces whose name begins so.
pub(crate) fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("ip could not be started (Debian: iproute2)")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), text.trim());
    }
    Ok(())
}
