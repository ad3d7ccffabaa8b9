//! The datapath trait and its in-memory twin; the firewall rules that all datapaths share.
//!
//! A datapath carries packets. It is told three things: which traffic is protected and what
//! becomes of it ([`Datapath::set_traffic`], the whole wish at once, idempotent), which SAs stand
//! (installed and removed one by one), and which outbound SA of a peer is in use
//! ([`Datapath::use_outbound`]). It answers with counters and events. It decides nothing.
#![forbid(unsafe_code)]

mod firewall;
mod mtu;
mod twin;
mod whose;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use testudo_model::{
    ChildId, Cipher, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerId, SaDirection, SaId,
    SaMode, Spi, TrafficPolicy,
};
use thiserror::Error;

pub use firewall::{ClearMatch, FIREWALL_COUNTERS, FIREWALL_TABLE, firewall};
pub use mtu::{inner_mtu, outer_len};
pub use twin::{Call, Operation, Twin, Verdict};
pub use whose::Whose;

/// Called whenever an event waits, from any thread; it must be quick and must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What a datapath can do with packets and SAs.
///
/// Order that loses no packet: `install_inbound` at both ends, then `install_outbound`, then
/// `use_outbound`, then `remove` of the old pair. Until it is removed an inbound SA accepts.
pub trait Datapath: Send {
    /// `user` or `kernel`, as status shows it.
    fn kind(&self) -> &'static str;

    /// Makes the host's rules say what `policy` says. Idempotent; what stands already is left
    /// alone. On an error the stricter of the old and the new holds.
    fn set_traffic(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError>;

    /// As [`Datapath::set_traffic`], but waits for nothing that may take long. False: what is begun
    /// goes on; whoever [`Datapath::set_waker`] names is called when to ask again with the same policy.
    fn begin_traffic(&mut self, policy: &TrafficPolicy) -> Result<bool, DatapathError> {
        self.set_traffic(policy).map(|()| true)
    }

    /// Installs an SA that opens packets. It accepts from the moment this returns.
    fn install_inbound(&mut self, sa: InboundSaSpec) -> Result<(), DatapathError>;

    /// Installs an SA that seals packets. It is not used until `use_outbound` names it.
    fn install_outbound(&mut self, sa: OutboundSaSpec) -> Result<(), DatapathError>;

    /// How many CPUs can have outbound SAs of their own (RFC 9611): those numbered from 0. 0: there
    /// are none, and each peer's packets of a flow leave on one SA.
    fn cpus(&self) -> u32 {
        0
    }

    /// As `install_outbound`, an SA for what one CPU sends alone. What its CPU sends leaves on it
    /// once `use_outbound` has named it and while an SA for all CPUs is in use beside it, with the
    /// same selectors; before and after, and on other CPUs, packets leave on that one.
    fn install_outbound_for(&mut self, cpu: u32, _sa: OutboundSaSpec) -> Result<(), DatapathError> {
        Err(DatapathError::Misuse {
            operation: "install an outbound SA for a CPU",
            reason: format!("this datapath has none for CPU {cpu}"),
        })
    }

    /// From now on packets to the peer of `child` that match its selectors are sealed with it.
    fn use_outbound(&mut self, child: ChildId) -> Result<(), DatapathError>;

    /// Whether packets that `child` is to carry still leave on an SA that an earlier run left: until
    /// `use_outbound` names `child`, nothing of them is lost at a peer that has the old SA. Never
    /// where SAs end with the process.
    fn follows_earlier_run(&self, _child: ChildId) -> bool {
        false
    }

    /// Removes both SAs of a pair; one that is not there is no error.
    fn remove(&mut self, child: ChildId) -> Result<(), DatapathError>;

    /// The peer's end of a pair has moved (RFC 7296 2.23): send there.
    fn rebind(&mut self, child: ChildId, to: Encapsulation) -> Result<(), DatapathError>;

    /// Sends an IKE message from the datapath's UDP 4500 socket; the non-ESP marker is added here.
    fn send_ike(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> Result<(), DatapathError>;

    /// Sends a NAT keepalive, one byte 0xff, from the datapath's UDP 4500 socket (RFC 3948 2.3).
    fn send_keepalive(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), DatapathError>;

    /// What happened since the last call. Never blocks.
    fn poll_event(&mut self) -> Option<Event>;

    /// Names who is called when an event waits. Calls may be spurious; whoever is called polls
    /// until there is none.
    fn set_waker(&mut self, waker: Waker);

    /// Counters of every SA and every reason for a drop.
    fn counters(&self) -> Counters;

    /// Counters of every SA; reasons for drops that cost more to read may be left out.
    fn sa_counters(&self) -> Counters {
        self.counters()
    }

    /// Counters of one pair, inbound and outbound; zero where there is none. Cheaper than all.
    fn pair_counters(&self, child: ChildId) -> (SaCounters, SaCounters) {
        let (inbound, outbound) = self.pair_halves(child);
        (inbound.unwrap_or_default(), outbound.unwrap_or_default())
    }

    /// As [`Datapath::pair_counters`]; `None` where there is no such SA or it could not be read, which
    /// is not the same as one that has carried nothing.
    fn pair_halves(&self, child: ChildId) -> (Option<SaCounters>, Option<SaCounters>) {
        let counters = self.counters();
        let of = |direction| counters.sas.get(&SaId { child, direction }).copied();
        (of(SaDirection::Inbound), of(SaDirection::Outbound))
    }

    /// How many policies (routing rules, where these steer) stand in the host for each peer, as the
    /// host itself says: one listing for all. Those that are for no peer in particular are not in it.
    fn policies(&self) -> Result<BTreeMap<PeerId, u32>, DatapathError>;

    /// The largest inner packet, IP header included, that a pair carries without fragments over
    /// a path of `path_mtu`, bytes.
    fn inner_mtu(
        &self,
        mode: SaMode,
        cipher: Cipher,
        encapsulation: &Encapsulation,
        path_mtu: u32,
    ) -> u32 {
        inner_mtu(mode, cipher, encapsulation, path_mtu)
    }

    /// From now on an SA that is installed ends by itself after so long: those of an agent that does
    /// not come back must not stand for ever. Without meaning where SAs end with the process.
    fn set_hard_lifetime(&mut self, _hard: Duration) {}

    /// Removes all that this datapath put into the host: rules, routes, tables, devices.
    fn clear(&mut self) -> Result<(), DatapathError>;
}

/// What a datapath tells on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An IKE message came in on UDP 4500, its marker taken off.
    Ike {
        /// Our end.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
        /// The message.
        message: Vec<u8>,
    },
    /// The first packet of an inbound SA was opened: the peer uses the pair.
    FirstInbound {
        /// The pair.
        child: ChildId,
    },
    /// An outbound SA has passed a soft limit; told once.
    SoftLimit {
        /// The pair.
        child: ChildId,
    },
    /// A good packet, and the newest, of a UDP-encapsulated pair came from another end than the
    /// pair's.
    PeerMoved {
        /// The pair.
        child: ChildId,
        /// Where it came from.
        remote: SocketAddr,
    },
    /// An ESP packet with an SPI that is not ours; at most one event a second.
    UnknownSpi {
        /// The SPI.
        spi: Spi,
        /// Where it came from.
        remote: std::net::IpAddr,
    },
    /// An SA of a pair is gone, and nobody asked for it: somebody removed it, or its time was
    /// over. What it carried is blocked until a successor is used. Told once a pair.
    SaLost {
        /// The pair.
        child: ChildId,
    },
    /// A part of the datapath has ended; packets are dropped from here on.
    Failed {
        /// What, and why.
        reason: String,
    },
}

/// Counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By SA.
    pub sas: BTreeMap<SaId, SaCounters>,
    /// Packets dropped, by reason (snake_case).
    pub drops: BTreeMap<String, u64>,
    /// What was counted and is no drop: `fragmented`, `keepalive`, `gso_fallback`.
    pub notices: BTreeMap<String, u64>,
}

