//! From one build to another and back, under numbered traffic. This program is the other build: the
//! same agent, linked anew, that says another version. It needs a kernel with ESP: `cargo xtask
//! guest`.
//!
//! It has no harness, for the lab starts it as its `testudo agent`.

mod common;

use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::Signal;
use serde_json::{Value, json};

use common::guest::{KERNEL, turn};
use common::{BINARY, Lab, Load, Watch, run, seconds, wait_until};

/// What this build says of itself.
const VERSION: &str = "0.999.0-next";

const NAME: &str = "an_upgrade_and_the_way_back_lose_nothing";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "agent") {
        return testudo::main(Some(VERSION));
    }
    // As a test's harness says it.
    if arguments.iter().any(|word| word == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    let result = std::panic::catch_unwind(|| {
        there_and_back(false);
        there_and_back(true);
    });
    let (word, passed) = if result.is_ok() {
        ("ok", 1)
    } else {
        ("FAILED", 0)
    };
    println!("test {NAME} ... {word}\n");
    println!(
        "test result: {word}. {passed} passed; {} failed; 0 ignored",
        1 - passed
    );
    if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What stands at `place` is this program from now on, for whoever starts it next.
#[track_caller]
fn put(program: &Path, place: &Path) {
    let mut mount = Command::new("mount");
    mount.arg("--bind").args([program, place]);
    run(mount).ok();
}

/// Issue of an upgrade: the agents of one build are stopped as a DaemonSet stops them, those of the next
/// take over; then one goes back, killed, to the build before, which finds what the newer one wrote. The
/// packets do not notice, and none is in clear: also inside UDP, whose sockets go from each agent to the
/// next, over keepers of both builds.
fn there_and_back(in_udp: bool) {
    let _turn = turn(NAME);
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("testudo");
    std::fs::write(&place, "").expect("a place for the program");
    let next = std::env::current_exe().expect("this program");
    put(Path::new(BINARY), &place);
    let lab = Lab::up_with(&place, KERNEL);
    let lab = match in_udp {
        true => lab.made_strict_in_udp(),
        false => lab.made_strict(),
    };
    let first = version(&lab, "n1").expect("a version");
    assert_ne!(first, VERSION);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, 1000);
    put(&next, &place);
    for node in ["n1", "n2"] {
        replaced(&lab, node, Signal::TERM, VERSION);
        load.run_for(seconds(1));
    }
    // A build after this one may write more than this one knows.
    let kept = lab.inner().node_dir("n1").join("state/traffic.json");
    let text = std::fs::read_to_string(&kept).expect("the policy that was kept");
    let mut policy: Value = serde_json::from_str(&text).expect("JSON");
    policy["sinceThen"] = json!({ "colour": "blue" });
    std::fs::write(&kept, policy.to_string()).expect("the policy is written");
    put(Path::new(BINARY), &place);
    replaced(&lab, "n1", Signal::KILL, &first);
    load.run_for(seconds(2));
    assert!(!lab.log("n1").contains("it is not a traffic policy"));
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    for node in ["n1", "n2"] {
        let replaced = lab.log(node).contains("another build's keeper is replaced");
        assert_eq!(replaced, in_udp, "{node}");
    }
    println!("{first} to {VERSION} and back: {sent} datagrams, none lost");
    assert_eq!(version(&lab, "n2").as_deref(), Some(VERSION));
    assert_eq!(lab.phase(), "Strict");
    // Inside UDP a kernel opens ESP in place, in pages that a capture which copies late would still share.
    lab.verify().ok();
    lab.down();
    for _ in 0..3 {
        let mut umount = Command::new("umount");
        umount.arg(&place);
        run(umount).ok();
    }
}

/// Ends a node's agent; the next one, of this version, has SAs of its own and packets leave on them.
#[track_caller]
fn replaced(lab: &Lab, node: &str, signal: Signal, next: &str) {
    let first_spi = || -> Result<String, String> {
        let tunnels = lab.tunnels(node)?;
        let child = tunnels
            .first()
            .and_then(|t| t.children.first().filter(|_| t.up));
        Ok(child.ok_or("no child")?.spi_in.clone())
    };
    let old = wait_until("a tunnel", seconds(60), first_spi);
    assert!(lab.agent(node).signal(signal));
    wait_until("the other build's agent with new SAs", seconds(90), || {
        let (said, now) = (version(lab, node), first_spi()?);
        let there = said.as_deref() == Some(next) && now != old;
        there.then_some(()).ok_or(format!("{said:?}, {now}"))
    });
    println!("{node}: {signal:?}, then {next}");
}

/// What a node's agent says in the store that it is.
fn version(lab: &Lab, node: &str) -> Option<String> {
    let status = lab.json(&["status", "--timeout", "30s"]);
    let nodes = status["nodes"].as_array()?;
    let named = nodes.iter().find(|n| n["name"] == node)?;
    Some(named["agentVersion"].as_str()?.to_owned())
}
