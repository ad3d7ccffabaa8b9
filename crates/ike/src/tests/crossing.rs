//! Crossings that need a look inside: a group that is refused in between, and what refusals
//! leave behind.

use std::time::Duration;

use testudo_crypto::KeMethod;

use super::net::*;

fn pair(seed: u64, children: usize, resources: u32) -> Net {
    let mut net = Net::new(seed, 2);
    for n in [1, 0] {
        configure(&mut net, n, children, resources);
    }
    net.run_ms(4_000);
    net.assert_connected(0, 1, children * (1 + resources as usize));
    net
}

fn configure(net: &mut Net, n: usize, children: usize, resources: u32) {
    let mut config = peer_config(n, 1 - n, n == 0);
    config.children = (0..children).map(|c| child(c, n, 1 - n)).collect();
    for child in &mut config.children {
        child.resources = resources;
    }
    net.act(n, |e, now| {
        e.set_peer(config, now).unwrap();
        e.handle_timeout(now);
    });
}

fn rekey_child(net: &mut Net, n: usize) {
    let child = net.ikes(n, 1 - n)[0].children[0].child;
    let _ = net.act(n, |e, now| e.rekey_child(child, now));
}

fn rekey_ike(net: &mut Net, n: usize) {
    let _ = net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now));
}

// strongSwan's test_regular_ke_invalid, test_collision_ke_invalid and
// test_collision_ke_invalid_delayed_retry, of children and of IKE SAs: the first group is
// refused, the second try crosses, or comes late. Lesson L52.
#[test]
fn crossing_rekeys_whose_group_is_refused_leave_one() {
    type Act = fn(&mut Net, usize);
    let acts: [(Act, Act); 4] = [
        (rekey_child, rekey_child),
        (rekey_ike, rekey_ike),
        (rekey_child, rekey_ike),
        (rekey_child, |_, _| {}),
    ];
    for (first, second) in acts {
        for picky in 0..2 {
            for (seed, late) in [(0, 0), (1, 0), (2, 0), (3, 25), (4, 25), (5, 60)] {
                let mut net = pair(40 + seed, 1, 0);
                // What worked until now is refused from here on.
                let suites = &mut net.nodes[picky].engine.config.suites;
                suites.ke_methods = vec![KeMethod::P256];
                let mut requests = 0;
                net.filter = Some(Box::new(move |from, _, bytes| {
                    let request = bytes[18] == 36 && bytes[19] & 0x20 == 0;
                    if request && from.ip() == address(1 - picky) {
                        requests += 1;
                        if requests == 2 {
                            return Fate::Delay(Duration::from_millis(late));
                        }
                    }
                    Fate::Pass
                }));
                net.esp = true;
                first(&mut net, 0);
                second(&mut net, 1);
                net.run_ms(4_000);
                net.esp = false;
                net.run(Duration::from_secs(70));
                net.assert_connected(0, 1, 1);
                net.assert_tidy(0, 1);
                net.assert_tidy(1, 1);
                net.assert_no_esp_lost();
            }
        }
    }
}

// Found by the simulation: a child that was refused, and is not wanted any longer or stands on
// another IKE SA, was remembered for good.
#[test]
fn a_refusal_is_forgotten_with_the_wish() {
    let mut net = pair(60, 1, 0);
    // n1 does not know of it: TS_UNACCEPTABLE.
    configure(&mut net, 0, 2, 0);
    net.run_ms(3);
    configure(&mut net, 0, 1, 0);
    net.run(Duration::from_secs(10));
    let retries = |net: &Net, n: usize| net.nodes[n].engine.peers[&peer_id(1 - n)].retries.len();
    assert_eq!(retries(&net, 0), 0, "{}", net.story());
    configure(&mut net, 0, 2, 0);
    net.run_ms(1_500);
    assert_eq!(retries(&net, 0), 1, "{}", net.story());
    configure(&mut net, 1, 2, 0);
    net.run(Duration::from_secs(70));
    net.assert_connected(0, 1, 2);
    assert_eq!(retries(&net, 0), 0, "{}", net.story());
}

// Found by the simulation: of the children for CPUs only those of the first name were made, and
// none when the peer had asked for the one that all may use.
#[test]
fn every_name_has_its_children_for_cpus() {
    pair(61, 2, 2);
    for first in 0..2 {
        let mut net = pair(62, 1, 2);
        configure(&mut net, first, 2, 2);
        net.run_ms(3);
        configure(&mut net, 1 - first, 2, 2);
        net.run(Duration::from_secs(20));
        net.assert_connected(0, 1, 6);
    }
}

// Found by the simulation: a child that was asked for on an IKE SA, and came when that was being
// left, was taken for one to send on; one that came when it was no longer wanted stayed.
#[test]
fn a_child_that_comes_too_late_goes_again() {
    let held = |net: &mut Net| {
        let mut first = true;
        net.filter = Some(Box::new(move |from, _, bytes| {
            let answer = from.ip() == address(1) && bytes[18] == 36 && bytes[19] & 0x20 != 0;
            match answer && std::mem::take(&mut first) {
                true => Fate::Delay(Duration::from_millis(400)),
                false => Fate::Pass,
            }
        }));
    };
    let mut net = pair(63, 1, 0);
    held(&mut net);
    rekey_child(&mut net, 0);
    net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
        .unwrap();
    net.run_ms(450);
    let engine = &net.nodes[0].engine;
    let leaving = |c: &crate::sa::Child| {
        let sa = engine.sas.get(&c.ike);
        sa.is_some_and(|sa| sa.state.name() == "leaving")
    };
    let up = engine.children.values().filter(|c| c.is_up() && leaving(c));
    assert_eq!(up.count(), 0, "{}", net.story());
    net.run(Duration::from_secs(70));
    net.assert_connected(0, 1, 1);

    let mut net = pair(64, 1, 0);
    held(&mut net);
    configure(&mut net, 1, 2, 0);
    configure(&mut net, 0, 2, 0);
    net.run_ms(20);
    configure(&mut net, 0, 1, 0);
    configure(&mut net, 1, 1, 0);
    net.run(Duration::from_secs(70));
    net.assert_connected(0, 1, 1);
    net.assert_tidy(0, 1);
    net.assert_tidy(1, 1);
}
