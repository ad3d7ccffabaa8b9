//! Links: network interfaces.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::abi;
use crate::message::{Attributes, Message, Request, attributes, read_string, read_u32};
use crate::neighbour::MacAddress;
use crate::{Error, Netlink, Result};

const FIXED: usize = 16;

/// A network interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The kind, for example `bridge`, `veth`, `vxlan`, `geneve`, `tun`; empty for physical ones.
    pub kind: String,
    /// The MTU in bytes.
    pub mtu: u32,
    /// Set up by its administrator (IFF_UP).
    pub up: bool,
    /// The index of the bridge it belongs to, if any.
    pub master: Option<u32>,
    /// The link-layer address, where it has one of 6 bytes.
    pub address: Option<MacAddress>,
}

/// What a new VXLAN link is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier (24 bits).
    pub id: u32,
    /// The UDP destination port.
    pub port: u16,
    /// The outer source address.
    pub local: Option<IpAddr>,
    /// The index of the underlay link, if it is to be bound to one.
    pub device: Option<u32>,
    /// Learn remote addresses from received frames.
    pub learning: bool,
}

/// What a new Geneve link is like: a tunnel to one other end. Links to several ends may share
/// network identifier and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geneve {
    /// The virtual network identifier (24 bits).
    pub id: u32,
    /// The other end.
    pub remote: IpAddr,
    /// The UDP destination port.
    pub port: u16,
}

/// The kind of a new link.
#[derive(Clone, Debug)]
pub enum LinkKind<'a> {
    /// A bridge.
    Bridge,
    /// A dummy.
    Dummy,
    /// One end of a pair; the other end is made with it.
    Veth {
        /// The name of the other end.
        peer: &'a str,
        /// The namespace of the other end; `None`: the same.
        peer_netns: Option<BorrowedFd<'a>>,
    },
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
    /// A Geneve tunnel.
    Geneve(Geneve),
}

/// A link to be created.
#[derive(Clone, Debug)]
pub struct NewLink<'a> {
    /// The name, 15 bytes at most.
    pub name: &'a str,
    /// The kind.
    pub kind: LinkKind<'a>,
    /// The MTU in bytes; `None`: the kernel's choice. A veth pair gets it on both ends.
    pub mtu: Option<u32>,
    /// The link-layer address; `None`: the kernel's choice.
    pub address: Option<MacAddress>,
    /// The namespace to create it in; `None`: that of the socket.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Changes to an existing link; `None` leaves a property as it is.
#[derive(Clone, Debug, Default)]
pub struct LinkChange<'a> {
    /// Set up or down.
    pub up: Option<bool>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// The index of the bridge to join; 0 leaves it.
    pub master: Option<u32>,
    /// The new name.
    pub name: Option<&'a str>,
    /// The link-layer address.
    pub address: Option<MacAddress>,
    /// The length of the transmit queue in packets.
    pub queue_length: Option<u32>,
    /// The most segments that a packet handed to the device may stand for; 1: none is larger than
    /// the MTU, as on a device without offloads.
    pub gso_max_segments: Option<u32>,
    /// IPv4's filter of the reverse path (RFC 3704): 0 off, 1 strict, 2 loose. As the file `rp_filter` has it,
    /// which a container sees read-only.
    pub reverse_path_filter: Option<u32>,
    /// IPv6 gives it no address of its own accord, not even a link-local one.
    pub no_ipv6_address: bool,
    /// The namespace to move it to.
    pub netns: Option<BorrowedFd<'a>>,
}

