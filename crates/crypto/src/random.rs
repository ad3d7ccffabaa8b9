//! Where random bytes come from.

use zeroize::Zeroize;

/// A source of random bytes, injected so that a simulation can be replayed.
pub trait Random {
    /// Overwrites all of `out` with random bytes.
    fn fill(&mut self, out: &mut [u8]);
}

impl<R: Random + ?Sized> Random for &mut R {
    fn fill(&mut self, out: &mut [u8]) {
        (**self).fill(out);
    }
}

impl<R: Random + ?Sized> Random for Box<R> {
    fn fill(&mut self, out: &mut [u8]) {
        (**self).fill(out);
    }
}

/// The operating system's randomness, through aws-lc-rs.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemRandom;

impl SystemRandom {
    /// The system's generator; it has no state of its own.
    pub fn new() -> Self {
        Self
    }
}

impl Random for SystemRandom {
    fn fill(&mut self, out: &mut [u8]) {
        // Going on with predictable bytes would be worse than stopping.
        aws_lc_rs::rand::fill(out).expect("the system's random generator works");
    }
}

/// A repeatable stream for tests and simulations: SHA-256 of seed and counter.
/// Its keys are no secret to anyone who knows the seed.
pub struct DangerousSeededRandom {
    seed: u64,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl DangerousSeededRandom {
    /// A stream that depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            counter: 0,
            block: [0; 32],
            used: 32,
        }
    }
}

impl Random for DangerousSeededRandom {
    fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == self.block.len() {
                self.block =
                    crate::sha256(&[&self.seed.to_be_bytes(), &self.counter.to_be_bytes()]);
                self.counter += 1;
                self.used = 0;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }
}

impl Drop for DangerousSeededRandom {
    fn drop(&mut self) {
        self.block.zeroize();
    }
}
