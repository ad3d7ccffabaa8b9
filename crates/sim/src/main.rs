//! Runs seeds and the search of all orders, and says what they came to.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use testudo_sim::chaos::{self, Outcome};
use testudo_sim::scene::{SCENES, Scene};
use testudo_sim::search::{self, Bounds, Walked};

const HELP: &str = "\
testudo-sim [--seeds N] [--from S] [--orders M]    N seeds (10000) from S (0), then all orders of
                                                   each scene with M seeds (2)
testudo-sim --orders M                             only the orders
testudo-sim --seed S                               one seed
testudo-sim --scene SCENE --seed S --order WORDS   one order of the search, told step by step
    [--traffic yes]                                ... with ESP
testudo-sim --scene SCENE --seed S                 all orders of one scene
    [--traffic yes] [--losses N] [--duplicates N]  ... within other bounds (2, 1)
";

#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    from: u64,
    seed: Option<u64>,
    orders: Option<u64>,
    scene: Option<String>,
    order: Option<String>,
    bounds: Option<Bounds>,
}

impl Arguments {
    fn bounds(&mut self) -> &mut Bounds {
        self.bounds.get_or_insert(search::FULL)
    }
}

fn main() -> ExitCode {
    let Some(arguments) = read(std::env::args().skip(1)) else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let done = match (&arguments.scene, arguments.seed) {
        (Some(name), seed) => scene(name, seed.unwrap_or(1), &arguments),
        (None, Some(seed)) => chaos::run(seed).map(|o| println!("seed {seed}: {o:?}")),
        (None, None) => all(&arguments),
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
            "--from" => arguments.from = value.parse().ok()?,
            "--seed" => arguments.seed = Some(value.parse().ok()?),
            "--orders" => arguments.orders = Some(value.parse().ok()?),
            "--scene" => arguments.scene = Some(value),
            "--order" => arguments.order = Some(value),
            "--traffic" => arguments.bounds().traffic = value == "yes",
            "--losses" => arguments.bounds().losses = value.parse().ok()?,
            "--duplicates" => arguments.bounds().duplicates = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(arguments)
}

/// All seeds, then all orders. Goes on after a failure, to tell how many there are.
fn all(arguments: &Arguments) -> Result<(), String> {
    let mut failures = Vec::new();
    let seeds_wanted = match (arguments.seeds, arguments.orders) {
        (None, Some(_)) => 0,
        (wanted, _) => wanted.unwrap_or(10_000),
    };
    if seeds_wanted > 0 {
        failures.extend(seeds(arguments.from, seeds_wanted));
    }
    failures.extend(orders(arguments.orders.unwrap_or(2)));
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let replays = failures.iter().filter_map(|f| f.lines().last());
            let replays: Vec<&str> = replays.take(40).collect();
            let number = failures.len();
            Err(format!(
                "{first}\n{number} failures:\n{}",
                replays.join("\n")
            ))
        }
    }
}

/// How often a long run says how far it is.
const TELLS: u64 = 20;

/// Does `work` for each number below `many`, on all cores, and says on the way how far it is.
fn spread(many: u64, what: &str, work: impl Fn(u64) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let part = (many / TELLS).max(1);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= many {
                        return;
                    }
                    work(number);
                    let done = done.fetch_add(1, Relaxed) + 1;
                    if done.is_multiple_of(part) && many > TELLS {
                        eprintln!("{done} of {many} {what}");
                    }
                }
            });
        }
    });
}

fn seeds(from: u64, many: u64) -> Vec<String> {
    let sum = Mutex::new((Outcome::default(), Vec::new()));
    spread(many, "seeds", |n| {
        let result = chaos::run(from + n);
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(outcome) => {
                sum.0.datagrams += outcome.datagrams;
                sum.0.packets += outcome.packets;
                sum.0.lost += outcome.lost;
                sum.0.commands += outcome.commands;
                sum.0.settled = sum.0.settled.max(outcome.settled);
            }
            Err(text) => {
                eprintln!("seed {} failed", from + n);
                sum.1.push((from + n, text));
            }
        }
    });
    let (sum, mut failures) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{many} seeds from {from}, {} failed: {} commands, {} datagrams, {} ESP packets, {} \
         lost, agreement after at most {:?}",
        failures.len(),
        sum.commands,
        sum.datagrams,
        sum.packets,
        sum.lost,
        sum.settled
    );
    failures.sort();
    failures.into_iter().map(|(_, text)| text).collect()
}

/// Walks all scenes with some seeds: different ends win. Every other seed with ESP.
fn orders(seeds: u64) -> Vec<String> {
    let mut jobs: Vec<(Scene, u64, Bounds)> = Vec::new();
    for seed in 1..=seeds {
        for scene in SCENES {
            let bounds = Bounds {
                traffic: seed % 2 == 0,
                ..search::full(scene)
            };
            jobs.push((scene, seed, bounds));
        }
    }
    let many = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
    let sum = Mutex::new((0_u128, Vec::new()));
    spread(many, "scenes", |n| {
        let (scene, seed, bounds) = jobs[usize::try_from(n).expect("it is below their number")];
        let result = search::walk(scene, seed, bounds);
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(walked) => {
                sum.0 = sum.0.saturating_add(walked.orders);
                tell(scene, seed, bounds, &walked);
            }
            Err(text) => sum.1.push(text),
        }
    });
    let (orders, failures) = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{orders} orders walked, {} scenes failed", failures.len());
    failures
}

fn tell(scene: Scene, seed: u64, bounds: Bounds, walked: &Walked) {
    let cut = match walked.cut {
        0 => String::new(),
        cut => format!(", CUT SHORT: {cut} ways not gone"),
    };
    let traffic = if bounds.traffic { ", with ESP" } else { "" };
    println!(
        "{scene:?}, seed {seed}, up to {} lost and {} twice{traffic}: {} orders through {} states \
         ({} and {} of the engines){cut}",
        bounds.losses,
        bounds.duplicates,
        walked.orders,
        walked.states,
        walked.engines[0],
        walked.engines[1]
    );
}

/// All orders of one scene, or one of them.
fn scene(name: &str, seed: u64, arguments: &Arguments) -> Result<(), String> {
    let found = SCENES.iter().find(|s| format!("{s:?}") == name);
    let scene = *found.ok_or_else(|| format!("no scene {name}: {SCENES:?}"))?;
    let bounds = arguments.bounds.unwrap_or(search::FULL);
    if let Some(order) = &arguments.order {
        let story = search::replay(scene, seed, bounds, order)?;
        println!("{story}");
    } else {
        let walked = search::walk(scene, seed, bounds)?;
        tell(scene, seed, bounds, &walked);
    }
    Ok(())
}
