//! The CA, requests and validation together, as node and controller use them.

use std::collections::BTreeMap;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, NameConstraints, SanType,
};
use testudo_crypto::{KeyType, Random, SecretBytes, SigningKey};

use crate::*;

mod revocation;

const NOW: u64 = 1_800_000_000;
const YEAR: u64 = 365 * 24 * 3600;

/// Repeatable bytes: what a test signs differs from run to run by its keys alone.
struct Counter(u8);

impl Random for Counter {
    fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            self.0 = self.0.wrapping_mul(5).wrapping_add(113);
            *byte = self.0;
        }
    }
}

fn node(name: &str) -> NodeIdentity {
    NodeIdentity::new(name, &format!("uid-of-{name}")).unwrap()
}

fn ca() -> Ca {
    Ca::generate(&CaOptions::default(), NOW, &mut Counter(1)).unwrap()
}

fn bundle(cas: &[&Ca]) -> TrustBundle {
    let mut bundle = TrustBundle::new();
    for ca in cas {
        bundle.add(ca.certificate()).unwrap();
    }
    bundle
}

fn issue_at(ca: &Ca, identity: &NodeIdentity, now: u64) -> Vec<u8> {
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let request = certificate_request(&key, identity).unwrap();
    let issued = ca.sign_request(&request, identity, 5 * YEAR, now, &mut Counter(9));
    issued.unwrap().der
}

fn check(der: &[u8], bundle: &TrustBundle, expected: &NodeIdentity, now: u64) -> CertificateCheck {
    let error = verify_chain(&[der], bundle, ExpectedPeer::Node(expected), now).unwrap_err();
    assert!(!error.text.is_empty());
    error.check
}

#[test]
fn a_node_gets_a_certificate_that_its_peers_accept() {
    for ca_key in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Ed25519] {
        for node_key in KeyType::ALL {
            let options = CaOptions {
                key_type: ca_key,
                ..CaOptions::default()
            };
            let ca = Ca::generate(&options, NOW, &mut Counter(1)).unwrap();
            let key = SigningKey::generate(node_key).unwrap();
            let request = certificate_request(&key, &node("n1")).unwrap();
            let request = request_from_pem(&request_to_pem(&request)).unwrap();
            let issued = ca
                .sign_request(&request, &node("n1"), 5 * YEAR, NOW, &mut Counter(3))
                .unwrap();
            let expected = ExpectedPeer::Node(&node("n1"));
            let peer = verify_chain(&[&issued.der], &bundle(&[&ca]), expected, NOW).unwrap();
            assert_eq!(peer.identity, node("n1"));
            assert_eq!(peer.spki, key.public_spki());
            assert_eq!(peer.serial, issued.facts.serial);
            assert_eq!(peer.times.not_after, NOW + 5 * YEAR);
            assert_eq!(issued.facts.node_name.as_deref(), Some("n1"));
            assert_eq!(issued.facts.node_uid.as_deref(), Some("uid-of-n1"));
            assert_eq!(issued.facts.subject, "n1");
            assert_eq!(issued.facts.authority_key_id, ca.facts().subject_key_id);
        }
    }
}

#[test]
fn the_ca_survives_its_files() {
    let ca = ca();
    let key = ca.key_pem().unwrap();
    let loaded = Ca::load(&ca.certificate_pem(), key.as_bytes()).unwrap();
    assert_eq!(loaded.certificate(), ca.certificate());
    assert_eq!(loaded.facts().times.not_after, NOW + 10 * YEAR);
    let der = issue_at(&loaded, &node("n1"), NOW);
    verify_chain(&[&der], &bundle(&[&ca]), ExpectedPeer::AnyNode, NOW).unwrap();

    let other = Ca::generate(&CaOptions::default(), NOW, &mut Counter(2)).unwrap();
    let mixed = Ca::load(&ca.certificate_pem(), other.key_pem().unwrap().as_bytes());
    assert_eq!(mixed.err(), Some(PkiError::KeyMismatch));
    assert!(Ca::load("", key.as_bytes()).is_err());
    assert!(Ca::load(&ca.certificate_pem(), b"-----BEGIN nonsense").is_err());
}

