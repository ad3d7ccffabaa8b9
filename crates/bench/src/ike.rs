//! The bench `ike`: our engine and other daemons in turns.

use crate::daemons::{self, Other};
use crate::ends::{self, Exchange, Load};
use crate::report::{Baseline, Gaps, Measured, Report, Row};
use crate::usage;

/// Connections of the small measurement, and of our large one.
const SMALL: u32 = 100;
const LARGE: u32 = 5000;

/// What is asked for.
pub(crate) struct Options {
    json: bool,
    rounds: usize,
    baseline: bool,
}

impl Options {
    /// `[-o json|table] [--rounds N] [--without-baseline]`
    pub(crate) fn read(mut words: &[&str]) -> Option<Self> {
        let mut out = Self {
            json: false,
            rounds: 3,
            baseline: true,
        };
        while let Some((word, rest)) = words.split_first() {
            words = rest;
            if *word == "--without-baseline" {
                out.baseline = false;
                continue;
            }
            let (value, rest) = words.split_first()?;
            words = rest;
            match (*word, *value) {
                ("-o", "json") => out.json = true,
                ("-o", "table") => out.json = false,
                ("--rounds", n) => out.rounds = n.parse().ok().filter(|n| *n > 0)?,
                _ => return None,
            }
        }
        Some(out)
    }
}

/// All rounds' outcomes.
struct Rounds {
    small: Vec<ends::Outcome>,
    large: Vec<ends::Outcome>,
    hybrid: Vec<ends::Outcome>,
    hybrid_missing: Option<String>,
    pooled: Vec<ends::Outcome>,
    baselines: Vec<Rival>,
}

/// What another daemon came to.
struct Rival {
    who: Other,
    small: Vec<daemons::Outcome>,
    large: Vec<daemons::Outcome>,
    /// Why it is not measured, or not further: a baseline that fails does not end the bench.
    missing: Option<String>,
    /// It is there and was asked for, and that is not why.
    failed: bool,
}

/// The small or the large ones.
type Outcomes = fn(&Rival) -> &[daemons::Outcome];

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<Gaps> {
    let mut rounds = Rounds::new(|who| match options.baseline {
        true => who.missing(),
        false => Some("not asked for".into()),
    });
    for round in 1..=options.rounds {
        // In turns, so that what else the machine does meets all.
        eprintln!("==> round {round} of {}", options.rounds);
        for rival in 0..rounds.baselines.len() {
            rounds.ours(SMALL)?;
            rounds.baselines[rival].measure(SMALL);
        }
        if round == 1 {
            rounds.baselines.iter_mut().for_each(Rival::measure_large);
        }
        rounds.ours(LARGE)?;
        rounds.hybrid();
        rounds.pooled()?;
    }
    let report = rounds.report();
    match options.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.table()),
    }
    Ok(rounds.gaps())
}

impl Rounds {
    fn new(missing: impl Fn(Other) -> Option<String>) -> Self {
        let rival = |who| Rival {
            who,
            small: Vec::new(),
            large: Vec::new(),
            missing: missing(who),
            failed: false,
        };
        Self {
            small: Vec::new(),
            large: Vec::new(),
            hybrid: Vec::new(),
            hybrid_missing: None,
            pooled: Vec::new(),
            baselines: Other::ALL.map(rival).into(),
        }
    }

    fn ours(&mut self, connections: u32) -> anyhow::Result<()> {
        let outcome = ends::measure(Load::of(connections))?;
        tell("testudo", connections, &outcome);
        match connections {
            SMALL => self.small.push(outcome),
            _ => self.large.push(outcome),
        }
        Ok(())
    }

    fn hybrid(&mut self) {
        let outcome = ends::measure(Load {
            exchange: Exchange::Hybrid,
            ..Load::of(LARGE / 5)
        });
        match outcome {
            Ok(outcome) => {
                tell("testudo, ML-KEM-768", LARGE / 5, &outcome);
                self.hybrid.push(outcome);
            }
            Err(error) => self.hybrid_missing = Some(format!("{error:#}")),
        }
    }

