//! An IKE SA and its children: what is remembered of them. Who may do what lies in the variant.

pub(crate) mod auth;
pub(crate) mod child;
pub(crate) mod create;
pub(crate) mod establish;
pub(crate) mod followup;
pub(crate) mod informational;
pub(crate) mod init;
pub(crate) mod intermediate;
pub(crate) mod rekey;
pub(crate) mod resource;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use testudo_crypto::{Cipher, KeMethod, KePrivate};
use testudo_model::{ChildId, Encapsulation, Monotonic, PeerId, SaMode, TrafficSelector, UnixTime};

use crate::config::Identity;
use crate::event::{CertificateFacts, DownReason, IkeId};
use crate::fragments::Assembly;
use crate::intauth::IntAuth;
use crate::keys::IkeKeys;
use crate::message::{Datagrams, Payloads, Request};
use crate::nat::Nat;
use crate::ppk::PpkOffer;
use crate::receipt::Word;
use crate::sa::followup::{FollowUp, Follower, IkeMaking};
use crate::suites::Suites;
use crate::verify::FailedCheck;
use crate::window::{Answered, Asked};

/// An IKE SA in any state.
pub(crate) struct IkeSa {
    pub(crate) id: IkeId,
    /// We are its original initiator (the I flag, the order of the SPIs).
    pub(crate) initiator: bool,
    pub(crate) spi_ours: u64,
    /// 0 until the peer's first answer.
    pub(crate) spi_peer: u64,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) nat: Nat,
    /// Known from the start when we initiate, else since IKE_AUTH.
    pub(crate) peer: Option<PeerId>,
    /// The engine's sequence number when it began.
    pub(crate) born: u64,
    /// When it began: with the IKE_SA_INIT that we sent or took in, or with a rekey's end.
    pub(crate) begun: Monotonic,
    /// How a repeated IKE_SA_INIT request finds it.
    pub(crate) init_key: Option<InitKey>,
    /// Messages of which only some fragments have come.
    pub(crate) partial: Vec<Assembly>,
    pub(crate) state: State,
}

/// The source and content of an IKE_SA_INIT request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InitKey {
    pub(crate) remote: SocketAddr,
    pub(crate) spi_i: u64,
    pub(crate) digest: [u8; 32],
}

/// Where a half-open SA comes from. One who forges another's address is counted apart from the
/// other, who can prove by a cookie that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    pub(crate) address: IpAddr,
    pub(crate) proven: bool,
}

/// The states of an IKE SA.
pub(crate) enum State {
    /// We sent IKE_SA_INIT.
    InitSent(Box<InitSent>),
    /// We sent IKE_INTERMEDIATE.
    IntermediateSent(Box<IntermediateSent>),
    /// We sent IKE_AUTH.
    AuthSent(Box<AuthSent>),
    /// We answered IKE_SA_INIT, and perhaps IKE_INTERMEDIATE.
    HalfOpen(Box<HalfOpen>),
    /// Both ends are authenticated.
    Established(Box<Established>),
    /// We told the responder that its IKE_AUTH answer proves nothing, and wait for its answer.
    Refusing(Box<Refusing>),
    /// Between two states, within one call; nothing is accepted.
    Gap,
}

pub(crate) struct InitSent {
    pub(crate) ke: Arc<KePrivate>,
    pub(crate) nonce: Vec<u8>,
    pub(crate) cookie: Option<Vec<u8>>,
    /// Cookies that we have answered.
    pub(crate) cookies: u32,
    /// Methods that this attempt has tried.
    pub(crate) tried: Vec<KeMethod>,
    pub(crate) request: Request,
    /// What an unauthenticated answer refused, or lacked: told if nothing better comes.
    pub(crate) refusal: Option<(FailedCheck, String)>,
}

/// Both ends' first messages and nonces: what AUTH covers.
pub(crate) struct Transcript {
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
}

