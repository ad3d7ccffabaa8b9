//! A dual-stack cluster whose CPUs have SAs of their own (RFC 9611): negotiated, replaced, left by a
//! killed agent and removed, under numbered traffic. It needs a kernel with ESP: `cargo xtask guest`.

mod common;

use std::collections::BTreeSet;

use rustix::process::Signal;
use testudo_agent::api::{Actions, ChildView, TunnelView};

use common::guest::{KERNEL, turn};
use common::{Lab, Load, Options, Watch, seconds, wait_until};

const NODES: [&str; 2] = ["n1", "n2"];

/// Applies the policy with so many SAs for CPUs.
#[track_caller]
fn apply(lab: &Lab, per_cpu: u32) {
    let manifest = format!(
        "apiVersion: testudo.dev/v1alpha1\n\
         kind: EncryptionPolicy\n\
         metadata: {{name: cluster}}\n\
         spec:\n  mode: Full\n  overlay: {{type: VXLAN}}\n  datapath: Kernel\n  \
         esp: {{perCpu: {per_cpu}}}\n"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let file = file.to_str().expect("a path of text");
    lab.testudo(&["apply", "-f", file]).ok();
}

fn sending(tunnel: &TunnelView, resource: u32) -> Option<&ChildView> {
    let mut children = tunnel.children.iter();
    children.find(|child| child.sending && child.resource == resource)
}

/// Waits until both families of both nodes have these children, sending, and nothing else.
#[track_caller]
fn settled(lab: &Lab, resources: &[u32]) {
    wait_until("the children of each CPU", seconds(120), || {
        for node in NODES {
            let tunnels = lab.tunnels(node)?;
            if tunnels.len() != 2 {
                return Err(format!("{node} has {} tunnels", tunnels.len()));
            }
            for tunnel in &tunnels {
                let all = tunnel.children.len() == resources.len();
                let sends = |resource: &u32| sending(tunnel, *resource).is_some();
                if !all || !resources.iter().all(sends) {
                    let found = tunnel.children.iter().map(|c| (c.resource, c.sending));
                    return Err(format!("{node}: {:?}", found.collect::<Vec<_>>()));
                }
            }
        }
        Ok::<(), String>(())
    });
}

/// The SPIs that a node sends with.
#[track_caller]
fn spis(lab: &Lab, node: &str) -> BTreeSet<String> {
    let tunnels = lab.tunnels(node).expect("an answer");
    let children = tunnels.into_iter().flat_map(|tunnel| tunnel.children);
    children.map(|child| child.spi_out).collect()
}

/// Waits until a node sends with others than these alone.
#[track_caller]
fn replaced(lab: &Lab, node: &str, before: &BTreeSet<String>) {
    wait_until("successors of all", seconds(120), || {
        let tunnels = lab.tunnels(node)?;
        let mut children = tunnels.iter().flat_map(|tunnel| &tunnel.children);
        match children.find(|child| before.contains(&child.spi_out)) {
            Some(child) => Err(format!("{} stands", child.spi_out)),
            None => Ok(()),
        }
    });
}

/// SAs in a node's kernel.
#[track_caller]
fn sas(lab: &Lab, node: &str) -> usize {
    let listed = lab.exec(node, &["ip", "-o", "xfrm", "state"]);
    listed.lines().count()
}

#[test]
fn each_cpu_has_its_own_and_a_killed_agent_is_not_noticed() {
    let _turn = turn("each_cpu_has_its_own_and_a_killed_agent_is_not_noticed");
    let lab = Lab::strict(Options {
        family: "dual",
        ..KERNEL
    });
    settled(&lab, &[0]);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, 500);
    apply(&lab, 1);
    settled(&lab, &[0, 1]);
    load.run_for(seconds(3));
    // Its one CPU sends on its own.
    for node in NODES {
        for tunnel in lab.tunnels(node).expect("an answer") {
            let of_cpu = sending(&tunnel, 1).expect("one that sends");
            let family = &tunnel.address_family;
            println!(
                "{node} {family}: {} packets on the CPU's own SA",
                of_cpu.packets_out
            );
            assert!(
                of_cpu.packets_out > 0 || tunnel.packets_out == 0,
                "{tunnel:#?}"
            );
        }
    }
    let before = spis(&lab, "n1");
    assert_eq!(before.len(), 4);
    lab.act("n1", Actions::RekeyChild);
    replaced(&lab, "n1", &before);
    settled(&lab, &[0, 1]);
    for (node, signal) in [("n1", Signal::KILL), ("n2", Signal::TERM)] {
        let (old, before) = (lab.agent(node), spis(&lab, "n1"));
        assert!(old.signal(signal));
        wait_until("a new agent", seconds(60), || match lab.tunnels(node) {
            Ok(_) if lab.agent(node) != old => Ok(()),
            other => Err(format!("{other:?}")),
        });
        replaced(&lab, "n1", &before);
        settled(&lab, &[0, 1]);
        load.run_for(seconds(1));
    }
    apply(&lab, 0);
    settled(&lab, &[0]);
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    // One pair a family, when the last of before a restart are gone.
    wait_until("two pairs of SAs", seconds(90), || {
        let all = NODES.map(|node| sas(&lab, node));
        (all == [4, 4]).then_some(()).ok_or(format!("{all:?}"))
    });
    assert_eq!(lab.phase(), "Strict");
    lab.down();
}