#[test]
fn each_failed_check_is_named() {
    let ca = ca();
    let trusted = bundle(&[&ca]);
    let good = issue_at(&ca, &node("n1"), NOW);
    let n1 = node("n1");
    let at = |now| check(&good, &trusted, &n1, now);
    assert_eq!(at(NOW + 6 * YEAR), CertificateCheck::Expired);
    assert_eq!(at(NOW - BACKDATE - 60), CertificateCheck::NotYetValid);
    assert_eq!(
        check(&good, &trusted, &node("n2"), NOW),
        CertificateCheck::WrongNode
    );

    let reborn = NodeIdentity::new("n1", "another-uid").unwrap();
    assert_eq!(
        check(&good, &trusted, &reborn, NOW),
        CertificateCheck::WrongNode
    );

    let other = Ca::generate(&CaOptions::default(), NOW, &mut Counter(2)).unwrap();
    let foreign = issue_at(&other, &n1, NOW);
    assert_eq!(
        check(&foreign, &trusted, &n1, NOW),
        CertificateCheck::UnknownCa
    );
    assert_eq!(
        check(&good, &TrustBundle::new(), &n1, NOW),
        CertificateCheck::UnknownCa
    );

    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(
        check(&broken, &trusted, &n1, NOW),
        CertificateCheck::BadSignature
    );

    assert_eq!(
        check(&good[..50], &trusted, &n1, NOW),
        CertificateCheck::Malformed
    );
    assert_eq!(check(b"", &trusted, &n1, NOW), CertificateCheck::Malformed);
    let error = verify_chain(&[], &trusted, ExpectedPeer::AnyNode, NOW).unwrap_err();
    assert_eq!(error.check, CertificateCheck::Malformed);
    let many: Vec<&[u8]> = vec![&good; MAX_CHAIN + 1];
    let error = verify_chain(&many, &trusted, ExpectedPeer::AnyNode, NOW).unwrap_err();
    assert_eq!(error.check, CertificateCheck::Malformed);
}

#[test]
fn the_text_says_who_and_when() {
    let ca = ca();
    let der = issue_at(&ca, &node("n1"), NOW);
    let error = verify_chain(
        &[&der],
        &bundle(&[&ca]),
        ExpectedPeer::Node(&node("n2")),
        NOW,
    );
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("wrong node") && text.contains("n1") && text.contains("n2"),
        "{text}"
    );
    let late = NOW + 6 * YEAR;
    let error = verify_chain(&[&der], &bundle(&[&ca]), ExpectedPeer::AnyNode, late).unwrap_err();
    assert!(error.text.contains(&utc(NOW + 5 * YEAR)), "{error}");
    assert_eq!(utc(1_795_318_200), "2026-11-22T03:30:00Z");
}

#[test]
fn a_ca_of_the_same_name_is_still_unknown() {
    // The counter gives both the same name; only the keys differ.
    let (ours, theirs) = (ca(), ca());
    assert_eq!(ours.facts().subject, theirs.facts().subject);
    let der = issue_at(&theirs, &node("n1"), NOW);
    assert_eq!(
        check(&der, &bundle(&[&ours]), &node("n1"), NOW),
        CertificateCheck::UnknownCa
    );
    let both = bundle(&[&ours, &theirs]);
    verify_chain(&[&der], &both, ExpectedPeer::AnyNode, NOW).unwrap();
}

#[test]
fn clocks_five_minutes_apart_agree() {
    let ca = ca();
    let der = issue_at(&ca, &node("n1"), NOW);
    let trusted = bundle(&[&ca]);
    for now in [NOW - BACKDATE, NOW, NOW + BACKDATE] {
        verify_chain(&[&der], &trusted, ExpectedPeer::Node(&node("n1")), now).unwrap();
    }
}

