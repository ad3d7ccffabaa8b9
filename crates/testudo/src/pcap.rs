//! Reads a capture as `tcpdump -w -` writes it, and tells packets apart.

use std::io::Read;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use testudo_wire::ip::{IpHeader, protocol};
use testudo_wire::udp::{self, Encapsulated};

/// Bytes of a packet that are kept; more is no use for telling kinds apart.
const MAX_PACKET: usize = 256 * 1024;

/// What a packet on the wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PacketKind {
    /// ESP on IP, or in UDP 4500.
    Esp,
    /// IKE on UDP 500 or 4500.
    Ike,
    /// A NAT keepalive.
    Keepalive,
    /// The overlay's packets, readable by anyone.
    ClearOverlay,
    /// Pods' own packets, routed, readable by anyone.
    ClearPod,
    /// Everything else that the filter let through.
    Other,
}

/// What would be protected, to know it in clear.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protected {
    /// UDP ports of the overlay.
    pub(crate) overlay_ports: Vec<u16>,
    /// Prefixes of pods, where they are routed.
    pub(crate) pods: Vec<IpNet>,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) kind: PacketKind,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The SPI of ESP.
    pub(crate) spi: Option<u32>,
    /// ESP in UDP.
    pub(crate) in_udp: bool,
    /// Bytes on the wire, link header included.
    pub(crate) length: u32,
}

/// A stream of packets in pcap format.
pub(crate) struct Reader<R> {
    input: R,
    swapped: bool,
    link_type: u32,
    buffer: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the file's header.
    pub(crate) fn new(mut input: R) -> anyhow::Result<Self> {
        let mut header = [0; 24];
        input.read_exact(&mut header)?;
        let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let swapped = match magic {
            0xa1b2_c3d4 | 0xa1b2_3c4d => false,
            0xd4c3_b2a1 | 0x4d3c_b2a1 => true,
            _ => anyhow::bail!("this is no pcap stream"),
        };
        let mut reader = Self {
            input,
            swapped,
            link_type: 0,
            buffer: Vec::new(),
        };
        reader.link_type = reader.word(&header[20..24]) & 0xffff;
        Ok(reader)
    }

    /// The next packet with IP in it; `None` at the end. A cut last packet is the end too.
    pub(crate) fn next(&mut self, protected: &Protected) -> Option<Packet> {
        loop {
            let mut header = [0; 16];
            self.input.read_exact(&mut header).ok()?;
            let captured = self.word(&header[8..12]) as usize;
            let length = self.word(&header[12..16]);
            if captured > MAX_PACKET {
                return None;
            }
            self.buffer.resize(captured, 0);
            self.input.read_exact(&mut self.buffer).ok()?;
            // tcpdump may have cut it; zeros in its place keep the lengths in its headers true.
            let whole = (length as usize).clamp(captured, MAX_PACKET);
            self.buffer.resize(whole, 0);
            if let Some(ip) = network_layer(self.link_type, &self.buffer)
                && let Some(packet) = classify(ip, length, protected)
            {
                return Some(packet);
            }
        }
    }

    fn word(&self, bytes: &[u8]) -> u32 {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        match self.swapped {
            false => u32::from_le_bytes(bytes),
            true => u32::from_be_bytes(bytes),
        }
    }
}

/// The IP packet in a frame, by pcap's link types.
fn network_layer(link_type: u32, frame: &[u8]) -> Option<&[u8]> {
    match link_type {
        1 => match frame.get(12..14)? {
            [0x81, 0] => frame.get(18..),
            _ => frame.get(14..),
        },
        101 | 12 | 228 | 229 => Some(frame),
        113 => frame.get(16..),
        276 => frame.get(20..),
        _ => None,
    }
}

/// One frame, by pcap's link type; `None` where there is no IP in it.
pub(crate) fn look(link_type: u32, frame: &[u8], protected: &Protected) -> Option<Packet> {
    let ip = network_layer(link_type, frame)?;
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    classify(ip, length, protected)
}

impl Protected {
    fn is_pod(&self, header: &IpHeader) -> bool {
        let inside = |ip: &IpAddr| self.pods.iter().any(|net| net.contains(ip));
        inside(&header.source) || inside(&header.destination)
    }
}

