//! A child's configuration changes: the old one carries packets until the new one stands.

use std::time::Duration;

use testudo_crypto::KeMethod::{MlKem768, P256};
use testudo_model::{PortRange, SaMode, TrafficSelector};

use super::net::*;
use crate::*;

/// UDP to and from these ports.
fn config_of(n: usize, ports: (u16, u16)) -> PeerConfig {
    let mut config = peer_config(n, 1 - n, n == 0);
    let (first, last) = ports;
    let ports = PortRange { first, last };
    let udp = |end: usize| vec![TrafficSelector::host(address(end)).with(17, ports)];
    config.children[0].local_ts = udp(n);
    config.children[0].remote_ts = udp(1 - n);
    config
}

fn tell(net: &mut Net, n: usize, ports: (u16, u16)) {
    let config = config_of(n, ports);
    net.act(n, |e, now| {
        e.set_peer(config, now).unwrap();
        e.handle_timeout(now);
    });
}

fn pair(seed: u64, ports: (u16, u16)) -> Net {
    pair_of(config(), seed, ports)
}

/// Without additional key exchanges, and with one and two (RFC 9370).
fn engines() -> [EngineConfig; 3] {
    [
        config(),
        hybrid(&[&[MlKem768]], true),
        hybrid(&[&[MlKem768], &[P256]], false),
    ]
}

