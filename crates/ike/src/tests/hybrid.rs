//! Additional key exchanges (RFC 9370): IKE_INTERMEDIATE between IKE_SA_INIT and IKE_AUTH.

use std::net::SocketAddr;

use testudo_crypto::KeMethod::{self, MlKem768, MlKem1024, Modp2048, P256, P384, P521};
use testudo_crypto::KeyType;
use testudo_wire::ike::{ExchangeType, Header, KeyExchange, Message, Payload, TransformType};

use super::net::*;
use crate::message;
use crate::sa::State;
use crate::*;

const INTERMEDIATE: u8 = 43;

fn suite(net: &Net, n: usize) -> String {
    let sa = net.nodes[n].engine.sas.values().next().unwrap();
    sa.established().unwrap().keys.suite.name()
}

fn count(net: &Net, exchange: u8) -> usize {
    net.wire
        .iter()
        .filter(|(_, _, b)| b[18] == exchange)
        .count()
}

#[test]
fn keys_come_from_both_exchanges() {
    let mut net = Net::with(1, 2, hybrid(&[&[MlKem768]], false));
    net.connect(0, 1, false);
    net.esp = true;
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
    for n in 0..2 {
        assert_eq!(
            suite(&net, n),
            "AES_GCM_16_256/PRF_HMAC_SHA2_256/CURVE_25519/ML_KEM_768"
        );
        assert_eq!(net.nodes[n].engine.half_open_total, 0);
    }
    assert_eq!(count(&net, INTERMEDIATE), 2);
    // IKE_AUTH follows with the next message ID.
    let auth = net.wire.iter().find(|(_, _, b)| b[18] == 35).unwrap();
    assert_eq!(auth.2[20..24], 2u32.to_be_bytes());
}

#[test]
fn a_default_engine_has_one_that_may_be_left_out() {
    let suites = Suites::default();
    assert_eq!(
        suites.additional_ke,
        [AdditionalKe {
            methods: vec![MlKem768],
            required: false
        }]
    );
}

#[test]
fn every_method_in_every_place() {
    let six: &[&[KeMethod]] = &[
        &[MlKem1024],
        &[P256],
        &[MlKem768],
        &[Modp2048],
        &[P521],
        &[P384],
    ];
    let one = [Modp2048, P256, P384, P521, MlKem768, MlKem1024];
    let mut lists: Vec<Vec<&[KeMethod]>> = vec![six.to_vec()];
    lists.extend(one.iter().map(|method| vec![std::slice::from_ref(method)]));
    for rounds in &lists {
        for pre_shared in [false, true] {
            let mut net = Net::with(2, 2, hybrid(rounds, true));
            for (n, peer) in [(1, 0), (0, 1)] {
                let mut config = peer_config(n, peer, n == 0);
                if pre_shared {
                    config.auth = psk("secret");
                } else {
                    let kind = [KeyType::EcdsaP256, KeyType::Ed25519][n];
                    let id = local_identity(n, "ca", EPOCH + 1_000_000, kind);
                    net.nodes[n].engine.set_identity(id);
                }
                net.act(n, |e, now| e.set_peer(config, now)).unwrap();
                net.act(n, |e, now| e.handle_timeout(now));
            }
            net.esp = true;
            net.run_ms(500);
            net.assert_connected(0, 1, 1);
            net.assert_no_esp_lost();
            assert_eq!(count(&net, INTERMEDIATE), 2 * rounds.len());
        }
    }
}

// Lesson L41: a classical choice from a mixed offer has no IntAuth.
#[test]
fn a_peer_without_them_gets_none() {
    for old in [0, 1] {
        let mut net = Net::with(3, 2, hybrid(&[&[MlKem768]], false));
        net.nodes[old].engine.config.suites.additional_ke.clear();
        net.connect(0, 1, false);
        net.run_ms(500);
        net.assert_connected(0, 1, 1);
        assert_eq!(
            suite(&net, 0),
            "AES_GCM_16_256/PRF_HMAC_SHA2_256/CURVE_25519"
        );
        assert_eq!(net.wire.len(), 4);
        // So it is in a rekey of either.
        for n in 0..2 {
            net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now))
                .unwrap();
            net.run_ms(500);
            let child = net.ikes(n, 1 - n)[0].children[0].child;
            net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
            net.run_ms(500);
            net.assert_connected(0, 1, 1);
        }
        assert_eq!(count(&net, 44), 0);
    }
}