    fn pooled(&mut self) -> anyhow::Result<()> {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
        let outcome = ends::measure(Load {
            threads: u32::try_from(threads)?.max(2),
            ..Load::of(LARGE)
        })?;
        tell("testudo, pooled", LARGE, &outcome);
        self.pooled.push(outcome);
        Ok(())
    }

    /// What is there and could not be measured.
    fn gaps(&self) -> Gaps {
        let hybrid = self.hybrid_missing.iter();
        let hybrid = hybrid.map(|why| format!("testudo, ML-KEM-768: {why}"));
        let failed = self.baselines.iter().filter(|rival| rival.failed);
        let failed = failed.map(|rival| format!("{}, {}", rival.who.name(), rival.why_not()));
        hybrid.chain(failed).collect()
    }

    /// What each baseline came to by `outcomes`, of how many connections.
    fn rivals(
        &self,
        outcomes: Outcomes,
        of: fn(&daemons::Outcome) -> f64,
    ) -> Vec<(&'static str, Baseline)> {
        let each = |rival: &Rival| {
            let outcomes = outcomes(rival);
            let number = outcomes.first().map_or(0, daemons::Outcome::connections);
            let baseline = match Measured::of(outcomes.iter().map(of).collect()) {
                Some(measured) => Baseline::Measured(measured, number),
                None => Baseline::Missing(rival.why_not()),
            };
            (rival.who.name(), baseline)
        };
        self.baselines.iter().map(each).collect()
    }

    fn report(&self) -> Report {
        let ours = |outcomes: &[ends::Outcome], of: fn(&ends::Outcome) -> f64| {
            Measured::of(outcomes.iter().map(of).collect()).ok_or_else(|| "not measured".to_owned())
        };
        let small: Outcomes = |rival| &rival.small;
        let large: Outcomes = |rival| &rival.large;
        let (cpu, kib, rate) = (
            daemons::Outcome::cpu_ms,
            daemons::Outcome::kib,
            daemons::Outcome::rate,
        );
        let hybrid = ours(&self.hybrid, ends::Outcome::cpu_ms);
        let lacks_ml_kem = |rival: &Rival| {
            let why = rival.who.lacks_ml_kem();
            (rival.who.name(), Baseline::Missing(why))
        };
        let rows = vec![
            Row {
                name: "cpu_ms_per_handshake_and_side_n100".into(),
                unit: "ms",
                ours: ours(&self.small, ends::Outcome::cpu_ms),
                baseline: self.rivals(small, cpu),
                target: "<= 0.4",
            },
            Row {
                name: "cpu_ms_per_handshake_and_side_n5000".into(),
                unit: "ms",
                ours: ours(&self.large, ends::Outcome::cpu_ms),
                baseline: self.rivals(large, cpu),
                target: "<= 0.4",
            },
            Row {
                name: "cpu_ms_with_mlkem768".into(),
                unit: "ms",
                ours: hybrid.map_err(|e| self.hybrid_missing.clone().unwrap_or(e)),
                baseline: self.baselines.iter().map(lacks_ml_kem).collect(),
                target: "<= 0.5",
            },
            Row {
                name: "kib_per_ike_and_child_sa".into(),
                unit: "KiB",
                ours: ours(&self.large, ends::Outcome::kib),
                baseline: self.rivals(large, kib),
                target: "<= 6",
            },
            Row {
                name: "established_per_second".into(),
                unit: "1/s",
                ours: ours(&self.large, ends::Outcome::rate),
                baseline: self.rivals(large, rate),
                target: ">= 2000",
            },
            Row {
                name: "established_per_second_pooled".into(),
                unit: "1/s",
                ours: ours(&self.pooled, ends::Outcome::rate),
                baseline: Vec::new(),
                target: "",
            },
        ];
        Report {
            bench: "ike",
            machine: usage::machine(),
            rows,
            notes: self.notes(),
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            format!(
                "middle of the rounds; memory and rate are of {LARGE} connections, a baseline's \
                 of as many as is said with it: it becomes slower with their number"
            ),
            "charon's numbers hold its UDP sockets and its ESP in user space, libreswan's its UDP \
             sockets, its log and its answers to whack, but no ESP; ours a socket pair and no \
             datapath"
                .into(),
        ];
        let pooled = self.pooled.last();
        notes.extend(pooled.map(|outcome| {
            format!(
                "pooled: asymmetric work of each end on {} threads beside the engine's; {} jobs \
                 in the last round",
                outcome.threads(),
                outcome.jobs()
            )
        }));
        let measured = |rival: &&Rival| rival.missing.is_none();
        notes.extend(
            (self.baselines.iter().filter(measured))
                .map(|rival| format!("{} is {}", rival.who.name(), rival.who.version())),
        );
        notes
    }
}

