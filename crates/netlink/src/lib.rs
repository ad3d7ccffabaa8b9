//! A small synchronous netlink client: links, addresses, routes, rules, neighbours (rtnetlink), and
//! the kernel's IPsec ([`Xfrm`]).
//!
//! It speaks to the kernel over one blocking `AF_NETLINK` socket: a request goes out, its answer
//! is read to the end, errors carry the kernel's own explanation (extended acknowledgement). There
//! is no runtime, no thread and no cache in it. A socket belongs to the network namespace it was
//! opened in for life, so one process can hold sockets of several namespaces:
//! [`Netlink::open_in`].
//!
//! The only unsafe code is two `setsockopt`, one `getsockopt` and one `setns`.

mod abi;
mod address;
mod counters;
mod error;
mod link;
mod message;
mod neighbour;
mod nft;
mod option;
mod route;
mod rule;
mod socket;
mod transport;
mod xfrm;

pub use address::Address;
pub use counters::counted_packets;
pub use error::{Error, Result};
pub use link::{Geneve, Link, LinkChange, LinkKind, NewLink, Vxlan};
pub use neighbour::{FdbEntry, MacAddress, Neighbour};
pub use nft::{Nft, NftError};
pub use option::{Peer, peer, set_socket_option};
pub use route::{Route, RouteFilter, RouteKind};
pub use rule::{Rule, RuleAction};
pub use socket::{Netlink, enter_netns, open_netns, run_in_netns};
pub use xfrm::{
    PortMatch, Xfrm, XfrmAction, XfrmAlgorithm, XfrmDirection, XfrmEncapsulation, XfrmEvent,
    XfrmHeard, XfrmKey, XfrmLimits, XfrmListedSa, XfrmMode, XfrmMonitor, XfrmNotice, XfrmPolicy,
    XfrmPolicyKey, XfrmReplay, XfrmSa, XfrmSaId, XfrmSaName, XfrmSaUse, XfrmSelector, XfrmTemplate,
    bypass_policies,
};

/// An address family of routes, rules and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order in which Testudo handles them.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: &std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(_) => Family::V4,
            std::net::IpAddr::V6(_) => Family::V6,
        }
    }

    pub(crate) fn raw(self) -> u8 {
        match self {
            Family::V4 => abi::AF_INET,
            Family::V6 => abi::AF_INET6,
        }
    }

    pub(crate) fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            abi::AF_INET => Some(Family::V4),
            abi::AF_INET6 => Some(Family::V6),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
