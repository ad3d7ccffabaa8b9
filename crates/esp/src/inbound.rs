//! Opening.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use testudo_crypto::{AeadKey, Cipher, CipherError, CipherKey, ICV_LEN, IV_LEN};

use crate::cbc;
use crate::counters::{Counters, DropReason, Drops};
use crate::packet::{Aad, HEAD_ROOM, HEADER_LEN, MIN_PACKET_LEN, TRAILER_LEN};
use crate::{NEXT_HEADER_DUMMY, ReplayWindow};

/// What an inbound SA is made from.
pub struct InboundParameters<'a> {
    /// Our SPI.
    pub spi: u32,
    /// The cipher.
    pub cipher: Cipher,
    /// Its keys, `cipher.keymat_len()` bytes: with AES-GCM key and salt, else key and integrity
    /// key.
    pub keymat: &'a [u8],
    /// 64-bit sequence numbers (RFC 4303 2.2.1).
    pub esn: bool,
    /// Packets of history against replays; raised or cut to the limits.
    pub replay_window: u32,
}

/// A packet that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Protocol of the payload: 4 or 41 for a tunnelled packet.
    pub next_header: u8,
    /// Where the payload is in the packet. TFC padding, if any, is at its end.
    pub payload: Range<usize>,
    /// The full sequence number.
    pub sequence: u64,
    /// Set on one packet in the life of an SA: the first that was opened.
    pub first: bool,
}

/// An SA that opens what the peer sends. Any number of threads may use it at once.
pub struct InboundSa {
    key: CipherKey,
    spi: u32,
    esn: bool,
    used: AtomicBool,
    window: ReplayWindow,
    drops: Drops,
    hot: Hot,
}

/// Written for each packet; on a line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Hot {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl InboundSa {
    /// An SA that has seen nothing yet.
    pub fn new(parameters: &InboundParameters<'_>) -> Result<Self, CipherError> {
        Self::starting_after(parameters, 0)
    }

    /// An SA that takes `sequence` and all before it as seen. For tests of the
    /// sequence numbers' ends.
    pub fn starting_after(
        parameters: &InboundParameters<'_>,
        sequence: u64,
    ) -> Result<Self, CipherError> {
        Ok(Self {
            key: CipherKey::new(parameters.cipher, parameters.keymat)?,
            spi: parameters.spi,
            esn: parameters.esn,
            used: AtomicBool::new(false),
            window: ReplayWindow::starting_after(parameters.replay_window, sequence),
            drops: Drops::default(),
            hot: Hot::default(),
        })
    }

    /// The SPI this SA answers to.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Opens the ESP packet, SPI to ICV, in place (RFC 4303 3.4).
    ///
    /// Unless the result is `Ok`, no byte of `packet` may be used. A packet
    /// that is dropped changes nothing but a counter; only an authentic one
    /// moves the replay window.
    #[inline]
    pub fn open(&self, packet: &mut [u8]) -> Result<Opened, DropReason> {
        self.try_open(packet)
            .map_err(|reason| self.drops.count(reason))
    }

    /// The highest sequence number accepted.
    pub fn newest(&self) -> u64 {
        self.window.highest()
    }

    /// Counters now.
    pub fn counters(&self) -> Counters {
        self.drops.snapshot(
            self.hot.packets.load(Relaxed),
            self.hot.bytes.load(Relaxed),
            self.window.highest(),
        )
    }

    #[inline]
    fn try_open(&self, packet: &mut [u8]) -> Result<Opened, DropReason> {
        if packet.len() < MIN_PACKET_LEN {
            return Err(DropReason::TooShort);
        }
        let (spi, wire) = header(packet).ok_or(DropReason::TooShort)?;
        if spi != self.spi {
            return Err(DropReason::SpiMismatch);
        }
        // Replays are refused before the cipher works for them, and taken as
        // seen only after it has found them authentic (RFC 4303 3.4.3).
        let sequence = if self.esn {
            self.window.infer(wire).ok_or(DropReason::TooOld)?
        } else {
            u64::from(wire)
        };
        self.window.check(sequence)?;

        let (head, len) = match &self.key {
            CipherKey::Gcm(key) => {
                let aad = Aad::new(spi, sequence, self.esn);
                (HEAD_ROOM, open_gcm(key, &aad, packet)?)
            }
            CipherKey::Cbc(key) => {
                let len = cbc::open(key, packet, sequence, self.esn)?;
                (cbc::HEAD, len)
            }
        };
        self.window.accept(sequence)?;

        let (payload_len, next_header) = trailer(&packet[head..head + len])?;
        if next_header == NEXT_HEADER_DUMMY {
            return Err(DropReason::Dummy);
        }
        self.hot.packets.fetch_add(1, Relaxed);
        self.hot.bytes.fetch_add(payload_len as u64, Relaxed);
        Ok(Opened {
            next_header,
            payload: head..head + payload_len,
            sequence,
            first: !self.used.load(Relaxed) && !self.used.swap(true, Relaxed),
        })
    }
}

#[inline]
fn header(packet: &[u8]) -> Option<(u32, u32)> {
    let (spi, rest) = packet.split_first_chunk::<4>()?;
    let sequence = rest.first_chunk::<{ HEADER_LEN - 4 }>()?;
    Some((u32::from_be_bytes(*spi), u32::from_be_bytes(*sequence)))
}

/// Checks and decrypts an AES-GCM packet in place; gives the length of what is at
/// `packet[HEAD_ROOM..]`.
#[inline]
fn open_gcm(key: &AeadKey, aad: &Aad, packet: &mut [u8]) -> Result<usize, DropReason> {
    let (_, rest) = packet
        .split_first_chunk_mut::<HEADER_LEN>()
        .ok_or(DropReason::TooShort)?;
    let (iv, rest) = rest
        .split_first_chunk_mut::<IV_LEN>()
        .ok_or(DropReason::TooShort)?;
    let (body, icv) = rest
        .split_last_chunk_mut::<ICV_LEN>()
        .ok_or(DropReason::TooShort)?;
    key.open_in_place(*iv, aad.as_bytes(), body, icv)
        .map_err(|_| DropReason::BadIntegrity)?;
    Ok(body.len())
}

/// Length of the payload and the next header, from a decrypted body. The
/// padding must be 1, 2, 3 and so on (RFC 4303 2.4).
#[inline]
fn trailer(body: &[u8]) -> Result<(usize, u8), DropReason> {
    let (rest, &[pad_len, next_header]) = body
        .split_last_chunk::<TRAILER_LEN>()
        .ok_or(DropReason::TooShort)?;
    let payload_len = rest
        .len()
        .checked_sub(usize::from(pad_len))
        .ok_or(DropReason::BadPadding)?;
    let counts = (1..=pad_len).eq(rest[payload_len..].iter().copied());
    if !counts {
        return Err(DropReason::BadPadding);
    }
    Ok((payload_len, next_header))
}
