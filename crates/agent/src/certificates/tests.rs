//! A node and a CA, without a store between them.

use std::path::Path;

use testudo_crypto::{DangerousSeededRandom, SystemRandom};
use testudo_model::{BootId, NodeName, NodeUid};
use testudo_pki::{Ca, CaOptions, NodeIdentity};

use super::*;

const NOW: i64 = 1_795_318_200;

struct World {
    dir: tempfile::TempDir,
    ca: Ca,
    bundle: TrustBundle,
    turn: Turn,
    rotation: u64,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let token = pki::new_token(&mut DangerousSeededRandom::new(1));
        let text = pki::token_to_hex(&token);
        std::fs::write(dir.path().join("token"), text.as_bytes()).unwrap();
        let ca = new_ca();
        let bundle = TrustBundle::from_pem(&ca.certificate_pem()).unwrap();
        World {
            dir,
            ca,
            bundle,
            turn: Turn::Later(UnixTime(NOW + 1_000_000)),
            rotation: 0,
        }
    }

    fn open(&self) -> Certificates {
        open(self.dir.path())
    }

    /// As the controller answers.
    fn answer(&self, ask: &CertificateRequestSpec, at: i64) -> CertificateRequestStatus {
        let identity = NodeIdentity::new(ask.node.as_str(), ask.uid.as_str()).unwrap();
        let request = pki::request_from_pem(&ask.request).unwrap();
        let lifetime = 10_000_000;
        let now = seconds(UnixTime(at));
        let issued = self
            .ca
            .sign_request(&request, &identity, lifetime, now, &mut SystemRandom::new())
            .unwrap();
        CertificateRequestStatus {
            answers: Some(ask.proof.clone()),
            certificate: Some(pki::chain_to_pem(&[issued.der])),
            denied: None,
        }
    }

    fn consider(
        &self,
        node: &mut Certificates,
        stored: Option<(&CertificateRequestSpec, &CertificateRequestStatus)>,
        at: i64,
    ) -> Outcome {
        node.consider(
            &self.turn,
            self.rotation,
            &self.bundle,
            stored,
            UnixTime(at),
        )
    }

    fn first_certificate(&self, node: &mut Certificates) {
        let ask = self.consider(node, None, NOW).ask.unwrap();
        let status = self.answer(&ask, NOW);
        assert!(self.consider(node, Some((&ask, &status)), NOW).renewed);
    }
}

fn new_ca() -> Ca {
    let now = seconds(UnixTime(NOW));
    Ca::generate(&CaOptions::default(), now, &mut SystemRandom::new()).unwrap()
}

fn open(dir: &Path) -> Certificates {
    open_with(dir, Voucher::Token(Some(dir.join("token"))))
}

fn open_with(dir: &Path, voucher: Voucher) -> Certificates {
    let uid = NodeUid::new("11111111-2222-4333-8444-555555555555").unwrap();
    let name = NodeName::new("n1").unwrap();
    let identity = Identity {
        node: NodeIdentity::new(name.as_str(), uid.as_str()).unwrap(),
        name,
        uid,
        boot: BootId::new("b").unwrap(),
    };
    Certificates::open(dir, identity, voucher)
}

#[test]
fn a_node_asks_once_and_uses_the_answer() {
    let world = World::new();
    let mut node = world.open();
    let ask = world.consider(&mut node, None, NOW).ask.unwrap();
    let empty = CertificateRequestStatus::default();
    let waiting = world.consider(&mut node, Some((&ask, &empty)), NOW + 1);
    assert_eq!(waiting, Outcome::default());

    let status = world.answer(&ask, NOW);
    let outcome = world.consider(&mut node, Some((&ask, &status)), NOW + 2);
    assert!(outcome.renewed && outcome.ask.is_none());
    assert_eq!(outcome.again, Some(UnixTime(NOW + 2)));
    // kube-ovn#5575 (L108): the next look is planned, long before the end.
    let after = world.consider(&mut node, Some((&ask, &status)), NOW + 2);
    let facts = node.facts().unwrap();
    assert!(after.ask.is_none() && after.again.unwrap() < facts.not_after);
    assert!(node.local_identity().unwrap().is_some());
    assert!(!node.dir.join(PENDING).exists());
}

#[test]
fn a_restart_goes_on_with_the_same_request_and_the_same_certificate() {
    let world = World::new();
    let ask = world.consider(&mut world.open(), None, NOW).ask.unwrap();
    let mut node = world.open();
    assert_eq!(
        world.consider(&mut node, None, NOW).ask.as_ref(),
        Some(&ask)
    );
    let status = world.answer(&ask, NOW);
    assert!(
        world
            .consider(&mut node, Some((&ask, &status)), NOW)
            .renewed
    );
    let serial = node.facts().unwrap().serial;
    let mut node = world.open();
    assert_eq!(node.facts().unwrap().serial, serial);
    let outcome = world.consider(&mut node, Some((&ask, &status)), NOW);
    assert!(!outcome.renewed && outcome.ask.is_none());
}

