//! What is negotiated, with everybody and with peers that have suites of their own.

use std::collections::BTreeSet;
use std::time::Duration;

use testudo_crypto::{Cbc, Cipher, EtmSuite, Integrity, KeMethod, Prf};
use testudo_wire::ike::{Message, Payload, Proposal};

use super::net::*;
use crate::*;

const CBC: Cipher = Cipher::Cbc(EtmSuite {
    cbc: Cbc::Aes128,
    integrity: Integrity::HmacSha256_128,
});

/// The default, without additional key exchanges.
fn plain() -> Suites {
    Suites {
        additional_ke: Vec::new(),
        ..Suites::default()
    }
}

/// What an old peer has.
fn old() -> Suites {
    Suites {
        ke_methods: vec![KeMethod::Modp2048],
        prfs: vec![Prf::HmacSha256],
        ike_ciphers: vec![CBC],
        esp_ciphers: vec![CBC],
        ..plain()
    }
}

fn configure(net: &mut Net, n: usize, peer: usize, initiate: bool, suites: Option<Suites>) {
    let now = net.at();
    let config = PeerConfig {
        auth: psk("known to both"),
        suites,
        ..peer_config(n, peer, initiate)
    };
    net.nodes[n].engine.set_peer(config, now).unwrap();
    net.act(n, |e, now| e.handle_timeout(now));
}

/// Two nodes that know each other with these suites; node 0 begins.
fn pair(seed: u64, suites: &Suites) -> Net {
    let mut net = Net::new(seed, 2);
    configure(&mut net, 1, 0, false, Some(suites.clone()));
    configure(&mut net, 0, 1, true, Some(suites.clone()));
    net.run_ms(300);
    net
}

fn suite_of(net: &Net, n: usize, peer: usize) -> String {
    let id = net.ikes(n, peer)[0].ike;
    let sa = &net.nodes[n].engine.sas[&id];
    sa.established().unwrap().keys.suite.name()
}

/// Establishes, rekeys child and IKE SA from both ends, and deletes: every exchange is read at
/// both ends under these algorithms.
fn live(suites: &Suites) {
    let mut net = pair(1, suites);
    net.assert_connected(0, 1, 1);
    for n in [0, 1] {
        let child = net.ikes(n, 1 - n)[0].children[0].child;
        net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
        net.run_ms(200);
        let peer = peer_id(1 - n);
        net.act(n, |e, now| e.rekey_ike(&peer, now)).unwrap();
        net.run_ms(200);
        net.assert_connected(0, 1, 1);
    }
    for n in [0, 1] {
        let counters = net.nodes[n].engine.counters();
        assert!(counters.drops.is_empty(), "{:?}", counters.drops);
        assert_eq!((counters.ike_rekeys, counters.child_rekeys), (2, 2));
        assert!(net.nodes[n].failures.is_empty());
    }
}

// CVE-2016-3071 (lesson L03): algorithms that are offered and not there. Each cipher with each
// PRF, each key exchange, and each cipher for ESP.
#[test]
fn every_suite_we_offer_completes() {
    let methods = [
        KeMethod::X25519,
        KeMethod::P256,
        KeMethod::P384,
        KeMethod::P521,
    ];
    let ciphers: Vec<_> = Cipher::all().collect();
    let prfs = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
    let mut met = BTreeSet::new();
    for (i, ike) in ciphers.iter().enumerate() {
        for (j, prf) in prfs.iter().enumerate() {
            for (k, method) in methods.iter().enumerate() {
                // Each cipher of IKE meets each of ESP.
                let esp = ciphers[(i + j * methods.len() + k) % ciphers.len()];
                met.insert((*ike, esp));
                live(&Suites {
                    ke_methods: vec![*method],
                    prfs: vec![*prf],
                    ike_ciphers: vec![*ike],
                    esp_ciphers: vec![esp],
                    pfs: k % 2 == 0,
                    ..plain()
                });
            }
        }
    }
    assert_eq!(met.len(), ciphers.len() * ciphers.len());
}

