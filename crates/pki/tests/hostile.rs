//! Certificates from strangers, made to cost time or stack.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use testudo_crypto::{DangerousSeededRandom, KeyType, SigningKey};
use testudo_pki::{
    Ca, CaOptions, CertificateFacts, ExpectedPeer, MAX_CERTIFICATE, NodeIdentity, TrustBundle,
    certificate_request, verify_chain,
};

const NOW: u64 = 1_800_000_000;

struct World {
    bundle: TrustBundle,
    node: NodeIdentity,
    leaf: Vec<u8>,
}

fn world() -> World {
    let mut random = DangerousSeededRandom::new(1);
    let ca = Ca::generate(&CaOptions::default(), NOW, &mut random).unwrap();
    let node = NodeIdentity::new("n1", "uid-1").unwrap();
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let request = certificate_request(&key, &node).unwrap();
    let issued = ca.sign_request(&request, &node, 3600, NOW, &mut random);
    let mut bundle = TrustBundle::new();
    bundle.add(ca.certificate()).unwrap();
    World {
        bundle,
        node,
        leaf: issued.unwrap().der,
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len().to_be_bytes();
    let mut out = vec![tag];
    match content.len() {
        0..=0x7f => out.push(len[7]),
        0x80..=0xff => out.extend([0x81, len[7]]),
        _ => out.extend([0x82, len[6], len[7]]),
    }
    out.extend(content);
    out
}

// strongSwan 06e5462, CVE-2017-9023, lesson L29: nested containers and a CHOICE that contained
// itself took time or stack without a bound.
#[test]
fn nesting_ends_in_an_error() {
    let world = world();
    let judge = |der: &[u8]| {
        assert!(CertificateFacts::read(der).is_err());
        assert!(TrustBundle::new().add(der).is_err());
        let chain = [&world.leaf[..], der];
        for chain in [&chain[1..], &chain[..]] {
            // As the node's own certificate, and beside it as an intermediate.
            let result = verify_chain(chain, &world.bundle, ExpectedPeer::AnyNode, NOW);
            assert_eq!(result.is_ok(), chain.len() == 2);
        }
    };
    for tag in [0x30, 0x31, 0xa0, 0xa3, 0x24, 0x04] {
        let mut nested = vec![5, 0];
        for _ in 0..3_000 {
            nested = der(tag, &nested);
        }
        assert!(nested.len() < MAX_CERTIFICATE);
        judge(&nested);
        // Inside a certificate: as its names, its extensions.
        judge(&der(0x30, &der(0x30, &nested)));
        // Lengths that are not said.
        judge(&[tag, 0x80].repeat(8_000));
    }
}

// strongSwan v5.9.4, lesson L29: one certificate in endless variants filled a cache. There is
// none: each variant is refused, and leaves nothing behind.
#[test]
fn no_variant_of_a_certificate_is_taken_for_another_key() {
    let world = world();
    let node = ExpectedPeer::Node(&world.node);
    let good = verify_chain(&[&world.leaf], &world.bundle, node, NOW).unwrap();
    for bit in 0..world.leaf.len() * 8 {
        let mut variant = world.leaf.clone();
        variant[bit / 8] ^= 1 << (bit % 8);
        if let Ok(peer) = verify_chain(&[&variant], &world.bundle, node, NOW) {
            assert_eq!(
                (peer.identity, peer.spki),
                (good.identity.clone(), good.spki.clone())
            );
        }
    }
    let again = verify_chain(&[&world.leaf], &world.bundle, node, NOW);
    assert_eq!(again.unwrap(), good);
}
