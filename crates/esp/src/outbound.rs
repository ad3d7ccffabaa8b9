//! Sealing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use testudo_crypto::{AeadKey, Cipher, CipherError, CipherKey, ICV_LEN};

use crate::cbc;
use crate::counters::{Counters, DropReason, Drops};
use crate::packet::{
    Aad, HEAD_ROOM, HEADER_LEN, TRAILER_LEN, low, pad_len, sealed_len, write_trailer,
};

/// The last sequence number that is sent with ESN. Half the range: a counter
/// that is raised past it by calls that fail can then never come round to 0.
const LAST_ESN: u64 = 1 << 63;

/// When an outbound SA wants a successor. It goes on sealing afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftLimits {
    /// Packets. Cut to three quarters of the sequence numbers there are.
    pub packets: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

impl SoftLimits {
    /// No limit but the sequence numbers' own.
    pub const NONE: Self = Self {
        packets: u64::MAX,
        bytes: u64::MAX,
    };
}

/// Which soft limit was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftLimit {
    /// That of packets, or the sequence numbers grow short.
    Packets,
    /// That of bytes.
    Bytes,
}

/// What an outbound SA is made from.
pub struct OutboundParameters<'a> {
    /// The peer's SPI.
    pub spi: u32,
    /// The cipher.
    pub cipher: Cipher,
    /// Its keys, `cipher.keymat_len()` bytes: with AES-GCM key and salt, else key and integrity
    /// key.
    pub keymat: &'a [u8],
    /// 64-bit sequence numbers (RFC 4303 2.2.1).
    pub esn: bool,
    /// When to ask for a successor.
    pub limits: SoftLimits,
}

/// A packet that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The ESP packet is the first `len` bytes of the buffer.
    pub len: usize,
    /// Its full sequence number.
    pub sequence: u64,
    /// Set on one packet in the life of an SA: the one that passed a limit.
    pub soft_limit: Option<SoftLimit>,
}

/// An SA that seals what we send. Any number of threads may use it at once.
pub struct OutboundSa {
    key: CipherKey,
    spi: u32,
    esn: bool,
    last: u64,
    first: u64,
    soft_sequence: u64,
    soft_bytes: u64,
    soft_told: AtomicBool,
    drops: Drops,
    hot: Hot,
}

/// Written for each packet; on a line of its own.
#[repr(align(64))]
struct Hot {
    /// The last sequence number taken.
    sequence: AtomicU64,
    bytes: AtomicU64,
}

impl OutboundSa {
    /// An SA whose first packet has sequence number 1.
    pub fn new(parameters: &OutboundParameters<'_>) -> Result<Self, CipherError> {
        Self::dangerous_starting_after(parameters, 0)
    }

    /// An SA whose first packet has sequence number `sequence + 1`. For tests:
    /// a key that has sealed any packet above `sequence` would leak.
    pub fn dangerous_starting_after(
        parameters: &OutboundParameters<'_>,
        sequence: u64,
    ) -> Result<Self, CipherError> {
        let last = if parameters.esn {
            LAST_ESN
        } else {
            u64::from(u32::MAX)
        };
        let soft_packets = sequence.saturating_add(parameters.limits.packets);
        Ok(Self {
            key: CipherKey::new(parameters.cipher, parameters.keymat)?,
            spi: parameters.spi,
            esn: parameters.esn,
            last,
            first: sequence,
            soft_sequence: soft_packets.min(last / 4 * 3),
            soft_bytes: parameters.limits.bytes,
            soft_told: AtomicBool::new(false),
            drops: Drops::default(),
            hot: Hot {
                sequence: AtomicU64::new(sequence),
                bytes: AtomicU64::new(0),
            },
        })
    }

    /// The SPI in the packets.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// What it seals with.
    pub fn cipher(&self) -> Cipher {
        self.key.cipher()
    }

    /// Bytes before the payload: SPI, sequence number, IV.
    #[inline]
    pub fn head_room(&self) -> usize {
        match &self.key {
            CipherKey::Gcm(_) => HEAD_ROOM,
            CipherKey::Cbc(_) => cbc::HEAD,
        }
    }

    /// Length of the ESP packet around `payload_len` bytes, TFC padding included in them.
    #[inline]
    pub fn sealed_len(&self, payload_len: usize) -> usize {
        match &self.key {
            CipherKey::Gcm(_) => sealed_len(payload_len),
            CipherKey::Cbc(key) => cbc::sealed_len(key, payload_len),
        }
    }

