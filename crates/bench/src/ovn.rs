//! The bench `ovn`: what happens to pods' traffic over real OVN when IPsec is switched on and off,
//! renewed, killed and restarted, with OVN's own IPsec and with ours.
//!
//! Both have the same lab in the same kernel, one after the other: three nodes, of which the third
//! joins late, and 100 numbered datagrams a second each way between a pod of the first and a pod of
//! the second, while all links of the underlay are captured. It needs root, a kernel with ESP and
//! conntrack zones, and the packages unpacked; `cargo xtask bench ovn` runs it in a guest.

mod ours;
mod sides;
mod theirs;
mod traffic;
mod wire;

use std::path::{Path, PathBuf};

use anyhow::Context;
use testudo_lab::{Datapath, Lab, LabSpec, Overlay};

use crate::report::{Baseline, Gaps, Measured, Report, Row};
use crate::usage;
use sides::{Cost, Event, Side, Stage};

/// What is asked for.
pub(crate) struct Options {
    json: bool,
    rounds: usize,
    only: Option<Which>,
    /// What is done once; all of it without this.
    events: Option<Vec<Event>>,
    testudo: PathBuf,
    /// Where Open vSwitch and OVN are unpacked.
    ovs: PathBuf,
    /// Where OVN's IPsec is unpacked.
    ipsec: PathBuf,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Ours,
    Theirs,
}

impl Which {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "Testudo",
            Self::Theirs => "OVN's IPsec",
        }
    }
}

impl Options {
    /// `--testudo FILE --ovs FOLDER --ipsec FOLDER [-o json|table] [--rounds N] [--only testudo|ovn]
    /// [--events rebooted,third]`
    pub(crate) fn read(mut words: &[&str]) -> Option<Self> {
        let mut out = Self {
            json: false,
            rounds: 5,
            only: None,
            events: None,
            testudo: PathBuf::new(),
            ovs: PathBuf::new(),
            ipsec: PathBuf::new(),
        };
        while let [word, value, rest @ ..] = words {
            words = rest;
            match (*word, *value) {
                ("-o", "json") => out.json = true,
                ("-o", "table") => out.json = false,
                ("--rounds", n) => out.rounds = n.parse().ok().filter(|n| *n > 0)?,
                ("--only", "testudo") => out.only = Some(Which::Ours),
                ("--only", "ovn") => out.only = Some(Which::Theirs),
                ("--events", list) => {
                    let all: Option<Vec<Event>> = list.split(',').map(Event::of_word).collect();
                    out.events = Some(all?);
                }
                ("--testudo", path) => out.testudo = path.into(),
                ("--ovs", path) => out.ovs = path.into(),
                ("--ipsec", path) => out.ipsec = path.into(),
                _ => return None,
            }
        }
        let paths = [&out.testudo, &out.ovs, &out.ipsec];
        let all = paths.into_iter().all(|path| !path.as_os_str().is_empty());
        (words.is_empty() && all).then_some(out)
    }
}

/// What one side's events cost, or why they could not be measured.
type Costs = Vec<(Event, Result<Cost, String>)>;

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<Gaps> {
    let mut gaps = Gaps::new();
    let mut side = |which: Which| -> Costs {
        if options.only.is_some_and(|only| only != which) {
            return Vec::new();
        }
        let mut costs = Vec::new();
        if let Err(error) = measure(options, which, &mut costs) {
            // What was measured up to here stands; the rest is said to be missing.
            eprintln!("{which:?}: {error:#}");
            gaps.push(format!("{}: {error:#}", which.name()));
        }
        gaps.extend(unmeasured(which, &costs));
        costs
    };
    let theirs = side(Which::Theirs);
    let ours = side(Which::Ours);
    let report = report(options, &ours, &theirs);
    if options.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", table(&report.machine, &ours, &theirs));
        for note in &report.notes {
            println!("{note}");
        }
    }
    Ok(gaps)
}

/// The events that were made to happen and of which no cost is known. Traffic that never came back is
/// known.
fn unmeasured(which: Which, costs: &Costs) -> Gaps {
    let why = |(event, cost): &(Event, Result<Cost, String>)| {
        let why = cost.as_ref().err()?;
        Some(format!("{}, {}: {why}", which.name(), event.text()))
    };
    costs.iter().filter_map(why).collect()
}

fn measure(options: &Options, which: Which, costs: &mut Costs) -> anyhow::Result<()> {
    let mut spec = LabSpec::new("bench", options.testudo.clone());
    spec.pods = 1;
    spec.overlay = Overlay::Ovn;
    spec.ovs_root = Some(options.ovs.clone());
    spec.datapath = Datapath::Kernel;
    spec.daemons = false;
    let mut say = |text: &str| {
        if !text.starts_with("building") {
            eprintln!("{text}");
        }
    };
    let lab = testudo_lab::up(spec, &mut say)?;
    let done = in_lab(&lab, options, which, costs);
    if done.is_err() {
        show_logs(&lab);
    }
    if let Some(folder) = std::env::var_os("TESTUDO_GUEST_SHARED") {
        keep_logs(&lab, &PathBuf::from(folder).join(format!("{which:?}")))?;
    }
    testudo_lab::down("bench", &mut |_| {})?;
    done
}

