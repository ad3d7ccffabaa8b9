//! One story of a cluster of real nodes, from `helm install` to `helm uninstall`: to Strict, a node that comes and
//! goes, the CA rotated, a controller and an agent killed, an outage of the API server, an upgrade. Numbered
//! traffic goes on in every step, and a witness is on every link of the underlay.
//!
//! It is told with either datapath. The kernel's outlives its agent: nothing may be lost at all. The
//! userspace one ends with its agent's process: in the steps where one ends, packets of its node may be lost.
//! In clear none may leave in any.

mod disruption;
mod flow_table;
mod install;
mod membership;
mod release;
mod traffic;
mod world;

use std::time::{Duration, Instant};

use crate::common::Watch;
use flow_table::{Expected, observe};
use traffic::{Step, under_load};

/// What carries the packets on the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datapath {
    /// XFRM: the chart's default.
    Kernel,
    /// A TUN and sockets, where the kernel has no ESP.
    User,
}

/// Tells it, in a cluster of this name.
pub(crate) fn story(name: &str, datapath: Datapath) {
    let start = Instant::now();
    let mut world = install::cluster(name, datapath);
    install::chart(&world);
    install::pods(&mut world);
    observe(&world, &[("pod1", "pod2", Expected::Clear)]);

    under_load(&mut world, Step::named("init to Strict"), |world| {
        world.testudo(&["init", "--overlay", "vxlan", "--timeout", "600s"]);
        world.wait_strict();
    });
    let clear = Watch::start_in(&world.cluster.underlay(), flow_table::OVERLAY);
    observe(&world, &flow_table::ALL);
    install::agents_have_no_more_than_they_need(&world);
    install::verbs_reach_the_agents(&world);

    let step = Step::named("a node is added");
    under_load(&mut world, step, membership::node_added);
    observe(
        &world,
        &[
            ("pod3", "pod1", Expected::Sealed),
            ("pod2", "pod3", Expected::Sealed),
            ("node3", "pod1", Expected::Sealed),
            ("node3", "node1", Expected::Clear),
        ],
    );
    let step = Step::named("the CA is rotated, the leading controller is killed");
    under_load(&mut world, step, disruption::ca_rotated);
    install::nothing_was_forbidden(&world);
    install::what_happened_is_told(&world);
    let step = Step::named("an agent is killed").interrupts(&["node1"]);
    under_load(&mut world, step, disruption::agent_killed);
    let step = Step::named("the API server is away, keys are replaced");
    under_load(&mut world, step, disruption::api_server_away);
    let step = Step::named("helm upgrade").interrupts(&["node1", "node2", "node3"]);
    under_load(&mut world, step, release::upgraded);
    let step = Step::named("a node is drained").without(&["pod3"]);
    under_load(&mut world, step, membership::node_drained);
    let step = Step::named("a node is deleted").without(&["pod3", "node3"]);
    under_load(&mut world, step, membership::node_deleted);
    observe(&world, &flow_table::ALL);
    let status = world.testudo(&["status"]);
    assert!(status.contains("Strict"), "{status}");
    clear.stop_with_none();
    eprintln!("no packet of a protected flow in clear, on any link");

    let step = Step::named("helm uninstall");
    under_load(&mut world, step, release::removed);
    observe(&world, &[("pod1", "pod2", Expected::Clear)]);
    let took = start.elapsed().as_secs();
    let (sent, lost) = world.counted;
    eprintln!("the whole story: {took} s, {sent} datagrams, {lost} lost");
}

/// Tells of an outage alone: the API server is away for so long, and keys live for minutes.
pub(crate) fn long_outage(name: &str, time: Duration) {
    let mut world = install::cluster(name, Datapath::User);
    install::chart(&world);
    install::pods(&mut world);
    // Before there are any SAs: those that stand keep the lifetimes that they were made with.
    let policy = serde_json::json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": { "name": "cluster" },
        "spec": {
            "overlay": { "type": "VXLAN" },
            "ike": { "lifetime": "10m" },
            "esp": { "lifetime": "4m" },
        },
    });
    let path = world.dir.path().join("policy.json");
    std::fs::write(&path, policy.to_string()).expect("a file");
    world.testudo(&["apply", "-f", world::text(&path)]);
    world.testudo(&["init", "--timeout", "600s"]);
    world.wait_strict();
    let clear = Watch::start_in(&world.cluster.underlay(), flow_table::OVERLAY);
    let step = Step::named("the API server is away for long").at_rate(60);
    under_load(&mut world, step, |world| {
        disruption::api_server_away_for(world, time);
    });
    observe(&world, &flow_table::ALL);
    install::nothing_was_forbidden(&world);
    clear.stop_with_none();
}
