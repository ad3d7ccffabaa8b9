//! Bytes from strangers, replays, forgeries, floods: counted, dropped, and the SA lives on.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use testudo_crypto::{DangerousSeededRandom, KeMethod, Random};
use testudo_wire::ike::{ExchangeType, Header, Notify, NotifyType, Payload};

use super::net::*;
use crate::message;
use crate::*;

fn pair(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    net.connect(0, 1, false);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net
}

fn at(n: usize, port: u16) -> SocketAddr {
    SocketAddr::new(address(n), port)
}

/// What must not change by a datagram that is not the peer's.
fn snapshot(net: &Net, n: usize) -> String {
    let engine = &net.nodes[n].engine;
    let sas: Vec<_> = engine
        .sas
        .values()
        .map(|sa| {
            let est = sa.established();
            let window = est.map(|e| (e.answered.next, e.next_request, e.last_in));
            (sa.id, sa.state.name(), sa.local, sa.remote, window)
        })
        .collect();
    format!("{sas:?} {:?} {}", engine.status(), engine.half_open_total)
}

// Lessons L16, L28: replays, also from elsewhere, change nothing.
#[test]
fn replayed_datagrams_change_nothing() {
    let mut net = pair(1);
    let recorded = net.wire.clone();
    let before = [snapshot(&net, 0), snapshot(&net, 1)];
    for (from, to, bytes) in recorded {
        for source in [from, "10.9.9.9:4500".parse().unwrap()] {
            let n = usize::from(to.ip() == address(1));
            // A repeated first message from elsewhere is a stranger's.
            if source != from && bytes[18] == 34 {
                continue;
            }
            net.act(n, |e, now| e.handle_datagram(now, to, source, &bytes));
        }
    }
    assert_eq!([snapshot(&net, 0), snapshot(&net, 1)], before);
    net.run_ms(100);
    net.assert_connected(0, 1, 1);
}

#[test]
fn every_datagram_five_times_makes_one_sa() {
    let mut net = Net::new(2, 2);
    net.weather.duplicates = 100;
    net.weather.jitter = Duration::from_millis(30);
    net.connect(0, 1, false);
    net.run_ms(3_000);
    net.assert_connected(0, 1, 1);
    let answers: Vec<_> = net
        .wire
        .iter()
        .filter(|(from, _, bytes)| from.ip() == address(1) && bytes[18] == 35)
        .map(|(_, _, bytes)| bytes.clone())
        .collect();
    assert!(answers.iter().all(|a| *a == answers[0]), "answers differ");
}

// Lesson L09: shorter than a header, keepalives, every length wrong.
#[test]
fn truncated_and_stretched_datagrams_are_dropped() {
    let mut net = pair(3);
    let recorded = net.wire.clone();
    let before = [snapshot(&net, 0), snapshot(&net, 1)];
    for (from, to, bytes) in recorded {
        let n = usize::from(to.ip() == address(1));
        for len in 0..bytes.len() {
            net.act(n, |e, now| e.handle_datagram(now, to, from, &bytes[..len]));
        }
        let longer = [&bytes[..], &[0; 5]].concat();
        net.act(n, |e, now| e.handle_datagram(now, to, from, &longer));
        net.act(n, |e, now| e.handle_datagram(now, to, from, &[0xff]));
    }
    assert_eq!([snapshot(&net, 0), snapshot(&net, 1)], before);
    assert!(net.nodes[0].engine.counters().drops["short"] > 0);
}

/// A good request with one bit wrong anywhere is dropped.
#[test]
fn changed_datagrams_are_dropped() {
    let mut net = pair(4);
    net.wire.clear();
    net.filter = Some(Box::new(|_, _, _| Fate::Drop));
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    let (from, to, bytes) = net.wire[0].clone();
    net.filter = None;
    let before = snapshot(&net, 1);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        net.act(1, |e, now| e.handle_datagram(now, to, from, &bad));
    }
    assert_eq!(snapshot(&net, 1), before, "{}", net.story());
    net.act(1, |e, now| e.handle_datagram(now, to, from, &bytes));
    assert_ne!(snapshot(&net, 1), before);
}

