//! Restarts, silence, addresses, trust, many peers.

use std::net::SocketAddr;
use std::time::Duration;

use testudo_crypto::KeyType;
use testudo_wire::ike::ExchangeType;

use super::net::*;
use crate::*;

fn pair(seed: u64, config: EngineConfig) -> Net {
    let mut net = Net::with(seed, 2, config);
    net.connect(0, 1, false);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net
}

fn watchful() -> EngineConfig {
    EngineConfig {
        liveness: Duration::from_secs(5),
        ..config()
    }
}

#[test]
fn both_may_start_at_once() {
    for seed in 0..60 {
        let mut net = Net::new(seed, 2);
        net.weather = Weather {
            latency: Duration::from_millis(3),
            jitter: Duration::from_millis(seed),
            loss: seed % 30,
            duplicates: seed % 20,
        };
        net.connect(0, 1, true);
        net.run(Duration::from_secs(60));
        net.weather = FAIR;
        net.run(Duration::from_secs(60));
        net.assert_connected(0, 1, 1);
        net.assert_tidy(0, 1);
        net.assert_tidy(1, 1);
    }
}

// Lessons L59, L65: the restarted end asks at once; INITIAL_CONTACT clears what was.
#[test]
fn a_restarted_end_comes_back_at_once() {
    for n in 0..2 {
        let mut net = pair(1, watchful());
        net.restart(n);
        let now = net.at();
        net.nodes[n]
            .engine
            .set_peer(peer_config(n, 1 - n, n == 0), now)
            .unwrap();
        net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
            .unwrap();
        net.run_ms(100);
        net.assert_connected(0, 1, 1);
        net.assert_tidy(1 - n, 1);
        let down = net.nodes[1 - n].downs.last().unwrap();
        assert_eq!(down.reason, DownReason::InitialContact);
        net.esp = true;
        net.run_ms(100);
        net.assert_no_esp_lost();
    }
}

// Packets may go one way only: that the other end has a child is known by messages too.
#[test]
fn a_probe_of_either_end_tells_the_responder_that_its_peer_has_the_child() {
    for asks in 0..2 {
        let mut net = pair(8, config());
        let sending = |n: usize| *net.nodes[n].twin.sending.values().next().unwrap();
        let children = [sending(0), sending(1)];
        assert!(net.nodes[0].engine.is_confirmed(children[0]));
        assert!(!net.nodes[1].engine.is_confirmed(children[1]));
        net.act(asks, |e, now| e.probe_child(children[asks], now))
            .unwrap();
        net.run_ms(100);
        assert!(net.nodes[1].engine.is_confirmed(children[1]), "{asks}");
        let unknown = testudo_model::ChildId(u64::MAX);
        assert!(!net.nodes[0].engine.is_confirmed(unknown));
        let refused = net.act(0, |e, now| e.probe_child(unknown, now));
        assert_eq!(refused, Err(Misuse::UnknownChild(unknown)));
    }
}

#[test]
fn a_silent_peer_is_noticed_and_tried_again() {
    let mut net = pair(2, watchful());
    net.nodes[1].alive = false;
    net.run(Duration::from_secs(60));
    net.assert_tidy(0, 0);
    assert_eq!(net.nodes[0].downs[0].reason, DownReason::Dead);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::NoAnswer);
    net.nodes[1].alive = true;
    net.run(Duration::from_secs(120));
    net.assert_connected(0, 1, 1);
    net.assert_tidy(1, 1);
}

#[test]
fn liveness_costs_one_exchange_a_span_at_most() {
    let mut net = pair(3, watchful());
    net.wire.clear();
    net.run(Duration::from_secs(50));
    assert!((10..=44).contains(&net.wire.len()), "{}", net.wire.len());
    net.assert_connected(0, 1, 1);
}

#[test]
fn the_next_address_is_tried_after_a_failure() {
    let mut net = Net::new(4, 3);
    let now = net.at();
    let mut config = peer_config(0, 1, true);
    // Nobody answers at the first.
    config.addresses.insert(
        0,
        PeerAddress {
            local: address(0),
            remote: address(77),
        },
    );
    net.nodes[1]
        .engine
        .set_peer(peer_config(1, 0, false), now)
        .unwrap();
    net.act(0, |e, now| e.set_peer(config, now)).unwrap();
    net.run(Duration::from_secs(45));
    net.assert_connected(0, 1, 1);
}

