//! Messages with a part left out or renamed, and ends that lose what they need half way.

use std::net::SocketAddr;
use std::time::Duration;

use testudo_wire::ike::{Chain, PayloadType, parse_chain};

use super::net::*;
use super::voice::*;
use crate::fuzzing;
use crate::*;

type Datagram = (SocketAddr, SocketAddr, Vec<u8>);

/// A conversation of which each datagram is handed over by hand.
struct Desk {
    net: Net,
    delivered: usize,
}

/// The handshake, both rekeys, a new child, a deletion: so many datagrams.
const CONVERSATION: usize = 12;

impl Desk {
    fn new() -> Self {
        let mut net = quiet_pair(1);
        net.filter = Some(Box::new(|_, _, _| Fate::Drop));
        net.act(0, |e, now| e.handle_timeout(now));
        Self { net, delivered: 0 }
    }

    /// The next datagram, when whoever is to speak has spoken.
    fn next(&mut self) -> Datagram {
        if self.delivered == self.net.wire.len() {
            let child = |net: &Net| net.ikes(0, 1)[0].children[0].child;
            match self.delivered {
                4 => {
                    let child = child(&self.net);
                    self.net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
                }
                8 => self
                    .net
                    .act(1, |e, now| e.rekey_ike(&peer_id(0), now))
                    .unwrap(),
                _ => panic!("nobody speaks\n{}", self.net.story()),
            }
        }
        self.net.wire[self.delivered].clone()
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let (from, to, _) = self.net.wire[self.delivered].clone();
        self.delivered += 1;
        let n = usize::from(to.ip() == address(1));
        self.net
            .act(n, |e, now| e.handle_datagram(now, to, from, bytes));
    }

    fn until(&mut self, count: usize) {
        while self.delivered < count {
            let (_, _, bytes) = self.next();
            self.deliver(&bytes);
        }
    }
}

/// What is done to one payload: its type becomes another, or it goes.
#[derive(Debug, Clone, Copy)]
enum Change {
    Gone,
    Renamed(u8),
}

/// The chain with a payload changed; `None` when it has no such payload.
fn changed(first: u8, bytes: &[u8], at: usize, change: Change) -> Option<Chain> {
    let parsed = parse_chain(PayloadType(first), bytes).unwrap();
    if at >= parsed.len() {
        return None;
    }
    let mut chain = Chain::new();
    for (n, one) in parsed.iter().enumerate() {
        let kind = match change {
            Change::Gone if n == at => continue,
            Change::Renamed(kind) if n == at => PayloadType(kind),
            _ => one.payload.kind(),
        };
        chain.push_raw(kind, false, one.body).unwrap();
    }
    Some(chain)
}

/// The next datagram with its payload `at` changed, in clear or under the sender's keys.
fn change_next(desk: &mut Desk, at: usize, change: Change) -> Option<Vec<u8>> {
    let (from, _, bytes) = desk.next();
    if bytes[16] == 46 {
        let [a, b] = &mut desk.net.nodes[..] else {
            panic!("two nodes");
        };
        let (sender, receiver) = match from.ip() == address(0) {
            true => (&mut a.engine, &b.engine),
            false => (&mut b.engine, &a.engine),
        };
        let mut there = false;
        let sealed = fuzzing::reseal(sender, receiver, &bytes, |_, first, inside| {
            match changed(first, &inside, at, change) {
                Some(chain) => {
                    there = true;
                    (chain.first().0, chain.bytes().to_vec())
                }
                None => (first, inside),
            }
        });
        let sealed = sealed.expect("both hold the keys");
        return there.then_some(sealed);
    }
    let chain = changed(bytes[16], &bytes[28..], at, change)?;
    let mut header = testudo_wire::ike::Header::parse(&bytes).unwrap();
    header.next_payload = chain.first();
    header.length = 28 + chain.bytes().len() as u32;
    Some([&header.to_bytes()[..], chain.bytes()].concat())
}

