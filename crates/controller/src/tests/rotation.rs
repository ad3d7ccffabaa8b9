//! One CA follows another, with nodes that do what agents do.

use testudo_crypto::SystemRandom;
use testudo_model::policy::TAKE_BACK_CA;
use testudo_model::{Authorities, CaPhase, TrustBundleStatus, UnixTime};
use testudo_pki::{Ca, CaOptions};

use super::*;

/// Names of the CAs in the bundle, the one that signs first.
pub(super) fn names(bundle: &testudo_model::TrustBundle) -> Vec<String> {
    let trusted = TrustBundle::from_pem(&bundle.spec.certificates).unwrap();
    trusted.facts().map(|ca| ca.subject).collect()
}

/// Trusts what the bundle says and takes certificates of the CA that signs.
async fn follow(store: DirStore, name: &str) {
    let token = token(&store, name);
    let mut watch = store.watch::<TrustBundleKind>().await.unwrap();
    let mut presented: Option<String> = None;
    while let Some(event) = watch.next().await {
        let (Event::Added(bundle) | Event::Modified(bundle)) = event else {
            continue;
        };
        let names = names(&bundle);
        let say = |presented: Option<String>, asking| Authorities {
            trusted: names.clone(),
            peers: presented.iter().cloned().collect(),
            presented,
            asking,
            ..Authorities::default()
        };
        if presented.as_ref() != names.first() {
            says(&store, name, say(presented.clone(), true)).await;
            store.apply(request(name, &token)).await.unwrap();
            let signed = answer(&store, name).await.status.certificate.unwrap();
            let chain = chain_from_pem(&signed).unwrap();
            let facts = testudo_pki::CertificateFacts::read(&chain[0]).unwrap();
            assert!(names.contains(&facts.issuer), "{names:?}, {}", facts.issuer);
            presented = Some(facts.issuer);
        }
        says(&store, name, say(presented.clone(), false)).await;
    }
}

pub(super) async fn says(store: &DirStore, name: &str, authorities: Authorities) {
    change_status::<_, NodeEncryptionKind>(store, name, |_, status| {
        status.authorities.clone_from(&authorities);
    })
    .await
    .unwrap();
}

pub(super) async fn bundle(store: &DirStore) -> testudo_model::TrustBundle {
    store
        .get::<TrustBundleKind>(CLUSTER)
        .await
        .unwrap()
        .unwrap()
}

/// Waits until the rotation stands as wanted.
pub(super) async fn until_status(store: &DirStore, wanted: impl Fn(&TrustBundleStatus) -> bool) {
    let wait = async {
        let mut watch = store.watch::<TrustBundleKind>().await.unwrap();
        while let Some(event) = watch.next().await {
            if let Event::Added(bundle) | Event::Modified(bundle) = event
                && wanted(&bundle.status)
            {
                return;
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "{:#?}", bundle(store).await.status);
}

/// Changes the policy: what is asked for, and what is to be taken back.
pub(super) async fn policy(store: &DirStore, asked: u64, take_back: Option<u64>) {
    let mut policy = EncryptionPolicy::new(CLUSTER, EncryptionPolicySpec::default());
    policy.spec.mode = Mode::Full;
    policy.spec.overlay.kind = OverlayType::Vxlan;
    policy.spec.certificates.ca_rotation = asked;
    if let Some(number) = take_back {
        let annotations = &mut policy.metadata.annotations;
        annotations.insert(TAKE_BACK_CA.to_owned(), number.to_string());
    }
    store.apply(policy).await.unwrap();
}

pub(super) fn stands(phase: CaPhase, rotation: u64) -> impl Fn(&TrustBundleStatus) -> bool {
    move |s| s.phase == phase && s.rotation == rotation
}

fn keys(dir: &Path) -> usize {
    let text = std::fs::read(dir.join("secrets/ca.pem")).unwrap();
    testudo_pki::keys_from_pem(&text).unwrap().len()
}

/// A controller, the name of its CA, and two nodes, of which n1 follows and n2 says nothing.
async fn two_nodes() -> (tempfile::TempDir, DirStore, Running, String) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    for name in ["n1", "n2"] {
        store.create(node(name)).await.unwrap();
    }
    policy(&store, 0, None).await;
    let controller = Running::start(dir.path());
    until_published(&store).await;
    let old = names(&bundle(&store).await).remove(0);
    tokio::spawn(follow(store.clone(), "n1"));
    (dir, store, controller, old)
}

#[tokio::test]
async fn one_ca_follows_another_and_each_request_is_answered_by_the_one_that_signs() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    policy(&store, 7, None).await;
    let controller = Running::start(dir.path());
    until_published(&store).await;
    // What was asked for before there was a CA is no reason to replace it.
    until_status(&store, |s| s.answered == 7 && s.rotation == 0).await;
    let first = names(&bundle(&store).await);
    for name in ["n1", "n2", "n3"] {
        store.create(node(name)).await.unwrap();
        tokio::spawn(follow(store.clone(), name));
    }
    for rotation in 1..=2 {
        policy(&store, 7 + rotation, None).await;
        until_status(&store, stands(CaPhase::Settled, rotation)).await;
        let bundle = bundle(&store).await;
        assert_ne!(names(&bundle), first);
        assert_eq!(names(&bundle), std::slice::from_ref(&bundle.status.signer));
        assert_eq!(
            (keys(dir.path()), bundle.status.answered),
            (1, 7 + rotation)
        );
        assert!(
            bundle.status.message.starts_with("done"),
            "{:?}",
            bundle.status
        );
    }
    controller.stop().await;
}

