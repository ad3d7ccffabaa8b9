//! SAs that are closed while something is still being made on them.

use std::time::Duration;

use super::net::*;

fn pair(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    net.connect(0, 1, false);
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1);
    net
}

fn rekey_child(net: &mut Net) {
    let child = net.ikes(0, 1)[0].children[0].child;
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
}

fn rekey_ike(net: &mut Net) {
    net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
}

/// All that was there is gone at both ends, and nothing was installed for it afterwards.
fn assert_gone(net: &Net) {
    for n in 0..2 {
        net.assert_tidy(n, 0);
        let node = &net.nodes[n];
        assert!(node.engine.sas.is_empty(), "{}", net.story());
        assert!(node.twin.ikes.is_empty(), "{}", net.story());
    }
}

// The answer to a CREATE_CHILD_SA comes on an SA that was closed in between: what it brings must
// not outlive the SA.
#[test]
fn nothing_made_while_an_sa_is_closed_outlives_it() {
    for begin in [rekey_child, rekey_ike] {
        let mut net = pair(1);
        begin(&mut net);
        net.act(0, |e, now| e.remove_peer(&peer_id(1), now));
        net.run(Duration::from_secs(100));
        assert_gone(&net);
    }
}

#[test]
fn a_peer_that_lost_trust_during_a_rekey_stays_closed() {
    for begin in [rekey_child, rekey_ike] {
        let mut net = pair(2);
        begin(&mut net);
        net.nodes[0].verifier.trusted.lock().unwrap().clear();
        net.act(0, |e, now| e.recheck_peers(now));
        net.run_ms(200);
        net.assert_tidy(0, 0);
        assert!(net.ikes(0, 1).is_empty(), "{}", net.story());
    }
}

#[test]
fn a_peer_closed_during_a_rekey_comes_back_whole() {
    for begin in [rekey_child, rekey_ike] {
        for seed in 0..8 {
            let mut net = pair(10 + seed);
            begin(&mut net);
            net.act(0, |e, now| e.close(&peer_id(1), now)).unwrap();
            net.run_ms(10_000);
            net.esp = true;
            net.run_ms(200);
            net.assert_connected(0, 1, 1);
            net.assert_tidy(0, 1);
            net.assert_no_esp_lost();
        }
    }
}

// The child of IKE_AUTH, on which nothing has come in, is sure as soon as the peer rekeys it; its
// successor is not, and no packet may go out on that before the peer has our answer.
#[test]
fn a_child_never_used_is_sent_on_until_its_successor_stands() {
    let mut net = pair(3);
    rekey_child(&mut net);
    net.run_ms(1_000);
    net.assert_connected(0, 1, 1);
    let log = &net.nodes[1].log;
    let made = log.iter().filter(|line| line.contains("(child0) up Now"));
    assert_eq!(made.count(), 1, "{}", net.story());
}

// Each rekeyed IKE SA stays for a while: one that rekeys without end must not fill our memory.
#[test]
fn ike_sas_left_behind_by_rekeys_are_bounded() {
    let mut net = pair(4);
    for _ in 0..300 {
        let _ = net.act(0, |e, now| e.rekey_ike(&peer_id(1), now));
        net.run_ms(30);
    }
    let held = net.nodes[1].engine.sas.len();
    assert!(held <= 64, "{held} IKE SAs");
    net.esp = true;
    net.run(Duration::from_secs(90));
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
    rekey_ike(&mut net);
    net.run_ms(200);
    net.assert_connected(0, 1, 1);
}

// Each closed IKE SA waits for the answer to our DELETE: a peer that authenticates over and over and
// answers none must not fill our memory.
#[test]
fn closed_ike_sas_of_a_peer_that_answers_no_delete_are_bounded() {
    let mut net = pair(5);
    net.filter = Some(Box::new(|_, _, bytes| match bytes[18] {
        37 => Fate::Drop,
        _ => Fate::Pass,
    }));
    for _ in 0..120 {
        net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
            .unwrap();
        net.run_ms(30);
    }
    let engine = &net.nodes[1].engine;
    assert!(engine.counters().ike_established > 100);
    assert!(engine.sas.len() <= 65, "{} IKE SAs", engine.sas.len());
    assert!(engine.counters().drops["closed_ike_sas_per_peer"] > 0);
    net.filter = None;
    net.run(Duration::from_secs(100));
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[1].engine.sas.len(), 1, "{}", net.story());
}

// Found by the simulation: the attempt was gone and none followed.
#[test]
fn a_peer_closed_during_its_first_attempt_starts_again() {
    let mut net = Net::new(31, 2);
    net.connect(0, 1, false);
    net.run_ms(2);
    net.act(0, |e, now| e.close(&peer_id(1), now)).unwrap();
    assert!(net.ikes(0, 1).is_empty());
    net.run_ms(3_000);
    net.assert_connected(0, 1, 1);
}

// Found by the simulation: a probe queued while the successor waited was never sent, so the
// silence of the peer went unnoticed for good.
#[test]
fn a_successor_settled_on_in_silence_notices_the_silence() {
    let mut config = config();
    config.liveness = Duration::from_secs(30);
    let mut net = Net::with(32, 2, config);
    net.connect(0, 1, false);
    net.run_ms(2_000);
    // n1's request arrives; nothing else does until both have given up.
    let mut passed = false;
    net.filter = Some(Box::new(move |from, _, _| {
        let first = from.ip() == address(1) && !std::mem::replace(&mut passed, true);
        if first { Fate::Pass } else { Fate::Drop }
    }));
    for n in [1, 0] {
        net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now))
            .unwrap();
    }
    net.run(Duration::from_secs(60));
    net.filter = None;
    net.run(Duration::from_secs(120));
    net.assert_connected(0, 1, 1);
}

// Found by the simulation: the DELETE that waited for the window was forgotten, and the peer kept
// the SA for good.
#[test]
fn an_sa_closed_while_it_leaves_is_deleted_all_the_same() {
    let mut net = pair(33);
    let mut first = true;
    net.filter = Some(Box::new(move |from, _, bytes| {
        let answer = from.ip() == address(1) && bytes[18] == 36 && bytes[19] & 0x20 != 0;
        if answer && std::mem::take(&mut first) {
            return Fate::Delay(Duration::from_millis(400));
        }
        Fate::Pass
    }));
    rekey_child(&mut net);
    net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
        .unwrap();
    net.run_ms(100);
    let leaves = |net: &Net| {
        net.nodes[0]
            .engine
            .status()
            .iter()
            .any(|s| s.state == "leaving")
    };
    assert!(leaves(&net), "{}", net.story());
    net.act(0, |e, now| e.remove_peer(&peer_id(1), now));
    net.run(Duration::from_secs(100));
    assert_gone(&net);
}
