//! The replay window (RFC 4303 3.4.3 and appendix A), without a lock.
//!
//! The window is a ring of words. A word holds 32 consecutive sequence numbers
//! as bits, and in its upper half the number of the block they belong to. To
//! accept a sequence number is one compare-and-swap on one word: it sets the
//! bit, or, when the word still holds an older block, replaces it. A word only
//! ever moves to newer blocks, and a set bit stays until then; so a number is
//! accepted once at most, whichever threads try and in whatever order. The
//! highest number is kept beside, only to tell what is too old and to infer
//! the upper half of extended sequence numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::DropReason;
use crate::packet::low;

/// Window of an SA whose configuration names none, packets.
pub const DEFAULT_REPLAY_WINDOW: u32 = 4096;
/// The smallest window; less is raised to it, packets. Below it, several
/// queues alone reorder more than the window forgives.
pub const MIN_REPLAY_WINDOW: u32 = 1024;
/// The largest window; more is cut to it, packets.
pub const MAX_REPLAY_WINDOW: u32 = 1 << 20;

const BLOCK_BITS: u64 = 32;

/// A replay window that any number of threads may use at once.
pub struct ReplayWindow {
    /// Power of two of words, twice what the window needs: two blocks that are
    /// both inside the window then never share a word.
    words: Box<[AtomicU64]>,
    highest: AtomicU64,
    size: u64,
}

impl ReplayWindow {
    /// A window of `size` packets, raised or cut to the limits. Sequence
    /// number 0 counts as seen: the first packet of an SA has 1.
    pub fn new(size: u32) -> Self {
        Self::starting_after(size, 0)
    }

    /// A window in which `highest` and all before it count as seen.
    pub fn starting_after(size: u32, highest: u64) -> Self {
        let size = u64::from(size.clamp(MIN_REPLAY_WINDOW, MAX_REPLAY_WINDOW));
        let count = 2 * size.div_ceil(BLOCK_BITS).next_power_of_two();
        let last = highest / BLOCK_BITS;
        let word = |index: u64| {
            // The newest block up to `last` that this word can hold.
            let back = last.wrapping_sub(index) & (count - 1);
            let Some(block) = last.checked_sub(back) else {
                return AtomicU64::new(0);
            };
            let bits = if back == 0 {
                u64::from(u32::MAX) >> (BLOCK_BITS - 1 - highest % BLOCK_BITS)
            } else {
                u64::from(u32::MAX)
            };
            AtomicU64::new(u64::from(low(block)) << 32 | bits)
        };
        Self {
            words: (0..count).map(word).collect(),
            highest: AtomicU64::new(highest),
            size,
        }
    }

    /// Window size in packets.
    pub fn size(&self) -> u32 {
        low(self.size)
    }

    /// The highest sequence number accepted; 0 before the first.
    pub fn highest(&self) -> u64 {
        self.highest.load(Relaxed)
    }

    /// The full sequence number of a packet that carries `wire` as its lower
    /// half (RFC 4303 appendix A2.2). `None` when that would lie before the
    /// first or after the last number there is.
    #[inline]
    pub fn infer(&self, wire: u32) -> Option<u64> {
        let highest = self.highest();
        let (top, bottom) = ((highest >> 32) as u32, low(highest));
        let edge = bottom.wrapping_sub(low(self.size - 1));
        let upper = if u64::from(bottom) >= self.size - 1 {
            // Case A: the window lies within one cycle of the lower half.
            if wire >= edge {
                Some(top)
            } else {
                top.checked_add(1)
            }
        } else if wire >= edge {
            // Case B: it begins in the cycle before.
            top.checked_sub(1)
        } else {
            Some(top)
        };
        upper.map(|upper| u64::from(upper) << 32 | u64::from(wire))
    }

    /// Whether `sequence` would be accepted now. For before the integrity
    /// check; it changes nothing.
    #[inline]
    pub fn check(&self, sequence: u64) -> Result<(), DropReason> {
        if self.is_old(sequence) {
            return Err(DropReason::TooOld);
        }
        let (index, block, bit) = self.place(sequence);
        next_word(self.words[index].load(Relaxed), block, bit).map(|_| ())
    }

    /// Takes `sequence` as seen. For after the integrity check. Of any number
    /// of calls with one sequence number, one at most succeeds.
    #[inline]
    pub fn accept(&self, sequence: u64) -> Result<(), DropReason> {
        if self.is_old(sequence) {
            return Err(DropReason::TooOld);
        }
        let (index, block, bit) = self.place(sequence);
        let word = &self.words[index];
        // Relaxed is enough: a word is all there is to agree on. The loop ends:
        // each failure means another thread's bit or block went in.
        let mut seen = word.load(Relaxed);
        loop {
            let next = next_word(seen, block, bit)?;
            match word.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        // Most packets come in order; those that do not need not write here.
        if sequence > self.highest() {
            self.highest.fetch_max(sequence, Relaxed);
        }
        Ok(())
    }

    #[inline]
    fn is_old(&self, sequence: u64) -> bool {
        self.highest().saturating_sub(sequence) >= self.size
    }

    #[inline]
    fn place(&self, sequence: u64) -> (usize, u32, u64) {
        let block = sequence / BLOCK_BITS;
        let index = block as usize & (self.words.len() - 1);
        (index, low(block), 1 << (sequence % BLOCK_BITS))
    }
}

/// The word with the bit of `block` set.
#[inline]
fn next_word(word: u64, block: u32, bit: u64) -> Result<u64, DropReason> {
    let ahead = block.wrapping_sub((word >> 32) as u32);
    if ahead == 0 {
        if word & bit != 0 {
            return Err(DropReason::Replayed);
        }
        Ok(word | bit)
    } else if ahead < 1 << 31 {
        Ok(u64::from(block) << 32 | bit)
    } else {
        // Another thread has moved the word on: the window went past us.
        Err(DropReason::TooOld)
    }
}
