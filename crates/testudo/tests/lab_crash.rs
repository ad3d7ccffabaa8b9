//! What dies under traffic in Strict: nothing leaves in clear meanwhile, all comes back, and
//! `down` leaves nothing.

mod common;

use std::time::Duration;

use rustix::process::Signal;
use testudo_agent::api::Actions;

use common::{Flow, Lab, Load, Options, Watch, begin, seconds, testudo, wait_until};

/// Datagrams a second, in all.
const RATE: u32 = 2000;
/// Every flow is back within this time after an agent was killed.
const BACK: Duration = Duration::from_secs(2);

/// L83: kill -9 of an agent.
#[test]
fn a_killed_agent_sends_nothing_in_clear_and_is_back_within_two_seconds() {
    let Some(_turn) = begin("a_killed_agent_sends_nothing_in_clear_and_is_back_within_two_seconds")
    else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    let killed = load.now();
    let old = lab.agent("n2");
    assert!(old.signal(Signal::KILL));
    load.run_for(BACK);
    load.wait_all_arrive(seconds(10));
    let to = load.now();
    clear.stop_with_none();
    for outcome in load.stop() {
        let gap = outcome.longest_gap(killed, to);
        println!(
            "{}: {} of {} lost, longest gap {gap:?}",
            outcome.flow,
            outcome.lost(),
            outcome.sent
        );
        assert!(gap <= BACK, "{}: nothing for {gap:?}", outcome.flow);
        // L119: the tunnel between the others is not touched.
        if !outcome.flow.contains("n2") {
            assert_eq!(outcome.lost(), 0, "{}: {:?}", outcome.flow, outcome.holes);
        }
    }
    assert_ne!(lab.agent("n2"), old);
    lab.wait_tunnels(seconds(5));
    assert_eq!(lab.phase(), "Strict");
    lab.verify().ok();
    lab.down();
}

/// All at once: everybody lost every SA, and everybody begins with everybody.
#[test]
fn all_agents_killed_at_once_come_back() {
    let Some(_turn) = begin("all_agents_killed_at_once_come_back") else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    for node in ["n1", "n2", "n3"] {
        assert!(lab.agent(node).signal(Signal::KILL));
    }
    let killed = load.now();
    load.run_for(seconds(1));
    load.wait_all_arrive(seconds(15));
    let to = load.now();
    lab.wait_tunnels(seconds(10));
    clear.stop_with_none();
    for outcome in load.stop() {
        let gap = outcome.longest_gap(killed, to);
        println!("{}: longest gap {gap:?}", outcome.flow);
    }
    lab.down();
}

/// The controller is not in the traffic's way, and a rotation waits for it.
#[test]
fn a_killed_controller_disturbs_no_traffic() {
    let Some(_turn) = begin("a_killed_controller_disturbs_no_traffic") else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let load = Load::ring(&lab, RATE);
    let controller = lab.inner().controller_process().expect("it runs");
    assert!(controller.signal(Signal::KILL));
    wait_until("a new controller", seconds(3), || {
        lab.inner()
            .controller_process()
            .filter(|process| *process != controller)
            .ok_or_else(|| "none".to_owned())
    });
    lab.testudo(&["certs", "rotate"]).ok();
    load.stop_without_loss();
    assert_eq!(lab.phase(), "Strict");
    lab.down();
}

/// A supervisor that was killed takes nothing with it that `down` would not find.
#[test]
fn a_killed_supervisor_leaves_nothing_behind_after_down() {
    let Some(_turn) = begin("a_killed_supervisor_leaves_nothing_behind_after_down") else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let supervisor = lab.supervisor();
    assert!(supervisor.signal(Signal::KILL));
    wait_until("the supervisor's end", seconds(2), || {
        match supervisor.is_alive() {
            true => Err("it runs".to_owned()),
            false => Ok(()),
        }
    });
    // One of its daemons dies too; nobody starts it again.
    let agent = lab.inner().agent_process("n3");
    if let Some(agent) = agent {
        agent.signal(Signal::KILL);
    }
    lab.down();
}

