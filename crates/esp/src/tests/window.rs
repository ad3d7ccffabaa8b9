//! The replay window against a model that is plainly right, and under threads.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::thread;

use proptest::prelude::*;
use testudo_crypto::DangerousSeededRandom;

use super::{below, shuffle};
use crate::packet::low;
use crate::{DropReason, MIN_REPLAY_WINDOW, ReplayWindow};

/// Every number ever accepted, and the highest.
struct Model {
    size: u64,
    highest: u64,
    first: u64,
    seen: BTreeSet<u64>,
}

impl Model {
    fn starting_after(size: u32, highest: u64) -> Self {
        Self {
            size: u64::from(size),
            highest,
            first: highest,
            seen: BTreeSet::new(),
        }
    }

    fn accept(&mut self, sequence: u64) -> Result<(), DropReason> {
        if sequence.saturating_add(self.size) <= self.highest {
            return Err(DropReason::TooOld);
        }
        if sequence <= self.first || !self.seen.insert(sequence) {
            return Err(DropReason::Replayed);
        }
        self.highest = self.highest.max(sequence);
        Ok(())
    }
}

fn agrees(size: u32, start: u64, steps: &[i64]) -> Result<(), TestCaseError> {
    let window = ReplayWindow::starting_after(size, start);
    let mut model = Model::starting_after(window.size(), start);
    for step in steps {
        let sequence = model.highest.saturating_add_signed(*step);
        let expected = model.accept(sequence);
        prop_assert_eq!(window.check(sequence), expected);
        prop_assert_eq!(window.accept(sequence), expected);
        prop_assert_eq!(window.highest(), model.highest);
        if expected.is_ok() {
            prop_assert_eq!(window.check(sequence), Err(DropReason::Replayed));
        }
    }
    Ok(())
}

/// Mostly small steps, some as wide as the window, a few far wider.
fn step() -> impl Strategy<Value = i64> {
    prop_oneof![
        8 => -40i64..40,
        4 => -2100i64..2100,
        1 => -10_000i64..100_000,
        1 => 0i64..1 << 31,
    ]
}

proptest! {
    #[test]
    fn window_is_the_model(
        size in 0u32..3000,
        start in prop_oneof![Just(0u64), 0u64..5000, (1u64 << 32) - 2000..(1 << 32) + 2000,
                             (1u64 << 37) - 3000..(1 << 37) + 3000, 1u64 << 62..1 << 63],
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        agrees(size, start, &steps)?;
    }

    /// RFC 4303 A2.2: every number from the window's lower edge up to one cycle
    /// ahead is inferred from its lower half.
    #[test]
    fn inference_covers_a_whole_cycle(
        highest in prop_oneof![0u64..10_000, any::<u64>(), (1u64 << 32) - 9000..(1 << 32) + 9000],
        ahead in 0u64..1 << 32,
        size in 1024u32..5000,
    ) {
        let window = ReplayWindow::starting_after(size, highest);
        let offset = i128::from(ahead) - i128::from(size) + 1;
        let sequence = i128::from(highest) + offset;
        let wire = (sequence & 0xffff_ffff) as u32;
        prop_assert_eq!(window.infer(wire), u64::try_from(sequence).ok());
    }
}

#[test]
fn sizes_are_kept_within_limits() {
    assert_eq!(ReplayWindow::new(0).size(), MIN_REPLAY_WINDOW);
    assert_eq!(ReplayWindow::new(1500).size(), 1500);
    assert_eq!(ReplayWindow::new(u32::MAX).size(), 1 << 20);
}

#[test]
fn zero_is_never_accepted() {
    let window = ReplayWindow::new(1024);
    assert_eq!(window.accept(0), Err(DropReason::Replayed));
    assert_eq!(window.accept(1), Ok(()));
}

#[test]
fn shuffles_within_the_window_lose_nothing_on_four_threads() {
    const THREADS: usize = 4;
    const ROUNDS: u64 = 200;
    let window = ReplayWindow::new(1024);
    let size = u64::from(window.size());
    let accepted: Vec<AtomicU8> = (0..=ROUNDS * size).map(|_| AtomicU8::new(0)).collect();
    let drops = AtomicU64::new(0);
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (window, accepted, drops, barrier) = (&window, &accepted, &drops, &barrier);
            scope.spawn(move || {
                let mut random = DangerousSeededRandom::new(thread as u64);
                for round in 0..ROUNDS {
                    // Each round is as wide as the window, and every thread
                    // brings all of it: one of four copies must get through.
                    let mut numbers: Vec<u64> = (round * size + 1..=(round + 1) * size).collect();
                    shuffle(&mut numbers, &mut random);
                    barrier.wait();
                    for number in numbers {
                        assert_eq!(window.infer(low(number)), Some(number));
                        match window.accept(number) {
                            Ok(()) => accepted[number as usize].fetch_add(1, Relaxed),
                            Err(reason) => {
                                assert_eq!(reason, DropReason::Replayed);
                                drops.fetch_add(1, Relaxed) as u8
                            }
                        };
                    }
                    barrier.wait();
                }
            });
        }
    });
    assert!(accepted[1..].iter().all(|count| count.load(Relaxed) == 1));
    assert_eq!(drops.into_inner(), ROUNDS * size * (THREADS as u64 - 1));
    assert_eq!(window.highest(), ROUNDS * size);
}

#[test]
fn threads_that_run_apart_never_get_a_replay_through() {
    const THREADS: u64 = 4;
    const LAST: u64 = 200_000;
    let window = ReplayWindow::new(1024);
    let accepted: Vec<AtomicU8> = (0..=LAST + 5000).map(|_| AtomicU8::new(0)).collect();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (window, accepted) = (&window, &accepted);
            scope.spawn(move || {
                let mut random = DangerousSeededRandom::new(100 + thread);
                for base in 0..LAST {
                    let number = base + below(&mut random, 5000);
                    if window.check(number).is_ok() && window.accept(number).is_ok() {
                        accepted[number as usize].fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    assert!(accepted.iter().all(|count| count.load(Relaxed) <= 1));
    assert_eq!(accepted[0].load(Relaxed), 0);
    // All that was ever accepted is refused now, whatever the order.
    for number in 0..=window.highest() {
        if accepted[number as usize].load(Relaxed) == 1 {
            assert!(window.accept(number).is_err(), "{number} came in twice");
        }
    }
}
