//! Clusters whose packets the kernel's own ESP carries, from nothing to Strict and back, with every
//! change of keys and every kind of accident, under numbered traffic. They need a kernel with ESP:
//! `cargo xtask guest`.

mod common;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testudo_agent::api::TunnelView;
use testudo_datapath_kernel::PRIORITY_BLOCK;
use testudo_netlink::{Netlink, Xfrm, XfrmDirection};

use common::guest::{KERNEL, rekey_child, rekey_ike, sum, turn};
use common::{Lab, Load, Options, Watch, seconds, testudo, wait_until};

/// Datagrams a second, in all, while something is changed.
const RATE: u32 = 2000;
/// How long whatever happens may keep packets from arriving.
const BACK: Duration = Duration::from_secs(2);
/// A rebooted node's own traffic waits so long at most from its agent's start.
const HEALED: Duration = Duration::from_secs(2);
/// Request IDs of our SAs and templates begin so, as `ip xfrm` prints them.
const OURS: std::ops::RangeInclusive<u32> = 0x7e57_0000..=0x7e57_ffff;

#[test]
fn vxlan_is_strict_and_off_again() {
    there_and_back("vxlan", &["v4", "v6", "dual"]);
}

#[test]
fn geneve_is_strict_and_off_again() {
    there_and_back("geneve", &["v4", "v6"]);
}

#[test]
fn routed_pods_are_strict_and_off_again() {
    there_and_back("routed", &["v4", "v6"]);
}

/// The network of OVN and its kin: Geneve ports of Open vSwitch, whose packets the kernel routes
/// like any other, UDP port and all.
#[test]
fn open_vswitch_is_strict_rekeys_and_is_off_again() {
    let _turn = turn("open_vswitch_is_strict_rekeys_and_is_off_again");
    let lab = Lab::up(Options {
        overlay: "geneve",
        ovs: true,
        ..KERNEL
    });
    let report = lab.verify().ok().json();
    assert_ne!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    let load = Load::ring(&lab, RATE / 2);
    lab.testudo(&["init", "--timeout", "180s"]).ok();
    load.run_for(seconds(1));
    assert_eq!(lab.phase(), "Strict");
    let watch = Watch::clear(&lab);
    let report = lab.verify().ok().json();
    assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
    rekey_child(&lab, "n1", seconds(20));
    load.run_for(seconds(1));
    let strict = load.stop_without_loss();
    // Killed and started again it gets its flows again, and nothing passes in clear meanwhile.
    let name = "n1-vswitchd";
    let killed = lab.inner().switch_process(name).expect("a switch daemon");
    assert!(killed.signal(Signal::KILL));
    let again = ["n1: the flows of its switch are written again"];
    lab.wait_log("supervisor", 0, &again, seconds(30));
    assert_ne!(lab.inner().switch_process(name), Some(killed));
    let load = Load::ring(&lab, RATE / 2);
    load.run_for(seconds(1));
    watch.stop_with_none();
    lab.testudo(&["stop", "--timeout", "180s"]).ok();
    load.run_for(seconds(1));
    let sent = strict + load.stop_without_loss();
    println!("{sent} datagrams, none lost");
    for node in ["n1", "n2"] {
        let left = ours(&lab, node);
        assert!(left.is_empty(), "{node}: {}", left.join("; "));
    }
    lab.verify().ok();
    lab.down();
}

