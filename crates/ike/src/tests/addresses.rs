//! A node whose address changes: the job of MOBIKE (RFC 4555), done by a new IKE SA.

use std::net::IpAddr;
use std::time::Duration;

use testudo_model::{SaMode, TrafficSelector};
use testudo_wire::ike::{ExchangeType, Notify, NotifyType, Payload};

use super::net::*;
use crate::sa::Pending;
use crate::*;

fn pods(n: usize) -> Vec<TrafficSelector> {
    vec![TrafficSelector::prefix(
        format!("10.24{n}.0.0/16").parse().unwrap(),
    )]
}

/// Where a node lives after the move.
fn new_home(n: usize) -> IpAddr {
    IpAddr::from([10, 9, 0, n as u8 + 1])
}

/// What node `n` is told, when the two ends live there.
fn config_of(n: usize, ours: IpAddr, theirs: IpAddr) -> PeerConfig {
    let mut config = peer_config(n, 1 - n, n == 0);
    config.addresses = vec![PeerAddress {
        local: ours,
        remote: theirs,
    }];
    config.children[0].mode = SaMode::Tunnel;
    config.children[0].local_ts = pods(n);
    config.children[0].remote_ts = pods(1 - n);
    config
}

fn tell(net: &mut Net, n: usize, ours: IpAddr, theirs: IpAddr) {
    let config = config_of(n, ours, theirs);
    net.act(n, |e, now| {
        e.set_peer(config, now).unwrap();
        e.handle_timeout(now);
    });
}

