//! The tests that need a kernel with ESP: one guest for each kernel, with all targets in turn.
//! User-mode-linux and QEMU each run on one processor: they run side by side.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Tally, cargo_tests, twice};
use crate::guest::batch::{self, Event, Manner, Outcome, Program};
use crate::guest::targets::{self, Target};
use crate::{kube, run};

/// A target's time, and what a guest may take to say that it was over.
const MANNER: Manner = Manner {
    before: &batch::ALONE,
    program: Duration::from_secs(1500),
    grace: Duration::from_secs(90),
};

/// A guest's start, which has limits of its own; this is beyond them.
const START: Duration = Duration::from_secs(600);

/// What an emulated guest has, MiB: labs with Open vSwitch and OVN run there.
const EMULATED_MEMORY: &str = "2048";

/// Whole clusters of Kubernetes under a kernel with ESP: what `cargo xtask test --guests clusters` runs alone.
pub(crate) const CLUSTERS: &str = "clusters";

/// What the name of such a target holds.
const KUBERNETES: &str = "kube";

/// A cluster's guest has so much memory, MiB; it takes no more than it uses.
const CLUSTER_MEMORY: &str = "4096";

/// The kernel that is an ordinary process.
const UML: &str = "uml";

fn is_cluster(target: &Target) -> bool {
    target.name.contains(KUBERNETES)
}

