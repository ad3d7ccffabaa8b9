//! `testudo init | start | stop`: the cluster's encryption on and off.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;
use testudo_model::policy::{
    CLUSTER, EncryptionPolicyKind, EncryptionPolicySpec, Enforcement, Mode, OverlayType,
};
use testudo_model::{ConditionStatus, EncryptionPolicy, Kind, Object, Phase};
use testudo_store::{AnyObject, Applied, Event, KindName, Location, Store, Watch};
use testudo_store_kube::AnyStore;

use crate::change::{Done, Manner, PolicyChange, report};
use crate::exit::{Outcome, TimedOut};
use crate::global::Global;
use crate::{output, signals, store};

const INIT_EXAMPLES: &str = "\
Examples:
  testudo init                            encrypt, and wait until clear packets are dropped
  testudo init --overlay geneve           on a cluster whose overlay is Geneve (UDP 6081)
  testudo init --overlay routed --pod-cidr 10.244.0.0/16
  testudo init --wait=false               only say what is wanted";

/// Turn encryption on: make the policy, lead all nodes to Strict.
#[derive(Args)]
#[command(after_help = INIT_EXAMPLES)]
pub(crate) struct InitCommand {
    /// How pods' packets cross the nodes' network [default: what the policy or the lab says]
    #[arg(long, value_enum)]
    overlay: Option<OverlayName>,

    /// The overlay's UDP port [default: the overlay's own]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,

    /// A prefix that holds pods of any node (routed)
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNet>,

    /// End at Permissive: encrypt, but still accept clear packets
    #[arg(long)]
    permissive: bool,
}

/// Turn encryption on again after `stop`.
#[derive(Args)]
#[command(after_help = "Example:\n  testudo start --timeout 30s")]
pub(crate) struct StartCommand {}

/// Turn encryption off, in the same acknowledged steps.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  testudo stop\n  testudo stop --take-over    also where GitOps keeps spec.mode"
)]
pub(crate) struct StopCommand {
    /// Also where somebody else keeps `spec.mode` (kubectl, Helm, GitOps), who may write it again
    #[arg(long)]
    take_over: bool,
}

/// Names of overlays as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OverlayName {
    Auto,
    Geneve,
    Vxlan,
    Routed,
}

impl From<OverlayName> for OverlayType {
    fn from(name: OverlayName) -> Self {
        match name {
            OverlayName::Auto => Self::Auto,
            OverlayName::Geneve => Self::Geneve,
            OverlayName::Vxlan => Self::Vxlan,
            OverlayName::Routed => Self::Routed,
        }
    }
}

/// `testudo init`.
pub(crate) fn init(command: &InitCommand, global: &Global) -> Outcome {
    let store = store::open_to_write(global)?;
    let change = |policy: &mut EncryptionPolicy| {
        let spec = &mut policy.spec;
        spec.mode = Mode::Full;
        spec.enforcement = match command.permissive {
            true => Enforcement::Permissive,
            false => Enforcement::Strict,
        };
        if let Some(name) = command.overlay {
            spec.overlay.kind = name.into();
            spec.overlay.port = None;
        }
        if command.port.is_some() {
            spec.overlay.port = command.port;
        }
        if !command.pod_cidrs.is_empty() {
            spec.overlay.pod_cidrs.clone_from(&command.pod_cidrs);
        }
        possible(spec)
    };
    signals::runtime()?.block_on(turn(&store, global, true, &change))
}

/// `testudo start`.
pub(crate) fn start(_command: &StartCommand, global: &Global) -> Outcome {
    let store = store::open_to_write(global)?;
    let change = |policy: &mut EncryptionPolicy| {
        policy.spec.mode = Mode::Full;
        possible(&policy.spec)
    };
    signals::runtime()?.block_on(turn(&store, global, false, &change))
}

/// What would be refused once it is written is not written at all: the last policy stays in force.
/// `init` and `start` are for what they turn on, so they refuse what stood there as well.
fn possible(spec: &EncryptionPolicySpec) -> Result<(), String> {
    let refusals = testudo_plan::refusals(spec);
    if refusals.is_empty() {
        return Ok(());
    }
    let flags = "see --overlay, --port and --pod-cidr of `testudo init`";
    Err(format!("{} ({flags})", refusals.join("; ")))
}

