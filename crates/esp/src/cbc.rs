//! AES-CBC with an HMAC (RFC 3602, RFC 4868), for old peers. Out of the hot path: AES-GCM packets
//! never come here.
//!
//! ```text
//! | SPI 4 | seq 4 | IV 16 | payload | TFC | pad 0-15 | pad len 1 | next 1 | ICV 16, 24 or 32 |
//!  <----- authenticated, with the high half of the sequence number ----->
//! ```

use testudo_crypto::{CBC_IV_LEN, EtmKey};

use crate::counters::DropReason;
use crate::packet::{HEADER_LEN, TRAILER_LEN, low, write_trailer};

/// SPI, sequence number and IV.
pub(crate) const HEAD: usize = HEADER_LEN + CBC_IV_LEN;

/// Bytes of payload, padding to whole blocks, and trailer.
fn body_len(payload_len: usize) -> usize {
    (payload_len + TRAILER_LEN).next_multiple_of(CBC_IV_LEN)
}

fn icv_len(key: &EtmKey) -> usize {
    key.suite().integrity.icv_len()
}

/// The half of an extended sequence number that is authenticated though it is not sent, behind
/// all that is (RFC 4303 2.2.1).
fn high(sequence: u64) -> [u8; 4] {
    low(sequence >> 32).to_be_bytes()
}

pub(crate) fn sealed_len(key: &EtmKey, payload_len: usize) -> usize {
    HEAD + body_len(payload_len) + icv_len(key)
}

/// Fills in all around the payload at `packet[HEAD..]`; `packet` is as long as the ESP packet.
/// `lengths` are those of payload and TFC padding, `numbers` SPI, sequence number and whether it
/// is extended.
#[cold]
pub(crate) fn write(
    key: &EtmKey,
    packet: &mut [u8],
    lengths: (usize, usize),
    next_header: u8,
    numbers: (u32, u64, bool),
) -> Result<(), DropReason> {
    let iv = key.iv(numbers.1).map_err(|_| DropReason::CipherFailed)?;
    write_with(key, iv, packet, lengths, next_header, numbers)
}

pub(crate) fn write_with(
    key: &EtmKey,
    iv: [u8; CBC_IV_LEN],
    packet: &mut [u8],
    (payload_len, tfc): (usize, usize),
    next_header: u8,
    (spi, sequence, esn): (u32, u64, bool),
) -> Result<(), DropReason> {
    let (head, rest) = packet.split_at_mut(HEAD);
    head[..4].copy_from_slice(&spi.to_be_bytes());
    head[4..HEADER_LEN].copy_from_slice(&low(sequence).to_be_bytes());
    head[HEADER_LEN..].copy_from_slice(&iv);
    let (body, icv) = rest.split_at_mut(body_len(payload_len + tfc));
    write_trailer(body, payload_len, tfc, next_header);
    let after = high(sequence);
    let after = if esn { &after[..] } else { &[] };
    key.seal_in_place(iv, &head[..HEADER_LEN], body, after, icv)
        .map_err(|_| DropReason::CipherFailed)
}

/// Checks and decrypts a packet in place; gives the length of what is at `packet[HEAD..]`.
#[cold]
pub(crate) fn open(
    key: &EtmKey,
    packet: &mut [u8],
    sequence: u64,
    esn: bool,
) -> Result<usize, DropReason> {
    if packet.len() < sealed_len(key, 0) {
        return Err(DropReason::TooShort);
    }
    let (head, rest) = packet
        .split_first_chunk_mut::<HEAD>()
        .ok_or(DropReason::TooShort)?;
    let mut iv = [0; CBC_IV_LEN];
    iv.copy_from_slice(&head[HEADER_LEN..]);
    let (body, icv) = rest.split_at_mut(rest.len() - icv_len(key));
    let after = high(sequence);
    let after = if esn { &after[..] } else { &[] };
    // The MAC before anything is decrypted: padding of a forgery is never looked at.
    key.open_in_place(iv, &head[..HEADER_LEN], body, after, icv)
        .map_err(|_| DropReason::BadIntegrity)?;
    Ok(body.len())
}
