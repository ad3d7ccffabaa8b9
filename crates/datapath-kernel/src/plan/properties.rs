//! What must hold for any policy, any bindings and any packet.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use testudo_model::{
    ClearTraffic, Outbound, PeerId, PeerTraffic, ProtectedFlows, SaMode, Spi, TrafficPolicy,
    TrafficSelector,
};
use testudo_netlink::{XfrmDirection, XfrmMode, XfrmPolicy};

use super::evaluator::{Fate, Packet, apply, fates};
use super::{Bindings, InUse, changes, desired, desired_for, is_ours};
use crate::tag::REQID_BLOCK;

const PORT: u16 = 6081;
const PEERS: u8 = 3;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Node 1 is this one.
fn address(node: u8, v6: bool) -> IpAddr {
    match v6 {
        true => ip(&format!("fd00::{node}")),
        false => ip(&format!("10.0.0.{node}")),
    }
}

fn pods(node: u8, v6: bool) -> IpNet {
    match v6 {
        true => net(&format!("fd10:0:{node}::/48")),
        false => net(&format!("10.244.{node}.0/24")),
    }
}

fn name(node: u8) -> PeerId {
    PeerId::new(format!("n{node}")).unwrap()
}

/// A policy and what ties its peers to SAs.
#[derive(Clone, Debug)]
struct World {
    policy: TrafficPolicy,
    bindings: Bindings,
}

impl World {
    fn desired(&self) -> Vec<XfrmPolicy> {
        desired(&self.policy, &self.bindings, true)
    }

    fn mode(&self) -> SaMode {
        match self.policy.flows {
            ProtectedFlows::Overlay { .. } => SaMode::Transport,
            ProtectedFlows::Routed { .. } => SaMode::Tunnel,
        }
    }
}

/// What a peer is like.
#[derive(Clone, Copy, Debug)]
struct Peer {
    known: bool,
    encrypt: bool,
    bound: bool,
    /// The SPI of its child in use; small numbers, so that two worlds share some.
    in_use: Option<u8>,
    v6: bool,
}

fn peer() -> impl Strategy<Value = Peer> {
    let in_use = proptest::option::of(0..3u8);
    (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        in_use,
        any::<bool>(),
    )
        .prop_map(|(known, encrypt, bound, in_use, v6)| Peer {
            known,
            encrypt,
            bound,
            in_use,
            v6,
        })
}

fn clear() -> impl Strategy<Value = ClearTraffic> {
    prop_oneof![Just(ClearTraffic::Pass), Just(ClearTraffic::Drop)]
}

fn world(overlay: bool) -> impl Strategy<Value = World> {
    let peers = proptest::collection::vec(peer(), usize::from(PEERS));
    (peers, clear(), clear(), any::<bool>(), any::<bool>()).prop_map(
        move |(peers, clear_inbound, clear_outbound, v6, cluster)| {
            build(overlay, &peers, clear_inbound, clear_outbound, v6, cluster)
        },
    )
}

fn strict_world(overlay: bool) -> impl Strategy<Value = World> {
    world(overlay).prop_map(|mut world| {
        world.policy.clear_inbound = ClearTraffic::Drop;
        world.policy.clear_outbound = ClearTraffic::Drop;
        world
    })
}

