//! Engines brought into each state that an IKE SA can be in, by what really leads there.

use std::net::SocketAddr;

use testudo_crypto::{KeMethod, KeyType};
use testudo_model::ChildId;
use testudo_wire::ike::{ExchangeType, Header, Payload};

use super::net::*;
use crate::keys::IkeKeys;
use crate::message;
use crate::sa::intermediate::is_complete;
use crate::sa::{IkeSa, Pending, Phase, State};
use crate::*;

/// A node whose IKE SA is in the state that is looked at. Nothing it sends arrives any more.
pub(super) struct Place {
    pub(super) net: Net,
    pub(super) n: usize,
    pub(super) ike: IkeId,
    /// What the peer said last.
    pub(super) said: Vec<u8>,
}

/// All states, an established and idle IKE SA's being told apart by what it waits for. A new
/// state, phase or request does not compile before it has a name here.
pub(super) fn state_of(sa: &IkeSa) -> &'static str {
    let est = match &sa.state {
        State::InitSent(_) => return "init_sent",
        State::IntermediateSent(_) => return "intermediate_sent",
        State::AuthSent(_) => return "auth_sent",
        State::HalfOpen(half) if !is_complete(half) => return "half_open_mixing",
        State::HalfOpen(_) => return "half_open",
        State::Refusing(_) => return "refusing",
        State::Gap => return "gap",
        State::Established(est) => est,
    };
    match est.phase {
        Phase::Waiting => return "waiting",
        Phase::Rekeyed => return "rekeyed",
        Phase::Leaving(_) => return "leaving",
        Phase::Shut => return "shut",
        Phase::Gone => return "gone",
        Phase::Open => {}
    }
    match &est.outstanding {
        None => "established",
        Some((_, Pending::Probe)) => "probing",
        Some((_, Pending::CreateChild(r))) if r.follow.is_some() => "following_up_child",
        Some((_, Pending::CreateChild(r))) if r.rekeys.is_some() => "rekeying_child",
        Some((_, Pending::CreateChild(_))) => "creating_child",
        Some((_, Pending::DeleteChild(_) | Pending::DeleteSpi)) => "deleting_child",
        Some((_, Pending::RekeyIke(r))) if r.follow.is_some() => "following_up",
        Some((_, Pending::RekeyIke(_))) => "rekeying_ike",
        Some((_, Pending::DeleteIke)) => "deleting_ike",
    }
}

/// Every state that lasts longer than a call; an idle open IKE SA never deletes itself.
pub(super) const STATES: [&str; 20] = [
    "init_sent",
    "intermediate_sent",
    "auth_sent",
    "half_open_mixing",
    "half_open",
    "refusing",
    "established",
    "probing",
    "creating_child",
    "rekeying_child",
    "deleting_child",
    "rekeying_ike",
    "following_up",
    "following_up_child",
    "waiting",
    "rekeyed",
    "leaving",
    "shut",
    "gone",
    "restarted",
];

fn stop_after(mut net: Net, count: usize) -> Net {
    net.cut_after(count);
    net.connect(0, 1, false);
    net.run_ms(100);
    net
}

fn open(config: EngineConfig) -> Net {
    let mut net = Net::with(1, 2, config);
    net.connect(0, 1, false);
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
    net
}

fn block(net: &mut Net) {
    net.filter = Some(Box::new(|_, _, _| Fate::Drop));
}

/// The last datagram that a node sent.
fn last(net: &Net, from: usize) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let mut sent = net.wire.iter().rev();
    let found = sent.find(|(source, _, _)| source.ip() == address(from));
    found.unwrap().clone()
}

fn deliver(net: &mut Net, from: usize) {
    let (source, to, bytes) = last(net, from);
    net.act(1 - from, |e, now| {
        e.handle_datagram(now, to, source, &bytes)
    });
}

fn child_of(net: &Net, n: usize) -> ChildId {
    net.ikes(n, 1 - n)[0].children[0].child
}

fn with_children(net: &mut Net, n: usize, children: usize) {
    let mut config = peer_config(n, 1 - n, n == 0);
    config.children = (0..children).map(|c| child(c, n, 1 - n)).collect();
    net.act(n, |e, now| e.set_peer(config, now)).unwrap();
}