#[test]
fn a_required_one_is_not_left_out() {
    for strict in [0, 1] {
        let mut net = Net::with(4, 2, hybrid(&[&[MlKem768]], true));
        net.nodes[1 - strict]
            .engine
            .config
            .suites
            .additional_ke
            .clear();
        net.connect(0, 1, false);
        net.run_ms(60_000);
        assert!(net.ikes(0, 1).is_empty() && net.ikes(1, 0).is_empty());
        assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Proposal);
    }
}

/// Optional for everybody, required of one peer: known when that has named itself.
#[test]
fn a_peer_of_which_it_is_required_is_refused_without() {
    let mut net = Net::with(5, 2, hybrid(&[&[MlKem768]], false));
    net.nodes[0].engine.config.suites.additional_ke.clear();
    let strict = PeerConfig {
        suites: Some(hybrid(&[&[MlKem768]], true).suites),
        addresses: vec![PeerAddress {
            local: address(1),
            // Not where it comes from.
            remote: address(9),
        }],
        ..peer_config(1, 0, false)
    };
    net.act(1, |e, now| e.set_peer(strict, now)).unwrap();
    net.act(0, |e, now| e.set_peer(peer_config(0, 1, true), now))
        .unwrap();
    net.act(0, |e, now| e.handle_timeout(now));
    net.run_ms(300);
    assert!(net.ikes(1, 0).is_empty(), "{}", net.story());
    assert_eq!(net.nodes[1].failures[0].check, FailedCheck::Proposal);
}

/// An IKE_SA_INIT without its first proposal.
fn without_hybrid(bytes: &[u8]) -> Vec<u8> {
    let parsed = Message::parse(bytes).unwrap();
    let payloads: Vec<Payload> = parsed
        .payloads
        .into_iter()
        .map(|p| match p.payload {
            Payload::Sa(mut proposals) => {
                let hybrid = |p: &testudo_wire::ike::Proposal| {
                    p.of_type(TransformType::ADDKE1).next().is_some()
                };
                proposals.retain(|p| !hybrid(p));
                Payload::Sa(proposals)
            }
            other => other,
        })
        .collect();
    message::clear(&parsed.header, &payloads).ok().unwrap()
}

// Lesson L41: offer edited in flight.
#[test]
fn an_offer_edited_on_the_way_fails_authentication() {
    for pre_shared in [false, true] {
        let mut net = Net::with(6, 2, hybrid(&[&[MlKem768]], false));
        let to = SocketAddr::new(address(1), 500);
        net.filter = Some(Box::new(move |_, dst, bytes| {
            if dst == to && bytes[18] == 34 {
                return Fate::Change(without_hybrid(bytes));
            }
            Fate::Pass
        }));
        for (n, peer) in [(1, 0), (0, 1)] {
            let mut config = peer_config(n, peer, n == 0);
            if pre_shared {
                config.auth = psk("secret");
            }
            net.act(n, |e, now| e.set_peer(config, now)).unwrap();
            net.act(n, |e, now| e.handle_timeout(now));
        }
        net.run_ms(300);
        assert!(net.ikes(0, 1).is_empty() && net.ikes(1, 0).is_empty());
        let check = if pre_shared {
            FailedCheck::PreSharedKey
        } else {
            FailedCheck::AuthSignature
        };
        assert_eq!(net.nodes[1].failures[0].check, check, "{}", net.story());
    }
}

#[test]
fn each_lost_message_is_made_good() {
    for lost in 0..8 {
        let mut net = Net::with(7, 2, hybrid(&[&[MlKem768], &[P384]], true));
        net.lose(lost + 1);
        net.connect(0, 1, false);
        net.run_ms(3_000);
        net.assert_connected(0, 1, 1);
        assert_eq!(net.nodes[0].engine.counters().attempts, 1);
        assert_eq!(net.nodes[0].engine.counters().retransmits, 1);
    }
}

