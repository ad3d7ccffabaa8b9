//! What is written is read back, and what is broken is refused.

mod kernel;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;

use super::monitor::notices;
use super::*;
use crate::message::{HEADER_LEN, Messages};

fn ip(v6: bool) -> impl Strategy<Value = IpAddr> {
    any::<u128>().prop_map(move |bits| match v6 {
        true => IpAddr::from(bits.to_be_bytes()),
        false => IpAddr::from((bits as u32).to_be_bytes()),
    })
}

fn net(v6: bool) -> impl Strategy<Value = IpNet> {
    let longest: u8 = if v6 { 128 } else { 32 };
    (ip(v6), 0..=longest).prop_map(|(ip, len)| IpNet::new(ip, len).unwrap())
}

fn port() -> impl Strategy<Value = PortMatch> {
    (any::<u16>(), any::<u16>()).prop_map(|(value, mask)| PortMatch { value, mask })
}

fn selector(v6: bool) -> impl Strategy<Value = XfrmSelector> {
    (net(v6), net(v6), any::<u8>(), port(), port()).prop_map(
        |(source, destination, protocol, source_port, destination_port)| XfrmSelector {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        },
    )
}

fn mode() -> impl Strategy<Value = XfrmMode> {
    prop_oneof![Just(XfrmMode::Transport), Just(XfrmMode::Tunnel)]
}

fn template(v6: bool) -> impl Strategy<Value = XfrmTemplate> {
    (
        ip(v6),
        ip(v6),
        any::<u32>(),
        mode(),
        any::<u32>(),
        any::<bool>(),
    )
        .prop_map(
            |(source, destination, spi, mode, reqid, optional)| XfrmTemplate {
                source,
                destination,
                spi,
                mode,
                reqid,
                optional,
            },
        )
}

fn policy() -> impl Strategy<Value = XfrmPolicy> {
    let direction = prop_oneof![
        Just(XfrmDirection::In),
        Just(XfrmDirection::Out),
        Just(XfrmDirection::Forward)
    ];
    let action = prop_oneof![Just(XfrmAction::Allow), Just(XfrmAction::Block)];
    any::<bool>().prop_flat_map(move |v6| {
        (
            direction.clone(),
            selector(v6),
            action.clone(),
            any::<u32>(),
            any::<(u32, u32)>(),
            any::<u32>(),
            prop::collection::vec(template(!v6), 0..3),
        )
            .prop_map(
                |(direction, selector, action, priority, mark, if_id, templates)| XfrmPolicy {
                    direction,
                    selector,
                    action,
                    priority,
                    mark,
                    if_id,
                    templates,
                },
            )
    })
}

fn algorithm() -> impl Strategy<Value = (bool, Vec<u8>)> {
    (any::<bool>(), prop::collection::vec(any::<u8>(), 0..65))
}

fn made(aead: bool, key: &[u8]) -> XfrmAlgorithm {
    match aead {
        true => XfrmAlgorithm::Aead {
            name: "rfc4106(gcm(aes))".into(),
            key: XfrmKey::new(key),
            icv_bits: 128,
        },
        false => XfrmAlgorithm::CipherAndIntegrity {
            cipher: "cbc(aes)".into(),
            cipher_key: XfrmKey::new(key),
            integrity: "hmac(sha256)".into(),
            integrity_key: XfrmKey::new(&key[key.len() / 2..]),
            icv_bits: 128,
        },
    }
}

fn keys(algorithm: &XfrmAlgorithm) -> Vec<&[u8]> {
    match algorithm {
        XfrmAlgorithm::Aead { key, .. } => vec![key.as_bytes()],
        XfrmAlgorithm::CipherAndIntegrity {
            cipher_key,
            integrity_key,
            ..
        } => vec![cipher_key.as_bytes(), integrity_key.as_bytes()],
        XfrmAlgorithm::None => Vec::new(),
    }
}

fn limits() -> impl Strategy<Value = XfrmLimits> {
    let count = || prop::option::of(0..u64::MAX);
    let time = || prop::option::of((1..u64::MAX).prop_map(Duration::from_secs));
    (count(), count(), count(), count(), time(), time()).prop_map(
        |(soft_bytes, soft_packets, hard_bytes, hard_packets, soft_time, hard_time)| XfrmLimits {
            soft_bytes,
            soft_packets,
            hard_bytes,
            hard_packets,
            soft_time,
            hard_time,
        },
    )
}

