//! What is written reads back, and a message made by hand reads as drawn.

use proptest::prelude::*;

use super::super::*;
use super::samples::{header, payloads, sa_init};

const GCM: EncryptedLayout = EncryptedLayout::AES_GCM_16;
/// AES-CBC with HMAC-SHA2-256-128.
const CBC: EncryptedLayout = EncryptedLayout {
    iv_len: 16,
    icv_len: 16,
    block_len: 16,
};

#[test]
fn a_block_cipher_is_given_whole_blocks() {
    let header = Header::parse(&sa_init()).unwrap();
    for len in 0..40 {
        let chain = Chain::of(&[Payload::VendorId(vec![7; len])]).unwrap();
        let sealing = build_encrypted(&header, &chain, CBC).unwrap();
        let text = &sealing.bytes[sealing.plaintext.clone()];
        assert_eq!(text.len() % 16, 0);
        assert!(text.len() - chain.bytes().len() <= 16);
        assert_eq!(strip_padding(text).unwrap(), chain.bytes());
        // One byte more or less is no whole block.
        let encrypted = Message::parse(&sealing.bytes).unwrap().encrypted.unwrap();
        assert_eq!(encrypted.ranges(CBC).unwrap().ciphertext, sealing.plaintext);
        let odd = EncryptedLayout { icv_len: 17, ..CBC };
        assert_eq!(encrypted.ranges(odd).unwrap_err().reason(), "bad_length");
    }
}

#[test]
fn a_hand_made_sa_init_reads_as_drawn_and_is_written_the_same() {
    let bytes = sa_init();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.header.initiator_spi, 0x1111_1111_1111_1111);
    assert_eq!(message.header.exchange, ExchangeType::IKE_SA_INIT);
    assert_eq!(
        message.header.flags,
        Flags {
            initiator: true,
            version: false,
            response: false
        }
    );
    assert_eq!(message.encrypted, None);
    let [sa, ke, nonce, fragmentation, hashes, vendor] = &message.payloads[..] else {
        panic!("{:?}", message.payloads);
    };
    let Payload::Sa(proposals) = &sa.payload else {
        panic!("{sa:?}")
    };
    assert_eq!(proposals.len(), 2);
    assert_eq!(
        proposals[0].transforms,
        [
            Transform::encryption(EncryptionId::AES_GCM_16, Some(256)),
            Transform::prf(PrfId::HMAC_SHA2_512),
            Transform::key_exchange(KeyExchangeId::X25519),
        ]
    );
    assert_eq!(
        proposals[1].of_type(TransformType::KE).next().unwrap().id,
        KeyExchangeId::P256.0
    );
    assert_eq!(
        ke.payload,
        Payload::KeyExchange(KeyExchange {
            method: 31,
            data: vec![0x22; 32]
        })
    );
    assert_eq!(nonce.payload, Payload::Nonce(vec![0x33; 32]));
    assert_eq!(nonce.body, &bytes[nonce.offset + 4..nonce.offset + 36]);
    let frag = Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, []);
    assert_eq!(fragmentation.payload, Payload::Notify(frag));
    let Payload::Notify(hashes) = &hashes.payload else {
        panic!("{hashes:?}")
    };
    assert_eq!(hashes.kind.to_string(), "SIGNATURE_HASH_ALGORITHMS");
    assert_eq!(hashes.data_u16s().collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(vendor.payload, Payload::VendorId(b"test".to_vec()));

    let chain = Chain::of(message.payloads.iter().map(|p| &p.payload)).unwrap();
    assert_eq!(build_clear(&message.header, &chain).unwrap(), bytes);
}

