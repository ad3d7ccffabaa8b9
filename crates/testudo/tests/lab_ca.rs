//! One CA follows another in a cluster that works: nothing lost, nothing in clear, whoever is killed
//! meanwhile, and a node that is down is waited for.

mod common;

use rustix::process::Signal;
use serde_json::Value;

use common::{Lab, Load, Options, Watch, begin, seconds, wait_until};

/// Datagrams a second, in all.
const RATE: u32 = 3000;

/// The rotation as `ca show` has it.
#[track_caller]
fn rotation(lab: &Lab) -> Value {
    lab.json(&["ca", "show"])["rotation"].clone()
}

/// The CAs of the bundle, by name, the one that signs first.
#[track_caller]
fn cas(lab: &Lab) -> Vec<String> {
    let shown = lab.json(&["ca", "show"]);
    let cas = shown["cas"].as_array().expect("a list");
    let name = |ca: &Value| ca["subject"].as_str().expect("a name").to_owned();
    cas.iter().map(name).collect()
}

/// All is of `ca`: the bundle, each node's certificate, each tunnel's two ends, and the one key on disk.
#[track_caller]
fn all_of(lab: &Lab, ca: &str) {
    assert_eq!(cas(lab), [ca]);
    let listed = lab.json(&["certs", "list"]);
    for certificate in listed["certificates"].as_array().expect("a list") {
        assert_eq!(certificate["issuer"], ca, "{certificate:#}");
    }
    for node in &lab.inner().layout().nodes {
        let tunnels = lab.tunnels(&node.name).expect("an agent answers");
        for tunnel in tunnels {
            assert_eq!(tunnel.local_ca.as_deref(), Some(ca), "{tunnel:#?}");
            assert_eq!(tunnel.remote_ca.as_deref(), Some(ca), "{tunnel:#?}");
        }
    }
    let file = lab.inner().store_dir().join("secrets/ca.pem");
    let text = std::fs::read_to_string(file).expect("the file of the CA");
    assert_eq!(text.matches("BEGIN PRIVATE KEY").count(), 1);
}

/// The controller is killed again and again while one CA follows another under load, and once an agent
/// is; then a whole rotation undisturbed.
#[test]
fn a_new_ca_takes_over_under_load_while_the_controller_is_killed() {
    let Some(_turn) = begin("a_new_ca_takes_over_under_load_while_the_controller_is_killed") else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let first = cas(&lab);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));

    lab.testudo(&["ca", "rotate", "--wait=false"]).ok();
    let mut phases = Vec::new();
    let mut kills = 0;
    wait_until("a rotation that is done", seconds(120), || {
        let status = rotation(&lab);
        let phase = status["phase"].as_str().unwrap_or("?").to_owned();
        if phase == "Settled" && status["rotation"] == 1 {
            return Ok(());
        }
        // In each step that is seen, and before the first: one that is killed all the time cannot go on.
        if phases.last() != Some(&phase)
            && let Some(process) = lab.inner().controller_process()
        {
            kills += u32::from(process.signal(Signal::KILL));
            phases.push(phase);
        }
        Err(format!("{status:#}"))
    });
    println!("{kills} kills of the controller, seen: {phases:?}");
    assert!(kills > 0, "nobody was killed");
    let second = cas(&lab);
    assert_ne!(first, second);
    all_of(&lab, &second[0]);

    let answer = lab.testudo(&["ca", "rotate", "--timeout", "120s"]).ok();
    println!("{answer}");
    for word in ["Issuing", "Settled", "n1: ", "n2: ", "n3: "] {
        assert!(answer.err.contains(word), "{word}: {answer}");
    }
    let third = cas(&lab);
    assert_ne!(second, third);
    all_of(&lab, &third[0]);
    load.run_for(seconds(1));
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    lab.down();
}

/// A node that does not answer holds the rotation, is named by every verb, and goes on when it is back;
/// meanwhile the rotation can be taken back.
#[test]
fn a_node_that_is_down_holds_the_rotation_and_it_can_be_taken_back() {
    let Some(_turn) = begin("a_node_that_is_down_holds_the_rotation_and_it_can_be_taken_back")
    else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let old = cas(&lab);
    let silent = lab.agent("n3");
    assert!(silent.signal(Signal::STOP));

    let late = lab.testudo(&["ca", "rotate", "--timeout", "7s"]).expect(3);
    assert!(late.err.contains("n3 (does not trust"), "{late}");
    let second = lab.testudo(&["ca", "rotate"]).expect(1);
    assert!(
        second.err.contains("rotation 1 of the CA goes on"),
        "{second}"
    );
    assert!(second.err.contains("n3"), "{second}");
    let status = lab.testudo(&["status"]).ok();
    assert!(status.out.contains("CA rotation 1: Trusting"), "{status}");
    assert!(status.out.contains("n3 (does not trust"), "{status}");
    assert_eq!(
        lab.json(&["status"])["caRotation"]["waitingOn"][0]["node"],
        "n3"
    );
    let both = cas(&lab);
    assert_eq!((both.len(), &both[..1]), (2, &old[..]));

    let back = lab.testudo(&["ca", "rotate", "--abort"]).ok();
    assert!(back.out.contains("taken back"), "{back}");
    assert_eq!(cas(&lab), old);
    let none = lab.testudo(&["ca", "rotate", "--abort"]).expect(1);
    assert!(none.err.contains("no rotation"), "{none}");

    lab.testudo(&["ca", "rotate", "--wait=false"]).ok();
    wait_until("a rotation that waits", seconds(20), || {
        let status = rotation(&lab);
        let held = status["phase"] == "Trusting" && status["waitingOn"][0]["node"] == "n3";
        held.then_some(()).ok_or(format!("{status:#}"))
    });
    assert!(silent.signal(Signal::CONT));
    wait_until("a rotation that is done", seconds(90), || {
        let status = rotation(&lab);
        let done = status["phase"] == "Settled" && status["rotation"] == 2;
        done.then_some(()).ok_or(format!("{status:#}"))
    });
    let new = cas(&lab);
    assert_ne!(new, old);
    lab.wait_tunnels(seconds(30));
    all_of(&lab, &new[0]);
    lab.verify().ok();
    lab.down();
}
