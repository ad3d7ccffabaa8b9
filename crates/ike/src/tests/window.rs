//! The message window of a peer that has several requests on their way (RFC 7296, 2.3).

use testudo_crypto::{DangerousSeededRandom, Random};
use testudo_wire::ike::{Delete, ExchangeType, Header, Notify, NotifyType, Payload, ProtocolId};

use super::net::*;
use crate::message;

fn connected(seed: u64, window: [u32; 2]) -> Net {
    let mut net = Net::new(seed, 2);
    for (n, window) in window.into_iter().enumerate() {
        net.nodes[n].engine.config.window = window;
    }
    net.connect(0, 1, false);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net
}

/// A request under node 0's keys.
fn request(net: &mut Net, message_id: u32, payloads: &[Payload]) -> Vec<u8> {
    let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
    let header = sa.request_header(ExchangeType::INFORMATIONAL, message_id);
    let keys = &mut sa.established_mut().unwrap().keys;
    let sealed = message::protect(keys, &header, payloads).ok().unwrap();
    sealed.whole().to_vec()
}

/// Hands it to node 1; gives the message IDs of what node 1 answers.
fn hand(net: &mut Net, bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let at = |n| std::net::SocketAddr::new(address(n), 500);
    let before = net.wire.len();
    net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), bytes));
    let sent = &net.wire[before..];
    sent.iter()
        .map(|(_, _, b)| (Header::parse(b).unwrap().message_id, b.clone()))
        .collect()
}

fn ids(answers: &[(u32, Vec<u8>)]) -> Vec<u32> {
    answers.iter().map(|(id, _)| *id).collect()
}

fn dropped(net: &Net, reason: &str) -> u64 {
    let drops = &net.nodes[1].engine.counters().drops;
    drops.get(reason).copied().unwrap_or(0)
}

fn held(net: &Net) -> usize {
    let sas = net.nodes[1].engine.sas.values();
    sas.filter_map(|sa| sa.established())
        .map(|e| e.held.len())
        .sum()
}

#[test]
fn requests_in_the_window_are_taken_in_any_order() {
    let mut net = connected(1, [4, 4]);
    let bytes: Vec<_> = (0..8).map(|id| request(&mut net, id, &[])).collect();
    // 2 is next.
    assert_eq!(ids(&hand(&mut net, &bytes[6])), [0; 0]);
    assert_eq!(dropped(&net, "message_id"), 1);
    for early in [5, 3, 3, 4] {
        assert_eq!(ids(&hand(&mut net, &bytes[early])), [0; 0]);
    }
    assert_eq!(dropped(&net, "early_repeated"), 1);
    assert_eq!(held(&net), 3);
    let first = hand(&mut net, &bytes[2]);
    assert_eq!(ids(&first), [2, 3, 4, 5]);
    assert_eq!(held(&net), 0);
    // Each is repeated, in any order, while its sender may lack it.
    for id in [4, 2, 5, 3] {
        let again = hand(&mut net, &bytes[id as usize]);
        assert_eq!(again, [first[id as usize - 2].clone()]);
    }
    assert_eq!(ids(&hand(&mut net, &bytes[6])), [6]);
    assert_eq!(
        ids(&hand(&mut net, &bytes[2])),
        [0; 0],
        "6 came: 2 was answered"
    );
    assert_eq!(ids(&hand(&mut net, &bytes[3])), [3]);
}

#[test]
fn with_a_window_of_one_nothing_is_held() {
    let mut net = connected(2, [1, 1]);
    let bytes: Vec<_> = (0..5).map(|id| request(&mut net, id, &[])).collect();
    assert_eq!(ids(&hand(&mut net, &bytes[3])), [0; 0]);
    assert_eq!(held(&net), 0);
    for id in 2..5u32 {
        assert_eq!(ids(&hand(&mut net, &bytes[id as usize])), [id]);
    }
    assert_eq!(ids(&hand(&mut net, &bytes[3])), [0; 0]);
    assert_eq!(ids(&hand(&mut net, &bytes[4])), [4]);
}

// The reason why they are held: what comes later may rest on what comes before.
#[test]
fn an_early_request_has_no_effect_before_its_turn() {
    let mut net = connected(3, [4, 4]);
    let spi = net.ikes(0, 1)[0].children[0].spi_in.0;
    let child = Payload::Delete(Delete::Child {
        protocol: ProtocolId::ESP,
        spis: vec![spi],
    });
    let first = request(&mut net, 2, &[child]);
    let second = request(&mut net, 3, &[Payload::Delete(Delete::Ike)]);
    let third = request(&mut net, 4, &[]);
    assert_eq!(ids(&hand(&mut net, &third)), [0; 0]);
    assert_eq!(ids(&hand(&mut net, &second)), [0; 0]);
    net.assert_connected(0, 1, 1);
    let before = net.nodes[1].log.len();
    assert_eq!(ids(&hand(&mut net, &first)), [2, 3]);
    let log = net.nodes[1].log[before..].join("\n");
    let at = |what: &str| {
        log.find(what)
            .unwrap_or_else(|| panic!("no {what} in {log}"))
    };
    assert!(at("child") < at("ike"), "{log}");
    // Nothing is heard after the end.
    assert_eq!(held(&net), 0);
}

