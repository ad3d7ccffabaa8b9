//! Writing the outer header of a tunnel.

use core::net::IpAddr;

use super::checksum::Checksum;
use super::{IPV4_LEN, IPV6_LEN};
use crate::error::{Problem, WireError};

/// The header of a packet that we make, without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterHeader {
    /// The source.
    pub source: IpAddr,
    /// The destination, of the same family.
    pub destination: IpAddr,
    /// The protocol of the payload.
    pub protocol: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Forbid fragmentation (IPv4).
    pub dont_fragment: bool,
    /// The identification (IPv4).
    pub id: u16,
}

impl OuterHeader {
    /// A header with hop limit 64, no fragmentation, no traffic class.
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            traffic_class: 0,
            hop_limit: 64,
            dont_fragment: true,
            id: 0,
        }
    }

    /// Bytes that it takes.
    pub fn len(&self) -> usize {
        if self.source.is_ipv4() {
            IPV4_LEN
        } else {
            IPV6_LEN
        }
    }

    /// Always false: a header has bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes it at the start of `out`, for so many bytes of payload; gives its length.
    pub fn write(&self, out: &mut [u8], payload_len: usize) -> Result<usize, WireError> {
        let have = out.len();
        let len = self.len();
        let Some(out) = out.get_mut(..len) else {
            return Err(WireError::truncated("IP header", 0, len, have));
        };
        let counted = if self.source.is_ipv4() {
            payload_len.saturating_add(IPV4_LEN)
        } else {
            payload_len
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
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out[0..2].copy_from_slice(&[0x45, self.traffic_class]);
                out[2..4].copy_from_slice(&field.to_be_bytes());
                out[4..6].copy_from_slice(&self.id.to_be_bytes());
                out[6..8].copy_from_slice(&[if self.dont_fragment { 0x40 } else { 0 }, 0]);
                out[8..12].copy_from_slice(&[self.hop_limit, self.protocol, 0, 0]);
                out[12..16].copy_from_slice(&source.octets());
                out[16..20].copy_from_slice(&destination.octets());
                let mut sum = Checksum::new();
                sum.add(out);
                out[10..12].copy_from_slice(&sum.finish().to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let first = (6 << 28) | (u32::from(self.traffic_class) << 20);
                out[0..4].copy_from_slice(&first.to_be_bytes());
                out[4..6].copy_from_slice(&field.to_be_bytes());
                out[6..8].copy_from_slice(&[self.protocol, self.hop_limit]);
                out[8..24].copy_from_slice(&source.octets());
                out[24..40].copy_from_slice(&destination.octets());
            }
            _ => {
                return Err(WireError::new(
                    "IP destination of another family",
                    0,
                    Problem::BadValue(0),
                ));
            }
        }
        Ok(len)
    }
}
