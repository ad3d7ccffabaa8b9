//! Bytes of a peer that means harm, or errs. The rows of other systems' bugs are named by source.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::samples::{SA_INIT_LENGTHS, header, payloads, sa_init};
use crate::{ErrorClass, Problem};

/// A message of one clear payload with this body.
fn message_of(kind: u8, critical: bool, body: &[u8]) -> Vec<u8> {
    let mut chain = Chain::new();
    chain.push_raw(PayloadType(kind), critical, body).unwrap();
    build_clear(
        &Header::new(1, 2, ExchangeType::INFORMATIONAL, true, false, 3),
        &chain,
    )
    .unwrap()
}

fn decode(kind: PayloadType, body: &[u8]) -> Result<Payload, crate::WireError> {
    Payload::decode(kind, false, body, 0)
}

// CVE-2014-9221 (strongSwan), lesson L02: one id that only the program itself may use crashed it.
#[test]
fn every_transform_id_of_every_type_is_read_and_written() {
    for kind in (0..=13).chain([240, 255]) {
        for start in (0..=u16::MAX).step_by(256) {
            let transforms: Vec<Transform> = (start..=start + 254)
                .map(|id| Transform::new(TransformType(kind), id))
                .collect();
            let last = vec![Transform::new(TransformType(kind), start + 255)];
            let proposal = |number, transforms| Proposal {
                number,
                protocol: ProtocolId::IKE,
                spi: vec![],
                transforms,
            };
            let sa = Payload::Sa(vec![proposal(1, transforms), proposal(2, last)]);
            let mut chain = Chain::new();
            let range = chain.push(&sa).unwrap();
            assert_eq!(decode(PayloadType::SA, &chain.bytes()[range]).unwrap(), sa);
        }
    }
    for method in 0..=u16::MAX {
        let ke = decode(PayloadType::KE, &[method.to_be_bytes(), [0, 0]].concat()).unwrap();
        assert_eq!(
            ke,
            Payload::KeyExchange(KeyExchange {
                method,
                data: vec![]
            })
        );
    }
}

// CVE-2024-3652 (libreswan) and its 4.0, lesson L04: an unknown transform type or attribute ended
// everything.
#[test]
fn odd_proposals_are_marked_and_the_next_one_is_still_read() {
    let sa = [
        &[2, 0, 0, 28, 1, 3, 4, 2, 1, 2, 3, 4][..], // ESP
        &[3, 0, 0, 8, 99, 0, 0, 1],                 // unknown type
        &[0, 0, 0, 8, 1, 0, 0, 20],
        &[2, 0, 0, 42, 2, 3, 4, 2, 1, 2, 3, 4], // ESP
        &[3, 0, 0, 18, 1, 0, 0, 20, 0x80, 14, 1, 0, 0, 77, 0, 2, 5, 5], // unknown long attribute
        &[0, 0, 0, 12, 1, 0, 0, 20, 0x80, 15, 1, 0], // unknown short attribute
        &[2, 0, 0, 8, 3, 1, 0, 0],              // no transforms
        &[2, 0, 0, 13, 4, 3, 5, 0, 1, 2, 3, 4, 5], // SPI of 5 bytes
        &[0, 0, 0, 24, 5, 3, 4, 1, 1, 2, 3, 4],
        &[0, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0],
    ]
    .concat();
    let Payload::Sa(proposals) = decode(PayloadType::SA, &sa).unwrap() else {
        panic!()
    };
    assert!(proposals[0].has_unknown_type());
    assert!(!proposals[1].has_unknown_type());
    assert!(proposals[1].transforms.iter().all(|t| t.unknown_attribute));
    assert_eq!(proposals[1].transforms[0].key_length, Some(256));
    assert_eq!(
        (proposals[3].spi_u32(), proposals[3].spi_u64()),
        (None, None)
    );
    let good = &proposals[4];
    assert_eq!(good.spi_u32(), Some(0x0102_0304));
    assert_eq!(
        good.transforms,
        [Transform::encryption(EncryptionId::AES_GCM_16, Some(256))]
    );
}

