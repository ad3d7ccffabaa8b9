//! What the fuzzer does with its bytes. Each target is a plain function: libFuzzer calls it
//! (`cargo xtask fuzz`), and a test replays the corpus in the tree and some seeded changes to it
//! on any machine.
#![forbid(unsafe_code)]

mod bytes;
mod certificate;
mod der;
mod engine;
mod esp;
mod inner;
mod message;
mod pair;
pub mod seeds;

/// A target.
pub struct Target {
    /// Its name: `cargo xtask fuzz NAME`, `fuzz/corpus/NAME`.
    pub name: &'static str,
    /// Panics where something is wrong with what the bytes bring about.
    pub run: fn(&[u8]),
    /// Longer inputs bring nothing new.
    pub max_len: usize,
}

/// All targets.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "message",
        run: message::run,
        max_len: 2048,
    },
    Target {
        name: "inner",
        run: inner::run,
        max_len: 1024,
    },
    Target {
        name: "engine",
        run: engine::run,
        max_len: 512,
    },
    Target {
        name: "certificate",
        run: certificate::run,
        max_len: 2048,
    },
    Target {
        name: "esp",
        run: esp::run,
        max_len: 1024,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
