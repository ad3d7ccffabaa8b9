//! Several write one object: whose a field is, and what becomes of it.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::policy::{EncryptionPolicyKind, Enforcement, Mode};
use testudo_model::{Object, Phase, TrustBundleSpec};
use testudo_store::{Change, Store, StoreError, change_status};
use testudo_store_kube::Writer;

use crate::world::World;

async fn apply(world: &World, manager: &str, spec: Value) -> kube::Result<()> {
    let api = world.raw_of::<EncryptionPolicyKind>().await;
    let object = json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": { "name": "cluster" }, "spec": spec,
    });
    let params = PatchParams::apply(manager);
    api.patch("cluster", &params, &Patch::Apply(object)).await?;
    Ok(())
}

pub(crate) async fn fields_have_owners(world: &World) {
    let chart = json!({ "mode": "Full", "overlay": { "type": "VXLAN", "port": 4789 } });
    apply(world, "helm", chart).await.unwrap();
    let cli = world.store(Writer::Cli);
    let read = async || {
        let read = cli.get::<EncryptionPolicyKind>("cluster").await;
        read.unwrap().unwrap()
    };
    // What the chart keeps is left to it, with its name; also what would have to go.
    let mut wanted = read().await;
    wanted.spec.mode = Mode::Disabled;
    let refused = cli.apply(wanted).await.unwrap_err();
    let StoreError::Owned { fields, owner, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!((fields.as_str(), owner.as_str()), ("spec.mode is", "helm"));
    let mut wanted = read().await;
    wanted.spec.overlay.port = None;
    let refused = cli.apply(wanted).await.unwrap_err().to_string();
    assert!(
        refused.contains("spec.overlay.port is kept by \"helm\""),
        "{refused}"
    );
    // The rest is anybody's.
    let mut wanted = read().await;
    wanted.spec.enforcement = Enforcement::Permissive;
    wanted.metadata.resource_version = None;
    let applied = cli.apply(wanted.clone()).await.unwrap();
    assert_eq!(applied.change, Change::Configured);
    let again = cli.apply(wanted).await.unwrap();
    assert_eq!(again.change, Change::Unchanged);
    // The chart's next version is not in conflict with that.
    let chart = json!({ "mode": "External", "overlay": { "type": "Geneve" } });
    apply(world, "helm", chart).await.unwrap();
    let now = read().await;
    assert_eq!(now.spec.mode, Mode::External);
    assert_eq!(now.spec.overlay.port, None);
    assert_eq!(now.spec.enforcement, Enforcement::Permissive);

    let controller = world.store(Writer::Controller);
    let written = change_status::<_, EncryptionPolicyKind>(&controller, "cluster", |_, status| {
        status.phase = Phase::Prepared;
    });
    written.await.unwrap().unwrap();
    let api = world.raw_of::<EncryptionPolicyKind>().await;
    let raw = api.get("cluster").await.unwrap();
    let managed = json!(raw.metadata.managed_fields);
    let of = |manager: &str| {
        let entries = managed.as_array().unwrap();
        let found = entries.iter().find(|entry| entry["manager"] == manager);
        found
            .unwrap_or_else(|| panic!("{manager}: {managed}"))
            .clone()
    };
    let ours = &of("testudo-cli")["fieldsV1"]["f:spec"];
    assert_eq!(*ours, json!({ "f:enforcement": {} }));
    let status = of("testudo-controller");
    assert_eq!(status["subresource"], "status");
    assert_eq!(status["operation"], "Apply");
    cli.delete::<EncryptionPolicyKind>("cluster").await.unwrap();
}

/// Whoever may write a trust bundle must not be able to add a CA for longer than a moment.
pub(crate) async fn taken_back(world: &World) {
    let controller = world.store(Writer::Controller);
    let bundle = |certificates: &str| -> Object<TrustBundleKind> {
        let spec = TrustBundleSpec {
            certificates: certificates.to_owned(),
            revocation_lists: String::new(),
        };
        Object::new("cluster", spec)
    };
    controller.apply(bundle("ours")).await.unwrap();
    let api = world.raw_of::<TrustBundleKind>().await;
    let change = json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": "TrustBundle",
        "metadata": { "name": "cluster", "labels": { "x": "y" } },
        "spec": { "certificates": "mallory's", "revocationLists": "mallory's too" },
    });
    let params = PatchParams::apply("mallory").force();
    let patch = Patch::Apply(change);
    api.patch("cluster", &params, &patch).await.unwrap();
    let applied = controller.apply(bundle("ours")).await.unwrap();
    assert_eq!(applied.change, Change::Configured);
    assert_eq!(applied.object.spec, bundle("ours").spec);
    assert!(applied.object.metadata.labels.is_empty());
    let read = controller.get::<TrustBundleKind>("cluster").await.unwrap();
    assert_eq!(read, Some(applied.object));
    assert!(
        controller
            .delete::<TrustBundleKind>("cluster")
            .await
            .unwrap()
    );
}
