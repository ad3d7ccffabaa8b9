//! The node: what the store wants, what stands, and the steps from one to the other.
//!
//! [`Node::update`] is called after anything has changed or a deadline has passed. It may be
//! called at any time: it compares and does only what is missing.

mod credentials;
mod force;
mod peers;
mod pods;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use testudo_crypto::SystemRandom;
use testudo_ike::Engine;
use testudo_model::{
    Acknowledgement, Monotonic, NodeEncryption, Now, PeerId, TrafficPolicy, UnixTime,
};
use testudo_plan::node::Waiting;
use testudo_store::Location;
use tokio::sync::Notify;

use crate::Options;
use crate::certificates::{Certificates, Voucher};
use crate::core::Core;
use crate::enforcement::{Enforcement, PolicyFile};
use crate::host::Host;
use crate::identity::Identity;
use crate::keys::KeyExport;
use crate::memory::{self, Memory, Word};
use crate::metrics::Readiness;
use crate::objects::{Objects, Told};
use crate::publish::News;
use crate::reconcile;
use crate::resources::Resources;
use crate::rotation::Rotation;
use crate::verifier::Trust;

/// Between two tries to open what cannot be opened, first and at most.
const OPEN_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Rounds of one update; what is left then comes with the next event.
const ROUNDS: usize = 4;
/// What changes without an event (path MTU, counters of drops) is looked at so often.
const LOOK: Duration = Duration::from_secs(10);
/// The same where the node's addresses may be among it.
const LOOK_FOR_ADDRESSES: Duration = Duration::from_secs(2);

/// Something that is tried again, later each time.
#[derive(Clone, Copy, Debug)]
struct Retry {
    due: Monotonic,
    wait: Duration,
}

/// Everything an agent knows and holds.
pub(crate) struct Node {
    pub(crate) options: Options,
    pub(crate) identity: Identity,
    pub(crate) objects: Objects,
    memory: Memory,
    /// Rung when what the store said has been written.
    pub(crate) memory_bell: Arc<Notify>,
    /// It was.
    wrote: bool,
    /// Since when the store cannot be reached, and why.
    pub(crate) away: Option<(UnixTime, String)>,
    /// When it was back the last time, and how long it had been away, seconds.
    pub(crate) was_away: Option<(UnixTime, i64)>,
    pub(crate) core: Core,
    pub(crate) certificates: Certificates,
    pub(crate) host: Box<dyn Host>,
    /// Rung by the datapath when it has an event.
    pub(crate) bell: Arc<Notify>,
    pub(crate) acknowledged: Option<Acknowledgement>,
    /// What others may hear of that and of certificates.
    pub(crate) word: Word,
    /// Why the present step is not acknowledged yet.
    pub(crate) waiting: Vec<Waiting>,
    /// What is wrong, by the part it is wrong with.
    pub(crate) problems: BTreeMap<&'static str, String>,
    pub(crate) rotation: Rotation,
    pub(crate) rotation_done: u64,
    /// The CA of the certificate that all peers have seen.
    pub(crate) presented: Option<String>,
    /// The CAs of the newer ones, which some peers may have seen.
    pub(crate) showing: BTreeSet<String>,
    pub(crate) news: News,
    pub(crate) readiness: Readiness,
    pub(crate) resources: Resources,
    enforcement: Enforcement<PolicyFile>,
    /// The policy that was applied to the datapath, or to the host without one.
    in_force: Option<InForce>,
    told: Monotonic,
    /// What the datapath is at; it rings when it is to be asked again.
    enforcing: Option<TrafficPolicy>,
    /// It has rung since it was asked.
    rung: bool,
    pub(crate) trust: Trust,
    has_identity: bool,
    peers: BTreeMap<PeerId, reconcile::Peer>,
    calls: BTreeMap<PeerId, Retry>,
    /// Peers that the engine did not take, and when they are given to it again.
    unset: BTreeMap<PeerId, Retry>,
    open: Option<Retry>,
    certificate_due: Option<UnixTime>,
    /// The rotation that is wanted and the CA that signs, and when they were first seen.
    rotation_seen: Option<((u64, Option<String>), UnixTime)>,
    looked: Monotonic,
    /// The store has told something since the last update.
    changed: bool,
    seen: (bool, bool),
}

/// What the host was told last.
#[derive(Clone, Debug, PartialEq)]
enum InForce {
    /// Nothing of ours stands.
    Nothing,
    /// Rules alone: what is to be sealed is dropped.
    Closed(TrafficPolicy),
    /// Rules and datapath.
    Full(TrafficPolicy),
}

