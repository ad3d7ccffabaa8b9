//! ESP inside UDP outlives the agent: the kernel opens it while somebody holds the socket. Needs a
//! kernel with ESP: `cargo xtask guest`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use testudo_lab::{MARK, Process, marked};

use common::guest::{KERNEL, turn};
use common::{BINARY, Lab, Load, Options, Watch, seconds, wait_until};

/// Datagrams a second, in all.
const RATE: u32 = 1000;
/// How long a node is without an agent.
const AWAY: Duration = Duration::from_secs(3);

/// The keepers of a lab by the end of their socket's path, `n1/agent.keeper`.
fn keepers(lab: &Lab) -> BTreeMap<String, Process> {
    let all = marked(lab.inner().id()).into_iter();
    let named = all.filter_map(|process| {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        let at = words
            .windows(2)
            .position(|pair| pair == ["agent", "keep"])?;
        let socket = words[at..].iter().find(|word| word.ends_with(".keeper"))?;
        let mut parts = socket.rsplit('/');
        let (file, node) = (parts.next()?, parts.next()?);
        Some((format!("{node}/{file}"), process))
    });
    named.collect()
}

/// The keeper of a node, another one than `not`.
#[track_caller]
fn keeper(lab: &Lab, node: &str, not: Option<Process>) -> Process {
    let socket = keeper_socket(lab, node);
    let file = socket.file_name().expect("a file").to_string_lossy();
    let name = format!("{node}/{file}");
    wait_until("a keeper", seconds(60), || {
        let all = keepers(lab);
        let found = all.get(&name).copied().filter(|found| Some(*found) != not);
        found.ok_or_else(|| format!("{name} of {all:?}"))
    })
}

fn keeper_socket(lab: &Lab, node: &str) -> PathBuf {
    lab.inner().agent_socket(node).with_extension("keeper")
}

#[track_caller]
fn spi(lab: &Lab, node: &str) -> Result<String, String> {
    let tunnels = lab.tunnels(node)?;
    let tunnel = tunnels.first().filter(|tunnel| tunnel.up);
    let child = tunnel.and_then(|tunnel| tunnel.children.first());
    Ok(child.ok_or("no child")?.spi_in.clone())
}

/// Ends agents and lets nobody start them for a while; then the next ones have SAs of their own.
#[track_caller]
fn away(lab: &Lab, load: &Load, nodes: &[&str], signal: Signal) {
    let before: Vec<(Process, String)> = nodes
        .iter()
        .map(|node| (lab.agent(node), spi(lab, node).expect("an SA")))
        .collect();
    assert!(lab.supervisor().signal(Signal::STOP));
    for (agent, _) in &before {
        assert!(agent.signal(signal));
    }
    wait_until("no agent", seconds(60), || {
        let left = before.iter().filter(|(agent, _)| agent.is_alive()).count();
        (left == 0).then_some(()).ok_or(left.to_string())
    });
    let gone = load.now();
    load.run_for(AWAY);
    assert!(lab.supervisor().signal(Signal::CONT));
    for (node, (_, old)) in nodes.iter().zip(&before) {
        wait_until("SAs of the next agent", seconds(90), || {
            let now = spi(lab, node)?;
            (now != *old).then_some(()).ok_or(now)
        });
    }
    println!("{nodes:?} {signal:?}: back after {:?}", load.now() - gone);
    load.run_for(seconds(1));
}

/// Issue: SAs go on carrying traffic while an agent is dead, inside UDP as without. One agent killed,
/// one stopped, both killed; the keeper killed, and then the agent that started its successor.
#[test]
fn esp_inside_udp_goes_on_without_agents() {
    let _turn = turn("esp_inside_udp_goes_on_without_agents");
    let lab = Lab::up(KERNEL).made_strict_in_udp();
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    let first = keeper(&lab, "n1", None);
    away(&lab, &load, &["n1"], Signal::KILL);
    away(&lab, &load, &["n2"], Signal::TERM);
    away(&lab, &load, &["n1", "n2"], Signal::KILL);
    assert_eq!(keeper(&lab, "n1", None), first, "the same one all the time");
    assert_harmless(first);
    assert!(first.signal(Signal::KILL));
    let second = keeper(&lab, "n1", Some(first));
    wait_held(&lab, "n1", second);
    away(&lab, &load, &["n1"], Signal::KILL);
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    // Off, nothing needs them; on again they are there again.
    lab.testudo(&["stop", "--timeout", "180s"]).ok();
    wait_until("no keepers", seconds(30), || {
        let left = keepers(&lab);
        left.is_empty().then_some(()).ok_or(format!("{left:?}"))
    });
    for node in ["n1", "n2"] {
        let bound = lab.inner().inside(node, || {
            let free = |any: &str| std::net::UdpSocket::bind((any, 4500)).is_ok();
            let (v4, v6) = (free("0.0.0.0"), free("::"));
            Ok(v4 && v6)
        });
        assert!(bound.expect("inside"), "{node}: UDP 4500 is not free");
    }
    lab.testudo(&["start", "--timeout", "180s"]).ok();
    keeper(&lab, "n2", None);
    lab.down();
}

