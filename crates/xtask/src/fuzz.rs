//! libFuzzer on the targets of `crates/fuzz`.
//!
//! No cargo-fuzz and no nightly: the compiler's coverage pass is asked for by flags that stable
//! has, and libfuzzer-sys brings libFuzzer as source. What is found goes to `target/fuzz`; the
//! corpus in the tree changes only with `--merge`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::run;

/// What cargo-fuzz sets for `--sanitizer none`: the code under test is safe Rust, so that
/// coverage is all that is wanted.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// `cargo xtask fuzz [TARGET] [--seconds N] [--merge]`.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<u8> {
    let mut seconds = 60u32;
    let mut merge = false;
    let mut only = None;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "--merge" => merge = true,
            "--seconds" => {
                let number = words.next().and_then(|n| n.parse().ok());
                seconds = number.context("--seconds wants a number")?;
            }
            name if !name.starts_with('-') && only.is_none() => only = Some(name.to_owned()),
            other => bail!("unknown: {other}; cargo xtask fuzz [TARGET] [--seconds N] [--merge]"),
        }
    }
    let corpus = run::root().join("fuzz/corpus");
    let mut targets: Vec<String> = std::fs::read_dir(&corpus)
        .with_context(|| corpus.display().to_string())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    targets.sort();
    if let Some(name) = only {
        if !targets.contains(&name) {
            bail!("no target {name}; there are {}", targets.join(", "));
        }
        targets = vec![name];
    }
    let program = build()?;
    let mut failed = false;
    for target in targets {
        let kept = corpus.join(&target);
        failed |= if merge {
            !merge_into(&program, &target, &kept)?
        } else {
            !fuzz(&program, &target, &kept, seconds)?
        };
    }
    Ok(u8::from(failed))
}

fn work() -> anyhow::Result<PathBuf> {
    Ok(run::target_directory()?.join("fuzz"))
}

fn build() -> anyhow::Result<PathBuf> {
    if !run::installed("c++") {
        bail!(
            "libFuzzer is C++; run this, then try again:\n  \
             sudo apt-get install -y --no-install-recommends g++"
        );
    }
    let (folder, host) = (work()?, host()?);
    eprintln!("==> fuzz: building into {}", folder.display());
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--profile", "fuzz"])
        .args(["--package", "testudo-fuzz", "--features", "libfuzzer"])
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", COVERAGE)
        .current_dir(run::root())
        .status()
        .context("cargo could not be started")?;
    if !status.success() {
        bail!("the fuzzer was not built ({status})");
    }
    Ok(folder.join(host).join("fuzz/testudo-fuzz"))
}

/// This machine's target, named so that build scripts are built without the flags.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let text = output.context("rustc could not be started")?.stdout;
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("rustc -vV names no host")
}

/// Runs a target; false when it found something.
fn fuzz(program: &Path, target: &str, kept: &Path, seconds: u32) -> anyhow::Result<bool> {
    let found = work()?.join("corpus").join(target);
    let artifacts = work()?.join("artifacts");
    std::fs::create_dir_all(&found)?;
    std::fs::create_dir_all(&artifacts)?;
    eprintln!("==> fuzz {target}: {seconds} s");
    let status = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", longest(target)))
        .arg(format!(
            "-artifact_prefix={}/{target}-",
            artifacts.display()
        ))
        .args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"])
        // Long inputs from the start: many steps, whole chains.
        .args(["-len_control=0", "-verbosity=0"])
        .arg(&found)
        .arg(kept)
        .env("TESTUDO_FUZZ_TARGET", target)
        .env("RUST_BACKTRACE", "1")
        .status()
        .with_context(|| program.display().to_string())?;
    if !status.success() {
        println!(
            "{target}: something was found. Copy the input that is named above into \
             fuzz/corpus/{target} and see it fail with\n  cargo test -p testudo-fuzz {target}"
        );
    }
    Ok(status.success())
}

/// Takes the inputs that reach more into the tree.
fn merge_into(program: &Path, target: &str, kept: &Path) -> anyhow::Result<bool> {
    let found = work()?.join("corpus").join(target);
    std::fs::create_dir_all(&found)?;
    let status = Command::new(program)
        .args(["-set_cover_merge=1", "-verbosity=0"])
        .arg(format!("-max_len={}", longest(target)))
        .args([kept, &found])
        .env("TESTUDO_FUZZ_TARGET", target)
        .status()
        .with_context(|| program.display().to_string())?;
    Ok(status.success())
}

/// As the target's own table has it (crates/fuzz/src/lib.rs), where a test holds inputs to it.
fn longest(target: &str) -> usize {
    match target {
        "message" | "certificate" => 2048,
        "engine" => 512,
        _ => 1024,
    }
}