fn sa() -> impl Strategy<Value = XfrmSa> {
    let of_family = any::<bool>().prop_flat_map(|v6| {
        let mut wide = selector(v6).prop_map(Some).boxed();
        wide = prop_oneof![Just(None), wide].boxed();
        (ip(v6), ip(v6), wide)
    });
    let names = (
        any::<u32>(),
        any::<(u32, u32)>(),
        any::<u32>(),
        mode(),
        any::<u32>(),
    );
    let replay = (0u32..=4096, any::<bool>(), any::<(u64, u64)>());
    let direction = prop_oneof![
        Just(None),
        Just(Some(XfrmDirection::In)),
        Just(Some(XfrmDirection::Out))
    ];
    let rest = (
        prop::option::of(any::<(u16, u16)>()),
        prop::option::of(any::<(u32, u32)>()),
        prop::option::of(any::<u32>()),
        prop::option::of(1u64..1000),
    );
    (
        of_family,
        names,
        algorithm(),
        replay,
        direction,
        limits(),
        rest,
    )
        .prop_map(
            |(
                (destination, source, selector),
                names,
                algorithm,
                replay,
                direction,
                limits,
                rest,
            )| {
                let (spi, mark, reqid, mode, if_id) = names;
                let (window, esn, (sent, received)) = replay;
                XfrmSa {
                    id: XfrmSaId {
                        destination,
                        spi,
                        mark,
                    },
                    source,
                    reqid,
                    mode,
                    // Nothing at all, said as a selector, is read back as none.
                    selector: selector.filter(|s| s.protocol != 0),
                    algorithm: made(algorithm.0, &algorithm.1),
                    encapsulation: rest.0.map(|(source_port, destination_port)| {
                        XfrmEncapsulation {
                            source_port,
                            destination_port,
                        }
                    }),
                    replay: XfrmReplay {
                        window,
                        esn,
                        sent,
                        received,
                    },
                    direction,
                    limits,
                    output_mark: rest.1,
                    if_id,
                    cpu: rest.2,
                    mapping_interval: rest.3.map(Duration::from_secs),
                }
            },
        )
}

/// The one message of a finished request.
fn sent(request: crate::message::Request) -> Vec<u8> {
    request.finish(1, 0).0.to_vec()
}