#[test]
fn a_second_or_long_key_length_is_not_believed() {
    for attributes in [
        &[0x80, 14, 1, 0, 0x80, 14, 0, 128][..],
        &[0, 14, 0, 2, 1, 0],
    ] {
        let length = 8 + attributes.len() as u8;
        let sa = [
            &[
                0,
                0,
                0,
                8 + length,
                1,
                1,
                0,
                1,
                0,
                0,
                0,
                length,
                1,
                0,
                0,
                20,
            ][..],
            attributes,
        ]
        .concat();
        let Payload::Sa(proposals) = decode(PayloadType::SA, &sa).unwrap() else {
            panic!()
        };
        assert!(proposals[0].transforms[0].unknown_attribute);
    }
}

// CVE-2013-6467 (libreswan), lesson L05: a missing or renumbered payload was dereferenced.
#[test]
fn a_dropped_or_renumbered_payload_is_just_not_there() {
    let good = sa_init();
    let payloads: Vec<Payload> = Message::parse(&good)
        .unwrap()
        .payloads
        .into_iter()
        .map(|p| p.payload)
        .collect();
    let header = Header::parse(&good).unwrap();
    for drop in 0..payloads.len() {
        let kept: Vec<&Payload> = payloads
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != drop)
            .map(|(_, p)| p)
            .collect();
        let bytes = build_clear(&header, &Chain::of(kept.iter().copied()).unwrap()).unwrap();
        let read = Message::parse(&bytes).unwrap();
        assert!(read.payloads.iter().map(|p| &p.payload).eq(kept));
    }
    // The places of the "next payload" bytes, and every value they can have.
    for place in [16, 28, 108, 148, 184, 192, 208] {
        for value in 0..=255 {
            let mut bytes = good.clone();
            bytes[place] = value;
            if let Err(error) = Message::parse(&bytes) {
                assert_eq!(error.class(), ErrorClass::InvalidSyntax, "{error}");
            }
        }
    }
}

// CVE-2015-3991 (strongSwan), lesson L06: a payload of IKEv1 inside IKEv2 was cast to the wrong
// type.
#[test]
fn payloads_of_ikev1_are_unknown() {
    for kind in (1..=32).chain([49, 52, 54, 132, 255]) {
        let bytes = message_of(kind, false, &[0; 40]);
        let message = Message::parse(&bytes).unwrap();
        let Payload::Unknown(unknown) = &message.payloads[0].payload else {
            panic!("{kind}")
        };
        assert_eq!((unknown.kind, unknown.critical), (PayloadType(kind), false));
        let error = Message::parse(&message_of(kind, true, &[0; 40])).unwrap_err();
        assert_eq!(error.class(), ErrorClass::UnsupportedCriticalPayload(kind));
    }
}

// libreswan's tests ikev2-unknown-payload and -payload-reserved, lesson L08; RFC 7296, 2.5.
#[test]
fn the_critical_bit_counts_for_unknown_types_alone() {
    let error = Message::parse(&message_of(200, true, &[])).unwrap_err();
    assert_eq!(error.problem, Problem::UnsupportedCritical(200));
    assert_eq!(
        error.to_string(),
        "payload at byte 28: payload type 200 is unknown and critical"
    );
    assert_eq!(
        Message::parse(&message_of(43, true, b"x"))
            .unwrap()
            .payloads[0]
            .payload,
        Payload::VendorId(b"x".into())
    );
    let mut chain = Chain::new();
    let critical = UnknownPayload {
        kind: PayloadType(200),
        critical: true,
        data: vec![],
    };
    chain.push(&Payload::Unknown(critical)).unwrap();
    assert_eq!(
        parse_chain(chain.first(), chain.bytes())
            .unwrap_err()
            .reason(),
        "unsupported_critical_payload"
    );
}

// libreswan 4.0, lesson L08: reserved bytes of an ID were zeroed before AUTH was computed over it.
#[test]
fn reserved_bytes_are_ignored_and_kept_for_auth() {
    let body = [2, 0xde, 0xad, 0xbe, b'n', b'1'];
    let bytes = message_of(35, false, &body);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.payloads[0].body, body);
    let id = Identification {
        kind: IdType::FQDN,
        data: b"n1".to_vec(),
    };
    assert_eq!(message.payloads[0].payload, Payload::IdInitiator(id));
    // Every reserved bit of the message made by hand: generic headers, proposals, transforms, KE.
    let good = sa_init();
    let expected = Message::parse(&good).unwrap();
    for place in [29, 33, 41, 45, 53, 57, 77, 89, 109, 114, 115, 149] {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[place] ^= 1 << bit;
            let read = Message::parse(&bytes).unwrap_or_else(|e| panic!("{place} {bit}: {e}"));
            assert!(
                read.payloads
                    .iter()
                    .map(|p| &p.payload)
                    .eq(expected.payloads.iter().map(|p| &p.payload))
            );
        }
    }
}