fn build(
    overlay: bool,
    peers: &[Peer],
    clear_inbound: ClearTraffic,
    clear_outbound: ClearTraffic,
    v6: bool,
    cluster: bool,
) -> World {
    let families = |v6: bool| [false, true].into_iter().filter(move |f| !f || v6);
    let addresses = |node, v6| families(v6).map(|f| address(node, f)).collect::<Vec<_>>();
    let prefixes = |node, v6| families(v6).map(|f| pods(node, f)).collect::<Vec<_>>();
    let flows = match overlay {
        true => ProtectedFlows::Overlay { port: PORT },
        false => ProtectedFlows::Routed {
            local: prefixes(1, v6),
            cluster: match cluster {
                true => vec![net("10.244.0.0/16"), net("fd10::/32")],
                false => Vec::new(),
            },
        },
    };
    let mut bindings = Bindings::default();
    // Request IDs are those of the order of names in every world.
    for node in 2..2 + PEERS {
        bindings.bind(&name(node)).unwrap();
    }
    let mut known = Vec::new();
    for (node, peer) in (2..).zip(peers) {
        if !peer.bound {
            bindings.forget(&name(node));
        }
        if peer.known {
            known.push(PeerTraffic {
                peer: name(node),
                addresses: addresses(node, peer.v6),
                pod_cidrs: prefixes(node, peer.v6),
                outbound: match peer.encrypt {
                    true => Outbound::Encrypt,
                    false => Outbound::Clear,
                },
            });
        }
        let Some(spi) = peer.in_use else { continue };
        let ends = |node, v6| -> Vec<TrafficSelector> {
            let hosts = addresses(node, v6).into_iter().map(TrafficSelector::host);
            match overlay {
                true => hosts.collect(),
                false => {
                    let pods = prefixes(node, v6).into_iter().map(TrafficSelector::prefix);
                    pods.chain(hosts).collect()
                }
            }
        };
        let child = InUse {
            spi: Spi(0x1000 + 16 * u32::from(node) + u32::from(spi)),
            cpu: None,
            mode: match overlay {
                true => SaMode::Transport,
                false => SaMode::Tunnel,
            },
            ends: (address(1, false), address(node, false)),
            local: ends(1, v6),
            remote: ends(node, peer.v6),
        };
        bindings.use_outbound(&name(node), child);
    }
    World {
        policy: TrafficPolicy {
            addresses: addresses(1, v6),
            flows,
            clear_inbound,
            clear_outbound,
            peers: known,
        },
        bindings,
    }
}

/// Every kind of packet, clear ones and such as came out of each peer's SAs.
fn packets(mode: SaMode) -> Vec<Packet> {
    let mut ends: Vec<IpAddr> = Vec::new();
    for v6 in [false, true] {
        for node in 1..=4 {
            ends.push(address(node, v6));
            ends.push(match v6 {
                true => ip(&format!("fd10:0:{node}::7")),
                false => ip(&format!("10.244.{node}.7")),
            });
        }
    }
    // An address of this node that the policy does not know, a pod of a node that is not known,
    // and somebody outside.
    for other in [
        "10.0.0.9",
        "10.244.99.7",
        "192.0.2.9",
        "fd00::9",
        "fd10:0:99::7",
        "::1",
    ] {
        ends.push(ip(other));
    }
    let xfrm_mode = match mode {
        SaMode::Transport => XfrmMode::Transport,
        SaMode::Tunnel => XfrmMode::Tunnel,
    };
    let mut reqids = Bindings::default();
    let mut opened = vec![None];
    for node in 2..2 + PEERS {
        opened.push(Some((reqids.bind(&name(node)).unwrap(), xfrm_mode)));
    }
    let mut all = Vec::new();
    for source in &ends {
        for destination in ends.iter().filter(|d| d.is_ipv4() == source.is_ipv4()) {
            for destination_port in [PORT, 53] {
                let packet = |direction, opened| Packet {
                    direction,
                    source: *source,
                    destination: *destination,
                    protocol: 17,
                    destination_port,
                    opened,
                };
                all.push(packet(XfrmDirection::Out, None));
                for opened in &opened {
                    all.push(packet(XfrmDirection::In, *opened));
                    all.push(packet(XfrmDirection::Forward, *opened));
                }
            }
        }
    }
    all
}

