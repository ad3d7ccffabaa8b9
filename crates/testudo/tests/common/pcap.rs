//! Reads what tcpdump wrote: UDP datagrams and ESP packets of an Ethernet capture.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// A packet's IP addresses, protocol and payload.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// 17 is UDP, 50 is ESP.
    pub(crate) protocol: u8,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    /// Source port, destination port and data, where it is UDP.
    pub(crate) fn udp(&self) -> Option<(u16, u16, &[u8])> {
        let (header, data) = self.payload.split_first_chunk::<8>()?;
        if self.protocol != 17 {
            return None;
        }
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let length = usize::from(port(4)).checked_sub(8)?;
        Some((port(0), port(2), data.get(..length)?))
    }
}

/// All IPv4 and IPv6 packets of a capture of an Ethernet link.
pub(crate) fn read(file: &Path) -> Vec<Packet> {
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let word = |at: usize| {
        let four: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_ne_bytes(four)
    };
    assert!(bytes.len() >= 24, "{}: no pcap header", file.display());
    assert_eq!(word(0), 0xa1b2_c3d4, "{}: not a pcap file", file.display());
    assert_eq!(word(20), 1, "{}: not an Ethernet link", file.display());
    let mut packets = Vec::new();
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let length = word(at + 8) as usize;
        let Some(frame) = bytes.get(at + 16..at + 16 + length) else {
            break;
        };
        packets.extend(packet(frame));
        at += 16 + length;
    }
    packets
}

fn packet(frame: &[u8]) -> Option<Packet> {
    let ip = frame.get(14..)?;
    match (frame[12], frame[13]) {
        (0x08, 0x00) => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
            let address = |at: usize| -> Option<IpAddr> {
                let four: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(four).into())
            };
            Some(Packet {
                from: address(12)?,
                to: address(16)?,
                protocol: *ip.get(9)?,
                payload: ip.get(header..total)?.to_vec(),
            })
        }
        (0x86, 0xdd) => {
            let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
            let address = |at: usize| -> Option<IpAddr> {
                let sixteen: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(sixteen).into())
            };
            Some(Packet {
                from: address(8)?,
                to: address(24)?,
                protocol: *ip.get(6)?,
                payload: ip.get(40..40 + length)?.to_vec(),
            })
        }
        _ => None,
    }
}
