//! Additional key exchanges of rekeys and new children (RFC 9370, 2.2.4): IKE_FOLLOWUP_KE, alone
//! and crossing. ESP runs each millisecond; none may be lost.

use std::time::Duration;

use testudo_crypto::KeMethod::{MlKem768, MlKem1024, P256};
use testudo_wire::ike::{ExchangeType, KeyExchange, Notify, NotifyType, Payload};

use super::acts::*;
use super::net::*;
use crate::addke::Rounds;
use crate::message::{self, Payloads};
use crate::{Engine, FailedCheck};

const CREATE: u8 = 36;
const FOLLOW_UP: u8 = 44;

fn pair(seed: u64, rounds: usize, both: bool) -> Net {
    let all: [&[testudo_crypto::KeMethod]; 3] = [&[MlKem768], &[P256], &[MlKem1024]];
    let mut net = Net::with(seed, 2, hybrid(&all[..rounds], true));
    net.connect(0, 1, both);
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1);
    net.esp = true;
    net.wire.clear();
    net
}

fn count(net: &Net, exchange: u8) -> usize {
    net.wire
        .iter()
        .filter(|(_, _, b)| b[18] == exchange)
        .count()
}

/// Both ends get a second child; node `n` says so first.
fn do_add_child(net: &mut Net, n: usize) {
    for n in [n, 1 - n] {
        let mut config = peer_config(n, 1 - n, true);
        config.children.push(child(1, n, 1 - n));
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
    }
}

fn do_probe(net: &mut Net, n: usize) {
    let _ = net.act(n, |e, now| e.probe(&peer_id(1 - n), now));
}

#[test]
fn either_end_rekeys_a_child_with_every_exchange() {
    for n in 0..2 {
        for rounds in 1..=3 {
            let mut net = pair(1, rounds, false);
            for _ in 0..3 {
                net.wire.clear();
                do_rekey_child(&mut net, n);
                net.run_ms(300);
                net.assert_connected(0, 1, 1);
                assert_eq!(count(&net, CREATE), 2);
                assert_eq!(count(&net, FOLLOW_UP), 2 * rounds);
            }
            assert_eq!(net.ikes(n, 1 - n)[0].children[0].rekeys, 3);
            settled(net, 1);
        }
    }
}

#[test]
fn either_end_rekeys_the_ike_sa_with_every_exchange() {
    for n in 0..2 {
        for rounds in 1..=3 {
            let mut net = pair(2, rounds, false);
            for _ in 0..3 {
                net.wire.clear();
                do_rekey_ike(&mut net, n);
                net.run_ms(300);
                net.assert_connected(0, 1, 1);
                assert_eq!(count(&net, CREATE), 2);
                assert_eq!(count(&net, FOLLOW_UP), 2 * rounds);
            }
            assert_eq!(net.ikes(n, 1 - n)[0].rekeys, 3);
            let sa = net.nodes[n].engine.sas.values().next_back().unwrap();
            let name = sa.established().unwrap().keys.suite.name();
            assert!(name.contains("CURVE_25519/ML_KEM_768"), "{name}");
            do_rekey_child(&mut net, 1 - n);
            net.run_ms(300);
            settled(net, 1);
        }
    }
}

#[test]
fn a_child_made_later_has_every_exchange() {
    for n in 0..2 {
        let mut net = pair(3, 2, false);
        do_add_child(&mut net, n);
        net.run_ms(10_000);
        net.assert_connected(0, 1, 2);
        assert!(count(&net, FOLLOW_UP) >= 4, "{}", net.story());
        settled(net, 2);
    }
}

#[test]
fn each_lost_message_is_made_good() {
    for what in [do_rekey_child, do_rekey_ike] {
        for n in 0..2 {
            for lost in 0..8 {
                let mut net = pair(4, 2, false);
                net.lose(lost + 1);
                what(&mut net, n);
                net.run_ms(3_000);
                assert_eq!(count(&net, CREATE) + count(&net, FOLLOW_UP) > 6, lost < 6);
                settled(net, 1);
            }
        }
    }
}

#[test]
fn every_message_twice_changes_nothing() {
    for what in [do_rekey_child, do_rekey_ike] {
        let mut net = pair(5, 2, false);
        net.weather.duplicates = 100;
        net.weather.jitter = Duration::from_millis(3);
        what(&mut net, 0);
        net.run_ms(2_000);
        net.weather = FAIR;
        settled(net, 1);
    }
}

