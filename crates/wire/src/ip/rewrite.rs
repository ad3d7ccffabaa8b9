//! Changing headers in place: transport mode, forwarding, MSS.

use super::checksum::{Checksum, update};
use super::header::IpHeader;
use super::{IPV6_LEN, protocol};
use crate::error::{Problem, WireError};

/// Gives a packet's header another payload: its protocol and length, and with them the IPv4
/// checksum. `bytes` begins with the IP header; only the header is touched, so that it may have
/// been moved to make room first. `header` is what was parsed before; it is brought up to date.
///
/// Transport mode is this: the header stays, ESP (50) or UDP (17) becomes its payload; and back.
/// Padding behind the packet is not moved.
pub fn set_payload(
    bytes: &mut [u8],
    header: &mut IpHeader,
    protocol: u8,
    payload_len: usize,
) -> Result<(), WireError> {
    let have = bytes.len();
    let Some(head) = bytes.get_mut(..header.header_len) else {
        return Err(WireError::truncated(
            "IP header",
            0,
            header.header_len,
            have,
        ));
    };
    let total = header.header_len.saturating_add(payload_len);
    let counted = if header.is_v4() {
        total
    } else {
        total - IPV6_LEN
    };
    let field = u16::try_from(counted).map_err(|_| {
        WireError::new(
            "IP length",
            0,
            Problem::BadLength {
                said: counted,
                min: 0,
                max: usize::from(u16::MAX),
            },
        )
    })?;
    head[header.protocol_at] = protocol;
    if header.is_v4() {
        head[2..4].copy_from_slice(&field.to_be_bytes());
        head[10..12].fill(0);
        let mut sum = Checksum::new();
        sum.add(head);
        let value = sum.finish();
        head[10..12].copy_from_slice(&value.to_be_bytes());
    } else {
        head[4..6].copy_from_slice(&field.to_be_bytes());
    }
    header.protocol = protocol;
    header.total_len = total;
    Ok(())
}

/// Takes one off the TTL or hop limit. False when the packet has reached its end and must be
/// dropped.
#[must_use]
pub fn decrement_hop_limit(packet: &mut [u8], header: &mut IpHeader) -> bool {
    if header.hop_limit <= 1 || packet.len() < header.header_len {
        return false;
    }
    header.hop_limit -= 1;
    if header.is_v4() {
        let old = u16::from_be_bytes([packet[8], packet[9]]);
        packet[8] = header.hop_limit;
        let new = u16::from_be_bytes([packet[8], packet[9]]);
        let sum = update(u16::from_be_bytes([packet[10], packet[11]]), old, new);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[7] = header.hop_limit;
    }
    true
}

const TCP_SYN: u8 = 0x02;
const TCP_LEN: usize = 20;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the MSS option of a TCP SYN so that segments fit packets of `mtu` bytes. True when it
/// was lowered; it is never raised or added.
pub fn clamp_mss(packet: &mut [u8], header: &IpHeader, mtu: usize) -> bool {
    if header.protocol != protocol::TCP || header.fragment.is_some() {
        return false;
    }
    let fixed = if header.is_v4() {
        super::IPV4_LEN
    } else {
        IPV6_LEN
    };
    let most = u16::try_from(mtu.saturating_sub(fixed + TCP_LEN)).unwrap_or(u16::MAX);
    let Some(tcp) = packet.get_mut(header.payload()) else {
        return false;
    };
    if tcp.len() < TCP_LEN || tcp[13] & TCP_SYN == 0 {
        return false;
    }
    let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let mut at = TCP_LEN;
    while at < end {
        match tcp[at] {
            OPTION_END => return false,
            OPTION_NOP => at += 1,
            kind => {
                let Some(&length) = tcp[..end].get(at + 1) else {
                    return false;
                };
                let length = usize::from(length);
                if length < 2 || at + length > end {
                    return false;
                }
                if kind == OPTION_MSS && length == 4 {
                    return lower_mss(tcp, at + 2, most);
                }
                at += length;
            }
        }
    }
    false
}

fn lower_mss(tcp: &mut [u8], at: usize, most: u16) -> bool {
    let old = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    if old <= most {
        return false;
    }
    tcp[at..at + 2].copy_from_slice(&most.to_be_bytes());
    // An option may begin on an odd byte; its bytes then count swapped (RFC 1071, 2).
    let (old, new) = if at.is_multiple_of(2) {
        (old, most)
    } else {
        (old.swap_bytes(), most.swap_bytes())
    };
    let sum = update(u16::from_be_bytes([tcp[16], tcp[17]]), old, new);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    true
}