#[test]
fn an_old_peer_that_asks_gets_modp_and_cbc_and_nobody_else_does() {
    let mut net = Net::new(2, 3);
    configure(&mut net, 0, 1, false, Some(old()));
    configure(&mut net, 0, 2, false, None);
    configure(&mut net, 1, 0, true, Some(old()));
    configure(&mut net, 2, 0, true, None);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.assert_connected(0, 2, 1);
    assert_eq!(
        suite_of(&net, 0, 1),
        "AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048"
    );
    assert_eq!(
        suite_of(&net, 0, 2),
        "AES_GCM_16_256/PRF_HMAC_SHA2_256/CURVE_25519"
    );
    let cipher = |peer| net.ikes(0, peer)[0].children[0].cipher;
    assert_eq!((cipher(1), cipher(2)), (CBC, Cipher::AES_256_GCM));
}

/// Node 2, which has no suites of its own at node 0, offers what only an old peer may.
fn talk_down(net: &mut Net, at_the_same_address: bool) {
    configure(net, 0, 2, false, None);
    let now = net.at();
    let mut special = PeerConfig {
        auth: psk("known to both"),
        suites: Some(old()),
        ..peer_config(0, 1, false)
    };
    if at_the_same_address {
        special.addresses[0].remote = address(2);
    }
    net.nodes[0].engine.set_peer(special, now).unwrap();
    configure(net, 2, 0, true, Some(old()));
    net.run(Duration::from_secs(50));
}

#[test]
fn a_default_peer_that_offers_old_algorithms_is_refused() {
    // From an address where nobody may use them: in IKE_SA_INIT.
    let mut net = Net::new(3, 3);
    talk_down(&mut net, false);
    assert!(net.nodes[0].twin.ikes.is_empty());
    assert_eq!(net.nodes[2].failures[0].check, FailedCheck::Proposal);
    assert!(net.nodes[0].engine.counters().drops["incompatible"] > 0);
    assert!(net.nodes[0].failures.is_empty());
}

#[test]
fn a_default_peer_at_the_address_of_an_old_one_is_refused_once_it_is_known() {
    // From an address where another may: in IKE_AUTH, when it has proven who it is.
    let mut net = Net::new(4, 3);
    talk_down(&mut net, true);
    assert!(net.nodes[0].twin.ikes.is_empty());
    assert!(net.nodes[2].twin.ikes.is_empty());
    let failure = &net.nodes[0].failures[0];
    assert_eq!(failure.check, FailedCheck::Proposal);
    assert_eq!(failure.peer, Some(peer_id(2)));
    // It is told, by NO_PROPOSAL_CHOSEN under the keys.
    assert_eq!(net.nodes[2].failures[0].check, FailedCheck::Proposal);
    assert!(net.nodes[2].failures[0].text.contains("NO_PROPOSAL_CHOSEN"));
}

#[test]
fn old_and_new_peers_share_an_address() {
    let mut net = Net::new(5, 3);
    let now = net.at();
    // The old peer may be at the new one's address too: both have what they should.
    let mut special = PeerConfig {
        auth: psk("known to both"),
        suites: Some(old()),
        ..peer_config(0, 1, false)
    };
    special.addresses.push(PeerAddress {
        local: address(0),
        remote: address(2),
    });
    net.nodes[0].engine.set_peer(special, now).unwrap();
    configure(&mut net, 0, 2, false, None);
    configure(&mut net, 1, 0, true, Some(old()));
    configure(&mut net, 2, 0, true, None);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.assert_connected(0, 2, 1);
    assert!(suite_of(&net, 0, 2).contains("CURVE_25519"));
    // What the index held is gone with the peers.
    for peer in [1, 2] {
        net.act(0, |e, now| e.remove_peer(&peer_id(peer), now));
    }
    assert!(net.nodes[0].engine.at_address.is_empty());
}

