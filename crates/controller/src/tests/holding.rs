//! Nodes that are gone and cannot be got rid of: the others' affairs go on, and it is told.

use std::collections::BTreeSet;

use testudo_crypto::SystemRandom;
use testudo_metrics::Source;
use testudo_model::CaPhase;
use testudo_pki::{Ca, CaOptions};
use testudo_store::removed;

use super::giving::Stepped;
use super::*;
use crate::Document;
use crate::register::{Given, Holder, ca_of};
use crate::run::seconds;

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

/// Puts so many lives of nodes into the register that came and went.
async fn many_lives(stepped: &mut Stepped, lives: std::ops::Range<usize>) {
    let controller = &mut stepped.controller;
    let mut next = controller.kept.register.clone();
    let facts = controller.authority.ca.facts();
    for life in lives {
        let gone = holder(&format!("node-{life}"));
        let given = Given {
            ca: ca_of(facts).to_owned(),
            serial: format!("7{life:030x}"),
            not_after: facts.times.not_after,
            revoked: None,
        };
        next.give(gone.clone(), given).unwrap();
        next.revoke(&gone, crate::run::seconds());
    }
    assert!(controller.kept.put(&controller.safe, next).await.unwrap());
}

#[tokio::test]
async fn a_ca_that_has_too_little_room_left_is_replaced_and_that_makes_room() {
    let mut stepped = with_nodes(&["n1"]).await;
    want(&stepped.store.store, Mode::Full).await;
    tokio::time::sleep(crate::steady::HOLD * 2).await;
    many_lives(&mut stepped, 0..3400).await;
    round(&mut stepped).await.unwrap();
    let phase = |stepped: &Stepped| stepped.controller.authority.standing.phase;
    assert_eq!(phase(&stepped), CaPhase::Settled);
    many_lives(&mut stepped, 3400..3600).await;
    let full = stepped.controller.fill();
    assert!(full.list > 0.7, "{full:?}");
    round(&mut stepped).await.unwrap();
    assert_eq!(phase(&stepped), CaPhase::Trusting);
    let begun = stepped.controller.safe.told("CaRotation").remove(0);
    assert!(
        begun.contains("begun by itself") && begun.contains('%'),
        "{begun}"
    );
    // The node does its part of each step.
    for _ in 0..4 {
        let told = super::rotation::bundle(&stepped.store.store).await;
        let trusted = super::rotation::names(&told);
        let says = testudo_model::Authorities {
            presented: trusted.first().cloned(),
            peers: trusted.first().cloned().into_iter().collect(),
            trusted,
            ..testudo_model::Authorities::default()
        };
        super::rotation::says(&stepped.store.store, "n1", says).await;
        round(&mut stepped).await.unwrap();
        stepped.ask("n1").await;
        round(&mut stepped).await.unwrap();
    }
    assert_eq!(phase(&stepped), CaPhase::Settled);
    round(&mut stepped).await.unwrap();
    let empty = stepped.controller.fill();
    assert!(empty.list == 0.0 && empty.register < 0.01, "{empty:?}");
    assert_eq!(stepped.controller.authority.standing.rotation, 1);
}

#[tokio::test]
async fn where_somebody_gives_the_ca_it_is_said_that_the_next_one_is_due() {
    let mut stepped = with_nodes(&["n1"]).await;
    let signer = stepped.controller.authority.ca.facts().clone();
    stepped.controller.documents.given = Some(signer);
    tokio::time::sleep(crate::steady::HOLD * 2).await;
    many_lives(&mut stepped, 0..3600).await;
    for _ in 0..2 {
        round(&mut stepped).await.unwrap();
    }
    let told = stepped.controller.safe.told("CaRotationHeld");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("72 %") && told[0].contains("another CA"),
        "{told:?}"
    );
    let status = super::rotation::bundle(&stepped.store.store).await.status;
    assert_eq!(
        (status.phase, status.message),
        (CaPhase::Settled, told[0].clone())
    );
}

/// A CA that was renewed under its name may stand there for years.
#[tokio::test]
async fn a_ca_that_is_given_and_cannot_follow_is_told_once() {
    let mut stepped = with_nodes(&["n1"]).await;
    let signer = stepped.controller.authority.ca.facts().clone();
    let random = &mut SystemRandom::new();
    let other = Ca::generate(&CaOptions::default(), seconds(), random).unwrap();
    let (mut of_the_name, mut of_the_key) = (other.facts().clone(), other.facts().clone());
    of_the_name.subject.clone_from(&signer.subject);
    of_the_key.spki.clone_from(&signer.spki);
    tokio::time::sleep(crate::steady::HOLD * 2).await;
    let status = async |stepped: &Stepped| {
        let bundle = super::rotation::bundle(&stepped.store.store).await;
        (bundle.status.phase, bundle.status.message)
    };
    for (count, given, part) in [
        (1, of_the_name, "nodes tell CAs apart by their names"),
        (2, of_the_key, "rotationPolicy: Always"),
    ] {
        stepped.controller.documents.given = Some(given);
        for _ in 0..3 {
            round(&mut stepped).await.unwrap();
        }
        let told = stepped.controller.safe.told("CaRotationHeld");
        assert_eq!(told.len(), count, "{told:?}");
        let last = told[count - 1].clone();
        assert!(last.contains(part), "{last}");
        assert_eq!(status(&stepped).await, (CaPhase::Settled, last));
    }
    stepped.controller.documents.given = Some(signer);
    round(&mut stepped).await.unwrap();
    assert_eq!(status(&stepped).await, (CaPhase::Settled, String::new()));
}
