//! Each input of the corpus, and seeded changes to it, on any machine and without libFuzzer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use testudo_crypto::{DangerousSeededRandom, Random};
use testudo_fuzz::{TARGETS, Target, seeds, target};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name)
}

/// The corpus in the tree, in a fixed order.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = folder(target.name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| (path.display().to_string(), std::fs::read(&path).unwrap());
    paths.into_iter().map(read).collect()
}

/// Says which input it is that panics.
fn run(target: &Target, name: &str, data: &[u8]) {
    struct Name<'a>(&'a str, &'a [u8]);
    impl Drop for Name<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let hex: String = self.1.iter().map(|b| format!("{b:02x}")).collect();
                eprintln!("input {}: {hex}", self.0);
            }
        }
    }
    let _shown = Name(name, data);
    (target.run)(data);
}

fn below(random: &mut DangerousSeededRandom, limit: usize) -> usize {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    (u64::from_be_bytes(bytes) % limit.max(1) as u64) as usize
}

/// What a fuzzer does without looking: bytes change, go, come; two inputs become one.
fn change(random: &mut DangerousSeededRandom, data: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=below(random, 4) {
        let at = below(random, data.len() + 1);
        match below(random, 5) {
            0 if at < data.len() => data[at] = below(random, 256) as u8,
            1 if at < data.len() => data[at] ^= 1 << below(random, 8),
            2 => data.truncate(at),
            3 => {
                let from = below(random, other.len() + 1);
                data.splice(at.., other[from..].iter().copied());
            }
            _ => data.insert(at, below(random, 256) as u8),
        }
    }
}

/// The corpus as it is, then `count` changed inputs. `FUZZ_SEED` chooses others.
fn replay(name: &str, count: usize) {
    let target = target(name).unwrap();
    let corpus = corpus(target);
    assert!(corpus.len() >= 8, "the corpus of {name} is almost empty");
    for (name, data) in &corpus {
        assert!(data.len() <= target.max_len, "{name} is too long");
        run(target, name, data);
    }
    let seed = std::env::var("FUZZ_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = DangerousSeededRandom::new(seed);
    for n in 0..count {
        let (name, data) = &corpus[below(&mut random, corpus.len())];
        let other = &corpus[below(&mut random, corpus.len())].1;
        let mut data = data.clone();
        change(&mut random, &mut data, other);
        data.truncate(target.max_len);
        run(target, &format!("{n} of seed {seed}, from {name}"), &data);
    }
}

#[test]
fn message() {
    replay("message", 20_000);
}

#[test]
fn inner() {
    replay("inner", 300);
}

#[test]
fn engine() {
    replay("engine", 150);
}

#[test]
fn certificate() {
    replay("certificate", 2_000);
}

#[test]
fn esp() {
    replay("esp", 1_000);
}

/// Seeds still are what they were made to be: runs that go well.
#[test]
fn seeds_run() {
    for target in &TARGETS {
        let seeds = seeds::of(target.name);
        assert!(seeds.len() >= 8, "{}", target.name);
        for (name, data) in seeds {
            assert!(data.len() <= target.max_len, "{name}");
            run(target, &name, &data);
        }
    }
}
