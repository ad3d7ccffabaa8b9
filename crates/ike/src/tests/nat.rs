//! NATs between the ends (RFC 7296, 2.23; lessons L16 and L102): a box that rewrites addresses
//! and ports, forgets, and drops what it has no mapping for. ESP goes through it, too.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testudo_model::policy::EncapsulationMode;
use testudo_model::{Encapsulation, PortRange, TrafficSelector};

use super::net::*;
use crate::*;

/// A NAT before one host.
pub(crate) struct NatBox {
    inside: IpAddr,
    outside: IpAddr,
    /// All ports are forwarded as they are, also for who calls first.
    open: bool,
    timeout: Duration,
    /// Outside port and last use, by inside port.
    mappings: BTreeMap<u16, (u16, Duration)>,
    next: u16,
}

impl NatBox {
    pub(crate) fn new(n: usize, open: bool) -> Self {
        Self {
            inside: address(n),
            outside: outside(n),
            open,
            timeout: Duration::from_secs(60),
            mappings: BTreeMap::new(),
            next: 20_000,
        }
    }

    pub(crate) fn outwards(
        &mut self,
        from: SocketAddr,
        _to: SocketAddr,
        now: Duration,
    ) -> Option<SocketAddr> {
        if from.ip() != self.inside {
            return Some(from);
        }
        // It knows no ESP.
        if from.port() == 0 {
            return None;
        }
        if self.open {
            return Some(SocketAddr::new(self.outside, from.port()));
        }
        self.expire(now);
        let next = &mut self.next;
        let mapping = self.mappings.entry(from.port()).or_insert_with(|| {
            *next += 1;
            (*next, now)
        });
        mapping.1 = now;
        Some(SocketAddr::new(self.outside, mapping.0))
    }

    pub(crate) fn inwards(&mut self, to: SocketAddr, now: Duration) -> Option<SocketAddr> {
        if to.ip() != self.outside {
            return Some(to);
        }
        if self.open {
            return Some(SocketAddr::new(self.inside, to.port()));
        }
        self.expire(now);
        let mut mappings = self.mappings.iter();
        let (port, _) = mappings.find(|(_, (port, _))| *port == to.port())?;
        Some(SocketAddr::new(self.inside, *port))
    }

    fn expire(&mut self, now: Duration) {
        let timeout = self.timeout;
        self.mappings
            .retain(|_, (_, used)| now.saturating_sub(*used) < timeout);
    }

    /// It was restarted: new ports, and perhaps a new address.
    fn forget(&mut self, outside: IpAddr) {
        self.mappings.clear();
        self.outside = outside;
    }
}

fn outside(n: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, n as u8 + 1])
}

/// What node `n` is told of the other when the other is at `remote`.
fn config_of(n: usize, remote: IpAddr, initiate: bool) -> PeerConfig {
    let mut config = peer_config(n, 1 - n, initiate);
    config.addresses[0].remote = remote;
    let port = PortRange::one(4789);
    config.children[0].remote_ts = vec![TrafficSelector::host(remote).with(17, port)];
    config
}

/// Node 0 begins; each may stand behind a NAT, that of node 1 lets callers in.
fn pair(seed: u64, nats: [bool; 2], config: EngineConfig) -> Net {
    let mut net = Net::with(seed, 2, config);
    for n in [0, 1] {
        if nats[n] {
            net.nats.push(NatBox::new(n, n == 1));
        }
    }
    for n in [1, 0] {
        let remote = if nats[1 - n] {
            outside(1 - n)
        } else {
            address(1 - n)
        };
        let config = config_of(n, remote, n == 0);
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.esp = true;
    net.run_ms(100);
    net
}

fn watchful() -> EngineConfig {
    EngineConfig {
        liveness: Duration::from_secs(5),
        ..config()
    }
}

fn settled(mut net: Net) {
    net.run_ms(300);
    net.esp = false;
    net.run(Duration::from_secs(100));
    net.assert_connected(0, 1, 1);
    net.assert_tidy(0, 1);
    net.assert_tidy(1, 1);
    net.assert_no_esp_lost();
}

/// Both ends send for a second, and nothing is lost.
fn flows(net: &mut Net) {
    net.esp = true;
    net.esp_lost.clear();
    net.run_ms(1_000);
    net.assert_no_esp_lost();
}

fn rekey(net: &mut Net, n: usize) {
    let child = net.ikes(n, 1 - n)[0].children[0].child;
    net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
    net.run_ms(300);
    net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now))
        .unwrap();
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
}

