//! Whole packets: layout, round trips, everything a bad one may be.

use proptest::prelude::*;
use testudo_crypto::{Aead, AeadKey};

use super::{KEYMAT, SPI, buffer, pair, seal};
use crate::packet::Aad;
use crate::{
    Counters, DropReason, HEAD_ROOM, MIN_PACKET_LEN, NEXT_HEADER_DUMMY, TAIL_ROOM, max_payload,
    sealed_len, spi_of,
};

#[test]
fn every_payload_length_makes_the_round_trip() {
    let (out, inbound) = pair(true);
    let payload: Vec<u8> = (0..u16::MAX).map(|n| n as u8).collect();
    let lengths = (0..=1700).chain([8999, 9000, 65_000, 65_534, 65_535]);
    let (mut packets, mut bytes) = (0, 0);
    for len in lengths {
        let payload = &payload[..len];
        let (mut packet, sealed) = seal(&out, payload);
        assert_eq!(sealed.len, sealed_len(len));
        assert_eq!(sealed.len % 4, 0);
        assert!(sealed.len <= HEAD_ROOM + len + TAIL_ROOM);
        assert_eq!(spi_of(&packet), Some(SPI));
        assert!(len < 16 || packet[HEAD_ROOM..HEAD_ROOM + len] != *payload);

        let opened = inbound.open(&mut packet).unwrap();
        assert_eq!(&packet[opened.payload], payload, "length {len}");
        assert_eq!(opened.next_header, 4);
        assert_eq!(opened.sequence, sealed.sequence);
        packets += 1;
        bytes += len as u64;
        assert_eq!(opened.first, packets == 1);
    }
    for counters in [out.counters(), inbound.counters()] {
        assert_eq!((counters.packets, counters.bytes), (packets, bytes));
        assert_eq!(counters.sequence, packets);
        assert!(counters.drops().all(|(_, count)| count == 0));
    }
}

#[test]
fn padding_is_counted_and_aligned() {
    // RFC 4303 2.4: 1, 2, 3 and so on, up to a multiple of four.
    let (out, _) = pair(true);
    let key = AeadKey::new(Aead::Aes256Gcm16, &KEYMAT).unwrap();
    for (len, padding) in [(2, &[][..]), (1, &[1]), (0, &[1, 2]), (3, &[1, 2, 3])] {
        let (mut packet, sealed) = seal(&out, &vec![9; len]);
        let iv: [u8; 8] = packet[8..16].try_into().unwrap();
        assert_eq!(iv, sealed.sequence.to_be_bytes());
        let aad = Aad::new(SPI, sealed.sequence, true);
        let (body, icv) = packet[16..].split_last_chunk_mut().unwrap();
        key.open_in_place(iv, aad.as_bytes(), body, icv).unwrap();
        let trailer = [padding, &[padding.len() as u8, 4]].concat();
        assert_eq!(body, [vec![9; len], trailer].concat());
    }
}

#[test]
fn tfc_padding_is_zero_bytes_behind_the_payload() {
    let (out, inbound) = pair(true);
    for tfc in [0, 1, 2, 3, 4, 100, 1000] {
        let payload = [0x45; 77];
        let mut packet = buffer(&payload, tfc);
        let sealed = out.seal_padded(&mut packet, 77, tfc, 4).unwrap();
        assert_eq!(sealed.len, sealed_len(77 + tfc));
        let opened = inbound.open(&mut packet[..sealed.len]).unwrap();
        let inner = &packet[opened.payload];
        assert_eq!(inner[..77], payload);
        assert_eq!(inner[77..], vec![0; tfc]);
    }
}

#[test]
fn max_payload_is_the_inverse_of_sealed_len() {
    for room in 0..3000 {
        let len = max_payload(room);
        assert!(len == 0 || sealed_len(len) <= room);
        assert!(sealed_len(len + 1) > room);
    }
}

#[test]
fn a_buffer_without_room_costs_no_sequence_number() {
    let (out, _) = pair(false);
    for (room, payload, tfc) in [
        (0, 0, 0),
        (sealed_len(10) - 1, 10, 0),
        (100, 101, 0),
        (100, usize::MAX, 0),
        (100, 10, usize::MAX),
        (100, usize::MAX, usize::MAX),
        (100, 90, 90),
    ] {
        let mut buffer = vec![0; room];
        let result = out.seal_padded(&mut buffer, payload, tfc, 4);
        assert_eq!(result, Err(DropReason::NoRoom));
    }
    assert_eq!(out.counters().dropped(DropReason::NoRoom), 7);
    assert_eq!(out.counters().packets, 0);
    let mut exact = vec![0; sealed_len(10)];
    assert_eq!(out.seal(&mut exact, 10, 4).unwrap().sequence, 1);
}

/// Seals `body`, trailer included, as the peer would.
fn forge(sequence: u64, body: &[u8]) -> Vec<u8> {
    let key = AeadKey::new(Aead::Aes256Gcm16, &KEYMAT).unwrap();
    let mut body = body.to_vec();
    let (iv, aad) = (sequence.to_be_bytes(), Aad::new(SPI, sequence, true));
    let icv = key.seal_in_place(iv, aad.as_bytes(), &mut body);
    let wire = (sequence as u32).to_be_bytes();
    [&SPI.to_be_bytes()[..], &wire, &iv, &body, &icv].concat()
}