/// L83, L117: on and off lose nothing; in between nothing is in clear, every flow is as it should
/// be, and what others have in the same kernel stays.
#[track_caller]
fn there_and_back(overlay: &'static str, families: &[&'static str]) {
    let _turn = turn(overlay);
    for family in families.iter().copied() {
        let lab = Lab::up(Options {
            overlay,
            family,
            ..KERNEL
        });
        add_strangers(&lab);
        let load = Load::ring(&lab, RATE / 2);
        // The guest's one processor carries the load too: a roll-out takes what is left of it.
        let took = lab.testudo(&["init", "--timeout", "180s"]).ok().took;
        println!("{overlay} {family}: init took {:.2} s", took.as_secs_f32());
        load.run_for(seconds(1));
        let status = lab.status();
        assert_eq!(status["phase"], "Strict", "{status:#}");
        for node in status["nodes"].as_array().expect("nodes") {
            assert_eq!(node["datapath"], "kernel", "{node:#}");
        }
        let watch = Watch::clear(&lab);
        let report = lab.verify().ok().json();
        assert_eq!(report["wire"]["clear_protected_packets"], 0, "{report:#}");
        watch.stop_with_none();
        lab.testudo(&["stop", "--timeout", "180s"]).ok();
        load.run_for(seconds(1));
        let sent = load.stop_without_loss();
        println!("{overlay} {family}: {sent} datagrams, none lost");
        for node in ["n1", "n2"] {
            wait_until("a kernel without ours", seconds(5), || {
                let left = ours(&lab, node);
                left.is_empty().then_some(()).ok_or(left.join("; "))
            });
            assert_strangers(&lab, node);
        }
        lab.down();
    }
}

/// Another program's SA and policies, for addresses that nobody has.
fn add_strangers(lab: &Lab) {
    for node in ["n1", "n2"] {
        for line in [
            "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1234 reqid 7 mode tunnel \
             aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128",
            "xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 dir out priority 100 \
             tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel",
            "xfrm policy add src 192.0.2.9/32 dst 192.0.2.8/32 dir in action block priority 58740",
        ] {
            ip(lab, node, line);
        }
    }
}

#[track_caller]
fn assert_strangers(lab: &Lab, node: &str) {
    let states = ip(lab, node, "xfrm state");
    assert!(states.contains("spi 0x00001234"), "{node}: {states}");
    let policies = ip(lab, node, "xfrm policy");
    for theirs in ["priority 100 ", "src 192.0.2.9/32 dst 192.0.2.8/32"] {
        assert!(policies.contains(theirs), "{node}: {policies}");
    }
}

/// What `ip` says inside a node.
#[track_caller]
fn ip(lab: &Lab, node: &str, line: &str) -> String {
    let words: Vec<&str> = std::iter::once("ip")
        .chain(line.split_ascii_whitespace())
        .collect();
    lab.exec(node, &words)
}

/// SAs and policies in a node's kernel that bear a request ID of ours, a line each.
#[track_caller]
fn ours(lab: &Lab, node: &str) -> Vec<String> {
    of_ours(&(ip(lab, node, "xfrm state") + &ip(lab, node, "xfrm policy")))
}

fn of_ours(listed: &str) -> Vec<String> {
    let bears = |line: &&str| {
        let mut words = line.split_ascii_whitespace();
        words.find(|word| *word == "reqid");
        let id = words.next().and_then(|id| id.parse::<u32>().ok());
        id.is_some_and(|id| OURS.contains(&id))
    };
    let found = listed.lines().filter(bears);
    found.map(|line| line.trim().to_owned()).collect()
}

/// SAs of ours in a node's kernel.
#[track_caller]
fn sas(lab: &Lab, node: &str) -> usize {
    of_ours(&ip(lab, node, "xfrm state")).len()
}

/// L118, L120, and the make-before-break of every change: fifty rekeys of children, five of the IKE
/// SA, a rotation of the certificates.
#[test]
fn changes_of_keys_lose_nothing() {
    let _turn = turn("changes_of_keys_lose_nothing");
    let lab = Lab::strict(KERNEL);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    for round in 1..=50 {
        let node = ["n1", "n2"][round % 2];
        rekey_child(&lab, node, seconds(20));
    }
    for round in 1..=5 {
        let node = ["n1", "n2"][round % 2];
        rekey_ike(&lab, node, seconds(20));
    }
    let before = sum(&lab, |t| t.authentications);
    lab.testudo(&["certs", "rotate"]).ok();
    assert!(sum(&lab, |t| t.authentications) > before);
    lab.wait_tunnels(seconds(10));
    let sent = load.stop_without_loss();
    clear.stop_with_none();
    println!("{sent} datagrams, none lost");
    wait_until("one pair of SAs", seconds(45), || one_pair(&lab));
    lab.down();
}

/// Each node has one SA in each direction, and no old ones.
fn one_pair(lab: &Lab) -> Result<(), String> {
    for node in ["n1", "n2"] {
        let standing = sas(lab, node);
        if standing != 2 {
            return Err(format!("{node} has {standing} SAs"));
        }
    }
    Ok(())
}