#[test]
fn unchanged_data_does_not_start_anew() {
    let mut net = pair(5, config());
    let before = (net.wire.len(), net.nodes[0].engine.counters().clone());
    for _ in 0..100 {
        net.act(0, |e, now| e.set_peer(peer_config(0, 1, true), now))
            .unwrap();
        net.run_ms(1);
    }
    assert_eq!(net.wire.len(), before.0);
    assert_eq!(net.nodes[0].engine.counters(), &before.1);
    // Lesson L60: nor while an attempt runs.
    let mut net = Net::new(6, 2);
    for _ in 0..100 {
        net.connect(0, 1, false);
    }
    net.run_ms(100);
    assert_eq!(net.nodes[0].engine.counters().attempts, 1);
    net.assert_connected(0, 1, 1);
}

#[test]
fn a_failing_peer_is_tried_less_and_less() {
    let mut net = Net::new(7, 2);
    net.nodes[1].alive = false;
    net.connect(0, 1, false);
    net.run(Duration::from_secs(1_000));
    let attempts = net.nodes[0].engine.counters().attempts;
    assert!((8..20).contains(&attempts), "{attempts}");
    net.nodes[1].alive = true;
    net.run(Duration::from_secs(100));
    net.assert_connected(0, 1, 1);
    // set_peer with the same data does not reset the wait.
}

#[test]
fn a_peer_without_trust_is_closed() {
    let mut net = pair(8, config());
    net.act(0, |e, now| e.recheck_peers(now));
    net.run_ms(100);
    net.assert_connected(0, 1, 1);
    net.nodes[0].verifier.trusted.lock().unwrap().clear();
    net.act(0, |e, now| e.recheck_peers(now));
    net.run_ms(100);
    assert_eq!(net.nodes[0].downs[0].reason, DownReason::Untrusted);
    assert_eq!(
        net.nodes[0].failures[0].check,
        FailedCheck::CertificateUnknownCa
    );
    net.assert_tidy(0, 0);
    net.assert_tidy(1, 0);
}

#[test]
fn an_ike_sa_ends_with_the_certificate() {
    let mut net = Net::new(9, 2);
    let kind = KeyType::Ed25519;
    net.nodes[1]
        .engine
        .set_identity(local_identity(1, "ca", EPOCH + 100, kind));
    net.connect(0, 1, false);
    net.run(Duration::from_secs(90));
    net.assert_connected(0, 1, 1);
    // A rekey authenticates nobody and lengthens nothing.
    net.act(1, |e, now| e.rekey_ike(&peer_id(0), now)).unwrap();
    net.run(Duration::from_secs(30));
    assert!(net.ikes(0, 1).is_empty(), "{}", net.story());
    assert_eq!(net.nodes[0].downs[0].reason, DownReason::Expired);
    let last = net.nodes[0].failures.last().unwrap();
    assert_eq!(last.check, FailedCheck::CertificateExpired);
    // With a new certificate it stands again.
    net.nodes[1]
        .engine
        .set_identity(local_identity(1, "ca", EPOCH + 1_000_000, kind));
    net.run(Duration::from_secs(120));
    net.assert_connected(0, 1, 1);
}

#[test]
fn a_new_certificate_is_shown_by_reauthentication_without_loss() {
    let mut net = pair(10, config());
    net.esp = true;
    for n in 0..2 {
        let id = local_identity(n, "ca", EPOCH + 2_000_000, KeyType::EcdsaP256);
        net.nodes[n].engine.set_identity(id);
    }
    // Both ends at the same moment, as after a rotation of the CA.
    for n in 0..2 {
        net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
            .unwrap();
    }
    net.run_ms(3_000);
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
    for n in 0..2 {
        let ike = net.ikes(n, 1 - n)[0].ike;
        let sa = &net.nodes[n].engine.sas[&ike];
        let facts = sa.established().unwrap().certificate.clone().unwrap();
        assert_eq!(facts.not_after.0, EPOCH + 2_000_000);
    }
}

