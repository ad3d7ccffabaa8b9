//! One CA follows another while the kernel's own ESP carries the packets: none is lost, none in clear.
//! It needs a kernel with ESP: `cargo xtask guest`.

mod common;

use rustix::process::Signal;
use serde_json::Value;

use common::guest::{KERNEL, turn};
use common::{Lab, Load, Watch, seconds, wait_until};

/// Datagrams a second, in all.
const RATE: u32 = 2000;

#[test]
fn a_new_ca_takes_over_and_nothing_is_lost() {
    let _turn = turn("a_new_ca_takes_over_and_nothing_is_lost");
    let lab = Lab::strict(KERNEL);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    let mut before = cas(&lab);
    for (rotation, kill) in [(1, false), (2, true)] {
        let began = load.now();
        lab.testudo(&["ca", "rotate", "--wait=false"]).ok();
        let mut killed = false;
        let mut phases = Vec::new();
        // The guest's one processor carries the load too.
        wait_until("a rotation that is done", seconds(240), || {
            let status = lab.json(&["ca", "show"])["rotation"].clone();
            let phase = status["phase"].as_str().unwrap_or("?").to_owned();
            if phases.last() != Some(&phase) {
                phases.push(phase.clone());
            }
            if phase == "Settled" && status["rotation"] == rotation {
                return Ok(());
            }
            if kill && !killed && status["rotation"] == rotation {
                let process = lab.inner().controller_process();
                killed = process.is_some_and(|process| process.signal(Signal::KILL));
            }
            Err(format!("{status:#}"))
        });
        let took = load.now() - began;
        println!("rotation {rotation}: {took:.2?}, controller killed: {killed}, seen {phases:?}");
        let after = cas(&lab);
        assert_eq!(after.len(), 1);
        assert_ne!(before, after);
        for node in ["n1", "n2"] {
            let tunnels = wait_until("an agent's answer", seconds(60), || lab.tunnels(node));
            for tunnel in tunnels {
                assert_eq!(tunnel.local_ca.as_ref(), after.first(), "{tunnel:#?}");
                assert_eq!(tunnel.remote_ca.as_ref(), after.first(), "{tunnel:#?}");
            }
        }
        before = after;
    }
    load.run_for(seconds(1));
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    lab.down();
}

/// The CAs of the bundle, by name, the one that signs first.
#[track_caller]
fn cas(lab: &Lab) -> Vec<String> {
    let shown = lab.json(&["ca", "show"]);
    let cas = shown["cas"].as_array().expect("a list");
    let name = |ca: &Value| ca["subject"].as_str().expect("a name").to_owned();
    cas.iter().map(name).collect()
}