/// Refuses a change to what this build would not carry out, before it is written. What stands there
/// unsupported already is no reason against another change, but is told.
pub(crate) fn supported(
    before: Option<&EncryptionPolicySpec>,
    after: &EncryptionPolicySpec,
) -> Result<(), String> {
    let refusals = testudo_plan::refusals(after);
    let stood = before.map(testudo_plan::refusals).unwrap_or_default();
    let new = refusals.iter().any(|refusal| !stood.contains(refusal));
    match refusals.join("; ") {
        text if new => Err(text),
        text if !text.is_empty() => {
            eprintln!("the policy stays unsupported, and no step is taken: {text}");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// `testudo stop`.
pub(crate) fn stop(command: &StopCommand, global: &Global) -> Outcome {
    let store = match command.take_over {
        true => store::open_to_take_over(global)?,
        false => store::open_to_write(global)?,
    };
    let change = |policy: &mut EncryptionPolicy| {
        policy.spec.mode = Mode::Disabled;
        Ok(())
    };
    // Without a policy nodes stay as they were: that it is off has to be written.
    signals::runtime()?.block_on(turn(&store, global, true, &change))
}

/// What a verb prints for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Turned {
    phase: Phase,
    nodes: u32,
    tunnels_up: u32,
    tunnels_expected: u32,
    seconds: f64,
}

async fn turn(
    store: &AnyStore,
    global: &Global,
    create: bool,
    change: &PolicyChange<'_>,
) -> Outcome {
    let began = Instant::now();
    // The watch begins before the write, so that no step of the roll-out is missed.
    let watch = store.watch::<EncryptionPolicyKind>().await?;
    let policy = write(store, create, change).await?.object;
    if global.wait == Some(false) {
        let target = target(&policy);
        return match global.format().is_data() {
            true => output::data(global.format(), &policy),
            false => output::line(&format!("encryptionpolicy/{CLUSTER}: {target} is wanted")),
        };
    }
    arrive(store, global, watch, policy, began).await
}

/// Waits until the cluster is where the policy wants it, and tells where it is.
async fn arrive(
    store: &AnyStore,
    global: &Global,
    watch: Watch<EncryptionPolicyKind>,
    policy: EncryptionPolicy,
    began: Instant,
) -> Outcome {
    let target = target(&policy);
    let mut wait = Wait::new(policy, target, began);
    let limit = tokio::time::timeout(global.timeout(), wait.run(watch));
    match limit.await {
        Ok(done) => done?,
        Err(_) => {
            return Err(anyhow::Error::new(TimedOut(
                wait.late(&global.timeout(), store).await,
            )));
        }
    }
    wait.report(global)
}

/// Changes the policy, or shows the change, as `apply` and `patch` do: they wait only if they are told to.
pub(crate) fn change(
    global: &Global,
    manner: Manner,
    create: bool,
    change: &PolicyChange<'_>,
) -> Outcome {
    let began = Instant::now();
    let runtime = signals::runtime()?;
    if manner.only_shows() {
        let store = store::open_to_read(global)?;
        let done = runtime.block_on(async {
            let found = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
            let wanted = changed(&store, found.clone(), create, change)?;
            let found = found.map(AnyObject::from);
            Done::between(found.as_ref(), &wanted.into(), manner)
        })?;
        return report(global, &[done]);
    }
    let store = store::open_to_write(global)?;
    runtime.block_on(async {
        let waits = global.wait == Some(true);
        let watch = match waits {
            true => Some(store.watch::<EncryptionPolicyKind>().await?),
            false => None,
        };
        let applied = write(&store, create, change).await?;
        let result = applied.change.as_str();
        match watch {
            None => report(global, &[Done::new(KindName::Policy, CLUSTER, result)]),
            Some(watch) => {
                eprintln!("encryptionpolicy/{CLUSTER} {result}");
                arrive(&store, global, watch, applied.object, began).await
            }
        }
    })
}

/// The policy as a change makes it.
fn changed(
    store: &AnyStore,
    found: Option<EncryptionPolicy>,
    create: bool,
    change: &PolicyChange<'_>,
) -> anyhow::Result<EncryptionPolicy> {
    let mut policy = match found {
        Some(policy) => policy,
        None if create => Object::new(CLUSTER, first_spec(store)),
        None => bail!("there is no policy yet: run `testudo init` first"),
    };
    let refused = |reason| anyhow::anyhow!("{reason}; nothing was changed");
    let before = policy.spec.clone();
    change(&mut policy).map_err(refused)?;
    EncryptionPolicyKind::validate(CLUSTER, &policy.spec).map_err(refused)?;
    supported(Some(&before), &policy.spec).map_err(refused)?;
    Ok(policy)
}

/// Makes the policy what is wanted; once more if someone else wrote meanwhile.
async fn write(
    store: &AnyStore,
    create: bool,
    change: &PolicyChange<'_>,
) -> anyhow::Result<Applied<EncryptionPolicyKind>> {
    for _ in 0..8 {
        let found = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
        let policy = changed(store, found, create, change)?;
        match store.apply(policy).await {
            Ok(applied) => return Ok(applied),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.into()),
        }
    }
    bail!("the policy is being changed by others all the time: try again")
}

/// A first policy: in a lab its overlay is known.
fn first_spec(store: &AnyStore) -> EncryptionPolicySpec {
    let mut spec = EncryptionPolicySpec::default();
    let root = store.dir().map(|store| store.root());
    if let Some(overlay) = root.and_then(crate::lab::overlay_of) {
        spec.overlay = overlay;
    }
    spec
}

/// The phase in which the policy's roll-out ends.
pub(crate) fn target(policy: &EncryptionPolicy) -> Phase {
    testudo_plan::target(&policy.spec)
}

/// Waits for a roll-out and tells of its steps on standard error.
struct Wait {
    policy: EncryptionPolicy,
    target: Phase,
    began: Instant,
    shown: String,
}

impl Wait {
    fn new(policy: EncryptionPolicy, target: Phase, began: Instant) -> Self {
        Self {
            policy,
            target,
            began,
            shown: String::new(),
        }
    }

    async fn run(&mut self, mut watch: Watch<EncryptionPolicyKind>) -> anyhow::Result<()> {
        let generation = self.policy.metadata.generation;
        while !self.arrived(generation) {
            match watch.next().await {
                Some(Event::Added(policy) | Event::Modified(policy)) => {
                    self.policy = policy;
                    self.show(generation);
                    self.check_supported(generation)?;
                }
                Some(Event::Deleted(_)) => bail!("the policy was deleted meanwhile"),
                Some(Event::Problem(problem)) => eprintln!("{problem}"),
                Some(Event::Solved(_) | Event::Synced) => {}
                None => bail!("the store has gone away"),
            }
        }
        Ok(())
    }

    /// What cannot be had at all is not waited for.
    fn check_supported(&self, generation: u64) -> anyhow::Result<()> {
        let status = &self.policy.status;
        let mut degraded = status.conditions.iter().filter(|c| c.kind == "Degraded");
        let refused = degraded.find(|c| c.reason == "Unsupported");
        match refused {
            Some(condition) if status.observed_generation >= generation => {
                bail!("{}", condition.message)
            }
            _ => Ok(()),
        }
    }

    fn arrived(&self, generation: u64) -> bool {
        let status = &self.policy.status;
        status.observed_generation >= generation
            && status.phase == self.target
            && status.waiting_on.is_empty()
            && status.nodes_acknowledged == status.nodes
            && (status.nodes > 0 || self.target == Phase::Disabled)
    }

    fn show(&mut self, generation: u64) {
        let status = &self.policy.status;
        if status.observed_generation < generation {
            return;
        }
        let mut line = format!(
            "{:<10} {}/{} nodes",
            status.phase, status.nodes_acknowledged, status.nodes
        );
        if !status.waiting_on.is_empty() {
            line += &format!("  waiting on {}", few(&status.waiting_on));
        }
        if line != self.shown {
            let elapsed = self.began.elapsed();
            eprintln!("{:6.2} s  {line}", elapsed.as_secs_f64());
            self.shown = line;
        }
    }

    /// What to say when time is up: where it stands and what to look at.
    async fn late(&self, timeout: &Duration, store: &AnyStore) -> String {
        let status = &self.policy.status;
        let head = format!("not {} after {} s", self.target, timeout.as_secs_f64());
        if status.observed_generation < self.policy.metadata.generation {
            let running = match store.location() {
                Location::Directory(root) => {
                    format!("`testudo controller --store dir:{}`", root.display())
                }
                Location::Kubernetes(_) => "the controller".to_owned(),
            };
            return format!("{head}: no controller has taken it up; is {running} running?");
        }
        if status.nodes == 0 {
            return format!("{head}: no node is known; is `testudo agent --node NAME` running?");
        }
        let mut text = format!("{head}: at {}", status.phase);
        if !status.waiting_on.is_empty() {
            text += &format!(", waiting on {}", few(&status.waiting_on));
        }
        let degraded = status
            .conditions
            .iter()
            .find(|c| c.kind == "Degraded" && c.status == ConditionStatus::True);
        if let Some(condition) = degraded {
            text += &format!("; {}", condition.message);
        }
        text + "; see `testudo status` and `testudo status --tunnels`"
    }

    fn report(&self, global: &Global) -> Outcome {
        let status = &self.policy.status;
        let turned = Turned {
            phase: status.phase,
            nodes: status.nodes,
            tunnels_up: status.tunnels_up,
            tunnels_expected: status.tunnels_expected,
            seconds: (self.began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        };
        if global.format().is_data() {
            return output::data(global.format(), &turned);
        }
        output::line(&format!(
            "{}: {} nodes, {} of {} tunnels up, {:.2} s",
            turned.phase, turned.nodes, turned.tunnels_up, turned.tunnels_expected, turned.seconds
        ))
    }
}

/// The first few of many names.
pub(crate) fn few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len() {
        0..=SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: Mode, enforcement: Enforcement) -> EncryptionPolicy {
        let spec = EncryptionPolicySpec {
            mode,
            enforcement,
            ..EncryptionPolicySpec::default()
        };
        Object::new(CLUSTER, spec)
    }

    #[test]
    fn what_would_newly_be_refused_is_not_written() {
        let off = EncryptionPolicySpec::default();
        let mut on = EncryptionPolicySpec {
            mode: Mode::Full,
            ..off.clone()
        };
        let error = supported(Some(&off), &on).unwrap_err();
        assert!(error.contains("spec.overlay.type"), "{error}");
        assert_eq!(supported(None, &on), Err(error));
        // It stands like that: whoever mends it may do so in steps, and turn it off.
        let mut other = on.clone();
        other.enforcement = Enforcement::Permissive;
        assert_eq!(supported(Some(&on), &other), Ok(()));
        assert_eq!(supported(Some(&on), &off), Ok(()));
        on.host_traffic = true;
        let error = supported(Some(&other), &on).unwrap_err();
        assert!(error.contains("spec.hostTraffic"), "{error}");
        on.overlay.kind = OverlayType::Geneve;
        on.host_traffic = false;
        assert_eq!(supported(None, &on), Ok(()));
    }

    #[test]
    fn the_target_follows_mode_and_enforcement() {
        let strict = policy(Mode::Full, Enforcement::Strict);
        assert_eq!(target(&strict), Phase::Strict);
        let permissive = policy(Mode::Full, Enforcement::Permissive);
        assert_eq!(target(&permissive), Phase::Permissive);
        let off = policy(Mode::Disabled, Enforcement::Strict);
        assert_eq!(target(&off), Phase::Disabled);
    }

    #[test]
    fn only_the_answer_to_this_change_counts() {
        let mut policy = policy(Mode::Full, Enforcement::Strict);
        policy.metadata.generation = 2;
        policy.status.phase = Phase::Strict;
        policy.status.nodes = 3;
        policy.status.nodes_acknowledged = 3;
        policy.status.observed_generation = 1;
        let mut wait = Wait::new(policy, Phase::Strict, Instant::now());
        assert!(!wait.arrived(2));
        wait.policy.status.observed_generation = 2;
        assert!(wait.arrived(2));
        wait.policy.status.nodes_acknowledged = 2;
        assert!(!wait.arrived(2));
    }

    #[test]
    fn many_names_are_cut() {
        let names: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        assert_eq!(few(&names), "n0, n1, n2, n3, n4 and 4 more");
        assert_eq!(few(&names[..2]), "n0, n1");
    }
}