/// A node that is down holds the rotation where it is, and is named with what it lacks; a controller
/// that starts anew goes on from there, and steps over nobody.
#[tokio::test]
async fn a_straggler_holds_each_step_through_restarts_of_the_controller() {
    let (dir, store, mut controller, old) = two_nodes().await;
    policy(&store, 1, None).await;
    let held = |phase, reason: &'static str| {
        move |s: &TrustBundleStatus| {
            let [waiting] = s.waiting_on.as_slice() else {
                return false;
            };
            s.phase == phase && waiting.node == "n2" && waiting.reason.contains(reason)
        }
    };
    let word = |trusted: &[&String], presented: &str| Authorities {
        trusted: trusted.iter().map(|ca| (*ca).clone()).collect(),
        presented: Some(presented.to_owned()),
        ..Authorities::default()
    };
    until_status(&store, held(CaPhase::Trusting, "does not trust")).await;
    let new = bundle(&store).await.status.other.unwrap();
    let steps = [
        (
            CaPhase::Trusting,
            "does not trust",
            word(&[&old, &new], &old),
        ),
        (
            CaPhase::Issuing,
            "shows a certificate of",
            word(&[&new, &old], &new),
        ),
        (CaPhase::Retiring, "still trusts", word(&[&new], &new)),
    ];
    for (phase, reason, says_next) in steps {
        until_status(&store, held(phase, reason)).await;
        controller.stop().await;
        controller = Running::start(dir.path());
        tokio::time::sleep(Duration::from_millis(200)).await;
        until_status(&store, held(phase, reason)).await;
        // Asked for again meanwhile: not before this one is done.
        assert_eq!(bundle(&store).await.status.rotation, 1);
        says(&store, "n2", says_next).await;
    }
    until_status(&store, stands(CaPhase::Settled, 1)).await;
    assert_eq!(names(&bundle(&store).await), [new]);
    controller.stop().await;
}

#[tokio::test]
async fn a_rotation_is_taken_back_before_and_after_the_new_ca_has_signed() {
    let (dir, store, controller, old) = two_nodes().await;
    policy(&store, 1, None).await;
    until_status(&store, stands(CaPhase::Trusting, 1)).await;
    policy(&store, 1, Some(1)).await;
    until_status(&store, |s| stands(CaPhase::Settled, 1)(s) && s.taken_back).await;
    assert_eq!(
        (names(&bundle(&store).await), keys(dir.path())),
        (vec![old.clone()], 1)
    );

    // The old number takes nothing back.
    policy(&store, 2, Some(1)).await;
    until_status(&store, stands(CaPhase::Trusting, 2)).await;
    let new = bundle(&store).await.status.other.unwrap();
    let both = Authorities {
        trusted: vec![old.clone(), new.clone()],
        presented: Some(old.clone()),
        ..Authorities::default()
    };
    says(&store, "n2", both).await;
    until_status(&store, |s| {
        stands(CaPhase::Issuing, 2)(s) && s.waiting_on.len() == 1
    })
    .await;
    let n1 = store
        .get::<NodeEncryptionKind>("n1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(n1.status.authorities.presented, Some(new));
    policy(&store, 2, Some(2)).await;
    until_status(&store, stands(CaPhase::Retiring, 2)).await;
    let only_old = Authorities {
        trusted: vec![old.clone()],
        presented: Some(old.clone()),
        ..Authorities::default()
    };
    says(&store, "n2", only_old).await;
    until_status(&store, |s| stands(CaPhase::Settled, 2)(s) && s.taken_back).await;
    let bundle = bundle(&store).await;
    assert_eq!(names(&bundle), std::slice::from_ref(&old));
    assert_eq!(keys(dir.path()), 1);
    assert!(
        bundle.status.message.contains("stayed"),
        "{:?}",
        bundle.status
    );
    let n1 = store
        .get::<NodeEncryptionKind>("n1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(n1.status.authorities.presented, Some(old));
    controller.stop().await;
}

#[tokio::test]
async fn an_old_ca_is_replaced_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    store.create(node("n1")).await.unwrap();
    let made = |days: u64| {
        let made = crate::run::seconds() - days * 24 * 3600;
        let ca = Ca::generate(&CaOptions::default(), made, &mut SystemRandom::new()).unwrap();
        let text = [
            ca.certificate_pem().as_bytes(),
            ca.key_pem().unwrap().as_bytes(),
        ]
        .concat();
        testudo_store::files::write_private(&store.secrets().join("ca.pem"), &text).unwrap();
    };
    made(7 * 365);
    let controller = Running::start(dir.path());
    until_published(&store).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bundle(&store).await.status.rotation, 0);
    controller.stop().await;
    made(8 * 365 + 180);
    let controller = Running::start(dir.path());
    until_status(&store, stands(CaPhase::Trusting, 1)).await;
    let status = bundle(&store).await.status;
    assert!(status.message.contains("by itself"), "{status:?}");
    // Taken back it does not begin again at once, for nobody would get it settled.
    policy(&store, 0, Some(1)).await;
    until_status(&store, stands(CaPhase::Settled, 1)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bundle(&store).await.status.rotation, 1);
    policy(&store, 1, None).await;
    tokio::spawn(follow(store.clone(), "n1"));
    until_status(&store, stands(CaPhase::Settled, 2)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bundle(&store).await.status.rotation, 2, "once is enough");
    controller.stop().await;
}

