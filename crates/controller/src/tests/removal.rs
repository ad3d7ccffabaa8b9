//! Nodes that are gone: what they hold is taken back, and nothing of anybody else.

use testudo_model::{CaPhase, NodeName};
use testudo_pki::CertificateCheck;
use testudo_store::removed;

use super::rotation::{bundle, policy, stands, until_status};
use super::*;

/// A store with nodes n1 and n2 that have certificates, which are given with it.
async fn two_with_certificates() -> (tempfile::TempDir, DirStore, Running, [Vec<u8>; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let controller = Running::start(dir.path());
    until_published(&store).await;
    let mut certificates = Vec::new();
    for name in ["n1", "n2"] {
        store.create(node(name)).await.unwrap();
        certificates.push(certificate(&store, name).await);
    }
    let certificates = certificates.try_into().unwrap();
    (dir, store, controller, certificates)
}

/// The node's next certificate; a token is made for it if it has none.
async fn certificate(store: &DirStore, name: &str) -> Vec<u8> {
    token(store, name);
    let status = asked(store, name).await;
    let pem = status.certificate.expect("signed");
    chain_from_pem(&pem).unwrap().remove(0)
}

/// Asks as the node does, with the token that it has.
async fn asked(store: &DirStore, name: &str) -> testudo_model::CertificateRequestStatus {
    let token = tokens::read(store, &NodeName::new(name).unwrap()).unwrap();
    let token = match token {
        Some(token) => SecretBytes::new(token.as_bytes().to_vec()),
        None => token_of_nobody(),
    };
    store.apply(request(name, &token)).await.unwrap();
    answer(store, name).await.status
}

fn token_of_nobody() -> SecretBytes {
    SecretBytes::new(vec![7; 32])
}

/// What nodes say of a certificate by the bundle that is published.
async fn verdict(store: &DirStore, certificate: &[u8]) -> Result<(), CertificateCheck> {
    let published = bundle(store).await.spec;
    let mut trusted = TrustBundle::from_pem(&published.certificates).unwrap();
    let refused = trusted.add_revocation_lists_from_pem(&published.revocation_lists);
    assert!(refused.is_empty(), "{refused:?}");
    let now = crate::run::seconds();
    verify_chain(&[certificate], &trusted, ExpectedPeer::AnyNode, now)
        .map(drop)
        .map_err(|error| error.check)
}

async fn until_revoked(store: &DirStore, certificate: &[u8]) {
    let deadline = Instant::now() + PATIENCE;
    while verdict(store, certificate).await != Err(CertificateCheck::Revoked) {
        assert!(Instant::now() < deadline, "it was not revoked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_gone(store: &DirStore, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(node) = store.get::<NodeEncryptionKind>(name).await.unwrap() {
        assert!(Instant::now() < deadline, "{node:?} stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn remove(store: &DirStore, name: &str) {
    removed::mark(store, &NodeName::new(name).unwrap()).unwrap();
    store.delete::<NodeEncryptionKind>(name).await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_removed_is_revoked_and_comes_back_with_a_new_token_only() {
    let (_dir, store, controller, [one, two]) = two_with_certificates().await;
    let token_1 = token(&store, "n1");
    assert_eq!(verdict(&store, &one).await, Ok(()));
    remove(&store, "n1").await;
    until_revoked(&store, &one).await;
    assert_eq!(verdict(&store, &two).await, Ok(()));
    // Its agent runs, and does not know yet.
    store.apply(node("n1")).await.unwrap();
    until_gone(&store, "n1").await;
    let denied = asked(&store, "n1").await.denied.unwrap();
    assert!(denied.contains("testudo certs token n1"), "{denied}");
    store.apply(request("n1", &token_1)).await.unwrap();
    assert!(answer(&store, "n1").await.status.denied.is_some());

    // Let in again, under the UID that it had.
    let back = certificate(&store, "n1").await;
    store.apply(node("n1")).await.unwrap();
    assert_eq!(verdict(&store, &back).await, Ok(()));
    assert_eq!(verdict(&store, &one).await, Err(CertificateCheck::Revoked));
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(
        store
            .get::<NodeEncryptionKind>("n1")
            .await
            .unwrap()
            .is_some()
    );
    assert!(removed::list(&store).unwrap().is_empty());
    controller.stop().await;
}

/// With a trace and without one; an object that comes back at once means nothing.
#[tokio::test]
async fn a_controller_that_was_away_meanwhile_finds_out() {
    for marked in [true, false] {
        let (dir, store, controller, [one, two]) = two_with_certificates().await;
        // Seen by the controller, so that it knows what to miss.
        let register = dir.path().join("secrets/certificates");
        let seen = || {
            std::fs::read_to_string(&register)
                .unwrap()
                .contains("uid-n1 seen")
        };
        let deadline = Instant::now() + PATIENCE;
        while !seen() {
            assert!(Instant::now() < deadline, "n1 was not seen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        controller.stop().await;
        match marked {
            true => remove(&store, "n1").await,
            false => {
                store.delete::<NodeEncryptionKind>("n1").await.unwrap();
            }
        }
        let controller = Running::start(dir.path());
        until_revoked(&store, &one).await;
        assert_eq!(verdict(&store, &two).await, Ok(()));
        // n2 was away for a moment.
        store.delete::<NodeEncryptionKind>("n2").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        store.create(node("n2")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(verdict(&store, &two).await, Ok(()));
        let mode = std::fs::metadata(&register).unwrap().permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o600
        );
        controller.stop().await;
    }
}

/// A directory that is not there is no reason to throw all nodes out.
#[tokio::test]
async fn when_all_nodes_are_away_at_once_nobody_is_revoked() {
    let (_dir, store, controller, [one, two]) = two_with_certificates().await;
    for name in ["n1", "n2"] {
        store.delete::<NodeEncryptionKind>(name).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(900)).await;
    for certificate in [&one, &two] {
        assert_eq!(verdict(&store, certificate).await, Ok(()));
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_node_made_anew_under_its_name_loses_what_it_had_before() {
    let (_dir, store, controller, [one, two]) = two_with_certificates().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut anew = node("n1");
    anew.spec.uid = NodeUid::new("uid-of-another").unwrap();
    store.apply(anew).await.unwrap();
    until_revoked(&store, &one).await;
    assert_eq!(verdict(&store, &two).await, Ok(()));
    assert!(
        store
            .get::<NodeEncryptionKind>("n1")
            .await
            .unwrap()
            .is_some()
    );
    controller.stop().await;
}

/// While one CA follows another a node has certificates of both, and each CA takes its own back.
#[tokio::test]
async fn in_a_rotation_each_ca_takes_back_what_it_has_signed() {
    let (_dir, store, controller, [one, two]) = two_with_certificates().await;
    policy(&store, 1, None).await;
    until_status(&store, stands(CaPhase::Trusting, 1)).await;
    // Both nodes trust the new CA, and say nothing more.
    let names: Vec<String> = super::rotation::names(&bundle(&store).await);
    for name in ["n1", "n2"] {
        let authorities = testudo_model::Authorities {
            trusted: names.clone(),
            ..Default::default()
        };
        super::rotation::says(&store, name, authorities).await;
    }
    until_status(&store, stands(CaPhase::Issuing, 1)).await;
    let newer = certificate(&store, "n1").await;
    remove(&store, "n1").await;
    until_revoked(&store, &one).await;
    until_revoked(&store, &newer).await;
    assert_eq!(verdict(&store, &two).await, Ok(()));
    let lists = bundle(&store).await.spec.revocation_lists;
    assert_eq!(lists.matches("BEGIN X509 CRL").count(), 2);
    controller.stop().await;
}

/// The register was lost, and somebody has put an empty one in its place; nodes show what they have.
#[tokio::test]
async fn certificates_that_the_register_has_lost_are_taken_back_too() {
    let (dir, store, controller, [one, two]) = two_with_certificates().await;
    controller.stop().await;
    let register = dir.path().join("secrets/certificates");
    std::fs::remove_file(&register).unwrap();
    let refused = Running::start(dir.path()).task.await.unwrap();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("restore it"), "{refused}");
    let empty = b"testudo-register 1\n";
    testudo_store::files::write_private(&register, empty).unwrap();
    for (name, der) in [("n1", &one), ("n2", &two)] {
        let facts = testudo_pki::CertificateFacts::read(der).unwrap();
        let time = |seconds| testudo_model::UnixTime(i64::try_from(seconds).unwrap());
        let shown = testudo_model::CertificateFacts {
            subject: facts.subject.clone(),
            issuer: facts.issuer.clone(),
            serial: facts.serial.clone(),
            not_before: time(facts.times.not_before),
            not_after: time(facts.times.not_after),
        };
        change_status::<_, NodeEncryptionKind>(&store, name, |_, status| {
            status.certificate = Some(shown.clone());
        })
        .await
        .unwrap();
    }
    let controller = Running::start(dir.path());
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read(&register).unwrap() == empty {
        assert!(Instant::now() < deadline, "nothing is written down");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    remove(&store, "n1").await;
    until_revoked(&store, &one).await;
    assert_eq!(verdict(&store, &two).await, Ok(()));
    controller.stop().await;
}
