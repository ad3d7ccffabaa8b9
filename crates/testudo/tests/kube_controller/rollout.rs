//! Phases, and the taint of nodes whose agents are not ready.

use std::time::Duration;

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

/// A condition of the policy.
fn condition(world: &World, kind: &str) -> Option<Value> {
    let policy = policy(world);
    let conditions = policy["status"]["conditions"].as_array().cloned()?;
    conditions.into_iter().find(|c| c["type"] == kind)
}

fn until_condition(world: &World, kind: &str, status: &str, reason: &str) -> Value {
    wait(&format!("{kind} is {status}, {reason}"), || {
        condition(world, kind).filter(|c| c["status"] == status && c["reason"] == reason)
    })
}

fn until_event(world: &World, reason: &str, part: &str) {
    wait(&format!("an Event {reason} with {part}"), || {
        let mut events = world.events(reason).into_iter();
        events.find(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["regarding"]["kind"] == "EncryptionPolicy" && note.contains(part)
        })
    });
}

/// Where the roll-out stands.
fn stands(world: &World) -> (Value, Value, Value) {
    let status = &policy(world)["status"];
    (
        status["phase"].clone(),
        status["target"].clone(),
        status["rollout"].clone(),
    )
}

/// Fields that are good each by itself, and of which the API server knows nothing: their combination is
/// refused by the controller, and nothing else changes.
pub(crate) fn refused(world: &World, leader: &Daemon) {
    let before = stands(world);
    let spec = |spec: Value| world.patch("encryptionpolicy cluster", &json!({ "spec": spec }), &[]);
    for (change, back, field) in [
        (
            json!({ "hostTraffic": true }),
            json!({ "hostTraffic": null }),
            "spec.hostTraffic",
        ),
        (
            json!({ "overlay": { "type": "Routed" } }),
            json!({ "overlay": { "type": "VXLAN" } }),
            "spec.overlay.podCIDRs",
        ),
    ] {
        spec(change);
        let told = until_condition(world, "Degraded", "True", "Unsupported");
        let text = told["message"].as_str().unwrap();
        assert!(text.contains(field), "{told}");
        let generation = policy(world)["metadata"]["generation"].clone();
        assert_eq!(told["observedGeneration"], generation);
        until_event(world, "Degraded", field);
        let log = leader.log();
        let line = format!("degraded: {field}");
        assert!(log.contains(&line), "{line} in\n{log}");
        assert_eq!(stands(world), before);
        spec(back);
        until_condition(world, "Ready", "True", "Settled");
    }
    assert_eq!(stands(world), before);
}

/// A policy of a newer build, with a word for a mode that this one does not know.
pub(crate) fn unreadable(world: &World, leader: &Daemon) {
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/mode/enum/-";
    let newer = json!([{ "op": "add", "path": path, "value": "Newer" }]).to_string();
    let crd = "encryptionpolicies.testudo.dev";
    world.kubectl(&["patch", "crd", crd, "--type=json", "-p", &newer]);
    let before = stands(world);
    let mode = |mode: &str| {
        let patch = json!({ "spec": { "mode": mode } }).to_string();
        let words = ["patch", "encryptionpolicy", "cluster", "--type=merge"];
        let done = world
            .cluster
            .kubectl(&[&words[..], &["-p", &patch]].concat());
        done.ok()
    };
    wait("the API server goes by the new schema", || mode("Newer"));
    let told = until_condition(world, "PolicyReadable", "False", "PolicyUnreadable");
    let text = told["message"].as_str().unwrap();
    assert!(text.contains("Newer"), "{told}");
    until_event(world, "PolicyUnreadable", "Newer");
    assert!(leader.log().contains("the policy cannot be read"));
    assert_eq!(stands(world), before);
    // The last good state goes on.
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    world.certificate("n1", uid.as_str().unwrap());
    assert_eq!(stands(world), before);
    mode("Full").unwrap();
    until_condition(world, "PolicyReadable", "True", "AsExpected");
    until_condition(world, "Ready", "True", "Settled");
    until_event(world, "PolicyReadable", "can be read again");
    assert_eq!(stands(world), before);
    let ours = json!([{ "op": "remove", "path": format!("{}3", path.trim_end_matches('-')) }]);
    world.kubectl(&["patch", "crd", crd, "--type=json", "-p", &ours.to_string()]);
}

/// A renewal of the nodes' certificates is seen in the policy, and as Events.
pub(crate) fn renewal(world: &World, leader: &Daemon) {
    let certificate = json!({
        "subject": "n", "issuer": "CA", "serial": "1",
        "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2036-01-01T00:00:00Z",
    });
    let says = |name: &str, rotation: u64| {
        let status = json!({ "rotation": rotation, "certificate": certificate });
        let node = format!("nodeencryption {name}");
        let patch = json!({ "status": status });
        world.patch(&node, &patch, &["--subresource=status"]);
    };
    for name in ["n1", "n2"] {
        says(name, 0);
    }
    let ask = json!({ "spec": { "certificates": { "rotation": 1 } } });
    world.patch("encryptionpolicy cluster", &ask, &[]);
    let until = |done: u64, waiting: &[&str]| {
        wait(&format!("{done} have renewed"), || {
            let rotation = policy(world)["status"]["certificateRotation"].clone();
            let on = rotation.get("waitingOn").cloned();
            let on = on.unwrap_or_else(|| json!([]));
            let counts = (rotation["done"].clone(), rotation["nodes"].clone());
            (counts == (json!(done), json!(2)) && on == json!(waiting)).then_some(())
        });
    };
    until(0, &["n1", "n2"]);
    until_event(world, "CertificateRotation", "2 of 2 nodes are to renew");
    says("n1", 1);
    until(1, &["n2"]);
    wait("the metrics", || {
        let waits = leader.metric("testudo_controller_certificate_rotation_waiting");
        (waits == Some(1.0)).then_some(())
    });
    says("n2", 1);
    until(2, &[]);
    until_event(world, "CertificateRotation", "all 2 nodes are done");
    // A moment later it is the same.
    std::thread::sleep(Duration::from_secs(1));
    until(2, &[]);
}
