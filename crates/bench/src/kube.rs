//! The bench `kube`: what a cluster of many nodes costs an API server and the controller.
//!
//! A real control plane (`testudo-kube-env`) and the real controller; the agents are tasks of this process
//! that use the store as agents do: each with a token bound to its node and connections of its own, the four
//! watches, server-side applies of its object and its status, and a request for each certificate. They seal no
//! packets.

mod agent;
mod cluster;
mod counters;

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
    time: Duration,
    spent: Counters,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
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
    let progress = Arc::new(Progress::default());
    let people = world.store();
    let mut spec = EncryptionPolicySpec::default();
    spec.overlay.kind = OverlayType::Vxlan;
    people.apply(EncryptionPolicy::new(CLUSTER, spec)).await?;
    let all = nodes.len() as u64;

    let mut stage = Stage::new(&world, options.patience)?;
    for node in nodes {
        agent::start(node, number, options.watches, Arc::clone(&progress));
    }
    let joined = stage
        .until("all have joined", || progress.certificates() >= all)
        .await?;

    stage.begin()?;
    tokio::time::sleep(STEADY).await;
    let steady = Phase {
        time: stage.began.elapsed(),
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
    let memory = usage::resident(&controller.to_string())?;
    let server = world.memory_of_api_server()?;
    Ok(report(
        options, &joined, &steady, &strict, &rotated, memory, server,
    ))
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
    while Instant::now() < deadline {
        let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
        last = format!("{:?}", policy.as_ref().map(|policy| &policy.status));
        if policy.as_ref().is_some_and(&holds) {
            return stage.end().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bail!("not in time: the roll-out; see --minutes: {last}")
}

/// Measures one phase after the other.
struct Stage<'a> {
    world: &'a World,
    patience: Duration,
    began: Instant,
    before: Counters,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World, patience: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            world,
            patience,
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
    async fn end(&self) -> anyhow::Result<Phase> {
        let time = self.began.elapsed();
        let deadline = Instant::now() + ON_ITS_WAY;
        let mut spent = self.spent()?;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let later = self.spent()?;
            // Bookmarks alone come all the time.
            let quiet = later.events - spent.events < 0.1 * spent.events / time.as_secs_f64();
            spent = later;
            if quiet || Instant::now() > deadline {
                return Ok(Phase { time, spent });
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
        let phase = self.end().await?;
        eprintln!("==> {what}: {:.1} s", phase.time.as_secs_f64());
        Ok(phase)
    }
}

fn report(
    options: &Options,
    joined: &Phase,
    steady: &Phase,
    strict: &Phase,
    rotated: &Phase,
    memory: u64,
    server: u64,
) -> Report {
    let n = f64::from(options.nodes);
    let mut rows = Vec::new();
    let mut row = |name, unit, value: f64| {
        rows.push(Row {
            name,
            unit,
            ours: Measured::of(vec![value]).ok_or_else(|| "not measured".to_owned()),
            baseline: Vec::new(),
            target: "",
        });
    };
    let seconds = steady.time.as_secs_f64();
    const MIB: f64 = (1 << 20) as f64;
    row(
        "steady_requests_per_s",
        "1/s",
        steady.spent.requests / seconds,
    );
    row(
        "steady_watch_events_per_s",
        "1/s",
        steady.spent.events / seconds,
    );
    row(
        "steady_kib_per_s",
        "KiB/s",
        steady.spent.bytes / 1024.0 / seconds,
    );
    row(
        "steady_controller_cpu",
        "%",
        100.0 * steady.spent.controller / seconds,
    );
    row(
        "steady_api_server_cpu",
        "%",
        100.0 * steady.spent.server / seconds,
    );
    let phases = [
        (
            joined,
            [
                "join_s",
                "join_requests_per_node",
                "join_watch_events_per_node",
                "join_mib",
                "join_controller_cpu_ms_per_node",
                "join_api_server_cpu_ms_per_node",
            ],
        ),
        (
            strict,
            [
                "rollout_s",
                "rollout_requests_per_node",
                "rollout_watch_events_per_node",
                "rollout_mib",
                "rollout_controller_cpu_ms_per_node",
                "rollout_api_server_cpu_ms_per_node",
            ],
        ),
        (
            rotated,
            [
                "rotation_s",
                "rotation_requests_per_node",
                "rotation_watch_events_per_node",
                "rotation_mib",
                "rotation_controller_cpu_ms_per_node",
                "rotation_api_server_cpu_ms_per_node",
            ],
        ),
    ];
    for (phase, [time, requests, events, mib, controller, server]) in phases {
        row(time, "s", phase.time.as_secs_f64());
        row(requests, "", phase.spent.requests / n);
        row(events, "", phase.spent.events / n);
        row(mib, "MiB", phase.spent.bytes / MIB);
        row(controller, "ms", 1000.0 * phase.spent.controller / n);
        row(server, "ms", 1000.0 * phase.spent.server / n);
    }
    row("controller_resident", "MiB", memory as f64 / 1024.0);
    row("api_server_resident", "MiB", server as f64 / 1024.0);
    let mut notes = vec![format!(
        "{} nodes; requests, watch events and bytes are those of testudo.dev and of \
         certificates.k8s.io, as the API server counts them",
        options.nodes
    )];
    if !options.watches {
        notes.push("agents did not watch the objects of other nodes".to_owned());
    }
    Report {
        bench: "kube",
        machine: usage::machine(),
        rows,
        notes,
    }
}
