//! IKE SAs without children (RFC 6023), and what the responder's INITIAL_CONTACT does.

use std::time::Duration;

use testudo_wire::ike::{ExchangeType, Header, Message, Notify, NotifyType, Payload};

use super::net::*;
use crate::message;
use crate::sa::State;
use crate::*;

/// Node 0 begins; which of the two has a child configured.
fn pair(seed: u64, has: [bool; 2]) -> Net {
    let mut net = Net::new(seed, 2);
    for n in [1, 0] {
        set(&mut net, n, has[n]);
    }
    net.run_ms(500);
    net
}

fn set(net: &mut Net, n: usize, child: bool) {
    let mut config = peer_config(n, 1 - n, n == 0);
    if !child {
        config.children.clear();
    }
    net.act(n, |e, now| {
        e.set_peer(config, now).unwrap();
        e.handle_timeout(now);
    });
}

#[test]
fn none_is_configured_at_either_end() {
    let mut net = pair(1, [false, false]);
    net.assert_connected(0, 1, 0);
    assert!(net.nodes[0].failures.is_empty() && net.nodes[1].failures.is_empty());
    assert_eq!(net.wire.len(), 4);
    // It lives: it is rekeyed, authenticated anew, and answers.
    for n in 0..2 {
        net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now))
            .unwrap();
        net.run_ms(200);
        net.act(n, |e, now| e.reauthenticate(&peer_id(1 - n), now))
            .unwrap();
        net.run_ms(200);
        net.act(n, |e, now| e.probe(&peer_id(1 - n), now)).unwrap();
        net.run(Duration::from_secs(70));
        net.assert_connected(0, 1, 0);
        assert_eq!(net.nodes[n].engine.sas.len(), 1, "{}", net.story());
    }
}

#[test]
fn children_come_later_from_whoever_is_configured_last() {
    for order in [[0, 1], [1, 0]] {
        let mut net = pair(2, [false, false]);
        for n in order {
            set(&mut net, n, true);
            net.run_ms(200);
        }
        net.run(Duration::from_secs(10));
        net.assert_connected(0, 1, 1);
        net.assert_tidy(0, 1);
        net.assert_tidy(1, 1);
        assert_eq!(net.nodes[0].engine.counters().ike_established, 1);
        net.esp = true;
        net.run_ms(200);
        net.assert_no_esp_lost();
    }
}

#[test]
fn the_responder_alone_has_a_child() {
    let mut net = pair(3, [false, true]);
    net.assert_connected(0, 1, 0);
    set(&mut net, 0, true);
    net.run(Duration::from_secs(2));
    net.assert_connected(0, 1, 1);
}

// Its child is refused, its IKE SA stays (RFC 7296, 1.2).
#[test]
fn the_initiator_alone_has_a_child() {
    let mut net = pair(4, [true, false]);
    net.assert_connected(0, 1, 0);
    assert_eq!(
        net.nodes[0].failures[0].check,
        FailedCheck::TrafficSelectors
    );
    set(&mut net, 1, true);
    net.run(Duration::from_secs(10));
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[0].engine.counters().ike_established, 1);
}

/// Takes CHILDLESS_IKEV2_SUPPORTED out of so many answers to IKE_SA_INIT. They are not protected
/// yet; what comes of them would fail in IKE_AUTH.
fn without_childless(mut answers: usize) -> Filter {
    let kind = NotifyType::CHILDLESS_IKEV2_SUPPORTED.0.to_be_bytes();
    Box::new(move |_, _, bytes| {
        let header = Header::parse(bytes).unwrap();
        let at = bytes.windows(2).position(|w| w == kind);
        match at.filter(|_| header.exchange.0 == 34 && header.flags.response && answers > 0) {
            Some(at) => {
                answers -= 1;
                // Another status type in its place.
                let mut changed = bytes.to_vec();
                changed[at..at + 2].copy_from_slice(&[0xef, 0xff]);
                Fate::Change(changed)
            }
            None => Fate::Pass,
        }
    })
}