impl Node {
    /// A node on a host that was closed already. Opens nothing.
    pub(crate) fn new(
        options: Options,
        host: Box<dyn Host>,
        enforcement: Enforcement<PolicyFile>,
    ) -> Result<Node> {
        let identity = Identity::open(&options.node, &options.state_dir, &mut SystemRandom::new())?;
        let voucher = match &options.store {
            Location::Directory(_) => Voucher::Token(options.join_token_file.clone()),
            Location::Kubernetes(_) => Voucher::Store,
        };
        let certificates = Certificates::open(&options.state_dir, identity.clone(), voucher);
        let keys = match &options.danger_export_keys {
            Some(directory) => Some(KeyExport::new(directory)?),
            None => None,
        };
        let memory_bell = Arc::new(Notify::new());
        let settings = reconcile::engine_config(&options);
        let engine = Engine::new(settings, Box::new(SystemRandom::new()));
        let news = News {
            spec: reconcile::node_spec(&options, &identity, host.kind()),
            status: Default::default(),
            request: None,
            removed: false,
            again: 0,
        };
        Ok(Node {
            identity,
            objects: match options.pods_from_node {
                true => Objects::awaiting_pods(),
                false => Objects::new(),
            },
            memory: Memory::open(&options.state_dir, Arc::clone(&memory_bell)),
            memory_bell,
            wrote: false,
            away: None,
            was_away: None,
            core: Core::new(engine, keys),
            certificates,
            host,
            bell: Arc::new(Notify::new()),
            acknowledged: None,
            word: Word::default(),
            waiting: Vec::new(),
            problems: BTreeMap::new(),
            rotation: Rotation::default(),
            rotation_done: 0,
            presented: None,
            showing: BTreeSet::new(),
            news,
            readiness: Readiness::default(),
            resources: Resources::default(),
            enforcement,
            in_force: None,
            told: Monotonic::default(),
            enforcing: None,
            rung: false,
            trust: Trust::default(),
            has_identity: false,
            peers: BTreeMap::new(),
            calls: BTreeMap::new(),
            unset: BTreeMap::new(),
            open: None,
            certificate_due: None,
            rotation_seen: None,
            looked: Monotonic::default(),
            changed: true,
            seen: (false, false),
            options,
        })
    }

    /// One round: from what is wanted and what stands to the steps that are missing.
    pub(crate) fn update(&mut self, now: Now) {
        self.core.handle_timeout(now);
        self.update_store(now);
        if !self.objects.is_known() {
            self.looked = now.monotonic;
            return;
        }
        let due = self.own_deadline(now) <= now.monotonic;
        // A bell that was lost would be a policy that is never in force.
        self.rung |= due;
        let asks = self.rung && self.enforcing.is_some();
        let wrote = std::mem::take(&mut self.wrote);
        let news = self.changed || self.core.changed || asks || wrote;
        if !(due || news) {
            return;
        }
        if due || self.changed {
            if self.in_force.is_none() {
                self.remember_word();
            }
            self.update_pods();
            self.update_addresses();
            self.update_datapath(now);
            self.update_kernels();
            self.update_trust(now);
            self.update_lifetimes();
            self.update_certificate(now);
            self.update_identity(now);
        }
        // What one round brings up can be what the next one needs.
        for _ in 0..ROUNDS {
            self.core.changed = false;
            let wish = reconcile::wish(self);
            self.fulfil(wish, now);
            self.core.settle(now);
            if !self.core.changed {
                break;
            }
        }
        self.update_rotation(now);
        self.update_resources(now);
        self.core.settle(now);
        self.looked = now.monotonic;
        self.changed = false;
        if self.objects.is_synced() {
            self.update_memory(now);
        }
        self.update_news(now);
    }

    /// What a restart without the store would go on with is on disk before anybody hears of it.
    fn update_memory(&mut self, now: Now) {
        let word = Word {
            acknowledged: self.acknowledged,
            rotation: self.rotation_done,
            authorities: self.authorities(),
        };
        match self.memory.keep(&mut self.objects, word, now) {
            Ok(said) => {
                self.problems.remove("memory");
                self.word = said.unwrap_or_else(|| self.word.clone());
            }
            Err(text) => {
                if self.problems.get("memory") != Some(&text) {
                    tracing::error!("{text}");
                    self.problems.insert("memory", text);
                }
            }
        }
    }

    /// A write has ended.
    pub(crate) fn has_written(&mut self) {
        self.wrote = true;
    }

    /// Whether there is something to be told to the store.
    pub(crate) fn has_news(&self) -> bool {
        self.objects.is_synced() && self.memory.has_tried()
    }

    /// Whether the store is there, said once each way; at the start, what to do without it.
    fn update_store(&mut self, now: Now) {
        match (self.objects.away.values().next(), &self.away) {
            (Some(why), None) => {
                tracing::warn!("{why}; what the store said last stays in force");
                self.away = Some((now.wall, why.clone()));
                self.changed = true;
            }
            (None, Some((since, _))) => {
                let seconds = now.wall.0.saturating_sub(since.0);
                tracing::info!(seconds, "the store answers again");
                self.was_away = Some((now.wall, seconds));
                self.away = None;
                self.changed = true;
            }
            _ => {}
        }
        let waited = now.monotonic.since(Monotonic::default()) >= memory::PATIENCE;
        if !self.objects.is_synced()
            && (waited || self.away.is_some())
            && self.enforcement.is_known()
            && let Some(kept) = self.memory.take()
        {
            tracing::warn!(
                written = %kept.written,
                "going on with what the store said to an earlier run"
            );
            self.objects.stand_in(kept, &self.identity.name);
            self.changed = true;
        }
    }

