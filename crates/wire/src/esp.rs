//! ESP packets (RFC 4303) with an AEAD whose IV is explicit (RFC 4106).
//!
//! Layout: SPI, sequence number, IV, then encrypted: payload, TFC padding, padding, pad length,
//! next header; at last the integrity check value.

use crate::error::{Problem, WireError};
use crate::reader::Reader;

/// Bytes of SPI and sequence number.
pub const HEADER_LEN: usize = 8;
/// Bytes of the explicit IV of AES-GCM.
pub const IV_LEN: usize = 8;
/// Bytes of the integrity check value of AES-GCM-16.
pub const ICV_LEN: usize = 16;
/// Bytes of pad length and next header.
pub const TRAILER_LEN: usize = 2;
/// What stands before the payload: SPI, sequence number, IV.
pub const HEAD_ROOM: usize = HEADER_LEN + IV_LEN;
/// The most that stands after it without TFC padding: padding, trailer, ICV.
pub const TAIL_ROOM: usize = 3 + TRAILER_LEN + ICV_LEN;
/// SPIs below this are reserved (RFC 4303, 2.1).
pub const FIRST_SPI: u32 = 256;
/// The next header of a dummy packet, to be dropped after decryption (RFC 4303, 2.6).
pub const DUMMY: u8 = 59;

/// SPI and the low 32 bits of the sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The receiver's SPI, at least [`FIRST_SPI`].
    pub spi: u32,
    /// The low half of the sequence number.
    pub sequence: u32,
}

impl Header {
    /// Reads the header of a packet that has room for IV, trailer and ICV of AES-GCM-16.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let need = HEAD_ROOM + TRAILER_LEN + ICV_LEN;
        if packet.len() < need {
            return Err(WireError::truncated("ESP packet", 0, need, packet.len()));
        }
        let mut r = Reader::new(packet, 0, "ESP header");
        let spi = r.u32()?;
        if spi < FIRST_SPI {
            return Err(WireError::new("ESP SPI", 0, Problem::BadValue(spi.into())));
        }
        Ok(Self {
            spi,
            sequence: r.u32()?,
        })
    }

    /// The 8 bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&self.spi.to_be_bytes());
        out[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        out
    }
}

/// The additional authenticated data with extended sequence numbers (RFC 4106, 5). Without them
/// it is the header's 8 bytes.
pub fn esn_aad(spi: u32, sequence: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[0..4].copy_from_slice(&spi.to_be_bytes());
    out[4..12].copy_from_slice(&sequence.to_be_bytes());
    out
}

/// Bytes of padding after so many bytes of payload, so that the trailer ends on 4 (RFC 4303, 2.4).
pub const fn pad_len(payload_len: usize) -> usize {
    (4 - (payload_len + TRAILER_LEN) % 4) % 4
}

/// Bytes of the whole ESP packet around so many bytes of payload.
pub const fn sealed_len(payload_len: usize) -> usize {
    HEAD_ROOM + payload_len + pad_len(payload_len) + TRAILER_LEN + ICV_LEN
}

/// The largest payload that fits an ESP packet of `packet_len` bytes; None when none does.
pub const fn max_payload_len(packet_len: usize) -> Option<usize> {
    match packet_len.checked_sub(HEAD_ROOM + ICV_LEN) {
        Some(text) => (text - text % 4).checked_sub(TRAILER_LEN),
        None => None,
    }
}

/// Writes padding (1, 2, 3, ... as RFC 4303, 2.4 asks), pad length and next header behind
/// `payload_len` bytes of `buf`; gives the length so far. `buf` must have [`TAIL_ROOM`] left.
pub fn write_trailer(
    buf: &mut [u8],
    payload_len: usize,
    next_header: u8,
) -> Result<usize, WireError> {
    let pad = pad_len(payload_len);
    let end = payload_len + pad + TRAILER_LEN;
    let have = buf.len();
    let tail = buf.get_mut(payload_len..end).ok_or(WireError::truncated(
        "ESP trailer",
        payload_len,
        end,
        have,
    ))?;
    for (value, byte) in (1..).zip(&mut tail[..pad]) {
        *byte = value;
    }
    tail[pad] = pad as u8;
    tail[pad + 1] = next_header;
    Ok(end)
}