/// Whether a clear packet must not pass, said without the plan: as the model describes it.
fn closed(policy: &TrafficPolicy, packet: &Packet) -> bool {
    let (from, to) = (packet.source, packet.destination);
    let drop_in = policy.clear_inbound == ClearTraffic::Drop;
    let drop_out = policy.clear_outbound == ClearTraffic::Drop;
    let own = |ip: IpAddr| policy.addresses.contains(&ip);
    let inside = |nets: &[IpNet], ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
    let mut peers = policy.peers.iter();
    let sealed = |peer: &PeerTraffic| drop_out || peer.outbound == Outbound::Encrypt;
    match &policy.flows {
        ProtectedFlows::Overlay { port } => {
            let itself = from == to && from.is_ipv6() && (own(from) || from.is_loopback());
            if packet.destination_port != *port || itself {
                return false;
            }
            match packet.direction {
                XfrmDirection::In => drop_in,
                XfrmDirection::Out => {
                    drop_out || peers.any(|p| sealed(p) && p.addresses.contains(&to))
                }
                XfrmDirection::Forward => false,
            }
        }
        ProtectedFlows::Routed { local, cluster } => {
            let here = |ip| inside(local, ip);
            let pod_of_any =
                |ip| inside(cluster, ip) || policy.peers.iter().any(|p| inside(&p.pod_cidrs, ip));
            match packet.direction {
                XfrmDirection::Out => {
                    let to_peer = |p: &PeerTraffic| {
                        inside(&p.pod_cidrs, to) || here(from) && p.addresses.contains(&to)
                    };
                    !here(to)
                        && (drop_out && inside(cluster, to)
                            || peers.any(|p| sealed(p) && to_peer(p)))
                }
                _ if !drop_in || here(from) => false,
                direction => {
                    let node = peers.any(|p| p.addresses.contains(&from));
                    let to_host = direction == XfrmDirection::In && own(to);
                    here(to) && (pod_of_any(from) || node) || to_host && pod_of_any(from)
                }
            }
        }
    }
}

/// Whether an opened packet is one that its peer may send here.
fn may_bring(world: &World, packet: &Packet, reqid: u32) -> bool {
    let policy = &world.policy;
    let bound = |p: &&PeerTraffic| world.bindings.reqid(&p.peer) == Some(reqid);
    let Some(peer) = policy.peers.iter().find(bound) else {
        return false;
    };
    let (from, to) = (packet.source, packet.destination);
    let own = policy.addresses.contains(&to);
    let inside = |nets: &[IpNet], ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
    match &policy.flows {
        ProtectedFlows::Overlay { port } => {
            packet.direction == XfrmDirection::In
                && own
                && peer.addresses.contains(&from)
                && packet.destination_port == *port
        }
        ProtectedFlows::Routed { local, .. } => {
            let pod = inside(&peer.pod_cidrs, from);
            let node = peer.addresses.contains(&from);
            inside(local, to) && (pod || node)
                || packet.direction == XfrmDirection::In && own && pod
        }
    }
}

fn check_fates(world: &World) -> Result<(), TestCaseError> {
    let spd = world.desired();
    for packet in packets(world.mode()) {
        let fates = fates(&spd, &packet);
        prop_assert_eq!(fates.len(), 1, "{:?} may be {:?}", packet, fates);
        let fate = *fates.first().unwrap();
        match packet.opened {
            None => prop_assert_eq!(
                fate == Fate::Passes,
                !closed(&world.policy, &packet),
                "{:?} is {:?}",
                packet,
                fate
            ),
            Some((reqid, _)) => {
                // What one peer's SA brings is never taken for another's, where clear packets are
                // not taken either.
                let clear = Packet {
                    opened: None,
                    ..packet
                };
                if may_bring(world, &packet, reqid) {
                    prop_assert_eq!(fate, Fate::Passes, "{:?}", packet);
                } else if closed(&world.policy, &clear) {
                    prop_assert_eq!(fate, Fate::Dropped, "{:?}", packet);
                }
            }
        }
        if let Fate::Sealed(reqid, spi) = fate {
            let peer = world.bindings.peer(reqid).unwrap();
            let node: u32 = peer.as_str()[1..].parse().unwrap();
            prop_assert_eq!(spi >> 4, 0x100 + node, "{:?} with another's SA", packet);
            let there = packet.destination.to_string();
            prop_assert!(
                there.ends_with(&format!("0.{node}"))
                    || there.ends_with(&format!("::{node}"))
                    || there.contains(&format!("244.{node}."))
                    || there.contains(&format!("0:{node}:")),
                "{:?} goes to {}",
                packet,
                peer
            );
        }
    }
    Ok(())
}