/// The kernel goes on, also when the agent is stopped as for a new build; nothing is lost, and
/// nothing old is left a minute later.
#[test]
fn a_killed_agent_is_not_noticed_by_traffic() {
    let _turn = turn("a_killed_agent_is_not_noticed_by_traffic");
    for (overlay, family) in [("vxlan", "v4"), ("routed", "v6"), ("geneve", "v4")] {
        let lab = Lab::strict(Options {
            overlay,
            family,
            ..KERNEL
        });
        let clear = Watch::clear(&lab);
        let load = Load::ring(&lab, RATE / 2);
        for (node, signal) in [
            ("n1", Signal::KILL),
            ("n2", Signal::TERM),
            ("n1", Signal::KILL),
        ] {
            let old = lab.agent(node);
            let authenticated = lab.tunnels("n1").expect("an answer")[0].clone();
            assert!(old.signal(signal));
            wait_until("a new agent with new SAs", seconds(60), || {
                let tunnels = lab.tunnels("n1")?;
                let tunnel = tunnels.first().ok_or("no tunnel")?;
                let fresh = tunnel.up && tunnel.children[0] != authenticated.children[0];
                let spi = |t: &TunnelView| t.children.first().map(|c| c.spi_in.clone());
                (fresh && spi(tunnel) != spi(&authenticated))
                    .then_some(())
                    .ok_or_else(|| format!("{:?}", spi(tunnel)))
            });
            load.run_for(seconds(1));
            assert_ne!(lab.agent(node), old);
        }
        let sent = load.stop_without_loss();
        clear.stop_with_none();
        println!("{overlay} {family}: {sent} datagrams, none lost");
        wait_until("one pair of SAs", seconds(60), || one_pair(&lab));
        assert_eq!(lab.phase(), "Strict");
        lab.verify().ok();
        lab.down();
    }
}

/// Everybody at once: exchanges cross, and the SAs of before carry packets meanwhile. On one processor
/// for all of it agents are starved between one message and the next; nothing is lost and nothing is
/// in clear. Then the same where one agent, come back, does nothing for a while: whatever it has begun
/// or been asked, its peers send on nothing that it does not have.
#[test]
fn all_agents_killed_at_once_come_back() {
    let _turn = turn("all_agents_killed_at_once_come_back");
    let lab = Lab::strict(Options { nodes: 3, ..KERNEL });
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE / 2);
    for pause in [None, Some(100), Some(300), Some(600)] {
        let nodes = ["n1", "n2", "n3"];
        let old = nodes.map(|node| lab.agent(node));
        let killed = load.now();
        for agent in &old {
            assert!(agent.signal(Signal::KILL));
        }
        if let Some(after) = pause {
            let next = wait_until("the next agent", seconds(60), || {
                let new = lab.inner().agent_process("n1");
                new.filter(|new| *new != old[0]).ok_or("none".to_owned())
            });
            load.run_for(Duration::from_millis(after));
            assert!(next.signal(Signal::STOP));
            load.run_for(seconds(4));
            assert!(next.signal(Signal::CONT));
        }
        load.run_for(seconds(3));
        lab.wait_tunnels(seconds(60));
        load.run_for(seconds(2));
        println!("{pause:?}: back after {:?}", load.now() - killed);
    }
    clear.stop_with_none();
    for node in ["n1", "n2", "n3"] {
        println!("{node}: {}", dropped(&lab, node));
    }
    let sent = load.stop_without_loss();
    println!("{sent} datagrams, none lost");
    lab.down();
}

/// What a node's XFRM has dropped since it was made, by reason.
#[track_caller]
fn dropped(lab: &Lab, node: &str) -> String {
    let listed = lab.exec(node, &["cat", "/proc/net/xfrm_stat"]);
    let counted = listed.lines().filter_map(|line| {
        let (reason, number) = line.split_once(char::is_whitespace)?;
        let number = number.trim();
        (number != "0").then(|| format!("{reason} {number}"))
    });
    let counted: Vec<String> = counted.collect();
    match counted.is_empty() {
        true => "nothing dropped".to_owned(),
        false => counted.join(", "),
    }
}