#[test]
fn a_bundle_carries_over_from_one_ca_to_the_next() {
    let old = ca();
    let new = Ca::generate(&CaOptions::default(), NOW, &mut Counter(2)).unwrap();
    let mut both = bundle(&[&old, &new]);
    assert!(!both.add(new.certificate()).unwrap());
    let der_old = issue_at(&old, &node("n1"), NOW);
    let der_new = issue_at(&new, &node("n2"), NOW);
    let both = TrustBundle::from_pem(&both.to_pem()).unwrap();
    assert_eq!(both.len(), 2);
    verify_chain(&[&der_old], &both, ExpectedPeer::AnyNode, NOW).unwrap();
    verify_chain(&[&der_new], &both, ExpectedPeer::AnyNode, NOW).unwrap();

    // The old CA stays as long as a node presents a certificate of it.
    let mut bundle = both;
    let old_key = old.facts().subject_key_id.clone().unwrap();
    let new_key = new.facts().subject_key_id.clone().unwrap();
    let mut presented = BTreeMap::from([("n1".into(), old_key), ("n2".into(), new_key.clone())]);
    let refused = bundle
        .remove(&old.facts().fingerprint, &presented)
        .unwrap_err();
    assert_eq!(refused.nodes, ["n1"]);
    presented.insert("n1".into(), new_key);
    assert_eq!(
        bundle.remove(&old.facts().fingerprint, &presented),
        Ok(true)
    );
    assert_eq!(
        bundle.remove(&old.facts().fingerprint, &presented),
        Ok(false)
    );
    assert_eq!(
        check(&der_old, &bundle, &node("n1"), NOW),
        CertificateCheck::UnknownCa
    );
}

#[test]
fn a_node_certificate_is_no_ca() {
    let ca = ca();
    let leaf = issue_at(&ca, &node("n1"), NOW);
    let refused = TrustBundle::new().add(&leaf).unwrap_err();
    assert_eq!(refused, PkiError::NotACa("n1".into()));
}

#[test]
fn no_certificate_outlives_its_ca_and_an_ended_ca_signs_nothing() {
    let ca = ca();
    let der = issue_at(&ca, &node("n1"), NOW + 8 * YEAR);
    let facts = CertificateFacts::read(&der).unwrap();
    assert_eq!(facts.times.not_after, ca.facts().times.not_after);

    let key = SigningKey::generate(KeyType::Ed25519).unwrap();
    let request = certificate_request(&key, &node("n1")).unwrap();
    let late = NOW + 10 * YEAR;
    let refused = ca.sign_request(&request, &node("n1"), YEAR, late, &mut Counter(1));
    assert!(matches!(refused, Err(RequestError::CaExpired { .. })));

    // Long before its end the CA itself falls due.
    let policy = RenewalPolicy {
        renew_after: 8 * YEAR,
        earlier: 0,
    };
    assert!(matches!(
        renewal(&ca.facts().times, &policy, NOW + 8 * YEAR),
        Renewal::Due(_)
    ));
}

#[test]
fn an_ended_ca_is_called_expired_not_unknown() {
    let options = CaOptions {
        lifetime: YEAR,
        key_type: KeyType::EcdsaP256,
    };
    let ca = Ca::generate(&options, NOW, &mut Counter(1)).unwrap();
    // A certificate of the CA's key that is made to outlive it.
    let ca_key = KeyPair::from_pem_and_sign_algo(
        std::str::from_utf8(ca.key_pem().unwrap().as_bytes()).unwrap(),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )
    .unwrap();
    let (der, _) = foreign_leaf(&ca, &ca_key, |_| {});
    let at = NOW + 2 * YEAR;
    let error = verify_chain(&[&der], &bundle(&[&ca]), ExpectedPeer::AnyNode, at).unwrap_err();
    assert_eq!(error.check, CertificateCheck::Expired, "{error}");
    assert!(error.text.contains("CA"), "{error}");
}