/// Two things, the second `gap` after the first, over many seeds: nonces fall in every order.
fn crossing(children: usize, first: fn(&mut Net, usize), second: fn(&mut Net, usize)) {
    for seed in 0..6 {
        for gap_ms in [0, 2, 5, 7, 10, 13, 17, 20, 25] {
            let mut net = pair(6000 + seed, 1 + seed as usize % 2, seed % 2 == 0);
            first(&mut net, 0);
            net.run_ms(gap_ms);
            second(&mut net, 1);
            net.run_ms(3_000);
            settled(net, children);
        }
    }
}

#[test]
fn crossing_rekeys_of_a_child_leave_one() {
    crossing(1, do_rekey_child, do_rekey_child);
}

#[test]
fn crossing_rekeys_of_the_ike_sa_leave_one() {
    crossing(1, do_rekey_ike, do_rekey_ike);
}

#[test]
fn a_rekey_of_the_ike_sa_crosses_one_of_a_child() {
    crossing(1, do_rekey_ike, do_rekey_child);
    crossing(1, do_rekey_child, do_rekey_ike);
}

#[test]
fn a_new_child_crosses_rekeys() {
    crossing(2, do_add_child, do_rekey_ike);
    crossing(2, do_rekey_ike, do_add_child);
    crossing(2, do_add_child, do_add_child);
}

#[test]
fn a_reauthentication_crosses_rekeys() {
    crossing(1, do_reauth, do_rekey_ike);
    crossing(1, do_rekey_child, do_reauth);
}

#[test]
fn a_probe_in_between_is_answered() {
    crossing(1, do_rekey_child, do_probe);
    crossing(1, do_rekey_ike, do_probe);
}

fn do_delete_child(net: &mut Net, n: usize) {
    let config = crate::PeerConfig {
        children: vec![child(1, n, 1 - n)],
        ..peer_config(n, 1 - n, true)
    };
    net.act(n, |e, now| e.set_peer(config, now)).unwrap();
}

/// Node 0 rekeys its child, or the IKE SA, while node 1 deletes the child.
#[test]
fn a_delete_crosses_rekeys() {
    for what in [do_rekey_child, do_rekey_ike] {
        for seed in 0..4 {
            for gap_ms in [0, 2, 5, 7, 10, 13, 17, 20, 25] {
                let mut net = pair(7000 + seed, 2, false);
                net.esp = false;
                do_add_child(&mut net, 0);
                net.run_ms(3_000);
                net.assert_connected(0, 1, 2);
                what(&mut net, 0);
                net.run_ms(gap_ms);
                do_delete_child(&mut net, 1);
                net.run_ms(40);
                do_delete_child(&mut net, 0);
                net.run(Duration::from_secs(200));
                net.assert_connected(0, 1, 1);
                net.assert_tidy(0, 1);
                net.assert_tidy(1, 1);
            }
        }
    }
}

// RFC 7296, 2.25.2: a child is not deleted on an IKE SA that is being rekeyed.
#[test]
fn a_delete_waits_for_a_rekey_that_goes_on() {
    let mut net = pair(15, 2, false);
    net.esp = false;
    do_add_child(&mut net, 0);
    net.run_ms(3_000);
    net.assert_connected(0, 1, 2);
    do_rekey_ike(&mut net, 0);
    net.run_ms(12);
    do_delete_child(&mut net, 1);
    let sa = net.nodes[1].engine.sas.values().next().unwrap();
    let est = sa.established().unwrap();
    assert_eq!((est.followers.len(), est.tasks.len()), (1, 1));
    assert!(est.outstanding.is_none());
    do_delete_child(&mut net, 0);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.ikes(1, 0)[0].rekeys, 1, "{}", net.story());
    net.run(Duration::from_secs(200));
    net.assert_tidy(0, 1);
    net.assert_tidy(1, 1);
}

/// The IKE SA is closed in the middle of each exchange: both ends come back.
#[test]
fn a_close_crosses_rekeys() {
    for what in [do_rekey_child, do_rekey_ike] {
        for closing in 0..2 {
            for gap_ms in [0, 2, 5, 7, 10, 13, 17, 20, 25] {
                let mut net = pair(8, 2, false);
                net.esp = false;
                what(&mut net, 0);
                net.run_ms(gap_ms);
                net.act(closing, |e, now| e.close(&peer_id(1 - closing), now))
                    .unwrap();
                net.run(Duration::from_secs(200));
                net.assert_connected(0, 1, 1);
                net.assert_tidy(0, 1);
                net.assert_tidy(1, 1);
            }
        }
    }
}