fn clear_answer(spi_i: u64, spi_r: u64, notify: Notify) -> Vec<u8> {
    let header = Header::new(spi_i, spi_r, ExchangeType::IKE_SA_INIT, false, true, 0);
    message::clear(&header, &[Payload::Notify(notify)]).unwrap()
}

fn forge(net: &mut Net, notify: Notify) {
    let spi = u64::from_be_bytes(net.wire[0].2[..8].try_into().unwrap());
    let bytes = clear_answer(spi, 0, notify);
    net.act(0, |e, now| {
        e.handle_datagram(now, at(0, 500), at(1, 500), &bytes);
    });
}

// Lesson L27: a forged refusal does not end an attempt.
#[test]
fn forged_refusals_do_not_end_an_attempt() {
    for kind in [
        NotifyType::NO_PROPOSAL_CHOSEN,
        NotifyType::INVALID_SYNTAX,
        NotifyType::AUTHENTICATION_FAILED,
    ] {
        let mut net = Net::new(5, 2);
        net.connect(0, 1, false);
        forge(&mut net, Notify::new(kind, []));
        net.run_ms(300);
        net.assert_connected(0, 1, 1);
    }
}

#[test]
fn a_refusal_is_told_when_nothing_better_comes() {
    let mut net = Net::new(6, 2);
    net.nodes[1].engine.config.suites.prfs.clear();
    net.connect(0, 1, false);
    net.run(Duration::from_secs(60));
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Proposal);
}

#[test]
fn a_forged_method_steers_one_attempt_only() {
    let mut net = Net::new(7, 2);
    net.connect(0, 1, false);
    // Methods that were not offered, or were tried, do nothing.
    for method in [0u16, 14, 31, 32, 65535] {
        let notify = Notify::new(NotifyType::INVALID_KE_PAYLOAD, method.to_be_bytes());
        forge(&mut net, notify);
    }
    assert_eq!(net.wire.len(), 1);
    let notify = Notify::new(NotifyType::INVALID_KE_PAYLOAD, 20u16.to_be_bytes());
    forge(&mut net, notify);
    assert_eq!(net.wire.len(), 2);
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1);
    // The next attempt begins with the first method again.
    net.wire.clear();
    net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
        .unwrap();
    net.run_ms(1_000);
    net.assert_connected(0, 1, 1);
    let sa = &net.nodes[0].engine.sas[&net.ikes(0, 1)[0].ike];
    assert_eq!(
        sa.established().unwrap().keys.suite.ke,
        KeMethod::X25519,
        "{}",
        net.story()
    );
}

#[test]
fn a_stranger_does_not_speak_for_a_peer() {
    // Node 2 claims to be node 0, with a certificate that nobody trusts.
    let mut net = Net::new(8, 3);
    net.connect(0, 1, false);
    net.run_ms(500);
    let kind = testudo_crypto::KeyType::Ed25519;
    net.nodes[2]
        .engine
        .set_identity(local_identity(0, "evil", EPOCH + 1_000_000, kind));
    let now = net.at();
    net.nodes[2]
        .engine
        .set_peer(peer_config(2, 1, true), now)
        .unwrap();
    net.drain(2);
    net.run_ms(500);
    let failure = &net.nodes[1].failures[0];
    assert_eq!(failure.check, FailedCheck::CertificateUnknownCa);
    assert!(!failure.authenticated);
    net.assert_connected(0, 1, 1);
}