// Transport mode: the selectors name addresses that the other end does not see (2.23.1).
#[test]
fn transport_mode_through_nats_at_either_or_both_ends() {
    for nats in [[true, false], [false, true], [true, true]] {
        let mut net = pair(1, nats, config());
        for n in 0..2 {
            let remote = if nats[1 - n] {
                outside(1 - n)
            } else {
                address(1 - n)
            };
            let child = net.nodes[n].engine.children.values().next().unwrap();
            assert_eq!(child.local_ts[0].first, address(n), "{nats:?}");
            assert_eq!(child.remote_ts[0].first, remote, "{nats:?}");
        }
        // Either end asks, with the selectors as it knows them.
        for n in 0..2 {
            rekey(&mut net, n);
        }
        settled(net);
    }
}

#[test]
fn the_addresses_before_the_nat_are_told() {
    let mut net = Net::new(2, 2);
    net.nats.push(NatBox::new(0, false));
    for (n, remote) in [(1, outside(0)), (0, address(1))] {
        let now = net.at();
        let config = config_of(n, remote, n == 0);
        net.nodes[n].engine.set_peer(config, now).unwrap();
    }
    net.act(0, |e, now| e.handle_timeout(now));
    net.run_ms(12);
    // IKE_AUTH is on its way; taken in by hand to see the event.
    let now = net.at();
    let (from, to, bytes) = net.wire.last().cloned().unwrap();
    assert_eq!((from.port(), to.port(), bytes[18]), (4500, 4500, 35));
    let seen = SocketAddr::new(outside(0), 20_002);
    let engine = &mut net.nodes[1].engine;
    engine.handle_datagram(now, to, seen, &bytes);
    while let Some(job) = engine.poll_job() {
        engine.handle_done(now, job.run());
    }
    let up = std::iter::from_fn(|| engine.poll_event()).find_map(|e| match e {
        Event::ChildUp(up) => Some(up),
        _ => None,
    });
    let up = up.unwrap();
    assert_eq!(up.original_remote, Some(address(0)));
    assert_eq!(up.original_local, None);
    let path = Encapsulation::Udp {
        local: SocketAddr::new(address(1), 4500),
        remote: seen,
    };
    assert_eq!(up.outbound.encapsulation, path);
}

// Lesson L102: the NAT gives another port, or another address; IKE and ESP follow.
#[test]
fn a_new_mapping_is_followed_by_ike_and_esp() {
    for outside in [outside(0), outside(7)] {
        let mut net = pair(3, [true, false], config());
        let before = net.ikes(1, 0)[0].remote;
        net.nats[0].forget(outside);
        net.run_ms(100);
        let after = net.ikes(1, 0)[0].remote;
        assert_ne!(before, after);
        assert_eq!(after.ip(), outside);
        // What was on its way to the old mapping is lost, no more.
        assert!(net.esp_lost.len() < 40, "{}", net.esp_lost.len());
        flows(&mut net);
        for n in 0..2 {
            rekey(&mut net, n);
            flows(&mut net);
        }
    }
}

// Nothing is sent: liveness finds the way again.
#[test]
fn a_new_mapping_of_a_silent_host_is_found() {
    let mut net = pair(4, [true, false], watchful());
    net.esp = false;
    net.run_ms(100);
    net.nats[0].forget(outside(0));
    net.run(Duration::from_secs(12));
    net.assert_connected(0, 1, 1);
    assert!(net.nodes[0].failures.is_empty(), "{}", net.story());
    flows(&mut net);
}

