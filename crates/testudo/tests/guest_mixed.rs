//! Two nodes of one cluster with different datapaths: the kernel's own ESP on one, ours on the other.
//! Needs a kernel with ESP and with nftables for IP: `cargo xtask guest --kernel 6.1`.

mod common;

use rustix::process::Signal;
use testudo_agent::api::TunnelView;

use common::guest::{KERNEL, rekey_child, turn_by};
use common::{Lab, Load, Options, Watch, seconds, wait_until};

/// Datagrams a second, in all: an emulated processor carries them besides everything else.
const RATE: u32 = 50;

/// From nothing to Strict, new keys, an orderly restart of each agent, and off again. Nothing is in clear
/// while it is Strict; nothing is lost but what is sent while the node whose agent carries its packets is
/// without one.
#[test]
fn a_cluster_of_both_datapaths_is_strict_and_off_again() {
    let _turn = turn_by(
        "cargo xtask guest --kernel 6.1",
        "a_cluster_of_both_datapaths_is_strict_and_off_again",
    );
    let lab = Lab::up(Options {
        datapath_of: Some("n2=user"),
        ..KERNEL
    });
    let load = Load::ring(&lab, RATE);
    let took = lab.testudo(&["init", "--timeout", "300s"]).ok().took;
    println!("init took {:.2} s", took.as_secs_f32());
    load.run_for(seconds(1));
    let status = lab.status();
    assert_eq!(status["phase"], "Strict", "{status:#}");
    let nodes = status["nodes"].as_array().expect("nodes");
    let datapaths: Vec<_> = nodes.iter().map(|node| &node["datapath"]).collect();
    assert_eq!(datapaths, ["kernel", "user"], "{status:#}");
    let clear = Watch::clear(&lab);
    let report = lab.verify().ok().json();
    assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    for node in ["n1", "n2"] {
        rekey_child(&lab, node, seconds(60));
    }
    load.run_for(seconds(1));
    // The kernel goes on without its agent, and our peer with it.
    restart(&lab, "n1");
    load.run_for(seconds(1));
    let mut sent = load.stop_without_loss();
    // The other's packets stop with its agent, at both ends, and come back with the next one.
    let load = Load::ring_unseen(&lab, RATE);
    load.run_for(seconds(1));
    let from = load.now();
    restart(&lab, "n2");
    load.wait_all_arrive(seconds(60));
    let back = load.now() - from;
    for outcome in load.stop() {
        let (lost, sent) = (outcome.lost(), outcome.sent);
        println!(
            "{}: {lost} of {sent} lost, back after {back:?}",
            outcome.flow
        );
    }
    clear.stop_with_none();
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    lab.testudo(&["stop", "--timeout", "300s"]).ok();
    load.run_for(seconds(1));
    sent += load.stop_without_loss();
    println!("{sent} datagrams, none lost");
    lab.down();
}

/// Stops an agent as for a new build; the next one has SAs of its own.
#[track_caller]
fn restart(lab: &Lab, node: &str) {
    let spi = || -> Result<String, String> {
        let tunnels: Vec<TunnelView> = lab.tunnels(node)?;
        let tunnel = tunnels.first().filter(|tunnel| tunnel.up);
        let child = tunnel.and_then(|tunnel| tunnel.children.first());
        Ok(child.ok_or("no child")?.spi_in.clone())
    };
    let before = wait_until("a child", seconds(60), spi);
    let old = lab.agent(node);
    assert!(old.signal(Signal::TERM));
    wait_until("SAs of the next agent", seconds(90), || {
        let now = spi()?;
        (now != before).then_some(()).ok_or(now)
    });
    assert_ne!(lab.agent(node), old);
}