// CVE-2013-4564 (libreswan); openiked 47d4e8a. Lesson L09.
#[test]
fn short_datagrams_are_refused() {
    let good = sa_init();
    for length in 0..good.len() {
        let error = Message::parse(&good[..length]).unwrap_err();
        let expected = if length < 28 {
            "truncated"
        } else {
            "bad_length"
        };
        assert_eq!(error.reason(), expected);
    }
    assert_eq!(Header::parse(&[0xff]).unwrap_err().reason(), "truncated");
    let mut long = good;
    long.push(0);
    assert_eq!(Message::parse(&long).unwrap_err().reason(), "bad_length");
}

// CVE-2013-4564 (libreswan), lesson L09: the inner parser trusted the outer length.
#[test]
fn every_wrong_length_field_is_refused() {
    let good = sa_init();
    let check = |bytes: &[u8], place: usize, value: u64| {
        let error = Message::parse(bytes).expect_err(&format!("length {value} at {place}"));
        assert_eq!(error.class(), ErrorClass::InvalidSyntax);
    };
    let right = good.len() as u32;
    for value in [0, 1, 27, 28, right - 1, right + 1, 65535, u32::MAX] {
        let mut bytes = good.clone();
        bytes[24..28].copy_from_slice(&value.to_be_bytes());
        check(&bytes, 24, value.into());
    }
    for place in SA_INIT_LENGTHS {
        let right = u16::from_be_bytes([good[place], good[place + 1]]);
        for value in [0, 1, 3, right - 1, right + 1, u16::MAX] {
            let mut bytes = good.clone();
            bytes[place..place + 2].copy_from_slice(&value.to_be_bytes());
            check(&bytes, place, value.into());
        }
    }
    // Number of transforms, SPI size.
    for place in [38, 39, 74, 75] {
        for value in [good[place].wrapping_sub(1), good[place] + 1, 255] {
            let mut bytes = good.clone();
            bytes[place] = value;
            check(&bytes, place, value.into());
        }
    }
}

#[test]
fn the_version_is_judged_before_anything_else() {
    let mut bytes = sa_init();
    for major in (0..16).filter(|m| *m != 2) {
        bytes[17] = major << 4;
        bytes[24] = 0xff;
        assert_eq!(
            Message::parse(&bytes).unwrap_err().class(),
            ErrorClass::InvalidMajorVersion(major)
        );
        assert_eq!(Header::parse(&bytes).unwrap().message_id, 0);
    }
    // A higher minor version is ignored (RFC 7296, 2.5).
    let mut bytes = sa_init();
    bytes[17] = 0x2f;
    assert!(Message::parse(&bytes).is_ok());
}

// CVE-2023-23009 (libreswan), lesson L11: a malformed TS payload was freed twice.
#[test]
fn malformed_traffic_selectors_are_refused() {
    let good = [
        1, 0, 0, 0, 7, 17, 0, 16, 0, 0, 0xff, 0xff, 10, 0, 0, 1, 10, 0, 0, 9,
    ];
    let with = |changes: &[(usize, u8)]| {
        let mut body = good;
        changes
            .iter()
            .for_each(|(place, value)| body[*place] = *value);
        decode(PayloadType::TSI, &body)
    };
    assert!(with(&[]).is_ok());
    for (changes, reason) in [
        (&[(0, 0)][..], "bad_value"), // count 0
        (&[(0, 2)], "truncated"),     // count too high
        (&[(0, 255)], "truncated"),   // count 255
        (&[(7, 15)], "bad_length"),   // length
        (&[(7, 17)], "bad_length"),
        (&[(7, 0)], "bad_length"),
        (&[(6, 255), (7, 255)], "bad_length"),
        (&[(4, 8)], "bad_length"), // type IPv6 with IPv4's length
        (&[(8, 1), (10, 0)], "reversed_range"), // ports
        (&[(12, 11)], "reversed_range"), // addresses
    ] {
        assert_eq!(with(changes).unwrap_err().reason(), reason, "{changes:?}");
    }
    assert_eq!(
        decode(PayloadType::TSR, &[&good[..], &[0]].concat())
            .unwrap_err()
            .reason(),
        "trailing_bytes"
    );
    for length in 0..good.len() {
        assert!(decode(PayloadType::TSR, &good[..length]).is_err());
    }
    // An unknown type is counted, and covers nothing.
    let Payload::TsInitiator(ts) = with(&[(4, 10)]).unwrap() else {
        panic!()
    };
    assert_eq!((ts.selectors.len(), ts.unknown), (0, 1));
    assert!(!ts.is_subset_of(&[TrafficSelector::addresses(AddressRange::ANY_V4)]));
    // 255 selectors are the most there can be.
    let many = [&[255, 0, 0, 0][..], &good[4..].repeat(255)].concat();
    let Payload::TsResponder(ts) = decode(PayloadType::TSR, &many).unwrap() else {
        panic!()
    };
    assert_eq!(ts.selectors.len(), 255);
}

