//! Makes the namespaces, links, addresses and routes that a [`Layout`] plans.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use testudo_netlink::{
    FdbEntry, Geneve, LinkChange, LinkKind, MacAddress, Netlink, NewLink, Route, Vxlan,
};

use crate::layout::{
    CentralLayout, INTERFACE, Layout, NodeLayout, POD_BRIDGE, PodLayout, UNDERLAY_BRIDGE,
    UNDERLAY_MTU, VNI,
};
use crate::namespaces::{Namespaces, inside, set_sysctls};
use crate::spec::{Overlay, Switch};

/// The underlay is a switch: it has no addresses and says nothing of its own.
const SWITCH: &[(&str, &str)] = &[
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Addresses are usable at once, and nothing is learnt from a router that is not there.
const HOST: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/dad_transmits", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// A node routes for its pods.
const NODE: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// Builds all of it. On an error what stands already is left for the caller to remove. Returns
/// what this kernel lacks and the lab goes without, a sentence each.
pub(crate) fn build(layout: &Layout, namespaces: &Namespaces) -> Result<Vec<String>> {
    let underlay = namespaces.create(&layout.underlay_netns)?;
    set_sysctls(&underlay, SWITCH)?;
    let mut switch = Netlink::open_in(underlay.as_fd())?;
    let bridge = add_bridge(&mut switch, UNDERLAY_BRIDGE, UNDERLAY_MTU)?;
    if let Some(central) = &layout.central {
        build_central(central, &mut switch, &underlay, bridge, namespaces)
            .context("build OVN's central part")?;
    }
    let mut masquerades = true;
    for node in &layout.nodes {
        let netns = namespaces.create(&node.netns)?;
        masquerades &= build_node(layout, node, &netns, namespaces)
            .and_then(|()| {
                let host = (node.name.as_str(), &node.addresses[..]);
                plug_in(&mut switch, &underlay, bridge, host, &netns)
            })
            .and_then(|()| connect(layout, node, &netns))
            .and_then(|()| masquerade(layout, node, &netns))
            .with_context(|| format!("build node {}", node.name))?;
    }
    let lacks = (!masquerades).then(|| {
        "this kernel has no nftables for IP: pods speak to hosts under their own addresses"
            .to_owned()
    });
    Ok(lacks.into_iter().collect())
}

/// A host on the underlay, like a node without pods.
fn build_central(
    central: &CentralLayout,
    switch: &mut Netlink,
    underlay: &OwnedFd,
    bridge: u32,
    namespaces: &Namespaces,
) -> Result<()> {
    let netns = namespaces.create(&central.netns)?;
    set_sysctls(&netns, HOST)?;
    plug_in(
        switch,
        underlay,
        bridge,
        ("central", &central.addresses),
        &netns,
    )
}

/// Sysctls, the pods' bridge and the pods.
fn build_node(
    layout: &Layout,
    node: &NodeLayout,
    netns: &OwnedFd,
    namespaces: &Namespaces,
) -> Result<()> {
    set_sysctls(netns, HOST)?;
    set_sysctls(netns, NODE)?;
    let mut netlink = Netlink::open_in(netns.as_fd())?;
    // Open vSwitch makes its own later, when its daemons run.
    let bridge = match layout.switch {
        Switch::Linux => Some(add_bridge(&mut netlink, POD_BRIDGE, layout.pod_mtu)?),
        Switch::Ovs => None,
    };
    if let Some(bridge) = bridge {
        add_gateways(&mut netlink, bridge, node)?;
    }
    for (number, pod) in (1..).zip(&node.pods) {
        let pod_netns = namespaces.create(&pod.netns)?;
        let port = build_pod(layout, node, (number, pod), &mut netlink, &pod_netns)
            .with_context(|| format!("build pod {}", pod.name))?;
        if let Some(bridge) = bridge {
            netlink.set_master(port, Some(bridge))?;
        }
    }
    Ok(())
}

fn add_gateways(netlink: &mut Netlink, bridge: u32, node: &NodeLayout) -> Result<()> {
    for gateway in &node.gateways {
        netlink.add_address(bridge, with_prefix(*gateway, node)?)?;
    }
    Ok(())
}

/// The node's own port of its Open vSwitch bridge, which stands by now: the pods' gateway, and the
/// way to the pods of the other nodes.
pub(crate) fn plug_into_ovs(
    layout: &Layout,
    node: &NodeLayout,
    namespaces: &Namespaces,
) -> Result<()> {
    let mut netlink = Netlink::open_in(namespaces.open(&node.netns)?.as_fd())?;
    let port = netlink.link_index(POD_BRIDGE)?;
    if layout.central.is_some() {
        return plug_into_ovn(layout, node, &mut netlink, port);
    }
    add_gateways(&mut netlink, port, node)?;
    for vtep in &node.vteps {
        netlink.add_address(port, IpNet::from(*vtep))?;
    }
    netlink.set_up(port)?;
    for other in layout.nodes.iter().filter(|other| other.name != node.name) {
        over(&mut netlink, port, other)?;
    }
    Ok(())
}

/// The node's own port of its logical switch: its router has the pods' gateways, and leads to the
/// pods of all other nodes.
fn plug_into_ovn(
    layout: &Layout,
    node: &NodeLayout,
    netlink: &mut Netlink,
    port: u32,
) -> Result<()> {
    for own in &node.vteps {
        netlink.add_address(port, with_prefix(*own, node)?)?;
    }
    netlink.set_up(port)?;
    for cidr in &layout.cluster_cidrs {
        let via = of_family(&node.gateways, cidr.addr()).context("a gateway of each family")?;
        netlink.add_route(&Route {
            via: Some(via),
            ..Route::dev(*cidr, port)
        })?;
    }
    Ok(())
}

/// A pod, counted from 1. The index of its link in the node.
fn build_pod(
    layout: &Layout,
    node: &NodeLayout,
    (number, pod): (u16, &PodLayout),
    in_node: &mut Netlink,
    netns: &OwnedFd,
) -> Result<u32> {
    set_sysctls(netns, HOST)?;
    in_node.create_link(&NewLink {
        name: &pod.name,
        kind: LinkKind::Veth {
            peer: INTERFACE,
            peer_netns: Some(netns.as_fd()),
        },
        mtu: Some(layout.pod_mtu),
        address: None,
        netns: None,
    })?;
    let port = in_node.link_index(&pod.name)?;
    in_node.set_up(port)?;
    let mut netlink = Netlink::open_in(netns.as_fd())?;
    let link = netlink.link_index(INTERFACE)?;
    let known = LinkChange {
        address: Some(MacAddress(node.pod_mac(number))),
        ..LinkChange::default()
    };
    netlink.change_link(link, &known)?;
    netlink.set_up(link)?;
    for address in &pod.addresses {
        netlink.add_address(link, with_prefix(*address, node)?)?;
    }
    for gateway in &node.gateways {
        netlink.add_route(&Route {
            via: Some(*gateway),
            ..Route::dev(default_of(*gateway), link)
        })?;
    }
    Ok(port)
}

/// The link between a host and the underlay's bridge, named after the host on the bridge's side.
fn plug_in(
    switch: &mut Netlink,
    underlay: &OwnedFd,
    bridge: u32,
    (name, addresses): (&str, &[IpAddr]),
    netns: &OwnedFd,
) -> Result<()> {
    switch.create_link(&NewLink {
        name,
        kind: LinkKind::Veth {
            peer: INTERFACE,
            peer_netns: Some(netns.as_fd()),
        },
        mtu: Some(UNDERLAY_MTU),
        address: None,
        netns: Some(underlay.as_fd()),
    })?;
    let port = switch.link_index(name)?;
    switch.set_master(port, Some(bridge))?;
    switch.set_up(port)?;
    let mut netlink = Netlink::open_in(netns.as_fd())?;
    let link = netlink.link_index(INTERFACE)?;
    // As a real card without offloads: what a capture shows is what a wire would carry.
    let no_offloads = LinkChange {
        gso_max_segments: Some(1),
        ..LinkChange::default()
    };
    netlink.change_link(link, &no_offloads)?;
    netlink.set_up(link)?;
    for address in addresses {
        let length = if address.is_ipv4() { 16 } else { 64 };
        netlink.add_address(link, IpNet::new(*address, length)?)?;
    }
    Ok(())
}

/// The ways to the pods of the other nodes; Open vSwitch's are made when it runs.
fn connect(layout: &Layout, node: &NodeLayout, netns: &OwnedFd) -> Result<()> {
    if layout.switch == Switch::Ovs {
        return Ok(());
    }
    let mut netlink = Netlink::open_in(netns.as_fd())?;
    for other in &layout.nodes {
        if other.name != node.name {
            reach(layout, &mut netlink, node, other)?;
        }
    }
    Ok(())
}

/// The ways from a node, whose namespace `netlink` speaks to, to one other node's pods.
fn reach(
    layout: &Layout,
    netlink: &mut Netlink,
    node: &NodeLayout,
    other: &NodeLayout,
) -> Result<()> {
    if layout.overlay == Overlay::Routed {
        let link = netlink.link_index(INTERFACE)?;
        for cidr in &other.pod_cidrs {
            let via = of_family(&other.addresses, cidr.addr())
                .context("routed pods have the underlay's families")?;
            netlink.add_route(&Route {
                via: Some(via),
                ..Route::dev(*cidr, link)
            })?;
        }
        return Ok(());
    }
    let name = layout.overlay_device(other).context("no overlay")?;
    let device = match netlink.link(&name)? {
        // VXLAN's reaches all.
        Some(_) => netlink.link_index(&name)?,
        None => add_overlay(netlink, layout, node, &name, other)?,
    };
    if layout.overlay == Overlay::Vxlan {
        netlink.add_fdb(FdbEntry {
            link: device,
            mac: MacAddress(other.vtep_mac),
            remote: other.primary(),
        })?;
    }
    over(netlink, device, other)
}

/// Builds one node more, of a layout that has it already, and the others' ways to it.
pub(crate) fn add(layout: &Layout, node: &NodeLayout, namespaces: &Namespaces) -> Result<()> {
    let underlay = namespaces.open(&layout.underlay_netns)?;
    let mut switch = Netlink::open_in(underlay.as_fd())?;
    let bridge = switch.link_index(UNDERLAY_BRIDGE)?;
    let netns = namespaces.create(&node.netns)?;
    build_node(layout, node, &netns, namespaces)?;
    let host = (node.name.as_str(), &node.addresses[..]);
    plug_in(&mut switch, &underlay, bridge, host, &netns)?;
    connect(layout, node, &netns)?;
    masquerade(layout, node, &netns)?;
    for other in &layout.nodes {
        if other.name != node.name {
            let netns = namespaces.open(&other.netns)?;
            let mut netlink = Netlink::open_in(netns.as_fd())?;
            reach(layout, &mut netlink, other, node)
                .with_context(|| format!("the ways from {} to {}", other.name, node.name))?;
        }
    }
    Ok(())
}

/// The ways to one other node's pods through the overlay's device.
fn over(netlink: &mut Netlink, device: u32, other: &NodeLayout) -> Result<()> {
    let mac = MacAddress(other.vtep_mac);
    for vtep in &other.vteps {
        netlink.set_neighbour(device, *vtep, mac)?;
        netlink.add_route(&Route::dev(IpNet::from(*vtep), device))?;
    }
    for cidr in &other.pod_cidrs {
        let via = of_family(&other.vteps, cidr.addr())
            .context("an overlay device has the pods' families")?;
        netlink.add_route(&Route {
            via: Some(via),
            ..Route::dev(*cidr, device)
        })?;
    }
    Ok(())
}

/// Makes the device `name`: VXLAN's reaches every node, Geneve's the node `other`.
fn add_overlay(
    netlink: &mut Netlink,
    layout: &Layout,
    node: &NodeLayout,
    name: &str,
    other: &NodeLayout,
) -> Result<u32> {
    let port = layout.overlay_port.context("an overlay has a port")?;
    let kind = match layout.overlay {
        Overlay::Geneve | Overlay::Ovn => LinkKind::Geneve(Geneve {
            id: VNI,
            remote: other.primary(),
            port,
        }),
        Overlay::Vxlan | Overlay::Routed => LinkKind::Vxlan(Vxlan {
            id: VNI,
            port,
            local: Some(node.primary()),
            device: None,
            learning: false,
        }),
    };
    let created = netlink.create_link(&NewLink {
        name,
        kind,
        mtu: Some(layout.pod_mtu),
        address: Some(MacAddress(node.vtep_mac)),
        netns: None,
    });
    match created {
        Err(error) if error.is_unsupported() => bail!(
            "this kernel has no {0} devices: modprobe {0}, or choose another --overlay ({error})",
            layout.overlay
        ),
        created => created?,
    }
    let link = netlink.link_index(name)?;
    for vtep in &node.vteps {
        netlink.add_address(link, IpNet::from(*vtep))?;
    }
    netlink.set_up(link)?;
    Ok(link)
}

fn add_bridge(netlink: &mut Netlink, name: &str, mtu: u32) -> Result<u32> {
    netlink.create_link(&NewLink {
        name,
        kind: LinkKind::Bridge,
        mtu: Some(mtu),
        address: None,
        netns: None,
    })?;
    let link = netlink.link_index(name)?;
    netlink.set_up(link)?;
    Ok(link)
}

/// Pods speak to hosts under their node's address, as with the usual CNIs; otherwise the answers
/// of a host would go another way than the questions. What goes into a tunnel keeps its address: it
/// is no packet of the node. False: the kernel cannot do it.
fn masquerade(layout: &Layout, node: &NodeLayout, netns: &OwnedFd) -> Result<bool> {
    let mut rules = String::from(
        "table inet lab {\n chain postrouting {\n  type nat hook postrouting priority srcnat;\n",
    );
    for (cidr, cluster) in node.pod_cidrs.iter().zip(&layout.cluster_cidrs) {
        let family = if cidr.addr().is_ipv4() { "ip" } else { "ip6" };
        rules += &format!(
            "  {family} saddr {cidr} {family} daddr != {cluster} oifname \"{INTERFACE}\" \
             rt ipsec missing masquerade\n"
        );
    }
    rules += " }\n}\n";
    inside(netns.as_fd(), move || {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run nft: install the package nftables")?;
        if let Some(mut input) = nft.stdin.take() {
            input.write_all(rules.as_bytes()).context("write to nft")?;
        }
        let output = nft.wait_with_output().context("wait for nft")?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(true),
            false if said.contains("not supported") => Ok(false),
            false => bail!("nft: {}", said.trim()),
        }
    })
}

fn with_prefix(address: IpAddr, node: &NodeLayout) -> Result<IpNet> {
    let cidr = node
        .pod_cidrs
        .iter()
        .find(|cidr| cidr.contains(&address))
        .with_context(|| format!("{address} is in no pod CIDR of {}", node.name))?;
    Ok(IpNet::new(address, cidr.prefix_len())?)
}

fn of_family(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv4() == like.is_ipv4())
}

fn default_of(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}