#[test]
fn keepalives_keep_the_mapping_of_port_4500() {
    let mut net = pair(5, [true, false], config());
    net.esp = false;
    net.nats[0].timeout = Duration::from_secs(25);
    net.run(Duration::from_secs(600));
    let keepalives = net.wire.iter().filter(|w| w.2 == [0xff]);
    let sources: Vec<_> = keepalives.map(|w| w.0).collect();
    assert!(sources.len() >= 29, "{}", sources.len());
    assert!(
        sources
            .iter()
            .all(|from| *from == (address(0), 4500).into())
    );
    // The host outside still reaches the one inside, also for a new IKE SA.
    rekey(&mut net, 1);
    net.act(1, |e, now| e.reauthenticate(&peer_id(0), now))
        .unwrap();
    net.run(Duration::from_secs(10));
    net.assert_connected(0, 1, 1);
    assert!(!net.ikes(0, 1)[0].initiator, "{}", net.story());
    flows(&mut net);
}

// Lesson L16: only an authenticated and new message moves anything.
#[test]
fn forged_and_repeated_messages_move_nothing() {
    let mut net = pair(6, [true, false], config());
    let child = net.ikes(0, 1)[0].children[0].child;
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
    net.run_ms(100);
    let path = net.ikes(1, 0)[0].remote;
    let mut good = Vec::new();
    for (from, to, bytes) in &net.wire {
        if from.ip() == address(0) && bytes.len() > 28 && bytes[18] >= 36 {
            good.push((*to, bytes.clone()));
        }
    }
    assert!(!good.is_empty());
    let thief: SocketAddr = "203.0.113.9:4500".parse().unwrap();
    for (to, bytes) in good {
        let mut bad = bytes.clone();
        *bad.last_mut().unwrap() ^= 1;
        for bytes in [bytes, bad] {
            net.act(1, |e, now| e.handle_datagram(now, to, thief, &bytes));
        }
    }
    assert_eq!(net.ikes(1, 0)[0].remote, path);
    net.esp_lost.clear();
    settled(net);
}

// Encapsulation that is wanted looks like a NAT and is none: whoever delivers a packet from
// another address first must not divert what is sent.
#[test]
fn without_a_nat_nobody_is_followed() {
    let mut net = Net::new(7, 2);
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.encapsulation = EncapsulationMode::Always;
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(500);
    let child = net.ikes(1, 0)[0].children[0].child;
    let thief: SocketAddr = "203.0.113.9:4500".parse().unwrap();
    net.act(1, |e, _| e.note_moved(child, thief));
    assert_eq!(net.ikes(1, 0)[0].remote, (address(0), 4500).into());
    assert_eq!(net.nodes[1].engine.counters().drops["moved_without_nat"], 1);
    // Nor does an authentic message that a thief takes and delivers himself.
    net.filter = Some(Box::new(|from, _, _| match from.ip() == address(0) {
        true => Fate::Drop,
        false => Fate::Pass,
    }));
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    let (_, to, bytes) = net.wire.last().cloned().unwrap();
    net.act(1, |e, now| e.handle_datagram(now, to, thief, &bytes));
    assert_eq!(net.ikes(1, 0)[0].remote, (address(0), 4500).into());
    // Another port of the same host is followed: there may be a NAT after all.
    let other: SocketAddr = (address(0), 6000).into();
    net.act(1, |e, _| e.note_moved(child, other));
    assert_eq!(net.ikes(1, 0)[0].remote, other);
}

// A NAT that comes or goes is seen by the next new IKE SA; a rekey keeps what was seen.
#[test]
fn a_nat_appears_and_vanishes() {
    let mut net = Net::new(8, 2);
    for n in [1, 0] {
        let config = config_of(n, address(1 - n), n == 0);
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(500);
    let udp = |net: &Net, n: usize| {
        let child = net.ikes(n, 1 - n)[0].children[0].child;
        let ike = net.nodes[n].engine.children[&child].ike;
        net.nodes[n].engine.sas[&ike].nat.encapsulate()
    };
    assert!(!udp(&net, 0) && !udp(&net, 1));
    flows(&mut net);
    for there in [true, false] {
        match there {
            true => net.nats.push(NatBox::new(0, false)),
            false => net.nats.clear(),
        }
        net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
            .unwrap();
        net.run(Duration::from_secs(60));
        net.assert_connected(0, 1, 1);
        assert_eq!((udp(&net, 0), udp(&net, 1)), (there, there));
        flows(&mut net);
        rekey(&mut net, 0);
        assert_eq!((udp(&net, 0), udp(&net, 1)), (there, there));
        flows(&mut net);
    }
}