// One that was overtaken came from where the peer was before.
#[test]
fn a_held_request_does_not_lead_back_to_an_old_address() {
    for early_from_old in [false, true] {
        let mut net = connected(9, [4, 4]);
        let sa = net.nodes[1].engine.sas.values_mut().next().unwrap();
        sa.nat.remote = true;
        let bytes: Vec<_> = (0..5).map(|id| request(&mut net, id, &[])).collect();
        let from = |net: &mut Net, port: u16, id: usize| {
            let at = |n, port| std::net::SocketAddr::new(address(n), port);
            net.act(1, |e, now| {
                e.handle_datagram(now, at(1, 500), at(0, port), &bytes[id]);
            });
            net.nodes[1]
                .engine
                .sas
                .values()
                .next()
                .unwrap()
                .remote
                .port()
        };
        if early_from_old {
            // 3 overtakes 2, and is repeated: whoever has seen it may send it from anywhere.
            assert_eq!(from(&mut net, 6_000, 3), 6_000);
            assert_eq!(from(&mut net, 7_000, 3), 6_000);
            // 4 is sent from the new address, and 2 was from the old one.
            assert_eq!(from(&mut net, 8_000, 4), 8_000);
            assert_eq!(from(&mut net, 5_000, 2), 8_000);
        } else {
            assert_eq!(from(&mut net, 5_000, 2), 5_000);
            assert_eq!(from(&mut net, 6_000, 3), 6_000);
        }
        assert_eq!(held(&net), 0);
    }
}

#[test]
fn any_order_with_loss_and_repetition_answers_each_once() {
    for seed in 0..20 {
        let mut net = connected(seed, [4, 4]);
        let bytes: Vec<_> = (0..60).map(|id| request(&mut net, id, &[])).collect();
        let mut random = DangerousSeededRandom::new(seed);
        let mut answers = std::collections::BTreeMap::new();
        let mut lowest = 2;
        while lowest < 60 {
            // The peer may send what is in the window above its lowest unanswered request.
            let mut byte = [0; 2];
            random.fill(&mut byte);
            let id = lowest + u32::from(byte[0] % 4);
            let Some(datagram) = bytes.get(id as usize) else {
                continue;
            };
            for (id, answer) in hand(&mut net, datagram) {
                let known = answers.entry(id).or_insert(answer.clone());
                assert_eq!(*known, answer, "two answers to {id}");
            }
            // Half of the answers are lost.
            if byte[1] % 2 == 0 {
                while answers.contains_key(&lowest) {
                    lowest += 1;
                }
            }
        }
        assert_eq!(answers.len(), 58);
        super::fragments::assert_no_iv_twice(&net);
        assert_eq!(held(&net), 0);
    }
}

#[test]
fn what_is_held_is_bounded() {
    let mut net = connected(4, [4, 4]);
    net.nodes[1].engine.config.limits.fragmented_message = 1_000;
    let large = Payload::Notify(Notify::new(NotifyType(50_000), [0; 600]));
    let (a, b) = (
        request(&mut net, 3, std::slice::from_ref(&large)),
        request(&mut net, 4, std::slice::from_ref(&large)),
    );
    hand(&mut net, &a);
    hand(&mut net, &b);
    assert_eq!(held(&net), 1);
    assert_eq!(dropped(&net, "early_oversized"), 1);
}

#[test]
fn windows_are_told_and_only_grow() {
    let mut net = connected(5, [7, 4]);
    let known = |net: &Net, n: usize| net.ikes(n, 1 - n)[0].peer_window;
    assert_eq!((known(&net, 0), known(&net, 1)), (4, 7));
    let mut id = 2;
    let mut say = |net: &mut Net, data: &[u8]| {
        let notify = Notify::new(NotifyType::SET_WINDOW_SIZE, data);
        let bytes = request(net, id, &[Payload::Notify(notify)]);
        assert_eq!(ids(&hand(net, &bytes)), [id]);
        id += 1;
    };
    say(&mut net, &[0, 0, 0, 9]);
    assert_eq!(known(&net, 1), 9);
    say(&mut net, &[0, 0, 0, 2]);
    assert_eq!(known(&net, 1), 9);
    for bad in [&[][..], &[0, 0, 9], &[0, 0, 0, 0], &[0, 0, 0, 0, 99]] {
        say(&mut net, bad);
    }
    assert_eq!(dropped(&net, "bad_window_size"), 4);
    assert_eq!(known(&net, 1), 9);
}

#[test]
fn a_rekeyed_ike_sa_begins_with_a_window_of_one() {
    let mut net = connected(6, [4, 4]);
    net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
    net.run_ms(1_000);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.ikes(0, 1)[0].peer_window, 1);
    assert_eq!(net.ikes(1, 0)[0].peer_window, 1);
}

#[test]
fn a_window_of_one_is_not_told() {
    let net = connected(7, [1, 1]);
    assert_eq!(net.ikes(0, 1)[0].peer_window, 1);
    assert_eq!(net.ikes(1, 0)[0].peer_window, 1);
}

/// However large the peer's window, one request of ours is under way.
#[test]
fn we_send_one_request_at_a_time() {
    let mut net = connected(8, [4, 4]);
    net.wire.clear();
    net.filter = Some(Box::new(|from, _, _| {
        if from.ip() == address(1) {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    let child = net.ikes(0, 1)[0].children[0].child;
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
    net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
    net.run_ms(2_000);
    let ours = net
        .wire
        .iter()
        .filter(|(from, _, _)| from.ip() == address(0));
    let sent: std::collections::BTreeSet<_> = ours
        .map(|(_, _, b)| Header::parse(b).unwrap().message_id)
        .collect();
    assert_eq!(sent.len(), 1, "{sent:?}");
}
