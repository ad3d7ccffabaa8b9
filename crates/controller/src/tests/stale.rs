//! What the controller has seen is not what stands there any more: it is looked at again before anything
//! is removed or written over.

use super::giving::Stepped;
use super::*;
use crate::Members;
use crate::register::Holder;

#[tokio::test]
async fn the_object_of_a_node_that_is_out_is_not_removed_when_another_has_its_name() {
    let mut stepped = Stepped::start().await;
    let old = stepped.store.create(node("n1")).await.unwrap();
    stepped.ask("n1").await;
    stepped.answer().await.unwrap();
    let n1 = Holder {
        name: "n1".to_owned(),
        uid: "uid-n1".to_owned(),
    };
    let mut next = stepped.register();
    assert_eq!(next.revoke(&n1, crate::run::seconds()), 1);
    let controller = &mut stepped.controller;
    assert!(controller.kept.put(&controller.safe, next).await.unwrap());
    controller.world.nodes.put(old.clone());
    // The watch has not told yet that another machine has come.
    let mut another = old.clone();
    another.metadata.resource_version = None;
    another.spec.uid = NodeUid::new("uid-of-another").unwrap();
    stepped.store.apply(another).await.unwrap();
    let members = Members::ThosePublished;
    controller.sweep(&members).await;
    let stands = stepped.store.get::<NodeEncryptionKind>("n1").await.unwrap();
    assert_eq!(stands.as_ref().unwrap().spec.uid.as_str(), "uid-of-another");
    assert_eq!(controller.world.nodes.objects.get("n1"), stands.as_ref());

    // The one that is out writes it once more.
    let back = stepped.store.apply(node("n1")).await.unwrap().object;
    controller.world.nodes.put(back);
    controller.sweep(&members).await;
    let stands = stepped.store.get::<NodeEncryptionKind>("n1").await.unwrap();
    assert_eq!(stands, None);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_removed_in_the_life_that_was_seen_alone() {
    let mut stepped = Stepped::start().await;
    let seen = stepped.store.create(node("n1")).await.unwrap();
    let file = stepped.path("nodeencryptions/n1.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\nspec: [")).unwrap();
    let mut other_life = seen.clone();
    other_life.metadata.uid = Some("another".to_owned());
    let controller = &mut stepped.controller;
    // A cluster in which there is no such node.
    let members = Members::These(std::collections::BTreeMap::new());
    for (object, stays) in [(other_life, true), (seen, false)] {
        let nodes = &mut controller.world.nodes;
        nodes.read_again(&stepped.store).await.unwrap();
        assert_eq!(nodes.broken(), ["n1"]);
        nodes.put(object);
        controller.sweep(&members).await;
        assert_eq!(file.exists(), stays);
    }
}

#[tokio::test]
async fn the_bundle_is_written_over_what_was_seen_and_nothing_newer() {
    let mut stepped = Stepped::start().await;
    let store = stepped.store.clone();
    let controller = &mut stepped.controller;
    controller.publish_bundle().await.unwrap();
    let ours = controller.world.bundles.objects[CLUSTER].clone();
    // Somebody writes twice, and the first alone was told.
    let mut theirs = ours.clone();
    theirs.metadata.resource_version = None;
    theirs.spec.certificates = "first".to_owned();
    let first = store.apply(theirs.clone()).await.unwrap().object;
    controller.world.bundles.put(first);
    theirs.spec.certificates = "second".to_owned();
    let second = store.apply(theirs).await.unwrap().object;
    let refused = controller.publish_bundle().await.unwrap_err();
    assert!(refused.is_conflict(), "{refused}");
    let stands = store.get::<TrustBundleKind>(CLUSTER).await.unwrap();
    assert_eq!(stands, Some(second));
    controller.publish_bundle().await.unwrap();
    let stands = store.get::<TrustBundleKind>(CLUSTER).await.unwrap();
    assert_eq!(stands.unwrap().spec, ours.spec);
}