/// Two labs by name: one store, one set of namespaces, one life each.
#[test]
fn two_labs_live_side_by_side() {
    let Some(_turn) = begin("two_labs_live_side_by_side") else {
        return;
    };
    let small = Options {
        nodes: 2,
        ..Options::VXLAN
    };
    let one = Lab::strict(small);
    let two = Lab::up(small);
    assert_eq!(two.phase(), "Disabled");
    let load = Load::ring(&one, RATE);
    two.testudo(&["init"]).ok();
    two.verify().ok();
    // Which one is meant has to be said.
    let answer = testudo(&["status"]);
    assert_eq!(answer.code, Some(2), "{answer}");
    assert!(answer.err.contains(one.name()), "{answer}");
    assert!(answer.err.contains(two.name()), "{answer}");
    two.down();
    load.stop_without_loss();
    assert_eq!(one.phase(), "Strict");
    one.down();
}

/// A node's object is deleted in routed Strict: packets to its pods are dropped, never sent in
/// clear, though nobody knows the node any more.
#[test]
fn packets_to_a_deleted_nodes_pods_never_leave_in_clear() {
    let Some(_turn) = begin("packets_to_a_deleted_nodes_pods_never_leave_in_clear") else {
        return;
    };
    let mut lab = Lab::strict(Options {
        overlay: "routed",
        ..Options::VXLAN
    });
    lab.expect_errors();
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    // The node is gone for good: its agent would write its object again.
    assert!(lab.supervisor().signal(Signal::STOP));
    let agent = lab.agent("n3");
    assert!(agent.signal(Signal::KILL));
    let object = lab.inner().store_dir().join("nodeencryptions/n3.yaml");
    std::fs::remove_file(&object).expect("n3 has an object");
    wait_until("n1 to forget n3", seconds(10), || {
        let tunnels = lab.tunnels("n1")?;
        match tunnels.iter().any(|tunnel| tunnel.peer.as_str() == "n3") {
            true => Err("a tunnel to n3".to_owned()),
            false => Ok(()),
        }
    });
    load.run_for(seconds(2));
    let now = load.now();
    clear.stop_with_none();
    for outcome in load.stop() {
        let late = outcome.first_after(now - seconds(1));
        match outcome.flow.contains("n3") {
            true => assert_eq!(late, None, "{} arrives", outcome.flow),
            false => assert_eq!(outcome.lost(), 0, "{}: {:?}", outcome.flow, outcome.holes),
        }
    }
    assert!(lab.supervisor().signal(Signal::CONT));
    lab.down();
}

/// An agent that hangs, and one that dies with nobody to start it again: its node is silent.
#[test]
fn a_node_without_a_working_agent_is_silent() {
    let Some(_turn) = begin("a_node_without_a_working_agent_is_silent") else {
        return;
    };
    for overlay in ["vxlan", "routed"] {
        let mut lab = Lab::strict(Options {
            overlay,
            nodes: 2,
            ..Options::VXLAN
        });
        lab.expect_errors();
        let clear = Watch::clear(&lab);
        let load = Load::ring(&lab, RATE);
        let agent = lab.agent("n2");
        assert!(lab.supervisor().signal(Signal::STOP));
        assert!(agent.signal(Signal::STOP));
        load.run_for(seconds(2));
        assert!(agent.signal(Signal::KILL));
        load.run_for(seconds(2));
        let silent = load.now();
        assert!(lab.supervisor().signal(Signal::CONT));
        load.wait_all_arrive(seconds(15));
        clear.stop_with_none();
        for outcome in load.stop() {
            let from = silent.checked_sub(seconds(1)).expect("four seconds in");
            let first = outcome.first_after(from);
            assert!(
                first.is_some_and(|first| first > Duration::from_millis(900)),
                "{overlay}, {}: arrived without an agent",
                outcome.flow
            );
        }
        lab.down();
    }
}

