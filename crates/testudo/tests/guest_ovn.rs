//! A cluster whose pods hang on real OVN, the network of Kube-OVN, OpenShift and OKD, from nothing to
//! Strict and back with the kernel's own ESP. It needs a kernel with conntrack zones, which
//! user-mode-linux lacks: `cargo xtask guest --kernel 6.1`.

mod common;

use common::guest::{KERNEL, rekey_child, turn_by};
use common::{Lab, Load, Options, Turn, Watch, seconds, wait_until};

/// Datagrams a second, in all: the processor is emulated.
const RATE: u32 = 50;

#[test]
fn over_ipv4_ovn_is_strict_rekeys_and_is_off_again() {
    let (_turn, lab) = up("over_ipv4_ovn_is_strict_rekeys_and_is_off_again", "v4");
    let report = lab.verify().ok().json();
    assert_ne!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    let load = Load::ring(&lab, RATE);
    strict(&lab);
    let watch = Watch::clear(&lab);
    let report = lab.verify().ok().json();
    assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    rekey_child(&lab, "n1", seconds(120));
    load.run_for(seconds(1));
    watch.stop_with_none();
    lab.testudo(&["stop", "--timeout", "300s"]).ok();
    load.run_for(seconds(1));
    println!("{} datagrams, none lost", load.stop_without_loss());
    nothing_left(&lab);
    lab.down();
}

#[test]
fn over_ipv6_ovn_is_strict_and_off_again() {
    let (_turn, lab) = up("over_ipv6_ovn_is_strict_and_off_again", "v6");
    let load = Load::ring(&lab, RATE);
    strict(&lab);
    let watch = Watch::clear(&lab);
    let report = lab.verify().ok().json();
    assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    watch.stop_with_none();
    lab.testudo(&["stop", "--timeout", "300s"]).ok();
    load.run_for(seconds(1));
    println!("{} datagrams, none lost", load.stop_without_loss());
    nothing_left(&lab);
    lab.down();
}

#[track_caller]
fn up(test: &str, family: &'static str) -> (Turn, Lab) {
    let turn = turn_by("cargo xtask guest --kernel 6.1", test);
    let lab = Lab::up(Options {
        overlay: "ovn",
        family,
        ovs: true,
        ..KERNEL
    });
    (turn, lab)
}

#[track_caller]
fn strict(lab: &Lab) {
    let answer = lab.testudo(&["init", "--timeout", "300s"]).ok();
    println!("init took {:.1} s", answer.took.as_secs_f32());
    let status = lab.status();
    assert_eq!(status["phase"], "Strict", "{status:#}");
    for node in status["nodes"].as_array().expect("nodes") {
        assert_eq!(node["datapath"], "kernel", "{node:#}");
    }
}

#[track_caller]
fn nothing_left(lab: &Lab) {
    for node in ["n1", "n2"] {
        wait_until("a kernel without SAs and policies", seconds(60), || {
            let listed = ["state", "policy"].map(|what| lab.exec(node, &["ip", "xfrm", what]));
            // The sockets of IKE have policies of their own, without templates.
            let left = listed.concat();
            let is_left = |line: &&str| line.contains("reqid") || line.contains("action block");
            let found = left.lines().find(is_left);
            found.map_or(Ok(()), |line| Err(line.trim().to_owned()))
        });
    }
}