impl Rival {
    fn measure_large(&mut self) {
        self.measure(self.who.large());
    }

    fn measure(&mut self, connections: u32) {
        if self.missing.is_some() {
            return;
        }
        let who = self.who;
        // It moves its thread into another namespace.
        let thread = std::thread::spawn(move || who.measure(connections));
        let outcome = thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("measuring it panicked")));
        match outcome {
            Ok(outcome) => {
                eprintln!(
                    "    {} {connections}: {:.2} ms, {:.1} KiB, {:.0}/s",
                    who.name(),
                    outcome.cpu_ms(),
                    outcome.kib(),
                    outcome.rate()
                );
                match connections {
                    SMALL => self.small.push(outcome),
                    _ => self.large.push(outcome),
                }
            }
            Err(error) => {
                // One line of the table, however much the daemon has said.
                let said = format!("{error:#}");
                let said: Vec<&str> = said.split_whitespace().take(40).collect();
                let why = format!("of {connections} connections: {}", said.join(" "));
                eprintln!("    {}: {why}", who.name());
                self.fail(why);
            }
        }
    }

    /// It is not measured any further.
    fn fail(&mut self, why: String) {
        self.missing = Some(why);
        self.failed = true;
    }

    fn why_not(&self) -> String {
        self.missing
            .clone()
            .unwrap_or_else(|| "not measured".into())
    }
}

fn tell(who: &str, connections: u32, outcome: &ends::Outcome) {
    eprintln!(
        "    {who} {connections}: {:.3} ms (hub {:.3}), {:.2} KiB, {:.0}/s",
        outcome.cpu_ms(),
        outcome.hub_cpu_ms(),
        outcome.kib(),
        outcome.rate()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_that_fails_is_said_to_be_missing_with_the_reason() {
        let rounds = Rounds::new(|who| Some(format!("{} fell over", who.name())));
        let report = rounds.report();
        let json = report.json();
        let (missing, table) = (json["missing"].to_string(), report.table());
        for who in ["charon", "libreswan"] {
            for row in 0..5 {
                let baseline = &json["rows"][row]["baseline"];
                assert!(baseline[who].is_null(), "{baseline}");
                assert!(baseline.as_object().unwrap().contains_key(who));
            }
            assert!(missing.contains(&format!("{who}: {who} fell over")));
            assert!(table.contains(&format!("{who} missing: {who} fell over")));
        }
    }

    #[test]
    fn only_what_is_there_and_fails_is_a_gap() {
        let rounds = Rounds::new(|_| Some("not unpacked".into()));
        assert_eq!(rounds.gaps(), Gaps::new());
        let mut rounds = Rounds::new(|_| None);
        assert_eq!(rounds.gaps(), Gaps::new());
        rounds.baselines[0].fail("of 100 connections: no answer".into());
        rounds.hybrid_missing = Some("an end panicked".into());
        assert_eq!(
            rounds.gaps(),
            [
                "testudo, ML-KEM-768: an end panicked",
                "charon, of 100 connections: no answer"
            ]
        );
    }
}
