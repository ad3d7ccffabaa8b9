//! Many first messages: from forged addresses, again and again, and our own.

use std::net::SocketAddr;
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, Random};
use testudo_model::{Monotonic, Now};

use super::net::*;
use super::voice::*;
use crate::*;

fn at(n: usize, port: u16) -> SocketAddr {
    SocketAddr::new(address(n), port)
}

fn stranger(i: u32) -> SocketAddr {
    SocketAddr::new([10, 1, (i >> 8) as u8, i as u8].into(), 500)
}

/// A good IKE_SA_INIT request.
fn first_message() -> Vec<u8> {
    let mut net = quiet_pair(1);
    net.act(0, |e, now| e.handle_timeout(now));
    net.wire[0].2.clone()
}

/// A responder that knows node 0, and a source of first messages with SPIs of their own.
struct Flood {
    net: Net,
    init: Vec<u8>,
    random: DangerousSeededRandom,
}

impl Flood {
    fn new(seed: u64) -> Self {
        Self {
            net: quiet_pair(seed),
            init: first_message(),
            random: DangerousSeededRandom::new(seed),
        }
    }

    fn hit(&mut self, source: SocketAddr) {
        let mut bytes = self.init.clone();
        self.random.fill(&mut bytes[..8]);
        self.hit_with(source, &bytes);
    }

    fn hit_with(&mut self, source: SocketAddr, bytes: &[u8]) {
        self.net.act(1, |e, now| {
            e.handle_datagram(now, at(1, 500), source, bytes)
        });
    }

    fn engine(&self) -> &Engine {
        &self.net.nodes[1].engine
    }
}

// strongSwan v5.9.6 (d8104b7), lesson L24: cookies stayed on as long as a packet came every 10 s.
#[test]
fn cookies_end_with_the_flood() {
    let mut flood = Flood::new(2);
    for i in 0..1_000 {
        flood.hit(stranger(i));
    }
    assert!(flood.engine().counters().cookies_sent > 0);
    // Half-open SAs end, whatever else comes.
    for i in 0..6 {
        flood.net.run(Duration::from_secs(10));
        flood.hit(stranger(10_000 + i));
    }
    let asked = flood.engine().counters().cookies_sent;
    for i in 0..30 {
        flood.net.run(Duration::from_secs(10));
        flood.hit(stranger(20_000 + i));
    }
    assert_eq!(flood.engine().counters().cookies_sent, asked);
    assert!(flood.engine().half_open_total <= 4);
}

// strongSwan v5.9.6 (b866ee8), lesson L24: what waits is counted; memory stays flat however many
// come and from wherever.
#[test]
fn memory_is_flat_in_a_flood() {
    let mut flood = Flood::new(3);
    for i in 0..2_000 {
        flood.hit(stranger(i));
    }
    let held = fuzzing::sizes(flood.engine());
    for i in 2_000..12_000 {
        flood.hit(stranger(i));
    }
    assert_eq!(fuzzing::sizes(flood.engine()), held);
    assert!(held.sas <= flood.engine().config().limits.cookie_threshold);
    flood.net.run(Duration::from_secs(40));
    let held = fuzzing::sizes(flood.engine());
    assert_eq!(
        (held.sas, held.spis, held.inits, held.half_open),
        (1, 1, 1, 0)
    );
}

// strongSwan 0b47357, lesson L25: a first message that is refused must not stay counted.
#[test]
fn refused_first_messages_are_not_counted_as_half_open() {
    let mut flood = Flood::new(4);
    let mut tried = Vec::new();
    for message_id in [1u32, 2, u32::MAX] {
        let mut bytes = flood.init.clone();
        bytes[20..24].copy_from_slice(&message_id.to_be_bytes());
        tried.push(bytes);
    }
    let mut with_responder = flood.init.clone();
    with_responder[8..16].copy_from_slice(&[7; 8]);
    tried.push(with_responder);
    let mut as_answer = flood.init.clone();
    as_answer[19] ^= 0x20;
    tried.push(as_answer);
    let mut as_responder = flood.init.clone();
    as_responder[19] ^= 0x08;
    tried.push(as_responder);
    tried.push(rewrite(&flood.init, |_, payloads| payloads.truncate(1)));
    tried.push(rewrite(&flood.init, |_, payloads| payloads.clear()));
    for round in 0..50 {
        for bytes in &tried {
            let mut bytes = bytes.clone();
            flood.random.fill(&mut bytes[..8]);
            flood.hit_with(stranger(round), &bytes);
        }
    }
    let held = fuzzing::sizes(flood.engine());
    assert_eq!((held.sas, held.inits, held.half_open), (0, 0, 0));
    assert!(flood.engine().half_open.is_empty());
    assert_eq!(flood.engine().counters().cookies_sent, 0);
}