impl Netlink {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.dump(
            || Request::new(abi::RTM_GETLINK, 0, &fixed(0, 0, 0), "list links".into()),
            parse,
        )
    }

    /// The link of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let operation = format!("look up link {name:?}");
        check_name(name, &operation)?;
        let mut request = Request::new(abi::RTM_GETLINK, 0, &fixed(0, 0, 0), operation);
        request.string(abi::IFLA_IFNAME, name);
        let mut found = None;
        match self.get(request, &mut |message| {
            found = found.take().or_else(|| parse(message))
        }) {
            Ok(()) => Ok(found),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The index of the link of that name.
    pub fn link_index(&mut self, name: &str) -> Result<u32> {
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => Err(Error::NoLink { name: name.into() }),
        }
    }

    /// Creates a link.
    pub fn create_link(&mut self, new: &NewLink<'_>) -> Result<()> {
        let operation = format!("create link {:?}", new.name);
        check_name(new.name, &operation)?;
        if let LinkKind::Veth { peer, .. } = new.kind {
            check_name(peer, &operation)?;
        }
        let flags = abi::NLM_F_CREATE | abi::NLM_F_EXCL;
        let mut request = Request::new(abi::RTM_NEWLINK, flags, &fixed(0, 0, 0), operation);
        common(
            &mut request,
            Some(new.name),
            new.mtu,
            new.address,
            new.netns,
        );
        request.nested(abi::IFLA_LINKINFO, |info| match &new.kind {
            LinkKind::Bridge => {
                info.string(abi::IFLA_INFO_KIND, "bridge");
            }
            LinkKind::Dummy => {
                info.string(abi::IFLA_INFO_KIND, "dummy");
            }
            LinkKind::Veth { peer, peer_netns } => {
                info.string(abi::IFLA_INFO_KIND, "veth");
                info.nested(abi::IFLA_INFO_DATA, |data| {
                    data.nested(abi::VETH_INFO_PEER, |end| {
                        end.raw(&fixed(0, 0, 0));
                        common(end, Some(peer), new.mtu, None, *peer_netns);
                    });
                });
            }
            LinkKind::Vxlan(vxlan) => {
                info.string(abi::IFLA_INFO_KIND, "vxlan");
                info.nested(abi::IFLA_INFO_DATA, |data| write_vxlan(data, vxlan));
            }
            LinkKind::Geneve(geneve) => {
                info.string(abi::IFLA_INFO_KIND, "geneve");
                info.nested(abi::IFLA_INFO_DATA, |data| write_geneve(data, geneve));
            }
        });
        self.execute(request)
    }

    /// Creates a bridge.
    pub fn create_bridge(&mut self, name: &str) -> Result<()> {
        self.create_link(&simple(name, LinkKind::Bridge))
    }

    /// Creates a dummy.
    pub fn create_dummy(&mut self, name: &str) -> Result<()> {
        self.create_link(&simple(name, LinkKind::Dummy))
    }

    /// Creates a veth pair; the peer may be born in another namespace.
    pub fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_netns: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.create_link(&simple(name, LinkKind::Veth { peer, peer_netns }))
    }

    /// Creates a VXLAN link.
    pub fn create_vxlan(&mut self, name: &str, vxlan: Vxlan) -> Result<()> {
        self.create_link(&simple(name, LinkKind::Vxlan(vxlan)))
    }

    /// Changes a link.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<()> {
        let operation = format!("change link {index}");
        if let Some(name) = change.name {
            check_name(name, &operation)?;
        }
        let (flags, mask) = match change.up {
            Some(true) => (abi::IFF_UP, abi::IFF_UP),
            Some(false) => (0, abi::IFF_UP),
            None => (0, 0),
        };
        let mut request = Request::new(abi::RTM_NEWLINK, 0, &fixed(index, flags, mask), operation);
        common(
            &mut request,
            change.name,
            change.mtu,
            change.address,
            change.netns,
        );
        if let Some(master) = change.master {
            request.u32(abi::IFLA_MASTER, master);
        }
        if let Some(length) = change.queue_length {
            request.u32(abi::IFLA_TXQLEN, length);
        }
        if let Some(segments) = change.gso_max_segments {
            request.u32(abi::IFLA_GSO_MAX_SEGS, segments);
        }
        if let Some(filter) = change.reverse_path_filter {
            request.nested(abi::IFLA_AF_SPEC, |family| {
                family.nested(u16::from(abi::AF_INET), |inet| {
                    inet.nested(abi::IFLA_INET_CONF, |conf| {
                        conf.u32(abi::IPV4_DEVCONF_RP_FILTER, filter);
                    });
                });
            });
        }
        if change.no_ipv6_address {
            request.nested(abi::IFLA_AF_SPEC, |family| {
                family.nested(u16::from(abi::AF_INET6), |inet6| {
                    inet6.u8(abi::IFLA_INET6_ADDR_GEN_MODE, abi::IN6_ADDR_GEN_MODE_NONE);
                });
            });
        }
        self.execute(request)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        self.change_link(
            index,
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        )
    }

    /// Sets a link down.
    pub fn set_down(&mut self, index: u32) -> Result<()> {
        self.change_link(
            index,
            &LinkChange {
                up: Some(false),
                ..LinkChange::default()
            },
        )
    }

    /// Sets the MTU of a link in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.change_link(
            index,
            &LinkChange {
                mtu: Some(mtu),
                ..LinkChange::default()
            },
        )
    }

    /// Puts a link on a bridge, or takes it off with `None`.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<()> {
        let master = Some(master.unwrap_or(0));
        self.change_link(
            index,
            &LinkChange {
                master,
                ..LinkChange::default()
            },
        )
    }

    /// Moves a link to another namespace.
    pub fn set_netns(&mut self, index: u32, netns: BorrowedFd<'_>) -> Result<()> {
        self.change_link(
            index,
            &LinkChange {
                netns: Some(netns),
                ..LinkChange::default()
            },
        )
    }

    /// Renames a link; older kernels want it down.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<()> {
        self.change_link(
            index,
            &LinkChange {
                name: Some(name),
                ..LinkChange::default()
            },
        )
    }

    /// Deletes a link.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let operation = format!("delete link {index}");
        self.execute(Request::new(
            abi::RTM_DELLINK,
            0,
            &fixed(index, 0, 0),
            operation,
        ))
    }
}

