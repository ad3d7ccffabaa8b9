//! The bench `kube`: what a cluster of many nodes costs an API server and the controller.
//!
//! A real control plane (`testudo-kube-env`) and the real controller; the agents are tasks of this process
//! that use the store as agents do: each with a token bound to its node and connections of its own, the four
//! watches, server-side applies of its object and its status, and a request for each certificate. They seal no
//! packets.

mod agent;
mod cluster;
mod counters;
mod peers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use testudo_model::EncryptionPolicy;
use testudo_model::policy::{
    CLUSTER, EncryptionPolicyKind, EncryptionPolicySpec, Mode, OverlayType,
};
use testudo_store::Store;
use testudo_store_kube::KubeStore;

use self::agent::Progress;
use self::cluster::World;
use self::counters::Counters;
use crate::report::{Measured, Report, Row};
use crate::usage;

/// How long nothing is done, to see what doing nothing costs.
const STEADY: Duration = Duration::from_secs(30);

/// How long what is on its way to watches at the end of a phase is waited for.
const ON_ITS_WAY: Duration = Duration::from_secs(120);

/// What is asked for.
pub(crate) struct Options {
    json: bool,
    nodes: u32,
    testudo: PathBuf,
    /// Whether agents watch the objects of all nodes, as real ones do.
    watches: bool,
    patience: Duration,
}

impl Options {
    /// `--testudo FILE [-o json|table] [--nodes N] [--minutes N] [--without-watches]`
    pub(crate) fn read(mut words: &[&str]) -> Option<Self> {
        let mut out = Self {
            json: false,
            nodes: 1000,
            testudo: PathBuf::new(),
            watches: true,
            patience: Duration::from_secs(30 * 60),
        };
        while let [word, rest @ ..] = words {
            words = rest;
            if *word == "--without-watches" {
                out.watches = false;
                continue;
            }
            let [value, rest @ ..] = rest else {
                return None;
            };
            words = rest;
            match (*word, *value) {
                ("-o", "json") => out.json = true,
                ("-o", "table") => out.json = false,
                ("--nodes", n) => {
                    out.nodes = n.parse().ok().filter(|n| (2..=5000).contains(n))?;
                }
                ("--minutes", n) => {
                    let minutes: u64 = n.parse().ok().filter(|n| *n > 0)?;
                    out.patience = Duration::from_secs(minutes * 60);
                }
                ("--testudo", file) => out.testudo = PathBuf::from(file),
                _ => return None,
            }
        }
        (!out.testudo.as_os_str().is_empty()).then_some(out)
    }
}

/// What one phase took.
struct Phase {
    /// Until it was done.
    time: Duration,
    /// Until all watches had been told.
    whole: Duration,
    spent: Counters,
}

/// All that was seen.
struct Seen {
    joined: Phase,
    rest: Phase,
    strict: Phase,
    rotated: Phase,
    /// Resident memory of the controller and of the API server, KiB.
    controller: u64,
    server: u64,
    object: Size,
    failures: u64,
}

/// Bytes of one node's object, as JSON.
struct Size {
    whole: usize,
    managed: usize,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(options))?;
    match options.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.table()),
    }
    Ok(())
}

async fn measure(options: &Options) -> anyhow::Result<Report> {
    let number = options.nodes;
    let mut world = World::start(&options.testudo)?;
    let nodes = world.nodes(number).await?;
    world.start_controller(&options.testudo)?;
    let progress = Arc::new(Progress::new(number));
    let people = world.store();
    let mut spec = EncryptionPolicySpec::default();
    spec.overlay.kind = OverlayType::Vxlan;
    people.apply(EncryptionPolicy::new(CLUSTER, spec)).await?;
    let all = nodes.len() as u64;

    let mut stage = Stage::new(&world, options)?;
    for node in nodes {
        agent::start(node, number, options.watches, Arc::clone(&progress));
    }
    let joined = stage
        .until("all have joined", || progress.certificates() >= all)
        .await?;

    stage.begin()?;
    tokio::time::sleep(STEADY).await;
    let rest = Phase {
        time: stage.began.elapsed(),
        whole: stage.began.elapsed(),
        spent: stage.spent()?,
    };

    stage.begin()?;
    change(&people, |policy| policy.spec.mode = Mode::Full).await?;
    let strict = settled(&people, &mut stage, |policy| {
        let status = &policy.status;
        status.phase == testudo_model::Phase::Strict
            && status.nodes_acknowledged == number
            && status.waiting_on.is_empty()
    })
    .await?;

    stage.begin()?;
    change(&people, |policy| policy.spec.certificates.rotation += 1).await?;
    let rotated = stage
        .until("all have new certificates", || {
            progress.certificates() >= 2 * all
        })
        .await?;
    let controller = world.controller().context("the controller")?;
    let seen = Seen {
        joined,
        rest,
        strict,
        rotated,
        controller: usage::resident(&controller.to_string())?,
        server: world.memory_of_api_server()?,
        object: world.size_of_object()?,
        failures: progress.failures(),
    };
    Ok(report(options, &seen))
}