#[test]
fn what_two_peers_at_an_address_both_take_is_chosen() {
    let with = |ke_methods: &[KeMethod]| Suites {
        ke_methods: ke_methods.to_vec(),
        ..plain()
    };
    let mut net = Net::new(6, 2);
    configure(
        &mut net,
        0,
        1,
        true,
        Some(with(&[KeMethod::P521, KeMethod::P384])),
    );
    let alone = with(&[KeMethod::P521, KeMethod::P384]);
    configure(&mut net, 1, 0, false, Some(alone));
    net.run_ms(1_000);
    assert!(suite_of(&net, 1, 0).ends_with("ECP_521"));
    // Another peer may be at that address, which takes P-384 and not P-521.
    let now = net.at();
    let mut other = PeerConfig {
        auth: psk("known to both"),
        suites: Some(with(&[KeMethod::P384])),
        ..peer_config(1, 2, false)
    };
    other.addresses[0].remote = address(0);
    net.nodes[1].engine.set_peer(other, now).unwrap();
    net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
        .unwrap();
    net.run_ms(1_000);
    net.assert_connected(0, 1, 1);
    assert!(suite_of(&net, 1, 0).ends_with("ECP_384"));
}

#[test]
fn a_rekey_cannot_change_to_what_is_not_allowed() {
    let mut net = Net::new(7, 2);
    configure(&mut net, 1, 0, false, None);
    configure(&mut net, 0, 1, true, None);
    net.run_ms(300);
    let before = (suite_of(&net, 1, 0), net.ikes(1, 0)[0].ike);
    // Node 0 turns; its offers in the next exchanges are old ones.
    net.nodes[0].engine.config.suites = old();
    let child = net.ikes(0, 1)[0].children[0].child;
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
    net.run_ms(300);
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Proposal);
    net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
    net.run_ms(300);
    assert!(net.nodes[0].failures.len() >= 2);
    assert_eq!((suite_of(&net, 1, 0), net.ikes(1, 0)[0].ike), before);
    let children = &net.ikes(1, 0)[0].children;
    assert_eq!(children.len(), 1);
    assert_eq!(children[0].cipher, Cipher::AES_256_GCM);
}

/// Node 1 wants forward secrecy, node 0 does not.
fn at_odds(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    let lax = Suites {
        pfs: false,
        ..plain()
    };
    configure(&mut net, 1, 0, false, Some(plain()));
    configure(&mut net, 0, 1, true, Some(lax));
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
    net
}

/// How a child was made.
fn method_of(net: &Net, n: usize, child: testudo_model::ChildId) -> Option<KeMethod> {
    net.nodes[n].engine.children[&child].ke
}

#[test]
fn who_wants_forward_secrecy_takes_no_rekey_without_it() {
    let mut net = at_odds(9);
    let only_child = |net: &Net, n: usize| net.ikes(n, 1 - n)[0].children[0].child;
    // That of IKE_AUTH has no exchange, at either end.
    let first = only_child(&net, 1);
    assert_eq!(method_of(&net, 1, first), None);
    let child = only_child(&net, 0);
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
    net.run_ms(500);
    assert_eq!((only_child(&net, 1), only_child(&net, 0)), (first, child));
    for n in [0, 1] {
        assert_eq!(net.nodes[n].failures[0].check, FailedCheck::Proposal);
    }
    assert!(net.nodes[0].failures[0].text.contains("NO_PROPOSAL_CHOSEN"));
    // Node 0 takes an exchange that is offered to it.
    net.act(1, |e, now| e.rekey_child(first, now)).unwrap();
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    for n in [0, 1] {
        let method = method_of(&net, n, only_child(&net, n));
        assert_eq!(method, Some(KeMethod::X25519));
    }
    assert_eq!(net.ikes(1, 0)[0].children[0].rekeys, 1);
}

#[test]
fn who_wants_forward_secrecy_takes_no_new_child_without_it() {
    let mut net = at_odds(10);
    let more = |n: usize, suites: Suites| {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.auth = psk("known to both");
        config.suites = Some(suites);
        config.children.push(child(1, n, 1 - n));
        config
    };
    let lax = net.nodes[0].engine.peers[&peer_id(1)]
        .config
        .suites
        .clone()
        .unwrap();
    let now = net.at();
    let (strict, lax) = (more(1, plain()), more(0, lax));
    net.nodes[1].engine.set_peer(strict, now).unwrap();
    net.act(0, |e, now| e.set_peer(lax, now)).unwrap();
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
    assert!(net.nodes[0].failures[0].text.contains("NO_PROPOSAL_CHOSEN"));
}

/// What a proposal says without its key exchanges but for one.
fn only(method: KeMethod, proposals: &mut [Proposal]) {
    use testudo_wire::ike::TransformType;
    for proposal in proposals {
        proposal
            .transforms
            .retain(|t| t.kind != TransformType::KE || t.id == method.id());
    }
}