/// Runs those of one kernel, or all of them and the tests of guests themselves.
pub(super) fn run(tally: &mut Tally, only: Option<&str>) -> anyhow::Result<()> {
    let start = Instant::now();
    if only.is_none() {
        of_guests(tally)?;
    }
    let mut targets = targets::all()?;
    let clusters = only == Some(CLUSTERS);
    if clusters {
        targets.retain(is_cluster);
    } else if let Some(only) = only {
        for target in &mut targets {
            target.kernels.retain(|kernel| kernel == only);
        }
        targets.retain(|target| !target.kernels.is_empty());
    }
    if targets.is_empty() {
        bail!("no tests run under {}", only.unwrap_or("any kernel"));
    }
    if targets.iter().any(is_cluster) {
        // A guest could not keep what it builds.
        kube::ensure()?;
    }
    let programs = targets::build(&targets)?;
    let tests_of = |kernel: &str, clusters: bool| -> Vec<Test> {
        let all = targets.iter().zip(&programs);
        all.filter(|(target, _)| target.kernels.iter().any(|name| name == kernel))
            .filter(|(target, _)| is_cluster(target) == clusters)
            .map(|(target, program)| Test::of(target, program, kernel))
            .collect()
    };
    let in_turn = |kernels: &[&str], clusters: bool| -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        for kernel in kernels {
            under(&mut tally, kernel, &tests_of(kernel, clusters))?;
        }
        Ok(tally)
    };
    let all = kernels(&targets);
    let (light, emulated): (Vec<&str>, Vec<&str>) = all.iter().partition(|kernel| **kernel == UML);
    let (light, emulated) = std::thread::scope(|scope| {
        let emulated = scope.spawn(|| in_turn(&emulated, false));
        let light = in_turn(&light, false);
        let emulated = emulated.join();
        (
            light,
            emulated.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    tally.add(light?);
    tally.add(emulated?);
    // Whole clusters have the machine to themselves: beside an emulated processor calls of the API server end by
    // their time.
    tally.add(in_turn(&all, true)?);
    eprintln!("    kernels: {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// The tests of `cargo xtask guest`.
fn of_guests(tally: &mut Tally) -> anyhow::Result<()> {
    let alone = ["--test-threads=1"];
    twice(tally, "guests", |tally| {
        cargo_tests(
            tally,
            "guests",
            &["--workspace", "--test", "guests"],
            &alone,
        )
    })
}

/// A target under one kernel.
struct Test {
    name: String,
    cluster: bool,
    program: Program,
}

impl Test {
    fn of(target: &Target, program: &Path, kernel: &str) -> Self {
        // What a test says is seen at once: of one that hangs, the harness would tell nothing.
        let words = ["--nocapture", "--test-threads=1"].map(Into::into);
        Self {
            name: format!("{} under {kernel}", target.name),
            cluster: is_cluster(target),
            program: Program {
                folder: target.folder.clone(),
                words: [program.into()].into_iter().chain(words).collect(),
            },
        }
    }
}

/// All kernels that targets name, each once, in the order in which they are named.
fn kernels(targets: &[Target]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for name in targets.iter().flat_map(|target| &target.kernels) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// All tests of one kernel; those that fail once more, alone in a guest of their own.
fn under(tally: &mut Tally, kernel: &str, tests: &[Test]) -> anyhow::Result<()> {
    if tests.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    let mut guests = 0;
    let mut guest = |tests: &[Test]| {
        guests += 1;
        one_guest(kernel, tests)
    };
    let all = in_turn(tests, &mut guest)?;
    for (test, mut result) in tests.iter().zip(all) {
        if result.failed > 0 {
            eprintln!("    {}: failed; once more, alone", test.name);
            let again = in_turn(std::slice::from_ref(test), &mut guest)?;
            result = again
                .into_iter()
                .next()
                .context("a test without a result")?;
            if result.failed == 0 {
                result.unstable.push(test.name.clone());
            }
        }
        tally.add(result);
    }
    eprintln!(
        "    {kernel}: {} targets, {guests} guests, {:.0} s",
        tests.len(),
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Runs tests in as many guests as it takes: a guest says the results of those that it began,
/// which is all of them unless one failed.
fn in_turn<T>(
    tests: &[T],
    guest: &mut dyn FnMut(&[T]) -> anyhow::Result<Vec<Tally>>,
) -> anyhow::Result<Vec<Tally>> {
    let mut results = Vec::new();
    let mut idle = 0;
    while results.len() < tests.len() {
        let some = guest(&tests[results.len()..])?;
        idle = if some.is_empty() { idle + 1 } else { 0 };
        results.extend(some);
        if idle == 2 {
            println!("error: no guest started, twice");
            // None of them has run, and each says so.
            results.resize_with(tests.len(), || Tally {
                failed: 1,
                ..Tally::default()
            });
        }
    }
    Ok(results)
}

/// Runs tests in one guest, until one fails.
fn one_guest(kernel: &str, tests: &[Test]) -> anyhow::Result<Vec<Tally>> {
    let shared = batch::Shared::new()?;
    let programs: Vec<Program> = tests.iter().map(|test| test.program.clone()).collect();
    let many = u32::try_from(tests.len()).unwrap_or(u32::MAX);
    let cluster = tests.iter().any(|test| test.cluster);
    let timeout = START + (MANNER.program + MANNER.grace).saturating_mul(many);
    let mut guest = Command::new(run::own_program()?);
    guest
        .args(["guest", "--timeout", &timeout.as_secs().to_string()])
        .arg("--shared")
        .arg(shared.path())
        .env("RUST_BACKTRACE", "1");
    // Without a name it is user-mode-linux, and where that cannot be had another.
    if kernel != UML {
        guest.args(["--kernel", kernel, "--memory", EMULATED_MEMORY]);
    } else if cluster {
        guest.args(["--memory", CLUSTER_MEMORY]);
    }
    guest.arg("--");
    let mut results: Vec<Tally> = Vec::new();
    let mut counted = false;
    let mut tell = |n: usize, event: Event<'_>| {
        let name = &tests[n].name;
        if event == Event::Begun {
            eprintln!("==> {name}");
            results.push(Tally::default());
            counted = false;
        }
        let Some(result) = results.last_mut() else {
            return;
        };
        match event {
            Event::Begun => {}
            Event::Line(line) => {
                println!("{line}");
                counted |= result.take(line);
            }
            Event::ErrorLine(line) => eprintln!("{line}"),
            Event::Ended(outcome, took) => {
                eprintln!("    {name}: {:.1} s", took.as_secs_f32());
                if let Some(why) = judge(&outcome, result, counted, MANNER.program) {
                    println!("error: {name}: {why}");
                    result.failed += 1;
                }
            }
        }
    };
    let begun = batch::run(guest, shared.path(), &programs, &MANNER, &mut tell)?;
    debug_assert_eq!(begun, results.len());
    Ok(results)
}

/// What is wrong with how a target ended, beyond the failures that it counted itself.
fn judge(outcome: &Outcome, result: &Tally, counted: bool, limit: Duration) -> Option<String> {
    match outcome {
        Outcome::TimedOut => Some(format!("its {} s were over", limit.as_secs())),
        Outcome::GuestLost(why) => Some(format!("the guest was lost under it: {why}")),
        Outcome::Exited(0) if !counted => Some("it counted no tests".to_owned()),
        Outcome::Exited(0) if result.passed + result.failed == 0 => {
            Some("a target without tests".to_owned())
        }
        Outcome::Exited(0) => None,
        Outcome::Exited(_) if result.failed > 0 => None,
        Outcome::Exited(code) => Some(format!("it exited with {code}")),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn tally(passed: u64, failed: u64) -> Tally {
        Tally {
            passed,
            failed,
            ..Tally::default()
        }
    }

    fn numbers(results: &[Tally]) -> Vec<(u64, u64)> {
        let numbers = results.iter().map(|tally| (tally.passed, tally.failed));
        numbers.collect()
    }

    #[test]
    fn what_follows_a_failure_runs_in_another_guest() {
        let mut asked = Vec::new();
        let results = in_turn(&['a', 'b', 'c'], &mut |tests| {
            asked.push(tests.to_vec());
            Ok(match tests[0] {
                'a' => vec![tally(2, 0), tally(0, 1)],
                _ => vec![tally(3, 0)],
            })
        });
        assert_eq!(numbers(&results.unwrap()), [(2, 0), (0, 1), (3, 0)]);
        assert_eq!(asked, [vec!['a', 'b', 'c'], vec!['c']]);
    }

    #[test]
    fn a_guest_that_does_not_start_is_tried_again_and_then_all_have_failed() {
        let mut guests = 0;
        let results = in_turn(&['a', 'b', 'c'], &mut |_| {
            guests += 1;
            Ok(match guests {
                2 => vec![tally(1, 0)],
                _ => Vec::new(),
            })
        });
        assert_eq!(numbers(&results.unwrap()), [(1, 0), (0, 1), (0, 1)]);
        assert_eq!(guests, 4);
    }

    #[test]
    fn no_end_but_a_sound_one_passes() {
        const LIMIT: Duration = Duration::from_secs(1);
        assert_eq!(judge(&Outcome::Exited(0), &tally(1, 0), true, LIMIT), None);
        // The failure is counted already.
        assert_eq!(
            judge(&Outcome::Exited(101), &tally(1, 1), true, LIMIT),
            None
        );
        for (outcome, result, counted) in [
            (Outcome::Exited(0), tally(0, 0), true),
            (Outcome::Exited(0), tally(0, 0), false),
            (Outcome::Exited(101), tally(0, 0), false),
            (Outcome::Exited(1), tally(4, 0), true),
            (Outcome::TimedOut, tally(4, 0), true),
            (Outcome::GuestLost("x".into()), tally(4, 0), true),
        ] {
            assert!(
                judge(&outcome, &result, counted, LIMIT).is_some(),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn each_kernel_is_named_once() {
        let target = |kernels: &[&str]| Target {
            name: "guest_a".into(),
            folder: "/".into(),
            kernels: kernels.iter().map(|name| (*name).to_owned()).collect(),
        };
        let targets = [
            target(&["uml"]),
            target(&["6.1", "uml"]),
            target(&["newest"]),
        ];
        assert_eq!(kernels(&targets), ["uml", "6.1", "newest"]);
    }
}