/// Tunnels between pods; ESP flows.
fn pair(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    for n in [1, 0] {
        tell(&mut net, n, address(n), address(1 - n));
        net.homes.insert(new_home(n), n);
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.esp = true;
    net.run_ms(50);
    net
}

fn lives_at(net: &Net, n: usize, home: IpAddr) {
    net.assert_connected(0, 1, 1);
    assert_eq!(net.ikes(n, 1 - n)[0].local.ip(), home, "{}", net.story());
    assert_eq!(net.ikes(1 - n, n)[0].remote.ip(), home, "{}", net.story());
}

fn settled(mut net: Net) {
    net.esp = false;
    net.run(Duration::from_secs(100));
    net.assert_connected(0, 1, 1);
    for n in 0..2 {
        net.assert_tidy(n, 1);
        assert_eq!(net.nodes[n].engine.sas.len(), 1, "{}", net.story());
    }
}

#[test]
fn nothing_is_lost_while_both_addresses_work() {
    for mover in 0..2 {
        // The other end is told before, at once, later, never.
        for told in [Some(-20i64), Some(0), Some(8), Some(500), None] {
            let mut net = pair(1);
            let other = 1 - mover;
            let (new, stays) = (new_home(mover), address(other));
            if told == Some(-20) {
                tell(&mut net, other, stays, new);
                net.run_ms(20);
            }
            tell(&mut net, mover, new, stays);
            if let Some(wait) = told.filter(|wait| *wait >= 0) {
                net.run_ms(wait as u64);
                tell(&mut net, other, stays, new);
            }
            net.run_ms(3_000);
            lives_at(&net, mover, new);
            net.assert_no_esp_lost();
            // The address may go now.
            net.unplugged.insert(address(mover));
            net.run_ms(500);
            net.assert_no_esp_lost();
            settled(net);
        }
    }
}

// The old SA's retransmissions to and from an address that is gone are not waited for.
#[test]
fn an_address_that_is_gone_is_replaced_in_a_few_round_trips() {
    for mover in 0..2 {
        for told in [false, true] {
            let mut net = pair(2);
            let other = 1 - mover;
            net.unplugged.insert(address(mover));
            // Requests of both ends are on their way to nowhere.
            for n in 0..2 {
                net.act(n, |e, now| e.probe(&peer_id(1 - n), now)).unwrap();
            }
            net.run_ms(20);
            let (new, stays) = (new_home(mover), address(other));
            tell(&mut net, mover, new, stays);
            if told {
                tell(&mut net, other, stays, new);
            }
            net.run_ms(100);
            lives_at(&net, mover, new);
            net.esp_lost.clear();
            net.run_ms(500);
            net.assert_no_esp_lost();
            // What the peer has deleted stays to repeat its answer, no more.
            let live = net.nodes[mover].engine.status();
            let live = live.iter().filter(|s| s.state != "gone").count();
            assert_eq!(live, 1, "{}", net.story());
            settled(net);
        }
    }
}

#[test]
fn both_ends_move_at_once() {
    let mut net = pair(3);
    for n in 0..2 {
        tell(&mut net, n, new_home(n), new_home(1 - n));
    }
    net.run_ms(3_000);
    for n in 0..2 {
        lives_at(&net, n, new_home(n));
    }
    net.assert_no_esp_lost();
    settled(net);
}

#[test]
fn moves_follow_each_other() {
    let mut net = pair(4);
    for round in 0..10 {
        let home = match round % 2 {
            0 => new_home(0),
            _ => address(0),
        };
        tell(&mut net, 0, home, address(1));
        net.run_ms(round * 7);
    }
    net.run_ms(3_000);
    lives_at(&net, 0, address(0));
    net.assert_no_esp_lost();
    settled(net);
}

#[test]
fn one_more_address_changes_nothing() {
    let mut net = pair(5);
    net.esp = false;
    net.run_ms(100);
    let before = net.wire.len();
    for n in 0..2 {
        let mut config = config_of(n, address(n), address(1 - n));
        config.addresses.push(PeerAddress {
            local: new_home(n),
            remote: new_home(1 - n),
        });
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
    }
    net.run_ms(3_000);
    assert_eq!(net.wire.len(), before, "{}", net.story());
}

// The new address leads nowhere: the old SA is kept, and the attempt goes on.
#[test]
fn the_old_sa_carries_on_until_the_new_one_stands() {
    let mut net = pair(6);
    net.unplugged.insert(new_home(0));
    tell(&mut net, 0, new_home(0), address(1));
    net.run(Duration::from_secs(20));
    assert_eq!(net.nodes[1].twin.sending.len(), 1, "{}", net.story());
    assert_eq!(net.nodes[0].twin.ikes.len(), 1, "{}", net.story());
    net.unplugged.clear();
    net.run(Duration::from_secs(60));
    lives_at(&net, 0, new_home(0));
    settled(net);
}

// We never say MOBIKE_SUPPORTED, so no peer may update addresses (RFC 4555, 3.5); one that does
// all the same changes nothing and is answered like a probe.
#[test]
fn mobike_is_not_spoken() {
    let mut net = pair(7);
    let ike = net.ikes(0, 1)[0].ike;
    let path = net.ikes(1, 0)[0].remote;
    let kinds = [
        NotifyType::MOBIKE_SUPPORTED,
        NotifyType::UPDATE_SA_ADDRESSES,
        NotifyType::NO_ADDITIONAL_ADDRESSES,
        NotifyType::NO_NATS_ALLOWED,
    ];
    let payloads = kinds.map(|kind| Payload::Notify(Notify::new(kind, [])));
    let before = net.wire.len();
    net.filter = Some(Box::new(|from, _, _| match from.ip() == address(0) {
        true => Fate::Drop,
        false => Fate::Pass,
    }));
    net.act(0, |e, now| {
        let kind = ExchangeType::INFORMATIONAL;
        e.send_request(now, ike, kind, &payloads, Pending::Probe);
    });
    let (from, to, bytes) = net.wire.last().cloned().unwrap();
    // It comes from elsewhere, as it would after a move.
    let elsewhere = (new_home(0), from.port()).into();
    net.act(1, |e, now| e.handle_datagram(now, to, elsewhere, &bytes));
    assert_eq!(net.wire.len(), before + 2, "{}", net.story());
    net.filter = None;
    net.run_ms(3_000);
    assert_eq!(net.ikes(1, 0)[0].remote, path);
    assert_eq!(net.ikes(0, 1)[0].ike, ike);
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
    assert_eq!(
        net.nodes[1].engine.counters().drops.values().sum::<u64>(),
        0
    );
}

// An overlay's children name the ends' addresses, so they change with them.
#[test]
fn children_in_transport_mode_change_with_the_addresses() {
    for mover in 0..2 {
        for first in 0..2 {
            for later in [0, 8, 300] {
                let mut net = Net::new(8, 2);
                net.connect(0, 1, false);
                net.run_ms(500);
                net.homes.insert(new_home(mover), mover);
                net.esp = true;
                net.run_ms(50);
                for n in [first, 1 - first] {
                    let mut config = peer_config(n, 1 - n, n == 0);
                    let child = &mut config.children[0];
                    let (ts, address) = match n == mover {
                        true => (&mut child.local_ts, &mut config.addresses[0].local),
                        false => (&mut child.remote_ts, &mut config.addresses[0].remote),
                    };
                    *address = new_home(mover);
                    *ts = vec![TrafficSelector::host(*address)];
                    net.act(n, |e, now| {
                        e.set_peer(config, now).unwrap();
                        e.handle_timeout(now);
                    });
                    net.run_ms(later);
                }
                net.run_ms(5_000);
                lives_at(&net, mover, new_home(mover));
                net.assert_no_esp_lost();
                settled(net);
            }
        }
    }
}
