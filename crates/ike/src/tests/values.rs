//! Values that a peer may choose, and what must not come of them: keys, algorithm numbers,
//! identities, selectors.

use std::time::Duration;

use testudo_crypto::KeMethod;
use testudo_wire::ike::{
    Chain, EncryptionId, EsnId, IntegrityId, KeyExchange, Payload, PayloadType, Proposal,
    ProtocolId, Transform, TransformType,
};

use super::net::*;
use super::voice::*;
use crate::proposal;
use crate::suites::Suites;

/// Public values that no honest peer sends.
fn bad_keys(method: KeMethod) -> Vec<Vec<u8>> {
    let len = method.public_len();
    let mut one = vec![0; len];
    one[len - 1] = 1;
    let mut little_one = vec![0; len];
    little_one[0] = 1;
    let mut bad = vec![
        Vec::new(),
        vec![4; len - 1],
        vec![4; len + 1],
        vec![0; len],
        // Above every modulus.
        vec![0xff; len],
    ];
    if method == KeMethod::X25519 {
        // Every string is a point; of those of small order the result is all zero.
        bad.pop();
        bad.push(little_one);
    } else {
        bad.push(one);
    }
    bad
}

fn diffie_hellman() -> [KeMethod; 5] {
    [
        KeMethod::Modp2048,
        KeMethod::P256,
        KeMethod::P384,
        KeMethod::P521,
        KeMethod::X25519,
    ]
}

fn only(method: KeMethod, seed: u64) -> Net {
    let mut net = quiet_pair(seed);
    for node in &mut net.nodes {
        node.engine.config.suites.ke_methods = vec![method];
    }
    net
}

fn with_key(bytes: &[u8], key: &[u8]) -> Vec<u8> {
    rewrite(bytes, |_, payloads| {
        for payload in payloads {
            if let Payload::KeyExchange(ke) = payload {
                ke.data = key.to_vec();
            }
        }
    })
}

// CVE-2015-3240 (libreswan), CVE-2023-41913 (strongSwan), lesson L01: a public value was used
// before it was looked at.
#[test]
fn a_bad_public_value_makes_no_half_open_sa() {
    for method in diffie_hellman() {
        let mut net = only(method, 1);
        net.act(0, |e, now| e.handle_timeout(now));
        let (from, to, bytes) = net.wire[0].clone();
        for key in bad_keys(method) {
            let bad = with_key(&bytes, &key);
            net.act(1, |e, now| e.handle_datagram(now, to, from, &bad));
            let engine = &net.nodes[1].engine;
            assert!(engine.sas.is_empty(), "{method:?} {}", key.len());
            assert_eq!(engine.half_open_total, 0);
        }
        assert!(net.nodes[1].engine.counters().drops["bad_public_key"] > 3);
        net.run_ms(2_000);
        net.assert_connected(0, 1, 1);
    }
}

// The same in the answer, which is not authentic yet: it costs a round trip and no more.
#[test]
fn a_bad_public_value_in_the_answer_does_not_end_the_attempt() {
    for method in diffie_hellman() {
        for key in bad_keys(method) {
            let mut net = only(method, 2);
            let mut count = 0;
            net.filter = Some(Box::new(move |_, _, bytes| {
                count += 1;
                match count {
                    2 => Fate::Change(with_key(bytes, &key)),
                    _ => Fate::Pass,
                }
            }));
            net.act(0, |e, now| e.handle_timeout(now));
            net.run_ms(50);
            assert!(net.nodes[0].twin.ikes.is_empty());
            net.run_ms(10_000);
            net.assert_connected(0, 1, 1);
        }
    }
}

// And in a rekey, under the SA's keys: nothing is made of it.
#[test]
fn a_bad_public_value_in_a_rekey_makes_no_child() {
    for method in diffie_hellman() {
        for key in bad_keys(method) {
            let mut net = pair(3);
            net.nodes[1].engine.config.suites.ke_methods = vec![method];
            let suites = net.nodes[1].engine.config.suites.clone();
            let ts = crate::ts::to_wire(&child(1, 0, 1).local_ts);
            let payloads = [
                Payload::Sa(proposal::child_offer(&suites, 0x1234_5678, true, &[])),
                Payload::Nonce(vec![7; 32]),
                Payload::KeyExchange(KeyExchange {
                    method: method.id(),
                    data: key,
                }),
                Payload::TsInitiator(ts.clone()),
                Payload::TsResponder(ts),
            ];
            let answers = say(&mut net, 0, 36, 2, false, &chain(&payloads, &[]));
            assert_eq!(answers.len(), 1);
            assert_eq!(net.nodes[1].engine.counters().children_made, 1);
        }
    }
}

