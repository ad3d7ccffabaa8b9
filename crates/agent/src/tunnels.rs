//! What stands between this node and its peers, as the engine and the datapath told it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use testudo_datapath::{Counters, SaCounters};
use testudo_ike::{CertificateFacts, ChildUp, IkeDown, IkeId, IkeUp, PathChanged};
use testudo_model::{
    ChildId, Cipher, Encapsulation, Monotonic, Now, PeerId, SaDirection, SaId, SaMode, Spi,
    TrafficSelector, UnixTime,
};
use testudo_plan::node::Facts;

use crate::api::{ChildView, IkeView, TunnelView};

/// All tunnels.
#[derive(Default)]
pub(crate) struct Tunnels {
    peers: BTreeMap<PeerId, Peer>,
    ikes: BTreeMap<IkeId, Ike>,
    children: BTreeMap<ChildId, Child>,
}

/// A peer that is wanted, and what it went through.
#[derive(Default)]
struct Peer {
    /// The names of the children that are wanted.
    wanted: Vec<String>,
    certificate: Option<CertificateFacts>,
    authenticated: Option<Monotonic>,
    authentications: u64,
    child_rekeys: u64,
    ike_rekeys: u64,
    /// Counters of children that are gone.
    retired_in: SaCounters,
    retired_out: SaCounters,
    error: Option<(String, UnixTime)>,
}

struct Ike {
    peer: PeerId,
    initiator: bool,
    local: SocketAddr,
    remote: SocketAddr,
    nat: bool,
    spis: ([u8; 8], [u8; 8]),
    suite: String,
    /// The CA of the peer's certificate.
    issuer: Option<String>,
    since: Monotonic,
}

pub(crate) struct Child {
    pub(crate) peer: PeerId,
    pub(crate) name: String,
    /// 0, or the CPU that it is for, counted from 1.
    resource: u32,
    ike: IkeId,
    /// Whether we began the exchange that made it.
    pub(crate) initiator: bool,
    spi_in: Spi,
    spi_out: Spi,
    pub(crate) mode: SaMode,
    pub(crate) cipher: Cipher,
    pub(crate) encapsulation: Encapsulation,
    /// Its packets travel between the addresses of its IKE SA.
    pub(crate) on_ike_path: bool,
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
    pub(crate) sending: bool,
    /// Nobody here sends on it, and its outbound half is not installed.
    pub(crate) opens_only: bool,
    since: Monotonic,
}

/// What all tunnel views of this node have in common.
pub(crate) struct Common<'a> {
    pub(crate) node: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) tunnel_type: &'a str,
    pub(crate) certificate: Option<(String, String)>,
    /// Of the host's policies, how many are for each peer; `None`: the host did not say.
    pub(crate) policies: Option<BTreeMap<PeerId, u32>>,
    /// Peers with which ESP is known to be filtered on the path.
    pub(crate) filtered: BTreeSet<PeerId>,
}

impl Tunnels {
    /// Makes `peer` one that is expected, with these children.
    pub(crate) fn want(&mut self, peer: &PeerId, children: Vec<String>) {
        self.peers.entry(peer.clone()).or_default().wanted = children;
    }