proptest! {
    #[test]
    fn a_policy_is_read_as_it_was_written(policy in policy()) {
        let bytes = sent(policy.request(abi::NEWPOLICY, String::new()));
        let message = Messages(&bytes).next().unwrap().unwrap();
        prop_assert_eq!(XfrmPolicy::parse(&message), Some(policy));
    }

    #[test]
    fn an_sa_is_read_as_it_was_written(sa in sa()) {
        let bytes = sent(sa.request(abi::NEWSA, String::new()));
        let read = XfrmListedSa::parse(&bytes[HEADER_LEN..]).unwrap();
        // All but keys is in the debug form.
        prop_assert_eq!(format!("{:?}", read.sa), format!("{sa:?}"));
        prop_assert_eq!(read.sa.mapping_interval, sa.mapping_interval);
        prop_assert_eq!(keys(&read.sa.algorithm), keys(&sa.algorithm));
        prop_assert_eq!(read.used, XfrmSaUse::default());
    }

    #[test]
    fn truncated_and_changed_answers_are_refused_or_read_and_never_panic(
        sa in sa(),
        policy in policy(),
        kind in 0x10u16..0x28,
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        for mut bytes in [
            sent(sa.request(kind, String::new())),
            sent(policy.request(kind, String::new())),
        ] {
            for (at, value) in &changes {
                let at = HEADER_LEN + at.index(bytes.len() - HEADER_LEN);
                bytes[at] = *value;
            }
            let len = HEADER_LEN + cut.index(bytes.len() - HEADER_LEN);
            bytes.truncate(len);
            bytes[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            let _ = notices(&bytes);
            let _ = XfrmListedSa::parse(&bytes[HEADER_LEN..]);
            let message = Messages(&bytes).next().unwrap().unwrap();
            let _ = XfrmPolicy::parse(&message);
        }
    }

    #[test]
    fn random_notifications_never_panic(kind in 0x10u16..0x28, body in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..4].copy_from_slice(&((HEADER_LEN + body.len()) as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&body);
        prop_assert!(notices(&bytes).len() <= 1);
    }
}

#[test]
fn an_algorithm_of_absurd_key_length_is_refused() {
    let mut sa = sample_sa();
    sa.algorithm = made(true, &[7; 36]);
    let mut bytes = sent(sa.request(abi::NEWSA, String::new()));
    let at = bytes.windows(8).position(|w| w == b"rfc4106(").unwrap();
    assert!(XfrmListedSa::parse(&bytes[HEADER_LEN..]).is_some());
    bytes[at + 64..at + 68].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(XfrmListedSa::parse(&bytes[HEADER_LEN..]).is_none());
}

#[test]
fn keys_are_in_no_debug_form() {
    let sa = XfrmSa {
        algorithm: made(true, b"0123456789abcdef0123456789abcdef4567"),
        ..sample_sa()
    };
    let shown = format!("{sa:?}");
    assert!(shown.contains("rfc4106(gcm(aes)) 128"), "{shown}");
    assert!(
        !shown.contains("0123") && !shown.contains("48, 49"),
        "{shown}"
    );
}

/// The packet that asks for an SA names the interface it leaves by.
#[test]
fn an_acquire_for_a_packet_on_an_interface_is_heard() {
    let policy = sample_policy(XfrmDirection::Out, false, 0xabcd);
    let template = policy.templates[0];
    let mut body = vec![0; abi::ACQUIRE_LEN];
    super::selector::put_address(&mut body, template.destination);
    body[16..20].copy_from_slice(&template.spi.to_be_bytes());
    body[40..40 + abi::SELECTOR_LEN].copy_from_slice(&policy.selector.encode());
    body[40 + 48] = 7;
    let mut request = crate::message::Request::new(abi::ACQUIRE, 0, &body, String::new());
    let whole = sent(policy.request(abi::NEWPOLICY, String::new()));
    let at = HEADER_LEN + abi::POLICY_LEN + 4;
    request.attr(abi::TMPL, &whole[at..at + abi::TMPL_LEN]);
    let id = XfrmSaId {
        destination: template.destination,
        spi: template.spi,
        mark: (0, 0),
    };
    let event = XfrmEvent::Acquire {
        id,
        selector: policy.selector,
        template,
    };
    assert_eq!(notices(&sent(request)), [XfrmNotice { port: 0, event }]);
}

fn sample_sa() -> XfrmSa {
    XfrmSa {
        id: XfrmSaId {
            destination: "192.0.2.2".parse().unwrap(),
            spi: 0xc0ff_ee01,
            mark: (0, 0),
        },
        source: "192.0.2.1".parse().unwrap(),
        reqid: 7,
        mode: XfrmMode::Transport,
        selector: None,
        algorithm: made(true, &[7; 36]),
        encapsulation: None,
        replay: XfrmReplay {
            window: 64,
            esn: true,
            ..XfrmReplay::default()
        },
        direction: None,
        limits: XfrmLimits::default(),
        output_mark: None,
        if_id: 0,
        cpu: None,
        mapping_interval: None,
    }
}

fn sample_policy(direction: XfrmDirection, v6: bool, spi: u32) -> XfrmPolicy {
    let (source, destination): (IpAddr, IpAddr) = match v6 {
        false => ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()),
        true => (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
        ),
    };
    XfrmPolicy {
        direction,
        selector: XfrmSelector {
            source: source.into(),
            destination: destination.into(),
            protocol: 17,
            source_port: PortMatch::ANY,
            destination_port: PortMatch::exactly(6081),
        },
        action: XfrmAction::Allow,
        priority: 58_740,
        mark: (0, 0),
        if_id: 0,
        templates: vec![XfrmTemplate {
            source,
            destination,
            spi,
            mode: XfrmMode::Transport,
            reqid: 0x7e57_0001,
            optional: direction == XfrmDirection::In,
        }],
    }
}
