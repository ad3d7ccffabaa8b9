//! The ends of the sequence numbers, soft limits, and threads on one pair.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

use testudo_crypto::DangerousSeededRandom;

use super::{pair, pair_after, seal, shuffle};
use crate::{DropReason, HEAD_ROOM, SoftLimit, SoftLimits, sealed_len};

const CYCLE: u64 = 1 << 32;

#[test]
fn without_esn_sealing_stops_before_the_number_wraps() {
    let (out, inbound) = pair_after(false, SoftLimits::NONE, CYCLE - 1000);
    for number in CYCLE - 999..CYCLE {
        let (mut packet, sealed) = seal(&out, b"payload");
        assert_eq!(sealed.sequence, number);
        // A successor is asked for long before the end, and once.
        let asked = (number == CYCLE - 999).then_some(SoftLimit::Packets);
        assert_eq!(sealed.soft_limit, asked);
        assert_eq!(inbound.open(&mut packet).unwrap().sequence, number);
    }
    let mut buffer = vec![0; 100];
    for _ in 0..10 {
        let result = out.seal(&mut buffer, 7, 4);
        assert_eq!(result, Err(DropReason::SequenceExhausted));
        assert_eq!(buffer, vec![0; 100], "nothing is written");
    }
    let counters = out.counters();
    assert_eq!(counters.packets, 999);
    assert_eq!(counters.sequence, CYCLE - 1);
    assert_eq!(counters.dropped(DropReason::SequenceExhausted), 10);
}

#[test]
fn without_esn_the_soft_limit_comes_at_three_quarters() {
    let quarters = (CYCLE - 1) / 4 * 3;
    let (out, _) = pair_after(false, SoftLimits::NONE, quarters - 2);
    assert_eq!(seal(&out, b"").1.soft_limit, None);
    assert_eq!(seal(&out, b"").1.soft_limit, Some(SoftLimit::Packets));
    assert_eq!(seal(&out, b"").1.soft_limit, None);
}

#[test]
fn with_esn_nothing_is_lost_when_the_lower_half_wraps() {
    for seed in 0..5 {
        let start = CYCLE * (seed + 1) - 5000;
        let (out, inbound) = pair_after(true, SoftLimits::NONE, start);
        let mut random = DangerousSeededRandom::new(seed);
        let mut packets: Vec<_> = (0..10_000).map(|_| seal(&out, b"payload")).collect();
        for batch in packets.chunks_mut(4096) {
            shuffle(batch, &mut random);
        }
        for (packet, sealed) in &packets {
            let opened = inbound.open(&mut packet.clone()).unwrap();
            assert_eq!(opened.sequence, sealed.sequence);
        }
        for (packet, _) in &mut packets {
            assert!(inbound.open(packet).is_err(), "a replay came through");
        }
        let counters = inbound.counters();
        assert_eq!(counters.packets, 10_000);
        assert_eq!(counters.sequence, start + 10_000);
        let replays = counters.dropped(DropReason::Replayed)
            + counters.dropped(DropReason::TooOld)
            // Far behind the window, a number reads as one of the next cycle.
            + counters.dropped(DropReason::BadIntegrity);
        assert_eq!(replays, 10_000);
    }
}

#[test]
fn with_esn_a_gap_of_less_than_a_cycle_is_bridged() {
    let (out, _) = pair_after(true, SoftLimits::NONE, CYCLE - 5000);
    let (_, inbound) = pair(true);
    let (mut packet, _) = seal(&out, b"payload");
    assert_eq!(inbound.open(&mut packet).unwrap().sequence, CYCLE - 4999);
}

#[test]
fn with_esn_sealing_stops_as_well() {
    let (out, _) = pair_after(true, SoftLimits::NONE, (1 << 63) - 1);
    assert_eq!(seal(&out, b"").1.sequence, 1 << 63);
    let result = out.seal(&mut [0; 100], 0, 4);
    assert_eq!(result, Err(DropReason::SequenceExhausted));
}

#[test]
fn soft_limits_are_told_once() {
    let packets = SoftLimits {
        packets: 3,
        ..SoftLimits::NONE
    };
    let (out, _) = pair_after(true, packets, 0);
    let told: Vec<_> = (0..6).map(|_| seal(&out, b"1234").1.soft_limit).collect();
    let at = |index, limit| {
        let mut expected = vec![None; 6];
        expected[index] = Some(limit);
        expected
    };
    assert_eq!(told, at(2, SoftLimit::Packets));

    let bytes = SoftLimits {
        bytes: 10,
        ..SoftLimits::NONE
    };
    let (out, _) = pair_after(true, bytes, 0);
    let told: Vec<_> = (0..6).map(|_| seal(&out, b"1234").1.soft_limit).collect();
    assert_eq!(told, at(2, SoftLimit::Bytes));
    assert_eq!(out.counters().bytes, 24, "it goes on sealing");
}

#[test]
fn four_threads_share_a_pair_without_loss() {
    const EACH: usize = 1000;
    let limits = SoftLimits {
        packets: 2000,
        bytes: u64::MAX,
    };
    let (out, inbound) = pair_after(true, limits, CYCLE - 2000);
    let sent = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let packet = seal(&out, b"payload");
                    sent.lock().unwrap().push(packet);
                }
            });
        }
    });
    let mut sent = sent.into_inner().unwrap();
    let numbers: BTreeSet<u64> = sent.iter().map(|(_, sealed)| sealed.sequence).collect();
    assert_eq!(numbers.len(), 4 * EACH, "no number is used twice");
    let told = sent
        .iter()
        .filter(|(_, sealed)| sealed.soft_limit.is_some());
    assert_eq!(told.count(), 1);

    // All four thousand fit into the window, in any order, each twice.
    shuffle(&mut sent, &mut DangerousSeededRandom::new(5));
    let firsts: usize = thread::scope(|scope| {
        let open = |_| {
            scope.spawn(|| {
                let opened = sent.iter().filter_map(|(packet, _)| {
                    let opened = inbound.open(&mut packet.clone()).ok()?;
                    assert_eq!(&packet[..4], &inbound.spi().to_be_bytes());
                    Some(usize::from(opened.first))
                });
                opened.sum::<usize>()
            })
        };
        let threads: Vec<_> = (0..4).map(open).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(firsts, 1, "the first packet is told once");
    let counters = inbound.counters();
    assert_eq!(counters.packets, 4 * EACH as u64);
    assert_eq!(counters.dropped(DropReason::Replayed), 12 * EACH as u64);
    assert_eq!(counters.bytes, 7 * 4 * EACH as u64);
    assert_eq!(out.spi(), inbound.spi());
}

#[test]
fn a_pair_carries_packets_sealed_next_to_each_other() {
    // A batch in one buffer: each packet is sealed inside its own slice.
    let (out, inbound) = pair(true);
    let len = sealed_len(50);
    let mut batch = vec![0; 10 * len];
    for (index, slot) in batch.chunks_mut(len).enumerate() {
        slot[HEAD_ROOM..HEAD_ROOM + 50].fill(index as u8);
        assert_eq!(out.seal(slot, 50, 4).unwrap().len, len);
    }
    for (index, slot) in batch.chunks_mut(len).enumerate() {
        let opened = inbound.open(slot).unwrap();
        assert_eq!(slot[opened.payload], [index as u8; 50]);
    }
}