// Lesson L102: a NAT forgets its mapping; the peer is followed, but only by what is authentic.
#[test]
fn a_peer_behind_a_nat_is_followed() {
    let mut net = Net::new(11, 2);
    let now = net.at();
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        if n == 0 {
            // Node 1 does not ask for it, and so takes it for a NAT.
            config.encapsulation = testudo_model::policy::EncapsulationMode::Always;
        }
        net.nodes[n].engine.set_peer(config, now).unwrap();
        net.drain(n);
    }
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
    net.wire.clear();
    net.filter = Some(Box::new(|_, _, _| Fate::Drop));
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    let (_, to, bytes) = net.wire[0].clone();
    let moved = "10.0.0.1:61000".parse().unwrap();
    let mut bad = bytes.clone();
    *bad.last_mut().unwrap() ^= 1;
    net.act(1, |e, now| e.handle_datagram(now, to, moved, &bad));
    assert_eq!(net.ikes(1, 0)[0].remote.port(), 4500);
    net.wire.clear();
    net.act(1, |e, now| e.handle_datagram(now, to, moved, &bytes));
    assert_eq!(net.wire[0].1, moved);
    assert_eq!(net.ikes(1, 0)[0].remote, moved);
    assert!(net.nodes[1].log.last().unwrap().contains("path"));
    // A repetition is answered to where it comes from and moves nobody.
    let elsewhere = "10.8.8.8:62000".parse().unwrap();
    net.act(1, |e, now| e.handle_datagram(now, to, elsewhere, &bytes));
    assert_eq!(net.wire[1].1, elsewhere);
    assert_eq!(net.wire[1].2, net.wire[0].2);
    assert_eq!(net.ikes(1, 0)[0].remote, moved);
}

#[test]
fn without_a_nat_the_peer_stays_where_it_is() {
    let mut net = pair(12, config());
    net.wire.clear();
    net.filter = Some(Box::new(|_, _, _| Fate::Drop));
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    let (_, to, bytes) = net.wire[0].clone();
    let moved = "10.7.7.7:500".parse().unwrap();
    net.act(1, |e, now| e.handle_datagram(now, to, moved, &bytes));
    assert_eq!(net.ikes(1, 0)[0].remote.ip(), address(0));
}

#[test]
fn many_peers_on_one_engine() {
    const PEERS: usize = 200;
    let mut net = Net::new(13, PEERS + 1);
    net.weather = Weather {
        latency: Duration::from_millis(2),
        jitter: Duration::from_millis(20),
        loss: 5,
        duplicates: 5,
    };
    for n in 1..=PEERS {
        let now = net.at();
        let (hub, spoke) = (peer_config(0, n, n % 2 == 0), peer_config(n, 0, n % 2 == 1));
        net.nodes[0].engine.set_peer(hub, now).unwrap();
        net.nodes[n].engine.set_peer(spoke, now).unwrap();
        net.drain(0);
        net.drain(n);
    }
    net.run(Duration::from_secs(60));
    for n in 1..=PEERS {
        net.assert_connected(0, n, 1);
    }
    // Timers are bounded by what stands: 3 an IKE SA, 2 a child, one or two a peer.
    assert!(net.nodes[0].engine.timers.len() <= PEERS * 7);
    // One peer's loss is no other's.
    net.wire.clear();
    net.act(0, |e, now| e.remove_peer(&peer_id(3), now));
    net.run(Duration::from_secs(5));
    assert!(net.wire.iter().all(|(from, to, _)| {
        [address(0), address(3)].contains(&from.ip()) && [address(0), address(3)].contains(&to.ip())
    }));
}

#[test]
fn a_removed_and_restored_peer_works() {
    for n in 0..2 {
        let mut net = pair(14, config());
        net.act(n, |e, now| e.remove_peer(&peer_id(1 - n), now));
        net.run(Duration::from_secs(3));
        net.assert_tidy(0, 0);
        net.assert_tidy(1, 0);
        net.act(n, |e, now| e.set_peer(peer_config(n, 1 - n, n == 0), now))
            .unwrap();
        net.run(Duration::from_secs(60));
        net.assert_connected(0, 1, 1);
    }
}

#[test]
fn commands_without_sense_are_refused() {
    let mut net = Net::new(15, 2);
    let now = net.at();
    let engine = &mut net.nodes[0].engine;
    let unknown = Err(Misuse::UnknownPeer(peer_id(1)));
    assert_eq!(engine.rekey_ike(&peer_id(1), now), unknown);
    assert_eq!(engine.reauthenticate(&peer_id(1), now), unknown);
    assert_eq!(engine.close(&peer_id(1), now), unknown);
    engine.set_peer(peer_config(0, 1, false), now).unwrap();
    let waiting = Err(Misuse::NotEstablished(peer_id(1)));
    assert_eq!(engine.probe(&peer_id(1), now), waiting);
    let mut bad = peer_config(0, 2, false);
    bad.addresses.clear();
    assert!(matches!(
        engine.set_peer(bad, now),
        Err(Misuse::BadConfig { .. })
    ));
    // Two peers of one identity could not be told apart.
    let mut twin = peer_config(0, 2, false);
    twin.remote_identity = identity(1);
    assert!(engine.set_peer(twin, now).is_err());
}

