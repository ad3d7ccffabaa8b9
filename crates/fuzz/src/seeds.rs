//! Inputs to begin with: what two engines really say to each other, real certificates, packets.

use testudo_ike::fuzzing;

use crate::certificate;
use crate::inner::{self, PLACES};
use crate::pair::{Pair, Proof, peer_id};

/// Seeds of a target, each with a name.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "message" => messages(),
        "inner" => inners(),
        "engine" => engines(),
        "certificate" => certificates(),
        "esp" => packets(),
        _ => Vec::new(),
    }
}

/// A handshake, rekeys of both kinds, a probe and deletions.
fn conversation(proof: Proof) -> Pair {
    let mut pair = Pair::new(1, proof);
    pair.fly(64);
    let child = pair.engines[0].status()[0].children[0].child;
    let _ = pair.act(0, |engine, now| engine.rekey_child(child, now));
    pair.fly(64);
    let _ = pair.act(1, |engine, now| engine.rekey_ike(&peer_id(0), now));
    pair.fly(64);
    let _ = pair.act(0, |engine, now| engine.probe(&peer_id(1), now));
    pair.fly(64);
    let _ = pair.act(0, |engine, now| engine.close(&peer_id(1), now));
    pair.fly(64);
    pair
}

fn messages() -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for (name, proof) in [
        ("psk", Proof::PreSharedKey),
        ("cert", Proof::Certificate),
        ("hybrid", Proof::Hybrid),
    ] {
        for (n, datagram) in conversation(proof).sent.into_iter().enumerate() {
            out.push((format!("{name}-{n:02}"), datagram.bytes));
        }
    }
    out
}

fn inners() -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for (n, place) in PLACES.iter().enumerate() {
        for (which, proof) in [(0, Proof::PreSharedKey), (1, Proof::Certificate)] {
            let proof = if place.hybrid { Proof::Hybrid } else { proof };
            let mut pair = inner::prepare(place, proof);
            // The real message that would be there.
            for _ in 0..4 {
                let Some(next) = pair.flying.front().cloned() else {
                    break;
                };
                if next.from == place.from && next.bytes[18] == place.exchange {
                    let [a, b] = &mut pair.engines;
                    let (sender, receiver) = if place.from == 0 { (a, &*b) } else { (b, &*a) };
                    let mut text = vec![n as u8, which];
                    fuzzing::reseal(sender, receiver, &next.bytes, |_, first, inside| {
                        text.push(first);
                        text.extend(&inside);
                        (first, inside)
                    });
                    out.push((format!("{}-{which}", place.name), text));
                    break;
                }
                pair.fly(1);
            }
            if place.asked_nothing() {
                for (name, plain) in odd_requests() {
                    let mut text = vec![n as u8, which];
                    text.extend(plain);
                    out.push((format!("{}-{which}-{name}", place.name), text));
                }
            }
        }
    }
    out
}

/// Type and body of single payloads that a peer may send at any time.
fn odd_requests() -> Vec<(&'static str, Vec<u8>)> {
    let one = |first: u8, body: &[u8]| {
        let len = (body.len() as u16 + 4).to_be_bytes();
        [&[first, 0, 0][..], &len, body].concat()
    };
    vec![
        ("nothing", vec![0]),
        ("delete-ike", one(42, &[1, 0, 0, 0])),
        ("delete-esp", one(42, &[3, 4, 0, 1, 1, 2, 3, 4])),
        ("auth-failed", one(41, &[0, 0, 0, 24])),
        ("critical", [&[99, 0, 0x80][..], &[0, 4]].concat()),
        ("initial-contact", one(41, &[0, 0, 0x40, 0])),
        ("eap", one(48, &[3, 0, 0, 4])),
        ("configuration", one(47, &[1, 0, 0, 0, 0, 1, 0, 0])),
    ]
}

/// Steps of [`crate::engine`]: all the kinds of them, at each point of the handshake.
fn engines() -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for proof in [0, 1, 3u8] {
        for delivered in 0..6u8 {
            for step in 4..16u8 {
                let input = vec![1, proof, delivered, step, 1, 2, 3, 0, 5, 0, 0];
                out.push((format!("{proof}-{delivered}-{step:02}"), input));
            }
        }
        // Both rekey the child, both rekey the IKE SA, delete against rekey, late answers.
        for (name, steps) in [
            ("children", &[14, 0, 0, 0, 14, 1, 0, 0][..]),
            ("ikes", &[14, 0, 1, 14, 1, 1]),
            ("delete-rekey", &[14, 0, 1, 14, 1, 3]),
            ("reauth", &[14, 0, 2, 14, 1, 2]),
            ("add-remove", &[14, 0, 7, 2, 14, 1, 7, 2, 14, 0, 7, 0]),
        ] {
            for order in [&[0, 0, 0, 0, 0, 0][..], &[6, 6, 0, 0, 6], &[5, 5, 4, 0, 12]] {
                let input = [&[2, proof, 4], steps, order].concat();
                out.push((format!("cross-{proof}-{name}-{}", order[0]), input));
            }
        }
    }
    out
}

fn certificates() -> Vec<(String, Vec<u8>)> {
    let world = certificate::world();
    let (leaf, ca) = (world.leaf.as_slice(), world.ca.certificate());
    let with = |mode: u8, rest: &[u8]| [&[mode], rest].concat();
    let counted = |der: &[u8]| [&(der.len() as u16).to_be_bytes()[..], der].concat();
    let spki = |der: &[u8]| der.to_vec();
    let pem = world.ca.certificate_pem();
    let mut out = vec![
        ("leaf".into(), with(0, leaf)),
        ("ca".into(), with(0, ca)),
        ("request-der".into(), with(0, &world.request)),
        (
            "chain".into(),
            with(1, &[counted(leaf), counted(ca)].concat()),
        ),
        ("pem".into(), with(4, pem.as_bytes())),
        ("request".into(), with(5, &[0, 0])),
        // id-Ed25519, ecdsa-with-SHA256, a P-256 key's start.
        (
            "algorithm".into(),
            with(0, &spki(&[0x30, 5, 6, 3, 0x2b, 0x65, 0x70])),
        ),
    ];
    for mode in [2u8, 3, 5] {
        for n in 0..40u8 {
            let input = vec![mode, n % 3, n, n.wrapping_mul(7), n % 8, n, 1, 2, 3];
            out.push((format!("change-{mode}-{n:02}"), input));
        }
    }
    out
}

fn packets() -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for choice in 0..16u8 {
        let mut input = vec![choice];
        for n in 0..6u8 {
            // Seal, deliver, deliver again, damage, forge.
            input.extend([0, 8, n, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
            input.extend([1, n, 1, n, 2, n, n, n, 0xff, 3, 12]);
            input.extend([0, 0, 0, n, 9, 9, 9, 9, 9, 9, 9, 9]);
        }
        out.push((format!("mix-{choice:02}"), input));
    }
    out
}
