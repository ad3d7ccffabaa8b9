//! Everything that CI runs.
//!
//! Labs are real time on a shared machine. A lab that fails is run a second time, alone; the
//! summary names it as unstable, so that nobody takes a lucky second run for a sound first one.

mod guests;
mod programs;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{deny, guest, house, kube, packages, run};
use programs::Program;

/// Crates whose tests make namespaces or start daemons, all of them.
const IN_NAMESPACES: [&str; 3] = ["datapath-user", "interop", "lab"];
/// Crates of which those beside the source do not.
const IN_CLUSTERS: [&str; 3] = ["kube-env", "store-kube", "testudo"];

/// How much to run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope<'a> {
    /// All of it.
    All,
    /// Without the labs and the guests: seconds instead of minutes.
    WithoutLabs,
    /// The guests alone, and of these the one with this kernel.
    Guests(Option<&'a str>),
}

/// What test binaries said.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: Vec<String>,
    unstable: Vec<String>,
}

impl Tally {
    /// Takes in a line that a test binary printed; whether it is its summary.
    fn take(&mut self, line: &str) -> bool {
        // Not captured, a test's first line stands behind its name.
        let named = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "));
        let said = named.map_or(line, |(_, said)| said);
        if let Some(reason) = said.trim().strip_prefix("SKIPPED ") {
            self.skipped.push(reason.to_owned());
        }
        let Some((passed, failed)) = summary(line) else {
            return false;
        };
        self.passed += passed;
        self.failed += failed;
        true
    }

    fn add(&mut self, mut other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.append(&mut other.skipped);
        self.unstable.append(&mut other.unstable);
    }
}

/// Runs it all; the exit code.
pub(crate) fn run(scope: Scope<'_>) -> anyhow::Result<u8> {
    let start = Instant::now();
    let mut tally = Tally::default();
    if let Scope::Guests(kernel) = scope {
        packages::ensure_all()?;
        guests::run(&mut tally, kernel)?;
        return Ok(finish(tally, start));
    }
    packages::ensure_all()?;
    run::step("format", &["cargo", "fmt", "--all", "--check"])?;
    house::check()?;
    let lints = [
        "cargo",
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    run::step("lints", &lints)?;
    guest::targets::lint()?;
    deny::check()?;
    let programs = programs::build()?;
    for name in IN_NAMESPACES.iter().chain(&IN_CLUSTERS) {
        if !programs.iter().any(|program| program.of == *name) {
            bail!(
                "crates/{name} has no tests any more, and is named among those that make namespaces"
            );
        }
    }
    let (labs, others): (Vec<_>, Vec<_>) = programs.iter().partition(|program| is_lab(program));
    for program in others {
        tests(&mut tally, program, &[])?;
    }
    cargo_tests(&mut tally, "documents", &["--workspace", "--doc"], &[])?;
    if scope == Scope::All {
        kube::ensure()?;
        for program in labs {
            // What makes namespaces runs one test at a time: two labs on two cores disturb each other.
            // Daemons that mostly wait, without load, do not.
            let threads = match program.of.as_str() {
                "interop" => "--test-threads=8",
                _ => "--test-threads=1",
            };
            twice(&mut tally, &program.title(), |tally| {
                tests(tally, program, &[threads])
            })?;
        }
        guests::run(&mut tally, None)?;
    }
    Ok(finish(tally, start))
}

/// Whether its tests run in real time.
fn is_lab(program: &Program) -> bool {
    let of = program.of.as_str();
    IN_NAMESPACES.contains(&of) || IN_CLUSTERS.contains(&of) && !program.unit
}

/// The summary, and the exit code.
fn finish(mut tally: Tally, start: Instant) -> u8 {
    for line in &tally.skipped {
        println!("skipped: {line}");
    }
    for name in &tally.unstable {
        println!("unstable: {name} failed once and passed when run again");
    }
    if std::env::var_os("CI").is_some() && !tally.skipped.is_empty() {
        println!(
            "error: CI skips nothing, and {} tests were skipped",
            tally.skipped.len()
        );
        tally.failed += 1;
    }
    eprintln!("    all: {:.0} s", start.elapsed().as_secs_f32());
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed,
        tally.skipped.len()
    );
    u8::from(tally.failed > 0)
}

/// Runs what runs in real time, and again when it fails: then it is unstable, or broken.
fn twice(
    tally: &mut Tally,
    name: &str,
    run: impl Fn(&mut Tally) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut first = Tally::default();
    run(&mut first)?;
    if first.failed > 0 {
        eprintln!("    {name}: failed; once more");
        first = Tally::default();
        run(&mut first)?;
        if first.failed == 0 {
            tally.unstable.push(name.to_owned());
        }
    }
    tally.add(first);
    Ok(())
}

/// Runs a program of tests and adds up what it says.
fn tests(tally: &mut Tally, program: &Program, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = program.command();
    command.args(arguments);
    let title = program.title();
    eprintln!(
        "==> {title}: {} {}",
        command.get_program().display(),
        arguments.join(" ")
    );
    count(tally, &title, command)
}

/// Runs `cargo test` and adds up what it says.
fn cargo_tests(
    tally: &mut Tally,
    name: &str,
    target: &[&str],
    arguments: &[&str],
) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(target)
        .args(["--", "--show-output"])
        .args(arguments)
        .current_dir(run::root());
    eprintln!(
        "==> {name}: cargo test {} -- {}",
        target.join(" "),
        arguments.join(" ")
    );
    count(tally, name, command)
}

/// Runs what runs tests, passes its output through and adds up what it says.
fn count(tally: &mut Tally, name: &str, mut command: Command) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut child = command
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} could not be started"))?;
    let output = child.stdout.take().context("tests without an output")?;
    let failed_before = tally.failed;
    let mut binaries = 0;
    for line in BufReader::new(output).lines() {
        let line = line.context("reading what the tests print")?;
        binaries += u32::from(tally.take(&line));
        println!("{line}");
    }
    let status = child.wait().context("waiting for the tests")?;
    eprintln!("    {name}: {:.1} s", start.elapsed().as_secs_f32());
    if !status.success() && tally.failed == failed_before {
        // It did not compile, or a test binary died before it could count.
        if status.code().is_none() {
            bail!("{name}: the tests were ended ({status})");
        }
        tally.failed += 1;
    } else if status.success() && binaries == 0 {
        println!("error: {name} counted no tests");
        tally.failed += 1;
    }
    Ok(())
}

/// `test result: ok. 12 passed; 0 failed; …` in numbers.
fn summary(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        rest.split(['.', ';'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_is_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test a ... ok"), None);
    }

    #[test]
    fn what_is_skipped_is_seen_captured_or_not() {
        let mut tally = Tally::default();
        for line in [
            "SKIPPED a: why",
            "test b ... SKIPPED b: why",
            "test c ... ok",
        ] {
            assert!(!tally.take(line));
        }
        assert_eq!(tally.skipped, ["a: why", "b: why"]);
    }
}
