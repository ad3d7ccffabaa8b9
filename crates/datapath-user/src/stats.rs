//! Counters of the whole datapath.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a packet was dropped outside of an SA (an SA counts its own), or what else is worth a
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Count {
    /// A steered packet for which no outbound SA stands.
    NoOutboundSa,
    /// A packet in our device that is no protected flow's: multicast, link local.
    NotProtected,
    /// A packet that is none, or an offload that does not fit it.
    Malformed,
    /// ESP for an SPI that is not ours.
    UnknownSpi,
    /// An opened packet that its SA may not carry (RFC 4301 5.2).
    WrongInner,
    /// Too large for the buffers or the path.
    TooBig,
    /// The kernel did not take a sealed packet.
    SendFailed,
    /// The kernel did not take an opened packet.
    DeviceWriteFailed,
    /// Congestion was marked outside and the inner packet does not know it (RFC 6040).
    Congested,
    /// A datagram too short to be anything.
    TooShort,
    /// An event for which there was no room.
    EventLost,
    /// Sealed packets larger than the path's MTU, which the kernel sends in fragments.
    Fragmented,
    /// NAT keepalives received.
    Keepalive,
    /// Batches that the kernel did not take as one (GSO) and that were sent singly.
    GsoFallback,
}

impl Count {
    const ALL: [Count; 14] = [
        Count::NoOutboundSa,
        Count::NotProtected,
        Count::Malformed,
        Count::UnknownSpi,
        Count::WrongInner,
        Count::TooBig,
        Count::SendFailed,
        Count::DeviceWriteFailed,
        Count::Congested,
        Count::TooShort,
        Count::EventLost,
        Count::Fragmented,
        Count::Keepalive,
        Count::GsoFallback,
    ];

    fn name(self) -> &'static str {
        match self {
            Count::NoOutboundSa => "no_outbound_sa",
            Count::NotProtected => "not_protected",
            Count::Malformed => "malformed",
            Count::UnknownSpi => "unknown_spi",
            Count::WrongInner => "wrong_inner",
            Count::TooBig => "too_big",
            Count::SendFailed => "send_failed",
            Count::DeviceWriteFailed => "device_write_failed",
            Count::Congested => "congested",
            Count::TooShort => "too_short",
            Count::EventLost => "event_lost",
            Count::Fragmented => "fragmented",
            Count::Keepalive => "keepalive",
            Count::GsoFallback => "gso_fallback",
        }
    }

    /// It counts something that is no drop.
    fn is_notice(self) -> bool {
        matches!(
            self,
            Count::EventLost | Count::Fragmented | Count::Keepalive | Count::GsoFallback
        )
    }
}

/// Shared by all threads; drops are rare, so they may share a cache line.
#[derive(Debug, Default)]
pub(crate) struct Stats([AtomicU64; Count::ALL.len()]);

impl Stats {
    #[cold]
    pub(crate) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: Count, number: u64) {
        self.0[what as usize].fetch_add(number, Relaxed);
    }

    /// Adds what is not zero to the two maps.
    pub(crate) fn collect(
        &self,
        drops: &mut BTreeMap<String, u64>,
        notices: &mut BTreeMap<String, u64>,
    ) {
        for what in Count::ALL {
            let value = self.0[what as usize].load(Relaxed);
            let map = if what.is_notice() {
                &mut *notices
            } else {
                &mut *drops
            };
            if value != 0 {
                *map.entry(what.name().to_owned()).or_default() += value;
            }
        }
    }
}