// CVE-2026-12413 (libreswan), lesson L19: unknown clear payloads beside SKF filled a fixed array.
#[test]
fn payloads_proposals_and_spis_are_bounded() {
    let mut bytes = Vec::new();
    for index in 0..200 {
        bytes.extend([if index == 199 { 53 } else { 200 }, 0, 0, 4]);
    }
    bytes.extend([0, 0, 0, 60, 0, 1, 0, 2]);
    bytes.extend([0; 52]);
    let length = (28 + bytes.len()) as u32;
    let header = Header {
        next_payload: PayloadType(200),
        length,
        ..Header::parse(&sa_init()).unwrap()
    };
    let message = [&header.to_bytes()[..], &bytes].concat();
    assert_eq!(Message::parse(&message).unwrap_err().reason(), "too_many");
    assert_eq!(
        parse_chain(PayloadType(200), &bytes).unwrap_err().reason(),
        "too_many"
    );

    let proposals = [2, 0, 0, 8, 1, 1, 0, 0].repeat(65);
    assert_eq!(
        decode(PayloadType::SA, &proposals).unwrap_err().reason(),
        "too_many"
    );
    let transforms = [3, 0, 0, 8, 1, 0, 0, 1].repeat(254);
    let mut one = [
        &[2, 0, 8, 0, 1, 1, 0, 255][..],
        &transforms,
        &[0, 0, 0, 8, 1, 0, 0, 1],
    ]
    .concat();
    one[2..4].copy_from_slice(&2048u16.to_be_bytes());
    assert_eq!(
        decode(PayloadType::SA, &one.repeat(3))
            .unwrap_err()
            .reason(),
        "too_many"
    );
    let attributes = [0x80, 14, 1, 0].repeat(9);
    let sa = [
        &[0, 0, 0, 52, 1, 1, 0, 1, 0, 0, 0, 44, 1, 0, 0, 20][..],
        &attributes,
    ]
    .concat();
    assert_eq!(
        decode(PayloadType::SA, &sa).unwrap_err().reason(),
        "too_many"
    );
    let spis = [&[3, 4, 2, 1][..], &[0; 513 * 4]].concat();
    assert_eq!(
        decode(PayloadType::DELETE, &spis).unwrap_err().reason(),
        "too_many"
    );
}