/// From one wish to another, step by step: each packet's fate is at each moment the one before or
/// the one after.
fn check_way(old: &World, new: &World) -> Result<(), TestCaseError> {
    let (before, after) = (old.desired(), new.desired());
    let plan = changes(&before, &after);
    prop_assert!(plan.conflicts.is_empty());
    let mut packets = packets(old.mode());
    if old.mode() != new.mode() {
        packets.extend(self::packets(new.mode()));
    }
    let ends: Vec<_> = packets
        .iter()
        .map(|packet| {
            let mut both = fates(&before, packet);
            both.extend(fates(&after, packet));
            both
        })
        .collect();
    let mut spd = before;
    for change in &plan.changes {
        apply(&mut spd, change);
        for (packet, allowed) in packets.iter().zip(&ends) {
            let now = fates(&spd, packet);
            prop_assert!(
                now.is_subset(allowed),
                "after {:?}: {:?} is {:?}, not one of {:?}",
                change,
                packet,
                now,
                allowed
            );
        }
    }
    let reached: BTreeSet<_> = spd.iter().collect();
    prop_assert_eq!(reached, after.iter().collect());
    prop_assert!(changes(&spd, &after).changes.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_overlays_packets_are_closed_as_the_policy_says(world in world(true)) {
        check_fates(&world)?;
    }

    #[test]
    fn routed_packets_are_closed_as_the_policy_says(world in world(false)) {
        check_fates(&world)?;
    }

    #[test]
    fn every_policy_is_known_as_ours_and_has_a_key_of_its_own(
        world in prop_oneof![world(true), world(false)]
    ) {
        let all = world.desired();
        prop_assert!(all.iter().all(is_ours));
        let keys: BTreeSet<_> = all.iter().map(XfrmPolicy::key).collect();
        prop_assert_eq!(keys.len(), all.len());
    }

    #[test]
    fn one_peers_policies_are_those_of_the_whole(world in prop_oneof![world(true), world(false)]) {
        let all: BTreeSet<_> = world.desired().into_iter().collect();
        for peer in &world.policy.peers {
            let some = desired_for(&world.policy, &world.bindings, true, &peer.peer);
            prop_assert!(some.iter().all(|policy| all.contains(policy)));
        }
    }

    #[test]
    fn after_a_restart_everything_is_adopted(world in prop_oneof![world(true), world(false)]) {
        let have = world.desired();
        let mut again = Bindings::default();
        again.adopt(&world.policy, &have, |t| Some(Spi(t.spi)));
        for peer in &world.policy.peers {
            // Of a peer that was never bound nothing can be known.
            if world.bindings.reqid(&peer.peer).is_some() {
                again.bind(&peer.peer).unwrap();
            }
        }
        let want = desired(&world.policy, &again, true);
        // Every SA in use stays in use, and every peer that was heard is heard.
        let by_sa = |p: &&XfrmPolicy| p.templates.first().is_some_and(|t| t.reqid != REQID_BLOCK);
        let found: BTreeSet<_> = have.iter().filter(by_sa).collect();
        prop_assert!(found.is_subset(&want.iter().collect()));
        prop_assert!(changes(&have, &want).conflicts.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_step_of_an_overlays_way_opens_or_cuts(old in world(true), new in world(true)) {
        check_way(&old, &new)?;
    }

    #[test]
    fn no_step_of_a_routed_way_opens_or_cuts(old in world(false), new in world(false)) {
        check_way(&old, &new)?;
    }

    #[test]
    fn nor_does_the_way_from_an_overlay_to_routed_pods(old in world(true), new in world(false)) {
        check_way(&old, &new)?;
    }

    #[test]
    fn between_two_strict_policies_no_protected_packet_is_ever_clear(
        old in prop_oneof![strict_world(true), strict_world(false)],
        new in prop_oneof![strict_world(true), strict_world(false)],
    ) {
        let mut spd = old.desired();
        let plan = changes(&spd, &new.desired());
        let watched: Vec<_> = packets(SaMode::Transport)
            .into_iter()
            .filter(|p| p.opened.is_none() && closed(&old.policy, p) && closed(&new.policy, p))
            .collect();
        prop_assume!(!watched.is_empty());
        for change in &plan.changes {
            apply(&mut spd, change);
            for packet in &watched {
                prop_assert!(!fates(&spd, packet).contains(&Fate::Passes), "{:?}", packet);
            }
        }
    }
}