    /// Seals the `payload_len` bytes at `buffer[head_room()..]` in place.
    /// `next_header` is the payload's protocol: 4 or 41 for a tunnelled packet.
    #[inline]
    pub fn seal(
        &self,
        buffer: &mut [u8],
        payload_len: usize,
        next_header: u8,
    ) -> Result<Sealed, DropReason> {
        self.seal_padded(buffer, payload_len, 0, next_header)
    }

    /// Like `seal`, with `tfc` zero bytes between payload and padding (RFC 4303
    /// 2.7). Only for payloads that tell their own length: tunnelled packets.
    #[inline]
    pub fn seal_padded(
        &self,
        buffer: &mut [u8],
        payload_len: usize,
        tfc: usize,
        next_header: u8,
    ) -> Result<Sealed, DropReason> {
        // No sequence number is spent on a packet that does not fit. Lengths
        // are compared before they are added up: they may be anything.
        let fits = payload_len <= buffer.len() && tfc <= buffer.len();
        if !fits || self.sealed_len(payload_len + tfc) > buffer.len() {
            return Err(self.drops.count(DropReason::NoRoom));
        }
        let sequence = self.take_sequence()?;
        let len = self.sealed_len(payload_len + tfc);
        let packet = &mut buffer[..len];
        match &self.key {
            CipherKey::Gcm(key) => {
                let iv = sequence.to_be_bytes();
                self.write(key, packet, payload_len, tfc, next_header, sequence, iv);
            }
            CipherKey::Cbc(key) => {
                let numbers = (self.spi, sequence, self.esn);
                cbc::write(key, packet, (payload_len, tfc), next_header, numbers)
                    .map_err(|reason| self.drops.count(reason))?;
            }
        }
        Ok(Sealed {
            len,
            sequence,
            soft_limit: self.account(sequence, payload_len as u64),
        })
    }

    /// Counters now.
    pub fn counters(&self) -> Counters {
        // Past the end the counter goes on with each refused packet.
        let sequence = self.hot.sequence.load(Relaxed).min(self.last);
        let bytes = self.hot.bytes.load(Relaxed);
        self.drops
            .snapshot(sequence - self.first.min(sequence), bytes, sequence)
    }

    /// The hard stop of RFC 4303 3.3.3: no sequence number, and so no nonce,
    /// is ever used twice.
    #[inline]
    fn take_sequence(&self) -> Result<u64, DropReason> {
        let before = self.hot.sequence.fetch_add(1, Relaxed);
        if before >= self.last {
            return Err(self.drops.count(DropReason::SequenceExhausted));
        }
        Ok(before + 1)
    }

    #[inline]
    fn account(&self, sequence: u64, bytes: u64) -> Option<SoftLimit> {
        let bytes = self.hot.bytes.fetch_add(bytes, Relaxed) + bytes;
        let passed = if sequence >= self.soft_sequence {
            SoftLimit::Packets
        } else if bytes >= self.soft_bytes {
            SoftLimit::Bytes
        } else {
            return None;
        };
        let told = self.soft_told.load(Relaxed) || self.soft_told.swap(true, Relaxed);
        (!told).then_some(passed)
    }

    /// Fills in header, padding, trailer and ICV of AES-GCM around the payload. `packet`
    /// is as long as the ESP packet.
    #[inline]
    #[allow(clippy::too_many_arguments)] // Numbers of one packet; a struct of them would be copied.
    pub(crate) fn write(
        &self,
        key: &AeadKey,
        packet: &mut [u8],
        payload_len: usize,
        tfc: usize,
        next_header: u8,
        sequence: u64,
        iv: [u8; 8],
    ) {
        packet[..4].copy_from_slice(&self.spi.to_be_bytes());
        packet[4..HEADER_LEN].copy_from_slice(&low(sequence).to_be_bytes());
        // The IV is the sequence number: unique while the key lives, which is
        // all that GCM asks for (RFC 4106 3.1).
        packet[HEADER_LEN..HEAD_ROOM].copy_from_slice(&iv);

        let pad = pad_len(payload_len + tfc);
        let (body, icv) = packet[HEAD_ROOM..].split_at_mut(payload_len + tfc + pad + TRAILER_LEN);
        write_trailer(body, payload_len, tfc, next_header);
        let aad = Aad::new(self.spi, sequence, self.esn);
        let tag = key.seal_in_place(iv, aad.as_bytes(), body);
        icv[..ICV_LEN].copy_from_slice(&tag);
    }
}
