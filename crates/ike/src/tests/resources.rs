//! Children for CPUs or queues (RFC 9611): as many as both ends take, none for another.

use std::collections::BTreeSet;
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, KeMethod, KePrivate};
use testudo_model::ChildId;
use testudo_wire::ike::{KeyExchange, Notify, NotifyType, Payload};

use super::net::*;
use super::voice::{chain, say};
use crate::message::Payloads;
use crate::sa::resource::says_info;
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

/// Node 0 asks before node 1 knows that it is to take some: it is told when node 1 does.
#[test]
fn one_that_takes_more_later_is_asked_again() {
    for takes in [0, 1] {
        let mut net = pair_with(11, 3, takes, false);
        net.run_ms(2_000);
        net.assert_connected(0, 1, 1 + takes as usize);
        net.act(1, |e, now| e.set_peer(config_of(1, 3, false), now))
            .unwrap();
        net.run_ms(1_000);
        net.assert_connected(0, 1, 1 + takes as usize);
        net.act(0, |e, now| e.ask_again(&peer_id(1), now));
        net.run_ms(1_000);
        for n in 0..2 {
            assert_eq!(resources(&net, n), (0..=3).collect(), "{}", net.story());
        }
        // The fallback stood all the time.
        assert_eq!(net.ikes(0, 1)[0].children[0].rekeys, 0);
        let before = net.wire.len();
        net.act(0, |e, now| e.ask_again(&peer_id(1), now));
        net.run_ms(1_000);
        assert_eq!(net.wire.len(), before, "nothing is missing");
        net.esp = true;
        net.run_ms(20);
        settled(net, 4);
    }
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

/// Node 0 asks, as another implementation, for one more of the child for a CPU of its own; gives
/// the children that node 1 has then, and what it answers.
fn another_asks(net: &mut Net, message_id: u32, info: &[u8]) -> (Vec<u32>, Payloads) {
    let suites = &net.nodes[0].engine.config().suites;
    let spi = 0x2000 + message_id;
    let sa = crate::proposal::child_offer(suites, spi, true, &[]);
    let mut random = DangerousSeededRandom::new(u64::from(message_id));
    let ke = KePrivate::generate(KeMethod::X25519, &mut random);
    let wanted = child(0, 0, 1);
    let payloads = [
        Payload::Notify(Notify::new(NotifyType::USE_TRANSPORT_MODE, [])),
        Payload::Notify(Notify::new(NotifyType::SA_RESOURCE_INFO, info.to_vec())),
        Payload::Sa(sa),
        Payload::Nonce(vec![message_id as u8; 32]),
        Payload::KeyExchange(KeyExchange {
            method: KeMethod::X25519.id(),
            data: ke.public().to_vec(),
        }),
        Payload::TsInitiator(crate::ts::to_wire(&wanted.local_ts)),
        Payload::TsResponder(crate::ts::to_wire(&wanted.remote_ts)),
    ];
    let answers = say(net, 0, 36, message_id, false, &chain(&payloads, &[]));
    let parsed = testudo_wire::ike::Message::parse(&answers[0]).unwrap();
    let sa = net.nodes[0].engine.sas.values().next_back().unwrap();
    let keys = &sa.established().unwrap().keys;
    let plain = crate::message::unprotect(keys, &answers[0], &parsed).unwrap();
    let mut all: Vec<_> = net.ikes(1, 0)[0]
        .children
        .iter()
        .map(|c| c.resource)
        .collect();
    all.sort_unstable();
    (all, plain.payloads().unwrap())
}

// strongSwan says the number of its CPU, from 0 on, as four bytes: two of its children were taken
// for one made twice, and the first was deleted.
#[test]
fn a_number_of_another_implementation_is_not_ours() {
    let mut net = pair_with(9, 0, 3, false);
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1);
    let said: [&[u8]; 3] = [&[0, 0, 0, 2], &[0, 0, 0, 2], &[]];
    for (id, info) in (2..).zip(said) {
        let (all, answer) = another_asks(&mut net, id, info);
        assert_eq!(all, (0..id).collect::<Vec<_>>(), "{}", net.story());
        assert!(says_info(&answer));
    }
    let (_, answer) = another_asks(&mut net, 5, &[0, 0, 0, 0]);
    assert_eq!(answer.error().unwrap().kind, NotifyType::TS_MAX_QUEUE);
    let before = net.wire.len();
    net.run(Duration::from_secs(100));
    assert_eq!(resources(&net, 1), (0..=3).collect(), "{}", net.story());
    assert_eq!(net.wire.len(), before, "none is deleted");
}

#[test]
fn a_child_of_another_implementation_gets_no_number_that_we_are_asking_for() {
    let mut net = Net::new(10, 2);
    // Our request for the first is lost once.
    let mut asked = 0;
    net.filter = Some(Box::new(move |from, _, bytes| {
        let ours = from.ip() == address(1) && bytes[18] == 36 && bytes[19] & 0x20 == 0;
        asked += u32::from(ours);
        if ours && asked == 1 {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    for n in [0, 1] {
        let config = config_of(n, 2, n == 1);
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(100);
    assert_eq!(resources(&net, 1), [0].into(), "{}", net.story());
    let (all, _) = another_asks(&mut net, 0, &[0, 0, 0, 1]);
    assert_eq!(all, [0, 2], "{}", net.story());
    net.run(Duration::from_secs(100));
    assert_eq!(resources(&net, 1), [0, 1, 2].into(), "{}", net.story());
    assert_eq!(resources(&net, 0), [0, 1].into(), "{}", net.story());
}
