//! Children for CPUs or queues (RFC 9611): as many as both ends take, none for another.

use std::collections::BTreeSet;
use std::time::Duration;

use testudo_model::ChildId;

use super::net::*;
use crate::*;

fn config_of(n: usize, resources: u32, initiate: bool) -> PeerConfig {
    let mut config = peer_config(n, 1 - n, initiate);
    config.children[0].resources = resources;
    config
}

/// Node 0 begins and wants so many; node 1 takes so many.
fn pair_with(seed: u64, wants: u32, takes: u32, both: bool) -> Net {
    let mut net = Net::new(seed, 2);
    for (n, resources) in [(1, takes), (0, wants)] {
        let config = config_of(n, resources, n == 0 || both);
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net
}

fn pair(seed: u64, wants: u32, takes: u32) -> Net {
    let mut net = pair_with(seed, wants, takes, false);
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1 + wants.min(takes) as usize);
    net.esp = true;
    net
}

fn resources(net: &Net, n: usize) -> BTreeSet<u32> {
    let ike = &net.ikes(n, 1 - n)[0];
    let all: BTreeSet<_> = ike.children.iter().map(|c| c.resource).collect();
    assert_eq!(all.len(), ike.children.len(), "a resource twice");
    all
}

fn child_for(net: &Net, n: usize, resource: u32) -> ChildId {
    let ike = &net.ikes(n, 1 - n)[0];
    let child = ike.children.iter().find(|c| c.resource == resource);
    child.unwrap().child
}

fn settled(mut net: Net, children: usize) {
    net.run_ms(300);
    net.esp = false;
    net.run(Duration::from_secs(100));
    net.assert_connected(0, 1, children);
    for n in 0..2 {
        net.assert_tidy(n, children);
        assert_eq!(net.nodes[n].engine.sas.len(), 1, "{}", net.story());
        assert!(net.nodes[n].failures.is_empty(), "{}", net.story());
    }
    net.assert_no_esp_lost();
}

#[test]
fn the_initiator_asks_for_its_number() {
    let net = pair(1, 4, 4);
    for n in 0..2 {
        assert_eq!(resources(&net, n), (0..=4).collect());
    }
    settled(net, 5);
}

#[test]
fn the_responder_takes_up_to_its_own_limit() {
    let mut net = pair(2, 8, 3);
    let before = net.wire.len();
    for n in 0..2 {
        assert_eq!(resources(&net, n), (0..=3).collect());
    }
    // TS_MAX_QUEUE ends the asking.
    net.esp = false;
    net.run(Duration::from_secs(300));
    assert_eq!(net.wire.len(), before, "{}", net.story());
    net.esp = true;
    settled(net, 4);
}

#[test]
fn a_peer_that_takes_none_is_not_asked() {
    let mut net = pair(3, 4, 0);
    let exchanges: usize = net.wire.iter().filter(|w| w.2[18] == 36).count();
    assert_eq!(exchanges, 0, "{}", net.story());
    assert_eq!(resources(&net, 0), [0].into());
    net.run_ms(100);
    settled(net, 1);
}

#[test]
fn each_is_rekeyed_alone() {
    for n in 0..2 {
        let mut net = pair(4, 3, 3);
        for resource in [2, 0, 3] {
            let before: BTreeSet<_> = (0..=3).map(|r| child_for(&net, n, r)).collect();
            let old = child_for(&net, n, resource);
            net.act(n, |e, now| e.rekey_child(old, now)).unwrap();
            net.run_ms(300);
            net.assert_connected(0, 1, 4);
            let after: BTreeSet<_> = (0..=3).map(|r| child_for(&net, n, r)).collect();
            let gone: Vec<_> = before.difference(&after).copied().collect();
            assert_eq!(gone, [old], "{}", net.story());
        }
        settled(net, 4);
    }
}

#[test]
fn all_are_rekeyed_at_once_by_both_ends() {
    for seed in 0..20 {
        let mut net = pair(100 + seed, 3, 3);
        net.weather.jitter = Duration::from_millis(seed);
        for n in 0..2 {
            for resource in 0..=3 {
                let child = child_for(&net, n, resource);
                let _ = net.act(n, |e, now| e.rekey_child(child, now));
            }
        }
        net.run_ms(2_000);
        net.weather = FAIR;
        for n in 0..2 {
            assert_eq!(resources(&net, n), (0..=3).collect(), "{}", net.story());
        }
        settled(net, 4);
    }
}