// CVE-2013-6467 (libreswan), lesson L05: a payload that must be there was missing or had another's
// number, and was dereferenced. Each payload of each message in turn: the error is clean, and the
// two find each other again.
#[test]
fn a_payload_left_out_or_renamed_anywhere_is_a_clean_error() {
    let mut tried = 0;
    for which in 0..CONVERSATION {
        for change in [
            Change::Gone,
            // Types that stand elsewhere, one that nobody knows, those of encryption.
            Change::Renamed(33),
            Change::Renamed(39),
            Change::Renamed(41),
            Change::Renamed(45),
            Change::Renamed(46),
            Change::Renamed(99),
        ] {
            for at in 0.. {
                let mut desk = Desk::new();
                desk.until(which);
                let Some(bytes) = change_next(&mut desk, at, change) else {
                    break;
                };
                desk.deliver(&bytes);
                tried += 1;
                let mut net = desk.net;
                net.filter = None;
                net.run(Duration::from_secs(200));
                assert_eq!(
                    net.ikes(0, 1).len(),
                    1,
                    "message {which}, payload {at}: {change:?}\n{}",
                    net.story()
                );
                for n in 0..2 {
                    net.act(n, |e, now| e.remove_peer(&peer_id(1 - n), now));
                }
                net.run(Duration::from_secs(200));
                for n in 0..2 {
                    assert_eq!(
                        fuzzing::sizes(&net.nodes[n].engine),
                        fuzzing::Sizes::default()
                    );
                }
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

fn nothing_is_left(net: &mut Net, n: usize) {
    net.act(n, |e, now| e.remove_peer(&peer_id(1 - n), now));
    net.run(Duration::from_secs(400));
    assert_eq!(
        fuzzing::sizes(&net.nodes[n].engine),
        fuzzing::Sizes::default(),
        "{}",
        net.story()
    );
}

fn without_certificate(n: usize) -> LocalIdentity {
    LocalIdentity {
        id: identity(n),
        certificate: None,
    }
}

// CVE-2024-2357 (libreswan), lesson L17: a local failure half way left half a state, which the
// timer for repetitions ran into.
#[test]
fn a_credential_lost_half_way_leaves_nothing_behind() {
    for loser in 0..2 {
        for after in [1, 2, 3] {
            let mut net = Net::new(2, 2);
            net.cut_after(after);
            net.connect(0, 1, false);
            net.run_ms(30);
            net.nodes[loser]
                .engine
                .set_identity(without_certificate(loser));
            net.filter = None;
            net.run(Duration::from_secs(100));
            let failures = &net.nodes[loser].failures;
            if net.ikes(loser, 1 - loser).is_empty() {
                assert!(!failures.is_empty(), "{loser} {after}");
                assert!(net.nodes[loser].twin.ikes.is_empty());
            }
            nothing_is_left(&mut net, 0);
            nothing_is_left(&mut net, 1);
        }
    }
}

// The same with the key given back: the next attempt succeeds.
#[test]
fn a_credential_that_comes_back_is_used() {
    for loser in 0..2 {
        let mut net = Net::new(3, 2);
        let kept = net.nodes[loser].engine.identity.take();
        net.connect(0, 1, false);
        net.run(Duration::from_secs(10));
        assert!(net.nodes[loser].twin.ikes.is_empty());
        net.nodes[loser].engine.identity = kept;
        net.run(Duration::from_secs(100));
        net.assert_connected(0, 1, 1);
    }
}

// Found by the fuzzer: an answer to our DELETE that could not be read left the SA behind for good,
// with nothing under way and no deadline.
#[test]
fn an_unreadable_answer_to_a_delete_ends_the_sa() {
    let mut desk = Desk::new();
    desk.until(4);
    let peer = peer_id(1);
    desk.net.act(0, |e, now| e.remove_peer(&peer, now));
    desk.until(5);
    let [a, b] = &mut desk.net.nodes[..] else {
        panic!("two nodes");
    };
    let answer = &desk.net.wire[5].2;
    let broken = fuzzing::reseal(&mut b.engine, &a.engine, answer, |_, _, _| {
        (41, vec![0, 0, 0, 9])
    });
    desk.deliver(&broken.expect("both hold the keys"));
    let mut net = desk.net;
    net.run(Duration::from_secs(100));
    assert_eq!(
        fuzzing::sizes(&net.nodes[0].engine),
        fuzzing::Sizes::default()
    );
}
