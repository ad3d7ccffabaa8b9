//! IP headers as far as a datapath needs them: reading, writing, rewriting, checksums.

mod build;
mod checksum;
mod ecn;
mod header;
mod icmp;
mod rewrite;
#[cfg(test)]
mod tests;

pub use build::OuterHeader;
pub use checksum::{
    Checksum, complete_partial, pseudo_header, transport_is_valid, update, write_transport,
};
pub use ecn::{decapsulate_ecn, set_traffic_class};
pub use header::{Fragment, IpHeader, MAX_EXTENSION_HEADERS, Ports};
pub use icmp::{MAX_ICMP_LEN, too_big};
pub use rewrite::{clamp_mss, decrement_hop_limit, set_payload};

/// Numbers of IP protocols.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP: the payload of a tunnel.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP: the payload of a tunnel.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ESP.
    pub const ESP: u8 = 50;
    /// AH.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const IPV6_LEN: usize = 40;
