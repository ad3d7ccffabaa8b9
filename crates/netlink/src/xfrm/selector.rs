//! Directions, selectors and modes, and how the kernel writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::abi;
use crate::Family;
use crate::message::read_u16;

/// Which way packets go that a policy or an SA is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XfrmDirection {
    /// For this host.
    In,
    /// From or through this host, outwards.
    Out,
    /// Through this host, after they were opened. Policies only.
    Forward,
}

/// A port as a selector compares it: equal to `value` in the bits of `mask`; mask 0 is any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// The port.
    pub value: u16,
    /// The bits that count.
    pub mask: u16,
}

impl PortMatch {
    /// Any port.
    pub const ANY: PortMatch = PortMatch { value: 0, mask: 0 };

    /// This port and no other.
    pub fn exactly(port: u16) -> PortMatch {
        PortMatch {
            value: port,
            mask: u16::MAX,
        }
    }
}

/// Which packets a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmSelector {
    /// Source addresses; of the same family as `destination`.
    pub source: IpNet,
    /// Destination addresses.
    pub destination: IpNet,
    /// The IP protocol; 0 is any.
    pub protocol: u8,
    /// Source port.
    pub source_port: PortMatch,
    /// Destination port.
    pub destination_port: PortMatch,
}

impl XfrmSelector {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(&self.destination.addr())
    }
}

/// As `ip xfrm` writes it.
impl fmt::Display for XfrmSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src {} dst {}", self.source, self.destination)?;
        if self.protocol != 0 {
            write!(f, " proto {}", self.protocol)?;
        }
        for (name, port) in [
            ("sport", self.source_port),
            ("dport", self.destination_port),
        ] {
            match port.mask {
                0 => {}
                u16::MAX => write!(f, " {name} {}", port.value)?,
                mask => write!(f, " {name} {}/{mask:#06x}", port.value)?,
            }
        }
        Ok(())
    }
}

/// Transport or tunnel, of SAs and templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XfrmMode {
    /// 0.
    Transport,
    /// 1.
    Tunnel,
    /// Another, by its number; only read, never written.
    Other(u8),
}

impl XfrmDirection {
    /// As policies number it.
    pub(super) fn raw(self) -> u8 {
        match self {
            XfrmDirection::In => abi::POLICY_IN,
            XfrmDirection::Out => abi::POLICY_OUT,
            XfrmDirection::Forward => abi::POLICY_FWD,
        }
    }

    pub(super) fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            abi::POLICY_IN => Some(XfrmDirection::In),
            abi::POLICY_OUT => Some(XfrmDirection::Out),
            abi::POLICY_FWD => Some(XfrmDirection::Forward),
            // Policies of single sockets have others.
            _ => None,
        }
    }
}

impl XfrmMode {
    pub(super) fn raw(self) -> u8 {
        match self {
            XfrmMode::Transport => abi::MODE_TRANSPORT,
            XfrmMode::Tunnel => abi::MODE_TUNNEL,
            XfrmMode::Other(raw) => raw,
        }
    }

    pub(super) fn from_raw(raw: u8) -> Self {
        match raw {
            abi::MODE_TRANSPORT => XfrmMode::Transport,
            abi::MODE_TUNNEL => XfrmMode::Tunnel,
            other => XfrmMode::Other(other),
        }
    }
}

/// Writes an address as `xfrm_address_t`, 16 bytes.
pub(super) fn put_address(out: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(a) => out[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => out[..16].copy_from_slice(&a.octets()),
    }
}

/// Reads an `xfrm_address_t` of a family.
pub(super) fn address(bytes: &[u8], at: usize, family: Family) -> Option<IpAddr> {
    let bytes: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(match family {
        Family::V4 => Ipv4Addr::from([bytes[0], bytes[1], bytes[2], bytes[3]]).into(),
        Family::V6 => Ipv6Addr::from(bytes).into(),
    })
}

/// Reads a family from 16 bits.
pub(super) fn family(bytes: &[u8], at: usize) -> Option<Family> {
    Family::from_raw(u8::try_from(read_u16(bytes, at)?).ok()?)
}

/// A port in network order.
pub(super) fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl XfrmSelector {
    /// As `xfrm_selector`.
    pub(super) fn encode(&self) -> [u8; abi::SELECTOR_LEN] {
        let mut out = [0; abi::SELECTOR_LEN];
        put_address(&mut out, self.destination.addr());
        put_address(&mut out[16..], self.source.addr());
        for (at, value) in [
            (32, self.destination_port.value),
            (34, self.destination_port.mask),
            (36, self.source_port.value),
            (38, self.source_port.mask),
        ] {
            out[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        out[40..42].copy_from_slice(&u16::from(self.family().raw()).to_ne_bytes());
        out[42] = self.destination.prefix_len();
        out[43] = self.source.prefix_len();
        out[44] = self.protocol;
        out
    }

    /// `None` where it says what the type cannot: no family, an interface, a user.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let beside = bytes.get(48..abi::SELECTOR_LEN)?;
        (beside == [0; 8]).then(|| Self::parse_packet(bytes))?
    }

    /// A packet's, which may name the interface that it leaves by; that is left out.
    pub(super) fn parse_packet(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..abi::SELECTOR_LEN)?;
        let family = family(bytes, 40)?;
        Some(Self {
            destination: IpNet::new(address(bytes, 0, family)?, bytes[42]).ok()?,
            source: IpNet::new(address(bytes, 16, family)?, bytes[43]).ok()?,
            protocol: bytes[44],
            destination_port: PortMatch {
                value: port(bytes, 32)?,
                mask: port(bytes, 34)?,
            },
            source_port: PortMatch {
                value: port(bytes, 36)?,
                mask: port(bytes, 38)?,
            },
        })
    }
}
