//! What is inside an encrypted message, after decryption, in each place where one is expected.

use std::time::Duration;

use testudo_ike::fuzzing;

use crate::bytes::Source;
use crate::pair::{Datagram, Pair, Proof, peer_id};

/// Where the payloads go: to which node, in which exchange, as what.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    /// Datagrams that arrive before.
    delivered: usize,
    /// What the receiver has asked for, whose answer this is.
    asked: Option<Asked>,
    pub(crate) from: usize,
    pub(crate) exchange: u8,
    message_id: u32,
    pub(crate) response: bool,
    /// It is there with ML-KEM alone.
    pub(crate) hybrid: bool,
}

#[derive(Clone, Copy)]
enum Asked {
    RekeyChild,
    RekeyIke,
    NewChild,
    Probe,
}

const HANDSHAKE: usize = 4;

const fn request(name: &'static str, delivered: usize, from: usize, exchange: u8) -> Place {
    let message_id = match (delivered, from) {
        (HANDSHAKE, 0) => 2,
        (HANDSHAKE, _) => 0,
        _ => 1,
    };
    Place {
        name,
        delivered,
        asked: None,
        from,
        exchange,
        message_id,
        response: false,
        hybrid: false,
    }
}

/// The answer of node 1 to what node 0 asked.
const fn answer(name: &'static str, exchange: u8, asked: Asked) -> Place {
    Place {
        name,
        delivered: HANDSHAKE,
        asked: Some(asked),
        from: 1,
        exchange,
        message_id: 2,
        response: true,
        hybrid: false,
    }
}

impl Place {
    /// A request, in place of which any other may come.
    pub(crate) fn asked_nothing(&self) -> bool {
        self.asked.is_none()
    }
}

pub(crate) const PLACES: [Place; 12] = [
    request("auth-request", 2, 0, 35),
    Place {
        response: true,
        ..request("auth-answer", 2, 1, 35)
    },
    request("create-from-initiator", HANDSHAKE, 0, 36),
    request("create-from-responder", HANDSHAKE, 1, 36),
    request("informational-from-initiator", HANDSHAKE, 0, 37),
    request("informational-from-responder", HANDSHAKE, 1, 37),
    answer("rekey-child-answer", 36, Asked::RekeyChild),
    answer("rekey-ike-answer", 36, Asked::RekeyIke),
    answer("new-child-answer", 36, Asked::NewChild),
    answer("probe-answer", 37, Asked::Probe),
    Place {
        hybrid: true,
        ..request("intermediate-request", 2, 0, 43)
    },
    Place {
        hybrid: true,
        response: true,
        ..request("intermediate-answer", 2, 1, 43)
    },
];

/// The place, the proof, the type of the first payload, then the payloads.
pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let place = &PLACES[source.below(PLACES.len())];
    let proof = match source.u8() {
        _ if place.hybrid => Proof::Hybrid,
        byte if byte % 2 == 0 => Proof::PreSharedKey,
        _ => Proof::Certificate,
    };
    let first = source.u8();
    let mut pair = prepare(place, proof);
    let sealed = fuzzing::seal(
        &mut pair.engines[place.from],
        place.exchange,
        place.message_id,
        place.response,
        first,
        source.rest(),
    );
    let Some(bytes) = sealed else { return };
    let Some(path) = pair.sent.iter().rev().find(|d| d.from == place.from) else {
        return;
    };
    let datagram = Datagram {
        bytes,
        ..path.clone()
    };
    pair.flying.clear();
    pair.deliver(&datagram);
    // Once more: the answer is the same, or there is none.
    pair.deliver(&datagram);
    pair.run(Duration::from_secs(2));
    pair.part();
}

/// Two nodes between which the message at `place` would be next.
pub(crate) fn prepare(place: &Place, proof: Proof) -> Pair {
    let mut pair = Pair::new(1, proof);
    pair.fly(place.delivered);
    let Some(asked) = place.asked else {
        return pair;
    };
    match asked {
        Asked::RekeyChild => {
            let status = pair.engines[0].status();
            let child = status.first().and_then(|s| s.children.first());
            if let Some(child) = child.map(|c| c.child) {
                let _ = pair.act(0, |engine, now| engine.rekey_child(child, now));
            }
        }
        Asked::RekeyIke => {
            let _ = pair.act(0, |engine, now| engine.rekey_ike(&peer_id(1), now));
        }
        Asked::NewChild => {
            pair.configure(1, 2);
            pair.configure(0, 2);
        }
        Asked::Probe => {
            let _ = pair.act(0, |engine, now| engine.probe(&peer_id(1), now));
        }
    }
    pair
}