/// One SA's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaCounters {
    /// Packets sealed or opened.
    pub packets: u64,
    /// Bytes of payload sealed or opened.
    pub bytes: u64,
    /// The highest sequence number sent or accepted.
    pub sequence: u64,
}

/// Why a datapath could not do as told.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The host lacks something; the text says what and what to do.
    #[error("{what}; {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The host refused.
    #[error("{operation}: {reason}")]
    Refused {
        /// What was tried.
        operation: String,
        /// What the host said.
        reason: String,
    },
    /// A traffic policy is in force but for what is named. Nothing is more open than it was.
    #[error("{operation}: {reason}")]
    Partly {
        /// What was tried.
        operation: String,
        /// What is not in force, and why.
        reason: String,
    },
    /// The caller named a pair that is not there, or one that is there already.
    #[error("{operation}: {reason}")]
    Misuse {
        /// What was tried.
        operation: &'static str,
        /// Why it makes no sense.
        reason: String,
    },
}

impl DatapathError {
    /// A datagram to a peer that could not be sent, `what` with its article.
    pub fn unsent(
        what: &str,
        local: SocketAddr,
        remote: SocketAddr,
        reason: &impl std::fmt::Display,
    ) -> Self {
        DatapathError::Refused {
            operation: format!("send {what} from {} to {remote}", local.ip()),
            reason: reason.to_string(),
        }
    }
}

/// Names a peer in an error or a log line.
pub fn describe(peer: &PeerId, child: ChildId) -> String {
    format!("peer {peer}, child {}", child.0)
}