    /// Forgets a peer; its SAs go with the engine's events.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    pub(crate) fn ike_up(&mut self, up: &IkeUp, now: Now) {
        let peer = self.peers.entry(up.peer.clone()).or_default();
        if up.replaces.is_some() {
            peer.ike_rekeys += 1;
        } else {
            peer.authentications += 1;
            peer.authenticated = Some(now.monotonic);
        }
        if up.certificate.is_some() {
            peer.certificate.clone_from(&up.certificate);
        }
        self.ikes.insert(
            up.ike,
            Ike {
                peer: up.peer.clone(),
                initiator: up.initiator,
                local: up.local,
                remote: up.remote,
                nat: up.nat,
                spis: up.spis,
                suite: up.suite.clone(),
                issuer: up.certificate.as_ref().map(|c| c.issuer.clone()),
                since: now.monotonic,
            },
        );
    }

    pub(crate) fn ike_down(&mut self, down: &IkeDown) {
        self.ikes.remove(&down.ike);
    }

    pub(crate) fn child_up(&mut self, up: &ChildUp, now: Now) {
        if up.replaces.is_some() {
            self.peers.entry(up.peer.clone()).or_default().child_rekeys += 1;
        }
        let path = &up.outbound.encapsulation;
        let on_ike_path = self
            .ikes
            .get(&up.ike)
            .is_some_and(|ike| (ike.local.ip(), ike.remote.ip()) == (path.local(), path.remote()));
        self.children.insert(
            up.child,
            Child {
                peer: up.peer.clone(),
                name: up.name.clone(),
                resource: up.resource,
                ike: up.ike,
                initiator: up.initiator,
                spi_in: up.inbound.spi,
                spi_out: up.outbound.spi,
                mode: up.inbound.mode,
                cipher: up.outbound.cipher,
                encapsulation: up.outbound.encapsulation,
                on_ike_path,
                local: up.outbound.local.clone(),
                remote: up.outbound.remote.clone(),
                sending: false,
                opens_only: false,
                since: now.monotonic,
            },
        );
    }

    /// Of `child` the inbound half alone is installed.
    pub(crate) fn opens_only(&mut self, child: ChildId) {
        if let Some(child) = self.children.get_mut(&child) {
            child.opens_only = true;
        }
    }

    /// From now on `child` sends, and no other of its peer, name and resource. A tunnel that carries
    /// packets has no error.
    pub(crate) fn sending(&mut self, child: ChildId) {
        let Some(new) = self.children.get(&child) else {
            return;
        };
        let (peer, name, resource) = (new.peer.clone(), new.name.clone(), new.resource);
        for (id, other) in &mut self.children {
            if other.peer == peer && other.name == name && other.resource == resource {
                other.sending = *id == child;
            }
        }
        if let Some(book) = self.peers.get_mut(&peer) {
            book.error = None;
        }
    }

    /// Takes a child out; the counters are its last, inbound and outbound.
    pub(crate) fn child_down(
        &mut self,
        child: ChildId,
        (inbound, outbound): (SaCounters, SaCounters),
    ) {
        let Some(gone) = self.children.remove(&child) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&gone.peer) {
            add(&mut peer.retired_in, inbound);
            add(&mut peer.retired_out, outbound);
        }
    }

    /// An IKE SA has other ends.
    pub(crate) fn moved(&mut self, path: &PathChanged) {
        if let Some(ike) = self.ikes.get_mut(&path.ike) {
            ike.local = path.local;
            ike.remote = path.remote;
        }
    }

    /// A child's SAs have other ends.
    pub(crate) fn rebound(&mut self, child: ChildId, to: Encapsulation) {
        if let Some(child) = self.children.get_mut(&child) {
            child.encapsulation = to;
        }
    }

    /// Until when the certificate is valid that the peer last showed.
    pub(crate) fn valid_until(&self, peer: &PeerId) -> Option<UnixTime> {
        let certificate = self.peers.get(peer)?.certificate.as_ref()?;
        Some(certificate.not_after)
    }

    /// The CAs of the certificates that the peers last showed.
    pub(crate) fn last_issuers(&self) -> impl Iterator<Item = (&PeerId, &str)> {
        self.peers.iter().filter_map(|(peer, book)| {
            let certificate = book.certificate.as_ref()?;
            Some((peer, certificate.issuer.as_str()))
        })
    }

    /// The CAs of the peers' certificates on which IKE SAs stand, each once.
    pub(crate) fn issuers(&self) -> Vec<String> {
        let all = self.ikes.values().filter_map(|ike| ike.issuer.as_deref());
        let once: BTreeSet<&str> = all.collect();
        once.into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn failed(&mut self, peer: &PeerId, text: String, at: UnixTime) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.error = Some((text, at));
        }
    }

    pub(crate) fn child(&self, child: ChildId) -> Option<&Child> {
        self.children.get(&child)
    }

    /// Which of its peer's children it is: name and resource.
    pub(crate) fn slot(&self, child: ChildId) -> Option<(String, u32)> {
        let child = self.children.get(&child)?;
        Some((child.name.clone(), child.resource))
    }

    /// The child that sends where `new` shall.
    pub(crate) fn sends_before(&self, new: ChildId) -> Option<ChildId> {
        let mut fellows = self.fellows(new).into_iter();
        fellows.find(|id| self.child(*id).is_some_and(|child| child.sending))
    }

    /// Other children for the same packets.
    pub(crate) fn fellows(&self, of: ChildId) -> Vec<ChildId> {
        let Some(child) = self.children.get(&of) else {
            return Vec::new();
        };
        let fellows = self.children.iter().filter(|(id, other)| {
            **id != of
                && other.peer == child.peer
                && other.name == child.name
                && other.resource == child.resource
        });
        fellows.map(|(id, _)| *id).collect()
    }

    /// The children that send, with their peers.
    pub(crate) fn sending_children(&self) -> impl Iterator<Item = (ChildId, &Child)> {
        let sending = self.children.iter().filter(|(_, child)| child.sending);
        sending.map(|(id, child)| (*id, child))
    }

    /// The children of whose path an IKE message tells whether it passes anything at all.
    pub(crate) fn children_on_ike_paths(&self) -> impl Iterator<Item = (ChildId, &Child)> {
        let all = self.children.iter().filter(|(_, child)| child.on_ike_path);
        all.map(|(id, child)| (*id, child))
    }

    /// Whether an IKE SA with the peer stands.
    pub(crate) fn connected(&self, peer: &PeerId) -> bool {
        self.ikes.values().any(|ike| ike.peer == *peer)
    }

    fn sends(&self, peer: &PeerId, name: &str) -> bool {
        self.children.values().any(|child| {
            child.is_for_all() && child.sending && child.peer == *peer && child.name == name
        })
    }

    /// When the peer was last authenticated anew, not by a rekey.
    pub(crate) fn authenticated(&self, peer: &PeerId) -> Option<Monotonic> {
        self.peers.get(peer)?.authenticated
    }

    /// For the planner: which SAs the datapath has.
    pub(crate) fn facts(&self) -> Facts {
        let mut facts = Facts::new();
        for child in self.children.values().filter(|child| child.is_for_all()) {
            let peer = facts.entry(child.peer.clone()).or_default();
            let fact = peer.entry(child.name.clone()).or_default();
            fact.inbound = true;
            fact.outbound |= child.sending;
        }
        facts
    }

    /// Tunnels that stand and tunnels that should.
    pub(crate) fn count(&self) -> (u32, u32) {
        let mut up = 0;
        let mut expected = 0;
        for (peer, book) in &self.peers {
            for name in &book.wanted {
                expected += 1;
                up += u32::from(self.sends(peer, name));
            }
        }
        (up, expected)
    }

    /// A view for each wanted child of each peer.
    pub(crate) fn views(
        &self,
        common: &Common<'_>,
        counters: &Counters,
        mtu: impl Fn(&Child) -> Option<u32>,
        now: Now,
    ) -> Vec<TunnelView> {
        let mut views = Vec::new();
        for (peer, book) in &self.peers {
            for (index, name) in book.wanted.iter().enumerate() {
                // Counters of children that are gone are kept by peer: the first tunnel has them.
                let retired = (index == 0).then_some((book.retired_in, book.retired_out));
                let retired = retired.unwrap_or_default();
                views.push(self.view(peer, book, name, retired, common, counters, &mtu, now));
            }
        }
        views
    }

    #[allow(clippy::too_many_arguments, reason = "one call, all of it context")]
    fn view(
        &self,
        peer: &PeerId,
        book: &Peer,
        name: &str,
        (mut total_in, mut total_out): (SaCounters, SaCounters),
        common: &Common<'_>,
        counters: &Counters,
        mtu: impl Fn(&Child) -> Option<u32>,
        now: Now,
    ) -> TunnelView {
        let mut own: Vec<(&ChildId, &Child)> = self
            .children
            .iter()
            .filter(|(_, c)| c.peer == *peer && c.name == name)
            .collect();
        own.sort_by_key(|(id, child)| (!child.sending, child.resource, std::cmp::Reverse(**id)));
        let children: Vec<ChildView> = own
            .iter()
            .map(|(id, child)| {
                let (inbound, outbound) = counters_of(**id, counters);
                add(&mut total_in, inbound);
                add(&mut total_out, outbound);
                child.view(inbound, outbound, now)
            })
            .collect();
        let first = own.first().map(|(_, child)| *child);
        let ike = self.ike_of(peer, first);
        let local = first
            .map(|c| c.encapsulation.local())
            .or_else(|| ike.map(|i| i.local.ip()));
        let remote = first
            .map(|c| c.encapsulation.remote())
            .or_else(|| ike.map(|i| i.remote.ip()));
        let (local_certificate, local_ca) = common.certificate.clone().unzip();
        let proven = book.certificate.as_ref().filter(|_| ike.is_some());
        TunnelView {
            node: common.node.to_owned(),
            peer: peer.clone(),
            interface: common.interface.to_owned(),
            tunnel_type: common.tunnel_type.to_owned(),
            local_ip: local,
            remote_ip: remote,
            address_family: match remote.map(|ip| ip.is_ipv4()) {
                Some(true) => "IPv4".to_owned(),
                Some(false) => "IPv6".to_owned(),
                None => String::new(),
            },
            mark: None,
            local_certificate,
            local_ca,
            remote_certificate: proven.map(|c| c.subject.clone()),
            remote_ca: proven.map(|c| c.issuer.clone()),
            remote_certificate_not_after: proven.map(|c| c.not_after),
            psk: false,
            mtu: first.and_then(mtu),
            kernel_policies_installed: common
                .policies
                .as_ref()
                .map(|all| all.get(peer).copied().unwrap_or(0)),
            security_associations_installed: own
                .iter()
                .map(|(id, _)| standing(**id, counters))
                .sum(),
            connections_active: self.ikes.values().map(|i| u32::from(i.peer == *peer)).sum(),
            up: self.sends(peer, name),
            encapsulation: first.map(|c| match c.is_plain() {
                true => "ESP".to_owned(),
                false => "UDP".to_owned(),
            }),
            esp_filtered: first.is_some_and(|c| !c.is_plain()) && common.filtered.contains(peer),
            ike: ike.map(|ike| ike.view(now)),
            children,
            packets_in: total_in.packets,
            packets_out: total_out.packets,
            bytes_in: total_in.bytes,
            bytes_out: total_out.bytes,
            child_rekeys: book.child_rekeys,
            ike_rekeys: book.ike_rekeys,
            authentications: book.authentications,
            last_error: book.error.as_ref().map(|(text, _)| text.clone()),
            last_error_at: book.error.as_ref().map(|(_, at)| *at),
        }
    }

    /// The IKE SA that the child hangs on, else the peer's newest: a rekeyed IKE SA takes over
    /// children without a word.
    fn ike_of(&self, peer: &PeerId, child: Option<&Child>) -> Option<&Ike> {
        child
            .and_then(|child| self.ikes.get(&child.ike))
            .or_else(|| self.ikes.values().rev().find(|ike| ike.peer == *peer))
    }
}

