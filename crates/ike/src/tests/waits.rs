//! Waits after failures: one that is long holds up nothing else of the same peer.

use std::time::Duration;

use testudo_model::Monotonic;

use super::net::*;
use crate::peer::ChildRetry;
use crate::sa::{Slot, Task};
use crate::timers::Deadline;
use crate::*;

fn pair() -> Net {
    let mut net = Net::new(1, 2);
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.children = (0..2).map(|c| child(c, n, 1 - n)).collect();
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(1_000);
    net.assert_connected(0, 1, 2);
    net
}

fn slot(n: usize) -> Slot {
    Slot {
        name: format!("child{n}"),
        resource: 0,
    }
}

fn child_named(net: &Net, n: usize, name: &str) -> testudo_model::ChildId {
    let ike = &net.ikes(n, 1 - n)[0];
    let found = ike.children.iter().find(|c| c.name == name);
    found.unwrap().child
}

/// Node 1 deletes its second child, which node 0 makes again.
fn lose_second(net: &mut Net) {
    let victim = child_named(net, 1, "child1");
    net.act(1, |e, now| {
        let ike = e.children[&victim].ike;
        e.mark_deleting(victim, DownReason::Closed, now);
        e.push_task(ike, Task::DeleteChild(victim), now);
    });
    net.run_ms(20);
    assert_eq!(net.ikes(0, 1)[0].children.len(), 1, "{}", net.story());
}

#[test]
fn a_child_that_fails_again_and_again_holds_up_no_other() {
    let mut net = pair();
    for _ in 0..8 {
        net.act(0, |e, now| e.retry_child(&peer_id(1), &slot(0), now));
    }
    net.act(0, |e, now| {
        e.timers.cancel(&Deadline::Children(peer_id(1)));
        e.retry_child(&peer_id(1), &slot(0), now);
    });
    lose_second(&mut net);
    net.run_ms(5_000);
    net.assert_connected(0, 1, 2);
}

#[test]
fn a_refused_child_holds_up_no_other_and_comes_in_its_time() {
    let mut net = pair();
    lose_second(&mut net);
    let first = child_named(&net, 0, "child0");
    net.act(0, |e, now| {
        let last = ChildRetry {
            failures: 6,
            not_before: now.monotonic,
        };
        let peer = e.peers.get_mut(&peer_id(1)).unwrap();
        peer.refusals.insert(slot(0), last);
        e.refuse_child(first, now).unwrap();
    });
    net.run_ms(5_000);
    let there = &net.ikes(0, 1)[0].children;
    let names: Vec<_> = there.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["child1"], "{}", net.story());
    net.run(Duration::from_secs(70));
    net.assert_connected(0, 1, 2);
}

fn start_of(net: &Net, n: usize) -> Option<Monotonic> {
    let deadline = Deadline::Start(peer_id(1 - n));
    net.nodes[n].engine.timers.at(&deadline)
}

/// Node 0 has long tried in vain, and waits for its next attempt.
fn long_in_vain() -> Net {
    let mut net = Net::new(2, 2);
    net.filter = Some(Box::new(|from, _, bytes| {
        let ours = from.ip() == address(0) && bytes[18] == 34 && bytes[19] & 0x20 == 0;
        if ours { Fate::Drop } else { Fate::Pass }
    }));
    let now = net.at();
    let config = peer_config(0, 1, true);
    net.nodes[0].engine.set_peer(config, now).unwrap();
    net.run(Duration::from_secs(600));
    for _ in 0..6_000 {
        if start_of(&net, 0).is_some_and(|at| at.0 > net.now + Duration::from_secs(10)) {
            return net;
        }
        net.run_ms(100);
    }
    panic!("no long wait\n{}", net.story());
}

#[test]
fn another_way_to_a_peer_is_tried_at_once_and_the_same_is_not() {
    let mut net = long_in_vain();
    net.filter = None;
    let now = net.at();
    let config = peer_config(1, 0, false);
    net.nodes[1].engine.set_peer(config, now).unwrap();
    let before = start_of(&net, 0);
    let same = peer_config(0, 1, true);
    net.act(0, |e, now| e.set_peer(same, now)).unwrap();
    assert_eq!(start_of(&net, 0), before);
    let mut config = peer_config(0, 1, true);
    config.suites = Some(super::net::config().suites);
    net.act(0, |e, now| e.set_peer(config, now)).unwrap();
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
}

#[test]
fn the_wait_for_an_attempt_ends_when_the_peer_comes() {
    let mut net = long_in_vain();
    let now = net.at();
    let config = peer_config(1, 0, true);
    net.nodes[1].engine.set_peer(config, now).unwrap();
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    assert_eq!(start_of(&net, 0), None);
}