/// What the end of the decrypted bytes says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes before the padding: the payload, and TFC padding in tunnel mode.
    pub payload_len: usize,
    /// The protocol of the payload.
    pub next_header: u8,
}

impl Trailer {
    /// Reads the trailer of decrypted bytes. Padding other than 1, 2, 3, ... is refused.
    pub fn parse(plain: &[u8]) -> Result<Self, WireError> {
        let Some((rest, &[pad, next_header])) = plain.split_last_chunk::<TRAILER_LEN>() else {
            return Err(WireError::truncated(
                "ESP trailer",
                0,
                TRAILER_LEN,
                plain.len(),
            ));
        };
        let Some(payload_len) = rest.len().checked_sub(pad.into()) else {
            let problem = Problem::BadLength {
                said: pad.into(),
                min: 0,
                max: rest.len(),
            };
            return Err(WireError::new("ESP pad length", rest.len(), problem));
        };
        // The iterator may run to 255, not to 256: a pad length is one byte.
        let good = rest[payload_len..]
            .iter()
            .zip(1u8..=255)
            .all(|(byte, value)| *byte == value);
        if !good {
            let first = rest[payload_len];
            return Err(WireError::new(
                "ESP padding",
                payload_len,
                Problem::BadValue(first.into()),
            ));
        }
        Ok(Self {
            payload_len,
            next_header,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overhead_is_as_promised() {
        // 37 bytes at most, 45 with the UDP header: under the 46 that are promised.
        let worst = (0..64).map(|n| sealed_len(n) - n).max().unwrap();
        assert_eq!(worst, HEAD_ROOM + TAIL_ROOM);
        assert!(worst + crate::udp::HEADER_LEN <= 46);
    }

    #[test]
    fn trailer_reads_back_and_bad_padding_is_refused() {
        for payload in 0..20 {
            let mut buf = vec![0xaa; payload + TAIL_ROOM];
            let end = write_trailer(&mut buf, payload, 17).unwrap();
            assert_eq!((HEADER_LEN + IV_LEN + end) % 4, 0);
            assert_eq!(end + HEAD_ROOM + ICV_LEN, sealed_len(payload));
            assert_eq!(
                Trailer::parse(&buf[..end]).unwrap(),
                Trailer {
                    payload_len: payload,
                    next_header: 17
                }
            );
            if pad_len(payload) > 0 {
                buf[payload] ^= 1;
                assert_eq!(
                    Trailer::parse(&buf[..end]).unwrap_err().reason(),
                    "bad_value"
                );
            }
        }
        // 255 bytes of padding, the most there can be.
        let mut buf: Vec<u8> = (1..=255).collect();
        buf.extend([255, 4]);
        assert_eq!(
            Trailer::parse(&buf).unwrap(),
            Trailer {
                payload_len: 0,
                next_header: 4
            }
        );
        buf.remove(0);
        assert_eq!(Trailer::parse(&buf).unwrap_err().reason(), "bad_length");
        assert!(write_trailer(&mut [0; 4], 4, 4).is_err());
    }

    #[test]
    fn reserved_spis_and_short_packets_are_refused() {
        let mut packet = vec![0; 34];
        assert_eq!(Header::parse(&packet).unwrap_err().reason(), "bad_value");
        packet[2] = 1;
        assert_eq!(
            Header::parse(&packet).unwrap(),
            Header {
                spi: 256,
                sequence: 0
            }
        );
        for short in 0..34 {
            assert_eq!(
                Header::parse(&packet[..short]).unwrap_err().reason(),
                "truncated"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Header::parse(&bytes);
            if let Ok(trailer) = Trailer::parse(&bytes) {
                prop_assert!(trailer.payload_len + TRAILER_LEN <= bytes.len());
            }
        }

        #[test]
        fn the_largest_payload_fits_and_one_more_does_not(packet in 0usize..9000) {
            match max_payload_len(packet) {
                Some(n) => {
                    prop_assert!(sealed_len(n) <= packet);
                    prop_assert!(sealed_len(n + 1) > packet);
                }
                None => prop_assert!(sealed_len(0) > packet),
            }
        }
    }
}
