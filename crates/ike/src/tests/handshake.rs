//! First contact: every kind of proof, every way to fail it.

use std::time::Duration;

use testudo_crypto::{Cipher, KeMethod, KeyType, Prf};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{Encapsulation, SaMode, TrafficSelector};

use super::net::*;
use crate::*;

#[test]
fn two_engines_make_one_child() {
    let mut net = Net::new(1, 2);
    net.connect(0, 1, false);
    net.esp = true;
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.assert_no_esp_lost();
    // Two exchanges, no more.
    assert_eq!(net.wire.len(), 4);
    // Both begin to count with IKE_SA_INIT: the responder half a round trip later, and ends as much
    // earlier.
    let (initiator, responder) = (net.nodes[0].took[0], net.nodes[1].took[0]);
    let way = net.weather.latency;
    assert!(initiator >= 4 * way, "{initiator:?}");
    assert!(
        responder >= 2 * way && responder < initiator,
        "{responder:?}"
    );
}

#[test]
fn a_rekey_takes_no_handshake() {
    let mut net = Net::new(1, 2);
    net.connect(0, 1, false);
    net.run_ms(500);
    net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
    net.run_ms(500);
    assert_eq!(net.nodes[0].took.len(), 2);
    assert_eq!(net.nodes[0].took[1], Duration::ZERO);
}

#[test]
fn every_algorithm_works() {
    for kind in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Ed25519] {
        for ke in KeMethod::ALL {
            for (prf, cipher) in [
                (Prf::HmacSha256, Cipher::AES_256_GCM),
                (Prf::HmacSha384, Cipher::AES_128_GCM),
                (Prf::HmacSha512, Cipher::AES_256_GCM),
            ] {
                let config = EngineConfig {
                    suites: Suites {
                        ke_methods: vec![ke],
                        additional_ke: Vec::new(),
                        prfs: vec![prf],
                        ike_ciphers: vec![cipher],
                        esp_ciphers: vec![cipher],
                        ..Suites::default()
                    },
                    ..config()
                };
                let mut net = Net::with(2, 2, config);
                for n in 0..2 {
                    let id = local_identity(n, "ca", EPOCH + 1_000_000, kind);
                    net.nodes[n].engine.set_identity(id);
                }
                net.connect(0, 1, false);
                net.run_ms(500);
                net.assert_connected(0, 1, 1);
            }
        }
    }
}

fn psk_pair(net: &mut Net, a: &str, b: &str) {
    let now = net.at();
    for (n, peer, key) in [(1, 0, b), (0, 1, a)] {
        let config = PeerConfig {
            auth: psk(key),
            ..peer_config(n, peer, n == 0)
        };
        net.nodes[n].engine.set_peer(config, now).unwrap();
        net.drain(n);
    }
}

#[test]
fn a_pre_shared_key_proves_both() {
    let mut net = Net::new(3, 2);
    psk_pair(&mut net, "secret", "secret");
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
}

#[test]
fn a_wrong_pre_shared_key_is_refused_and_named() {
    let mut net = Net::new(4, 2);
    psk_pair(&mut net, "secret", "other");
    net.run_ms(500);
    assert!(net.ikes(0, 1).is_empty() && net.ikes(1, 0).is_empty());
    assert_eq!(net.nodes[1].failures[0].check, FailedCheck::PreSharedKey);
    // A stranger's failure is not the peer's.
    assert!(!net.nodes[1].failures[0].authenticated);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::RefusedByPeer);
}

/// The initiator has a bad certificate, then the responder: each end names the check.
fn refused(identity_of: impl Fn(usize) -> LocalIdentity, check: FailedCheck) {
    for bad in [0, 1] {
        let mut net = Net::new(5, 2);
        net.nodes[bad].engine.set_identity(identity_of(bad));
        net.connect(0, 1, false);
        net.run_ms(300);
        let judge = 1 - bad;
        assert!(net.ikes(judge, bad).is_empty(), "{}", net.story());
        assert_eq!(net.nodes[judge].failures[0].check, check, "{}", net.story());
        assert_eq!(net.nodes[judge].failures[0].peer, Some(peer_id(bad)));
        let told = &net.nodes[bad].failures[0];
        assert_eq!(told.check, FailedCheck::RefusedByPeer);
        net.run_ms(30_000);
        net.assert_tidy(0, 0);
        net.assert_tidy(1, 0);
    }
}

#[test]
fn bad_certificates_are_refused_by_name() {
    let far = EPOCH + 1_000_000;
    refused(
        |n| local_identity(n, "ca", EPOCH - 10, KeyType::Ed25519),
        FailedCheck::CertificateExpired,
    );
    refused(
        |n| local_identity(n, "other", far, KeyType::Ed25519),
        FailedCheck::CertificateUnknownCa,
    );
    // Lesson L35: a certificate of the right CA for another node.
    refused(
        |n| LocalIdentity {
            id: identity(n),
            ..local_identity(7, "ca", far, KeyType::Ed25519)
        },
        FailedCheck::CertificateWrongIdentity,
    );
    // The certificate is right, the key is not its own.
    refused(
        |n| {
            let mut id = local_identity(n, "ca", far, KeyType::Ed25519);
            let other = local_identity(n, "ca", far, KeyType::Ed25519);
            id.certificate.as_mut().unwrap().chain = other.certificate.unwrap().chain;
            id
        },
        FailedCheck::AuthSignature,
    );
}