    /// Takes in what the store tells.
    pub(crate) fn take(&mut self, told: Told) {
        self.objects.take(told, &self.identity.name);
        self.changed = true;
    }

    /// The datapath has rung: it has events, or has done what it was at. Says whether there may be
    /// more events.
    pub(crate) fn datapath_rang(&mut self, now: Now) -> bool {
        self.rung = true;
        self.core.datapath_events(now)
    }

    /// The next deadline of any part.
    pub(crate) fn deadline(&self, now: Now) -> Monotonic {
        let own = self.own_deadline(now);
        self.core.deadline().map_or(own, |core| core.min(own))
    }

    fn own_deadline(&self, now: Now) -> Monotonic {
        let mut next = self.looked
            + match self.options.follow_addresses {
                true => LOOK_FOR_ADDRESSES,
                false => LOOK,
            };
        let mut sooner = |at: Option<Monotonic>| {
            if let Some(at) = at {
                next = next.min(at);
            }
        };
        sooner(self.open.map(|retry| retry.due));
        if self.memory.is_there() && self.enforcement.is_known() && !self.objects.is_synced() {
            sooner(Some(Monotonic::default() + memory::PATIENCE));
        }
        if self.has_identity && self.is_open() {
            sooner(self.calls.values().map(|retry| retry.due).min());
            sooner(self.unset.values().map(|retry| retry.due).min());
        }
        sooner(self.rotation.next());
        sooner(self.certificate_due.map(|at| {
            let left = u64::try_from(at.0.saturating_sub(now.wall.0)).unwrap_or(0);
            now.monotonic + Duration::from_secs(left)
        }));
        next
    }

    /// Ends. The host's rules stay as they are: what is to be sealed is dropped until an agent runs
    /// again. SAs that go with this process are deleted at the peers; those that a kernel keeps go on
    /// carrying packets, so that a new build takes over without a loss.
    pub(crate) fn stop(&mut self, now: Now) {
        let kind = self.core.datapath.as_ref().map(|datapath| datapath.kind());
        if self.core.failed.is_none() && kind == Some("kernel") {
            self.core.datapath = None;
            return;
        }
        let peers: Vec<PeerId> = self.peers.keys().cloned().collect();
        for peer in &peers {
            self.core.engine.remove_peer(peer, now);
        }
        self.core.settle(now);
        self.core.datapath = None;
    }

    /// This node as others see it, with what it last said.
    pub(crate) fn own(&self) -> NodeEncryption {
        let mut own = NodeEncryption::new(self.identity.name.as_str(), self.news.spec.clone());
        own.status.acknowledged = self.acknowledged;
        own.status.rotation = self.rotation_done;
        own
    }

    /// A word given before a restart stands, if it was this node's: a node with a new UID has
    /// given none.
    fn remember_word(&mut self) {
        if let Some(own) = self.objects.node(self.identity.name.as_str())
            && own.spec.uid == self.identity.uid
        {
            self.acknowledged = self.acknowledged.or(own.status.acknowledged);
            self.word = Word {
                acknowledged: self.acknowledged,
                rotation: own.status.rotation,
                authorities: own.status.authorities.clone(),
            };
            self.news
                .status
                .conditions
                .clone_from(&own.status.conditions);
        }
    }

    /// The cluster does not let this node in: its certificate was taken back, or it gets none.
    pub(crate) fn is_shut_out(&self) -> bool {
        self.news.removed || self.certificates.is_denied()
    }

    /// What was in force last, from memory or from the disk.
    pub(crate) fn previous(&self) -> Option<&TrafficPolicy> {
        self.enforcement.kept()
    }

    fn update_news(&mut self, now: Now) {
        // What was there and is gone is written again (cilium#33881: a node object deleted and
        // made anew must heal by itself).
        let own = self.objects.node(self.identity.name.as_str()).is_some();
        let request = self.objects.request.is_some();
        if (self.seen.0 && !own) || (self.seen.1 && !request && self.news.request.is_some()) {
            self.news.again += 1;
        }
        self.seen = (own, request);
        let removed = self.certificates.is_revoked(&self.trust.bundle, now.wall);
        if removed && !self.news.removed {
            tracing::warn!(node = %self.identity.name, "this node was removed from the cluster");
        }
        self.news.removed = removed;
        self.news.status = self.status(now);
    }

    pub(crate) fn knows(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    pub(crate) fn peer_names(&self) -> impl Iterator<Item = &PeerId> {
        self.peers.keys()
    }

    /// Keeps a problem for status, and says it once.
    pub(crate) fn complain(&mut self, part: &'static str, text: String) {
        if self.problems.get(part) != Some(&text) {
            tracing::error!("{text}; nothing is opened meanwhile, and the agent tries on");
            self.problems.insert(part, text);
        }
    }
}

/// The next try: twice the wait of the last one, within bounds.
fn later(last: Option<Retry>, (first, most): (Duration, Duration), now: Now) -> Retry {
    let wait = last.map_or(first, |retry| (retry.wait * 2).min(most));
    Retry {
        due: now.monotonic + wait,
        wait,
    }
}