#[test]
fn a_request_gets_no_other_name_and_no_other_right() {
    let ca = ca();
    let key = KeyPair::generate().unwrap();
    let sign = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "n1");
        change(&mut params);
        let request = params.serialize_request(&key).unwrap();
        ca.sign_request(request.der(), &node("n1"), YEAR, NOW, &mut Counter(1))
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    sign(&|_| {}).unwrap();
    sign(&|p| p.subject_alt_names = vec![dns("n1.node.testudo")]).unwrap();
    for name in [
        dns("n2.node.testudo"),
        dns("*.node.testudo"),
        dns("n1.node.testudo.example.org"),
        uri("testudo:node:uid-of-n2"),
        SanType::IpAddress([10, 0, 0, 1].into()),
    ] {
        let refused = sign(&|p| {
            p.subject_alt_names = vec![dns("n1.node.testudo"), name.clone()];
        });
        assert!(matches!(refused, Err(RequestError::ForeignName { .. })));
    }
    let refused = sign(&|p| {
        p.distinguished_name = rcgen::DistinguishedName::new();
        p.distinguished_name.push(DnType::CommonName, "n2");
    });
    assert!(matches!(refused, Err(RequestError::ForeignName { .. })));
    let refused = sign(&|p| {
        p.distinguished_name
            .push(DnType::OrganizationName, "admins");
    });
    assert!(matches!(refused, Err(RequestError::ForeignName { .. })));
    let refused = sign(&|p| {
        let ca_true = vec![0x30, 3, 1, 1, 0xff];
        let basic = CustomExtension::from_oid_content(&[2, 5, 29, 19], ca_true);
        p.custom_extensions = vec![basic];
    });
    assert!(matches!(refused, Err(RequestError::ForbiddenExtension(_))));
}

#[test]
fn a_request_must_be_signed_by_its_own_key() {
    let ca = ca();
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let request = certificate_request(&key, &node("n1")).unwrap();
    let sign = |der: &[u8]| ca.sign_request(der, &node("n1"), YEAR, NOW, &mut Counter(1));
    let mut broken = request.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert!(matches!(sign(&broken), Err(RequestError::BadSignature)));
    let mut longer = request.clone();
    longer.push(0);
    assert!(matches!(sign(&longer), Err(RequestError::Malformed(_))));
    let huge = vec![0x30; MAX_CERTIFICATE + 1];
    assert!(matches!(sign(&huge), Err(RequestError::Malformed(_))));
    for cut in 0..request.len() {
        sign(&request[..cut]).unwrap_err();
    }
    assert!(matches!(
        ca.sign_request(&request, &node("n2"), YEAR, NOW, &mut Counter(1)),
        Err(RequestError::ForeignName { .. })
    ));
}

#[test]
fn the_token_of_one_node_asks_for_no_other() {
    let mut random = Counter(7);
    let (token_a, token_b) = (new_token(&mut random), new_token(&mut random));
    let proof = join_proof(&token_a, "a", "ua", b"request");
    let accepts = |token: &SecretBytes, name: &str, uid: &str, request: &[u8]| {
        check_join_proof(token, name, uid, request, &proof)
    };
    assert!(accepts(&token_a, "a", "ua", b"request"));
    assert!(!accepts(&token_b, "a", "ua", b"request"));
    assert!(!accepts(&token_a, "b", "ua", b"request"));
    assert!(!accepts(&token_a, "a", "ub", b"request"));
    assert!(!accepts(&token_a, "a", "ua", b"another"));
    assert!(!check_join_proof(&token_a, "a", "ua", b"request", &[]));

    let text = token_to_hex(&token_a);
    let read = token_from_hex(text.as_bytes()).unwrap();
    assert!(check_join_proof(&read, "a", "ua", b"request", &proof));
    assert!(token_from_hex(b"12").is_err());
    assert!(token_from_hex(&[b'x'; 64]).is_err());
}