// Lesson L41: ML-KEM fragmented. IntAuth goes over the messages before they are cut.
#[test]
fn fragments_are_authenticated_as_a_whole() {
    for method in [MlKem768, MlKem1024] {
        for fragment_size in [0, 240, 576, 1280, 1500] {
            for pre_shared in [false, true] {
                let config = EngineConfig {
                    fragment_size,
                    ..hybrid(&[&[method], &[P521]], true)
                };
                let mut net = Net::with(18, 2, config);
                for (n, peer) in [(1, 0), (0, 1)] {
                    let mut config = peer_config(n, peer, n == 0);
                    if pre_shared {
                        config.auth = psk("secret");
                    }
                    net.act(n, |e, now| e.set_peer(config, now)).unwrap();
                    net.act(n, |e, now| e.handle_timeout(now));
                }
                net.run_ms(300);
                net.assert_connected(0, 1, 1);
                let cut = (1..1280).contains(&fragment_size);
                assert!(count(&net, INTERMEDIATE) > 4 || !cut);
                // A rekey is as large.
                net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
                net.run_ms(300);
                let child = net.ikes(1, 0)[0].children[0].child;
                net.act(1, |e, now| e.rekey_child(child, now)).unwrap();
                net.run_ms(300);
                net.assert_connected(0, 1, 1);
            }
        }
    }
}

#[test]
fn a_key_of_ml_kem_768_is_one_datagram_where_there_is_room() {
    use testudo_model::policy::EncapsulationMode::{Always, Auto};
    for (encapsulation, datagrams) in [(Auto, 2), (Always, 3)] {
        let config = EngineConfig {
            fragment_size: EngineConfig::default().fragment_size,
            ..hybrid(&[&[MlKem768]], true)
        };
        let mut net = Net::with(20, 2, config);
        for n in [1, 0] {
            let config = PeerConfig {
                encapsulation,
                ..peer_config(n, 1 - n, n == 0)
            };
            net.act(n, |e, now| e.set_peer(config, now)).unwrap();
            net.act(n, |e, now| e.handle_timeout(now));
        }
        net.run_ms(300);
        net.assert_connected(0, 1, 1);
        assert_eq!(count(&net, INTERMEDIATE), datagrams);
    }
}

#[test]
fn each_lost_fragment_is_made_good() {
    for lost in 0..24 {
        let config = EngineConfig {
            fragment_size: 400,
            ..hybrid(&[&[MlKem768]], true)
        };
        let mut net = Net::with(19, 2, config);
        net.lose(lost + 1);
        net.connect(0, 1, false);
        net.run_ms(4_000);
        net.assert_connected(0, 1, 1);
        assert_eq!(net.nodes[0].engine.counters().attempts, 1);
    }
}

#[test]
fn a_repeated_request_is_answered_from_memory() {
    let mut net = Net::with(8, 2, hybrid(&[&[MlKem768]], true));
    let from = SocketAddr::new(address(1), 500);
    let mut dropped = 0;
    net.filter = Some(Box::new(move |src, _, bytes| {
        if src == from && bytes[18] == INTERMEDIATE && dropped < 3 {
            dropped += 1;
            return Fate::Drop;
        }
        Fate::Pass
    }));
    net.connect(0, 1, false);
    net.run_ms(10_000);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[1].engine.counters().answers_repeated, 3);
    let mut answers: Vec<_> = net
        .wire
        .iter()
        .filter(|(src, _, b)| *src == from && b[18] == INTERMEDIATE)
        .map(|(_, _, b)| b.clone())
        .collect();
    assert_eq!(answers.len(), 4);
    answers.dedup();
    assert_eq!(answers.len(), 1);
}

#[test]
fn bad_weather_is_survived() {
    for seed in 0..40 {
        let mut net = Net::with(9000 + seed, 2, hybrid(&[&[MlKem768], &[P256]], true));
        net.weather = Weather {
            jitter: std::time::Duration::from_millis(80),
            loss: 20,
            duplicates: 40,
            ..FAIR
        };
        net.connect(0, 1, seed % 2 == 0);
        net.run_ms(60_000);
        net.weather = FAIR;
        net.run_ms(60_000);
        net.assert_connected(0, 1, 1);
        for n in 0..2 {
            assert_eq!(net.nodes[n].engine.half_open_total, 0);
        }
    }
}

