//! SAs (RFC 4301 4.4.2, the SAD); the kernel calls them states.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::algorithm::XfrmAlgorithm;
use super::selector::{XfrmDirection, XfrmMode, XfrmSelector};

/// Names an SA in the kernel. ESP only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XfrmSaId {
    /// Where its packets go: ours for inbound ones, the peer's for outbound ones.
    pub destination: IpAddr,
    /// The SPI.
    pub spi: u32,
    /// The packet mark it wants, and the mask it is compared under; 0/0 is any.
    pub mark: (u32, u32),
}

/// ESP inside UDP (RFC 3948).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct XfrmEncapsulation {
    /// Port of the sending end.
    pub source_port: u16,
    /// Port of the receiving end.
    pub destination_port: u16,
}

/// Sequence numbers and the window against replays (RFC 4303 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct XfrmReplay {
    /// Packets of history; 0 for outbound SAs of kernels that know directions.
    pub window: u32,
    /// 64-bit sequence numbers (RFC 4303 2.2.1).
    pub esn: bool,
    /// The last sequence number sent; the next is one more.
    pub sent: u64,
    /// The highest sequence number received.
    pub received: u64,
}

/// When an SA asks for a successor (soft) and when it ends (hard). `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct XfrmLimits {
    /// Bytes until a soft [`XfrmEvent::Expire`](super::XfrmEvent::Expire).
    pub soft_bytes: Option<u64>,
    /// Packets until it.
    pub soft_packets: Option<u64>,
    /// Time since the SA was added until it; the kernel counts whole seconds.
    pub soft_time: Option<Duration>,
    /// Bytes until the SA is removed.
    pub hard_bytes: Option<u64>,
    /// Packets until the SA is removed.
    pub hard_packets: Option<u64>,
    /// Time since the SA was added until it is removed.
    pub hard_time: Option<Duration>,
}

/// One SA, as it is installed or read back. Its keys are never shown.
pub struct XfrmSa {
    /// Its name.
    pub id: XfrmSaId,
    /// Where its packets come from.
    pub source: IpAddr,
    /// The request ID that templates name it by.
    pub reqid: u32,
    /// Its mode.
    pub mode: XfrmMode,
    /// Which packets may be inside; `None` is any of the family of its addresses in transport
    /// mode, any at all in tunnel mode.
    pub selector: Option<XfrmSelector>,
    /// Algorithms and keys.
    pub algorithm: XfrmAlgorithm,
    /// Inside UDP.
    pub encapsulation: Option<XfrmEncapsulation>,
    /// Sequence numbers.
    pub replay: XfrmReplay,
    /// Its direction, where the kernel is told one (Linux 6.10 and later).
    pub direction: Option<XfrmDirection>,
    /// Its lifetimes.
    pub limits: XfrmLimits,
    /// The mark that its packets get after they went through it, and the bits that are set.
    pub output_mark: Option<(u32, u32)>,
    /// The XFRM interface; 0 is none.
    pub if_id: u32,
    /// The CPU whose packets it is for (RFC 9611; Linux 6.13 and later).
    pub cpu: Option<u32>,
    /// Inbound, inside UDP: at most one notification of a moved peer in this time; the kernel
    /// counts whole seconds. `None`: one for each packet.
    pub mapping_interval: Option<Duration>,
}

impl fmt::Debug for XfrmSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XfrmSa")
            .field("id", &self.id)
            .field("source", &self.source)
            .field("reqid", &self.reqid)
            .field("mode", &self.mode)
            .field("selector", &self.selector)
            .field("algorithm", &self.algorithm.names())
            .field("encapsulation", &self.encapsulation)
            .field("replay", &self.replay)
            .field("direction", &self.direction)
            .field("limits", &self.limits)
            .field("output_mark", &self.output_mark)
            .field("if_id", &self.if_id)
            .field("cpu", &self.cpu)
            .finish_non_exhaustive()
    }
}

/// What the kernel has counted of an SA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct XfrmSaUse {
    /// Bytes, of whole packets as the kernel counts them.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// When it was added, in seconds of Unix time.
    pub added: u64,
    /// When its first packet went through, in seconds of Unix time; 0: none has.
    pub first_used: u64,
    /// When its last packet went through, in seconds of Unix time; 0 where none has, or where the
    /// kernel does not say.
    pub last_used: u64,
    /// Packets older than the replay window.
    pub outside_window: u32,
    /// Packets that came twice.
    pub replayed: u32,
    /// Packets whose integrity check failed.
    pub integrity_failed: u32,
}

/// An SA as the kernel lists it.
#[derive(Debug)]
pub struct XfrmListedSa {
    /// What was asked for, and the sequence numbers of now.
    pub sa: XfrmSa,
    /// What it has carried.
    pub used: XfrmSaUse,
}