/// Another program flushes all SAs: packets wait for new ones, none leaves in clear.
#[test]
fn flushed_sas_are_made_anew_at_once() {
    let _turn = turn("flushed_sas_are_made_anew_at_once");
    let lab = Lab::strict(KERNEL);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    for node in ["n1", "n2"] {
        load.run_for(seconds(1));
        let from = load.now();
        ip(&lab, node, "xfrm state flush");
        load.wait_all_arrive(seconds(10));
        println!("{node}: back after {:?}", load.now() - from);
        load.run_for(seconds(1));
    }
    clear.stop_with_none();
    for outcome in load.stop() {
        println!(
            "{}: {} of {} lost",
            outcome.flow,
            outcome.lost(),
            outcome.sent
        );
    }
    lab.down();
}

/// Another program flushes all policies: they are put back, and in the moment between the peer
/// takes nothing in clear.
#[test]
fn flushed_policies_are_put_back() {
    let _turn = turn("flushed_policies_are_put_back");
    let lab = Lab::strict(KERNEL);
    let before = ours(&lab, "n1").len();
    ip(&lab, "n1", "xfrm policy flush");
    wait_until("the policies", BACK, || {
        let now = ours(&lab, "n1").len();
        (now == before)
            .then_some(())
            .ok_or(format!("{now} of {before}"))
    });
    lab.verify().ok();
    lab.down();
}

/// A reboot: SAs and policies of one node are gone, its link comes up when its agent has closed it. It
/// is back two seconds after its agent's start, and nobody sends anything in clear meanwhile.
///
/// A machine that others use too gives the guest's one processor when it likes. The same program that
/// does nothing but say its version says how slow it is just now: eight times that is enough for the start
/// of an agent and an agreement on keys, and for no wait.
#[test]
fn a_rebooted_node_is_back_and_was_never_in_clear() {
    let _turn = turn("a_rebooted_node_is_back_and_was_never_in_clear");
    let lab = Lab::strict(KERNEL);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    ip(&lab, "n1", "link set eth0 down");
    // Nobody starts the agent again before all is gone.
    assert!(lab.supervisor().signal(Signal::STOP));
    let before = start_takes();
    assert!(lab.agent("n1").signal(Signal::KILL));
    for what in ["xfrm state flush", "xfrm policy flush"] {
        ip(&lab, "n1", what);
    }
    assert!(lab.supervisor().signal(Signal::CONT));
    let started = load.now();
    let waited = lab.inner().inside("n1", || {
        let mut xfrm = Xfrm::open()?;
        let begin = Instant::now();
        // Policies come one by one: it is the last to block that closes it, out and in.
        let closed = |xfrm: &mut Xfrm| -> anyhow::Result<bool> {
            let policies = xfrm.policies()?;
            let blocks = |direction| {
                let mut all = policies.iter();
                all.any(|p| p.priority == PRIORITY_BLOCK && p.direction == direction)
            };
            Ok(blocks(XfrmDirection::Out) && blocks(XfrmDirection::In))
        };
        while !closed(&mut xfrm)? {
            anyhow::ensure!(begin.elapsed() < seconds(60), "the node stays open");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut netlink = Netlink::open()?;
        let link = netlink.link_index("eth0")?;
        netlink.set_up(link)?;
        Ok(begin.elapsed())
    });
    println!("closed after {:?}", waited.expect("a closed node"));
    load.wait_all_arrive(seconds(60));
    let back = load.now() - started;
    clear.stop_with_none();
    let takes = before.max(start_takes());
    println!("back after {back:?}, where to say the version takes {takes:?}");
    for outcome in load.stop() {
        let back = outcome.first_after(started).expect("it arrives again");
        println!("{}: the first after {back:?}", outcome.flow);
        assert!(back <= HEALED.max(8 * takes), "{}: {back:?}", outcome.flow);
    }
    lab.down();
}

/// How long the program takes to start and end just now: the middle one of five times.
#[track_caller]
fn start_takes() -> Duration {
    let mut times: Vec<Duration> = (0..5).map(|_| testudo(&["--version"]).ok().took).collect();
    times.sort();
    times[2]
}
