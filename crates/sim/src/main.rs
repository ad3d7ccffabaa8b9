//! Runs seeds and the search of all orders, and says what they came to.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use testudo_sim::{chaos, search};

const HELP: &str = "\
testudo-sim [--seeds N]                            N seeds (10000), then the search of all orders
testudo-sim --seed S                               one seed
testudo-sim --scene SCENE --seed S --choices 1,0,2 one walk of the search
";

#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    seed: Option<u64>,
    scene: Option<String>,
    choices: Vec<usize>,
}

fn main() -> ExitCode {
    let Some(arguments) = read(std::env::args().skip(1)) else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let done = match (&arguments.scene, arguments.seed) {
        (Some(scene), seed) => replay(scene, seed.unwrap_or(1), &arguments.choices),
        (None, Some(seed)) => chaos::run(seed).map(|o| println!("seed {seed}: {o:?}")),
        (None, None) => all(arguments.seeds.unwrap_or(10_000)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(1)
        }
    }
}

fn read(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--seeds" => arguments.seeds = Some(value.parse().ok()?),
            "--seed" => arguments.seed = Some(value.parse().ok()?),
            "--scene" => arguments.scene = Some(value),
            "--choices" => {
                let parts = value.split(',').filter(|p| !p.is_empty());
                arguments.choices = parts.map(str::parse).collect::<Result<_, _>>().ok()?;
            }
            _ => return None,
        }
    }
    Some(arguments)
}

/// All seeds, then all orders. Goes on after a failure, to tell how many there are.
fn all(seeds: u64) -> Result<(), String> {
    let mut failures = Vec::new();
    let (mut datagrams, mut lost, mut commands) = (0, 0, 0);
    let mut longest = Duration::ZERO;
    for seed in 0..seeds {
        match chaos::run(seed) {
            Ok(outcome) => {
                datagrams += outcome.datagrams;
                lost += outcome.lost;
                commands += outcome.commands;
                longest = longest.max(outcome.settled);
            }
            Err(text) => failures.push(text),
        }
    }
    println!(
        "{seeds} seeds, {} failed: {commands} commands, {datagrams} datagrams, {lost} packets \
         lost, agreement after at most {longest:?}",
        failures.len()
    );
    let mut orders = 0;
    for scene in search::SCENES {
        for (seed, bounds) in search::full() {
            match search::walk(scene, seed, bounds) {
                Ok(walked) => {
                    orders += walked.orders;
                    let cut = if walked.cut { ", cut short" } else { "" };
                    println!(
                        "{scene:?}, seed {seed}, {} lost, {} twice: {} orders{cut}",
                        bounds.losses, bounds.duplicates, walked.orders
                    );
                }
                Err(text) => failures.push(text),
            }
        }
    }
    println!("{orders} orders walked");
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let replays = failures.iter().filter_map(|f| f.lines().last());
            let replays: Vec<&str> = replays.take(20).collect();
            let number = failures.len();
            Err(format!(
                "{first}\n{number} failures:\n{}",
                replays.join("\n")
            ))
        }
    }
}

fn replay(scene: &str, seed: u64, choices: &[usize]) -> Result<(), String> {
    let found = search::SCENES.iter().find(|s| format!("{s:?}") == scene);
    let scene = *found.ok_or_else(|| format!("no scene {scene}: {:?}", search::SCENES))?;
    let bounds = search::Bounds {
        losses: 2,
        duplicates: 2,
        choices: choices.len(),
        walks: 1,
    };
    search::once(scene, seed, bounds, choices).map(|taken| println!("{taken:?}"))
}
