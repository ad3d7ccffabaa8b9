//! What dies, and what is away.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testudo_agent::api::{Actions, Request};
use testudo_kube_env::Component;
use testudo_kube_env::chart::NAMESPACE;

use super::world::{World, until};

/// Between two looks at a long outage.
const LOOK: Duration = Duration::from_secs(60);

/// One CA follows another, while the controller that leads is killed: the other one waits for the Lease.
pub(super) fn ca_rotated(world: &mut World) {
    let before = bundle(world);
    let leader = leader(world);
    world.testudo(&["ca", "rotate", "--wait=false"]);
    let words = ["delete", "pod", &leader, "-n", NAMESPACE, "--force"];
    world.kubectl(&[&words[..], &["--grace-period=0"]].concat());
    until("a rotation that is done", || {
        let state = rotation(world)?;
        let done = state["phase"] == "Settled" && state["rotation"] == 1;
        done.then_some(()).ok_or_else(|| format!("{state:#}"))
    });
    until("another one that leads", || match self::leader(world) {
        next if !next.is_empty() && next != leader => Ok(()),
        other => Err(other),
    });
    assert_ne!(bundle(world), before, "another CA");
    world.wait_strict();
}

/// The pod of the controller that leads.
fn leader(world: &World) -> String {
    let field = "jsonpath={.spec.holderIdentity}";
    let words = ["get", "lease", "testudo-controller", "-n", NAMESPACE];
    let holder = world.kubectl(&[&words[..], &["-o", field]].concat());
    let pod = holder.split_once('_').map(|(pod, _)| pod);
    pod.unwrap_or_default().to_owned()
}

fn bundle(world: &World) -> String {
    world.kubectl(&["get", "trustbundle", "cluster", "-o", "jsonpath={.spec}"])
}

/// How far the rotation of the CA is.
fn rotation(world: &World) -> Result<Value, String> {
    let said = world.try_testudo(&["ca", "show", "-o", "json"])?;
    let shown: Value = serde_json::from_str(&said).map_err(|e| format!("{said}: {e}"))?;
    Ok(shown["rotation"].clone())
}

/// The process dies as by a bug; the kubelet starts another.
pub(super) fn agent_killed(world: &mut World) {
    let old = world.agent(1).expect("an agent");
    let pid = Pid::from_raw(old).expect("a PID");
    kill_process(pid, Signal::KILL).expect("it runs");
    until("another agent", || match world.agent(1)? {
        new if new != old => Ok(()),
        _ => Err("the old one".to_owned()),
    });
    world.wait_strict();
}

/// Nobody can ask it anything for a while; keys are replaced all the same.
pub(super) fn api_server_away(world: &mut World) {
    let stopped = world.cluster.stop_component(Component::ApiServer);
    stopped.expect("the API server is stopped");
    wait_store(world, true);
    let old = sending(world).expect("agents that answer");
    act(world, 1, Actions::RekeyChild);
    act(world, 2, Actions::RekeyChild);
    until("new child SAs", || {
        let new = sending(world)?;
        match old.iter().find(|(pair, spi)| new.get(*pair) == Some(spi)) {
            Some((pair, _)) => Err(format!("{pair}: {new:?}")),
            None => Ok(()),
        }
    });
    act(world, 2, Actions::RekeyIke);
    let started = world.cluster.start_component(Component::ApiServer);
    started.expect("the API server is started");
    world.cluster.ready().expect("it answers");
    wait_store(world, false);
    world.wait_strict();
}

/// For longer than any token is valid that an agent had at the beginning, through many rekeys. Afterwards agents
/// are heard again: they write what is asked of them.
pub(super) fn api_server_away_for(world: &mut World, time: Duration) {
    let stopped = world.cluster.stop_component(Component::ApiServer);
    stopped.expect("the API server is stopped");
    wait_store(world, true);
    let end = Instant::now() + time;
    let mut old = sending(world).expect("agents that answer");
    let first = old.clone();
    let mut rekeys = 0;
    while Instant::now() < end {
        std::thread::sleep(LOOK);
        let new = sending(world).expect("agents that answer");
        let replaced = new.iter().filter(|(pair, spi)| old.get(*pair) != Some(spi));
        rekeys += replaced.count();
        old = new;
        for node in world.cluster.nodes() {
            let status = world.status_of(node).expect("an agent that answers");
            assert_eq!(status.phase.to_string(), "Strict", "{status:?}");
        }
        let left = end.saturating_duration_since(Instant::now()).as_secs() / 60;
        eprintln!("   {rekeys} children replaced, {left} minutes left");
    }
    for (pair, spi) in &first {
        assert_ne!(old.get(pair), Some(spi), "{pair}: never replaced");
    }
    let started = world.cluster.start_component(Component::ApiServer);
    started.expect("the API server is started");
    world.cluster.ready().expect("it answers");
    wait_store(world, false);
    world.wait_strict();
    world.testudo(&["certs", "rotate", "--timeout", "300s"]);
    world.wait_strict();
}

fn act(world: &World, node: u8, action: Actions) {
    let response = world.ask(node, &Request::Do { action, peer: None });
    let response = response.unwrap_or_else(|e| panic!("{action:?}: {e}"));
    let result = response.action.expect("a result");
    eprintln!("   node{node}: {action:?}: {result:?}");
    // A peer that began the same a moment ago is a good reason not to begin.
    assert!(result.begun > 0 || !result.refused.is_empty(), "{result:?}");
}

/// The SPI with which each node sends to each peer. Nodes 1 and 2 begin rekeys, so all pairs have new ones.
fn sending(world: &World) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for node in world.cluster.nodes() {
        for tunnel in world.tunnels(node)? {
            let child = tunnel.children.iter().find(|child| child.sending);
            let child = child.ok_or_else(|| format!("node{node}: {tunnel:?}"))?;
            all.insert(format!("node{node} {}", tunnel.peer), child.spi_out.clone());
        }
    }
    Ok(all)
}

/// Waits until each agent finds the API server away, or there.
fn wait_store(world: &World, away: bool) {
    until("the agents' word on the API server", || {
        for node in world.cluster.nodes() {
            let since = world.status_of(node)?.store_away_since;
            if since.is_some() != away {
                return Err(format!("node{node}: away since {since:?}"));
            }
        }
        Ok(())
    });
}