#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let mut node = world.open();
    let mode = |name: &str| {
        let metadata = std::fs::metadata(node_path(&world, name)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    let ask = world.consider(&mut node, None, NOW).ask.unwrap();
    assert_eq!(mode(PENDING), 0o600);
    let status = world.answer(&ask, NOW);
    world.consider(&mut node, Some((&ask, &status)), NOW);
    assert_eq!(mode(CURRENT), 0o600);
}

fn node_path(world: &World, name: &str) -> PathBuf {
    world.dir.path().join(name)
}

#[test]
fn a_rotation_and_age_each_ask_anew_while_the_old_one_serves() {
    let mut world = World::new();
    let mut node = world.open();
    world.first_certificate(&mut node);
    world.rotation = 1;
    world.turn = Turn::Now(Reason::Rotation(1));
    let ask = world.consider(&mut node, None, NOW + 5).ask.unwrap();
    assert_eq!(node.current().unwrap().rotation, 0);
    let status = world.answer(&ask, NOW + 5);
    world.turn = Turn::Later(UnixTime(NOW + 1_000_000));
    assert!(
        world
            .consider(&mut node, Some((&ask, &status)), NOW + 6)
            .renewed
    );
    assert_eq!(node.current().unwrap().rotation, 1);

    // A certificate that comes old out of the controller does not make the node ask at once.
    world.turn = Turn::Now(Reason::Age);
    let soon = world.consider(&mut node, Some((&ask, &status)), NOW + 8);
    assert_eq!((soon.ask, soon.again), (None, Some(UnixTime(NOW + 16))));
    let later = world.consider(&mut node, Some((&ask, &status)), NOW + 3601);
    assert!(later.ask.is_some());
}

#[test]
fn an_old_answer_does_not_count_for_a_new_request() {
    let mut world = World::new();
    let mut node = world.open();
    let old = world.consider(&mut node, None, NOW).ask.unwrap();
    let status = world.answer(&old, NOW);
    world.consider(&mut node, Some((&old, &status)), NOW);
    world.rotation = 1;
    world.turn = Turn::Now(Reason::Rotation(1));
    let outcome = world.consider(&mut node, Some((&old, &status)), NOW);
    assert!(!outcome.renewed);
    assert_ne!(outcome.ask.unwrap().proof, old.proof);
}

/// kube-ovn#5709 (L109): the CA is replaced without overlap; the node asks by itself.
#[test]
fn a_ca_that_is_gone_from_the_bundle_makes_the_node_ask() {
    let mut world = World::new();
    let mut node = world.open();
    world.first_certificate(&mut node);
    world.ca = new_ca();
    world.bundle = TrustBundle::from_pem(&world.ca.certificate_pem()).unwrap();
    let ask = world.consider(&mut node, None, NOW + 1).ask.unwrap();
    let status = world.answer(&ask, NOW + 1);
    assert!(
        world
            .consider(&mut node, Some((&ask, &status)), NOW + 1)
            .renewed
    );
}

#[test]
fn a_certificate_of_another_ca_or_key_is_not_taken() {
    let mut world = World::new();
    let mut node = world.open();
    let ask = world.consider(&mut node, None, NOW).ask.unwrap();
    let good = world.answer(&ask, NOW);

    let own = std::mem::replace(&mut world.ca, new_ca());
    let foreign = world.answer(&ask, NOW);
    assert!(
        !world
            .consider(&mut node, Some((&ask, &foreign)), NOW)
            .renewed
    );
    assert!(
        node.problem().unwrap().contains("unknown CA"),
        "{:?}",
        node.problem()
    );

    world.ca = own;
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(node_path(&world, "token"), other.path().join("token")).unwrap();
    let other_ask = world
        .consider(&mut open(other.path()), None, NOW)
        .ask
        .unwrap();
    let mut swapped = world.answer(&other_ask, NOW);
    swapped.answers = Some(ask.proof.clone());
    assert!(
        !world
            .consider(&mut node, Some((&ask, &swapped)), NOW)
            .renewed
    );
    assert!(node.problem().unwrap().contains("another key"));

    assert!(world.consider(&mut node, Some((&ask, &good)), NOW).renewed);
    assert_eq!(node.problem(), None);
}

#[test]
fn a_denial_is_shown_and_asked_again_with_a_new_request() {
    let world = World::new();
    let mut node = world.open();
    let ask = world.consider(&mut node, None, NOW).ask.unwrap();
    let denial = CertificateRequestStatus {
        answers: Some(ask.proof.clone()),
        certificate: None,
        denied: Some("the proof does not match".into()),
    };
    let stored = Some((&ask, &denial));
    let outcome = world.consider(&mut node, stored, NOW);
    assert_eq!(outcome.ask, None);
    assert!(node.problem().unwrap().contains("proof does not match"));
    let outcome = world.consider(&mut node, stored, NOW + 31);
    assert_ne!(outcome.ask.unwrap().proof, ask.proof);
}

#[test]
fn a_missing_token_is_named() {
    let world = World::new();
    std::fs::remove_file(node_path(&world, "token")).unwrap();
    let mut node = world.open();
    let outcome = world.consider(&mut node, None, NOW);
    assert_eq!(outcome.ask, None);
    assert!(outcome.again.is_some());
    assert!(node.problem().unwrap().contains("join token"));
}

#[test]
fn where_an_api_server_knows_who_asks_no_token_is_needed() {
    let world = World::new();
    std::fs::remove_file(node_path(&world, "token")).unwrap();
    let mut node = open_with(world.dir.path(), Voucher::Store);
    let ask = world.consider(&mut node, None, NOW).ask.unwrap();
    // A restart goes on with the same request, known by the same word.
    let mut node = open_with(world.dir.path(), Voucher::Store);
    let again = world.consider(&mut node, None, NOW).ask;
    assert_eq!(again.as_ref(), Some(&ask));
    let status = world.answer(&ask, NOW);
    assert!(
        world
            .consider(&mut node, Some((&ask, &status)), NOW)
            .renewed
    );
}

/// istio#32176 (L113): dating back must not age a certificate.
#[test]
fn age_counts_from_when_a_certificate_was_made() {
    let world = World::new();
    let mut node = world.open();
    world.first_certificate(&mut node);
    let facts = node.facts_by_age().unwrap();
    assert_eq!(facts.not_before, UnixTime(NOW));
    assert!(node.facts().unwrap().not_before < UnixTime(NOW));
}

/// A certificate of a CA that has left the bundle never becomes good: a node that waited for it
/// would wait for ever.
#[test]
fn an_answer_that_stays_unusable_is_asked_for_anew() {
    let mut world = World::new();
    let mut node = world.open();
    let ask = world.consider(&mut node, None, NOW).ask.unwrap();
    let status = world.answer(&ask, NOW);
    world.ca = new_ca();
    world.bundle = TrustBundle::from_pem(&world.ca.certificate_pem()).unwrap();
    let wait = i64::try_from(DENIED_RETRY).unwrap();
    for (after, asks) in [(0, false), (wait - 1, false), (wait, true)] {
        let outcome = world.consider(&mut node, Some((&ask, &status)), NOW + after);
        assert!(!outcome.renewed);
        let fresh = outcome.ask.filter(|fresh| *fresh != ask);
        assert_eq!(fresh.is_some(), asks, "{after} s");
        assert!(node.is_asking());
    }
    // One that was early is taken when its CA is there.
    let early = world.consider(&mut node, None, NOW + wait).ask.unwrap();
    let status = world.answer(&early, NOW + wait);
    let good = std::mem::take(&mut world.bundle);
    world.bundle = TrustBundle::from_pem(&new_ca().certificate_pem()).unwrap();
    let stored = Some((&early, &status));
    assert!(!world.consider(&mut node, stored, NOW + wait).renewed);
    world.bundle = good;
    assert!(world.consider(&mut node, stored, NOW + wait + 1).renewed);
    assert!(!node.is_asking());
}

#[test]
fn a_node_asks_for_a_certificate_of_the_ca_that_signs() {
    let mut world = World::new();
    let mut node = world.open();
    world.first_certificate(&mut node);
    let old = node.facts().unwrap();
    let signer = world.ca.facts().subject.clone();
    assert!(!node.is_open(Some(&signer)) && !node.is_open(None));

    let ca = new_ca();
    let both = ca.certificate_pem() + &world.ca.certificate_pem();
    world.bundle = TrustBundle::from_pem(&both).unwrap();
    let earlier = std::mem::replace(&mut world.ca, ca);
    assert!(node.is_open(Some(&world.ca.facts().subject)));
    world.turn = Turn::Now(Reason::Authority);
    let ask = world.consider(&mut node, None, NOW + 1).ask.unwrap();
    // The controller still signed with the other one: taken, and asked again a little later.
    let ca = std::mem::replace(&mut world.ca, earlier);
    let status = world.answer(&ask, NOW + 1);
    world.ca = ca;
    assert!(
        world
            .consider(&mut node, Some((&ask, &status)), NOW + 1)
            .renewed
    );
    assert_eq!(node.facts().unwrap().issuer, old.issuer);
    let soon = world.consider(&mut node, None, NOW + 2);
    assert_eq!(soon.again, Some(UnixTime(NOW + 1 + LEAST_SERVICE)));
    let ask = world.consider(&mut node, None, NOW + 1 + LEAST_SERVICE);
    let ask = ask.ask.unwrap();
    let status = world.answer(&ask, NOW + 12);
    assert!(
        world
            .consider(&mut node, Some((&ask, &status)), NOW + 12)
            .renewed
    );
    assert_eq!(node.facts().unwrap().issuer, world.ca.facts().subject);
    // Another one later: at once, for this one was of the CA that signed.
    let ask = world.consider(&mut node, None, NOW + 13).ask;
    assert!(ask.is_some());
}