#[test]
fn one_that_the_peer_deletes_is_made_again() {
    let mut net = pair(5, 3, 3);
    let victim = child_for(&net, 1, 2);
    net.esp = false;
    net.run_ms(20);
    net.act(1, |e, now| {
        let ike = e.children[&victim].ike;
        e.mark_deleting(victim, DownReason::Closed, now);
        e.push_task(ike, crate::sa::Task::DeleteChild(victim), now);
    });
    net.run_ms(50);
    assert_eq!(resources(&net, 0), [0, 1, 3].into(), "{}", net.story());
    net.run_ms(3_000);
    assert_eq!(resources(&net, 0), (0..=3).collect(), "{}", net.story());
    net.esp = true;
    net.run_ms(20);
    settled(net, 4);
}

#[test]
fn another_number_adds_and_removes() {
    let mut net = pair(6, 2, 6);
    net.act(0, |e, now| e.set_peer(config_of(0, 5, true), now))
        .unwrap();
    net.run_ms(300);
    net.assert_connected(0, 1, 6);
    net.act(0, |e, now| e.set_peer(config_of(0, 1, true), now))
        .unwrap();
    net.run_ms(300);
    assert_eq!(resources(&net, 1), [0, 1].into(), "{}", net.story());
    // The fallback stood all the time.
    assert_eq!(net.ikes(0, 1)[0].children[0].rekeys, 0);
    assert_eq!(net.ikes(0, 1).len(), 1);
    net.esp = false;
    net.run(Duration::from_secs(20));
    net.assert_connected(0, 1, 2);
}

// Lesson L57, with several children of the same selectors.
#[test]
fn both_begin_at_once() {
    for seed in 0..40 {
        let mut net = pair_with(200 + seed, 3, 3, true);
        net.weather = Weather {
            latency: Duration::from_millis(3),
            jitter: Duration::from_millis(seed),
            loss: seed % 20,
            duplicates: seed % 10,
        };
        net.run(Duration::from_secs(60));
        net.weather = FAIR;
        net.run(Duration::from_secs(60));
        net.assert_connected(0, 1, 4);
        assert_eq!(resources(&net, 0), (0..=3).collect());
        net.assert_tidy(0, 4);
        net.assert_tidy(1, 4);
    }
}

// Lesson L55: an IKE rekey lost a child (libreswan v3.28).
#[test]
fn a_hundred_children_survive_fifty_rekeys_of_the_ike_sa() {
    let mut net = pair(7, 99, 99);
    net.esp = false;
    for round in 0..50 {
        net.act(round % 2, |e, now| {
            e.rekey_ike(&peer_id(1 - round % 2), now).unwrap();
        });
        net.run_ms(100);
        net.assert_connected(0, 1, 100);
    }
    assert_eq!(net.ikes(0, 1)[0].rekeys, 50);
    // All are rekeyable, by either end.
    let all: Vec<_> = net.ikes(0, 1)[0].children.iter().map(|c| c.child).collect();
    for (index, child) in all.into_iter().enumerate() {
        let n = index % 2;
        let child = match n {
            0 => child,
            _ => child_for(&net, 1, net.nodes[0].engine.children[&child].slot.resource),
        };
        net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
    }
    net.run_ms(10_000);
    net.assert_connected(0, 1, 100);
    assert!(net.ikes(0, 1)[0].children.iter().all(|c| c.rekeys == 1));
    net.run(Duration::from_secs(100));
    net.assert_tidy(0, 100);
    net.assert_tidy(1, 100);
}

#[test]
fn a_new_ike_sa_has_them_before_the_old_one_goes() {
    for n in 0..2 {
        let mut net = pair(8, 3, 2);
        net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
            .unwrap();
        net.run_ms(1_000);
        assert_eq!(resources(&net, n), (0..=2).collect(), "{}", net.story());
        net.esp = false;
        net.run(Duration::from_secs(100));
        net.assert_connected(0, 1, 3);
        net.assert_no_esp_lost();
    }
}