/// Makes a change of the policy as a person would.
async fn change(store: &KubeStore, change: impl Fn(&mut EncryptionPolicy)) -> anyhow::Result<()> {
    for _ in 0..8 {
        let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
        let mut policy = policy.context("the policy")?;
        change(&mut policy);
        match store.apply(policy).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("the policy is changed all the time")
}

/// Asks for the policy twice a second, which is counted among the requests.
async fn settled(
    store: &KubeStore,
    stage: &mut Stage<'_>,
    holds: impl Fn(&EncryptionPolicy) -> bool,
) -> anyhow::Result<Phase> {
    let deadline = Instant::now() + stage.patience;
    let mut last = String::new();
    let mut told = String::new();
    while Instant::now() < deadline {
        // A machine that has too much to do is asked again.
        let policy = match store.get::<EncryptionPolicyKind>(CLUSTER).await {
            Ok(policy) => policy,
            Err(error) => {
                eprintln!("==> {error}");
                continue;
            }
        };
        last = format!("{:?}", policy.as_ref().map(|policy| &policy.status));
        let step = policy.as_ref().map_or_else(String::new, |policy| {
            let status = &policy.status;
            format!(
                "{}, {} of {}",
                status.phase, status.nodes_acknowledged, status.nodes
            )
        });
        if step != told {
            eprintln!("==> {step}: {:.1} s", stage.began.elapsed().as_secs_f64());
            told = step;
        }
        if policy.as_ref().is_some_and(&holds) {
            return stage.end("Strict").await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bail!("not in time: the roll-out; see --minutes: {last}")
}

/// Measures one phase after the other.
struct Stage<'a> {
    world: &'a World,
    /// More than come in two seconds.
    bookmarks: f64,
    patience: Duration,
    began: Instant,
    before: Counters,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World, options: &Options) -> anyhow::Result<Self> {
        Ok(Self {
            world,
            bookmarks: f64::from(options.nodes) / 4.0,
            patience: options.patience,
            began: Instant::now(),
            before: world.counters()?,
        })
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        self.before = self.world.counters()?;
        self.began = Instant::now();
        Ok(())
    }

    fn spent(&self) -> anyhow::Result<Counters> {
        Ok(self.world.counters()?.since(&self.before))
    }

    /// The phase ends now; what its changes make the API server tell is waited for and is its own.
    async fn end(&self, what: &str) -> anyhow::Result<Phase> {
        let time = self.began.elapsed();
        eprintln!("==> {what}: {:.1} s", time.as_secs_f64());
        let deadline = Instant::now() + ON_ITS_WAY;
        let mut spent = self.spent()?;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let later = self.spent()?;
            let more = later.events - spent.events;
            // Bookmarks alone come all the time, one a minute to each watch.
            let quiet = more < 0.1 * spent.events / time.as_secs_f64() || more < self.bookmarks;
            spent = later;
            if quiet || Instant::now() > deadline {
                let whole = self.began.elapsed();
                eprintln!(
                    "==> {what}, all told: {:.1} s, {spent}",
                    whole.as_secs_f64()
                );
                return Ok(Phase { time, whole, spent });
            }
        }
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) -> anyhow::Result<Phase> {
        let mut told = Instant::now();
        while !holds() {
            if self.began.elapsed() > self.patience {
                bail!("not in time: {what}; see --minutes");
            }
            if told.elapsed() > Duration::from_secs(30) {
                eprintln!(
                    "==> waiting: {what}, {:.0} s",
                    self.began.elapsed().as_secs_f64()
                );
                told = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.end(what).await
    }
}

/// What is told of a phase in which something happens. `n`: nodes.
fn phase_rows(phase: &Phase, n: f64) -> [(&'static str, f64); 13] {
    let spent = &phase.spent;
    let (seconds, whole) = (phase.time.as_secs_f64(), phase.whole.as_secs_f64());
    let ms_by_node = |seconds: f64| 1000.0 * seconds / n;
    [
        ("s", seconds),
        ("told_s", whole),
        ("requests_per_s", spent.requests / seconds),
        ("requests_per_node", spent.requests / n),
        ("node_lists_per_node", spent.lists / n),
        ("listed_nodes_per_node", spent.listed / n),
        ("watch_events_per_node", spent.events / n),
        ("kib_per_node", spent.bytes / 1024.0 / n),
        ("controller_cpu_ms_per_node", ms_by_node(spent.controller)),
        ("api_server_cpu_ms_per_node", ms_by_node(spent.server)),
        ("etcd_cpu_ms_per_node", ms_by_node(spent.etcd)),
        ("agents_cpu_ms_per_node", ms_by_node(spent.agents)),
        ("controller_cpu_percent", 100.0 * spent.controller / whole),
    ]
}

/// What is told of a time in which nothing happens.
fn rest_rows(phase: &Phase) -> [(&'static str, f64); 6] {
    let spent = &phase.spent;
    let seconds = phase.time.as_secs_f64();
    [
        ("requests_per_s", spent.requests / seconds),
        ("node_lists_per_s", spent.lists / seconds),
        ("watch_events_per_s", spent.events / seconds),
        ("kib_per_s", spent.bytes / 1024.0 / seconds),
        ("controller_cpu_percent", 100.0 * spent.controller / seconds),
        ("api_server_cpu_percent", 100.0 * spent.server / seconds),
    ]
}

/// The unit that a row's name says.
fn unit(name: &str) -> &'static str {
    let units = [
        ("_mib", "MiB"),
        ("kib_per_s", "KiB/s"),
        ("kib_per_node", "KiB"),
        ("_percent", "%"),
        ("_ms_per_node", "ms"),
        ("_per_s", "1/s"),
        ("_per_node", ""),
        ("_s", "s"),
    ];
    let of_name = units.iter().find(|(end, _)| name.ends_with(end));
    of_name.map_or("", |(_, unit)| unit)
}

fn report(options: &Options, seen: &Seen) -> Report {
    let mut values: Vec<(String, f64)> = Vec::new();
    let mut add = |phase: &str, rows: &[(&str, f64)]| {
        let named = rows
            .iter()
            .map(|(name, value)| (format!("{phase}_{name}"), *value));
        values.extend(named);
    };
    let n = f64::from(options.nodes);
    add("join", &phase_rows(&seen.joined, n));
    add("rest", &rest_rows(&seen.rest));
    add("rollout", &phase_rows(&seen.strict, n));
    add("rotation", &phase_rows(&seen.rotated, n));
    add(
        "controller",
        &[("resident_mib", seen.controller as f64 / 1024.0)],
    );
    add(
        "api_server",
        &[("resident_mib", seen.server as f64 / 1024.0)],
    );
    let rows = values.into_iter().map(|(name, value)| Row {
        unit: unit(&name),
        name: name.into(),
        ours: Measured::of(vec![value]).ok_or_else(|| "not measured".to_owned()),
        baseline: Vec::new(),
        target: "",
    });
    let mut notes = vec![
        format!(
            "{} nodes; requests, lists, watch events and bytes are those of testudo.dev and of \
             certificates.k8s.io, as the API server counts them",
            options.nodes
        ),
        format!(
            "an object of a node is {} bytes long, {} of them managedFields; {} calls of agents failed \
             and were tried again",
            seen.object.whole, seen.object.managed, seen.failures
        ),
    ];
    if !options.watches {
        notes.push("agents did not watch the objects of other nodes".to_owned());
    }
    Report {
        bench: "kube",
        machine: usage::machine(),
        rows: rows.collect(),
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_unit_or_is_a_count() {
        let phase = Phase {
            time: Duration::from_secs(2),
            whole: Duration::from_secs(4),
            spent: Counters {
                requests: 10.0,
                bytes: 4096.0,
                controller: 0.5,
                ..Counters::default()
            },
        };
        let rows = phase_rows(&phase, 2.0);
        let of = |name: &str| {
            rows.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| *value)
        };
        assert_eq!(of("requests_per_s"), Some(5.0));
        assert_eq!(of("kib_per_node"), Some(2.0));
        assert_eq!(of("controller_cpu_ms_per_node"), Some(250.0));
        assert_eq!(of("controller_cpu_percent"), Some(12.5));
        let rest = rest_rows(&phase);
        let names = rows
            .iter()
            .chain(&rest)
            .map(|(name, _)| format!("x_{name}"));
        for name in names {
            let counts = ["requests", "lists", "listed_nodes", "watch_events"];
            let count = counts
                .iter()
                .any(|what| name.ends_with(&format!("{what}_per_node")));
            assert_eq!(unit(&name).is_empty(), count, "{name}");
        }
        assert_eq!(unit("api_server_resident_mib"), "MiB");
        assert_eq!(unit("join_requests_per_s"), "1/s");
        assert_eq!(unit("rest_kib_per_s"), "KiB/s");
    }
}
