//! "Too big" messages, which tell a sender the MTU of a tunnel.

use core::net::IpAddr;

use super::build::OuterHeader;
use super::checksum::{Checksum, pseudo_header};
use super::header::IpHeader;
use super::{IPV6_LEN, protocol};

/// Bytes of the largest message that [`too_big`] makes.
pub const MAX_ICMP_LEN: usize = 1280;
/// Bytes of the largest ICMPv4 error (RFC 1812, 4.3.2.3).
const MAX_ICMPV4_LEN: usize = 576;
const ICMP_LEN: usize = 8;

/// The ICMP message that `packet` is larger than `mtu` bytes: "fragmentation needed" (RFC 1191) or
/// "packet too big" (RFC 4443, 3.2), from `from` to the packet's source. None when no such message
/// may be sent: the packet is a later fragment, an ICMP error, an IPv4 packet that may be
/// fragmented, from an address that is not one host's, or `from` is of the other family.
pub fn too_big(packet: &[u8], header: &IpHeader, mtu: u16, from: IpAddr) -> Option<Vec<u8>> {
    let is_v4 = header.is_v4();
    if is_v4 != from.is_ipv4()
        || !header.dont_fragment
        || header.fragment.is_some_and(|f| f.offset != 0)
        || header.source.is_unspecified()
        || header.source.is_multicast()
        || is_icmp_error(packet, header)
    {
        return None;
    }
    let (kind, code, most, number) = if is_v4 {
        (3, 4, MAX_ICMPV4_LEN, protocol::ICMP)
    } else {
        (2, 0, MAX_ICMP_LEN, protocol::ICMPV6)
    };
    let outer = OuterHeader {
        dont_fragment: false,
        ..OuterHeader::new(from, header.source, number)
    };
    let quoted = packet.get(..header.total_len.min(most - outer.len() - ICMP_LEN))?;
    let mut out = vec![0; outer.len()];
    outer.write(&mut out, ICMP_LEN + quoted.len()).ok()?;
    let at = out.len();
    out.extend([kind, code, 0, 0, 0, 0]);
    out.extend(mtu.to_be_bytes());
    out.extend(quoted);
    let mut sum = match from {
        IpAddr::V4(_) => Checksum::new(),
        IpAddr::V6(_) => pseudo_header(from, header.source, number, out.len() - IPV6_LEN),
    };
    sum.add(&out[at..]);
    out[at + 2..at + 4].copy_from_slice(&sum.finish().to_be_bytes());
    Some(out)
}

/// No ICMP error is ever sent about one (RFC 1122, 3.2.2; RFC 4443, 2.4).
fn is_icmp_error(packet: &[u8], header: &IpHeader) -> bool {
    let Some(&kind) = packet.get(header.payload()).and_then(<[u8]>::first) else {
        return false;
    };
    match header.protocol {
        protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        protocol::ICMPV6 => kind < 128,
        _ => false,
    }
}