/// A node in that state.
pub(super) fn reach(state: &str) -> Place {
    let hybrid = || hybrid(&[&[KeMethod::MlKem768]], true);
    let mut n = 0;
    let mut net = match state {
        "init_sent" => stop_after(Net::new(1, 2), 0),
        "intermediate_sent" => stop_after(Net::with(1, 2, hybrid()), 2),
        "auth_sent" => stop_after(Net::new(1, 2), 2),
        "half_open_mixing" => {
            n = 1;
            stop_after(Net::with(1, 2, hybrid()), 2)
        }
        "half_open" => {
            n = 1;
            stop_after(Net::new(1, 2), 2)
        }
        "refusing" => {
            let mut net = Net::new(2, 2);
            let evil = local_identity(1, "evil", EPOCH + 1_000_000, KeyType::Ed25519);
            net.nodes[1].engine.set_identity(evil);
            stop_after(net, 4)
        }
        "following_up" | "following_up_child" => open(hybrid()),
        _ => open(config()),
    };
    block(&mut net);
    match state {
        "probing" => net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap(),
        "creating_child" => {
            with_children(&mut net, 1, 2);
            with_children(&mut net, 0, 2);
        }
        "rekeying_child" => {
            let child = child_of(&net, 0);
            net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
        }
        "deleting_child" => with_children(&mut net, 0, 0),
        "rekeying_ike" => net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap(),
        "following_up_child" => {
            let child = child_of(&net, 0);
            net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
            deliver(&mut net, 0);
            deliver(&mut net, 1);
        }
        "following_up" => {
            net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
            deliver(&mut net, 0);
            deliver(&mut net, 1);
        }
        "waiting" => {
            // The two cross; the peer's is answered, our own not yet.
            net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
            net.act(1, |e, now| e.rekey_ike(&peer_id(0), now)).unwrap();
            deliver(&mut net, 1);
            deliver(&mut net, 0);
        }
        "rekeyed" => {
            net.act(1, |e, now| e.rekey_ike(&peer_id(0), now)).unwrap();
            deliver(&mut net, 1);
            deliver(&mut net, 0);
        }
        "leaving" => {
            let ike = net.ikes(0, 1)[0].ike;
            net.act(0, |e, now| e.leave(ike, now));
        }
        "shut" => net.act(0, |e, now| e.close(&peer_id(1), now)).unwrap(),
        "gone" => {
            net.act(1, |e, now| e.close(&peer_id(0), now)).unwrap();
            deliver(&mut net, 1);
        }
        // The peer has forgotten everything: what it says is under no keys of ours.
        "restarted" => net.restart(1),
        _ => {}
    }
    let wanted = if state == "restarted" {
        "established"
    } else {
        state
    };
    let mut sas = net.nodes[n].engine.sas.values();
    let found = sas.find(|sa| state_of(sa) == wanted);
    let story = net.story();
    let ike = found.unwrap_or_else(|| panic!("{state}\n{story}")).id;
    Place {
        net,
        n,
        ike,
        said: Vec::new(),
    }
}

impl Place {
    pub(super) fn sa(&self) -> Option<&IkeSa> {
        self.net.nodes[self.n].engine.sas.get(&self.ike)
    }

    pub(super) fn peer(&self) -> usize {
        1 - self.n
    }

    pub(super) fn child(&self) -> Option<ChildId> {
        let children = self.net.nodes[self.n].engine.children.keys();
        children.copied().next()
    }

    /// The other end's keys of the IKE SA.
    pub(super) fn peer_keys(&mut self) -> Option<&mut IkeKeys> {
        let spi = self.sa()?.spi_peer;
        let peer = self.peer();
        let engine = &mut self.net.nodes[peer].engine;
        let id = *engine.by_spi.get(&spi)?;
        match &mut engine.sas.get_mut(&id)?.state {
            State::IntermediateSent(s) => Some(&mut s.keys),
            State::AuthSent(s) => Some(&mut s.keys),
            State::HalfOpen(s) => Some(&mut s.keys),
            State::Refusing(s) => Some(&mut s.keys),
            State::Established(s) => Some(&mut s.keys),
            State::InitSent(_) | State::Gap => None,
        }
    }

    /// The message ID that the peer would use next.
    pub(super) fn next_id(&mut self, response: bool) -> u32 {
        let (n, ike) = (self.n, self.ike);
        let Some(sa) = self.net.nodes[n].engine.sas.get_mut(&ike) else {
            return 0;
        };
        if response {
            return sa.state.request().map_or(7, |r| r.message_id);
        }
        match &sa.state {
            State::HalfOpen(half) => half.answered.next,
            State::Established(est) => est.answered.next,
            _ => 0,
        }
    }

    /// A message as the peer would seal it; in clear where there are no keys.
    pub(super) fn seal(
        &mut self,
        exchange: ExchangeType,
        response: bool,
        message_id: u32,
        payloads: &[Payload],
    ) -> Vec<u8> {
        let Some(sa) = self.sa() else {
            return Vec::new();
        };
        let (spi_i, spi_r) = sa.spis();
        let header = Header::new(
            spi_i,
            spi_r.max(u64::from(response)),
            exchange,
            !sa.initiator,
            response,
            message_id,
        );
        let sealed = match self.peer_keys() {
            Some(keys) => message::protect(keys, &header, payloads).map(|d| d.whole().to_vec()),
            None => message::clear(&header, payloads),
        };
        sealed.map_err(|f| f.text()).unwrap()
    }

    /// Hands the node a datagram of the peer's.
    pub(super) fn hand(&mut self, bytes: &[u8]) {
        let (local, remote) = match self.sa() {
            Some(sa) => (sa.local, sa.remote),
            None => return,
        };
        let n = self.n;
        self.net
            .act(n, |e, now| e.handle_datagram(now, local, remote, bytes));
    }

    /// Lets the peer answer our outstanding request, if it can; whether it did.
    pub(super) fn true_answer(&mut self) -> bool {
        let (n, ike) = (self.n, self.ike);
        let state = self.net.nodes[n].engine.sas.get_mut(&ike);
        let Some(bytes) = state.and_then(|sa| Some(sa.state.request()?.bytes.clone())) else {
            return false;
        };
        let (local, remote) = self.sa().map(|sa| (sa.local, sa.remote)).unwrap();
        let peer = self.peer();
        let before = self.net.wire.len();
        for bytes in bytes.iter() {
            self.net
                .act(peer, |e, now| e.handle_datagram(now, remote, local, bytes));
        }
        let answers: Vec<_> = self.net.wire[before..].to_vec();
        let response = |b: &[u8]| Header::parse(b).is_ok_and(|h| h.flags.response);
        let mut any = false;
        for (_, _, bytes) in answers.iter().filter(|(_, _, b)| response(b)) {
            any = true;
            self.hand(bytes);
        }
        any
    }
}