impl Child {
    /// Those for single CPUs carry nothing without it.
    fn is_for_all(&self) -> bool {
        self.resource == 0
    }

    /// ESP without UDP.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.encapsulation, Encapsulation::None { .. })
    }

    fn view(&self, inbound: SaCounters, outbound: SaCounters, now: Now) -> ChildView {
        let texts = |list: &[TrafficSelector]| list.iter().map(ToString::to_string).collect();
        ChildView {
            name: self.name.clone(),
            resource: self.resource,
            spi_in: self.spi_in.to_string(),
            spi_out: self.spi_out.to_string(),
            mode: match self.mode {
                SaMode::Transport => "transport".to_owned(),
                SaMode::Tunnel => "tunnel".to_owned(),
            },
            cipher: self.cipher.name().to_owned(),
            sending: self.sending,
            age: now.monotonic.since(self.since).as_secs(),
            packets_in: inbound.packets,
            packets_out: outbound.packets,
            bytes_in: inbound.bytes,
            bytes_out: outbound.bytes,
            sequence_in: inbound.sequence,
            sequence_out: outbound.sequence,
            local: texts(&self.local),
            remote: texts(&self.remote),
        }
    }
}

impl Ike {
    fn view(&self, now: Now) -> IkeView {
        IkeView {
            initiator_spi: testudo_pki::hex(&self.spis.0),
            responder_spi: testudo_pki::hex(&self.spis.1),
            initiator: self.initiator,
            local: self.local,
            remote: self.remote,
            nat: self.nat,
            suite: self.suite.clone(),
            age: now.monotonic.since(self.since).as_secs(),
        }
    }
}

/// How many halves of a pair the datapath counts packets of.
fn standing(child: ChildId, counters: &Counters) -> u32 {
    let stands = |direction| counters.sas.contains_key(&SaId { child, direction });
    u32::from(stands(SaDirection::Inbound)) + u32::from(stands(SaDirection::Outbound))
}

fn counters_of(child: ChildId, counters: &Counters) -> (SaCounters, SaCounters) {
    let of = |direction| {
        let id = SaId { child, direction };
        counters.sas.get(&id).copied().unwrap_or_default()
    };
    (of(SaDirection::Inbound), of(SaDirection::Outbound))
}

fn add(total: &mut SaCounters, more: SaCounters) {
    total.packets = total.packets.saturating_add(more.packets);
    total.bytes = total.bytes.saturating_add(more.bytes);
}
