//! Neighbours (ARP and ND entries) and bridge forwarding entries.

use std::fmt;
use std::net::IpAddr;

use crate::abi;
use crate::message::{Message, Request, attributes, read_ip, read_u16, read_u32};
use crate::{Family, Netlink, Result};

const FIXED: usize = 12;

/// A link-layer address of 6 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address that stands for "everything unknown" in a VXLAN's forwarding table.
    pub const ZERO: MacAddress = MacAddress([0; 6]);
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A neighbour: which link-layer address an IP address has on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The index of the link.
    pub link: u32,
    /// The IP address.
    pub address: IpAddr,
    /// The link-layer address, where it is known.
    pub mac: Option<MacAddress>,
    /// It never expires.
    pub permanent: bool,
}

/// A forwarding entry of a VXLAN link: frames to `mac` go to the tunnel end `remote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The index of the VXLAN link.
    pub link: u32,
    /// The link-layer address; [`MacAddress::ZERO`] is for flooding, one entry per remote.
    pub mac: MacAddress,
    /// The address of the tunnel's other end.
    pub remote: IpAddr,
}

impl Netlink {
    /// Sets a permanent neighbour.
    pub fn set_neighbour(&mut self, link: u32, address: IpAddr, mac: MacAddress) -> Result<()> {
        let flags = abi::NLM_F_CREATE | abi::NLM_F_REPLACE;
        let fixed = fixed(Family::of(&address).raw(), link, abi::NUD_PERMANENT, 0);
        let operation = format!("set neighbour {address} on link {link}");
        let mut request = Request::new(abi::RTM_NEWNEIGH, flags, &fixed, operation);
        request.ip(abi::NDA_DST, address);
        request.attr(abi::NDA_LLADDR, &mac.0);
        self.execute(request)
    }

    /// Deletes a neighbour.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<()> {
        let fixed = fixed(Family::of(&address).raw(), link, 0, 0);
        let operation = format!("delete neighbour {address} on link {link}");
        let mut request = Request::new(abi::RTM_DELNEIGH, 0, &fixed, operation);
        request.ip(abi::NDA_DST, address);
        self.execute(request)
    }

    /// All neighbours of both families.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            found.extend(self.dump(
                || {
                    let fixed = fixed(family.raw(), 0, 0, 0);
                    Request::new(abi::RTM_GETNEIGH, 0, &fixed, "list neighbours".into())
                },
                parse_neighbour,
            )?);
        }
        Ok(found)
    }

    /// Adds a permanent forwarding entry to a VXLAN link. Entries for [`MacAddress::ZERO`] add up:
    /// unknown frames are flooded to each remote. An entry that is there already is left.
    pub fn add_fdb(&mut self, entry: FdbEntry) -> Result<()> {
        let flags = abi::NLM_F_CREATE
            | if entry.mac == MacAddress::ZERO {
                abi::NLM_F_APPEND
            } else {
                abi::NLM_F_REPLACE
            };
        let operation = format!(
            "add forwarding of {} to {} on link {}",
            entry.mac, entry.remote, entry.link
        );
        self.execute(fdb_request(abi::RTM_NEWNEIGH, flags, entry, operation))
    }

    /// Deletes a forwarding entry of a VXLAN link.
    pub fn delete_fdb(&mut self, entry: FdbEntry) -> Result<()> {
        let operation = format!(
            "delete forwarding of {} to {} on link {}",
            entry.mac, entry.remote, entry.link
        );
        self.execute(fdb_request(abi::RTM_DELNEIGH, 0, entry, operation))
    }

    /// The forwarding entries of all VXLAN links that name a remote.
    pub fn fdb(&mut self) -> Result<Vec<FdbEntry>> {
        self.dump(
            || {
                let fixed = fixed(abi::AF_BRIDGE, 0, 0, 0);
                Request::new(
                    abi::RTM_GETNEIGH,
                    0,
                    &fixed,
                    "list forwarding entries".into(),
                )
            },
            parse_fdb,
        )
    }
}

fn fdb_request(kind: u16, flags: u16, entry: FdbEntry, operation: String) -> Request {
    let fixed = fixed(
        abi::AF_BRIDGE,
        entry.link,
        abi::NUD_PERMANENT,
        abi::NTF_SELF,
    );
    let mut request = Request::new(kind, flags, &fixed, operation);
    request.ip(abi::NDA_DST, entry.remote);
    request.attr(abi::NDA_LLADDR, &entry.mac.0);
    request
}

/// struct ndmsg.
fn fixed(family: u8, link: u32, state: u16, flags: u8) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&link.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn parse(message: &Message<'_>) -> Option<(u32, u16, Option<IpAddr>, Option<MacAddress>)> {
    if message.kind != abi::RTM_NEWNEIGH {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes(message.body, FIXED) {
        match kind {
            abi::NDA_DST => address = read_ip(value),
            abi::NDA_LLADDR => mac = value.try_into().ok().map(MacAddress),
            _ => {}
        }
    }
    Some((
        read_u32(message.body, 4)?,
        read_u16(message.body, 8)?,
        address,
        mac,
    ))
}

fn parse_neighbour(message: &Message<'_>) -> Option<Neighbour> {
    let (link, state, address, mac) = parse(message)?;
    let permanent = state & abi::NUD_PERMANENT != 0;
    Some(Neighbour {
        link,
        address: address?,
        mac,
        permanent,
    })
}

fn parse_fdb(message: &Message<'_>) -> Option<FdbEntry> {
    let (link, _, remote, mac) = parse(message)?;
    Some(FdbEntry {
        link,
        mac: mac?,
        remote: remote?,
    })
}