fn classify(ip: &[u8], length: u32, protected: &Protected) -> Option<Packet> {
    let header = IpHeader::parse(ip).ok()?;
    let payload = ip.get(header.header_len..)?;
    let mut packet = Packet {
        kind: match protected.is_pod(&header) {
            true => PacketKind::ClearPod,
            false => PacketKind::Other,
        },
        source: header.source,
        destination: header.destination,
        spi: None,
        in_udp: false,
        length,
    };
    let spi = |esp: &[u8]| {
        let (bytes, _) = esp.split_first_chunk::<4>()?;
        Some(u32::from_be_bytes(*bytes))
    };
    if header.fragment.is_some_and(|f| f.offset != 0) {
        return Some(packet);
    }
    if header.protocol == protocol::ESP {
        packet.kind = PacketKind::Esp;
        packet.spi = spi(payload);
        return Some(packet);
    }
    if header.protocol == protocol::UDP {
        let port = |at: usize| {
            let bytes = payload.get(at..at + 2)?;
            Some(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let (source, destination) = (port(0)?, port(2)?);
        let datagram = payload.get(udp::HEADER_LEN..)?;
        if source == udp::NAT_T_PORT || destination == udp::NAT_T_PORT {
            packet.kind = match udp::classify(datagram) {
                Encapsulated::Keepalive => PacketKind::Keepalive,
                Encapsulated::Ike(_) => PacketKind::Ike,
                Encapsulated::Esp(_) => PacketKind::Esp,
                Encapsulated::Short => PacketKind::Other,
            };
            packet.in_udp = packet.kind == PacketKind::Esp;
            packet.spi = spi(datagram).filter(|_| packet.in_udp);
        } else if source == udp::IKE_PORT || destination == udp::IKE_PORT {
            packet.kind = PacketKind::Ike;
        } else if protected.overlay_ports.contains(&destination) {
            packet.kind = PacketKind::ClearOverlay;
        }
    }
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let total = (20 + payload.len()) as u16;
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&total.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend_from_slice(payload);
        packet
    }

    fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for word in [source, destination, 8 + payload.len() as u16, 0] {
            datagram.extend_from_slice(&word.to_be_bytes());
        }
        datagram.extend_from_slice(payload);
        ipv4(17, &datagram)
    }

    fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
        capture_cut(packets, usize::MAX)
    }

    /// A capture of at most `cut` bytes of each frame.
    fn capture_cut(packets: &[Vec<u8>], cut: usize) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for packet in packets {
            let frame = [&[0; 12], &[8, 0][..], packet].concat();
            let kept = &frame[..frame.len().min(cut)];
            for word in [0, 0, kept.len() as u32, frame.len() as u32] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file.extend_from_slice(kept);
        }
        file
    }

    fn protected() -> Protected {
        Protected {
            overlay_ports: vec![4789],
            pods: vec!["10.9.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        let esp = [0xc0, 1, 2, 3, 0, 0, 0, 1, 9, 9];
        let file = capture(&[
            ipv4(50, &esp),
            udp(4500, 4500, &esp),
            udp(4500, 4500, &[0, 0, 0, 0, 1, 2, 3]),
            udp(4500, 4500, &[0xff]),
            udp(500, 500, &[1; 28]),
            udp(40000, 4789, &[8; 20]),
            udp(40000, 53, &[8; 20]),
            [&ipv4(6, &[0; 20])[..16], &[10, 9, 1, 1], &[0; 20]].concat(),
            b"no IP".to_vec(),
        ]);
        let mut reader = Reader::new(file.as_slice()).unwrap();
        let packets: Vec<Packet> = std::iter::from_fn(|| reader.next(&protected())).collect();
        let kinds: Vec<PacketKind> = packets.iter().map(|p| p.kind).collect();
        use PacketKind::*;
        assert_eq!(
            kinds,
            [Esp, Esp, Ike, Keepalive, Ike, ClearOverlay, Other, ClearPod]
        );
        assert_eq!(packets[0].spi, Some(0xc001_0203));
        assert_eq!(
            (packets[1].spi, packets[1].in_udp),
            (Some(0xc001_0203), true)
        );
        assert_eq!(packets[0].length, 44);
    }

    #[test]
    fn a_packet_of_which_only_the_head_was_kept_still_counts() {
        let file = capture_cut(&[ipv4(50, &[1; 1000])], 160);
        let mut reader = Reader::new(file.as_slice()).unwrap();
        let packet = reader.next(&protected()).unwrap();
        assert_eq!((packet.kind, packet.length), (PacketKind::Esp, 1034));
    }

    #[test]
    fn a_cut_stream_ends_quietly() {
        let file = capture(&[ipv4(50, &[1; 40]), ipv4(50, &[2; 40])]);
        for end in 0..file.len() {
            if let Ok(mut reader) = Reader::new(&file[..end]) {
                while reader.next(&protected()).is_some() {}
            }
        }
        assert!(Reader::new([7; 24].as_slice()).is_err());
    }
}
