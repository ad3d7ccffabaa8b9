//! XFRM, the kernel's IPsec: policies and SAs as values.
//!
//! Numbers and their meanings are those of `linux/xfrm.h`. A policy says which packets want which
//! transformation (RFC 4301 4.4.1, the SPD), a state is an SA (4.4.2, the SAD); a policy's template
//! finds its SA by addresses, protocol, mode, `reqid` and, where one is given, the SPI.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Family;

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

/// Which SA a policy's packets want. Always ESP when written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmTemplate {
    /// The SA's source; unspecified is any.
    pub source: IpAddr,
    /// The SA's destination; unspecified is any.
    pub destination: IpAddr,
    /// The SA's SPI; 0 is any.
    pub spi: u32,
    /// The SA's mode.
    pub mode: XfrmMode,
    /// The SA's request ID; 0 is any.
    pub reqid: u32,
    /// Inbound: packets that came in clear are accepted as well (`level use`).
    pub optional: bool,
}

/// What becomes of packets that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XfrmAction {
    /// They pass as the templates say; without templates as they are.
    Allow,
    /// They are dropped.
    Block,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmPolicy {
    /// Which way.
    pub direction: XfrmDirection,
    /// Which packets.
    pub selector: XfrmSelector,
    /// What becomes of them.
    pub action: XfrmAction,
    /// Its place: of several that match the one with the lowest number holds.
    pub priority: u32,
    /// The packet mark it wants, and the mask it is compared under; 0/0 is any.
    pub mark: (u32, u32),
    /// The XFRM interface; 0 is none.
    pub if_id: u32,
    /// The transformations, in order; Testudo writes one or none.
    pub templates: Vec<XfrmTemplate>,
}

impl XfrmPolicy {
    /// What makes it the same policy to the kernel: two of the same key cannot stand together.
    pub fn key(&self) -> XfrmPolicyKey {
        XfrmPolicyKey {
            direction: self.direction,
            selector: self.selector,
            mark: self.mark,
            if_id: self.if_id,
        }
    }
}

/// Names a policy in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmPolicyKey {
    /// Which way.
    pub direction: XfrmDirection,
    /// Which packets.
    pub selector: XfrmSelector,
    /// Mark and mask.
    pub mark: (u32, u32),
    /// The XFRM interface.
    pub if_id: u32,
}