impl Transcript {
    /// The smaller nonce: SAs made at once are told apart by it (RFC 7296, 2.8.1).
    pub(crate) fn tie(&self) -> Vec<u8> {
        self.nonce_i.clone().min(self.nonce_r.clone())
    }
}

/// What the initiator keeps of IKE_SA_INIT until IKE_AUTH.
pub(crate) struct Greeting {
    pub(crate) transcript: Transcript,
    /// Hashes that the peer takes.
    pub(crate) peer_hashes: Vec<u16>,
    /// The peer takes an IKE_AUTH without a child (RFC 6023).
    pub(crate) childless: bool,
    /// The peer uses a PPK too.
    pub(crate) use_ppk: bool,
}

pub(crate) struct IntermediateSent {
    pub(crate) keys: IkeKeys,
    pub(crate) int_auth: IntAuth,
    pub(crate) greeting: Arc<Greeting>,
    /// Our half of the key exchange under way.
    pub(crate) ke: Arc<KePrivate>,
    pub(crate) request: Request,
}

pub(crate) struct AuthSent {
    pub(crate) keys: IkeKeys,
    pub(crate) int_auth: IntAuth,
    pub(crate) greeting: Arc<Greeting>,
    pub(crate) request: Request,
    /// The child offered with it.
    pub(crate) child: Option<ChildOffer>,
    /// The PPK offered with it.
    pub(crate) ppk: Option<PpkOffer>,
}

/// What a child is for: of several that stand for the same, one is too many.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    /// The child's name in the peer's configuration.
    pub(crate) name: String,
    /// 0, or the CPU or queue that it is for (RFC 9611).
    pub(crate) resource: u32,
}

/// A child that we offered.
pub(crate) struct ChildOffer {
    pub(crate) slot: Slot,
    pub(crate) spi: u32,
    pub(crate) mode: SaMode,
    pub(crate) local_ts: Vec<TrafficSelector>,
    pub(crate) remote_ts: Vec<TrafficSelector>,
    pub(crate) born: u64,
    /// Whether we say that there may be more of it (RFC 9611).
    pub(crate) shares: bool,
}

pub(crate) struct HalfOpen {
    pub(crate) keys: IkeKeys,
    pub(crate) transcript: Transcript,
    /// Hashes that the peer takes.
    pub(crate) peer_hashes: Vec<u16>,
    /// Both ends said USE_PPK.
    pub(crate) use_ppk: bool,
    /// What the bound per source counts it for.
    pub(crate) source: Source,
    /// What AUTH covers of the additional key exchanges so far.
    pub(crate) int_auth: IntAuth,
    /// The keys that the last additional key exchange went under, for its repetition.
    pub(crate) prior: Option<IkeKeys>,
    /// IKE_INTERMEDIATE requests and our answers.
    pub(crate) answered: Answered,
    /// Our refusal of its last request, to be repeated.
    pub(crate) refused: Option<Datagrams>,
}

pub(crate) struct Refusing {
    pub(crate) keys: IkeKeys,
    pub(crate) request: Request,
}

/// Where an IKE SA stands among others with the same peer. A rekeyed SA inherits it.
#[derive(Debug, Clone)]
pub(crate) struct Lineage {
    pub(crate) number: u64,
    /// We began the first IKE SA of the line.
    pub(crate) initiated: bool,
    /// Sequence numbers of its beginning and its authentication.
    pub(crate) born: u64,
    pub(crate) established: u64,
    /// The smaller of its nonces.
    pub(crate) tie: Vec<u8>,
    /// Another took its place, which may have gone since: this does not come back to life.
    pub(crate) superseded: bool,
}

/// How far an established IKE SA is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A successor that the peer made while our own request for one is under way: which of the
    /// two is used is not known yet.
    Waiting,
    /// In use.
    Open,
    /// Rekeyed by one end or both, not settled yet or waiting for its deletion.
    Rekeyed,
    /// We delete it; its children receive until the peer has answered.
    Leaving(DownReason),
    /// We delete it; for the agent it is gone already.
    Shut,
    /// The peer deleted it; it only repeats its last answer.
    Gone,
}

