//! Phases, and the taint of nodes whose agents are not ready.

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::world::{World, wait};

const TAINT: &str = "testudo.dev/agent-not-ready";

/// The agent's object of a node.
pub(crate) fn publish(world: &World, name: &str, uid: &str) {
    world.apply(&json!({
        "apiVersion": "testudo.dev/v1alpha1",
        "kind": "NodeEncryption",
        "metadata": { "name": name },
        "spec": {
            "uid": uid, "bootId": "boot", "addresses": ["10.0.0.1"], "datapath": "user",
        },
    }));
}

pub(crate) fn policy(world: &World) -> Value {
    world.get("encryptionpolicy cluster").unwrap()
}

fn acknowledge(world: &World, name: &str, status: &Value) {
    let word = json!({ "phase": status["phase"], "rollout": status["rollout"] });
    let patch = json!({ "status": { "acknowledged": word } });
    let node = format!("nodeencryption {name}");
    world.patch(&node, &patch, &["--subresource=status"]);
}

fn taints(world: &World, name: &str) -> Vec<String> {
    let node = world.get(&format!("node {name}")).unwrap();
    let taints = node["spec"]["taints"].as_array().cloned();
    let keys = taints.unwrap_or_default().into_iter();
    keys.map(|taint| taint["key"].as_str().unwrap().to_owned())
        .filter(|key| !key.starts_with("node.kubernetes.io/"))
        .collect()
}

pub(crate) fn steps(world: &World, leader: &Daemon) {
    for name in ["n1", "n2"] {
        let uid = world.node(name);
        publish(world, name, &uid);
        for key in [TAINT, "example.com/theirs"] {
            let taint = format!("{key}=:NoSchedule");
            world.kubectl(&["taint", "node", name, &taint]);
        }
    }
    world.apply(&json!({
        "apiVersion": "testudo.dev/v1alpha1",
        "kind": "EncryptionPolicy",
        "metadata": { "name": "cluster" },
        "spec": { "mode": "Full", "overlay": { "type": "VXLAN" } },
    }));
    wait("the first phase", || {
        (policy(world)["status"]["phase"] == "Prepared").then_some(())
    });
    for phase in ["Prepared", "Permissive", "Strict"] {
        let status = wait("the phase", || {
            let status = policy(world)["status"].clone();
            (status["phase"] == phase).then_some(status)
        });
        acknowledge(world, "n1", &status);
        if phase == "Strict" {
            wait("n1's taint is gone", || {
                (taints(world, "n1") == ["example.com/theirs"]).then_some(())
            });
            let waited = taints(world, "n2");
            assert!(waited.iter().any(|key| key == TAINT), "{waited:?}");
        }
        acknowledge(world, "n2", &status);
    }
    wait("n2's taint is gone", || {
        (taints(world, "n2") == ["example.com/theirs"]).then_some(())
    });
    let ready = wait("all are Strict", || {
        let policy = policy(world);
        let conditions = policy["status"]["conditions"].as_array().cloned()?;
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready")?;
        (ready["status"] == "True").then(|| (ready, policy["metadata"]["generation"].clone()))
    });
    assert_eq!(ready.0["observedGeneration"], ready.1);
    wait("the metrics", || {
        let strict = leader.metric("testudo_controller_phase{phase=\"Strict\"}");
        let all = leader.metric("testudo_controller_nodes_ready");
        (strict == Some(1.0) && all == Some(2.0)).then_some(())
    });
    assert_eq!(
        leader.metric("testudo_controller_taints_removed_total"),
        Some(2.0)
    );
    let phases = wait("Events of all phases", || {
        let events = world.events("Phase");
        (events.len() >= 3).then_some(events)
    });
    for event in &phases {
        assert_eq!(event["regarding"]["kind"], "EncryptionPolicy");
    }
    // kubectl finds them by what they are about.
    let described = world.kubectl(&["describe", "encryptionpolicy", "cluster"]);
    assert!(described.contains("phase Strict"), "{described}");
    assert!(
        world
            .kubectl(&["describe", "node", "n1"])
            .contains("AgentReady")
    );
}