#[test]
fn malformed_deletes_are_refused() {
    assert_eq!(
        decode(PayloadType::DELETE, &[1, 0, 0, 0]).unwrap(),
        Payload::Delete(Delete::Ike)
    );
    for body in [
        &[1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 0, 0, 0, 0],
        &[3, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[3, 0, 0, 1],
        &[3, 4, 0, 1],
        &[3, 4, 0, 0, 1, 2, 3, 4],
        &[3, 4, 0, 2, 1, 2, 3, 4],
        &[3, 4, 255, 255, 1, 2, 3, 4],
        &[],
        &[3, 4, 0],
    ] {
        assert!(decode(PayloadType::DELETE, body).is_err(), "{body:?}");
    }
}

// CVE-2016-1287 (Cisco ASA), lesson L20: a fragment shorter than its header made a length
// underflow.
#[test]
fn malformed_encrypted_payloads_are_refused() {
    let skf = |number: u16, total: u16, rest: usize| {
        let body = [
            &number.to_be_bytes()[..],
            &total.to_be_bytes(),
            &vec![0; rest],
        ]
        .concat();
        message_of(53, false, &body)
    };
    for (number, total) in [(0, 0), (0, 1), (2, 1), (65535, 65534)] {
        assert_eq!(
            Message::parse(&skf(number, total, 40))
                .unwrap_err()
                .reason(),
            "bad_value"
        );
    }
    let layout = EncryptedLayout::AES_GCM_16;
    for rest in 0..60 {
        let bytes = skf(1, 65535, rest);
        let encrypted = Message::parse(&bytes).unwrap().encrypted.unwrap();
        assert_eq!(
            encrypted.fragment,
            Some(Fragment {
                number: 1,
                total: 65535
            })
        );
        assert_eq!(encrypted.ranges(layout).is_ok(), rest >= 8 + 1 + 16);
    }
    for length in 0..4 {
        assert_eq!(
            Message::parse(&message_of(53, false, &vec![0; length]))
                .unwrap_err()
                .reason(),
            "truncated"
        );
        let bytes = message_of(46, false, &vec![0; length]);
        assert!(
            Message::parse(&bytes)
                .unwrap()
                .encrypted
                .unwrap()
                .ranges(layout)
                .is_err()
        );
    }
    // Nothing may follow it: its next payload is the first one inside.
    let mut chain = Chain::new();
    chain.push_raw(PayloadType::SK, false, &[0; 40]).unwrap();
    chain.push(&Payload::VendorId(vec![])).unwrap();
    let header = Header::new(1, 2, ExchangeType::INFORMATIONAL, true, false, 3);
    let bytes = build_clear(&header, &chain).unwrap();
    assert_eq!(
        Message::parse(&bytes).unwrap_err().reason(),
        "trailing_bytes"
    );
    // Nor may one be inside another.
    for kind in [PayloadType::SK, PayloadType::SKF] {
        assert_eq!(
            parse_chain(kind, &[0; 40]).unwrap_err().reason(),
            "bad_length"
        );
        assert_eq!(
            parse_chain(kind, &[0, 0, 0, 4]).unwrap_err().reason(),
            "bad_value"
        );
    }
    assert_eq!(strip_padding(&[]).unwrap_err().reason(), "truncated");
    assert_eq!(
        strip_padding(&[9, 9, 3]).unwrap_err().reason(),
        "bad_length"
    );
    assert_eq!(strip_padding(&[7, 9, 9, 2]).unwrap(), [7]);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..400), first in any::<u8>(), offset in any::<u16>()) {
        let _ = Header::parse(&bytes);
        let _ = Message::parse(&bytes);
        let _ = parse_chain(PayloadType(first), &bytes);
        let _ = strip_padding(&bytes);
        for kind in 0..=255 {
            if let Err(error) = Payload::decode(PayloadType(kind), true, &bytes, offset.into()) {
                prop_assert!(error.offset >= usize::from(offset));
                prop_assert!(error.offset <= usize::from(offset) + bytes.len());
            }
        }
    }

    #[test]
    fn any_bytes_behind_a_good_header_are_survived(bytes in vec(any::<u8>(), 0..400), first in 33u8..54) {
        let mut header = Header::new(1, 2, ExchangeType::IKE_AUTH, true, false, 1);
        header.next_payload = PayloadType(first);
        header.length = (28 + bytes.len()) as u32;
        let message = [&header.to_bytes()[..], &bytes].concat();
        if let Ok(Message { encrypted: Some(encrypted), .. }) = Message::parse(&message)
            && let Ok(ranges) = encrypted.ranges(EncryptedLayout::AES_GCM_16)
        {
            prop_assert_eq!(ranges.icv.end, message.len());
        }
    }

    #[test]
    fn a_changed_message_is_survived_and_what_reads_is_written_again(
        header in header(), payloads in payloads(), changes in vec((any::<u16>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = build_clear(&header, &Chain::of(&payloads).unwrap()).unwrap();
        for (place, value) in changes {
            let place = usize::from(place) % bytes.len();
            bytes[place] = value;
        }
        if let Ok(message) = Message::parse(&bytes) {
            for parsed in &message.payloads {
                // Whatever was read means the same when written and read once more, but for what
                // the reader marked as not to be used.
                let mut chain = Chain::new();
                let Ok(range) = chain.push(&parsed.payload) else { continue };
                let again = Payload::decode(parsed.payload.kind(), false, &chain.bytes()[range], 0).unwrap();
                let marked = format!("{:?}", parsed.payload);
                if !marked.contains("unknown_attribute: true") && !marked.contains("unknown: ") {
                    prop_assert_eq!(&again, &parsed.payload);
                }
            }
        }
    }
}
