//! Post-quantum pre-shared keys (RFC 8784): both ends, needed or not, known or not.

use testudo_crypto::SecretBytes;
use testudo_wire::ike::NotifyType;

use super::net::*;
use crate::*;

fn ppk(id: &str, secret: u8, required: bool) -> Option<PpkConfig> {
    Some(PpkConfig {
        id: id.into(),
        secret: SecretBytes::new(vec![secret; 32]),
        required,
    })
}

/// A pair of which node 0 begins.
fn pair(seed: u64, ppks: [Option<PpkConfig>; 2], auth: fn() -> PeerAuth) -> Net {
    let mut net = Net::new(seed, 2);
    net.esp = true;
    for (n, ppk) in ppks.into_iter().enumerate().rev() {
        let config = PeerConfig {
            auth: auth(),
            ppk,
            ..peer_config(n, 1 - n, n == 0)
        };
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
    }
    net.run_ms(1_500);
    net
}

/// Whether a PPK is in the keys, at both ends the same.
fn in_use(net: &Net) -> bool {
    let of = |n: usize| {
        let sa = net.nodes[n].engine.sas.values().rev();
        let mut open = sa.filter(|sa| sa.is_open());
        open.next().unwrap().established().unwrap().keys.ppk
    };
    assert_eq!(of(0), of(1));
    of(0)
}

fn assert_refused(net: &Net, node: usize, check: FailedCheck) {
    let found = net.nodes[node].failures.iter().any(|f| f.check == check);
    assert!(found, "{check} at node {node}\n{}", net.story());
    for n in [0, 1] {
        net.assert_tidy(n, 0);
        assert!(net.ikes(n, 1 - n).is_empty());
    }
}

#[test]
fn both_ends_use_it() {
    for auth in [|| PeerAuth::Certificate, || psk("secret")] {
        for required in [[false, false], [true, false], [false, true], [true, true]] {
            let ppks = required.map(|required| ppk("blue", 7, required));
            let mut net = pair(1, ppks, auth);
            net.assert_connected(0, 1, 1);
            assert!(in_use(&net));
            // The children's keys are the same at both ends, and so are those after rekeys.
            for n in [0, 1] {
                net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now))
                    .unwrap();
                net.run_ms(500);
                let child = *net.nodes[n].engine.children.keys().next().unwrap();
                net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
                net.run_ms(6_000);
            }
            net.assert_connected(0, 1, 1);
            net.assert_no_esp_lost();
            assert!(in_use(&net));
            assert_eq!(net.nodes[0].engine.counters().ike_rekeys, 2);
        }
    }
}

// Lesson L40: optional unless insisted.
#[test]
fn without_the_other_end_it_is_not_used() {
    for auth in [|| PeerAuth::Certificate, || psk("secret")] {
        let none = || None;
        for ppks in [
            [none(), none()],
            [ppk("blue", 7, false), none()],
            [none(), ppk("blue", 7, false)],
            // Both have one, of different names.
            [ppk("blue", 7, false), ppk("red", 7, false)],
        ] {
            let net = pair(2, ppks, auth);
            net.assert_connected(0, 1, 1);
            assert!(!in_use(&net));
            net.assert_no_esp_lost();
        }
    }
}

// Lesson L40: one end requires it.
#[test]
fn where_it_is_required_nothing_stands_without() {
    for auth in [|| PeerAuth::Certificate, || psk("secret")] {
        // The responder has none: its answer to IKE_SA_INIT says so, and no better one comes.
        let mut net = pair(3, [ppk("blue", 7, true), None], auth);
        assert!(net.nodes[0].failures.is_empty(), "{}", net.story());
        net.esp = false;
        net.run(std::time::Duration::from_secs(45));
        assert_refused(&net, 0, FailedCheck::Ppk);
        // The initiator has none: refused in IKE_AUTH.
        let net = pair(4, [None, ppk("blue", 7, true)], auth);
        assert_refused(&net, 1, FailedCheck::Ppk);
        assert_refused(&net, 0, FailedCheck::RefusedByPeer);
        // The names differ.
        for required in [[true, false], [false, true], [true, true]] {
            let ppks = [ppk("blue", 7, required[0]), ppk("red", 7, required[1])];
            let net = pair(5, ppks, auth);
            assert_refused(&net, 1, FailedCheck::Ppk);
            assert_refused(&net, 0, FailedCheck::RefusedByPeer);
        }
    }
}

// RFC 7296, 2.21.1: an answer that anybody could have made ends no attempt.
#[test]
fn a_forged_answer_without_use_ppk_ends_no_attempt() {
    let mut net = Net::new(13, 2);
    let mut forged = 0;
    net.filter = Some(Box::new(move |source, _, bytes| {
        let kind = NotifyType::USE_PPK.0.to_be_bytes();
        let found = bytes.windows(2).position(|w| w == kind);
        let first = source.ip() == address(1) && bytes[18] == 34 && forged < 2;
        match found.filter(|_| first) {
            Some(at) => {
                forged += 1;
                let mut changed = bytes.to_vec();
                changed[at] ^= 0x20;
                Fate::Change(changed)
            }
            None => Fate::Pass,
        }
    }));
    for n in [1, 0] {
        let config = PeerConfig {
            ppk: ppk("blue", 7, true),
            ..peer_config(n, 1 - n, n == 0)
        };
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
    }
    net.run_ms(5_000);
    net.assert_connected(0, 1, 1);
    assert!(in_use(&net));
    assert!(net.nodes[0].failures.is_empty(), "{}", net.story());
    let counters = net.nodes[0].engine.counters();
    assert_eq!((counters.attempts, counters.drops["ppk"]), (1, 2));
}

