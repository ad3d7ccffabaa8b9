//! Virtio headers, and the splitting of large packets that the kernel left whole for us.

use testudo_wire::ip::{Checksum, IpHeader, protocol, pseudo_header};

/// Bytes of the virtio header before each packet of the TUN (struct virtio_net_hdr).
pub(crate) const VNET_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// A virtio header, in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vnet {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Vnet {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.first_chunk::<VNET_LEN>()?;
        let word = |at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
        Some(Self {
            flags: b[0],
            gso_type: b[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    pub(crate) fn bytes(&self) -> [u8; VNET_LEN] {
        let mut out = [0; VNET_LEN];
        out[0] = self.flags;
        out[1] = self.gso_type;
        let words = [
            self.header_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (place, word) in out[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    /// Several UDP datagrams of `size` bytes of data in one packet.
    pub(crate) fn joined_udp(ip_len: usize, size: usize) -> Self {
        Self {
            flags: NEEDS_CSUM,
            gso_type: GSO_UDP,
            header_len: (ip_len + 8) as u16,
            gso_size: size as u16,
            csum_start: ip_len as u16,
            csum_offset: 6,
        }
    }

    /// Several TCP segments of `size` bytes of data in one packet.
    pub(crate) fn joined_tcp(v4: bool, ip_len: usize, tcp_len: usize, size: usize) -> Self {
        Self {
            flags: NEEDS_CSUM,
            gso_type: if v4 { GSO_TCP4 } else { GSO_TCP6 },
            header_len: (ip_len + tcp_len) as u16,
            gso_size: size as u16,
            csum_start: ip_len as u16,
            csum_offset: 16,
        }
    }

    /// Several segments are in the packet.
    pub(crate) fn is_joined(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }

    /// Where the checksum that the kernel left to us begins and lies, if it did.
    pub(crate) fn partial_checksum(&self) -> Option<(usize, usize)> {
        (self.flags & NEEDS_CSUM != 0)
            .then_some((usize::from(self.csum_start), usize::from(self.csum_offset)))
    }
}

/// Splits one large packet into the packets that the sender meant.
pub(crate) struct Segments {
    /// The header of the large packet.
    pub(crate) header: IpHeader,
    headers_len: usize,
    size: usize,
    at: usize,
    index: u16,
}

impl Segments {
    /// `None` where the virtio header and the packet do not fit together.
    pub(crate) fn new(packet: &[u8], vnet: &Vnet) -> Option<Self> {
        let header = IpHeader::parse(packet).ok()?;
        let transport = packet.get(header.header_len..header.total_len)?;
        let tcp = match (vnet.gso_type & !GSO_ECN, header.protocol) {
            (GSO_TCP4, protocol::TCP) if header.is_v4() => true,
            (GSO_TCP6, protocol::TCP) if !header.is_v4() => true,
            (GSO_UDP, protocol::UDP) => false,
            _ => return None,
        };
        let transport_len = if tcp {
            usize::from(*transport.get(12)? >> 4) * 4
        } else {
            8
        };
        let least = if tcp { 20 } else { 8 };
        let fits = transport_len >= least && transport_len <= transport.len();
        if !fits || vnet.gso_size == 0 || header.fragment.is_some() {
            return None;
        }
        let headers_len = header.header_len + transport_len;
        let size = usize::from(vnet.gso_size);
        Some(Self {
            header,
            headers_len,
            size,
            at: headers_len,
            index: 0,
        })
    }

    /// Bytes of the largest packet that `write_next` makes.
    pub(crate) fn largest(&self) -> usize {
        self.headers_len + self.size
    }

    /// Writes the next packet into `out` and gives its length; `None`: there is none.
    pub(crate) fn write_next(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let end = self.header.total_len;
        // A packet without data is one segment.
        if self.at >= end && self.index > 0 {
            return None;
        }
        let data = &packet[self.at..end.min(self.at + self.size)];
        let last = self.at + data.len() >= end;
        let len = self.headers_len + data.len();
        let out = out.get_mut(..len)?;
        out[..self.headers_len].copy_from_slice(&packet[..self.headers_len]);
        out[self.headers_len..].copy_from_slice(data);
        self.fix_ip(out);
        let offset = (self.at - self.headers_len) as u32;
        self.fix_transport(out, offset, last);
        self.at += data.len();
        self.index = self.index.wrapping_add(1);
        Some(len)
    }

    fn fix_ip(&self, out: &mut [u8]) {
        let len = out.len() as u16;
        if !self.header.is_v4() {
            out[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            return;
        }
        out[2..4].copy_from_slice(&len.to_be_bytes());
        let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(self.index);
        out[4..6].copy_from_slice(&id.to_be_bytes());
        out[10..12].fill(0);
        let mut sum = Checksum::new();
        sum.add(&out[..self.header.header_len]);
        let sum = sum.finish();
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    fn fix_transport(&self, out: &mut [u8], offset: u32, last: bool) {
        let (source, destination) = (self.header.source, self.header.destination);
        let transport = &mut out[self.header.header_len..];
        let len = transport.len();
        let place = if self.header.protocol == protocol::TCP {
            let first = [transport[4], transport[5], transport[6], transport[7]];
            let sequence = u32::from_be_bytes(first).wrapping_add(offset);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                transport[13] &= !TCP_FIN_PSH;
            }
            if self.index > 0 {
                transport[13] &= !TCP_CWR;
            }
            16
        } else {
            transport[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            6
        };
        transport[place..place + 2].fill(0);
        let mut sum = pseudo_header(source, destination, self.header.protocol, len);
        sum.add(transport);
        let value = match sum.finish() {
            0 if place == 6 => 0xffff,
            value => value,
        };
        transport[place..place + 2].copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use testudo_wire::ip::{OuterHeader, transport_is_valid};

    fn large(v4: bool, tcp: bool, data: usize) -> Vec<u8> {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (source, destination) = if v4 {
            (ip("10.0.0.1"), ip("10.0.0.2"))
        } else {
            (ip("fd00::1"), ip("fd00::2"))
        };
        let protocol = if tcp { protocol::TCP } else { protocol::UDP };
        let mut transport = if tcp {
            let mut t = vec![0; 32];
            t[..4].copy_from_slice(&[1, 2, 3, 4]);
            t[4..8].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
            t[12] = 8 << 4;
            t[13] = 0x80 | 0x10 | 0x09;
            t
        } else {
            vec![1, 2, 3, 4, 0, 0, 0, 0]
        };
        transport.extend((0..data).map(|i| i as u8));
        let outer = OuterHeader {
            id: 0xffff,
            ..OuterHeader::new(source, destination, protocol)
        };
        let mut packet = vec![0; outer.len()];
        outer.write(&mut packet, transport.len()).unwrap();
        packet.extend(transport);
        packet
    }

    fn split(packet: &[u8], vnet: &Vnet) -> Vec<Vec<u8>> {
        let mut segments = Segments::new(packet, vnet).unwrap();
        let mut all = Vec::new();
        let mut out = vec![0; segments.largest()];
        while let Some(len) = segments.write_next(packet, &mut out) {
            all.push(out[..len].to_vec());
        }
        all
    }

    #[test]
    fn every_segment_is_a_whole_packet_with_its_part_of_the_data() {
        for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let ip_len = if v4 { 20 } else { 40 };
            let vnet = match tcp {
                true => Vnet::joined_tcp(v4, ip_len, 32, 1000),
                false => Vnet::joined_udp(ip_len, 1000),
            };
            let headers = ip_len + if tcp { 32 } else { 8 };
            for (data, count) in [(2500, 3), (3000, 3), (1, 1), (0, 1), (1000, 1), (1001, 2)] {
                let packet = large(v4, tcp, data);
                let all = split(&packet, &vnet);
                assert_eq!(all.len(), count);
                let mut joined: Vec<u8> = Vec::new();
                for (index, segment) in all.iter().enumerate() {
                    let header = IpHeader::parse(segment).unwrap();
                    assert_eq!(header.total_len, segment.len());
                    assert!(header.checksum_is_valid(segment));
                    assert!(transport_is_valid(segment, &header));
                    if tcp {
                        let t = &segment[ip_len..];
                        let sequence = u32::from_be_bytes(t[4..8].try_into().unwrap());
                        assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(index as u32 * 1000));
                        assert_eq!(t[13] & 0x09 != 0, index == count - 1);
                        assert_eq!(t[13] & 0x80 != 0, index == 0);
                    }
                    joined.extend(&segment[headers..]);
                }
                assert_eq!(joined, packet[headers..]);
            }
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let packet = large(true, true, 100);
        for vnet in [
            Vnet::joined_udp(20, 50),
            Vnet::joined_tcp(false, 20, 32, 50),
            Vnet::joined_tcp(true, 20, 32, 0),
            Vnet {
                gso_type: 3,
                ..Vnet::joined_tcp(true, 20, 32, 50)
            },
        ] {
            assert!(Segments::new(&packet, &vnet).is_none());
        }
        let good = Vnet::joined_tcp(true, 20, 32, 50);
        let mut broken = packet.clone();
        broken[32] = 0xf0;
        assert!(Segments::new(&broken[..60], &good).is_none());
        broken[32] = 0x10;
        assert!(Segments::new(&broken, &good).is_none());
        assert_eq!(Vnet::parse(&good.bytes()), Some(good));
        assert_eq!(Vnet::parse(&[0; 9]), None);
    }
}
