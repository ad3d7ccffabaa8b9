//! The datapath does not take a child (lesson L61).

use std::time::Duration;

use super::net::*;
use crate::*;

fn refusing(n: usize, times: u32) -> Net {
    let mut net = Net::new(1, 2);
    net.nodes[n].refuse = times;
    net.connect(0, 1, false);
    net
}

fn refused(net: &Net, n: usize) -> u64 {
    net.nodes[n].engine.counters().children_refused
}

#[test]
fn the_first_are_refused_and_one_is_taken_in_the_end() {
    for n in 0..2 {
        for times in 1..4 {
            let mut net = refusing(n, times);
            net.run(Duration::from_secs(60));
            net.assert_connected(0, 1, 1);
            assert_eq!(refused(&net, n), u64::from(times));
            // The IKE SA is the first one.
            for n in 0..2 {
                net.assert_tidy(n, 1);
                assert_eq!(net.nodes[n].engine.counters().ike_established, 1);
            }
            net.esp = true;
            net.run_ms(500);
            net.assert_no_esp_lost();
        }
    }
}

#[test]
fn a_datapath_that_takes_none_is_asked_less_and_less() {
    for n in 0..2 {
        let mut net = refusing(n, u32::MAX);
        net.run(Duration::from_secs(600));
        assert!((6..=20).contains(&refused(&net, n)), "{}", net.story());
        assert_eq!(net.nodes[n].engine.counters().ike_established, 1);
        for n in 0..2 {
            assert_eq!(net.ikes(n, 1 - n)[0].children.len(), 0);
            net.assert_tidy(n, 0);
        }
    }
}

// What was sent on before is gone at the peer, or goes: another child takes its place.
#[test]
fn the_successor_of_a_child_is_refused() {
    for n in 0..2 {
        for asks in 0..2 {
            let mut net = refusing(n, 0);
            net.run_ms(500);
            let child = net.ikes(asks, 1 - asks)[0].children[0].child;
            net.nodes[n].refuse = 1;
            net.act(asks, |e, now| e.rekey_child(child, now)).unwrap();
            net.run(Duration::from_secs(20));
            net.assert_connected(0, 1, 1);
            assert_eq!(refused(&net, n), 1);
            net.assert_tidy(0, 1);
            net.assert_tidy(1, 1);
        }
    }
}

// One of several: the others carry on.
#[test]
fn the_fellows_of_a_refused_child_stay() {
    let mut net = Net::new(2, 2);
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.children = (0..3).map(|c| child(c, n, 1 - n)).collect();
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(12);
    net.nodes[0].refuse = 1;
    net.run_ms(500);
    assert_eq!(net.ikes(0, 1)[0].children.len(), 2, "{}", net.story());
    net.esp = true;
    net.run(Duration::from_secs(5));
    net.assert_connected(0, 1, 3);
    net.assert_no_esp_lost();
}

#[test]
fn a_refusal_of_an_unknown_child_is_misuse() {
    let mut net = refusing(0, 0);
    net.run_ms(500);
    let unknown = testudo_model::ChildId(u64::MAX);
    let outcome = net.act(0, |e, now| e.refuse_child(unknown, now));
    assert_eq!(outcome, Err(Misuse::UnknownChild(unknown)));
}
