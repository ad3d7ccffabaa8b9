//! A node is thrown out of a cluster that works: its peers drop it, what it held is refused, nobody else
//! notices; and it comes back when it is let in again.

mod common;

use rustix::process::Signal;

use common::{Lab, Load, Options, Watch, begin, seconds, wait_until};

/// Datagrams a second, in all.
const RATE: u32 = 2000;

/// The nodes that the store knows.
fn nodes(lab: &Lab) -> Vec<String> {
    let listed = lab.json(&["get", "nodes"]);
    let items = listed["items"].as_array().expect("a list");
    let name = |item: &serde_json::Value| {
        item["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned()
    };
    items.iter().map(name).collect()
}

fn lists(lab: &Lab) -> usize {
    let bundle = lab.json(&["get", "bundle", "cluster"]);
    let lists = bundle["spec"]["revocationLists"]
        .as_str()
        .unwrap_or_default();
    lists.matches("BEGIN X509 CRL").count()
}

/// Waits until no tunnel of `node` to `peer` stands.
#[track_caller]
fn wait_cut(lab: &Lab, node: &str, peer: &str) {
    wait_until("the end of a tunnel", seconds(30), || {
        let tunnels = lab.tunnels(node)?;
        let up = tunnels
            .iter()
            .filter(|tunnel| tunnel.up && tunnel.peer.to_string() == peer);
        match up.count() {
            0 => Ok(()),
            n => Err(format!("{node}: {n} to {peer}")),
        }
    });
}

/// A node is thrown out while its agent runs and its pods talk, with a controller that is killed at that
/// moment. Then it is let in again.
#[test]
fn a_node_that_is_removed_is_dropped_by_its_peers_and_by_nobody_else() {
    let Some(_turn) = begin("a_node_that_is_removed_is_dropped_by_its_peers_and_by_nobody_else")
    else {
        return;
    };
    let lab = Lab::strict(Options::VXLAN);
    let clear = Watch::clear(&lab);
    let load = Load::ring(&lab, RATE);
    load.run_for(seconds(1));
    assert_eq!(lists(&lab), 0);

    let controller = lab.inner().controller_process().expect("it runs");
    lab.testudo(&["delete", "node", "n3"]).ok();
    assert!(controller.signal(Signal::KILL));
    wait_until("a revocation list", seconds(30), || {
        (lists(&lab) == 1).then_some(()).ok_or("none".to_owned())
    });
    // What n3 itself believes does not matter: one that answers last may take an SA for up that its peer
    // has refused.
    for peer in ["n1", "n2"] {
        wait_cut(&lab, peer, "n3");
    }
    let cut = load.now();
    load.run_for(seconds(3));
    let to = load.now();
    // Its agent runs, and does not put it back.
    assert_eq!(nodes(&lab), ["n1", "n2"]);
    let denied = lab.json(&["get", "requests", "n3"]);
    let reason = denied["status"]["denied"].as_str().unwrap_or_default();
    assert!(reason.contains("certs token n3"), "{denied:#}");
    assert_eq!(lab.phase(), "Strict");

    let made = lab.testudo(&["certs", "token", "n3"]).ok();
    std::fs::copy(made.out.trim(), lab.inner().join_token("n3")).expect("the token's file");
    wait_until("the node's return", seconds(90), || {
        let back = nodes(&lab);
        (back.len() == 3).then_some(()).ok_or(format!("{back:?}"))
    });
    lab.wait_tunnels(seconds(60));
    load.wait_all_arrive(seconds(30));
    clear.stop_with_none();
    for outcome in load.stop() {
        let gap = outcome.longest_gap(cut, to);
        println!(
            "{}: {} of {} lost, gap {gap:?}",
            outcome.flow,
            outcome.lost(),
            outcome.sent
        );
        match outcome.flow.contains("n3") {
            // Nothing of it arrived while it was out.
            true => assert!(gap >= to - cut, "{}: {gap:?}", outcome.flow),
            false => assert_eq!(outcome.lost(), 0, "{}: {:?}", outcome.flow, outcome.holes),
        }
    }
    lab.verify().ok();
    lab.down();
}
