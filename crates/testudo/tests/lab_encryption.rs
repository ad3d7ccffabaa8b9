//! A cluster turns its encryption on, changes its keys and turns it off, over each kind of
//! underlay and overlay: every flow as it should be, nothing lost, nothing in clear.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use testudo_agent::api::{Actions, TunnelView};

use common::{Lab, Load, Options, Watch, begin, seconds, wait_until};

/// Datagrams a second, in all, while something is changed.
const RATE: u32 = 3000;

/// The witness is not blind, and the load loses nothing by itself: before `init` all is in clear.
#[test]
fn before_init_pods_speak_in_clear_and_it_is_seen() {
    let Some(_turn) = begin("before_init_pods_speak_in_clear_and_it_is_seen") else {
        return;
    };
    for (overlay, family) in [("vxlan", "v4"), ("vxlan", "v6"), ("routed", "dual")] {
        let lab = Lab::up(Options {
            overlay,
            family,
            ..Options::VXLAN
        });
        assert_tables_are_split(&lab);
        let clear = Watch::clear(&lab);
        let load = Load::ring(&lab, RATE);
        load.run_for(seconds(1));
        let sent = load.stop_without_loss() as usize;
        let seen = clear.stop().len();
        assert!(seen >= sent, "{overlay} {family}: {seen} of {sent} seen");
        lab.down();
    }
}

/// A namespace's first routing rule takes the local addresses out of the main table, and for that
/// moment a packet finds no local address: it happens at an agent's start, not at the switch-on.
#[track_caller]
fn assert_tables_are_split(lab: &Lab) {
    for node in &lab.inner().layout().nodes {
        let tables = lab.exec(&node.name, &["cat", "/proc/net/fib_triestat"]);
        let size = |name: &str| {
            let table = tables.split_once(name).expect("each table is named").1;
            let line = table.lines().find(|line| line.contains("Prefixes:"));
            line.expect("a table says its size").trim().to_owned()
        };
        assert_ne!(size("Main:"), size("Local:"), "{}: {tables}", node.name);
    }
}

#[test]
fn vxlan_over_ipv4_is_strict() {
    strict("vxlan", "v4");
}

#[test]
fn vxlan_over_ipv6_is_strict() {
    strict("vxlan", "v6");
}

#[test]
fn vxlan_on_a_dual_underlay_is_strict() {
    strict("vxlan", "dual");
}

#[test]
fn routed_pods_over_ipv4_are_strict() {
    strict("routed", "v4");
}

#[test]
fn routed_pods_over_ipv6_are_strict() {
    strict("routed", "v6");
}

/// Nothing to Strict, and every claim of `lab verify` and `lab status`, field by field.
#[track_caller]
fn strict(overlay: &'static str, family: &'static str) {
    let Some(_turn) = begin(&format!("{overlay} {family}")) else {
        return;
    };
    let lab = Lab::up(Options {
        overlay,
        family,
        pods: 2,
        ..Options::VXLAN
    });
    check_status(&lab, "Disabled");
    let took = lab.testudo(&["init"]).ok().took;
    println!("{overlay} {family}: init took {:.2} s", took.as_secs_f32());
    check_status(&lab, "Strict");
    let watch = Watch::clear(&lab);
    let answer = lab.verify().ok();
    watch.stop_with_none();
    check_verify(&answer.json(), &lab);
    lab.down();
}

/// `lab status -o json`, as DESIGN's contract has it.
#[track_caller]
fn check_status(lab: &Lab, phase: &str) {
    let status = lab.status();
    assert_eq!(status["name"], lab.name(), "{status:#}");
    assert_eq!(status["phase"], phase, "{status:#}");
    alive(&status["controller_pid"], "controller");
    let nodes = array(&status["nodes"]);
    let layout = lab.inner().layout();
    assert_eq!(nodes.len(), layout.nodes.len());
    for (node, planned) in nodes.iter().zip(&layout.nodes) {
        assert_eq!(node["name"], planned.name, "{node:#}");
        assert_eq!(node["interface"], "eth0", "{node:#}");
        assert_eq!(node["datapath"], "user", "{node:#}");
        alive(&node["agent_pid"], "agent");
        address(node, "eth0");
        let pods = array(&node["pods"]);
        assert_eq!(pods.len(), planned.pods.len());
        for (pod, planned) in pods.iter().zip(&planned.pods) {
            assert_eq!(pod["name"], planned.name, "{pod:#}");
            address(pod, "eth0");
        }
    }
}

/// The namespace is one that `ip netns exec` finds, and the address is really on its link.
#[track_caller]
fn address(value: &Value, interface: &str) {
    let netns = text(&value["netns"]);
    let wanted = text(&value["address"]);
    let out = std::process::Command::new("ip")
        .args([
            "netns", "exec", netns, "ip", "-o", "addr", "show", interface,
        ])
        .output()
        .expect("ip runs");
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.contains(&format!(" {wanted}/")),
        "{wanted} is not on {interface} of {netns}: {out}"
    );
}