/// With what else changes the keys, or cuts the messages: ML-KEM before it (RFC 9370), fragments.
#[test]
fn it_is_mixed_in_last_and_in_fragments_too() {
    for required in [false, true] {
        let mut config = hybrid(&[&[testudo_crypto::KeMethod::MlKem768]], true);
        config.fragment_size = 400;
        let mut net = Net::with(12, 2, config);
        net.esp = true;
        for n in [1, 0] {
            let config = PeerConfig {
                ppk: ppk("blue", 7, required),
                ..peer_config(n, 1 - n, n == 0)
            };
            net.act(n, |e, now| e.set_peer(config, now)).unwrap();
        }
        net.run_ms(1_500);
        net.assert_connected(0, 1, 1);
        assert!(in_use(&net));
        net.act(1, |e, now| e.rekey_ike(&peer_id(0), now)).unwrap();
        net.run_ms(2_000);
        net.assert_connected(0, 1, 1);
        assert!(in_use(&net));
        net.assert_no_esp_lost();
        super::fragments::assert_no_iv_twice(&net);
    }
}

/// Two keys of one name: the proof of who has the other does not hold, required or not.
#[test]
fn another_key_of_the_same_name_proves_nothing() {
    for required in [false, true] {
        let ppks = [ppk("blue", 7, required), ppk("blue", 8, required)];
        let net = pair(6, ppks.clone(), || PeerAuth::Certificate);
        assert_refused(&net, 1, FailedCheck::AuthSignature);
        let net = pair(7, ppks, || psk("secret"));
        assert_refused(&net, 1, FailedCheck::PreSharedKey);
    }
}

/// The responder says USE_PPK before it knows who asks. Whose PPK it is, counts.
#[test]
fn the_ppk_is_that_of_the_peer() {
    for required in [false, true] {
        let mut net = Net::new(8, 3);
        let now = net.at();
        for (n, id, secret) in [(0, "blue", 7), (1, "red", 8)] {
            let config = PeerConfig {
                ppk: ppk(id, secret, true),
                ..peer_config(2, n, false)
            };
            net.nodes[2].engine.set_peer(config, now).unwrap();
        }
        // Node 0 has what belongs to node 1.
        let config = PeerConfig {
            ppk: ppk("red", 8, required),
            ..peer_config(0, 2, true)
        };
        net.act(0, |e, now| e.set_peer(config, now)).unwrap();
        net.run_ms(500);
        assert!(net.ikes(2, 0).is_empty(), "{}", net.story());
        let failed = &net.nodes[2].failures;
        assert!(failed.iter().all(|f| f.check == FailedCheck::Ppk));
        assert!(!failed.is_empty());
        // A peer without any does not have to have one because others do.
        let config = peer_config(0, 2, true);
        net.act(0, |e, now| e.set_peer(config, now)).unwrap();
        net.act(2, |e, now| e.set_peer(peer_config(2, 0, false), now))
            .unwrap();
        net.run_ms(3_000);
        net.assert_connected(0, 2, 1);
    }
}

/// USE_PPK taken out on the way: the other end's first message is in AUTH.
#[test]
fn who_strips_use_ppk_gains_nothing() {
    for from in [0, 1] {
        let mut net = Net::new(9, 2);
        for n in [1, 0] {
            let config = PeerConfig {
                ppk: ppk("blue", 7, false),
                ..peer_config(n, 1 - n, false)
            };
            net.act(n, |e, now| e.set_peer(config, now)).unwrap();
        }
        net.filter = Some(Box::new(move |source, _, bytes| {
            let kind = NotifyType::USE_PPK.0.to_be_bytes();
            let found = bytes.windows(2).position(|w| w == kind);
            match found.filter(|_| source.ip() == address(from) && bytes[18] == 34) {
                Some(at) => {
                    let mut changed = bytes.to_vec();
                    changed[at] ^= 0x20;
                    Fate::Change(changed)
                }
                None => Fate::Pass,
            }
        }));
        net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
            .unwrap();
        net.run_ms(500);
        for n in [0, 1] {
            assert!(net.ikes(n, 1 - n).is_empty(), "{from}\n{}", net.story());
        }
        let checks = [FailedCheck::AuthSignature, FailedCheck::Ppk];
        let mut failed = net.nodes.iter().flat_map(|n| &n.failures);
        assert!(failed.any(|f| checks.contains(&f.check)), "{}", net.story());
    }
}

#[test]
fn a_ppk_without_sense_is_not_taken() {
    let mut net = Net::new(10, 2);
    for bad in [
        PpkConfig {
            id: b"blue".to_vec(),
            secret: SecretBytes::new(vec![1; 31]),
            required: true,
        },
        PpkConfig {
            id: Vec::new(),
            secret: SecretBytes::new(vec![1; 32]),
            required: true,
        },
    ] {
        let config = PeerConfig {
            ppk: Some(bad),
            ..peer_config(0, 1, true)
        };
        let refused = net.act(0, |e, now| e.set_peer(config, now));
        assert!(matches!(refused, Err(Misuse::BadConfig { .. })));
    }
}

/// A change of the PPK ends what was made with the old one.
#[test]
fn a_changed_ppk_is_used_at_once() {
    let mut net = pair(11, [ppk("blue", 7, true), ppk("blue", 7, true)], || {
        PeerAuth::Certificate
    });
    assert!(in_use(&net));
    let before = net.ikes(0, 1)[0].ike;
    for n in [1, 0] {
        let config = PeerConfig {
            ppk: ppk("blue", 9, true),
            ..peer_config(n, 1 - n, n == 0)
        };
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
    }
    net.run_ms(5_000);
    net.assert_connected(0, 1, 1);
    assert!(in_use(&net));
    assert_ne!(net.ikes(0, 1)[0].ike, before);
}