/// A leaf made by hand for the CA key in `ca_key`, to break rules that our CA keeps.
fn foreign_leaf(
    ca: &Ca,
    ca_key: &KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> (Vec<u8>, KeyPair) {
    let der = rustls_pki_types::CertificateDer::from(ca.certificate());
    let issuer = Issuer::from_ca_cert_der(&der, ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params("n1");
    change(&mut params);
    (params.signed_by(&key, &issuer).unwrap().der().to_vec(), key)
}

fn leaf_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::DnsName(format!("{name}.node.testudo").try_into().unwrap()),
        SanType::URI(format!("testudo:node:uid-of-{name}").try_into().unwrap()),
    ];
    params.use_authority_key_identifier_extension = true;
    params
}

fn ca_key(ca: &Ca) -> KeyPair {
    let pem = ca.key_pem().unwrap();
    let text = std::str::from_utf8(pem.as_bytes()).unwrap();
    KeyPair::from_pem_and_sign_algo(text, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

#[test]
fn the_extended_key_usage_must_allow_ike() {
    let ca = ca();
    let trusted = bundle(&[&ca]);
    let with = |usages: Vec<ExtendedKeyUsagePurpose>| {
        let (der, _) = foreign_leaf(&ca, &ca_key(&ca), |p| p.extended_key_usages = usages);
        verify_chain(&[&der], &trusted, ExpectedPeer::AnyNode, NOW)
    };
    use ExtendedKeyUsagePurpose as Usage;
    let ike = Usage::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]);
    for usages in [
        vec![],
        vec![ike.clone()],
        vec![Usage::ServerAuth],
        vec![Usage::Any],
        vec![Usage::ClientAuth, ike],
    ] {
        with(usages).unwrap();
    }
    for usages in [vec![Usage::ClientAuth], vec![Usage::CodeSigning]] {
        assert_eq!(
            with(usages).unwrap_err().check,
            CertificateCheck::WrongPurpose
        );
    }
}

#[test]
fn a_certificate_without_exactly_one_node_is_malformed() {
    let ca = ca();
    let trusted = bundle(&[&ca]);
    let with = |names: &[(&str, &str)]| {
        let names = names.iter().map(|(kind, name)| match *kind {
            "dns" => SanType::DnsName((*name).try_into().unwrap()),
            _ => SanType::URI((*name).try_into().unwrap()),
        });
        let names: Vec<SanType> = names.collect();
        let (der, _) = foreign_leaf(&ca, &ca_key(&ca), |p| p.subject_alt_names = names);
        verify_chain(&[&der], &trusted, ExpectedPeer::AnyNode, NOW)
    };
    let good = [("dns", "n1.node.testudo"), ("uri", "testudo:node:u1")];
    with(&good).unwrap();
    let one_more = |extra| with(&[good[0], good[1], extra]);
    for result in [
        with(&[]),
        with(&good[..1]),
        with(&good[1..]),
        one_more(("dns", "n2.node.testudo")),
        one_more(("uri", "testudo:node:u2")),
        with(&[("dns", "N1.node.testudo"), good[1]]),
        with(&[("dns", "*.node.testudo"), good[1]]),
        with(&[("dns", "n1.example.org"), good[1]]),
        with(&[good[0], ("uri", "https://u1")]),
    ] {
        assert_eq!(result.unwrap_err().check, CertificateCheck::Malformed);
    }
}