#[test]
fn an_empty_informational_is_one_pad_length_byte() {
    let header = Header::new(1, 2, ExchangeType::INFORMATIONAL, true, false, 7);
    let sealing = build_encrypted(&header, &Chain::new(), GCM).unwrap();
    assert_eq!(sealing.bytes.len(), 28 + 4 + 8 + 1 + 16);
    let message = Message::parse(&sealing.bytes).unwrap();
    let encrypted = message.encrypted.unwrap();
    assert_eq!(encrypted.first_inner, PayloadType::NONE);
    assert_eq!(
        strip_padding(&sealing.bytes[sealing.plaintext]).unwrap(),
        []
    );
    assert_eq!(parse_chain(PayloadType::NONE, &[]).unwrap(), []);
}

#[test]
fn the_body_of_an_id_is_what_its_encoder_says() {
    let id = Identification {
        kind: IdType::FQDN,
        data: b"n1".to_vec(),
    };
    let mut chain = Chain::new();
    chain.push(&Payload::Nonce(vec![0; 16])).unwrap();
    let range = chain.push(&Payload::IdInitiator(id.clone())).unwrap();
    assert_eq!(&chain.bytes()[range], id.body());
}

#[test]
fn a_signature_splits_from_its_algorithm() {
    let auth = Authentication::digital_signature(&[1, 2, 3], &[4, 5]).unwrap();
    assert_eq!(
        auth.split_digital_signature(),
        Some((&[1, 2, 3][..], &[4, 5][..]))
    );
    assert_eq!(Authentication::digital_signature(&[0; 256], &[]), None);
    for data in [vec![], vec![1], vec![255; 255]] {
        let bad = Authentication {
            method: AuthMethod::DIGITAL_SIGNATURE,
            data,
        };
        assert_eq!(bad.split_digital_signature(), None);
    }
    let other = Authentication {
        method: AuthMethod::SHARED_KEY,
        data: vec![0, 1],
    };
    assert_eq!(other.split_digital_signature(), None);
}

#[test]
fn the_builder_refuses_what_the_format_cannot_say() {
    let header = Header::new(1, 0, ExchangeType::IKE_SA_INIT, true, false, 0);
    let mut chain = Chain::new();
    for bad in [
        Payload::Sa(vec![]),
        Payload::Nonce(vec![0; 15]),
        Payload::Nonce(vec![0; 257]),
        Payload::TsInitiator(TrafficSelectors::default()),
        Payload::Delete(Delete::Child {
            protocol: ProtocolId::IKE,
            spis: vec![],
        }),
        Payload::Delete(Delete::Child {
            protocol: ProtocolId::ESP,
            spis: vec![0; 513],
        }),
        Payload::Notify(Notify {
            spi: vec![0; 256],
            ..Notify::new(NotifyType::COOKIE, [])
        }),
    ] {
        assert_eq!(
            chain.push(&bad),
            Err(BuildError::Payload { kind: bad.kind() })
        );
    }
    assert!(matches!(
        chain.push(&Payload::VendorId(vec![0; 65532])),
        Err(BuildError::TooLong { .. })
    ));
    assert!(chain.is_empty());
    chain.push(&Payload::VendorId(vec![0; 40_000])).unwrap();
    chain.push(&Payload::VendorId(vec![0; 40_000])).unwrap();
    assert!(matches!(
        build_clear(&header, &chain),
        Err(BuildError::Message { .. })
    ));
    assert!(matches!(
        build_encrypted(&header, &chain, GCM),
        Err(BuildError::TooLong { .. })
    ));
    for max in [0, 60, 61] {
        assert!(matches!(
            build_fragments(&header, &chain, GCM, max),
            Err(BuildError::Fragments { .. })
        ));
    }
    let mut many = Chain::new();
    for _ in 0..limits::PAYLOADS {
        many.push(&Payload::VendorId(vec![])).unwrap();
    }
    assert_eq!(
        many.push(&Payload::VendorId(vec![])),
        Err(BuildError::TooManyPayloads)
    );
    assert_eq!(
        parse_chain(many.first(), many.bytes()).unwrap().len(),
        limits::PAYLOADS
    );
}