/// A new IKE SA that is to take the place of an old one.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    pub(crate) ike: IkeId,
    pub(crate) ours: bool,
    pub(crate) tie: Vec<u8>,
}

/// Work that waits for the message window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Probe,
    CreateChild(Slot),
    RekeyChild(ChildId),
    DeleteChild(ChildId),
    /// A child that we do not take although the peer made it: our SPI of it.
    DeleteSpi(u32),
    RekeyIke,
    DeleteIke,
    /// Something to be told of ESP.
    Say(Word),
}

/// What the outstanding request is about.
pub(crate) enum Pending {
    /// Nothing: the answer is a sign of life.
    Probe,
    CreateChild(Box<ChildRequest>),
    DeleteChild(ChildId),
    DeleteSpi,
    RekeyIke(Box<IkeRequest>),
    DeleteIke,
}

impl Pending {
    /// Our half of the key exchange that the answer ends.
    pub(crate) fn private(&self) -> Option<&Arc<KePrivate>> {
        match self {
            Self::CreateChild(r) => r.follow.as_ref().map(|f| f.up.private()).or(r.ke.as_ref()),
            Self::RekeyIke(r) => r.follow.as_ref().map(|f| f.up.private()).or(r.ke.as_ref()),
            Self::Probe | Self::DeleteChild(_) | Self::DeleteSpi | Self::DeleteIke => None,
        }
    }
}

/// A child that we asked for with CREATE_CHILD_SA.
pub(crate) struct ChildRequest {
    pub(crate) offer: ChildOffer,
    pub(crate) rekeys: Option<ChildId>,
    pub(crate) nonce: Vec<u8>,
    pub(crate) ke: Option<Arc<KePrivate>>,
    pub(crate) tried: Vec<KeMethod>,
    /// What CREATE_CHILD_SA gave, while additional key exchanges go on (RFC 9370, 2.2.4).
    pub(crate) follow: Option<Box<ChildFollow>>,
}

/// The peer has agreed to a child, and the key exchanges after that.
pub(crate) struct ChildFollow {
    pub(crate) answer: Payloads,
    /// The method of the first.
    pub(crate) method: Option<KeMethod>,
    pub(crate) up: FollowUp,
}

/// An IKE SA that we asked for with CREATE_CHILD_SA.
pub(crate) struct IkeRequest {
    /// What was offered: the peer's suites may change before it answers.
    pub(crate) suites: Suites,
    pub(crate) spi: u64,
    pub(crate) nonce: Vec<u8>,
    pub(crate) ke: Option<Arc<KePrivate>>,
    pub(crate) tried: Vec<KeMethod>,
    /// What CREATE_CHILD_SA gave, while additional key exchanges go on (RFC 9370, 2.2.4).
    pub(crate) follow: Option<Box<IkeFollow>>,
}

/// The peer has agreed to an IKE SA, and the key exchanges after that.
pub(crate) struct IkeFollow {
    pub(crate) made: IkeMaking,
    pub(crate) up: FollowUp,
}

