//! Layout of an ESP packet: lengths, header, padding; of the ciphers, AES-GCM's.

use testudo_crypto::{CBC_IV_LEN, ICV_LEN, IV_LEN};

/// SPI and sequence number.
pub(crate) const HEADER_LEN: usize = 8;
/// Pad length and next header.
pub(crate) const TRAILER_LEN: usize = 2;

/// Bytes before the payload with AES-GCM: SPI, sequence number, IV.
pub const HEAD_ROOM: usize = HEADER_LEN + IV_LEN;
/// Bytes after the payload that sealing with AES-GCM may need, without TFC padding.
pub const TAIL_ROOM: usize = 3 + TRAILER_LEN + ICV_LEN;
/// Bytes before the payload with any cipher.
pub const MAX_HEAD_ROOM: usize = HEADER_LEN + CBC_IV_LEN;
/// Bytes after the payload that sealing with any cipher may need, without TFC padding: AES-CBC
/// with HMAC-SHA2-512-256 needs the most.
pub const MAX_TAIL_ROOM: usize = CBC_IV_LEN - 1 + TRAILER_LEN + 32;
/// The shortest ESP packet: no payload, but padding to four bytes would be two
/// more; a peer that leaves it out is not worth a drop.
pub const MIN_PACKET_LEN: usize = HEAD_ROOM + TRAILER_LEN + ICV_LEN;

/// Length of the AES-GCM packet around `payload_len` bytes, TFC padding included
/// in them if there is any.
pub const fn sealed_len(payload_len: usize) -> usize {
    HEAD_ROOM + payload_len + pad_len(payload_len) + TRAILER_LEN + ICV_LEN
}

/// The longest payload whose AES-GCM packet is at most `room` bytes long.
pub const fn max_payload(room: usize) -> usize {
    // Whole words between the header and the ICV, less the trailer.
    let words = room.saturating_sub(HEAD_ROOM + ICV_LEN) / 4;
    (words * 4).saturating_sub(TRAILER_LEN)
}

/// The SPI at the start of an ESP packet, if it is long enough to have one.
#[inline]
pub fn spi_of(packet: &[u8]) -> Option<u32> {
    packet
        .first_chunk::<4>()
        .map(|spi| u32::from_be_bytes(*spi))
}

/// Padding that aligns the trailer to four bytes (RFC 4303 2.4).
pub(crate) const fn pad_len(payload_len: usize) -> usize {
    (4 - (payload_len + TRAILER_LEN) % 4) % 4
}

/// Writes TFC padding, padding, pad length and next header behind the payload, up to the end of
/// `body`: padding counts up from 1 (RFC 4303 2.4).
#[inline]
pub(crate) fn write_trailer(body: &mut [u8], payload_len: usize, tfc: usize, next_header: u8) {
    body[payload_len..payload_len + tfc].fill(0);
    let trailer = &mut body[payload_len + tfc..];
    let pad = trailer.len() - TRAILER_LEN;
    for (byte, value) in trailer[..pad].iter_mut().zip(1..) {
        *byte = value;
    }
    trailer[pad] = pad as u8;
    trailer[pad + 1] = next_header;
}

/// What is authenticated and not encrypted (RFC 4106 section 5): SPI and
/// sequence number, the latter in full with ESN.
pub(crate) struct Aad {
    bytes: [u8; 12],
    len: usize,
}

impl Aad {
    #[inline]
    pub(crate) fn new(spi: u32, sequence: u64, esn: bool) -> Self {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&spi.to_be_bytes());
        let len = if esn {
            bytes[4..].copy_from_slice(&sequence.to_be_bytes());
            12
        } else {
            bytes[4..8].copy_from_slice(&low(sequence).to_be_bytes());
            8
        };
        Self { bytes, len }
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The half of a sequence number that is on the wire.
pub(crate) fn low(sequence: u64) -> u32 {
    (sequence & u64::from(u32::MAX)) as u32
}