// Lessons L24, L25.
#[test]
fn a_flood_is_bounded_and_does_not_lock_anybody_out() {
    let mut net = Net::new(9, 2);
    let mut random = DangerousSeededRandom::new(9);
    let now = net.at();
    net.nodes[1]
        .engine
        .set_peer(peer_config(1, 0, false), now)
        .unwrap();
    // A good first message, with SPIs and addresses that are not its own.
    let mut other = Net::new(10, 2);
    other.connect(0, 1, false);
    let init = other.wire[0].2.clone();
    for i in 0..5_000u32 {
        let mut bytes = init.clone();
        random.fill(&mut bytes[..8]);
        let source = match i % 3 {
            0 => at(0, 500),
            _ => SocketAddr::new([10, 1, (i >> 8) as u8, i as u8].into(), 500),
        };
        net.act(1, |e, now| {
            e.handle_datagram(now, at(1, 500), source, &bytes);
        });
    }
    let limits = net.nodes[1].engine.config().limits;
    let engine = &net.nodes[1].engine;
    assert!(engine.half_open_total <= limits.cookie_threshold);
    assert!(engine.sas.len() <= limits.cookie_threshold);
    assert!(engine.counters().cookies_sent > 4_000);
    // The victim, whose address was used as well, comes through by a cookie.
    net.run_ms(100);
    let now = net.at();
    net.nodes[0]
        .engine
        .set_peer(peer_config(0, 1, true), now)
        .unwrap();
    net.drain(0);
    net.run_ms(35_000);
    net.assert_connected(0, 1, 1);
    let engine = &net.nodes[1].engine;
    assert_eq!((engine.half_open_total, engine.half_open.len()), (0, 0));
    assert_eq!(engine.inits.len(), 1);
}

#[test]
fn own_attempts_ask_nobody_for_cookies() {
    // Lesson L25: 300 own initiations do not count as half-open.
    let mut net = Net::new(11, 1);
    let now = net.at();
    for n in 1..300 {
        net.nodes[0]
            .engine
            .set_peer(peer_config(0, n, true), now)
            .unwrap();
    }
    net.act(0, |e, now| e.handle_timeout(now));
    assert_eq!(net.nodes[0].engine.counters().attempts, 299);
    assert_eq!(net.nodes[0].engine.half_open_total, 0);
}

#[test]
fn other_major_versions_are_told_ours() {
    let mut net = pair(12);
    let mut bytes = net.wire[0].2.clone();
    bytes[17] = 0x30;
    net.wire.clear();
    net.act(1, |e, now| {
        e.handle_datagram(now, at(1, 500), at(0, 500), &bytes);
    });
    let answer = net.wire[0].2.clone();
    let parsed = testudo_wire::ike::Message::parse(&answer).unwrap();
    assert!(matches!(&parsed.payloads[0].payload, Payload::Notify(n)
        if n.kind == NotifyType::INVALID_MAJOR_VERSION));
    assert!(parsed.header.flags.response);
    // IKEv1 knows no such notify: its messages are dropped.
    net.wire.clear();
    bytes[17] = 0x10;
    let before = net.nodes[1].engine.status().len();
    net.act(1, |e, now| {
        e.handle_datagram(now, at(1, 500), at(0, 500), &bytes);
    });
    assert!(net.wire.is_empty());
    assert_eq!(net.nodes[1].engine.status().len(), before);
    bytes[17] = 0x30;
    // Never an answer to an answer.
    net.wire.clear();
    bytes[19] |= 0x20;
    net.act(1, |e, now| {
        e.handle_datagram(now, at(1, 500), at(0, 500), &bytes);
    });
    assert!(net.wire.is_empty());
}

/// Requests under the SA's own keys, but with nonsense inside.
#[test]
fn a_peer_that_breaks_the_protocol_is_told() {
    use testudo_wire::ike::UnknownPayload;
    let unknown = |critical| {
        Payload::Unknown(UnknownPayload {
            kind: testudo_wire::ike::PayloadType(77),
            critical,
            data: vec![1, 2, 3],
        })
    };
    let garbage = Payload::Notify(Notify::new(NotifyType::REKEY_SA, [1]));
    for (exchange, payload, lives) in [
        // Lesson L08.
        (ExchangeType::INFORMATIONAL, unknown(false), true),
        (ExchangeType::INFORMATIONAL, unknown(true), true),
        (ExchangeType::CREATE_CHILD_SA, garbage, false),
    ] {
        let mut net = pair(13);
        let now = net.at();
        let id = net.ikes(0, 1)[0].ike;
        net.nodes[0]
            .engine
            .send_request(now, id, exchange, &[payload], crate::sa::Pending::Probe);
        net.drain(0);
        net.run_ms(20);
        assert_eq!(net.ikes(1, 0).len(), usize::from(lives), "{}", net.story());
    }
}