pub(crate) struct Established {
    pub(crate) keys: IkeKeys,
    pub(crate) lineage: Lineage,
    pub(crate) phase: Phase,
    /// The peer is known to hold the SA established: it answered, or it asked.
    pub(crate) confirmed: bool,
    /// We told the peer that this one wins over another, by a probe.
    pub(crate) announced: bool,
    pub(crate) identity: Identity,
    pub(crate) certificate: Option<CertificateFacts>,
    /// The peer's chain, to be judged again when trust changes.
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) since: UnixTime,
    pub(crate) rekeys: u32,
    pub(crate) last_in: Monotonic,
    pub(crate) expires: Monotonic,
    /// Its children, without those that linger.
    pub(crate) children: BTreeSet<ChildId>,
    /// Children that the peer made and may not have installed yet.
    pub(crate) unconfirmed: Vec<ChildId>,
    pub(crate) answered: Answered,
    /// A request came after those that made this IKE SA.
    pub(crate) settled: bool,
    /// Requests that came before their turn.
    pub(crate) held: Vec<Asked>,
    /// How many requests the peer takes at once. We send one.
    pub(crate) peer_window: u32,
    pub(crate) next_request: u32,
    pub(crate) outstanding: Option<(Request, Pending)>,
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) successors: Vec<Successor>,
    /// Requests of the peer's that go on in additional key exchanges.
    pub(crate) followers: Vec<Follower>,
    /// SPIs that the peer deleted before we knew them (a DELETE overtook an answer).
    pub(crate) deleted_spis: Vec<u32>,
    /// Refusals in a row of our rekey of the IKE SA.
    pub(crate) rekey_failures: u32,
    /// Addresses changed since it was made: another is to take its place.
    pub(crate) moved: bool,
    /// Children for resources that the peer takes at most, by name, where it has said so.
    pub(crate) most_resources: BTreeMap<String, u32>,
}

/// Where a child is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// Installed at our end.
    Up,
    /// We are deleting it; it still receives.
    Deleting(DownReason),
    /// Deleted at both ends, or at the peer's; late packets are still taken.
    Lingering(DownReason),
}

/// A pair of ESP SAs.
pub(crate) struct Child {
    pub(crate) id: ChildId,
    pub(crate) ike: IkeId,
    pub(crate) peer: PeerId,
    pub(crate) slot: Slot,
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) mode: SaMode,
    pub(crate) local_ts: Vec<TrafficSelector>,
    pub(crate) remote_ts: Vec<TrafficSelector>,
    pub(crate) cipher: Cipher,
    /// The method of its key exchange, to begin a rekey with the one that worked.
    pub(crate) ke: Option<KeMethod>,
    /// We asked for it.
    pub(crate) initiator: bool,
    /// Known to be installed at the peer's end.
    pub(crate) confirmed: bool,
    pub(crate) announced: bool,
    pub(crate) state: ChildState,
    pub(crate) replaces: Option<ChildId>,
    /// Whether the peer takes more of the same for resources; `None`: it was not asked.
    pub(crate) shares: Option<bool>,
    pub(crate) born: u64,
    pub(crate) installed: u64,
    /// The smaller of the nonces of its exchange.
    pub(crate) tie: Vec<u8>,
    pub(crate) since: UnixTime,
    pub(crate) rekeys: u32,
    /// Refusals in a row of our rekey of it.
    pub(crate) failures: u32,
    /// Its configuration changed: it carries packets until another stands in its place.
    pub(crate) stale: bool,
}

impl State {
    /// What stands in while the content of a state is moved to the next.
    pub(crate) fn gap() -> Self {
        Self::Gap
    }

    /// For status and tests.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::InitSent(_) => "init_sent",
            Self::IntermediateSent(_) => "intermediate_sent",
            Self::AuthSent(_) => "auth_sent",
            Self::HalfOpen(_) => "half_open",
            Self::Refusing(_) => "refusing",
            Self::Gap => "gap",
            Self::Established(est) => match est.phase {
                Phase::Waiting => "waiting",
                Phase::Open => "established",
                Phase::Rekeyed => "rekeyed",
                Phase::Leaving(_) => "leaving",
                Phase::Shut => "shut",
                Phase::Gone => "gone",
            },
        }
    }

    /// The request that waits for an answer under keys, and the keys.
    pub(crate) fn awaits(&self) -> Option<(&IkeKeys, &Request)> {
        match self {
            Self::IntermediateSent(s) => Some((&s.keys, &s.request)),
            Self::AuthSent(s) => Some((&s.keys, &s.request)),
            Self::Refusing(s) => Some((&s.keys, &s.request)),
            Self::Established(s) => {
                let (request, _) = s.outstanding.as_ref()?;
                Some((&s.keys, request))
            }
            Self::InitSent(_) | Self::HalfOpen(_) | Self::Gap => None,
        }
    }

    /// The request that waits for an answer.
    pub(crate) fn request(&mut self) -> Option<&mut Request> {
        match self {
            Self::InitSent(s) => Some(&mut s.request),
            Self::IntermediateSent(s) => Some(&mut s.request),
            Self::AuthSent(s) => Some(&mut s.request),
            Self::Refusing(s) => Some(&mut s.request),
            Self::Established(s) => s.outstanding.as_mut().map(|(request, _)| request),
            Self::HalfOpen(_) | Self::Gap => None,
        }
    }
}