#[test]
fn a_responder_with_another_identity_is_refused() {
    let mut net = Net::new(6, 2);
    net.nodes[1]
        .engine
        .set_identity(local_identity(7, "ca", EPOCH + 1_000_000, KeyType::Ed25519));
    net.connect(0, 1, false);
    net.run_ms(300);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Identity);
    assert!(net.ikes(0, 1).is_empty());
}

#[test]
fn an_unknown_initiator_is_refused() {
    let mut net = Net::new(7, 2);
    let now = net.at();
    net.nodes[0]
        .engine
        .set_peer(peer_config(0, 1, true), now)
        .unwrap();
    net.drain(0);
    net.run_ms(300);
    let failure = &net.nodes[1].failures[0];
    assert_eq!(failure.check, FailedCheck::UnknownPeer);
    assert_eq!(failure.peer, None);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::RefusedByPeer);
}

#[test]
fn nobody_talks_to_itself() {
    // Lesson L39: a node's own messages, returned.
    let mut net = Net::new(8, 1);
    let now = net.at();
    let mut config = peer_config(0, 0, true);
    config.id = peer_id(9);
    net.nodes[0].engine.set_peer(config, now).unwrap();
    net.drain(0);
    net.run_ms(5_000);
    assert!(net.nodes[0].twin.ikes.is_empty());
    assert!(net.nodes[0].engine.counters().drops["reflected"] > 0);
}

#[test]
fn the_responder_steers_the_method_for_one_attempt() {
    let mut net = Net::new(9, 2);
    net.nodes[1].engine.config.suites.ke_methods = vec![KeMethod::P256];
    net.connect(0, 1, false);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    // INVALID_KE_PAYLOAD costs one exchange.
    assert_eq!(net.wire.len(), 6);
    // A rekey begins with the method that worked (lesson L52).
    let child = net.ikes(0, 1)[0].children[0].child;
    let before = net.wire.len();
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.wire.len() - before, 4);
}

#[test]
fn tunnel_mode_narrows() {
    let mut net = Net::new(10, 2);
    let now = net.at();
    let wide = |n: usize| TrafficSelector::prefix(format!("10.24{n}.0.0/16").parse().unwrap());
    let narrow = |n: usize| TrafficSelector::prefix(format!("10.24{n}.7.0/24").parse().unwrap());
    for (n, peer) in [(1, 0), (0, 1)] {
        let mut config = peer_config(n, peer, n == 0);
        let ts = |x| if n == 1 { narrow(x) } else { wide(x) };
        config.children = vec![ChildConfig {
            name: "pods".into(),
            mode: SaMode::Tunnel,
            local_ts: vec![ts(n)],
            remote_ts: vec![ts(peer)],
            resources: 0,
        }];
        net.nodes[n].engine.set_peer(config, now).unwrap();
        net.drain(n);
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    let child = net.nodes[0].engine.children.values().next().unwrap();
    assert_eq!(child.local_ts, vec![narrow(0)]);
    assert_eq!(child.remote_ts, vec![narrow(1)]);
    // A rekey keeps to what was negotiated (lesson L51).
    let id = child.id;
    net.act(0, |e, now| e.rekey_child(id, now)).unwrap();
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    let child = net.nodes[0].engine.children.values().find(|c| c.is_up());
    assert_eq!(child.unwrap().local_ts, vec![narrow(0)]);
}

#[test]
fn selectors_without_common_ground_leave_the_ike_sa() {
    let mut net = Net::new(11, 2);
    let now = net.at();
    let mut other = peer_config(1, 0, false);
    other.children = vec![child(5, 1, 0)];
    net.nodes[1].engine.set_peer(other, now).unwrap();
    net.nodes[0]
        .engine
        .set_peer(peer_config(0, 1, true), now)
        .unwrap();
    net.drain(0);
    net.run_ms(300);
    assert_eq!(net.ikes(0, 1).len(), 1);
    assert_eq!(
        net.nodes[0].failures[0].check,
        FailedCheck::TrafficSelectors
    );
    assert_eq!(net.nodes[0].failures[0].child, Some("child0".into()));
    // The retries back off.
    net.run(Duration::from_secs(120));
    assert!(net.nodes[0].failures.len() < 10, "{}", net.story());
}

#[test]
fn forced_encapsulation_moves_to_4500() {
    for (a, b) in [(true, false), (false, true), (true, true)] {
        let mut net = Net::new(12, 2);
        let now = net.at();
        for (n, peer, forced) in [(1, 0, b), (0, 1, a)] {
            let mut config = peer_config(n, peer, n == 0);
            if forced {
                config.encapsulation = EncapsulationMode::Always;
            }
            net.nodes[n].engine.set_peer(config, now).unwrap();
            net.drain(n);
        }
        net.esp = true;
        net.run_ms(500);
        net.assert_connected(0, 1, 1);
        net.assert_no_esp_lost();
        for n in 0..2 {
            let sa = net.nodes[n].engine.sas.values().next().unwrap();
            assert!(
                matches!(sa.encapsulation(4500), Encapsulation::Udp { remote, .. }
                if remote.port() == 4500)
            );
            assert_eq!(sa.local.port(), 4500);
        }
    }
}

#[test]
fn keys_are_exported_only_where_that_was_asked_for() {
    let mut net = Net::new(13, 2);
    net.nodes[0].engine.config.danger_export_keys = true;
    net.connect(0, 1, false);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[0].exported.len(), 1);
    let (ei, er) = &net.nodes[0].exported[0];
    // 32 bytes of key and 4 of salt.
    assert_eq!((ei.len(), er.len()), (36, 36));
    assert!(net.nodes[1].exported.is_empty());
}
