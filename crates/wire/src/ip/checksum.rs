//! The Internet checksum (RFC 1071).

use core::net::IpAddr;

use super::header::IpHeader;
use super::protocol;

/// A one's complement sum in the making.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum {
    /// Sum of 32-bit words; below 2^48 for any packet, so it never overflows.
    sum: u64,
}

impl Checksum {
    /// A sum of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes; an odd last one counts as a high byte. All but the last call must give an
    /// even number of bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        self.sum += words
            .iter()
            .map(|w| u64::from(u32::from_be_bytes(*w)))
            .sum::<u64>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.sum += u64::from(u32::from_be_bytes(last));
    }

    /// Adds one 16-bit word.
    pub fn add_u16(&mut self, word: u16) {
        self.sum += u64::from(word);
    }

    /// The sum, folded to 16 bits and not inverted: what stands in the checksum field of a packet
    /// that leaves the rest to the network card (a partial checksum).
    pub fn partial(self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum: the sum, inverted.
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

/// The sum of the pseudo header of TCP and UDP over `length` bytes of header and data (RFC 9293,
/// 3.1; RFC 8200, 8.1). Its [`Checksum::partial`] is what an offloaded segment begins with.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Checksum {
    let mut sum = Checksum::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(a) => sum.add(&a.octets()),
            IpAddr::V6(a) => sum.add(&a.octets()),
        }
    }
    sum.add_u16(protocol.into());
    sum.add(&(length as u32).to_be_bytes());
    sum
}

/// The checksum after one 16-bit word of what it covers changed (RFC 1624, equation 3).
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = Checksum::new();
    sum.add_u16(!checksum);
    sum.add_u16(!old);
    sum.add_u16(new);
    sum.finish()
}

/// Completes a partial checksum, as a packet with VIRTIO_NET_HDR_F_NEEDS_CSUM asks: sums from
/// `start` to the end, writes at `start + offset`. False when the place lies outside.
#[must_use]
pub fn complete_partial(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = packet.get(start..) else {
        return false;
    };
    if offset.checked_add(2).is_none_or(|end| end > covered.len()) {
        return false;
    }
    let mut sum = Checksum::new();
    sum.add(covered);
    let value = match sum.finish() {
        // UDP has no checksum of 0, and to TCP 0 and 0xffff are the same.
        0 => 0xffff,
        value => value,
    };
    packet[start + offset..start + offset + 2].copy_from_slice(&value.to_be_bytes());
    true
}

/// Offset of the checksum in the transport header, and the least bytes of that header.
fn field(protocol: u8) -> Option<(usize, usize)> {
    match protocol {
        protocol::TCP => Some((16, 20)),
        protocol::UDP => Some((6, 8)),
        protocol::ICMPV6 => Some((2, 4)),
        _ => None,
    }
}

/// Computes and writes the checksum of TCP, UDP or ICMPv6 in a whole packet, as a receiver of
/// transport mode behind a NAT must (RFC 3948, 3.1.2). False when there is none to write: another
/// protocol, a fragment, a short payload, or UDP over IPv4 that has no checksum.
pub fn write_transport(packet: &mut [u8], header: &IpHeader) -> bool {
    let Some((at, least)) = field(header.protocol) else {
        return false;
    };
    if header.fragment.is_some() || header.payload().len() < least {
        return false;
    }
    let Some(payload) = packet.get_mut(header.payload()) else {
        return false;
    };
    if header.protocol == protocol::UDP && header.is_v4() && payload[6..8] == [0, 0] {
        return false;
    }
    payload[at..at + 2].fill(0);
    let mut sum = pseudo_header(
        header.source,
        header.destination,
        header.protocol,
        payload.len(),
    );
    sum.add(payload);
    let value = match sum.finish() {
        0 if header.protocol == protocol::UDP => 0xffff,
        value => value,
    };
    payload[at..at + 2].copy_from_slice(&value.to_be_bytes());
    true
}

/// The checksum of TCP, UDP or ICMPv6 in a whole packet is right. Other protocols, fragments and
/// UDP over IPv4 without a checksum count as right.
pub fn transport_is_valid(packet: &[u8], header: &IpHeader) -> bool {
    let Some((_, least)) = field(header.protocol) else {
        return true;
    };
    if header.fragment.is_some() {
        return true;
    }
    let Some(payload) = packet.get(header.payload()).filter(|p| p.len() >= least) else {
        return false;
    };
    if header.protocol == protocol::UDP && header.is_v4() && payload[6..8] == [0, 0] {
        return true;
    }
    let mut sum = pseudo_header(
        header.source,
        header.destination,
        header.protocol,
        payload.len(),
    );
    sum.add(payload);
    sum.finish() == 0
}