// A peer that does not say CHILDLESS_IKEV2_SUPPORTED is sent no IKE_AUTH without a child.
#[test]
fn a_peer_that_must_have_a_child_is_not_authenticated_without() {
    let mut net = Net::new(5, 2);
    net.filter = Some(without_childless(usize::MAX));
    for n in [1, 0] {
        set(&mut net, n, false);
    }
    // Told when no better answer has come.
    net.run_ms(500);
    assert!(net.nodes[0].failures.is_empty(), "{}", net.story());
    net.run(Duration::from_secs(45));
    assert!(net.wire.iter().all(|w| w.2[18] == 34), "{}", net.story());
    assert_eq!(net.nodes[0].failures[0].check, FailedCheck::Proposal);
}

// RFC 7296, 2.21.1: an answer that anybody could have made ends no attempt.
#[test]
fn a_forged_answer_without_childless_ends_no_attempt() {
    let mut net = Net::new(7, 2);
    net.filter = Some(without_childless(2));
    for n in [1, 0] {
        set(&mut net, n, false);
    }
    net.run_ms(5_000);
    net.assert_connected(0, 1, 0);
    assert!(net.nodes[0].failures.is_empty(), "{}", net.story());
    let counters = net.nodes[0].engine.counters();
    assert_eq!((counters.attempts, counters.drops["proposal"]), (1, 2));
}

/// Node 1's answer to IKE_AUTH as node 0 reads it, and INITIAL_CONTACT with it.
fn answer_with_initial_contact(net: &mut Net) -> Vec<Payload> {
    let (_, _, bytes) = net.wire.last().cloned().unwrap();
    let parsed = Message::parse(&bytes).unwrap();
    let sas = &net.nodes[0].engine.sas;
    let keys = sas.values().find_map(|sa| match &sa.state {
        State::AuthSent(sent) => Some(&sent.keys),
        _ => None,
    });
    let plain = message::unprotect(keys.unwrap(), &bytes, &parsed).unwrap();
    let read = plain.payloads().map_err(|f| f.text()).unwrap();
    let mut out = vec![Payload::IdResponder(read.id_r.unwrap().id)];
    out.extend(read.certs.into_iter().map(Payload::Certificate));
    out.push(Payload::Authentication(read.auth.unwrap()));
    out.extend(read.notifies.into_iter().map(Payload::Notify));
    out.push(Payload::Sa(read.sa.unwrap()));
    out.push(Payload::TsInitiator(read.ts_i.unwrap()));
    out.push(Payload::TsResponder(read.ts_r.unwrap()));
    let notify = Notify::new(NotifyType::INITIAL_CONTACT, []);
    out.push(Payload::Notify(notify));
    out
}

// Lesson L65: from an authenticated peer, in the answer too; what is older goes at once.
#[test]
fn initial_contact_in_an_answer_ends_what_is_older() {
    let mut net = pair(6, [true, true]);
    let old = net.ikes(0, 1)[0].ike;
    net.filter = Some(Box::new(|from, _, bytes| {
        match from.ip() == address(1) && bytes[18] == 35 {
            true => Fate::Drop,
            false => Fate::Pass,
        }
    }));
    net.act(0, |e, now| e.reauthenticate(&peer_id(1), now))
        .unwrap();
    net.run_ms(100);
    let payloads = answer_with_initial_contact(&mut net);
    let engine = &mut net.nodes[1].engine;
    let sa = engine.sas.values_mut().next_back().unwrap();
    let header = sa.answer_header(ExchangeType::IKE_AUTH, 1);
    let path = sa.path();
    let keys = &mut sa.established_mut().unwrap().keys;
    let sealed = message::protect(keys, &header, &payloads).map_err(|f| f.text());
    for bytes in sealed.unwrap().iter() {
        net.act(0, |e, now| {
            e.handle_datagram(now, path.remote, path.local, bytes)
        });
    }
    let open = net.ikes(0, 1);
    assert_eq!(open.len(), 1, "{}", net.story());
    assert!(open[0].ike > old);
    assert!(!net.nodes[0].engine.sas.contains_key(&old));
    let told = format!("ike {} down: InitialContact", old.0);
    assert!(net.nodes[0].log.iter().any(|line| line.contains(&told)));
}