#[track_caller]
fn alive(pid: &Value, what: &str) {
    let pid = pid.as_u64().unwrap_or_else(|| panic!("{what}: {pid}"));
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.contains(what), "process {pid} is no {what}: {line}");
}

/// `lab verify -o json` of a cluster in Strict, as DESIGN's contract has it.
#[track_caller]
fn check_verify(report: &Value, lab: &Lab) {
    let layout = lab.inner().layout();
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["phase"], "Strict", "{report:#}");
    let flows = array(&report["flows"]);
    let mut seen = BTreeSet::new();
    for flow in flows {
        let (from, to) = (text(&flow["from"]), text(&flow["to"]));
        assert!(!text(&flow["kind"]).is_empty(), "{flow:#}");
        assert_eq!(flow["ok"], true, "{flow:#}");
        assert_eq!(flow["observed"], flow["expected"], "{flow:#}");
        if let Some(expected) = expected(from, to) {
            assert_eq!(flow["expected"], expected, "{flow:#}");
        }
        let pods = from.starts_with("pod/") && to.starts_with("pod/");
        if pods {
            let remote = node_of(from) != node_of(to);
            assert_eq!(flow["kind"] == "pod-pod-remote", remote, "{flow:#}");
            seen.insert((node_of(from).to_owned(), node_of(to).to_owned()));
        }
    }
    for one in &layout.nodes {
        for other in &layout.nodes {
            let pair = (one.name.clone(), other.name.clone());
            assert!(seen.contains(&pair), "no flow between pods of {pair:?}");
        }
    }
    let esp = report["wire"]["esp_packets"].as_u64();
    assert!(esp.is_some_and(|n| n > 0), "{report:#}");
    assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    let tunnels = &report["tunnels"];
    assert_eq!(tunnels["up"], tunnels["expected"], "{report:#}");
    let least = layout.nodes.len() * (layout.nodes.len() - 1) / 2;
    let expected = tunnels["expected"].as_u64();
    assert!(expected.is_some_and(|n| n >= least as u64), "{report:#}");
}

/// What the table of flows says, for the kinds that are the same with every CNI.
fn expected(from: &str, to: &str) -> Option<&'static str> {
    let pods = from.starts_with("pod/") && to.starts_with("pod/");
    let hosts = from.starts_with("host/") && to.starts_with("host/");
    match node_of(from) == node_of(to) {
        true => Some("local"),
        false if pods => Some("encrypted"),
        false if hosts => Some("clear"),
        false => None,
    }
}

/// `n1` of `pod/n1/p1` and of `host/n1`.
fn node_of(end: &str) -> &str {
    end.split('/').nth(1).unwrap_or_default()
}

#[track_caller]
fn array(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"))
}

#[track_caller]
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// L83, L118, L120: switching on, every change of keys, and switching off lose no packet, and
/// nothing is in clear while the cluster is strict.
#[test]
fn changes_under_load_lose_nothing() {
    let Some(_turn) = begin("changes_under_load_lose_nothing") else {
        return;
    };
    let lab = Lab::up(Options::VXLAN);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    step(&load, "init", || drop(lab.testudo(&["init"]).ok()));
    assert_eq!(lab.phase(), "Strict");

    let clear = Watch::clear(&lab);
    let before = totals(&lab);
    step(&load, "certs rotate", || {
        drop(lab.testudo(&["certs", "rotate"]).ok());
    });
    let after = totals(&lab);
    assert!(
        after.authentications > before.authentications,
        "the rotation authenticated nobody anew: {before:?} {after:?}"
    );

    let before = after;
    step(&load, "child rekey", || {
        for node in ["n1", "n2", "n3"] {
            lab.act(node, Actions::RekeyChild);
        }
        wait_until("children rekeyed", seconds(10), || {
            let now = totals(&lab);
            (now.child_rekeys >= before.child_rekeys + 3)
                .then_some(())
                .ok_or(format!("{now:?}"))
        });
    });

    let before = totals(&lab);
    step(&load, "IKE rekey", || {
        for node in ["n1", "n2", "n3"] {
            lab.act(node, Actions::RekeyIke);
        }
        wait_until("IKE SAs rekeyed", seconds(10), || {
            let now = totals(&lab);
            (now.ike_rekeys >= before.ike_rekeys + 3)
                .then_some(())
                .ok_or(format!("{now:?}"))
        });
    });
    lab.wait_tunnels(seconds(5));
    clear.stop_with_none();

    step(&load, "stop", || drop(lab.testudo(&["stop"]).ok()));
    assert_eq!(lab.phase(), "Disabled");
    let sent = load.stop_without_loss();
    println!("{sent} datagrams, none lost");
    assert_nothing_installed(&lab);
    lab.down();
}