fn simple<'a>(name: &'a str, kind: LinkKind<'a>) -> NewLink<'a> {
    NewLink {
        name,
        kind,
        mtu: None,
        address: None,
        netns: None,
    }
}

fn common(
    request: &mut Request,
    name: Option<&str>,
    mtu: Option<u32>,
    address: Option<MacAddress>,
    netns: Option<BorrowedFd<'_>>,
) {
    if let Some(name) = name {
        request.string(abi::IFLA_IFNAME, name);
    }
    if let Some(mtu) = mtu {
        request.u32(abi::IFLA_MTU, mtu);
    }
    if let Some(address) = address {
        request.attr(abi::IFLA_ADDRESS, &address.0);
    }
    if let Some(netns) = netns {
        request.attr(abi::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
    }
}

fn write_vxlan(data: &mut Request, vxlan: &Vxlan) {
    data.u32(abi::IFLA_VXLAN_ID, vxlan.id);
    data.attr(abi::IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
    match vxlan.local {
        Some(IpAddr::V4(local)) => {
            data.attr(abi::IFLA_VXLAN_LOCAL, &local.octets());
        }
        Some(IpAddr::V6(local)) => {
            data.attr(abi::IFLA_VXLAN_LOCAL6, &local.octets());
        }
        None => {}
    }
    if let Some(device) = vxlan.device {
        data.u32(abi::IFLA_VXLAN_LINK, device);
    }
    data.u8(abi::IFLA_VXLAN_LEARNING, u8::from(vxlan.learning));
}

fn write_geneve(data: &mut Request, geneve: &Geneve) {
    data.u32(abi::IFLA_GENEVE_ID, geneve.id);
    data.attr(abi::IFLA_GENEVE_PORT, &geneve.port.to_be_bytes());
    match geneve.remote {
        IpAddr::V4(remote) => data.attr(abi::IFLA_GENEVE_REMOTE, &remote.octets()),
        IpAddr::V6(remote) => data.attr(abi::IFLA_GENEVE_REMOTE6, &remote.octets()),
    };
}

/// struct ifinfomsg.
fn fixed(index: u32, flags: u32, mask: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&mask.to_ne_bytes());
    bytes
}

fn parse(message: &Message<'_>) -> Option<Link> {
    if message.kind != abi::RTM_NEWLINK {
        return None;
    }
    let mut link = Link {
        index: read_u32(message.body, 4)?,
        name: String::new(),
        kind: String::new(),
        mtu: 0,
        up: read_u32(message.body, 8)? & abi::IFF_UP != 0,
        master: None,
        address: None,
    };
    for (kind, value) in attributes(message.body, FIXED) {
        match kind {
            abi::IFLA_IFNAME => link.name = read_string(value),
            abi::IFLA_MTU => link.mtu = read_u32(value, 0)?,
            abi::IFLA_MASTER => link.master = read_u32(value, 0),
            abi::IFLA_ADDRESS => link.address = value.try_into().ok().map(MacAddress),
            abi::IFLA_LINKINFO => {
                if let Some((_, name)) = Attributes(value).find(|(k, _)| *k == abi::IFLA_INFO_KIND)
                {
                    link.kind = read_string(name);
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn check_name(name: &str, operation: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > 15
        || name
            .bytes()
            .any(|b| b == 0 || b == b'/' || b.is_ascii_whitespace());
    if bad {
        return Err(Error::Invalid {
            operation: operation.into(),
            what: "a link name has 1 to 15 bytes and no space, slash or zero",
        });
    }
    Ok(())
}
