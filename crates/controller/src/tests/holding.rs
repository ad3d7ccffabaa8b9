//! Nodes that are gone and cannot be got rid of: the others' affairs go on, and it is told.

use std::collections::BTreeSet;

use testudo_metrics::Source;
use testudo_store::removed;

use super::giving::Stepped;
use super::*;
use crate::Document;
use crate::register::Holder;

fn holder(name: &str) -> Holder {
    Holder {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
    }
}

/// A controller of these nodes, each of which has a certificate.
async fn with_nodes(names: &[&str]) -> Stepped {
    let mut stepped = Stepped::start().await;
    for name in names {
        stepped.store.create(node(name)).await.unwrap();
        stepped.ask(name).await;
    }
    round(&mut stepped).await.unwrap();
    for name in names {
        assert!(stepped.given(name).await.is_some(), "{name}");
    }
    stepped
}

/// A round on what stands in the store now.
async fn round(stepped: &mut Stepped) -> Result<(), testudo_store::StoreError> {
    let world = &mut stepped.controller.world;
    world.nodes.read_again(&stepped.store).await.unwrap();
    world.requests.read_again(&stepped.store).await.unwrap();
    world.policies.read_again(&stepped.store).await.unwrap();
    stepped.controller.reconcile().await
}

fn remove(stepped: &Stepped, name: &str) {
    removed::mark(&stepped.store.store, &NodeName::new(name).unwrap()).unwrap();
}

/// What is counted of failures at a step.
async fn failures(stepped: &Stepped, step: &str) -> u64 {
    let page = stepped.numbers.page().await.unwrap().encode();
    let head = format!("testudo_controller_reconcile_errors_total{{step=\"{step}\"}} ");
    let mut lines = page.lines();
    let count = lines.find_map(|line| line.strip_prefix(&head)?.parse().ok());
    count.unwrap_or(0)
}

#[tokio::test]
async fn an_object_that_cannot_be_removed_keeps_the_controller_from_nothing_else() {
    let mut stepped = with_nodes(&["n1", "n2", "n3"]).await;
    stepped.store.keep(&["n1"]);
    remove(&stepped, "n1");
    remove(&stepped, "n2");
    stepped.ask("n3").await;
    want(&stepped.store.store, Mode::Full).await;
    for _ in 0..3 {
        round(&mut stepped).await.unwrap();
    }
    // The others are removed, answered and led; both that are gone are revoked.
    let there = stepped.store.list::<NodeEncryptionKind>().await.unwrap();
    let names: BTreeSet<_> = there.items.iter().map(|node| node.name()).collect();
    assert_eq!(names, BTreeSet::from(["n1", "n3"]));
    assert!(stepped.given("n3").await.is_some());
    let policy = stepped.store.get::<EncryptionPolicyKind>(CLUSTER).await;
    assert_eq!(policy.unwrap().unwrap().status.target, Phase::Strict);
    let register = stepped.register();
    assert!(register.is_out(&holder("n1")) && register.is_out(&holder("n2")));
    // Not tried again at once, and not forgotten.
    assert_eq!(failures(&stepped, "removal").await, 1);
    assert!(stepped.controller.absent.pause(Instant::now()).is_some());
}

/// Whether the policy says that revocation works, and what else it says of it.
async fn in_force(stepped: &Stepped) -> Option<(ConditionStatus, String)> {
    let policy = stepped.store.get::<EncryptionPolicyKind>(CLUSTER).await;
    let conditions = policy.unwrap().unwrap().status.conditions;
    let mut such = conditions.iter().filter(|c| c.kind == "RevocationsInForce");
    such.next().map(|c| (c.status, c.message.clone()))
}

#[tokio::test]
async fn a_revocation_that_fails_is_told_in_every_way_until_it_is_done() {
    let mut stepped = with_nodes(&["n1", "n2"]).await;
    want(&stepped.store.store, Mode::Full).await;
    let safe = stepped.controller.safe.clone();
    round(&mut stepped).await.unwrap();
    assert_eq!(in_force(&stepped).await, None);
    remove(&stepped, "n1");
    // First the register cannot be written, then the list.
    for (at, document) in [Document::Register, Document::Authority]
        .into_iter()
        .enumerate()
    {
        safe.refuse(Some(document));
        for _ in 0..2 {
            round(&mut stepped).await.unwrap();
        }
        let told = safe.told("RevocationHeld");
        assert_eq!(told.len(), at + 1, "{told:?}");
        let text = &told[at];
        assert!(text.contains("n1") && text.contains("403"), "{text}");
        assert_eq!(failures(&stepped, "revocation").await, 2 * (at as u64 + 1));
        let (status, message) = in_force(&stepped).await.unwrap();
        assert_eq!(status, ConditionStatus::False);
        assert!(
            message.contains("n1") && message.contains("403"),
            "{message}"
        );
    }
    safe.refuse(None);
    round(&mut stepped).await.unwrap();
    assert!(stepped.register().is_out(&holder("n1")));
    assert_eq!(in_force(&stepped).await.unwrap().0, ConditionStatus::True);
    assert_eq!(safe.told("RevocationResumed").len(), 1);
    assert_eq!(failures(&stepped, "revocation").await, 4);
}