/// A CA of one's own between ours and the leaf, with name constraints.
fn constrained(
    constraints: NameConstraints,
    name: &str,
) -> Result<PeerCertificate, CertificateError> {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "root");
    let root_certificate = root.self_signed(&root_key).unwrap();
    let root_issuer = Issuer::new(root, root_key);

    let middle_key = KeyPair::generate().unwrap();
    let mut middle = CertificateParams::default();
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    middle.distinguished_name.push(DnType::CommonName, "middle");
    middle.name_constraints = Some(constraints);
    let middle_certificate = middle.signed_by(&middle_key, &root_issuer).unwrap();
    let middle_issuer = Issuer::new(middle, middle_key);

    let key = KeyPair::generate().unwrap();
    let leaf = leaf_params(name).signed_by(&key, &middle_issuer).unwrap();
    let mut bundle = TrustBundle::new();
    bundle.add(root_certificate.der()).unwrap();
    let chain: [&[u8]; 2] = [leaf.der(), middle_certificate.der()];
    verify_chain(&chain, &bundle, ExpectedPeer::AnyNode, NOW)
}

// CVE-2026-35331 (strongSwan), lesson L36.
#[test]
fn excluded_names_are_excluded_in_any_case() {
    let excluding = |name: &str| NameConstraints {
        permitted_subtrees: vec![],
        excluded_subtrees: vec![GeneralSubtree::DnsName(name.into())],
    };
    constrained(excluding("n2.node.testudo"), "n1").unwrap();
    for name in ["n1.node.testudo", "N1.Node.TESTUDO", "node.Testudo"] {
        let error = constrained(excluding(name), "n1").unwrap_err();
        assert_eq!(error.check, CertificateCheck::Forbidden, "{name}: {error}");
    }
}

#[test]
fn a_node_cannot_sign_for_another() {
    let ca = ca();
    let (n1, n1_key) = foreign_leaf(&ca, &ca_key(&ca), |_| {});
    let n1_der = rustls_pki_types::CertificateDer::from(n1.as_slice());
    let issuer = Issuer::from_ca_cert_der(&n1_der, n1_key).unwrap();
    let forged = leaf_params("n2")
        .signed_by(&KeyPair::generate().unwrap(), &issuer)
        .unwrap();
    let chain: [&[u8]; 2] = [forged.der(), &n1];
    verify_chain(&chain, &bundle(&[&ca]), ExpectedPeer::AnyNode, NOW).unwrap_err();
}

#[test]
fn nested_and_damaged_certificates_cost_little_and_never_panic() {
    let ca = ca();
    let trusted = bundle(&[&ca]);
    // A thousand sequences in each other, alone and inside an extension.
    let mut nested = Vec::new();
    for _ in 0..1_000 {
        nested.extend_from_slice(&[0x30, 0x80]);
    }
    assert_eq!(
        check(&nested, &trusted, &node("n1"), NOW),
        CertificateCheck::Malformed
    );
    let mut deep = vec![0x30, 0];
    for _ in 0..1_000 {
        let length = deep.len();
        let mut outer = vec![0x30, 0x82, (length >> 8) as u8, length as u8];
        outer.append(&mut deep);
        deep = outer;
    }
    let (der, _) = foreign_leaf(&ca, &ca_key(&ca), |p| {
        p.custom_extensions = vec![
            CustomExtension::from_oid_content(&[2, 5, 29, 17], deep.clone()),
            CustomExtension::from_oid_content(&[1, 2, 3, 4], deep),
        ];
        p.subject_alt_names.clear();
    });
    verify_chain(&[&der], &trusted, ExpectedPeer::AnyNode, NOW).unwrap_err();

    // Every variant of a good certificate with one bit turned is refused.
    let good = issue_at(&ca, &node("n1"), NOW);
    for position in 0..good.len() {
        let mut variant = good.clone();
        variant[position] ^= 1 << (position % 8);
        let result = verify_chain(&[&variant], &trusted, ExpectedPeer::AnyNode, NOW);
        assert!(result.is_err(), "bit {} of byte {position}", position % 8);
        let _ = CertificateFacts::read(&variant);
    }
}
