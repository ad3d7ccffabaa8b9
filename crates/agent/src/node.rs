//! The node: what the store wants, what stands, and the steps from one to the other.
//!
//! [`Node::update`] is called after anything has changed or a deadline has passed. It may be
//! called at any time: it compares and does only what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use testudo_crypto::SystemRandom;
use testudo_ike::Engine;
use testudo_model::policy::{Mode, rotation_of};
use testudo_model::{
    Acknowledgement, Monotonic, NodeEncryption, Now, PeerId, TrafficPolicy, UnixTime,
};
use testudo_pki::{NodeIdentity, TrustBundle};
use testudo_plan::node::Waiting;
use testudo_plan::renewal;
use tokio::sync::Notify;

use crate::Options;
use crate::certificates::Certificates;
use crate::core::Core;
use crate::enforcement::{Enforcement, PolicyFile};
use crate::host::Host;
use crate::identity::Identity;
use crate::keys::KeyExport;
use crate::objects::{Objects, Told};
use crate::publish::News;
use crate::reconcile::{self, Wish};
use crate::rotation::Rotation;
use crate::sockets::Sockets;
use crate::verifier::Trust;

/// Between two tries to open what cannot be opened, first and at most.
const OPEN_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Between two calls to a peer that usually begins itself, first and at most.
const CALL_RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Rounds of one update; what is left then comes with the next event.
const ROUNDS: usize = 4;
/// What changes without an event (path MTU, counters of drops) is looked at so often.
const LOOK: Duration = Duration::from_secs(10);
/// The same where the node's addresses may be among it.
const LOOK_FOR_ADDRESSES: Duration = Duration::from_secs(2);
/// The host is told its policy again after so long, at the next update: another program may have
/// taken our rules away (`nft flush ruleset`, a restarted firewall).
const RETELL: Duration = Duration::from_secs(5);

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
    pub(crate) core: Core,
    pub(crate) certificates: Certificates,
    pub(crate) host: Box<dyn Host>,
    /// Rung by the datapath when it has an event.
    pub(crate) bell: Arc<Notify>,
    pub(crate) acknowledged: Option<Acknowledgement>,
    /// Why the present step is not acknowledged yet.
    pub(crate) waiting: Vec<Waiting>,
    /// What is wrong, by the part it is wrong with.
    pub(crate) problems: BTreeMap<&'static str, String>,
    pub(crate) rotation: Rotation,
    pub(crate) rotation_done: u64,
    pub(crate) news: News,
    enforcement: Enforcement<PolicyFile>,
    /// The policy that was applied to the datapath, or to the host without one.
    in_force: Option<InForce>,
    told: Monotonic,
    trust: Trust,
    has_identity: bool,
    peers: BTreeMap<PeerId, reconcile::Peer>,
    calls: BTreeMap<PeerId, Retry>,
    /// Peers that the engine did not take, and when they are given to it again.
    unset: BTreeMap<PeerId, Retry>,
    open: Option<Retry>,
    certificate_due: Option<UnixTime>,
    /// The rotation that is wanted, and when it was first seen.
    rotation_seen: Option<(u64, UnixTime)>,
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
        let certificates = Certificates::open(
            &options.state_dir,
            identity.clone(),
            options.join_token_file.clone(),
        );
        let keys = match &options.danger_export_keys {
            Some(directory) => Some(KeyExport::new(directory)?),
            None => None,
        };
        let settings = reconcile::engine_config(&options);
        let engine = Engine::new(settings, Box::new(SystemRandom::new()));
        let news = News {
            spec: reconcile::node_spec(&options, &identity, host.kind()),
            status: Default::default(),
            request: None,
            again: 0,
        };
        Ok(Node {
            identity,
            objects: Objects::new(),
            core: Core::new(engine, keys),
            certificates,
            host,
            bell: Arc::new(Notify::new()),
            acknowledged: None,
            waiting: Vec::new(),
            problems: BTreeMap::new(),
            rotation: Rotation::default(),
            rotation_done: 0,
            news,
            enforcement,
            in_force: None,
            told: Monotonic::default(),
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
        let due = self.own_deadline(now) <= now.monotonic;
        if !self.objects.is_synced() || !(due || self.changed || self.core.changed) {
            return;
        }
        if due || self.changed {
            if self.in_force.is_none() {
                self.remember_word();
            }
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
        self.core.settle(now);
        self.looked = now.monotonic;
        self.changed = false;
        self.update_news(now);
    }

    /// Takes in what the store tells.
    pub(crate) fn take(&mut self, told: Told) {
        self.objects.take(told, &self.identity.name);
        self.changed = true;
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

    /// Which datapath is wanted may change at any time. The peers' packets wait while their SAs are
    /// made anew; the host stays closed.
    fn update_datapath(&mut self, now: Now) {
        let Some(policy) = &self.objects.policy else {
            return;
        };
        let choice = self.options.datapath.unwrap_or(policy.spec.datapath);
        let standing = self.core.datapath.as_ref().map(|datapath| datapath.kind());
        self.host.choose(choice, standing, now);
        match self.host.problem() {
            Some(problem) => self.problems.insert("datapath choice", problem.to_owned()),
            None => self.problems.remove("datapath choice"),
        };
        let kind = self.host.kind();
        kind.clone_into(&mut self.news.spec.datapath);
        if let Some(from) = standing.filter(|standing| *standing != kind) {
            tracing::info!(from, to = kind, "the datapath changes");
            self.remove_peers(&[], now);
            self.core.settle(now);
            self.core.datapath = None;
            self.open = None;
        }
    }

    /// Whose kernels carry packets on while their agents are away.
    fn update_kernels(&mut self) {
        let nodes = self.objects.nodes.iter();
        let kernels = nodes.filter(|node| node.spec.datapath == "kernel");
        let names = kernels.filter_map(|node| PeerId::new(node.name()).ok());
        self.core.linger.set_kernels(names.collect());
    }

    fn update_trust(&mut self, now: Now) {
        let bundle = match &self.objects.bundle {
            Some(bundle) => match TrustBundle::from_pem(&bundle.spec.certificates) {
                Ok(mut trusted) => {
                    let lists = &bundle.spec.revocation_lists;
                    let refused = trusted.add_revocation_lists_from_pem(lists);
                    match refused.first() {
                        Some(error) => {
                            trusted.keep_revocation_lists(&self.trust.bundle);
                            let text = format!(
                                "{error}; it is left out, and earlier lists go on counting"
                            );
                            self.problems.insert("trust", text);
                        }
                        None => {
                            self.problems.remove("trust");
                        }
                    }
                    trusted
                }
                Err(error) => {
                    self.problems
                        .insert("trust", format!("the trust bundle cannot be read: {error}"));
                    return;
                }
            },
            None => TrustBundle::new(),
        };
        let mut trust = Trust {
            bundle,
            nodes: BTreeMap::new(),
        };
        for node in &self.objects.nodes {
            let identity = NodeIdentity::new(node.name(), node.spec.uid.as_str());
            if let (Ok(peer), Ok(identity)) = (PeerId::new(node.name()), identity) {
                trust.nodes.insert(peer, identity);
            }
        }
        if trust != self.trust {
            self.core.engine.set_verifier(trust.verifier());
            self.core.engine.recheck_peers(now);
            self.core.settle(now);
            self.core
                .distrust(|peer| trust.judges_anew(peer, &self.trust));
            self.trust = trust;
        }
    }

    /// The host's addresses may change under it. The peers read ours in the store, and SAs are made
    /// between the new ones before the old ones go.
    fn update_addresses(&mut self) {
        if !self.options.follow_addresses {
            return;
        }
        let found = self.host.addresses();
        if found.is_empty() || found == self.options.addresses {
            return;
        }
        if let Some(sockets) = &mut self.core.sockets {
            let port = self.options.ports.ike;
            if let Err(error) = sockets.follow(&found, &self.options.addresses, port) {
                return self.complain("sockets", format!("{error:#}"));
            }
            self.problems.remove("sockets");
        }
        tracing::info!(old = ?self.options.addresses, new = ?found, "this node's addresses are others");
        self.options.addresses = found;
        let datapath = self.host.kind();
        self.news.spec = reconcile::node_spec(&self.options, &self.identity, datapath);
    }

    fn update_lifetimes(&mut self) {
        if let Some(policy) = &self.objects.policy {
            let spec = &policy.spec;
            self.core.engine.set_lifetimes(
                spec.ike.lifetime.0,
                spec.esp.lifetime.0,
                reconcile::limits(spec),
            );
            if let Some(datapath) = &mut self.core.datapath {
                datapath.set_hard_lifetime(hard_lifetime(spec.esp.lifetime.0));
            }
        }
    }

    fn update_certificate(&mut self, now: Now) {
        self.certificate_due = None;
        let Some(policy) = &self.objects.policy else {
            return;
        };
        if policy.spec.mode == Mode::Disabled {
            return;
        }
        let rotation = rotation_of(policy, self.options.node.as_str());
        if self.rotation_seen.is_none_or(|(seen, _)| seen != rotation) {
            self.rotation_seen = Some((rotation, now.wall));
        }
        let turn = renewal::turn(
            &renewal::Known {
                certificates: &policy.spec.certificates,
                own: &self.own(),
                nodes: &self.objects.nodes,
                rotation_of: &|name| rotation_of(policy, name),
                certificate: self.certificates.facts_by_age().as_ref(),
                certificate_rotation: self.certificates.current().map_or(0, |c| c.rotation),
                rotation_seen: self.rotation_seen.map_or(now.wall, |(_, at)| at),
            },
            now.wall,
        );
        let stored = self.objects.request.as_ref().map(|r| (&r.spec, &r.status));
        let outcome =
            self.certificates
                .consider(&turn, rotation, &self.trust.bundle, stored, now.wall);
        self.certificate_due = outcome.again;
        if outcome.ask.is_some() {
            self.news.request = outcome.ask;
        }
        if outcome.renewed {
            self.has_identity = false;
        }
    }

    /// Gives the engine the certificate in use. Standing SAs are authenticated anew, one after
    /// the other made before the old one goes.
    fn update_identity(&mut self, now: Now) {
        if self.has_identity {
            return;
        }
        match self.certificates.local_identity() {
            Ok(Some(identity)) => {
                self.core.engine.set_identity(identity);
                self.has_identity = true;
                self.problems.remove("key");
                let tunnels = &self.core.tunnels;
                let connected = self.peers.keys().filter(|peer| tunnels.connected(peer));
                self.rotation.start(now.monotonic, connected.cloned());
            }
            Ok(None) => {}
            Err(error) => {
                self.problems.insert("key", format!("{error:#}"));
            }
        }
    }

    fn update_rotation(&mut self, now: Now) {
        let tunnels = &self.core.tunnels;
        self.rotation.strike(
            |peer| tunnels.authenticated(peer),
            |peer| tunnels.connected(peer),
        );
        for peer in self.rotation.begin(now.monotonic) {
            if let Err(error) = self.core.engine.reauthenticate(&peer, now) {
                tracing::debug!(%peer, "not reauthenticated: {error}");
            }
        }
        if let Some(current) = self.certificates.current()
            && self.has_identity
            && self.rotation.is_done()
        {
            self.rotation_done = current.rotation;
        }
    }

    fn fulfil(&mut self, wish: Wish, now: Now) {
        let Wish { plan, problems } = wish;
        match problems.is_empty() {
            false => self.problems.insert("policy", problems.join("; ")),
            true => self.problems.remove("policy"),
        };
        let Some(plan) = plan else { return };
        let done = match &plan.traffic {
            None => self.disable(now),
            Some(traffic) => {
                // New peers first, then packets; old peers last: what is to be sealed for a peer
                // must not lose its SAs before it is dropped or clear.
                let open = self.ensure_open(now);
                if open && self.has_identity {
                    self.add_peers(&plan.peers, now);
                }
                let applied = self.enforce(traffic, now);
                if open && applied {
                    self.remove_peers(&plan.peers, now);
                    self.call_peers(now);
                }
                open && applied
            }
        };
        if done
            && let Some(acknowledge) = plan.acknowledge
            && self.acknowledged != Some(acknowledge)
        {
            tracing::info!(
                phase = %acknowledge.phase,
                rollout = acknowledge.rollout,
                "the phase is in force"
            );
            self.acknowledged = Some(acknowledge);
        }
        self.waiting = plan.waiting;
    }

    /// Nothing of ours stays in the way. Works without a TUN: what an earlier agent left goes.
    fn disable(&mut self, now: Now) -> bool {
        if self.in_force == Some(InForce::Nothing) {
            return true;
        }
        self.open = None;
        self.remove_peers(&[], now);
        self.core.settle(now);
        let host = &mut self.host;
        let datapath = &mut self.core.datapath;
        let cleared = self.enforcement.change(None, || {
            if let Some(datapath) = datapath {
                datapath.clear().context("clearing the datapath")?;
            }
            host.clear().context("clearing the host's rules")
        });
        match cleared {
            Ok(()) => {
                self.core.datapath = None;
                self.core.sockets = None;
                self.in_force = Some(InForce::Nothing);
                for part in ["datapath", "sockets", "traffic"] {
                    self.problems.remove(part);
                }
                true
            }
            Err(error) => {
                self.complain("traffic", format!("{error:#}"));
                false
            }
        }
    }

    /// Opens sockets and datapath; what cannot be opened is tried again, later each time, while
    /// the host stays closed.
    fn ensure_open(&mut self, now: Now) -> bool {
        if self.is_open() {
            return true;
        }
        if self.open.is_some_and(|retry| now.monotonic < retry.due) {
            return false;
        }
        if self.core.sockets.is_none() {
            match Sockets::open(&self.options.addresses, self.options.ports.ike) {
                Ok(sockets) => {
                    self.core.sockets = Some(sockets);
                    self.problems.remove("sockets");
                }
                Err(error) => self.complain("sockets", format!("{error:#}")),
            }
        }
        if self.core.datapath.is_none() {
            match self.host.open(Arc::clone(&self.bell)) {
                Ok(mut datapath) => {
                    if let Some(policy) = &self.objects.policy {
                        let life = policy.spec.esp.lifetime.0;
                        datapath.set_hard_lifetime(hard_lifetime(life));
                    }
                    datapath.kind().clone_into(&mut self.news.spec.datapath);
                    self.core.datapath = Some(datapath);
                    // The rules are told again: they may have a device to point to now.
                    self.in_force = None;
                    self.problems.remove("datapath");
                }
                Err(error) => self.complain("datapath", error.to_string()),
            }
        }
        let open = self.is_open();
        self.open = match open {
            true => None,
            false => Some(later(self.open, OPEN_RETRY, now)),
        };
        open
    }

    fn is_open(&self) -> bool {
        self.core.datapath.is_some() && self.core.sockets.is_some()
    }

    fn enforce(&mut self, traffic: &TrafficPolicy, now: Now) -> bool {
        let wanted = match self.core.datapath {
            Some(_) => InForce::Full(traffic.clone()),
            None => InForce::Closed(traffic.clone()),
        };
        let fresh = now.monotonic.since(self.told) < RETELL;
        if fresh && self.in_force.as_ref() == Some(&wanted) {
            return true;
        }
        let host = &mut self.host;
        let datapath = &mut self.core.datapath;
        let applied = self.enforcement.change(Some(traffic), || match datapath {
            Some(datapath) => {
                let set = datapath.set_traffic(traffic);
                // One flow that is not as it should be is no reason to leave all to the rules of a
                // datapath that is not there.
                if let Ok(()) | Err(testudo_datapath::DatapathError::Partly { .. }) = set {
                    host.settled()
                        .context("clearing what another datapath left")?;
                }
                set.context("setting the traffic policy")
            }
            None => host.close(traffic).context("closing the host"),
        });
        match applied {
            Ok(()) => {
                self.in_force = Some(wanted);
                self.told = now.monotonic;
                self.problems.remove("traffic");
                true
            }
            Err(error) => {
                self.complain("traffic", format!("{error:#}"));
                false
            }
        }
    }

    /// Removes the peers that are not wanted.
    fn remove_peers(&mut self, wanted: &[reconcile::Peer], now: Now) {
        let names: BTreeSet<&PeerId> = wanted.iter().map(|p| &p.id).collect();
        let gone = self.peers.keys().filter(|peer| !names.contains(peer));
        for peer in gone.cloned().collect::<Vec<PeerId>>() {
            tracing::info!(%peer, "the peer is gone");
            self.core.engine.remove_peer(&peer, now);
            self.core.settle(now);
            self.core.forget(&peer);
            self.peers.remove(&peer);
            self.calls.remove(&peer);
        }
        self.unset.retain(|peer, _| names.contains(peer));
    }

    fn add_peers(&mut self, wanted: &[reconcile::Peer], now: Now) {
        for peer in wanted {
            if self.peers.get(&peer.id) == Some(peer) {
                continue;
            }
            let first = !self.peers.contains_key(&peer.id);
            let children = peer.children.iter().map(|c| c.name.clone()).collect();
            self.core.tunnels.want(&peer.id, children);
            if !self.set_peer(peer, now) {
                continue;
            }
            self.peers.insert(peer.id.clone(), peer.clone());
            if first && !peer.leads {
                // A peer that has its side ready waits for us alone when we have just started.
                let due = match reconcile::is_ready(self, &peer.id) {
                    true => now.monotonic,
                    false => now.monotonic + CALL_RETRY.0,
                };
                let wait = CALL_RETRY.0;
                self.calls.insert(peer.id.clone(), Retry { due, wait });
            }
        }
        for peer in wanted {
            for address in &peer.addresses {
                self.core.addresses.insert(address.remote, peer.id.clone());
            }
        }
    }

    /// Gives a peer to the engine. One that it does not take (its identity is another peer's, say,
    /// which is yet to go) is given to it again, later each time.
    fn set_peer(&mut self, peer: &reconcile::Peer, now: Now) -> bool {
        let last = self.unset.get(&peer.id).copied();
        if last.is_some_and(|retry| now.monotonic < retry.due) {
            return false;
        }
        let Err(error) = self.core.engine.set_peer(peer.config(), now) else {
            self.unset.remove(&peer.id);
            return true;
        };
        let text = format!("the peer cannot be set up: {error}");
        tracing::warn!(peer = %peer.id, "{text}");
        self.core.tunnels.failed(&peer.id, text, now.wall);
        let retry = later(last, OPEN_RETRY, now);
        self.unset.insert(peer.id.clone(), retry);
        false
    }

    /// Calls peers that usually begin themselves and do not: whoever was restarted must not wait
    /// for the other side to notice.
    fn call_peers(&mut self, now: Now) {
        if !self.has_identity {
            return;
        }
        for (id, peer) in self.peers.iter().filter(|(_, peer)| !peer.leads) {
            if self.core.tunnels.connected(id) {
                self.calls.remove(id);
                continue;
            }
            let soon = Retry {
                due: now.monotonic + CALL_RETRY.0,
                wait: CALL_RETRY.0,
            };
            let retry = self.calls.entry(peer.id.clone()).or_insert(soon);
            if retry.due <= now.monotonic {
                *retry = later(Some(*retry), CALL_RETRY, now);
                if let Err(error) = self.core.engine.reauthenticate(id, now) {
                    tracing::debug!(peer = %id, "not called: {error}");
                }
            }
        }
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
            self.news
                .status
                .conditions
                .clone_from(&own.status.conditions);
        }
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
        self.news.status = self.status(now);
    }

    /// The policy that the host was told last.
    pub(crate) fn traffic_in_force(&self) -> Option<&TrafficPolicy> {
        match self.in_force.as_ref()? {
            InForce::Nothing => None,
            InForce::Closed(traffic) | InForce::Full(traffic) => Some(traffic),
        }
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

/// When an SA ends by itself: well after its agent would have replaced it.
fn hard_lifetime(life: Duration) -> Duration {
    life + life / 2 + Duration::from_secs(60)
}

/// The next try: twice the wait of the last one, within bounds.
fn later(last: Option<Retry>, (first, most): (Duration, Duration), now: Now) -> Retry {
    let wait = last.map_or(first, |retry| (retry.wait * 2).min(most));
    Retry {
        due: now.monotonic + wait,
        wait,
    }
}