// CVE-2014-9221 (strongSwan), lesson L02: a number that only the program itself may use could be
// sent by the peer.
#[test]
fn every_number_of_every_kind_of_transform_is_survived() {
    let net = pair(4);
    let suites = net.nodes[0].engine.config.suites.clone();
    let good = proposal::ike_offer(&suites, None);
    let child = proposal::child_offer(&suites, 0x1234_5678, true, &[]);
    for id in 0..=u16::MAX {
        // In place of the good ones of its kind, with and without lengths.
        let kinds = 1..=if id < 1_100 { 13 } else { 5 };
        for kind in kinds.map(TransformType) {
            let odd = [None, Some(id), Some(256)].map(|key_length| Transform {
                key_length,
                ..Transform::new(kind, id)
            });
            for offer in [&good, &child] {
                let mut offer = offer.clone();
                offer[0].transforms.retain(|t| t.kind != kind);
                offer[0].transforms.extend(odd);
                let _ = proposal::choose_ike(&offer, &suites, 31, true, false);
                let _ = proposal::choose_child(&offer, &suites, Some(31), false);
            }
        }
        // As the method of the KE payload: known ones are chosen, all others refused.
        let chosen = proposal::choose_ike(&good, &suites, id, true, false).is_ok();
        let ours = suites.ke_methods.iter().any(|m| m.id() == id);
        assert_eq!(chosen, ours, "{id}");
    }
}

fn esp(number: u8, transforms: Vec<Transform>) -> Proposal {
    Proposal {
        number,
        protocol: ProtocolId::ESP,
        spi: vec![0x12, 0x34, 0x56, number],
        transforms,
    }
}

// CVE-2024-3652 (libreswan), lesson L04: a suite without key bytes, or with a part too many, ended
// everything. That proposal is skipped, and the next good one chosen.
#[test]
fn odd_proposals_for_a_child_are_skipped() {
    let gcm = || Transform::encryption(EncryptionId(20), Some(256));
    let esn = || Transform::esn(EsnId::NO_ESN);
    let odd_attribute = Transform {
        unknown_attribute: true,
        ..gcm()
    };
    for bad in [
        vec![esn()],
        vec![Transform::encryption(EncryptionId(11), None), esn()],
        vec![Transform::encryption(EncryptionId(21), Some(256)), esn()],
        vec![
            gcm(),
            Transform::integrity(IntegrityId::HMAC_SHA2_256_128),
            esn(),
        ],
        vec![gcm(), esn(), Transform::new(TransformType(77), 1)],
        vec![odd_attribute, esn()],
        vec![Transform::encryption(EncryptionId(20), None), esn()],
        vec![Transform::encryption(EncryptionId(20), Some(0)), esn()],
        vec![gcm()],
        Vec::new(),
    ] {
        let suites = Suites::default();
        let offer = [esp(1, bad.clone()), esp(2, vec![gcm(), esn()])];
        let (_, spi) = proposal::choose_child(&offer, &suites, None, true).unwrap();
        assert_eq!(spi, 0x1234_5602, "{bad:?}");
        assert!(proposal::choose_child(&offer[..1], &suites, None, true).is_err());
    }
}

/// Node 0 has sent IKE_AUTH, which has not arrived; node 1 has a half-open SA.
fn half_open(seed: u64) -> Net {
    let mut net = quiet_pair(seed);
    net.filter = Some(Box::new(|_, _, bytes| match bytes[18] {
        35 => Fate::Drop,
        _ => Fate::Pass,
    }));
    net.act(0, |e, now| e.handle_timeout(now));
    net.run_ms(50);
    assert_eq!(net.nodes[1].engine.half_open_total, 1);
    net
}