/// A CA of this age is the controller's.
fn made(store: &DirStore, days: u64) {
    let made = crate::run::seconds() - days * 24 * 3600;
    let ca = Ca::generate(&CaOptions::default(), made, &mut SystemRandom::new()).unwrap();
    let text = [
        ca.certificate_pem().as_bytes(),
        ca.key_pem().unwrap().as_bytes(),
    ]
    .concat();
    testudo_store::files::write_private(&store.secrets().join("ca.pem"), &text).unwrap();
}

/// Nobody waits for a node that is down when the CA has ended, nor goes back to it.
#[tokio::test]
async fn a_ca_that_has_ended_is_replaced_without_the_nodes_that_are_down() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    for name in ["n1", "n2"] {
        store.create(node(name)).await.unwrap();
    }
    made(&store, 11 * 365);
    let controller = Running::start(dir.path());
    until_published(&store).await;
    let ended = names(&bundle(&store).await).remove(0);
    until_status(&store, stands(CaPhase::Issuing, 1)).await;
    let status = bundle(&store).await.status;
    assert_ne!(status.signer, ended);
    assert!(status.irrevocable.contains("has ended"), "{status:?}");
    assert!(status.signer_not_after > Some(UnixTime(0)), "{status:?}");
    policy(&store, 0, Some(1)).await;
    for name in ["n1", "n2"] {
        tokio::spawn(follow(store.clone(), name));
    }
    until_status(&store, |s| stands(CaPhase::Settled, 1)(s) && !s.taken_back).await;
    controller.stop().await;
}

/// A rotation that has begun by itself ends visibly when it is taken back, however old the CA is.
#[tokio::test]
async fn a_rotation_that_is_due_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    store.create(node("n1")).await.unwrap();
    made(&store, 9 * 365 + 100);
    let mut controller = Running::start(dir.path());
    until_status(&store, stands(CaPhase::Trusting, 1)).await;
    policy(&store, 0, Some(1)).await;
    until_status(&store, |s| stands(CaPhase::Settled, 1)(s) && s.taken_back).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(bundle(&store).await.status.rotation, 1);
        controller.stop().await;
        controller = Running::start(dir.path());
    }
    controller.stop().await;
}

/// The status stays small in a large cluster, and a denial is told with what the node lacks.
#[tokio::test]
async fn of_many_nodes_that_are_waited_for_the_first_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    for number in 10..40 {
        let name = format!("n{number}");
        let mut node = node(&name);
        node.spec.uid = NodeUid::new(format!("uid-{name}")).unwrap();
        store.create(node).await.unwrap();
    }
    // It has no token.
    store
        .apply(request(
            "n10",
            &testudo_pki::new_token(&mut SystemRandom::new()),
        ))
        .await
        .unwrap();
    policy(&store, 0, None).await;
    let controller = Running::start(dir.path());
    until_published(&store).await;
    policy(&store, 1, None).await;
    until_status(&store, |s| s.waiting == 30).await;
    let status = bundle(&store).await.status;
    assert_eq!(status.waiting_on.len(), 20);
    let reason = &status.waiting_on[0].reason;
    assert!(
        reason.contains("denied: node n10 has no join token"),
        "{reason}"
    );
    controller.stop().await;
}

/// A node whose object is damaged may have learnt of anything since: its earlier word does not count.
#[tokio::test]
async fn a_node_whose_object_is_damaged_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    store.create(node("n1")).await.unwrap();
    policy(&store, 0, None).await;
    let controller = Running::start(dir.path());
    until_published(&store).await;
    policy(&store, 1, None).await;
    until_status(&store, stands(CaPhase::Trusting, 1)).await;
    let file = dir.path().join("nodeencryptions/n1.yaml");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "damaged: [").unwrap();
    until_status(&store, |s| {
        s.waiting_on
            .iter()
            .any(|w| w.reason.contains("cannot be read"))
    })
    .await;
    std::fs::write(&file, good).unwrap();
    until_status(&store, |s| {
        s.waiting_on
            .iter()
            .any(|w| w.reason.contains("does not trust"))
    })
    .await;
    controller.stop().await;
}
