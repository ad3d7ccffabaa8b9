//! What a peer sends as certificates, and what people give us as PEM.

use std::sync::OnceLock;

use testudo_crypto::{DangerousSeededRandom, SigningKey, VerifyingKey};
use testudo_pki::{
    Ca, CertificateFacts, ExpectedPeer, NodeIdentity, TrustBundle, chain_from_pem, key_from_pem,
    request_from_pem, token_from_hex, verify_chain,
};

use crate::bytes::{Source, damage};
use crate::der;

/// In the time of the CA in `data/`.
const NOW: u64 = 1_900_000_000;
const YEAR: u64 = 365 * 24 * 3600;

/// A CA, a node's certificate of it and that node's request. Both keys are published ones
/// (RFC 8032, 7.1, tests 1 and 2).
pub(crate) struct World {
    pub(crate) ca: Ca,
    ca_key: SigningKey,
    bundle: TrustBundle,
    pub(crate) node: NodeIdentity,
    pub(crate) leaf: Vec<u8>,
    spki: Vec<u8>,
    pub(crate) request: Vec<u8>,
}

/// PKCS#8 of an Ed25519 key (RFC 8410, 7).
fn pkcs8(seed: &str) -> Vec<u8> {
    let mut out = vec![
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0);
    out.extend(
        seed.as_bytes()
            .chunks(2)
            .map(|pair| (digit(pair[0]) << 4 | digit(pair[1])) as u8),
    );
    out
}

pub(crate) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let ca_key = pkcs8("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = pkcs8("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let ca = Ca::load(include_str!("../data/ca.pem"), &ca_key).expect("the CA in data/");
        let ca_key = SigningKey::from_pkcs8(&ca_key).expect("a key of RFC 8032");
        let key = SigningKey::from_pkcs8(&key).expect("a key of RFC 8032");
        let mut bundle = TrustBundle::new();
        bundle.add(ca.certificate()).expect("the CA in data/");
        let node = NodeIdentity::new("n1", "uid-1").expect("a good name");
        let request = testudo_pki::certificate_request(&key, &node).expect("a good key");
        let mut random = DangerousSeededRandom::new(1);
        let leaf = ca
            .sign_request(&request, &node, YEAR, NOW, &mut random)
            .expect("a good request")
            .der;
        World {
            ca,
            ca_key,
            bundle,
            node,
            leaf,
            spki: key.public_spki(),
            request,
        }
    })
}

/// The first byte says what the others are.
pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.u8() % 6 {
        0 => any_der(source.rest()),
        1 => chain(&mut source),
        2 => damaged_chain(&mut source),
        3 => damaged_and_signed(&mut source),
        4 => text(source.rest()),
        _ => request(&mut source),
    }
}

fn any_der(der: &[u8]) {
    let _ = CertificateFacts::read(der);
    let _ = TrustBundle::new().add(der);
    judge(&[der]);
    if let Ok(key) = VerifyingKey::from_spki(der) {
        for scheme in key.schemes() {
            let forged = key.verify(scheme, b"message", &der[..der.len().min(64)]);
            assert!(forged.is_err());
        }
    }
    if let Ok(key) = VerifyingKey::from_spki(&world().spki) {
        let _ = key.scheme_for(der);
    }
}

/// A chain that verifies is that of the node that has the key.
fn judge(chain: &[&[u8]]) {
    let world = world();
    let node = ExpectedPeer::Node(&world.node);
    if let Ok(peer) = verify_chain(chain, &world.bundle, node, NOW) {
        assert_eq!(peer.identity, world.node);
        assert_eq!(peer.spki, world.spki, "another key is taken for the node's");
    }
}

fn chain(source: &mut Source<'_>) {
    let mut ders = Vec::new();
    while !source.is_empty() && ders.len() < 8 {
        let len = usize::from(source.u16()) % 4096;
        ders.push(source.take(len));
    }
    judge(&ders);
}

/// The node's own chain with something changed by one who has no CA.
fn damaged_chain(source: &mut Source<'_>) {
    let world = world();
    let mut chain = vec![world.leaf.clone(), world.ca.certificate().to_vec()];
    for _ in 0..=source.u8() % 4 {
        let n = source.below(chain.len());
        match source.u8() % 6 {
            0 => chain.swap(0, n),
            1 => {
                let copy = chain[n].clone();
                chain.push(copy);
            }
            2 => damage(source, &mut chain[n]),
            _ => change_der(source, &mut chain[n]),
        }
    }
    let parts: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    judge(&parts);
}

fn change_der(source: &mut Source<'_>, bytes: &mut Vec<u8>) {
    let Some(mut list) = der::read(bytes, 0) else {
        return damage(source, bytes);
    };
    der::change(source, &mut list);
    bytes.clear();
    list.iter().for_each(|element| element.write(bytes));
}

/// What a CA may have signed in all its folly: parsers and checks behind the signature.
fn damaged_and_signed(source: &mut Source<'_>) {
    let world = world();
    let Some(tbs) = first_inside(&world.leaf) else {
        return;
    };
    let mut tbs = tbs.to_vec();
    for _ in 0..=source.u8() % 4 {
        change_der(source, &mut tbs);
    }
    let Some(leaf) = sign(&world.ca_key, &tbs) else {
        return;
    };
    let _ = CertificateFacts::read(&leaf);
    let any = verify_chain(&[&leaf], &world.bundle, ExpectedPeer::AnyNode, NOW);
    let node = ExpectedPeer::Node(&world.node);
    let named = verify_chain(&[&leaf], &world.bundle, node, NOW);
    match (any, named) {
        (Ok(any), named) => {
            assert!(any.times.not_before <= NOW && NOW <= any.times.not_after);
            assert_eq!(any.identity == world.node, named.is_ok());
        }
        (Err(_), named) => assert!(named.is_err()),
    }
}

/// The first element inside a SEQUENCE with a length of two bytes: a certificate's own part.
fn first_inside(der: &[u8]) -> Option<&[u8]> {
    let inside = der.get(4..)?;
    let len = usize::from(u16::from_be_bytes([*inside.get(2)?, *inside.get(3)?]));
    inside.get(..4 + len)
}

fn sign(key: &SigningKey, tbs: &[u8]) -> Option<Vec<u8>> {
    let signature = key.sign(tbs).ok()?;
    let mut inside = tbs.to_vec();
    inside.extend([0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x41, 0]);
    inside.extend(signature);
    let mut out = vec![0x30, 0x82];
    out.extend(u16::try_from(inside.len()).ok()?.to_be_bytes());
    out.extend(inside);
    Some(out)
}

fn text(bytes: &[u8]) {
    let _ = key_from_pem(bytes);
    let _ = token_from_hex(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = TrustBundle::from_pem(text);
        let _ = chain_from_pem(text);
        let _ = request_from_pem(text);
    }
}

/// Whatever a request asks for, the certificate names the node that was asked for.
fn request(source: &mut Source<'_>) {
    let world = world();
    let mut request = world.request.clone();
    for _ in 0..=source.u8() % 4 {
        change_der(source, &mut request);
    }
    let mut random = DangerousSeededRandom::new(2);
    let issued = world
        .ca
        .sign_request(&request, &world.node, YEAR, NOW, &mut random);
    if let Ok(issued) = issued {
        assert_eq!(issued.facts.node_name.as_deref(), Some(world.node.name()));
        assert_eq!(issued.facts.node_uid.as_deref(), Some(world.node.uid()));
        assert!(!issued.facts.is_ca);
    }
}
