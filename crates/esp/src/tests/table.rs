//! The SPI table and its readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use crate::{SharedSpiTable, SpiTable};

#[test]
fn entries_go_in_once_and_come_out_once() {
    let mut table = SpiTable::new();
    for spi in [7, 3, u32::MAX, 256] {
        assert!(table.insert(spi, Arc::new(spi)).is_ok());
    }
    assert_eq!(table.insert(3, Arc::new(99)), Err(Arc::new(99)));
    assert_eq!(table.get(3).map(|value| **value), Some(3));
    assert_eq!(table.get(4), None);
    let order: Vec<u32> = table.iter().map(|(spi, _)| spi).collect();
    assert_eq!(order, [3, 7, 256, u32::MAX]);
    assert_eq!(table.remove(3).map(|value| *value), Some(3));
    assert_eq!(table.remove(3), None);
    assert_eq!(table.len(), 3);
    assert!(!table.is_empty());
}

#[test]
fn readers_see_a_change_at_their_next_look() {
    let shared = Arc::new(SharedSpiTable::new());
    let mut reader = shared.reader();
    assert!(reader.table().is_empty());
    shared
        .update(|table| table.insert(256, Arc::new("a")))
        .unwrap();
    assert!(reader.table().get(256).is_some());
    let old = shared.snapshot();
    shared.update(|table| table.remove(256));
    assert!(reader.table().get(256).is_none());
    assert!(old.get(256).is_some(), "a snapshot does not change");
}

#[test]
fn readers_never_see_half_a_change() {
    // Two SPIs always change together, as at a rekey.
    let shared = Arc::new(SharedSpiTable::new());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut reader = shared.reader();
                while !done.load(Relaxed) {
                    let table = reader.table();
                    let values = [1, 2].map(|spi| table.get(spi).map(|value| **value));
                    assert_eq!(values[0], values[1]);
                }
                assert_eq!(reader.table().get(1).map(|value| **value), Some(2000));
            });
        }
        for round in 1..=2000u32 {
            shared.update(|table| {
                for spi in [1, 2] {
                    table.remove(spi);
                    assert!(table.insert(spi, Arc::new(round)).is_ok());
                }
            });
        }
        done.store(true, Relaxed);
    });
}