fn forget(engine: &mut Engine) {
    for sa in engine.sas.values_mut() {
        if let Some(est) = sa.established_mut() {
            est.followers.clear();
        }
    }
}

// RFC 9370, 2.2.4: STATE_NOT_FOUND is no end; the exchange begins anew.
#[test]
fn a_peer_that_has_forgotten_is_asked_again() {
    for what in [do_rekey_child, do_rekey_ike] {
        let mut net = pair(9, 1, false);
        what(&mut net, 0);
        // CREATE_CHILD_SA is answered, the next request under way.
        net.run_ms(8);
        forget(&mut net.nodes[1].engine);
        net.run_ms(20);
        let drops = &net.nodes[1].engine.counters().drops;
        assert_eq!(drops["incompatible"], 1, "{}", net.story());
        net.run(Duration::from_secs(10));
        assert_eq!(count(&net, FOLLOW_UP), 4);
        settled(net, 1);
    }
}

/// The peer never goes on: what was agreed to is forgotten, and other work that waited goes on.
#[test]
fn a_request_that_does_not_go_on_is_forgotten() {
    let mut net = pair(10, 1, false);
    net.esp = false;
    do_rekey_child(&mut net, 0);
    net.run_ms(8);
    // Node 0 gives up its half without a word.
    let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
    sa.established_mut().unwrap().outstanding = None;
    do_rekey_ike(&mut net, 1);
    net.filter = Some(Box::new(|_, _, bytes| {
        if bytes[18] == FOLLOW_UP && bytes[19] & 0x20 == 0 {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    net.run_ms(50_000);
    let sa = net.nodes[1].engine.sas.values().next().unwrap();
    assert_eq!(sa.established().unwrap().rekeys, 0);
    net.filter = None;
    net.run_ms(12_000);
    let drops = &net.nodes[1].engine.counters().drops;
    assert_eq!(drops["follow_up_timeout"], 1);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.ikes(1, 0)[0].rekeys, 1, "{}", net.story());
}

// Lesson L41: a link may be as long as the peer likes.
#[test]
fn links_of_any_length_are_sent_back() {
    let mut net = pair(11, 1, false);
    let rounds = {
        let sa = net.nodes[0].engine.sas.values().next().unwrap();
        sa.established().unwrap().keys.suite.additional
    };
    let engine = &mut net.nodes[0].engine;
    let mut next = |rounds: Rounds, len: usize| {
        let kind = NotifyType::ADDITIONAL_KEY_EXCHANGE;
        let answer = Payloads {
            notifies: vec![Notify::new(kind, vec![7; len])],
            ..Payloads::default()
        };
        let secrets = vec![testudo_crypto::SecretBytes::new(vec![1; 32])];
        engine
            .next_follow_up(rounds, secrets, &answer)
            .map(|(_, payloads)| payloads)
    };
    for len in (1..=64).chain([255, 1024]) {
        let payloads = next(rounds, len).map_err(|f| f.text()).unwrap();
        let Payload::Notify(link) = &payloads[1] else {
            panic!("no link");
        };
        assert_eq!(link.data, vec![7; len]);
    }
    for len in [0, 1025] {
        assert!(next(rounds, len).is_err());
    }
}

/// Node 0 waits for the answer to its IKE_FOLLOWUP_KE, which node 1 has not seen; in its place
/// comes one with other payloads.
fn instead(seed: u64, payloads: impl Fn(Vec<u8>) -> Vec<Payload>) -> Net {
    let mut net = pair(seed, 1, false);
    net.esp = false;
    net.filter = Some(Box::new(|_, _, bytes| {
        if bytes[18] == FOLLOW_UP {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    do_rekey_child(&mut net, 0);
    net.run_ms(50);
    let link = {
        let sa = net.nodes[1].engine.sas.values().next().unwrap();
        sa.established().unwrap().followers[0].link_for_tests()
    };
    net.filter = None;
    let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
    let path = sa.path();
    let id = sa.established().unwrap().next_request - 1;
    let header = sa.request_header(ExchangeType::IKE_FOLLOWUP_KE, id);
    let est = sa.established_mut().unwrap();
    let bytes = message::protect(&mut est.keys, &header, &payloads(link));
    let bytes = bytes.ok().unwrap();
    for bytes in bytes.iter() {
        net.act(1, |e, now| {
            e.handle_datagram(now, path.remote, path.local, bytes);
        });
    }
    net.run_ms(50);
    net
}

fn key(method: testudo_crypto::KeMethod, len: usize) -> Payload {
    Payload::KeyExchange(KeyExchange {
        method: method.id(),
        data: vec![0; len],
    })
}

fn link(data: Vec<u8>) -> Payload {
    let kind = NotifyType::ADDITIONAL_KEY_EXCHANGE;
    Payload::Notify(Notify::new(kind, data))
}

#[test]
fn an_unknown_link_only_fails_itself() {
    for wrong in [None, Some(vec![]), Some(vec![1; 16]), Some(vec![1; 2000])] {
        let mut net = instead(12, |_| {
            let links = wrong.clone().map(link);
            [key(MlKem768, 1184)].into_iter().chain(links).collect()
        });
        let drops = &net.nodes[1].engine.counters().drops;
        assert_eq!(drops["incompatible"], 1, "{}", net.story());
        net.run(Duration::from_secs(30));
        net.assert_connected(0, 1, 1);
        assert!(net.nodes[0].failures.is_empty());
    }
}

// Lesson L01.
#[test]
fn a_bad_key_ends_the_ike_sa() {
    for (method, len) in [
        (MlKem768, 1183),
        (MlKem768, 1088),
        (MlKem1024, 1568),
        (P256, 64),
    ] {
        let mut net = instead(13, |good| vec![key(method, len), link(good)]);
        let drops = &net.nodes[1].engine.counters().drops;
        assert_eq!(drops["bad_public_key"], 1, "{}", net.story());
        assert_eq!(net.nodes[1].failures[0].check, FailedCheck::Protocol);
        net.run(Duration::from_secs(100));
        net.assert_connected(0, 1, 1);
        net.assert_tidy(1, 1);
    }
}

/// More requests going on than one IKE SA may hold.
#[test]
fn requests_that_go_on_are_bounded() {
    let mut net = pair(14, 1, false);
    net.esp = false;
    let now = net.at();
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.children = (0..12).map(|c| child(c, n, 1 - n)).collect();
        net.nodes[n].engine.set_peer(config, now).unwrap();
    }
    net.filter = Some(Box::new(|_, _, bytes| {
        if bytes[18] == FOLLOW_UP {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    for _ in 0..12 {
        net.drain(0);
        net.run_ms(20);
        // Node 0 goes on to the next as if it had more than one window.
        let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
        let est = sa.established_mut().unwrap();
        if est.outstanding.take().is_some() {
            est.next_request -= 1;
        }
        let id = *net.nodes[0].engine.sas.keys().next().unwrap();
        net.act(0, |e, now| e.pump(id, now));
        net.run_ms(20);
    }
    let sa = net.nodes[1].engine.sas.values().next().unwrap();
    assert_eq!(sa.established().unwrap().followers.len(), 4);
}

/// The first answer on an IKE SA shows that it stands, by which a child is one too many: its DELETE
/// waits until the exchange that was answered has gone on and is over.
#[test]
fn what_an_answer_makes_known_waits_for_the_next_key_exchange() {
    let mut net = pair(15, 1, false);
    net.esp = false;
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.children.push(child(1, n, 1 - n));
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
    }
    net.run_ms(2_000);
    let engine = &mut net.nodes[1].engine;
    assert_eq!(engine.children.len(), 2);
    // Its second child stands in the first one's place, made by itself.
    let (&first, &second) = (
        engine.children.keys().next().unwrap(),
        engine.children.keys().next_back().unwrap(),
    );
    let slot = engine.children[&first].slot.clone();
    let born = engine.children[&first].installed + 1;
    let child = engine.children.get_mut(&second).unwrap();
    child.slot = slot.clone();
    (child.initiator, child.confirmed, child.born) = (true, true, born);
    let peer = engine.peers.get_mut(&peer_id(0)).unwrap();
    peer.children = [(slot, [first, second].into())].into();
    let sa = engine.sas.values_mut().next().unwrap();
    sa.established_mut().unwrap().confirmed = false;
    net.wire.clear();
    net.act(1, |e, now| e.rekey_child(second, now)).unwrap();
    net.run_ms(500);
    let mut waiting = None;
    let mut exchanges = Vec::new();
    for (from, _, bytes) in &net.wire {
        let header = testudo_wire::ike::Header::parse(bytes).unwrap();
        match (from.ip() == address(1), header.flags.response) {
            (true, false) => {
                assert_eq!(waiting, None, "two at once\n{}", net.story());
                waiting = Some(header.message_id);
                exchanges.push(header.exchange.0);
            }
            (false, true) => waiting = None,
            _ => {}
        }
    }
    assert_eq!(exchanges[..3], [36, FOLLOW_UP, 37], "{}", net.story());
}