#[test]
fn children_are_bounded() {
    let mut net = pair(14);
    net.nodes[1].engine.config.limits.children_per_ike_sa = 1;
    let now = net.at();
    for n in 0..2 {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.children.push(child(1, n, 1 - n));
        let _ = net.nodes[n].engine.set_peer(config, now);
        net.drain(n);
    }
    net.run_ms(100);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Limit);
}

// A successor takes the place of a child that is counted; how many do at once is bounded.
#[test]
fn a_rekey_is_no_new_child() {
    for (limit, made) in [(1, 1), (0, 0)] {
        let mut net = pair(15);
        net.nodes[1].engine.config.limits.children_per_ike_sa = limit;
        let child = net.ikes(0, 1)[0].children[0].child;
        let before = net.nodes[1].engine.counters().child_rekeys;
        net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
        net.run_ms(12);
        let after = net.nodes[1].engine.counters().child_rekeys;
        assert_eq!(after - before, made, "{}", net.story());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_never_panic(
        datagrams in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..400), 1..20),
        seed in 0u64..4,
    ) {
        let mut net = pair(20 + seed);
        let before = snapshot(&net, 1);
        for bytes in datagrams {
            net.act(1, |e, now| {
                e.handle_datagram(now, at(1, 500), at(0, 500), &bytes);
            });
        }
        prop_assert_eq!(snapshot(&net, 1), before);
    }

    /// Real messages with a few bytes changed, at every state of both ends.
    #[test]
    fn changed_messages_never_panic(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        which in 0usize..4,
        seed in any::<u64>(),
    ) {
        let mut net = Net::new(seed, 2);
        let mut count = 0;
        net.filter = Some(Box::new(move |_, _, bytes| {
            count += 1;
            if count != which + 1 {
                return Fate::Pass;
            }
            let mut bytes = bytes.to_vec();
            for (index, value) in &changes {
                let index = usize::from(*index) % bytes.len();
                bytes[index] = *value;
            }
            Fate::Change(bytes)
        }));
        net.connect(0, 1, false);
        net.run(Duration::from_secs(150));
        // Once the bad message is gone, the two find each other.
        net.assert_connected(0, 1, 1);
    }

    /// The same under the keys: a peer that is authentic and mad.
    #[test]
    fn mad_but_authentic_payloads_never_panic(
        body in proptest::collection::vec(any::<u8>(), 0..120),
        kind in 33u8..48,
        create in any::<bool>(),
    ) {
        use testudo_wire::ike::{Chain, PayloadType, build_encrypted};
        let mut net = pair(30);
        let id = net.ikes(0, 1)[0].ike;
        let sa = net.nodes[0].engine.sas.get_mut(&id).unwrap();
        let exchange = if create {
            ExchangeType::CREATE_CHILD_SA
        } else {
            ExchangeType::INFORMATIONAL
        };
        let header = sa.request_header(exchange, 2);
        let mut chain = Chain::new();
        chain.push_raw(PayloadType(kind), false, &body).unwrap();
        let keys = &mut sa.established_mut().unwrap().keys;
        let sealing = build_encrypted(&header, &chain, keys.layout()).unwrap();
        let bytes = crate::message::seal(keys, sealing).unwrap();
        net.act(1, |e, now| {
            e.handle_datagram(now, at(1, 500), at(0, 500), &bytes);
        });
        net.run_ms(1_000);
    }
}
