//! The cluster, the chart on it, and pods.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use testudo_kube_env::chart::{self, NAMESPACE};
use testudo_kube_env::{Cluster, Options, image};

use super::Datapath;
use super::world::{OURS, PATIENCE, World, say, text, until};
use crate::common::BINARY;

/// At the start: the third is the one that is added.
const NODES: u8 = 2;

/// As nodes are that are registered with it: nothing but ours may start on them.
pub(super) const TAINT: &str = "testudo.dev/agent-not-ready=:NoSchedule";

/// Nodes that have the image of the program under test.
pub(super) fn cluster(name: &str, datapath: Datapath) -> World {
    let dir = tempfile::tempdir().expect("a folder");
    let chart = chart::package(Path::new(BINARY), dir.path(), &say).expect("a chart");
    let archive = dir.path().join("image.tar");
    let tag = format!("{}:{}", image::NAME, env!("CARGO_PKG_VERSION"));
    let stripped = dir.path().join("stripped");
    let made = image::testudo(Path::new(BINARY), &stripped, &tag).expect("an image");
    let size = made.write(&archive).expect("an archive");
    eprintln!(
        "the image takes {:.1} MiB",
        size as f64 / f64::from(1 << 20)
    );
    let options = Options {
        nodes: NODES,
        ..Options::named(name)
    };
    let cluster = Cluster::up(&options, &say).expect("nodes");
    for number in cluster.nodes() {
        let loaded = cluster.load_image(number, &archive);
        loaded.expect("a loaded image");
    }
    World {
        cluster,
        chart,
        image: archive,
        dir,
        datapath,
        places: BTreeMap::new(),
        counted: (0, 0),
        ports: RefCell::new(0),
    }
}

/// Installs it; the startup taint goes when the agents are ready.
pub(super) fn chart(world: &World) {
    eprintln!("-- helm install");
    world.kubectl(&["create", "namespace", NAMESPACE]);
    world.kubectl(&["taint", "node", "--all", TAINT]);
    let archive = text(&world.chart.archive);
    let mut words = vec!["install", "testudo", archive, "--wait", PATIENCE];
    // With the kernel's the chart's own values are what is tested.
    if world.datapath == Datapath::User {
        words.push("--set=agent.datapath=user,modules.load=false");
    }
    world.helm(&words);
    let ready = world.kubectl(&["get", "nodeenc", "-o", "name"]);
    assert_eq!(ready.lines().count(), usize::from(NODES), "{ready}");
    until("the end of the startup taint", || {
        let taints = world.kubectl(&["get", "node", "-o", "jsonpath={.items[*].spec.taints}"]);
        match taints.contains("agent-not-ready") {
            false => Ok(()),
            true => Err(taints),
        }
    });
}

/// One on each node, and another on the first.
pub(super) fn pods(world: &mut World) {
    for (name, node) in [("pod1", 1), ("other1", 1), ("pod2", 2)] {
        world.make_pod(name, node);
    }
    world.wait_pods(&["pod1", "other1", "pod2"]);
}

/// Of capabilities, as the kernel has it of the processes.
pub(super) fn agents_have_no_more_than_they_need(world: &World) {
    let script = "for p in /proc/[0-9]*; do \
        c=$(tr '\\0' ' ' <$p/cmdline); case $c in \
        '/usr/bin/testudo agent keep'*) echo keep $(grep CapEff $p/status);; \
        '/usr/bin/testudo agent'*) echo agent $(grep CapEff $p/status);; esac; done 2>/dev/null";
    let (done, said) = world.in_node(1, &["sh", "-c", script]);
    // NET_ADMIN (12), for the userspace datapath NET_RAW (13); NET_BIND_SERVICE (10).
    let agent = match world.datapath {
        Datapath::Kernel => "agent CapEff: 0000000000001000",
        Datapath::User => "agent CapEff: 0000000000003000",
    };
    assert!(done && said.contains(agent), "{said}");
    assert!(said.contains("keep CapEff: 0000000000000400"), "{said}");
}

/// What runs in the agents' own container, where there is nothing but the program.
pub(super) fn verbs_reach_the_agents(world: &World) {
    let shown = world.testudo(&["status", "--tunnels"]);
    assert!(
        shown.contains("node1") && shown.contains("node2"),
        "{shown}"
    );
    let captured = world.try_testudo(&["capture", "--node", "node1", "--seconds", "3"]);
    match (world.datapath, captured) {
        // It has NET_RAW for its own work.
        (Datapath::User, Ok(_)) => {}
        (Datapath::Kernel, Err(said)) if said.contains("NET_RAW") => {}
        (datapath, other) => panic!("{datapath:?}: {other:?}"),
    }
}

/// What they asked of the API server their roles have.
pub(super) fn nothing_was_forbidden(world: &World) {
    let words = ["logs", "-n", NAMESPACE, "-l", OURS, "--all-containers"];
    let logs = world.kubectl(&[&words[..], &["--tail=-1"]].concat());
    assert!(logs.contains("leading"), "{logs}");
    let refused: Vec<&str> = logs
        .lines()
        .filter(|line| line.contains("forbid"))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

/// As Events, which the API server keeps for an hour.
pub(super) fn what_happened_is_told(world: &World) {
    let events = world.kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].reason}"]);
    for reason in ["AgentReady", "CertificateSigned", "Phase"] {
        assert!(events.contains(reason), "{reason}: {events}");
    }
}
