//! How far rotations are and who lets them wait, in the policy's status and as news; a policy that cannot be
//! read.

use testudo_metrics::Source;
use testudo_model::policy::RotationProgress;
use testudo_model::{Authorities, CaPhase, CertificateFacts, EncryptionPolicyStatus, UnixTime};

use super::giving::Stepped;
use super::*;
use crate::stragglers::STRAGGLES;

/// A round on what stands in the store now.
async fn round(stepped: &mut Stepped) {
    let world = &mut stepped.controller.world;
    world.nodes.read_again(&stepped.store).await.unwrap();
    world.policies.read_again(&stepped.store).await.unwrap();
    stepped.controller.reconcile().await.unwrap();
}

async fn status(stepped: &Stepped) -> EncryptionPolicyStatus {
    let policy = stepped.store.get::<EncryptionPolicyKind>(CLUSTER).await;
    policy.unwrap().unwrap().status
}

/// The node says that it shows a certificate of this rotation.
async fn renewed(stepped: &Stepped, name: &str, rotation: u64) {
    change_status::<_, NodeEncryptionKind>(&stepped.store.store, name, |_, status| {
        status.rotation = rotation;
        status.certificate = Some(CertificateFacts {
            subject: name.to_owned(),
            issuer: "CA".to_owned(),
            serial: rotation.to_string(),
            not_before: UnixTime(1),
            not_after: UnixTime(i64::from(u32::MAX)),
        });
    })
    .await
    .unwrap();
}

async fn ask(stepped: &Stepped, change: impl Fn(&mut EncryptionPolicySpec)) {
    let policy = stepped.store.get::<EncryptionPolicyKind>(CLUSTER).await;
    let mut policy = policy.unwrap().unwrap();
    change(&mut policy.spec);
    stepped.store.apply(policy).await.unwrap();
}

async fn two_nodes() -> Stepped {
    let stepped = Stepped::start().await;
    for name in ["n1", "n2"] {
        stepped.store.create(node(name)).await.unwrap();
        renewed(&stepped, name, 0).await;
    }
    want(&stepped.store.store, Mode::Full).await;
    stepped
}

#[tokio::test]
async fn a_renewal_of_certificates_shows_its_progress_and_names_who_lets_it_wait() {
    let mut stepped = two_nodes().await;
    round(&mut stepped).await;
    assert_eq!(status(&stepped).await.certificate_rotation, None);
    ask(&stepped, |spec| spec.certificates.rotation = 1).await;
    round(&mut stepped).await;
    let begun = status(&stepped).await.certificate_rotation.unwrap();
    assert_eq!((begun.number, begun.done, begun.nodes), (1, 0, 2));
    assert_eq!(begun.waiting_on, ["n1", "n2"]);
    renewed(&stepped, "n1", 1).await;
    // Progress is held back for a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    round(&mut stepped).await;
    let one = status(&stepped).await.certificate_rotation.unwrap();
    assert_eq!(
        (one.done, one.waiting_on.clone()),
        (1, vec!["n2".to_owned()])
    );
    assert_eq!(one.since, begun.since);
    let safe = stepped.controller.safe.clone();
    let page = stepped.numbers.page().await.unwrap().encode();
    assert!(
        !page.contains("rotation_waiting 1.0"),
        "it is shown by the loop"
    );
    stepped
        .controller
        .numbers
        .stands(crate::numbers::Standing::Leads);
    stepped.controller.show();
    let page = stepped.numbers.page().await.unwrap().encode();
    let waits = "testudo_controller_certificate_rotation_waiting 1.0";
    assert!(page.lines().any(|line| line == waits), "{page}");
    // n2 says nothing more.
    tokio::time::sleep(STRAGGLES + Duration::from_millis(50)).await;
    for _ in 0..3 {
        round(&mut stepped).await;
    }
    let told = safe.told("CertificateStragglers");
    assert_eq!(told.len(), 1, "{told:?}");
    let text = "rotation 1 of the nodes' certificates waits on 1 node: n2";
    assert!(told[0].starts_with(text), "{told:?}");
    renewed(&stepped, "n2", 1).await;
    round(&mut stepped).await;
    let done = status(&stepped).await.certificate_rotation.unwrap();
    assert_eq!((done.done, done.waiting_on.len()), (2, 0));
    let told = safe.told("CertificateRotation");
    assert!(told[0].contains("2 of 2 nodes are to renew"), "{told:?}");
    assert!(told[1].contains("all 2 nodes are done"), "{told:?}");
    assert_eq!(told.len(), 2);
}

