//! From an SPI to its SA, for many readers and a rare writer.
//!
//! Readers keep a snapshot each and look at one counter to learn whether it is
//! still the current one; they take the lock only after a change. So the lookup
//! for a packet neither locks nor allocates.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// SPIs and what they stand for, in order.
pub struct SpiTable<T> {
    entries: Vec<(u32, Arc<T>)>,
}

impl<T> SpiTable<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// What `spi` stands for.
    #[inline]
    pub fn get(&self, spi: u32) -> Option<&Arc<T>> {
        let index = self.entries.binary_search_by_key(&spi, |entry| entry.0);
        index.ok().map(|index| &self.entries[index].1)
    }

    /// Puts `value` under `spi`. What was there before stays, and `value` comes
    /// back as the error: two SAs on one SPI would lose packets of one of them.
    pub fn insert(&mut self, spi: u32, value: Arc<T>) -> Result<(), Arc<T>> {
        match self.entries.binary_search_by_key(&spi, |entry| entry.0) {
            Ok(_) => Err(value),
            Err(index) => {
                self.entries.insert(index, (spi, value));
                Ok(())
            }
        }
    }

    /// Takes `spi` out.
    pub fn remove(&mut self, spi: u32) -> Option<Arc<T>> {
        let index = self.entries.binary_search_by_key(&spi, |entry| entry.0);
        index.ok().map(|index| self.entries.remove(index).1)
    }

    /// Entries, in the order of their SPIs.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<T>)> {
        self.entries.iter().map(|(spi, value)| (*spi, value))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<T> Default for SpiTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for SpiTable<T> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
        }
    }
}

/// A table that threads share: one changes it, the others read snapshots.
pub struct SharedSpiTable<T> {
    current: Mutex<Arc<SpiTable<T>>>,
    /// Raised with each change, inside the lock.
    version: AtomicU64,
}

impl<T> SharedSpiTable<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            current: Mutex::new(Arc::new(SpiTable::new())),
            version: AtomicU64::new(0),
        }
    }

    /// Changes the table. Readers see all of the change or none, and all of it
    /// from their next look on once this has returned.
    pub fn update<R>(&self, change: impl FnOnce(&mut SpiTable<T>) -> R) -> R {
        let mut current = self.lock();
        let mut next = SpiTable::clone(&current);
        let result = change(&mut next);
        *current = Arc::new(next);
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// The table as it is now.
    pub fn snapshot(&self) -> Arc<SpiTable<T>> {
        Arc::clone(&self.lock())
    }

    /// A reader for one thread.
    pub fn reader(self: &Arc<Self>) -> SpiReader<T> {
        let (version, snapshot) = self.versioned();
        SpiReader {
            shared: Arc::clone(self),
            version,
            snapshot,
        }
    }

    fn versioned(&self) -> (u64, Arc<SpiTable<T>>) {
        let current = self.lock();
        // Inside the lock, so that the version belongs to this snapshot.
        (self.version.load(Ordering::Acquire), Arc::clone(&current))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<SpiTable<T>>> {
        // A change that panicked has not been put in: what stands is whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for SharedSpiTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// One thread's view of a shared table.
///
/// A removed SA lives until every reader has looked again: have idle threads
/// look now and then, or drop their readers.
pub struct SpiReader<T> {
    shared: Arc<SharedSpiTable<T>>,
    version: u64,
    snapshot: Arc<SpiTable<T>>,
}

impl<T> SpiReader<T> {
    /// The current table. Once a batch is often enough.
    #[inline]
    pub fn table(&mut self) -> &SpiTable<T> {
        if self.shared.version.load(Ordering::Acquire) != self.version {
            (self.version, self.snapshot) = self.shared.versioned();
        }
        &self.snapshot
    }
}
