//! The bench `ike`: our engine and charon in turns.

use crate::charon;
use crate::ends::{self, Exchange, Load};
use crate::report::{Baseline, Measured, Report, Row};
use crate::usage;

/// Connections of the small, the large and charon's larger measurement.
const SMALL: u32 = 100;
const LARGE: u32 = 5000;
const CHARON: u32 = 500;
const WINDOW: u32 = 64;

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
#[derive(Default)]
struct Rounds {
    small: Vec<ends::Outcome>,
    large: Vec<ends::Outcome>,
    hybrid: Vec<ends::Outcome>,
    hybrid_missing: Option<String>,
    charon_small: Vec<charon::Outcome>,
    charon_large: Vec<charon::Outcome>,
    /// Why charon is not measured, or not further: a baseline that fails does not end the bench.
    charon_missing: Option<String>,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut rounds = Rounds {
        charon_missing: match options.baseline {
            true => charon::missing(),
            false => Some("not asked for".into()),
        },
        ..Rounds::default()
    };
    for round in 1..=options.rounds {
        // In turns, so that what else the machine does meets both.
        eprintln!("==> round {round} of {}", options.rounds);
        rounds.ours(SMALL)?;
        rounds.charon(SMALL);
        rounds.ours(SMALL)?;
        if round <= 2 {
            rounds.charon(CHARON);
        }
        rounds.ours(LARGE)?;
        rounds.hybrid();
    }
    let report = rounds.report();
    match options.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.table()),
    }
    Ok(())
}

impl Rounds {
    fn ours(&mut self, connections: u32) -> anyhow::Result<()> {
        let outcome = ends::measure(Load {
            connections,
            window: WINDOW,
            exchange: Exchange::X25519,
        })?;
        tell("testudo", connections, &outcome);
        match connections {
            SMALL => self.small.push(outcome),
            _ => self.large.push(outcome),
        }
        Ok(())
    }

    fn hybrid(&mut self) {
        let outcome = ends::measure(Load {
            connections: LARGE / 5,
            window: WINDOW,
            exchange: Exchange::Hybrid,
        });
        match outcome {
            Ok(outcome) => {
                tell("testudo, ML-KEM-768", LARGE / 5, &outcome);
                self.hybrid.push(outcome);
            }
            Err(error) => self.hybrid_missing = Some(format!("{error:#}")),
        }
    }

    fn charon(&mut self, connections: u32) {
        if self.charon_missing.is_some() {
            return;
        }
        // It moves its thread into another namespace.
        let thread = std::thread::spawn(move || charon::measure(connections));
        let outcome = thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("measuring charon panicked")));
        match outcome {
            Ok(outcome) => self.charon_done(connections, outcome),
            Err(error) => {
                // One line of the table, however much charon has said.
                let said = format!("{error:#}");
                let said: Vec<&str> = said.split_whitespace().take(40).collect();
                let why = format!("of {connections} connections: {}", said.join(" "));
                eprintln!("    charon: {why}");
                self.charon_missing = Some(why);
            }
        }
    }

    fn charon_done(&mut self, connections: u32, outcome: charon::Outcome) {
        eprintln!(
            "    charon {connections}: {:.2} ms, {:.1} KiB, {:.0}/s",
            outcome.cpu_ms(),
            outcome.kib(),
            outcome.rate()
        );
        match connections {
            SMALL => self.charon_small.push(outcome),
            _ => self.charon_large.push(outcome),
        }
    }

    fn report(&self) -> Report {
        let ours = |outcomes: &[ends::Outcome], of: fn(&ends::Outcome) -> f64| {
            Measured::of(outcomes.iter().map(of).collect()).ok_or_else(|| "not measured".to_owned())
        };
        let charon = |name, outcomes: &[charon::Outcome], of: fn(&charon::Outcome) -> f64| {
            let measured = Measured::of(outcomes.iter().map(of).collect());
            let missing =
                || Baseline::Missing(self.charon_missing.clone().unwrap_or("not measured".into()));
            vec![(name, measured.map_or_else(missing, Baseline::Measured))]
        };
        let cpu = charon::Outcome::cpu_ms;
        let hybrid = ours(&self.hybrid, ends::Outcome::cpu_ms);
        let rows = vec![
            Row {
                name: "cpu_ms_per_handshake_and_side_n100",
                unit: "ms",
                ours: ours(&self.small, ends::Outcome::cpu_ms),
                baseline: charon("charon", &self.charon_small, cpu),
                target: "<= 0.4",
            },
            Row {
                name: "cpu_ms_per_handshake_and_side_n5000",
                unit: "ms",
                ours: ours(&self.large, ends::Outcome::cpu_ms),
                baseline: charon("charon_n500", &self.charon_large, cpu),
                target: "<= 0.4",
            },
            Row {
                name: "cpu_ms_with_mlkem768",
                unit: "ms",
                ours: hybrid.map_err(|e| self.hybrid_missing.clone().unwrap_or(e)),
                baseline: vec![(
                    "charon",
                    Baseline::Missing("Debian 12's strongSwan has no ML-KEM".into()),
                )],
                target: "<= 0.5",
            },
            Row {
                name: "kib_per_ike_and_child_sa",
                unit: "KiB",
                ours: ours(&self.large, ends::Outcome::kib),
                baseline: charon("charon", &self.charon_large, charon::Outcome::kib),
                target: "<= 6",
            },
            Row {
                name: "established_per_second",
                unit: "1/s",
                ours: ours(&self.large, ends::Outcome::rate),
                baseline: charon("charon", &self.charon_large, charon::Outcome::rate),
                target: ">= 2000",
            },
        ];
        Report {
            bench: "ike",
            machine: usage::machine(),
            rows,
            notes: vec![
                format!(
                    "middle of the rounds; memory and rate of {LARGE} connections, charon's of \
                     {CHARON}: it grows slower with their number"
                ),
                "charon's numbers hold its ESP in user space and its UDP sockets, ours a socket \
                 pair and no datapath"
                    .into(),
            ],
        }
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
        let rounds = Rounds {
            charon_missing: Some("it fell over".into()),
            ..Rounds::default()
        };
        let report = rounds.report();
        let json = report.json();
        assert!(json["rows"][0]["baseline"]["charon"].is_null());
        let missing = json["missing"].to_string();
        assert!(missing.contains("charon: it fell over"), "{missing}");
        assert!(report.table().contains("charon missing: it fell over"));
    }
}