/// Does a step and lets the load run on for a moment; says how long it took and at which rate.
#[track_caller]
fn step(load: &Load, what: &str, act: impl FnOnce()) {
    let (sent, from) = (load.sent(), load.now());
    act();
    let took = load.now() - from;
    load.run_for(Duration::from_millis(1500));
    let rate = f64::from(load.sent() - sent) / (load.now() - from).as_secs_f64();
    println!("{what}: {:.2} s, {rate:.0} datagrams/s", took.as_secs_f32());
}

#[derive(Debug, Default)]
struct Totals {
    child_rekeys: u64,
    ike_rekeys: u64,
    authentications: u64,
}

#[track_caller]
fn totals(lab: &Lab) -> Totals {
    let mut totals = Totals::default();
    for node in &lab.inner().layout().nodes {
        let tunnels = lab
            .tunnels(&node.name)
            .unwrap_or_else(|e| panic!("tunnels of {}: {e}", node.name));
        for tunnel in &tunnels {
            totals.child_rekeys += tunnel.child_rekeys;
            totals.ike_rekeys += tunnel.ike_rekeys;
            totals.authentications += tunnel.authentications;
        }
    }
    totals
}

/// A cluster that was stopped has no rule, route, table or device of ours in a node.
#[track_caller]
fn assert_nothing_installed(lab: &Lab) {
    let looks: [(&[&str], &str); 4] = [
        (&["ip", "rule"], "50050"),
        (&["ip", "-6", "rule"], "50050"),
        (&["ip", "route", "show", "table", "all"], "50050"),
        (&["nft", "list", "tables"], "inet testudo"),
    ];
    for node in ["n1", "n2", "n3"] {
        for (command, ours) in looks {
            wait_until(&format!("{command:?} without ours"), seconds(5), || {
                let out = lab.exec(node, command);
                match out.contains(ours) {
                    true => Err(format!("{node}: {out}")),
                    false => Ok(()),
                }
            });
        }
    }
}

/// `enforcement: Permissive`: what leaves is sealed, what comes in clear is still accepted.
#[test]
fn permissive_enforcement_seals_and_still_accepts_clear() {
    let Some(_turn) = begin("permissive_enforcement_seals_and_still_accepts_clear") else {
        return;
    };
    let lab = Lab::up(Options::VXLAN);
    apply(&lab, "  enforcement: Permissive\n");
    wait_phase(&lab, "Permissive");
    lab.wait_tunnels(seconds(10));
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    load.stop_without_loss();
    clear.stop_with_none();
    for node in ["n1", "n2", "n3"] {
        let tunnels = lab.tunnels(node).expect("an agent answers");
        let sum = |count: fn(&TunnelView) -> u64| tunnels.iter().map(count).sum::<u64>();
        let (sealed, opened) = (sum(|t| t.packets_out), sum(|t| t.packets_in));
        assert!(sealed >= 300 && opened >= 300, "{node}: {tunnels:#?}");
    }
    let report = lab.verify().ok().json();
    assert_eq!(report["phase"], "Permissive", "{report:#}");
    lab.down();
}

/// `full.encapsulation: Always`: ESP crosses the wire inside UDP 4500 and in no other way.
#[test]
fn encapsulation_always_puts_esp_into_udp() {
    let Some(_turn) = begin("encapsulation_always_puts_esp_into_udp") else {
        return;
    };
    let lab = Lab::up(Options::VXLAN);
    apply(&lab, "  full: {encapsulation: Always}\n");
    wait_phase(&lab, "Strict");
    let clear = Watch::clear(&lab);
    let bare = Watch::start(&lab, "ip proto 50");
    // Neither IKE (four zero bytes first) nor a keepalive (one byte).
    let inside = Watch::start(&lab, "udp port 4500 and udp[4:2] > 9 and udp[8:4] != 0");
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    let bare = bare.stop();
    assert!(bare.is_empty(), "bare ESP: {}", bare[0]);
    // `-i any` sees a packet on each link that it crosses, twice; it may miss some.
    let inside = inside.stop().len();
    assert!(inside >= sent as usize, "{inside} in UDP of {sent} sent");
    let tunnels = lab.tunnels("n1").expect("an agent answers");
    for tunnel in &tunnels {
        assert_eq!(tunnel.encapsulation.as_deref(), Some("UDP"), "{tunnel:#?}");
    }
    lab.down();
}

/// Applies the cluster's policy with these further lines of its spec.
#[track_caller]
fn apply(lab: &Lab, lines: &str) {
    let manifest = format!(
        "apiVersion: testudo.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata: {{name: cluster}}\n\
         spec:\n  mode: Full\n  overlay: {{type: VXLAN}}\n{lines}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let file = file.to_str().expect("a path of text");
    lab.testudo(&["apply", "-f", file]).ok();
}

#[track_caller]
fn wait_phase(lab: &Lab, phase: &str) {
    wait_until(&format!("phase {phase}"), seconds(20), || {
        let now = lab.phase();
        match now == phase {
            true => Ok(()),
            false => Err(now),
        }
    });
}