#[test]
fn an_offer_that_is_changed_on_the_way_fails_in_auth() {
    // The message stays readable, one algorithm is left: AUTH covers what was sent.
    let mut net = Net::new(8, 2);
    let take = |bytes: &[u8]| {
        let message = Message::parse(bytes).unwrap();
        let mut payloads: Vec<_> = message.payloads.into_iter().map(|p| p.payload).collect();
        for payload in &mut payloads {
            if let Payload::Sa(proposals) = payload {
                only(KeMethod::X25519, proposals);
            }
        }
        crate::message::clear(&message.header, &payloads).unwrap()
    };
    net.filter = Some(Box::new(move |from, _, bytes| {
        let init = bytes.get(18) == Some(&34);
        if init && from.ip() == address(0) {
            Fate::Change(take(bytes))
        } else {
            Fate::Pass
        }
    }));
    configure(&mut net, 1, 0, false, None);
    configure(&mut net, 0, 1, true, None);
    net.run(Duration::from_secs(30));
    assert!(net.nodes[0].twin.ikes.is_empty() && net.nodes[1].twin.ikes.is_empty());
    assert_eq!(net.nodes[1].failures[0].check, FailedCheck::PreSharedKey);
}

#[test]
fn a_broken_message_under_cbc_is_dropped_and_the_next_one_read() {
    let mut net = pair(9, &old());
    net.assert_connected(0, 1, 1);
    let mut count = 0;
    net.filter = Some(Box::new(move |from, _, bytes| {
        count += usize::from(from.ip() == address(0));
        if from.ip() != address(0) || count % 2 == 0 {
            return Fate::Pass;
        }
        // Each of the last bytes: IV, ciphertext and ICV; what is sent again is whole.
        let mut bytes = bytes.to_vec();
        let at = bytes.len() - (count / 2 + 1);
        bytes[at] ^= 0x10;
        Fate::Change(bytes)
    }));
    // IV, one block, ICV.
    for _ in 0..48 {
        net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
        net.run(Duration::from_secs(2));
    }
    net.filter = None;
    net.assert_connected(0, 1, 1);
    let drops = &net.nodes[1].engine.counters().drops;
    assert_eq!(drops.get("decrypt_failed"), Some(&48), "{drops:?}");
    let child = net.ikes(0, 1)[0].children[0].child;
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
}

#[test]
fn large_messages_under_cbc_are_cut_into_fragments_and_joined() {
    let mut net = Net::with(
        13,
        2,
        EngineConfig {
            fragment_size: 300,
            ..config()
        },
    );
    let old = Suites {
        ike_ciphers: Cipher::all().filter(|c| c.integrity().is_some()).collect(),
        ..old()
    };
    for ike in old.ike_ciphers.clone() {
        let suites = Suites {
            ike_ciphers: vec![ike],
            ..old.clone()
        };
        let now = net.at();
        for (n, peer) in [(1, 0), (0, 1)] {
            let config = PeerConfig {
                suites: Some(suites.clone()),
                ..peer_config(n, peer, n == 0)
            };
            net.nodes[n].engine.set_peer(config, now).unwrap();
            net.drain(n);
        }
        net.run(Duration::from_secs(2));
        net.assert_connected(0, 1, 1);
        assert!(suite_of(&net, 0, 1).starts_with(ike.name()));
    }
    assert!(net.wire.iter().filter(|(_, _, b)| b[16] == 53).count() >= 12);
    assert!(
        net.wire
            .iter()
            .all(|(_, _, b)| b[16] != 53 || b.len() <= 300)
    );
}

