//! Additional key exchanges of rekeys and new children (RFC 9370, 2.2.4): IKE_FOLLOWUP_KE, alone
//! and crossing. ESP runs each millisecond; none may be lost.

use std::time::Duration;

use testudo_crypto::KeMethod::{MlKem768, MlKem1024, P256};

use super::net::*;

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

/// All is quiet, both ends agree, nothing is left over, nothing was lost.
fn settled(mut net: Net, children: usize) {
    net.run_ms(300);
    net.esp = false;
    net.run(Duration::from_secs(200));
    net.assert_connected(0, 1, children);
    net.assert_tidy(0, children);
    net.assert_tidy(1, children);
    net.assert_no_esp_lost();
    for n in 0..2 {
        let engine = &net.nodes[n].engine;
        assert_eq!(engine.sas.len(), 1, "{}", net.story());
        let sa = engine.sas.values().next().unwrap();
        assert!(sa.established().unwrap().followers.is_empty());
        assert!(net.nodes[n].failures.is_empty(), "{}", net.story());
    }
}

fn count(net: &Net, exchange: u8) -> usize {
    net.wire
        .iter()
        .filter(|(_, _, b)| b[18] == exchange)
        .count()
}

fn child_of(net: &Net, n: usize) -> testudo_model::ChildId {
    net.ikes(n, 1 - n)[0].children[0].child
}

fn do_rekey_child(net: &mut Net, n: usize) {
    // In a crossing it may be on its way out already.
    let child = child_of(net, n);
    let _ = net.act(n, |e, now| e.rekey_child(child, now));
}

fn do_rekey_ike(net: &mut Net, n: usize) {
    let _ = net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now));
}

fn do_reauth(net: &mut Net, n: usize) {
    let _ = net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now));
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
            let sa = net.nodes[n].engine.sas.values().last().unwrap();
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
                let mut seen = 0;
                net.filter = Some(Box::new(move |_, _, _| {
                    seen += 1;
                    if seen == lost + 1 {
                        Fate::Drop
                    } else {
                        Fate::Pass
                    }
                }));
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
