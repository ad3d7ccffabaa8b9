//! How ends with certificates prove themselves: key types, hashes, and what is allowed of them.

use std::time::Duration;

use testudo_crypto::{KeyType, SignatureScheme, VerifyingKey};
use testudo_wire::ike::{Message, NotifyType, Payload};

use super::net::*;
use crate::*;

use SignatureScheme::*;

/// Node 0, which begins, has a key of that type and node 1 an Ed25519 key; each end allows the
/// other those signatures.
fn meet(kind: KeyType, at_0: &[SignatureScheme], at_1: &[SignatureScheme]) -> Net {
    let mut net = Net::new(1, 2);
    let id = local_identity(0, "ca", EPOCH + 1_000_000, kind);
    net.nodes[0].engine.set_identity(id);
    let now = net.at();
    for (n, peer, allowed) in [(1, 0, at_1), (0, 1, at_0)] {
        let suites = Suites {
            signatures: allowed.to_vec(),
            ..net.nodes[n].engine.config.suites.clone()
        };
        let config = PeerConfig {
            suites: Some(suites),
            ..peer_config(n, peer, n == 0)
        };
        net.nodes[n].engine.set_peer(config, now).unwrap();
        net.drain(n);
    }
    net.run(Duration::from_secs(2));
    net
}

/// The hashes that node `n` announced in its first message.
fn announced(net: &Net, n: usize) -> Vec<u16> {
    let first = net.wire.iter().find(|(from, _, _)| from.ip() == address(n));
    let message = Message::parse(&first.unwrap().2).unwrap();
    message
        .payloads
        .iter()
        .find_map(|p| match &p.payload {
            Payload::Notify(n) if n.kind == NotifyType::SIGNATURE_HASH_ALGORITHMS => {
                Some(n.data_u16s().collect())
            }
            _ => None,
        })
        .unwrap()
}

#[test]
fn every_key_type_proves_with_its_scheme_alone_allowed() {
    for (kind, scheme, hash) in [
        (KeyType::EcdsaP256, EcdsaP256Sha256, 2),
        (KeyType::EcdsaP384, EcdsaP384Sha384, 3),
        (KeyType::EcdsaP521, EcdsaP521Sha512, 4),
        (KeyType::Ed25519, Ed25519, 5),
        (KeyType::Rsa, RsaPssSha256, 2),
    ] {
        let net = meet(kind, &[Ed25519], &[scheme]);
        net.assert_connected(0, 1, 1);
        assert_eq!(announced(&net, 0), [5]);
        assert_eq!(announced(&net, 1), [hash]);
    }
}

#[test]
fn an_rsa_key_signs_with_the_hash_that_the_peer_takes() {
    for scheme in [RsaPssSha384, RsaPssSha512] {
        let net = meet(KeyType::Rsa, &[Ed25519], &[scheme]);
        net.assert_connected(0, 1, 1);
        assert_eq!(announced(&net, 1), [scheme.hash().id()]);
    }
}

#[test]
fn a_key_whose_hash_the_peer_does_not_take_proves_nothing() {
    let mut net = Net::new(2, 2);
    let id = local_identity(0, "ca", EPOCH + 1_000_000, KeyType::EcdsaP384);
    net.nodes[0].engine.set_identity(id);
    net.nodes[1].engine.config.suites.signatures = vec![Ed25519, EcdsaP384Sha256];
    net.connect(0, 1, false);
    net.run(Duration::from_secs(2));
    assert!(net.nodes[0].twin.ikes.is_empty());
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::AuthMethod);
    assert_eq!(announced(&net, 1), [2, 5]);
}

// libreswan 047f7aa (lesson L34): the allowed hash was checked apart from the allowed key type.
#[test]
fn key_type_and_hash_are_allowed_together() {
    let allowed = [EcdsaP384Sha384, RsaPkcs1Sha256];
    // ECDSA is allowed, and SHA-256 is; with one another they are not.
    let net = meet(KeyType::EcdsaP256, &[Ed25519], &allowed);
    assert!(net.nodes[1].twin.ikes.is_empty());
    let failure = &net.nodes[1].failures[0];
    assert_eq!(failure.check, FailedCheck::AuthMethod);
    assert!(failure.text.contains("EcdsaP256Sha256"), "{}", failure.text);
    // Nor does the padding of RSA change.
    let net = meet(KeyType::Rsa, &[Ed25519], &allowed);
    assert!(net.nodes[1].twin.ikes.is_empty());
    assert_eq!(net.nodes[1].failures[0].check, FailedCheck::AuthMethod);
    let net = meet(KeyType::EcdsaP384, &[Ed25519], &allowed);
    net.assert_connected(0, 1, 1);
    // SHA-1 is in no scheme: its identifiers name none, with any key.
    let sha1 = [
        // ecdsa-with-SHA1; sha1WithRSAEncryption; id-RSASSA-PSS with its defaults.
        &[
            0x30, 0x09, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01,
        ][..],
        &[
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05, 0x05,
            0x00,
        ],
        &[
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30,
            0x00,
        ],
    ];
    for kind in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Rsa] {
        let key = testudo_crypto::SigningKey::generate(kind).unwrap();
        let key = VerifyingKey::from_spki(&key.public_spki()).unwrap();
        assert!(sha1.iter().all(|id| key.scheme_for(id).is_none()));
    }
}

// CVE-2017-11185 and more (lesson L31), CVE-2018-16151 (lesson L30): certificates with RSA keys
// that are too short, even, or of exponent 3.
#[test]
fn certificates_with_unsound_rsa_keys_prove_nothing() {
    let good = testudo_crypto::SigningKey::generate(KeyType::Rsa)
        .unwrap()
        .public_spki();
    // ..., modulus, then INTEGER 65537 at the end.
    let mut three = good.clone();
    let len = three.len();
    three[len - 3..].copy_from_slice(&[0, 0, 3]);
    let mut even = good.clone();
    even[len - 6] &= 0xfe;
    for spki in [three, even, good[..len - 1].to_vec(), Vec::new()] {
        let mut net = Net::new(3, 2);
        let mut id = local_identity(0, "ca", EPOCH + 1_000_000, KeyType::Rsa);
        let credential = id.certificate.as_mut().unwrap();
        credential.chain = vec![certificate(&identity(0), "ca", EPOCH + 1_000_000, &spki)];
        net.nodes[0].engine.set_identity(id);
        net.connect(0, 1, false);
        net.run(Duration::from_secs(2));
        assert!(net.nodes[1].twin.ikes.is_empty());
        let failure = &net.nodes[1].failures[0];
        assert_eq!(failure.check, FailedCheck::CertificateMalformed);
    }
}