/// Of two families the other one, and the other overlay.
#[test]
fn esp_inside_udp_over_ipv6_goes_on_without_agents() {
    let _turn = turn("esp_inside_udp_over_ipv6_goes_on_without_agents");
    let lab = Lab::up(Options {
        overlay: "geneve",
        family: "v6",
        ..KERNEL
    })
    .made_strict_in_udp();
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    away(&lab, &load, &["n1", "n2"], Signal::KILL);
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    lab.down();
}

/// As on Kubernetes, where processes of a container end together: a keeper of its own beside the agent
/// takes over from the one that the agent has started, and all else of the node may end.
#[test]
fn a_keeper_beside_the_agent_takes_over() {
    let _turn = turn("a_keeper_beside_the_agent_takes_over");
    let lab = Lab::up(KERNEL).made_strict_in_udp();
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    let started = keeper(&lab, "n1", None);
    let mut standing = Command::new(BINARY);
    standing
        .args(["agent", "keep", "--socket"])
        .arg(keeper_socket(&lab, "n1"))
        .env(MARK, lab.inner().id())
        .stdin(Stdio::null())
        .process_group(0);
    let mut standing = standing.spawn().expect("a keeper");
    let pid = i32::try_from(standing.id()).expect("a process ID");
    let standing_process = Process::find(pid).expect("it runs");
    wait_until("the end of the other one", seconds(60), || {
        (!started.is_alive())
            .then_some(())
            .ok_or("it lives".to_owned())
    });
    wait_held(&lab, "n1", standing_process);
    // The agent may be about to start another one, which does not come up.
    load.run_for(seconds(2));
    away(&lab, &load, &["n1"], Signal::KILL);
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    assert_eq!(keeper(&lab, "n1", None), standing_process);
    // It stays when nothing needs it, with nothing in its hands.
    lab.testudo(&["stop", "--timeout", "180s"]).ok();
    assert!(standing_process.is_alive());
    assert_eq!(held(&lab, "n1", standing_process), 0);
    lab.down();
    standing.wait().expect("its end");
}

/// UDP sockets of a node's network that a process has.
#[track_caller]
fn held(lab: &Lab, node: &str, process: Process) -> usize {
    // A process may hold sockets of a network that it is not in.
    let listed = lab.inner().inside(node, || {
        let tables = ["udp", "udp6"].map(|table| format!("/proc/thread-self/net/{table}"));
        Ok(tables.map(|table| fs::read_to_string(table).unwrap_or_default()))
    });
    let tables = listed.expect("inside");
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let inodes = lines.filter_map(|line| line.split_ascii_whitespace().nth(9));
    let has = descriptors(process);
    let is_held = |inode: &&str| has.contains(&format!("socket:[{inode}]"));
    inodes.filter(is_held).count()
}

/// Waits until a process holds both sockets of a node.
#[track_caller]
fn wait_held(lab: &Lab, node: &str, process: Process) {
    wait_until("the handover", seconds(60), || {
        let held = held(lab, node, process);
        (held == 2).then_some(()).ok_or(format!("{held} sockets"))
    });
}

fn descriptors(process: Process) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{}/fd", process.pid));
    let links = folder.into_iter().flatten().flatten();
    let read = links.filter_map(|link| fs::read_link(link.path()).ok());
    read.map(|path| path.display().to_string()).collect()
}

/// It has no capability, none of the agent's files, and a session of its own.
#[track_caller]
fn assert_harmless(keeper: Process) {
    let status = fs::read_to_string(format!("/proc/{}/status", keeper.pid)).expect("its status");
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line}: {status}"
        );
    }
    let memory = status.lines().find(|line| line.starts_with("VmRSS"));
    println!("a keeper: {memory:?}");
    let has = descriptors(keeper);
    let allowed = |fd: &String| {
        fd == "/dev/null"
            || fd.ends_with(".keeper.lock")
            || ["socket:", "pipe:", "anon_inode:"]
                .iter()
                .any(|kind| fd.starts_with(kind))
    };
    assert!(has.iter().all(allowed), "{has:?}");
    let stat = fs::read_to_string(format!("/proc/{}/stat", keeper.pid)).expect("its state");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let session = fields.split_ascii_whitespace().nth(3);
    assert_eq!(session, Some(keeper.pid.to_string().as_str()), "{stat}");
}