fn pair_of(engine: EngineConfig, seed: u64, ports: (u16, u16)) -> Net {
    let mut net = Net::with(seed, 2, engine);
    for n in [1, 0] {
        tell(&mut net, n, ports);
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.esp = true;
    net.run_ms(50);
    net
}

fn carries(net: &Net, n: usize, ports: (u16, u16)) {
    let child = net.ikes(n, 1 - n)[0].children[0].child;
    let child = &net.nodes[n].engine.children[&child];
    let range = child.local_ts[0].ports;
    assert_eq!((range.first, range.last), ports, "{}", net.story());
}

#[test]
fn nothing_is_lost_whoever_reads_of_it_first() {
    // Wider, narrower, another.
    for (old, new) in [
        ((4789, 4789), (4000, 5000)),
        ((4000, 5000), (4789, 4789)),
        ((4789, 4789), (6081, 6081)),
    ] {
        for first in 0..2 {
            for later in [0, 3, 8, 400, 1_500] {
                let mut net = pair(1, old);
                tell(&mut net, first, new);
                net.run_ms(later);
                tell(&mut net, 1 - first, new);
                net.run_ms(4_000);
                net.assert_connected(0, 1, 1);
                net.assert_no_esp_lost();
                for n in 0..2 {
                    carries(&net, n, new);
                    assert_eq!(net.nodes[n].engine.counters().ike_established, 1);
                }
                net.esp = false;
                net.run(Duration::from_secs(60));
                net.assert_tidy(0, 1);
                net.assert_tidy(1, 1);
            }
        }
    }
}

// The peer never reads of it: what is no longer wanted does not stay for ever.
#[test]
fn a_change_that_the_peer_does_not_share_ends_the_child() {
    for n in 0..2 {
        let mut net = pair(2, (4789, 4789));
        tell(&mut net, n, (6081, 6081));
        net.run(Duration::from_secs(29));
        assert_eq!(net.ikes(n, 1 - n)[0].children.len(), 1);
        net.esp = false;
        net.run(Duration::from_secs(5));
        assert_eq!(net.ikes(n, 1 - n)[0].children.len(), 0, "{}", net.story());
        assert_eq!(net.ikes(1 - n, n)[0].children.len(), 0, "{}", net.story());
        tell(&mut net, 1 - n, (6081, 6081));
        net.run(Duration::from_secs(60));
        net.assert_connected(0, 1, 1);
        carries(&net, n, (6081, 6081));
    }
}

#[test]
fn the_mode_changes() {
    let mut net = pair(3, (4789, 4789));
    for n in 0..2 {
        let mut config = config_of(n, (4789, 4789));
        config.children[0].mode = SaMode::Tunnel;
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
        net.run_ms(5);
    }
    net.run_ms(3_000);
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
    let child = net.ikes(0, 1)[0].children[0].child;
    assert_eq!(net.nodes[0].engine.children[&child].mode, SaMode::Tunnel);
}

// A child that changes while it is rekeyed by either end; one of them may read of it much later.
#[test]
fn a_rekey_crosses_the_change() {
    for engine in engines() {
        for n in 0..2 {
            for wait in (0..36).step_by(2) {
                let new = [(4000, 5000), (6081, 6081)][wait % 4 / 2];
                let (first, later) = (wait / 4 % 2, [0, 7, 700][wait % 3]);
                let mut net = pair_of(engine.clone(), 4, (4789, 4789));
                let child = net.ikes(n, 1 - n)[0].children[0].child;
                net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
                net.run_ms(wait as u64);
                tell(&mut net, first, new);
                net.run_ms(later);
                tell(&mut net, 1 - first, new);
                net.run_ms(5_000);
                net.assert_connected(0, 1, 1);
                net.assert_no_esp_lost();
                carries(&net, 0, new);
                carries(&net, 1, new);
            }
        }
    }
}

// The answer to a request of before comes after the change.
#[test]
fn a_request_crosses_the_change() {
    for engine in engines() {
        for wait in 0..40 {
            let mut net = Net::with(6, 2, engine.clone());
            for n in [1, 0] {
                tell(&mut net, n, (4789, 4789));
            }
            net.run_ms(wait);
            for n in 0..2 {
                tell(&mut net, n, (4000, 5000));
            }
            net.run_ms(6_000);
            net.assert_connected(0, 1, 1);
            carries(&net, 0, (4000, 5000));
            carries(&net, 1, (4000, 5000));
        }
    }
}

/// Node `n` asks for something of its child, whose configuration changes at node `reads` between
/// CREATE_CHILD_SA and the last IKE_FOLLOWUP_KE; nobody else reads of it.
fn changed_before_the_last_exchange(
    n: usize,
    reads: usize,
    asks: impl Fn(&mut Net),
    change: impl Fn(&mut PeerConfig),
) -> Net {
    let mut net = pair_of(hybrid(&[&[MlKem768]], true), 7, (4789, 4789));
    net.esp = false;
    net.run_ms(50);
    asks(&mut net);
    // The answer to CREATE_CHILD_SA has come, the next request is under way.
    net.run_ms(12);
    let sa = net.nodes[1 - n].engine.sas.values().next().unwrap();
    assert_eq!(sa.established().unwrap().followers.len(), 1);
    let mut config = config_of(reads, (4789, 4789));
    change(&mut config);
    net.act(reads, |e, now| e.set_peer(config, now)).unwrap();
    net
}

/// No child stands that the configuration of node `n` does not name as it is.
fn assert_allowed(net: &Net, n: usize) {
    let engine = &net.nodes[n].engine;
    let peer = &engine.peers[&peer_id(1 - n)];
    for child in engine.children.values().filter(|c| c.is_up() && !c.stale) {
        let config = peer.child(&child.slot.name);
        let config = config.unwrap_or_else(|| panic!("{} is not wanted", child.slot.name));
        let fits = config.mode == child.mode
            && crate::ts::covers(&config.local_ts, &child.local_ts)
            && crate::ts::covers(&config.remote_ts, &child.remote_ts);
        assert!(fits, "{}", net.story());
    }
}

#[test]
fn what_followed_up_a_rekey_is_not_installed_against_the_configuration() {
    let changes: [fn(&mut PeerConfig); 4] = [
        |c| c.children.clear(),
        |c| c.children[0].mode = SaMode::Tunnel,
        |c| c.children[0].local_ts[0].ports = PortRange::one(6081),
        |c| c.children[0].name = "other".into(),
    ];
    for n in 0..2 {
        for reads in 0..2 {
            for change in changes {
                let rekey = |net: &mut Net| {
                    let child = net.ikes(n, 1 - n)[0].children[0].child;
                    net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
                };
                let mut net = changed_before_the_last_exchange(n, reads, rekey, change);
                for _ in 0..200 {
                    net.run_ms(1);
                    assert_allowed(&net, reads);
                }
                net.run(Duration::from_secs(60));
                assert_allowed(&net, reads);
            }
        }
    }
}

// Both ends want a second child; the responder no longer when the last exchange comes.
#[test]
fn what_followed_up_a_new_child_is_not_installed_against_the_configuration() {
    let second = |n: usize| {
        let mut config = config_of(n, (4789, 4789));
        config.children.push(child(7, n, 1 - n));
        config
    };
    let changes: [fn(&mut PeerConfig); 3] = [
        |_| {},
        |c| {
            let mut other = child(7, 1, 0);
            other.mode = SaMode::Tunnel;
            c.children.push(other);
        },
        |c| {
            let mut other = child(7, 1, 0);
            other.local_ts[0].ports = PortRange::one(6081);
            c.children.push(other);
        },
    ];
    for change in changes {
        let ask = |net: &mut Net| {
            for n in [1, 0] {
                net.act(n, |e, now| e.set_peer(second(n), now)).unwrap();
            }
        };
        let mut net = changed_before_the_last_exchange(0, 1, ask, change);
        for _ in 0..200 {
            net.run_ms(1);
            assert_allowed(&net, 1);
        }
        net.run(Duration::from_secs(60));
        assert_allowed(&net, 1);
        net.act(1, |e, now| e.set_peer(second(1), now)).unwrap();
        net.run(Duration::from_secs(100));
        net.assert_connected(0, 1, 2);
    }
}

#[test]
fn a_child_that_is_no_longer_wanted_goes_at_once() {
    let mut net = pair(5, (4789, 4789));
    net.esp = false;
    net.run_ms(20);
    let mut config = config_of(0, (4789, 4789));
    config.children.clear();
    net.act(0, |e, now| e.set_peer(config, now)).unwrap();
    net.run_ms(20);
    net.assert_connected(0, 1, 0);
}