#[test]
fn authentic_packets_with_bad_padding_are_dropped() {
    let (_, inbound) = pair(true);
    let bad: [&[u8]; 5] = [
        &[1, 4],
        &[0, 2, 1, 4],
        &[1, 1, 2, 4],
        &[9, 9, 9, 255, 4],
        &[2, 1, 2, 4],
    ];
    for (index, body) in bad.into_iter().enumerate() {
        let mut packet = forge(index as u64 + 1, body);
        assert_eq!(inbound.open(&mut packet), Err(DropReason::BadPadding));
        // It was authentic, so its number is used up.
        let mut again = forge(index as u64 + 1, body);
        assert_eq!(inbound.open(&mut again), Err(DropReason::Replayed));
    }
    let counters = inbound.counters();
    assert_eq!(counters.dropped(DropReason::BadPadding), 5);
    assert_eq!(counters.dropped(DropReason::Replayed), 5);
    assert_eq!(counters.packets, 0);

    // As long as it fits and counts up, any length of padding is fine.
    let long: Vec<u8> = (1..=255).chain([255, 4]).collect();
    let mut packet = forge(50, &long);
    assert!(inbound.open(&mut packet).unwrap().payload.is_empty());
}

#[test]
fn dummy_packets_are_dropped_under_their_own_name() {
    let (_, inbound) = pair(true);
    let mut packet = forge(1, &[7, 7, 0, NEXT_HEADER_DUMMY]);
    assert_eq!(inbound.open(&mut packet), Err(DropReason::Dummy));
    assert_eq!(inbound.counters().dropped(DropReason::Dummy), 1);
    assert!(inbound.open(&mut forge(2, &[0, 4])).unwrap().first);
}

#[test]
fn short_packets_and_foreign_spis_are_dropped() {
    let (out, inbound) = pair(true);
    let (packet, _) = seal(&out, &[]);
    for len in 0..MIN_PACKET_LEN {
        let result = inbound.open(&mut packet[..len].to_vec());
        assert_eq!(result, Err(DropReason::TooShort));
    }
    let mut foreign = packet.clone();
    foreign[3] ^= 1;
    assert_eq!(inbound.open(&mut foreign), Err(DropReason::SpiMismatch));
    let counters = inbound.counters();
    assert_eq!(
        counters.dropped(DropReason::TooShort),
        MIN_PACKET_LEN as u64
    );
    assert_eq!(counters.dropped(DropReason::SpiMismatch), 1);
    assert_eq!(spi_of(&packet[..3]), None);
    assert!(inbound.open(&mut packet.clone()).is_ok());
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed() {
    let (out, inbound) = pair(true);
    let (good, _) = seal(&out, b"the payload");
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 0x40;
        assert!(inbound.open(&mut bad).is_err(), "byte {index}");
        let mut cut = good[..index].to_vec();
        assert!(inbound.open(&mut cut).is_err(), "cut to {index}");
    }
    let mut long = [&good[..], &[0]].concat();
    assert_eq!(inbound.open(&mut long), Err(DropReason::BadIntegrity));
    // None of it has moved the window.
    assert_eq!(inbound.counters().sequence, 0);
    assert!(inbound.open(&mut good.clone()).unwrap().first);
    assert_eq!(inbound.open(&mut good.clone()), Err(DropReason::Replayed));
}

#[test]
fn the_two_ends_must_agree_on_esn() {
    let ((out, _), (_, inbound)) = (pair(true), pair(false));
    let (mut packet, _) = seal(&out, b"payload");
    assert_eq!(inbound.open(&mut packet), Err(DropReason::BadIntegrity));
}

#[test]
fn reasons_have_names_of_their_own() {
    let mut names: Vec<&str> = DropReason::ALL.map(DropReason::as_str).to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), DropReason::ALL.len());
    for (index, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
        assert!(reason.as_str().starts_with("esp_"));
    }
    assert_eq!(Counters::default().drops().count(), DropReason::ALL.len());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_open(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ours in any::<bool>(),
        esn in any::<bool>(),
    ) {
        let (_, inbound) = pair(esn);
        if ours && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&SPI.to_be_bytes());
        }
        prop_assert!(inbound.open(&mut bytes).is_err());
        prop_assert_eq!(inbound.counters().sequence, 0);
        let dropped: u64 = inbound.counters().drops().map(|(_, count)| count).sum();
        prop_assert_eq!(dropped, 1);
    }

    #[test]
    fn arbitrary_authentic_bodies_never_panic(
        body in proptest::collection::vec(any::<u8>(), 2..300),
        sequence in 1u64..1 << 31,
    ) {
        let (_, inbound) = pair(true);
        let mut packet = forge(sequence, &body);
        if let Ok(opened) = inbound.open(&mut packet) {
            prop_assert!(opened.payload.end <= HEAD_ROOM + body.len() - 2);
        }
    }

    #[test]
    fn any_payload_makes_the_round_trip(
        payload in proptest::collection::vec(any::<u8>(), 0..2000),
        tfc in 0usize..64,
        next_header in any::<u8>().prop_filter("a dummy", |next| *next != NEXT_HEADER_DUMMY),
        esn in any::<bool>(),
    ) {
        let (out, inbound) = pair(esn);
        let mut packet = buffer(&payload, tfc);
        let sealed = out.seal_padded(&mut packet, payload.len(), tfc, next_header).unwrap();
        let opened = inbound.open(&mut packet[..sealed.len]).unwrap();
        prop_assert_eq!(opened.next_header, next_header);
        prop_assert_eq!(&packet[opened.payload][..payload.len()], &payload[..]);
    }
}
