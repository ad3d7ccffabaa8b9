//! Builds of different age: objects of a newer one, CRDs of an older one.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{EncryptionPolicyKind, Mode};
use testudo_store::{Event, Store, StoreError};
use testudo_store_kube::{Writer, crd};

use crate::watches::next;
use crate::world::{World, node, policy, until};

/// A CRD of ours with a change of its schema.
pub(crate) fn changed(kind: &str, change: impl FnOnce(&mut Value)) -> Value {
    let all = crd::all();
    let of_kind = |definition: &&Value| definition["spec"]["names"]["kind"] == kind;
    let mut definition = all.iter().find(of_kind).unwrap().clone();
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    change(&mut schema["properties"]);
    definition
}

pub(crate) async fn newer_objects(world: &World) {
    let newer = changed("EncryptionPolicy", |fields| {
        let spec = &mut fields["spec"]["properties"];
        spec["selection"] = json!({
            "type": "object", "default": { "all": true },
            "properties": { "all": { "type": "boolean" } },
        });
        spec["esp"]["properties"]["padding"] = json!({ "type": "integer" });
        let modes = spec["mode"]["enum"].as_array_mut().unwrap();
        modes.push(json!("Newer"));
        fields["status"]["properties"]["waves"] = json!({ "type": "integer" });
    });
    world.define(&newer).await;
    let store = world.store(Writer::Cli);
    store.apply(policy(Mode::Full)).await.unwrap();
    let api = world.raw_of::<EncryptionPolicyKind>().await;
    let write = async |spec: Value| {
        let params = PatchParams::default();
        let patch = Patch::Merge(json!({ "spec": spec }));
        api.patch("cluster", &params, &patch).await
    };
    // The API server needs a moment until it goes by the new schema.
    until("the newer field is kept", async || {
        let written = write(json!({ "esp": { "padding": 3 } })).await.unwrap();
        written.data["spec"]["esp"]["padding"] == 3
    })
    .await;
    let read = store.get::<EncryptionPolicyKind>("cluster").await;
    let mut read = read.unwrap().unwrap();
    assert_eq!(read.spec, policy(Mode::Full).spec);
    assert!(
        store
            .list::<EncryptionPolicyKind>()
            .await
            .unwrap()
            .problems
            .is_empty()
    );
    // This build's write leaves what it does not know as it is.
    read.spec.mode = Mode::External;
    read.spec.esp.bytes = 7;
    let mut read = store.apply(read).await.unwrap().object;
    let raw = api.get("cluster").await.unwrap();
    assert_eq!(raw.data["spec"]["esp"]["padding"], 3);
    assert_eq!(raw.data["spec"]["esp"]["bytes"], 7);
    assert_eq!(raw.data["spec"]["selection"], json!({ "all": true }));
    // Also when the newer build wrote it under our own name.
    let own = json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": { "name": "cluster" },
        "spec": { "mode": "External", "esp": { "bytes": 7, "padding": 4 } },
    });
    let params = PatchParams::apply("testudo-cli").force();
    api.patch("cluster", &params, &Patch::Apply(own))
        .await
        .unwrap();
    read.spec.mode = Mode::Full;
    read.metadata.resource_version = None;
    store.apply(read).await.unwrap();
    let raw = api.get("cluster").await.unwrap();
    assert_eq!(raw.data["spec"]["esp"]["padding"], 4);

    // A value that means nothing to this build: the last good version goes on, and it is told.
    let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Added(o) if o.spec.mode == Mode::Full));
    assert_eq!(next(&mut watch).await, Event::Synced);
    write(json!({ "mode": "Newer" })).await.unwrap();
    match next(&mut watch).await {
        Event::Problem(problem) => {
            let text = problem.to_string();
            assert!(
                text.contains("encryptionpolicies.testudo.dev/cluster"),
                "{text}"
            );
            assert!(text.contains("Newer"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let read = store.get::<EncryptionPolicyKind>("cluster").await;
    assert!(matches!(read, Err(StoreError::Invalid(_))), "{read:?}");
    write(json!({ "mode": "Disabled" })).await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Solved(_)));
    assert!(matches!(next(&mut watch).await, Event::Modified(o) if o.spec.mode == Mode::Disabled));
    store
        .delete::<EncryptionPolicyKind>("cluster")
        .await
        .unwrap();
    world.define(&changed("EncryptionPolicy", |_| {})).await;
}

pub(crate) async fn older_crds(world: &World) {
    let older = changed("NodeEncryption", |fields| {
        let status = fields["status"]["properties"].as_object_mut().unwrap();
        status.remove("perCpu").unwrap();
        let spec = fields["spec"]["properties"].as_object_mut().unwrap();
        spec.remove("agentSocket").unwrap();
    });
    world.define(&older).await;
    let agent = world.store(crate::world::agent("n1"));
    let mut wanted = node("n1");
    wanted.status.per_cpu = 2;
    wanted.status.tunnels_up = 5;
    until("the newer field is cut off", async || {
        let object = agent.apply(wanted.clone()).await.unwrap().object;
        let cut = object.spec.agent_socket.is_none() && object.status.per_cpu == 0;
        assert!(!cut || object.status.tunnels_up == 5);
        if !cut {
            agent.delete::<NodeEncryptionKind>("n1").await.unwrap();
        }
        cut
    })
    .await;
    // An object that an older build wrote has the defaults.
    let read = agent
        .get::<NodeEncryptionKind>("n1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((read.spec.agent_socket, read.status.per_cpu), (None, 0));
    // A person is told instead.
    let cli = world.store(Writer::Cli);
    let refused = cli.apply(node("n2")).await.unwrap_err().to_string();
    assert!(refused.contains("agentSocket"), "{refused}");
    agent.delete::<NodeEncryptionKind>("n1").await.unwrap();
    world.define(&changed("NodeEncryption", |_| {})).await;
    until("the field is back", async || {
        let object = agent.apply(node("n1")).await.unwrap().object;
        agent.delete::<NodeEncryptionKind>("n1").await.unwrap();
        object.spec.agent_socket.is_some()
    })
    .await;
}
