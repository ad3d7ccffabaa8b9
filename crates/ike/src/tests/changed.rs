//! A child's configuration changes: the old one carries packets until the new one stands.

use std::time::Duration;

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
    let mut net = Net::new(seed, 2);
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

// A child that changes while it is rekeyed by either end.
#[test]
fn a_rekey_crosses_the_change() {
    for n in 0..2 {
        for wait in 0..12 {
            let mut net = pair(4, (4789, 4789));
            let child = net.ikes(n, 1 - n)[0].children[0].child;
            net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
            net.run_ms(wait);
            for m in 0..2 {
                tell(&mut net, m, (4000, 5000));
            }
            net.run_ms(5_000);
            net.assert_connected(0, 1, 1);
            net.assert_no_esp_lost();
            carries(&net, 0, (4000, 5000));
            carries(&net, 1, (4000, 5000));
        }
    }
}

// The answer to a request of before comes after the change.
#[test]
fn a_request_crosses_the_change() {
    for wait in 0..20 {
        let mut net = Net::new(6, 2);
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