#[test]
fn every_named_number_has_its_name_and_place() {
    assert_eq!(NotifyType::CHILDLESS_IKEV2_SUPPORTED.0, 16418);
    assert_eq!(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED.0, 16430);
    assert_eq!(NotifyType::SIGNATURE_HASH_ALGORITHMS.0, 16431);
    assert_eq!(NotifyType::USE_PPK.0, 16435);
    assert_eq!(NotifyType::ADDITIONAL_KEY_EXCHANGE.0, 16441);
    assert_eq!(NotifyType::SA_RESOURCE_INFO.0, 16444);
    assert!(NotifyType::TS_MAX_QUEUE.is_error() && !NotifyType::INITIAL_CONTACT.is_error());
    assert!(NotifyType::NAMED.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(NotifyType(40_960).to_string(), "40960");
    assert_eq!(PayloadType::SKF.to_string(), "SKF");
}

proptest! {
    #[test]
    fn clear_messages_read_back(header in header(), payloads in payloads()) {
        let chain = Chain::of(&payloads).unwrap();
        let bytes = build_clear(&header, &chain).unwrap();
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!(message.header, Header {
            next_payload: chain.first(), length: bytes.len() as u32, ..header
        });
        prop_assert_eq!(&message.encrypted, &None);
        for parsed in &message.payloads {
            prop_assert_eq!(parsed.body, &bytes[parsed.offset + 4..][..parsed.body.len()]);
        }
        let read: Vec<Payload> = message.payloads.into_iter().map(|p| p.payload).collect();
        prop_assert_eq!(read, payloads);
    }

    #[test]
    fn encrypted_messages_read_back(header in header(), payloads in payloads()) {
        let chain = Chain::of(&payloads).unwrap();
        let sealing = build_encrypted(&header, &chain, GCM).unwrap();
        let message = Message::parse(&sealing.bytes).unwrap();
        let encrypted = message.encrypted.unwrap();
        prop_assert_eq!(encrypted.fragment, None);
        let ranges = encrypted.ranges(GCM).unwrap();
        prop_assert_eq!(&ranges.aad, &sealing.aad);
        prop_assert_eq!(&ranges.iv, &sealing.iv);
        prop_assert_eq!(&ranges.ciphertext, &sealing.plaintext);
        prop_assert_eq!(&ranges.icv, &sealing.icv);
        let plain = strip_padding(&sealing.bytes[ranges.ciphertext]).unwrap();
        let inner = parse_chain(encrypted.first_inner, plain).unwrap();
        let read: Vec<Payload> = inner.into_iter().map(|p| p.payload).collect();
        prop_assert_eq!(read, payloads);
    }

    #[test]
    fn fragments_join_to_what_was_cut(header in header(), payloads in payloads(), max in 62usize..600, cbc in any::<bool>()) {
        let (layout, max) = if cbc { (CBC, max.max(84)) } else { (GCM, max) };
        let chain = Chain::of(&payloads).unwrap();
        let sealings = build_fragments(&header, &chain, layout, max).unwrap();
        let mut joined: Vec<u8> = Vec::new();
        for (index, sealing) in sealings.iter().enumerate() {
            prop_assert!(sealing.bytes.len() <= max);
            let encrypted = Message::parse(&sealing.bytes).unwrap().encrypted.unwrap();
            let ranges = encrypted.ranges(layout).unwrap();
            prop_assert_eq!(&ranges.aad, &sealing.aad);
            let first = if index == 0 { chain.first() } else { PayloadType::NONE };
            prop_assert_eq!(encrypted.first_inner, first);
            match encrypted.fragment {
                Some(fragment) => {
                    prop_assert_eq!(usize::from(fragment.number), index + 1);
                    prop_assert_eq!(usize::from(fragment.total), sealings.len());
                }
                None => prop_assert_eq!(sealings.len(), 1),
            }
            joined.extend(strip_padding(&sealing.bytes[ranges.ciphertext]).unwrap());
        }
        prop_assert_eq!(joined, chain.bytes());
    }
}
