//! What an SA has carried, and why it dropped the rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use thiserror::Error;

/// Why a packet was not sealed or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
#[repr(usize)]
pub enum DropReason {
    /// Shorter than header, trailer and ICV together.
    #[error("the packet is shorter than an ESP packet can be")]
    TooShort,
    /// The SPI is not this SA's.
    #[error("the SPI is not this SA's")]
    SpiMismatch,
    /// The sequence number was seen before (RFC 4303 3.4.3).
    #[error("the sequence number was seen before")]
    Replayed,
    /// The sequence number lies before the replay window.
    #[error("the sequence number lies before the replay window")]
    TooOld,
    /// The ICV does not fit: changed on the way, another key, or a forgery.
    #[error("the integrity check failed")]
    BadIntegrity,
    /// Authentic, but the padding is not as RFC 4303 2.4 has it.
    #[error("the padding is wrong")]
    BadPadding,
    /// A dummy packet (RFC 4303 2.6), dropped as it should be.
    #[error("a dummy packet")]
    Dummy,
    /// The caller's buffer lacks room for header, padding or ICV.
    #[error("the buffer has no room for the ESP header, padding and ICV")]
    NoRoom,
    /// Every sequence number of this SA has been used (RFC 4303 3.3.3).
    #[error("the sequence numbers of this SA are used up")]
    SequenceExhausted,
    /// The cryptographic library failed to encrypt.
    #[error("the cryptographic library failed")]
    CipherFailed,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 10] = [
        Self::TooShort,
        Self::SpiMismatch,
        Self::Replayed,
        Self::TooOld,
        Self::BadIntegrity,
        Self::BadPadding,
        Self::Dummy,
        Self::NoRoom,
        Self::SequenceExhausted,
        Self::CipherFailed,
    ];

    /// The reason as counters and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooShort => "esp_too_short",
            Self::SpiMismatch => "esp_spi_mismatch",
            Self::Replayed => "esp_replayed",
            Self::TooOld => "esp_too_old",
            Self::BadIntegrity => "esp_bad_integrity",
            Self::BadPadding => "esp_bad_padding",
            Self::Dummy => "esp_dummy",
            Self::NoRoom => "esp_no_room",
            Self::SequenceExhausted => "esp_sequence_exhausted",
            Self::CipherFailed => "esp_cipher_failed",
        }
    }
}

/// Counters of one SA at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sealed or opened.
    pub packets: u64,
    /// Bytes of payload sealed or opened.
    pub bytes: u64,
    /// The highest sequence number sent or accepted; 0 before the first packet.
    pub sequence: u64,
    /// Packets dropped, by reason, in the order of [`DropReason::ALL`].
    drops: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// How many packets were dropped for that reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Every reason with its count, zeros included.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.drops)
    }
}

/// Drop counters that any thread may raise. Apart from the hot fields of an
/// SA, so that a flood of bad packets does not slow the good ones.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    /// Counts, and gives the reason back to return it.
    #[cold]
    pub(crate) fn count(&self, reason: DropReason) -> DropReason {
        self.0[reason as usize].fetch_add(1, Relaxed);
        reason
    }

    pub(crate) fn snapshot(&self, packets: u64, bytes: u64, sequence: u64) -> Counters {
        Counters {
            packets,
            bytes,
            sequence,
            drops: std::array::from_fn(|index| self.0[index].load(Relaxed)),
        }
    }
}
