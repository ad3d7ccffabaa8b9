//! Messages to test with: one made by hand, byte by byte, and random ones.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;

/// An IKE_SA_INIT request as the RFC draws it, written without the encoder.
pub(super) fn sa_init() -> Vec<u8> {
    let mut m = Vec::new();
    m.extend([0x11; 8]); // initiator SPI
    m.extend([0; 8]); // responder SPI
    m.extend([33, 0x20, 34, 0x08]); // next SA, version 2.0, IKE_SA_INIT, initiator
    m.extend([0, 0, 0, 0]); // message ID
    m.extend([0, 0, 0, 216]); // length
    m.extend([34, 0, 0, 80]); // SA, next KE
    m.extend([2, 0, 0, 36, 1, 1, 0, 3]); // proposal 1 of IKE, no SPI, 3 transforms
    m.extend([3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0]); // AES-GCM-16, 256 bits
    m.extend([3, 0, 0, 8, 2, 0, 0, 7]); // PRF HMAC-SHA2-512
    m.extend([0, 0, 0, 8, 4, 0, 0, 31]); // X25519
    m.extend([0, 0, 0, 40, 2, 1, 0, 3]); // proposal 2
    m.extend([3, 0, 0, 12, 1, 0, 0, 12, 0x80, 14, 0, 128]); // AES-CBC, 128 bits
    m.extend([3, 0, 0, 12, 3, 0, 0, 12, 0x80, 14, 0, 0]); // integrity, an odd key length
    m.extend([0, 0, 0, 8, 4, 0, 0, 19]); // P-256
    m.extend([40, 0, 0, 40, 0, 31, 0, 0]); // KE of X25519, next Nonce
    m.extend([0x22; 32]);
    m.extend([41, 0, 0, 36]); // Nonce, next Notify
    m.extend([0x33; 32]);
    m.extend([41, 0, 0, 8, 0, 0, 0x40, 0x2e]); // IKEV2_FRAGMENTATION_SUPPORTED
    m.extend([43, 0, 0, 16, 0, 0, 0x40, 0x2f]); // SIGNATURE_HASH_ALGORITHMS
    m.extend([0, 2, 0, 3, 0, 4, 0, 5]);
    m.extend([0, 0, 0, 8, b't', b'e', b's', b't']); // Vendor ID
    m
}

/// Offsets of the 2-byte length fields in [`sa_init`].
pub(super) const SA_INIT_LENGTHS: [usize; 14] =
    [30, 34, 42, 54, 62, 70, 78, 90, 102, 110, 150, 186, 194, 210];

pub(super) fn header() -> impl Strategy<Value = Header> {
    (
        1u64..,
        any::<u64>(),
        any::<u8>(),
        any::<bool>(),
        any::<bool>(),
        any::<u32>(),
    )
        .prop_map(|(i, r, exchange, initiator, response, id)| {
            Header::new(i, r, exchange.into(), initiator, response, id)
        })
}

pub(super) fn address_range() -> impl Strategy<Value = AddressRange> {
    let v4 = any::<(u32, u32)>().prop_map(|(a, b)| AddressRange::V4 {
        start: Ipv4Addr::from_bits(a.min(b)),
        end: Ipv4Addr::from_bits(a.max(b)),
    });
    let v6 = any::<(u128, u128)>().prop_map(|(a, b)| AddressRange::V6 {
        start: Ipv6Addr::from_bits(a.min(b)),
        end: Ipv6Addr::from_bits(a.max(b)),
    });
    prop_oneof![v4, v6]
}

pub(super) fn port_range() -> impl Strategy<Value = PortRange> {
    prop_oneof![
        Just(PortRange::ANY),
        Just(PortRange::OPAQUE),
        any::<(u16, u16)>().prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap()),
    ]
}

pub(super) fn selector() -> impl Strategy<Value = TrafficSelector> {
    (
        prop_oneof![Just(0), any::<u8>()],
        port_range(),
        address_range(),
    )
        .prop_map(|(protocol, ports, addresses)| TrafficSelector {
            protocol,
            ports,
            addresses,
        })
}

fn selectors() -> impl Strategy<Value = TrafficSelectors> {
    vec(selector(), 1..6).prop_map(TrafficSelectors::new)
}

fn transform() -> impl Strategy<Value = Transform> {
    (any::<u8>(), any::<u16>(), any::<Option<u16>>()).prop_map(|(kind, id, key_length)| Transform {
        key_length,
        ..Transform::new(TransformType(kind), id)
    })
}

fn proposal() -> impl Strategy<Value = Proposal> {
    (
        any::<u8>(),
        any::<u8>(),
        vec(any::<u8>(), 0..10),
        vec(transform(), 0..8),
    )
        .prop_map(|(number, protocol, spi, transforms)| Proposal {
            number,
            protocol: ProtocolId(protocol),
            spi,
            transforms,
        })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..80)
}

fn unknown_kind() -> impl Strategy<Value = PayloadType> {
    any::<u8>()
        .prop_map(PayloadType)
        .prop_filter("has a name", |kind| kind.name().is_none())
}

pub(super) fn payload() -> impl Strategy<Value = Payload> {
    let id = || {
        (any::<u8>(), data()).prop_map(|(kind, data)| Identification {
            kind: IdType(kind),
            data,
        })
    };
    let spis = vec(any::<u32>(), 0..6);
    prop_oneof![
        vec(proposal(), 1..4).prop_map(Payload::Sa),
        (any::<u16>(), data())
            .prop_map(|(method, data)| Payload::KeyExchange(KeyExchange { method, data })),
        id().prop_map(Payload::IdInitiator),
        id().prop_map(Payload::IdResponder),
        (any::<u8>(), data()).prop_map(|(e, data)| Payload::Certificate(Certificate {
            encoding: CertEncoding(e),
            data
        })),
        (any::<u8>(), data()).prop_map(|(e, authorities)| {
            Payload::CertificateRequest(CertificateRequest {
                encoding: CertEncoding(e),
                authorities,
            })
        }),
        (any::<u8>(), data()).prop_map(|(m, data)| Payload::Authentication(Authentication {
            method: AuthMethod(m),
            data
        })),
        vec(any::<u8>(), limits::NONCE_MIN..=limits::NONCE_MAX).prop_map(Payload::Nonce),
        (any::<u8>(), data(), any::<u16>(), data()).prop_map(|(protocol, spi, kind, data)| {
            Payload::Notify(Notify {
                protocol: ProtocolId(protocol),
                spi,
                kind: NotifyType(kind),
                data,
            })
        }),
        Just(Payload::Delete(Delete::Ike)),
        (2u8.., spis).prop_map(|(p, spis)| Payload::Delete(Delete::Child {
            protocol: ProtocolId(p),
            spis
        })),
        data().prop_map(Payload::VendorId),
        selectors().prop_map(Payload::TsInitiator),
        selectors().prop_map(Payload::TsResponder),
        data().prop_map(Payload::Configuration),
        data().prop_map(Payload::Eap),
        (unknown_kind(), data()).prop_map(|(kind, data)| Payload::Unknown(UnknownPayload {
            kind,
            critical: false,
            data
        })),
    ]
}

pub(super) fn payloads() -> impl Strategy<Value = Vec<Payload>> {
    vec(payload(), 0..12)
}