#[test]
fn a_forged_answer_does_no_harm() {
    let mut net = Net::with(10, 2, hybrid(&[&[MlKem768]], true));
    let from = SocketAddr::new(address(1), 500);
    let mut forged = false;
    net.filter = Some(Box::new(move |src, _, bytes| {
        if src == from && bytes[18] == INTERMEDIATE && !forged {
            forged = true;
            let mut bytes = bytes.to_vec();
            bytes[60] ^= 1;
            return Fate::Change(bytes);
        }
        Fate::Pass
    }));
    net.connect(0, 1, false);
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[0].engine.counters().drops["decrypt_failed"], 1);
}

/// Node 0 waits for the answer to its IKE_INTERMEDIATE, which node 1 has not seen.
fn waiting(seed: u64) -> Net {
    let mut net = Net::with(seed, 2, hybrid(&[&[MlKem768]], true));
    net.filter = Some(Box::new(|_, _, bytes| {
        if bytes[18] == INTERMEDIATE {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    net.connect(0, 1, false);
    net.run_ms(100);
    net.filter = None;
    net
}

/// Sends a message under node 0's keys of now, which node 1 takes at once; gives the answer.
fn inject(net: &mut Net, exchange: ExchangeType, id: u32, payloads: &[Payload]) -> Option<Vec<u8>> {
    let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
    let header: Header = sa.request_header(exchange, id);
    let path = sa.path();
    let State::IntermediateSent(sent) = &mut sa.state else {
        panic!("not waiting");
    };
    let bytes = message::protect(&mut sent.keys, &header, payloads)
        .ok()
        .unwrap();
    let bytes = bytes.whole().to_vec();
    let before = net.wire.len();
    net.act(1, |e, now| {
        e.handle_datagram(now, path.remote, path.local, &bytes);
    });
    net.wire.get(before).map(|(_, _, bytes)| bytes.clone())
}

fn key(method: KeMethod, len: usize) -> Payload {
    Payload::KeyExchange(KeyExchange {
        method: method.id(),
        data: vec![0; len],
    })
}

// Lesson L01: a value of the wrong size or kind.
#[test]
fn a_bad_key_is_refused_and_ends_the_attempt() {
    for payloads in [
        vec![key(MlKem768, 1183)],
        vec![key(MlKem768, 1185)],
        vec![key(MlKem768, 0)],
        // A ciphertext.
        vec![key(MlKem768, 1088)],
        vec![key(MlKem1024, 1568)],
        vec![key(P256, 64)],
        // Coefficients that are not reduced (FIPS 203, 7.2).
        vec![Payload::KeyExchange(KeyExchange {
            method: MlKem768.id(),
            data: vec![0xff; 1184],
        })],
        vec![key(MlKem768, 1184), key(MlKem768, 1184)],
        vec![],
    ] {
        let mut net = waiting(11);
        let exchange = ExchangeType::IKE_INTERMEDIATE;
        let answer = inject(&mut net, exchange, 1, &payloads).unwrap();
        // The refusal is remembered.
        let again = inject(&mut net, exchange, 1, &payloads).unwrap();
        assert_eq!(answer, again);
        net.run_ms(50);
        assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Protocol);
        assert!(net.ikes(1, 0).is_empty());
        net.run_ms(40_000);
        assert_eq!(net.nodes[1].engine.half_open_total, 0);
    }
}

#[test]
fn messages_at_the_wrong_time_are_dropped() {
    let drops = |net: &Net, name: &str| {
        let counters = net.nodes[1].engine.counters();
        counters.drops.get(name).copied().unwrap_or(0)
    };
    let mut net = waiting(12);
    // IKE_AUTH before the key exchange that was agreed on.
    assert!(inject(&mut net, ExchangeType::IKE_AUTH, 1, &[]).is_none());
    assert_eq!(drops(&net, "intermediate_missing"), 1);
    for id in [0, 2, u32::MAX] {
        let exchange = ExchangeType::IKE_INTERMEDIATE;
        assert!(inject(&mut net, exchange, id, &[]).is_none());
    }
    assert_eq!(drops(&net, "message_id"), 3);
    assert!(inject(&mut net, ExchangeType::IKE_FOLLOWUP_KE, 1, &[]).is_none());
    assert_eq!(drops(&net, "unexpected_exchange"), 1);
    // All that has done no harm.
    net.run_ms(2_000);
    net.assert_connected(0, 1, 1);
}

/// One more exchange than was agreed on.
#[test]
fn an_intermediate_exchange_without_purpose_is_refused() {
    let mut net = Net::with(13, 2, hybrid(&[&[MlKem768]], true));
    net.filter = Some(Box::new(|_, _, bytes| {
        if bytes[18] == 35 {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    net.connect(0, 1, false);
    net.run_ms(100);
    let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
    let header = sa.request_header(ExchangeType::IKE_INTERMEDIATE, 2);
    let path = sa.path();
    let State::AuthSent(sent) = &mut sa.state else {
        panic!("{}", net.story());
    };
    let bytes = message::protect(&mut sent.keys, &header, &[key(MlKem768, 1184)]);
    let bytes = bytes.ok().unwrap().whole().to_vec();
    net.act(1, |e, now| {
        e.handle_datagram(now, path.remote, path.local, &bytes);
    });
    let drops = &net.nodes[1].engine.counters().drops;
    assert_eq!(drops["intermediate_without_purpose"], 1);
    assert!(net.ikes(1, 0).is_empty());
}

/// A stranger's half-open SAs go in time, whatever exchange they stopped at.
#[test]
fn half_open_ends_with_its_deadline() {
    let mut net = Net::with(14, 2, hybrid(&[&[MlKem768]], true));
    net.filter = Some(Box::new(|_, _, bytes| {
        if bytes[18] == 35 {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    net.connect(0, 1, false);
    net.run_ms(100);
    assert_eq!(net.nodes[1].engine.half_open_total, 1);
    net.nodes[0].alive = false;
    net.run_ms(31_000);
    assert_eq!(net.nodes[1].engine.half_open_total, 0);
    assert!(net.nodes[1].engine.sas.is_empty());
}

#[test]
fn both_ends_at_once_end_with_one() {
    for seed in 0..30 {
        let mut net = Net::with(15_000 + seed, 2, hybrid(&[&[MlKem768]], false));
        net.weather.jitter = std::time::Duration::from_millis(20);
        net.connect(0, 1, true);
        net.run_ms(100_000);
        net.assert_connected(0, 1, 1);
        net.assert_tidy(0, 1);
        net.assert_tidy(1, 1);
    }
}

#[test]
fn forced_encapsulation_moves_before_the_additional_exchange() {
    let mut net = Net::with(16, 2, hybrid(&[&[MlKem768]], true));
    for (n, peer) in [(1, 0), (0, 1)] {
        let config = PeerConfig {
            encapsulation: testudo_model::policy::EncapsulationMode::Always,
            ..peer_config(n, peer, n == 0)
        };
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
        net.act(n, |e, now| e.handle_timeout(now));
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    for (from, to, bytes) in &net.wire {
        let port = if bytes[18] == 34 { 500 } else { 4500 };
        assert_eq!((from.port(), to.port()), (port, port));
    }
}

#[test]
fn a_wrong_proof_is_refused_after_the_additional_exchange_too() {
    for bad in [0, 1] {
        let mut net = Net::with(17, 2, hybrid(&[&[MlKem768]], true));
        let id = local_identity(bad, "evil", EPOCH + 1_000_000, KeyType::Ed25519);
        net.nodes[bad].engine.set_identity(id);
        net.connect(0, 1, false);
        net.run_ms(300);
        let judge = 1 - bad;
        let check = FailedCheck::CertificateUnknownCa;
        assert_eq!(net.nodes[judge].failures[0].check, check);
        assert_eq!(net.nodes[bad].failures[0].check, FailedCheck::RefusedByPeer);
        assert!(net.ikes(0, 1).is_empty() && net.ikes(1, 0).is_empty());
    }
}