// CVE-2025-9242 (WatchGuard), CVE-2013-6075 (strongSwan), lesson L10: an identity was copied or
// compared before its length was.
#[test]
fn identities_of_every_length_match_nobody() {
    let name = "n0.node.testudo";
    let mut tried = Vec::new();
    for len in (0..40).chain([255, 256, 1023, 1024, 1025, 5_000, 60_000]) {
        tried.extend([1, 2, 3, 5, 9, 11].map(|kind| (kind, vec![b'n'; len])));
        tried.push((9, vec![0x30; len]));
    }
    // Parts of the right one, and more than it.
    tried.extend((0..name.len()).map(|len| (2, name.as_bytes()[..len].to_vec())));
    for more in ["\0", ".", " ", ".evil", "\0.evil"] {
        tried.push((2, format!("{name}{more}").into_bytes()));
        tried.push((2, format!("{more}{name}").into_bytes()));
    }
    // The right one, of another kind.
    tried.extend((0..=255).filter(|k| *k != 2).map(|k| (k, name.into())));
    for (kind, data) in tried {
        let mut net = half_open(5);
        let body = [&[kind, 0, 0, 0], &data[..]].concat();
        let auth = (PayloadType::AUTH, [&[2, 0, 0, 0][..], &[9; 32]].concat());
        let inside = chain(&[], &[(PayloadType::IDI, body), auth]);
        let answers = say(&mut net, 0, 35, 1, false, &inside);
        assert!(answers.len() <= 1);
        let failure = net.nodes[1].failures.last().unwrap();
        assert_eq!(failure.peer, None, "{kind} {}", data.len());
        assert!(net.nodes[1].twin.ikes.is_empty());
    }
}

// libreswan 4.0, lesson L08: the reserved bytes of an ID are part of what AUTH covers, whatever
// they are.
#[test]
fn reserved_bytes_of_an_identity_are_covered_by_auth() {
    for (signed, sent, good) in [
        ([0; 3], [0; 3], true),
        ([1, 2, 3], [1, 2, 3], true),
        ([0; 3], [1, 2, 3], false),
    ] {
        let mut net = half_open(6);
        let engine = &mut net.nodes[0].engine;
        let sa = engine.sas.values().next_back().unwrap();
        let crate::sa::State::AuthSent(state) = &sa.state else {
            panic!("IKE_AUTH was not sent");
        };
        let body = |reserved: [u8; 3]| [&[2], &reserved[..], b"n0.node.testudo"].concat();
        let octets = crate::proof::Octets {
            message: &state.greeting.transcript.request,
            nonce: &state.greeting.transcript.nonce_r,
            sk_p: &state.keys.sk_p.0,
            id_body: &body(signed),
            int_auth: &state.int_auth,
        };
        let secret = testudo_crypto::SecretBytes::from(&b"secret"[..]);
        let auth = crate::proof::psk_auth(&secret, &state.keys, &octets);
        let mut inside = Chain::new();
        inside
            .push_raw(PayloadType::IDI, false, &body(sent))
            .unwrap();
        inside.push(&Payload::Authentication(auth)).unwrap();
        say(&mut net, 0, 35, 1, false, &inside);
        assert_eq!(net.nodes[1].twin.ikes.len(), usize::from(good));
    }
}

// CVE-2023-23009 (libreswan), lesson L11: a malformed selector was freed twice.
#[test]
fn malformed_selectors_make_no_child() {
    let good = [7, 17, 0, 16, 0, 0, 0xff, 0xff, 10, 0, 0, 1, 10, 0, 0, 1];
    let with = |at: usize, value: u8| {
        let mut ts = good.to_vec();
        ts[at] = value;
        ts
    };
    let body = |count: u8, ts: &[u8]| [&[count, 0, 0, 0], ts].concat();
    let mut bodies = vec![
        Vec::new(),
        body(0, &[]),
        body(0, &good),
        body(255, &good),
        body(2, &good),
        body(1, &[good, good].concat()),
        body(1, &good[..15]),
    ];
    // Kind, length, reversed addresses and ports.
    for (at, value) in [
        (0, 0),
        (0, 8),
        (0, 9),
        (0, 255),
        (3, 0),
        (3, 8),
        (3, 17),
        (3, 255),
        (8, 11),
        (4, 255),
    ] {
        let mut ts = with(at, value);
        if at == 4 {
            ts[6..8].copy_from_slice(&[0, 1]);
        }
        bodies.push(body(1, &ts));
    }
    let suites = Suites::default();
    for bad in bodies {
        for first in [true, false] {
            let mut net = pair(7);
            let offer = Payload::Sa(proposal::child_offer(&suites, 0x1234_5678, false, &[]));
            let (i, r) = match first {
                true => (bad.clone(), body(1, &good)),
                false => (body(1, &good), bad.clone()),
            };
            let selectors = [(PayloadType::TSI, i), (PayloadType::TSR, r)];
            let inside = chain(&[offer, Payload::Nonce(vec![7; 32])], &selectors);
            let answers = say(&mut net, 0, 36, 2, false, &inside);
            assert_eq!(answers.len(), 1, "{bad:?}");
            assert_eq!(net.nodes[1].engine.counters().children_made, 1, "{bad:?}");
            net.run(Duration::from_secs(90));
            net.assert_connected(0, 1, 1);
        }
    }
}