// strongSwan 5.6.2 (lesson L52): a rekey began with the first group again.
#[test]
fn a_peer_with_suites_of_its_own_rekeys_with_the_method_that_worked() {
    let ours = Suites {
        ke_methods: vec![KeMethod::X25519, KeMethod::P521],
        ..plain()
    };
    let theirs = Suites {
        ke_methods: vec![KeMethod::P521],
        ..plain()
    };
    let mut net = Net::new(10, 2);
    configure(&mut net, 1, 0, false, Some(theirs));
    configure(&mut net, 0, 1, true, Some(ours));
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
    for _ in 0..2 {
        let before = net.wire.len();
        let child = net.ikes(0, 1)[0].children[0].child;
        net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
        net.run_ms(300);
        net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
        net.run_ms(300);
        net.assert_connected(0, 1, 1);
        // A rekey and a DELETE of the child, the same of the IKE SA: nothing asked twice.
        assert_eq!(net.wire.len() - before, 8);
    }
    assert!(suite_of(&net, 0, 1).ends_with("ECP_521"));
}

#[test]
fn new_suites_of_a_peer_are_used_without_a_break() {
    let mut net = Net::new(11, 2);
    configure(&mut net, 1, 0, false, None);
    configure(&mut net, 0, 1, true, None);
    net.esp = true;
    net.run_ms(300);
    let both = Suites {
        ike_ciphers: vec![Cipher::AES_128_GCM, Cipher::AES_256_GCM],
        esp_ciphers: vec![Cipher::AES_128_GCM, Cipher::AES_256_GCM],
        ..plain()
    };
    configure(&mut net, 1, 0, false, Some(both.clone()));
    net.run_ms(500);
    configure(&mut net, 0, 1, true, Some(both));
    net.run(Duration::from_secs(2));
    net.assert_connected(0, 1, 1);
    assert!(suite_of(&net, 0, 1).starts_with("AES_GCM_16_128/"));
    assert_eq!(net.ikes(0, 1)[0].children[0].cipher, Cipher::AES_128_GCM);
    net.assert_no_esp_lost();
}

#[test]
fn suites_may_change_while_a_rekey_is_under_way() {
    let other = Suites {
        ike_ciphers: vec![Cipher::AES_128_GCM],
        esp_ciphers: vec![Cipher::AES_128_GCM],
        ke_methods: vec![KeMethod::P521],
        ..plain()
    };
    // The request, the answer is on its way.
    for (rekeys_ike, wait) in [(true, 2), (true, 7), (false, 2), (false, 7)] {
        let mut net = Net::new(14, 2);
        configure(&mut net, 1, 0, false, None);
        configure(&mut net, 0, 1, true, None);
        net.esp = true;
        net.run_ms(300);
        let child = net.ikes(0, 1)[0].children[0].child;
        net.act(0, |e, now| match rekeys_ike {
            true => e.rekey_ike(&peer_id(1), now),
            false => e.rekey_child(child, now),
        })
        .unwrap();
        net.run_ms(wait);
        // The answer is what was asked for, and no longer what is wanted.
        configure(&mut net, 0, 1, true, Some(other.clone()));
        configure(&mut net, 1, 0, false, Some(other.clone()));
        net.run(Duration::from_secs(5));
        net.assert_connected(0, 1, 1);
        assert!(suite_of(&net, 0, 1).starts_with("AES_GCM_16_128/"));
        assert_eq!(net.ikes(0, 1)[0].children[0].cipher, Cipher::AES_128_GCM);
        net.assert_no_esp_lost();
    }
}

#[test]
fn suites_that_lack_a_kind_are_refused() {
    let mut net = Net::new(12, 1);
    let now = net.at();
    let broken: [fn(&mut Suites); 4] = [
        |s| s.ke_methods.clear(),
        |s| s.prfs.clear(),
        |s| s.ike_ciphers.clear(),
        |s| s.esp_ciphers.clear(),
    ];
    for empty in broken {
        let mut suites = Suites::default();
        empty(&mut suites);
        let config = PeerConfig {
            suites: Some(suites),
            ..peer_config(0, 1, true)
        };
        let refused = net.nodes[0].engine.set_peer(config, now);
        assert!(matches!(refused, Err(Misuse::BadConfig { .. })));
    }
}

/// By default no old algorithm is offered to anybody, nor accepted.
#[test]
fn the_default_has_nothing_old() {
    let suites = Suites::default();
    assert!(!suites.ke_methods.contains(&KeMethod::Modp2048));
    let old = |c: &Cipher| matches!(c, Cipher::Cbc(_));
    assert!(!suites.ike_ciphers.iter().any(old) && !suites.esp_ciphers.iter().any(old));
}