fn in_lab(lab: &Lab, options: &Options, which: Which, costs: &mut Costs) -> anyhow::Result<()> {
    let stage = Stage {
        lab,
        traffic: traffic::Traffic::start(lab)?,
        wire: wire::Wire::start(lab)?,
    };
    stage.third(false)?;
    match which {
        Which::Ours => events(&stage, options, which, &mut ours::Ours::new(lab)?, costs),
        Which::Theirs => {
            let mut side = theirs::Theirs::new(lab, &options.ipsec)?;
            events(&stage, options, which, &mut side, costs)
        }
    }?;
    stage.wire.stop()
}

fn events(
    stage: &Stage<'_>,
    options: &Options,
    which: Which,
    side: &mut dyn Side,
    costs: &mut Costs,
) -> anyhow::Result<()> {
    let once = [
        Event::Certificate,
        Event::IkeKilled,
        Event::Restarted,
        Event::Stopped,
        Event::Rebooted,
        Event::Third,
        Event::Encapsulated,
        Event::Off,
    ];
    let wanted = |event: &Event| match &options.events {
        Some(events) => events.contains(event),
        None => true,
    };
    let first = std::iter::once(Event::On).chain(once.into_iter().filter(wanted));
    let again = [Event::On, Event::Off].repeat(options.rounds - 1);
    for event in first.chain(again) {
        let cost = stage.measure(side, event);
        eprintln!("{which:?}: {}: {cost:?}", event.text());
        let dead = !matches!(&cost, Ok(cost) if cost.seconds.is_some());
        costs.push((event, cost.map_err(|error| format!("{error:#}"))));
        // What is dead after it was switched off is healed by the next switch, or not.
        if dead && event != Event::Off {
            side.heal().context("after a dead link")?;
            let again = stage.measure(side, Event::On);
            eprintln!("{which:?}: healed: {again:?}");
        }
        if event == Event::Off {
            // Nothing is in force that it could disturb.
            side.encapsulate(false)?;
        }
    }
    Ok(())
}

/// Whose logs there are of ours.
const LOGS: [&str; 4] = ["controller", "n1", "n2", "n3"];

/// Copies them where they outlive the guest (`--logs`).
fn keep_logs(lab: &Lab, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    for name in LOGS {
        let log = lab.log_path(name);
        if log.exists() {
            std::fs::copy(log, folder.join(format!("{name}.log")))?;
        }
    }
    Ok(())
}

