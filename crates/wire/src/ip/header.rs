//! Reading the header of an IP packet.

use core::net::IpAddr;
use core::ops::Range;

use super::{IPV4_LEN, IPV6_LEN, protocol};
use crate::error::{Problem, WireError};
use crate::reader::Reader;

/// IPv6 extension headers that are walked before a packet is refused.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// What a packet says of its fragmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Where its payload belongs, in bytes.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// The identification.
    pub id: u32,
}

/// Source and destination port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
}

/// The facts of an IP header, options and extension headers walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// The source.
    pub source: IpAddr,
    /// The destination, of the same family.
    pub destination: IpAddr,
    /// The protocol of the payload, after any extension headers.
    pub protocol: u8,
    /// Where the byte lies that says `protocol`: in the IP header or the last extension header.
    pub protocol_at: usize,
    /// Where the payload begins: bytes of header, options and extension headers.
    pub header_len: usize,
    /// Bytes of the packet as it says itself; the buffer may be longer.
    pub total_len: usize,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The packet must not be fragmented on its way; always so in IPv6.
    pub dont_fragment: bool,
    /// It is one fragment of a larger packet; None for a whole packet.
    pub fragment: Option<Fragment>,
}

impl IpHeader {
    /// Reads the header of the packet at the start of `packet`. All lengths are checked against
    /// the buffer; the IPv4 header checksum is not checked here, since the kernel and offloads
    /// answer for it (see [`Self::checksum_is_valid`]).
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        match packet.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            Some(version) => Err(WireError::new(
                "IP version",
                0,
                Problem::BadValue(version.into()),
            )),
            None => Err(WireError::truncated("IP header", 0, IPV4_LEN, 0)),
        }
    }

    /// The packet is IPv4.
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Where the payload lies.
    pub fn payload(&self) -> Range<usize> {
        self.header_len..self.total_len
    }

    /// The ports of TCP, UDP, UDP-Lite or SCTP, when this packet holds them: a later fragment
    /// does not.
    pub fn ports(&self, packet: &[u8]) -> Option<Ports> {
        let has_ports = matches!(
            self.protocol,
            protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP
        );
        if !has_ports || self.fragment.is_some_and(|f| f.offset != 0) {
            return None;
        }
        let payload = packet.get(self.payload())?;
        let (bytes, _) = payload.split_first_chunk::<4>()?;
        Some(Ports {
            source: u16::from_be_bytes([bytes[0], bytes[1]]),
            destination: u16::from_be_bytes([bytes[2], bytes[3]]),
        })
    }

    /// The IPv4 header checksum is right; IPv6 has none.
    pub fn checksum_is_valid(&self, packet: &[u8]) -> bool {
        if !self.is_v4() {
            return true;
        }
        packet.get(..self.header_len).is_some_and(|header| {
            let mut sum = super::Checksum::new();
            sum.add(header);
            sum.finish() == 0
        })
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(packet, 0, "IPv4 header");
        let have = packet.len();
        if have < IPV4_LEN {
            return Err(WireError::truncated("IPv4 header", 0, IPV4_LEN, have));
        }
        let header_len = usize::from(r.u8()? & 0x0f) * 4;
        let traffic_class = r.u8()?;
        let total_len = usize::from(r.u16()?);
        let id = r.u16()?;
        let flags = r.u16()?;
        let hop_limit = r.u8()?;
        let protocol = r.u8()?;
        r.u16()?;
        let source = IpAddr::from(r.array::<4>()?);
        let destination = IpAddr::from(r.array::<4>()?);
        if header_len < IPV4_LEN || header_len > total_len {
            let problem = Problem::BadLength {
                said: header_len,
                min: IPV4_LEN,
                max: total_len,
            };
            return Err(WireError::new("IPv4 header length", 0, problem));
        }
        if total_len > have {
            let problem = Problem::BadLength {
                said: total_len,
                min: header_len,
                max: have,
            };
            return Err(WireError::new("IPv4 total length", 2, problem));
        }
        let (more, offset) = (flags & 0x2000 != 0, (flags & 0x1fff) * 8);
        let fragment = (more || offset != 0).then_some(Fragment {
            offset,
            more,
            id: id.into(),
        });
        Ok(Self {
            source,
            destination,
            protocol,
            protocol_at: 9,
            header_len,
            total_len,
            traffic_class,
            hop_limit,
            dont_fragment: flags & 0x4000 != 0,
            fragment,
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, WireError> {
        let have = packet.len();
        if have < IPV6_LEN {
            return Err(WireError::truncated("IPv6 header", 0, IPV6_LEN, have));
        }
        let mut r = Reader::new(packet, 0, "IPv6 header");
        let first = r.u32()?;
        let total_len = usize::from(r.u16()?) + IPV6_LEN;
        let next = r.u8()?;
        let hop_limit = r.u8()?;
        let source = IpAddr::from(r.array::<16>()?);
        let destination = IpAddr::from(r.array::<16>()?);
        if total_len > have {
            let problem = Problem::BadLength {
                said: total_len - IPV6_LEN,
                min: 0,
                max: have - IPV6_LEN,
            };
            return Err(WireError::new("IPv6 payload length", 4, problem));
        }
        let mut header = Self {
            source,
            destination,
            protocol: next,
            protocol_at: 6,
            header_len: IPV6_LEN,
            total_len,
            traffic_class: (first >> 20) as u8,
            hop_limit,
            dont_fragment: true,
            fragment: None,
        };
        header.walk_extensions(packet)?;
        Ok(header)
    }

    /// Steps over hop-by-hop, routing, fragment and destination options headers (RFC 8200, 4).
    fn walk_extensions(&mut self, packet: &[u8]) -> Result<(), WireError> {
        let mut walked = 0;
        while matches!(
            self.protocol,
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::DESTINATION_OPTIONS
        ) {
            let at = self.header_len;
            if walked == MAX_EXTENSION_HEADERS {
                let problem = Problem::TooMany {
                    limit: MAX_EXTENSION_HEADERS,
                };
                return Err(WireError::new("IPv6 extension headers", at, problem));
            }
            walked += 1;
            let mut r = Reader::new(&packet[at..self.total_len], at, "IPv6 extension header");
            let is_fragment = self.protocol == protocol::FRAGMENT;
            let next = r.u8()?;
            let units = r.u8()?;
            if is_fragment {
                let field = r.u16()?;
                let fragment = Fragment {
                    offset: field & !7,
                    more: field & 1 != 0,
                    id: r.u32()?,
                };
                // Offset 0 with nothing to follow is a whole packet (RFC 6946).
                self.fragment = (fragment.offset != 0 || fragment.more).then_some(fragment);
                self.header_len += 8;
            } else {
                let length = (usize::from(units) + 1) * 8;
                r.take(length - 2)?;
                self.header_len += length;
            }
            self.protocol = next;
            self.protocol_at = at;
            // What follows in a later fragment is not a header.
            if self.fragment.is_some_and(|f| f.offset != 0) {
                break;
            }
        }
        Ok(())
    }
}