/// A packet that a pod of another node sends in clear is not accepted: somebody on the underlay
/// forges a VXLAN packet in Strict.
#[test]
fn forged_clear_packets_are_not_accepted() {
    let Some(_turn) = begin("forged_clear_packets_are_not_accepted") else {
        return;
    };
    let lab = Lab::strict(Options {
        nodes: 2,
        ..Options::VXLAN
    });
    let load = Load::ring(&lab, RATE);
    // n2 loses its rules: what its pods send is in clear from now on, as from an attacker.
    assert!(lab.supervisor().signal(Signal::STOP));
    assert!(lab.agent("n2").signal(Signal::STOP));
    for family in ["-4", "-6"] {
        for priority in ["3899", "3900", "3901"] {
            let netns = lab.inner().layout().nodes[1].netns.clone();
            let mut command = std::process::Command::new("ip");
            command.args(["-n", &netns, family, "rule", "del", "priority", priority]);
            // As many as there are of this priority; the last attempt fails.
            while command
                .stderr(std::process::Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
            {}
        }
    }
    lab.exec("n2", &["nft", "delete", "table", "inet", "testudo"]);
    let from = load.now();
    let clear = Watch::clear(&lab);
    load.run_for(seconds(2));
    let to = load.now();
    let seen = clear.stop();
    assert!(seen.len() > 100, "n2 should have sent in clear: {seen:?}");
    for outcome in load.stop() {
        let settled = from + Duration::from_millis(300);
        let gap = outcome.longest_gap(settled, to);
        assert!(
            outcome.flow.starts_with("n1") || gap >= to - settled,
            "{}: a clear packet was accepted",
            outcome.flow
        );
    }
    lab.down();
}

/// L93: new SPIs on both sides after each restart, and no counter runs on.
#[test]
fn an_agent_killed_again_and_again_heals_each_time() {
    let Some(_turn) = begin("an_agent_killed_again_and_again_heals_each_time") else {
        return;
    };
    let lab = Lab::strict(Options {
        nodes: 2,
        ..Options::VXLAN
    });
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    for round in 0..4 {
        let node = ["n1", "n2"][round % 2];
        // In the middle of an exchange, as often as not.
        let other = ["n2", "n1"][round % 2];
        let action = [Actions::RekeyChild, Actions::RekeyIke][round / 2];
        lab.act(other, action);
        assert!(lab.agent(node).signal(Signal::KILL));
        load.run_for(Duration::from_millis(300));
        load.wait_all_arrive(seconds(10));
        lab.wait_tunnels(seconds(10));
    }
    clear.stop_with_none();
    drop(load.stop());
    lab.verify().ok();
    lab.down();
}

/// L119: a node that comes to a strict cluster starts strict, and the others do not notice.
#[test]
fn a_node_that_joins_disturbs_nobody() {
    let Some(_turn) = begin("a_node_that_joins_disturbs_nobody") else {
        return;
    };
    let lab = Lab::up(Options::VXLAN);
    // n3 has not come yet.
    assert!(lab.supervisor().signal(Signal::STOP));
    assert!(lab.agent("n3").signal(Signal::KILL));
    let object = lab.inner().store_dir().join("nodeencryptions/n3.yaml");
    let _ = std::fs::remove_file(object);
    lab.testudo(&["init"]).ok();
    let address = |node: usize| lab.inner().layout().nodes[node].pods[0].addresses[0];
    let flows = vec![
        Flow {
            from: "n1/p1".to_owned(),
            to: "n2/p1".to_owned(),
            address: address(1),
        },
        Flow {
            from: "n2/p1".to_owned(),
            to: "n1/p1".to_owned(),
            address: address(0),
        },
    ];
    let load = Load::start(&lab, flows, RATE);
    assert!(lab.supervisor().signal(Signal::CONT));
    lab.wait_tunnels(seconds(15));
    load.stop_without_loss();
    wait_until("n3 to be strict too", seconds(10), || match lab.verify() {
        answer if answer.code == Some(0) => Ok(()),
        answer => Err(answer.to_string()),
    });
    lab.down();
}