impl IkeSa {
    /// SPIs of initiator and responder.
    pub(crate) fn spis(&self) -> (u64, u64) {
        if self.initiator {
            (self.spi_ours, self.spi_peer)
        } else {
            (self.spi_peer, self.spi_ours)
        }
    }

    pub(crate) fn established(&self) -> Option<&Established> {
        match &self.state {
            State::Established(est) => Some(est),
            _ => None,
        }
    }

    pub(crate) fn established_mut(&mut self) -> Option<&mut Established> {
        match &mut self.state {
            State::Established(est) => Some(est),
            _ => None,
        }
    }

    /// Established and in use.
    pub(crate) fn is_open(&self) -> bool {
        self.established().is_some_and(|e| e.phase == Phase::Open)
    }

    /// How ESP travels under this IKE SA.
    pub(crate) fn encapsulation(&self, nat_port: u16) -> Encapsulation {
        if self.nat.encapsulate() {
            Encapsulation::Udp {
                local: SocketAddr::new(self.local.ip(), nat_port),
                remote: self.remote,
            }
        } else {
            Encapsulation::None {
                local: self.local.ip(),
                remote: self.remote.ip(),
            }
        }
    }
}

impl Established {
    /// Whether a task is waiting or under way.
    pub(crate) fn has_task(&self, task: &Task) -> bool {
        let under_way = match (&self.outstanding, task) {
            (Some((_, Pending::Probe)), Task::Probe) => true,
            (Some((_, Pending::CreateChild(r))), Task::CreateChild(slot)) => {
                r.rekeys.is_none() && r.offer.slot == *slot
            }
            (Some((_, Pending::CreateChild(r))), Task::RekeyChild(id)) => r.rekeys == Some(*id),
            (Some((_, Pending::DeleteChild(c))), Task::DeleteChild(id)) => c == id,
            (Some((_, Pending::RekeyIke(_))), Task::RekeyIke) => true,
            (Some((_, Pending::DeleteIke)), Task::DeleteIke) => true,
            _ => false,
        };
        under_way || self.tasks.contains(task)
    }

    /// Whether a request of ours for a child waits for its answer.
    pub(crate) fn awaits_child(&self) -> bool {
        matches!(self.outstanding, Some((_, Pending::CreateChild(_))))
    }

    /// What the new child is for that a request of ours asks for and that is not answered yet.
    pub(crate) fn asked_slot(&self) -> Option<&Slot> {
        match &self.outstanding {
            Some((_, Pending::CreateChild(r))) if r.rekeys.is_none() => Some(&r.offer.slot),
            _ => None,
        }
    }

    /// Whether children are being made on it.
    pub(crate) fn is_creating(&self) -> bool {
        matches!(&self.outstanding, Some((_, Pending::CreateChild(r))) if r.rekeys.is_none())
            || self.tasks.iter().any(|t| matches!(t, Task::CreateChild(_)))
    }
}

impl Child {
    pub(crate) fn is_up(&self) -> bool {
        self.state == ChildState::Up
    }
}