fn show_logs(lab: &Lab) {
    for name in LOGS {
        let text = std::fs::read_to_string(lab.log_path(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(15);
        if !lines.is_empty() {
            eprintln!("--- {name}\n{}", lines[from..].join("\n"));
        }
    }
}

/// In the order of the table.
const EVENTS: [Event; 9] = [
    Event::On,
    Event::Off,
    Event::Certificate,
    Event::IkeKilled,
    Event::Restarted,
    Event::Stopped,
    Event::Rebooted,
    Event::Third,
    Event::Encapsulated,
];

fn of(costs: &Costs, event: Event) -> Vec<Cost> {
    let of_event = costs.iter().filter(|(which, _)| *which == event);
    of_event.filter_map(|(_, cost)| cost.clone().ok()).collect()
}

/// Why there is no number.
fn why(costs: &Costs, event: Event) -> String {
    let of_event = costs.iter().find(|(which, _)| *which == event);
    match of_event {
        Some((_, Err(error))) => error.clone(),
        Some((_, Ok(_))) => "traffic did not come back in 200 s".into(),
        None => "not measured".into(),
    }
}

fn report(options: &Options, ours: &Costs, theirs: &Costs) -> Report {
    type Pick = fn(&Cost) -> Option<f64>;
    let picks: [(Pick, &str, &str); 3] = [
        (|cost| Some(cost.lost as f64), "packets", "0"),
        (|cost| Some(cost.clear as f64), "packets", "0"),
        (|cost| cost.seconds, "s", ""),
    ];
    let mut rows = Vec::new();
    for event in EVENTS {
        for (name, (pick, unit, target)) in event.names().into_iter().zip(picks) {
            let measured = |costs: &Costs| {
                let values = of(costs, event).iter().filter_map(pick).collect();
                Measured::of(values).ok_or_else(|| why(costs, event))
            };
            rows.push(Row {
                name: name.into(),
                unit,
                ours: measured(ours),
                baseline: vec![(
                    "ovn_ipsec",
                    match measured(theirs) {
                        Ok(measured) => Baseline::Measured(measured, 1),
                        Err(why) => Baseline::Missing(why),
                    },
                )],
                target,
            });
        }
    }
    let mut notes = vec![
            format!(
                "{} datagrams a second each way between two pods; switched on and off {} times",
                traffic::RATE,
                options.rounds
            ),
            "lost: datagrams that never arrived; clear: the overlay's packets on the underlay that \
             were not ESP, while switched on since the command has returned"
                .into(),
            "seconds: until the command has returned and the last datagram was lost or seen in clear; \
             never: not in 200 s"
                .into(),
            "of a reboot: lost is counted from the link's coming up, when the daemons' start has returned; \
             clear from before the link went down"
                .into(),
        ];
    for (which, costs) in [(Which::Ours, ours), (Which::Theirs, theirs)] {
        for (event, cost) in costs {
            if let Ok(Cost {
                detail: Some(detail),
                ..
            }) = cost
            {
                notes.push(format!("{}, {}: {detail}", which.name(), event.text()));
            }
        }
    }
    Report {
        bench: "ovn",
        machine: usage::machine(),
        rows,
        notes,
    }
}

/// Side by side, in Markdown.
fn table(machine: &str, ours: &Costs, theirs: &Costs) -> String {
    let mut out = format!(
        "{machine}\n\n| event | Testudo: lost | clear | seconds | OVN's IPsec: lost | clear | seconds \
         |\n|---|---|---|---|---|---|---|\n"
    );
    for event in EVENTS {
        out += &format!("| {} |", event.text());
        for costs in [ours, theirs] {
            let of_event = of(costs, event);
            let clear = match event {
                Event::Off => "as asked".to_owned(),
                _ => span(of_event.iter().map(|cost| Some(cost.clear as f64)), 0),
            };
            out += &format!(
                " {} | {clear} | {} |",
                span(of_event.iter().map(|cost| Some(cost.lost as f64)), 0),
                span(of_event.iter().map(|cost| cost.seconds), 1),
            );
        }
        out.push('\n');
    }
    out
}

/// The least and the most; with none among them, how often it was never.
fn span(values: impl Iterator<Item = Option<f64>>, digits: usize) -> String {
    let values: Vec<Option<f64>> = values.collect();
    let mut known: Vec<f64> = values.iter().copied().flatten().collect();
    known.sort_by(f64::total_cmp);
    let never = values.len() - known.len();
    let known = match known.as_slice() {
        [] => None,
        [first, .., last] if first < last => Some(format!("{first:.digits$}-{last:.digits$}")),
        [first, ..] => Some(format!("{first:.digits$}")),
    };
    match (known, never) {
        (None, 0) => "?".into(),
        (None, _) => "never".into(),
        (Some(known), 0) => known,
        (Some(known), never) => format!("{known}, {never} never"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(lost: u64, clear: u64, seconds: Option<f64>) -> Result<Cost, String> {
        Ok(Cost {
            lost,
            clear,
            seconds,
            detail: None,
        })
    }

    #[test]
    fn both_stand_side_by_side_and_what_never_came_back_says_so() {
        let ours = vec![
            (Event::On, cost(0, 0, Some(2.04))),
            (Event::On, cost(0, 0, Some(3.0))),
        ];
        let theirs = vec![
            (Event::On, cost(1020, 812, Some(12.5))),
            (Event::On, cost(16_900, 30, None)),
            (Event::Third, Err("no monitor".to_owned())),
        ];
        assert_eq!(unmeasured(Which::Ours, &ours), Gaps::new());
        assert_eq!(
            unmeasured(Which::Theirs, &theirs),
            ["OVN's IPsec, a third node joins: no monitor"]
        );
        let text = table("a machine", &ours, &theirs);
        let row = "| switched on | 0 | 0 | 2.0-3.0 | 1020-16900 | 30-812 | 12.5, 1 never |";
        assert!(text.contains(row), "{text}");
        let words = ["--testudo", "t", "--ovs", "o", "--ipsec", "i"];
        let options = Options::read(&words).unwrap();
        let json = report(&options, &ours, &theirs).json();
        assert_eq!(json["bench"], "ovn");
        assert_eq!(json["rows"][0]["name"], "switch_on_lost");
        assert_eq!(json["rows"][0]["ours"], 0.0);
        assert_eq!(json["rows"][0]["baseline"]["ovn_ipsec"], 16_900.0);
        let missing = json["missing"].to_string();
        assert!(
            missing.contains("third_lost: ovn_ipsec: no monitor"),
            "{missing}"
        );
        assert!(Options::read(&words[..4]).is_none());
        let with = |list| Options::read(&[&words[..], &["--events", list]].concat());
        let some = with("rebooted,ike_killed").unwrap().events;
        assert_eq!(some, Some(vec![Event::Rebooted, Event::IkeKilled]));
        assert!(with("rebooted,nothing").is_none());
    }
}