#[test]
fn without_an_identity_the_failure_says_so() {
    let mut net = Net::new(16, 2);
    net.nodes[0].engine.identity = None;
    net.connect(0, 1, false);
    net.run_ms(200);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::LocalCredential);
    net.nodes[0]
        .engine
        .set_identity(local_identity(0, "ca", EPOCH + 1_000_000, KeyType::Ed25519));
    net.run(Duration::from_secs(20));
    net.assert_connected(0, 1, 1);
}

// Lesson L59: killed and started again at each step of each exchange.
#[test]
fn a_restart_at_any_step_ends_with_one_pair() {
    for n in 0..2 {
        for ms in 0..40 {
            let mut net = Net::with(100 + ms, 2, watchful());
            net.connect(0, 1, false);
            net.run_ms(ms);
            net.restart(n);
            let now = net.at();
            net.nodes[n]
                .engine
                .set_peer(peer_config(n, 1 - n, n == 0), now)
                .unwrap();
            net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
                .unwrap();
            net.run(Duration::from_secs(3));
            net.assert_connected(0, 1, 1);
            net.run(Duration::from_secs(90));
            net.assert_connected(0, 1, 1);
            net.assert_tidy(0, 1);
            net.assert_tidy(1, 1);
        }
    }
}

// Lesson L67: many children are queued, the first datagram is lost.
#[test]
fn many_children_are_made_one_after_the_other() {
    let mut net = Net::new(17, 2);
    let now = net.at();
    for (n, peer) in [(1, 0), (0, 1)] {
        let mut config = peer_config(n, peer, n == 0);
        config.children = (0..200).map(|c| child(c, n, peer)).collect();
        net.nodes[n].engine.set_peer(config, now).unwrap();
        net.drain(n);
    }
    net.lose(5);
    net.run(Duration::from_secs(10));
    net.assert_connected(0, 1, 200);
    net.assert_tidy(0, 200);
}

/// Node 1 makes its child again, and cannot say that the first one is to go: it acts like a
/// peer that leaves such things standing. Seen with libreswan.
#[test]
fn what_the_peer_leaves_standing_is_deleted_for_it() {
    let mut net = Net::new(18, 2);
    net.connect(1, 0, false);
    net.run_ms(500);
    let slot = net.nodes[1]
        .engine
        .children
        .values()
        .next()
        .unwrap()
        .slot
        .clone();
    let ike = *net.nodes[1].twin.ikes.first().unwrap();
    net.esp = true;
    net.act(1, |e, now| {
        let offer = e.offer_child(&peer_id(0), &slot).unwrap();
        let method = e.child_method(ike, None);
        e.send_create(ike, offer, None, method, Vec::new(), now);
    });
    let node = SocketAddr::new(address(1), 500);
    net.filter = Some(Box::new(move |from, _, bytes| {
        let (exchange, flags) = (bytes[18], bytes[19]);
        let request = exchange == ExchangeType::INFORMATIONAL.0 && flags & 0x20 == 0;
        if from == node && request {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    net.run(Duration::from_secs(29));
    net.assert_tidy(0, 2);
    // The silence about it would end the IKE SA soon.
    net.run(Duration::from_millis(6100));
    net.assert_tidy(0, 1);
    net.assert_no_esp_lost();
}

// Lesson L60: a hundred asks for one pair, at both ends and within a millisecond, make one pair.
#[test]
fn a_hundred_asks_at_once_make_one() {
    let mut net = pair(21, config());
    for _ in 0..100 {
        for n in 0..2 {
            net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
                .unwrap();
        }
        net.run(Duration::from_micros(10));
    }
    net.run(Duration::from_secs(100));
    net.assert_connected(0, 1, 1);
    net.assert_tidy(0, 1);
    net.assert_tidy(1, 1);
    for n in 0..2 {
        assert!(net.nodes[n].engine.counters().ike_established <= 3);
        assert_eq!(net.nodes[n].engine.sas.len(), 1, "{}", net.story());
    }
}

// Lesson L62: a new certificate while packets flow, at both ends at once.
#[test]
fn new_certificates_at_both_ends_lose_nothing() {
    let mut net = pair(22, config());
    net.esp = true;
    net.run_ms(50);
    for n in 0..2 {
        let identity = local_identity(n, "ca", EPOCH + 3_000_000, KeyType::Ed25519);
        net.act(n, |e, now| {
            e.set_identity(identity);
            e.reauthenticate(&peer_id(1 - n), now).unwrap();
        });
    }
    net.run_ms(3_000);
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
}