#[tokio::test]
async fn a_rotation_of_the_ca_stands_in_the_policy_too_and_its_stragglers_are_told() {
    let mut stepped = two_nodes().await;
    round(&mut stepped).await;
    ask(&stepped, |spec| spec.certificates.ca_rotation = 1).await;
    for _ in 0..2 {
        round(&mut stepped).await;
    }
    let trusted = super::rotation::names(&super::rotation::bundle(&stepped.store.store).await);
    assert_eq!(trusted.len(), 2);
    let says = Authorities {
        presented: trusted.first().cloned(),
        peers: trusted.first().cloned().into_iter().collect(),
        trusted,
        ..Authorities::default()
    };
    super::rotation::says(&stepped.store.store, "n1", says).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..2 {
        round(&mut stepped).await;
        let world = &mut stepped.controller.world;
        world.bundles.read_again(&stepped.store).await.unwrap();
    }
    let ca = status(&stepped).await.ca_rotation.unwrap();
    let wanted = RotationProgress {
        number: 1,
        phase: Some(CaPhase::Trusting),
        done: 1,
        nodes: 2,
        waiting_on: vec!["n2".to_owned()],
        since: ca.since,
    };
    assert_eq!(ca, wanted);
    assert!(ca.since.is_some());
    tokio::time::sleep(STRAGGLES + Duration::from_millis(50)).await;
    for _ in 0..3 {
        round(&mut stepped).await;
    }
    let told = stepped.controller.safe.told("Stragglers");
    let of_the_ca = told.iter().filter(|text| text.contains("of the CA"));
    let of_the_ca: Vec<_> = of_the_ca.collect();
    let text = "rotation 1 of the CA, Trusting, waits on 1 node: n2 (";
    assert!(of_the_ca.last().unwrap().starts_with(text), "{told:?}");
}

/// CRDs of an older build: what they do not have is left out of each write.
#[tokio::test]
async fn a_status_that_the_store_cuts_is_not_written_again_and_again() {
    let mut stepped = two_nodes().await;
    stepped
        .store
        .cut(|status| status.certificate_rotation = None);
    ask(&stepped, |spec| spec.certificates.rotation = 1).await;
    stepped.controller.reconcile().await.unwrap();
    round(&mut stepped).await;
    let before = stepped.store.writes();
    assert!(before > 0);
    for _ in 0..5 {
        stepped.controller.reconcile().await.unwrap();
    }
    assert_eq!(stepped.store.writes(), before);
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_is_told_once_and_the_last_goes_on() {
    let mut stepped = two_nodes().await;
    round(&mut stepped).await;
    let before = status(&stepped).await;
    assert_eq!(before.phase, Phase::Prepared);
    let file = stepped
        .store
        .store
        .root()
        .join("encryptionpolicies/cluster.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("mode: Full", "mode: Newer")).unwrap();
    let world = &mut stepped.controller.world;
    let stood = world.policies.objects.clone();
    world.policies.read_again(&stepped.store).await.unwrap();
    assert!(world.policies.problem(CLUSTER).is_some());
    // As a watch does: the last good version stays.
    world.policies.objects = stood;
    for name in ["n1", "n2"] {
        let word = Acknowledgement {
            phase: before.phase,
            rollout: before.rollout,
        };
        change_status::<_, NodeEncryptionKind>(&stepped.store.store, name, |_, status| {
            status.acknowledged = Some(word);
        })
        .await
        .unwrap();
    }
    let world = &mut stepped.controller.world;
    world.nodes.read_again(&stepped.store).await.unwrap();
    let safe = stepped.controller.safe.clone();
    for _ in 0..3 {
        stepped.controller.reconcile().await.unwrap();
    }
    let told = safe.told("PolicyUnreadable");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("Newer"), "{told:?}");
    let policies = &stepped.controller.world.policies;
    assert_eq!(policies.objects[CLUSTER].status.phase, Phase::Prepared);
    std::fs::write(&file, good).unwrap();
    round(&mut stepped).await;
    assert_eq!(safe.told("PolicyReadable").len(), 1);
    assert!(status(&stepped).await.phase > Phase::Prepared);
}
