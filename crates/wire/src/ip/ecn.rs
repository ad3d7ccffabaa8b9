//! DSCP and ECN of tunnels (RFC 6040).

use super::checksum::update;
use super::header::IpHeader;

const MASK: u8 = 3;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The traffic class of the inner packet after the outer one arrived with its own (RFC 6040, 4.2).
/// None when the packet must be dropped: congestion was marked and the inner packet does not
/// speak ECN.
pub fn decapsulate_ecn(inner: u8, outer: u8) -> Option<u8> {
    let ecn = match (inner & MASK, outer & MASK) {
        (0, CE) => return None,
        (0, _) => 0,
        (CE, _) | (_, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (same, _) => same,
    };
    Some((inner & !MASK) | ecn)
}

/// Writes DSCP and ECN into a packet, the IPv4 checksum with it.
pub fn set_traffic_class(packet: &mut [u8], header: &mut IpHeader, traffic_class: u8) {
    if header.traffic_class == traffic_class || packet.len() < header.header_len {
        return;
    }
    if header.is_v4() {
        let old = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] = traffic_class;
        let new = u16::from_be_bytes([packet[0], packet[1]]);
        let sum = update(u16::from_be_bytes([packet[10], packet[11]]), old, new);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[0] = (packet[0] & 0xf0) | (traffic_class >> 4);
        packet[1] = (packet[1] & 0x0f) | (traffic_class << 4);
    }
    header.traffic_class = traffic_class;
}