// strongSwan 735f929, lesson L25: 500 initiations of our own are no load of others'.
#[test]
fn own_initiations_do_not_ask_others_for_cookies() {
    let mut net = quiet_pair(5);
    let now = net.at();
    for n in 2..502 {
        let config = peer_config(1, n, true);
        net.nodes[1].engine.set_peer(config, now).unwrap();
    }
    net.act(1, |e, now| e.handle_timeout(now));
    assert_eq!(net.nodes[1].engine.counters().attempts, 500);
    net.act(0, |e, now| e.handle_timeout(now));
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[1].engine.counters().cookies_sent, 0);
}

// strongSwan 68bfee4, lesson L25: cookies made when the clock stood at 0 were refused.
#[test]
fn a_clock_that_starts_at_zero_works_with_cookies() {
    let mut net = quiet_pair(6);
    net.now = Duration::ZERO;
    net.nodes[1].engine.config.limits.cookie_threshold = 0;
    let zero = Now {
        monotonic: Monotonic(Duration::ZERO),
        wall: net.at().wall,
    };
    net.act(0, |e, _| e.reauthenticate(&peer_id(1), zero))
        .unwrap();
    net.weather.latency = Duration::ZERO;
    net.run_ms(500);
    assert!(net.nodes[1].engine.counters().cookies_sent > 0);
    net.assert_connected(0, 1, 1);
}

// libreswan's ikev2-impair-02-replay-forward and ikev2-43, openiked aaf2805, lesson L28: each
// datagram five times, in any order, with and without cookies: one IKE SA, and the same answer to
// the same question.
#[test]
fn every_datagram_five_times_under_load_makes_one_sa() {
    for threshold in [0, 64] {
        for seed in 0..10 {
            let mut net = quiet_pair(100 + seed);
            net.nodes[1].engine.config.limits.cookie_threshold = threshold;
            net.act(0, |e, now| e.handle_timeout(now));
            let mut random = DangerousSeededRandom::new(seed);
            // By hand: what is sent waits, each five times, and is taken in any order.
            net.filter = Some(Box::new(|_, _, _| Fate::Drop));
            let mut waiting = Vec::new();
            let mut taken = 0;
            let mut answers = std::collections::BTreeMap::new();
            waiting.extend(std::iter::repeat_n(net.wire[0].clone(), 5));
            while !waiting.is_empty() {
                let mut drawn = [0; 8];
                random.fill(&mut drawn);
                let at = u64::from_be_bytes(drawn) % waiting.len() as u64;
                let (from, to, bytes) = waiting.swap_remove(at as usize);
                let n = usize::from(to.ip() == address(1));
                let before = net.wire.len();
                net.act(n, |e, now| e.handle_datagram(now, to, from, &bytes));
                for sent in net.wire[before..].iter().cloned() {
                    if n == 1 && sent.2[19] & 0x20 != 0 && bytes[18] == 35 {
                        let known = answers.entry(bytes.clone()).or_insert(sent.2.clone());
                        assert_eq!(*known, sent.2, "answers differ");
                    }
                    waiting.extend(std::iter::repeat_n(sent, 5));
                }
                taken += 1;
                assert!(taken < 3_000, "they never come to rest");
            }
            net.filter = None;
            net.assert_connected(0, 1, 1);
            assert_eq!(net.nodes[1].engine.counters().ike_established, 1);
            assert_eq!(net.nodes[1].engine.half_open_total, 0, "{}", net.story());
        }
    }
}
