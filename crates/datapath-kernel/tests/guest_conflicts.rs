//! Other programs' policies in the place of ours: named, never overwritten, and nothing opens.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::*;
use testudo_datapath::Datapath;
use testudo_datapath_kernel::Options;
use testudo_model::{ClearTraffic, Outbound};

/// Names what another daemon has for the overlay's packets from b, where a has the like.
const THEIRS: &str = "src 10.9.0.2/32 dst 10.9.0.1/32 proto udp dport 6081 dir in";

/// Adds it: clear packets pass it.
fn add_theirs(world: &World, priority: u32) {
    world.a.command(&format!(
        "ip xfrm policy add {THEIRS} priority {priority} \
         tmpl src 10.9.0.2 dst 10.9.0.1 proto esp reqid 5 mode transport level use"
    ));
}

fn delete_theirs(world: &World) {
    world.a.command(&format!("ip xfrm policy delete {THEIRS}"));
}

/// Whether a clear datagram from b comes in at a.
fn comes_in(world: &World) -> bool {
    let to = SocketAddr::new(world.a.v4, PORT);
    let receiver = world.a.run(|| UdpSocket::bind(to).unwrap());
    let limit = Some(Duration::from_millis(300));
    receiver.set_read_timeout(limit).unwrap();
    let from = SocketAddr::new(world.b.v4, 0);
    let sender = world.b.run(|| UdpSocket::bind(from).unwrap());
    sender.send_to(b"clear", to).unwrap();
    receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn one_that_came_later_is_named_when_it_is_met() {
    let mut world = bare_world();
    world.a.open(Options::default());
    let mut policy = overlay(&world.a, &world.b, "b", ClearTraffic::Pass);
    policy.peers[0].outbound = Outbound::Clear;
    world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
    // No policy of ours stands yet; the first child brings one, and theirs is quicker.
    add_theirs(&world, 366_911);
    let child = Child::new(1);
    let (inbound, _) = child.specs(&world.a, &world.b, true);
    let error = world.a.dp(|dp| dp.install_inbound(inbound)).unwrap_err();
    let text = error.to_string();
    for part in [
        "in the way",
        "in src 10.9.0.2/32",
        "priority 366911",
        "reqid 5",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains('\n'), "{text}");
    // Nothing half-done is left, and with theirs gone the same works.
    assert_eq!(world.a.xfrm().sas(|sa| Some(sa.sa.id)).unwrap(), []);
    let listed = world.a.command("ip xfrm policy");
    assert!(listed.contains("reqid 5"), "{listed}");
    delete_theirs(&world);
    let (inbound, _) = child.specs(&world.a, &world.b, true);
    world.a.dp(|dp| dp.install_inbound(inbound)).unwrap();
}

/// Theirs takes the place of our inbound policy and accepts clear packets. Asked after our blocks
/// it opens nothing; asked before them it does not either where the kernel has nftables.
#[test]
fn a_conflict_on_the_way_to_strict_leaves_the_node_closed() {
    let tables = std::env::var("TESTUDO_GUEST").unwrap() != "uml";
    for (priority, open) in [(366_911, false), (1, !tables)] {
        let mut world = bare_world();
        world.a.open(Options::default());
        add_theirs(&world, priority);
        // With its first child the peer gets a policy of its own on the way in.
        let (inbound, _) = Child::new(1).specs(&world.a, &world.b, true);
        world.a.dp(|dp| dp.install_inbound(inbound)).unwrap();
        let policy = overlay(&world.a, &world.b, "b", ClearTraffic::Drop);
        let error = world.a.dp(|dp| dp.set_traffic(&policy)).unwrap_err();
        assert!(error.to_string().contains("reqid 5"), "{error}");
        assert_eq!(comes_in(&world), open, "priority {priority}");
        // It goes, and the same policy told again closes all.
        delete_theirs(&world);
        world.a.dp(|dp| dp.set_traffic(&policy)).unwrap();
        assert!(!comes_in(&world));
        let listed = world.a.command("ip xfrm policy");
        assert!(!listed.contains("reqid 5"), "{listed}");
    }
}
