//! Peers that have keys but have proven nothing: whatever they send, nothing is established.

use testudo_wire::ike::{
    AuthMethod, CertEncoding, ExchangeType, Notify, NotifyType, Payload, UnknownPayload,
};

use super::net::*;
use crate::engine::Path;
use crate::event::Failure;
use crate::message;
use crate::sa::State;
use crate::verify::FailedCheck;

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

/// Says `list` in IKE_AUTH; both ends' first failures.
fn refused(mut net: Net, list: &[Payload]) -> (Failure, Failure) {
    net.filter = None;
    assert_eq!(say(&mut net, ExchangeType::IKE_AUTH, 1, list), 1);
    assert_nothing_stands(&net);
    net.run_ms(100);
    (
        net.nodes[0].failures[0].clone(),
        net.nodes[1].failures[0].clone(),
    )
}

// RFC 7296, 2.16: EAP is not had. A peer that wants it sends no AUTH.
#[test]
fn a_peer_that_wants_eap_is_told_that_authentication_failed() {
    let mut net = half_open(5);
    let mut list = auth_payloads(&mut net);
    list.retain(|p| !matches!(p, Payload::Authentication(_) | Payload::Certificate(_)));
    let only = NotifyType(16417); // EAP_ONLY_AUTHENTICATION (RFC 5998).
    list.push(Payload::Notify(Notify::new(only, [])));
    let (told, ours) = refused(net, &list);
    assert!(told.text.contains("AUTHENTICATION_FAILED"), "{told:?}");
    assert_eq!(ours.check, FailedCheck::AuthMethod);
}

// RFC 7296, 3.6: a certificate by its hash and URL. Lesson L37: nothing is fetched.
#[test]
fn the_url_of_a_certificate_is_refused_with_a_clear_reason() {
    for encoding in [
        CertEncoding::HASH_AND_URL,
        CertEncoding::HASH_AND_URL_BUNDLE,
    ] {
        let mut net = half_open(6);
        let mut list = auth_payloads(&mut net);
        for payload in &mut list {
            if let Payload::Certificate(cert) = payload {
                cert.encoding = encoding;
                cert.data = [&[1; 20][..], b"http://192.0.2.1/tarpit"].concat();
            }
        }
        let asks = |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == NotifyType::HTTP_CERT_LOOKUP_SUPPORTED);
        assert!(!list.iter().any(asks), "we do not say that we take it");
        let (told, ours) = refused(net, &list);
        assert_eq!(told.check, FailedCheck::RefusedByPeer);
        assert_eq!(ours.check, FailedCheck::CertificateMalformed);
        assert!(ours.text.contains("URL"), "{}", ours.text);
    }
}

// RFC 7296, 3.15.4: one that has no configuration payloads may ignore them all.
#[test]
fn configuration_payloads_are_ignored() {
    for kind in 0..=4u8 {
        let mut net = half_open(7);
        let mut list = auth_payloads(&mut net);
        // INTERNAL_IP4_ADDRESS, without a value.
        let request = vec![kind, 0, 0, 0, 0, 1, 0, 0];
        list.insert(list.len() - 3, Payload::Configuration(request));
        net.filter = None;
        assert_eq!(say(&mut net, ExchangeType::IKE_AUTH, 1, &list), 1);
        net.run_ms(100);
        assert_eq!(net.nodes[0].twin.ikes.len(), 1);
        assert_eq!(net.nodes[1].twin.ikes.len(), 1);
        assert_eq!(net.ikes(1, 0)[0].children.len(), 1);
    }
}

// Lesson L34 and RFC 7427: the methods of before are not taken, whatever the data. Method 1 is
// bound to SHA-1; 9 to 11 (RFC 4754) choose their hash themselves.
#[test]
fn old_and_unknown_authentication_methods_are_refused() {
    for method in (0..=255).filter(|m| *m != 14).map(AuthMethod) {
        let mut net = half_open(8);
        let mut list = auth_payloads(&mut net);
        for payload in &mut list {
            if let Payload::Authentication(auth) = payload {
                auth.method = method;
            }
        }
        let (told, ours) = refused(net, &list);
        assert!(told.text.contains("AUTHENTICATION_FAILED"), "{told:?}");
        assert_eq!(ours.check, FailedCheck::AuthMethod);
    }
}
