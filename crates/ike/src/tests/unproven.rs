//! Peers that have keys but have proven nothing: whatever they send, nothing is established.

use testudo_wire::ike::{ExchangeType, Notify, NotifyType, Payload, UnknownPayload};

use super::net::*;
use crate::engine::Path;
use crate::message;
use crate::sa::State;

/// Node 0 has sent IKE_AUTH, which got lost; node 1 has a half-open SA.
fn half_open(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    net.filter = Some(Box::new(|_, _, bytes| match bytes[18] {
        35 => Fate::Drop,
        _ => Fate::Pass,
    }));
    net.connect(0, 1, false);
    net.run_ms(100);
    assert_eq!(net.nodes[1].engine.half_open_total, 1);
    net
}

/// What node 0 would send in IKE_AUTH.
fn auth_payloads(net: &mut Net) -> Vec<Payload> {
    let engine = &mut net.nodes[0].engine;
    let id = *engine.sas.keys().next().unwrap();
    let mut sa = engine.sas.remove(&id).unwrap();
    let State::AuthSent(sent) = &mut sa.state else {
        panic!("IKE_AUTH was not sent");
    };
    let built = engine.auth_payloads(
        &peer_id(1),
        &sent.keys,
        &sent.int_auth,
        &sent.greeting,
        None,
    );
    let (list, _) = built.map_err(|f| f.text()).unwrap();
    engine.sas.insert(id, sa);
    list
}

/// Seals with node 0's keys and hands it to node 1; says what node 1 answers.
fn say(net: &mut Net, exchange: ExchangeType, message_id: u32, payloads: &[Payload]) -> usize {
    let engine = &mut net.nodes[0].engine;
    let sa = engine.sas.values_mut().next().unwrap();
    let header = sa.request_header(exchange, message_id);
    let Path { local, remote } = sa.path();
    let State::AuthSent(sent) = &mut sa.state else {
        panic!("IKE_AUTH was not sent");
    };
    let Ok(bytes) = message::protect(&mut sent.keys, &header, payloads) else {
        panic!("not sealed");
    };
    let before = net.wire.len();
    for bytes in bytes.iter() {
        net.act(1, |e, now| e.handle_datagram(now, remote, local, bytes));
    }
    net.wire.len() - before
}

fn assert_nothing_stands(net: &Net) {
    assert!(net.nodes[1].twin.ikes.is_empty(), "{}", net.story());
    net.assert_tidy(1, 0);
    let open = net.nodes[1].engine.sas.values();
    assert!(open.into_iter().all(|sa| sa.established().is_none()));
}

// CVE-2014-2338 (strongSwan), CVE-2019-12312 (libreswan), lessons L13 and L14: another exchange in
// place of IKE_AUTH.
#[test]
fn nothing_but_ike_auth_is_heard_before_authentication() {
    let mut net = half_open(1);
    let list = auth_payloads(&mut net);
    for exchange in (0..=255).filter(|e| *e != 35).map(ExchangeType) {
        for message_id in 0..3 {
            for payloads in [&list[..], &[]] {
                assert_eq!(say(&mut net, exchange, message_id, payloads), 0);
                assert_nothing_stands(&net);
            }
        }
    }
    // The handshake is none the worse for it.
    net.filter = None;
    net.run_ms(3_000);
    net.assert_connected(0, 1, 1);
}

// CVE-2013-6467 (libreswan), lesson L05; openiked f38728d, lesson L15: IKE_AUTH without a part.
#[test]
fn ike_auth_without_a_part_that_proves_is_refused() {
    let count = auth_payloads(&mut half_open(2)).len();
    for left_out in 0..count {
        let mut net = half_open(2);
        let mut list = auth_payloads(&mut net);
        let gone = list.remove(left_out);
        let proves = matches!(
            gone,
            Payload::IdInitiator(_) | Payload::Certificate(_) | Payload::Authentication(_)
        );
        assert_eq!(say(&mut net, ExchangeType::IKE_AUTH, 1, &list), 1);
        if proves {
            assert_nothing_stands(&net);
            // Nor does a second, whole try on the SA that was refused.
            let list = auth_payloads(&mut net);
            say(&mut net, ExchangeType::IKE_AUTH, 1, &list);
            assert_nothing_stands(&net);
        } else {
            assert_eq!(net.nodes[1].twin.ikes.len(), 1, "without {gone:?}");
        }
    }
}

// CVE-2015-8023 and CVE-2021-45079 (strongSwan), lesson L15: success is not for the peer to say.
#[test]
fn eap_and_unknown_payloads_prove_nothing() {
    for extra in [
        Payload::Eap(vec![3, 0, 0, 4]),
        Payload::Notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, [])),
        Payload::Unknown(UnknownPayload {
            kind: testudo_wire::ike::PayloadType(99),
            critical: true,
            data: Vec::new(),
        }),
    ] {
        let mut net = half_open(3);
        let mut list = auth_payloads(&mut net);
        list.retain(|p| !matches!(p, Payload::Authentication(_)));
        list.push(extra);
        assert_eq!(say(&mut net, ExchangeType::IKE_AUTH, 1, &list), 1);
        assert_nothing_stands(&net);
    }
}

// libreswan's unknown-payload tests, lesson L08: one without the critical bit changes nothing.
#[test]
fn an_unknown_payload_in_ike_auth_is_ignored() {
    let mut net = half_open(4);
    let mut list = auth_payloads(&mut net);
    let unknown = Payload::Unknown(UnknownPayload {
        kind: testudo_wire::ike::PayloadType(99),
        critical: false,
        data: vec![1, 2, 3],
    });
    list.insert(0, unknown);
    assert_eq!(say(&mut net, ExchangeType::IKE_AUTH, 1, &list), 1);
    assert_eq!(net.nodes[1].twin.ikes.len(), 1);
}
