//! `testudo status`: how far the cluster is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, Enforcement, Mode, RotationProgress};
use testudo_model::{
    CaPhase, Condition, ConditionStatus, EncryptionPolicy, NodeEncryption, NodeName, Phase,
    TrustBundleStatus, UnixTime,
};
use testudo_store::{Event, Store};
use testudo_store_kube::AnyStore;

use crate::exit::{Outcome, TimedOut};
use crate::global::Global;
use crate::output::{self, Columns, Format};
use crate::policy::few;
use crate::{ca, policy, signals, store, tunnels};

const EXAMPLES: &str = "\
Examples:
  testudo status
  testudo status -o json
  testudo status --wait --timeout 5m     until all is as the policy wants it
  testudo status --tunnels --node n1     every tunnel of n1, asked of its agent";

/// A line a node and a summary; every tunnel with --tunnels.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusCommand {
    /// Ask the agents for every tunnel: SAs, certificates, counters
    #[arg(long)]
    tunnels: bool,

    /// One node
    #[arg(long, value_name = "NODE")]
    node: Option<NodeName>,
}

/// Runs the verb.
pub(crate) fn run(command: &StatusCommand, global: &Global) -> Outcome {
    let store = store::open_to_read(global)?;
    let runtime = signals::runtime()?;
    let late = match global.wait {
        Some(true) => runtime.block_on(settled(&store, global.timeout()))?,
        _ => None,
    };
    let (policy, mut nodes, bundle) = runtime.block_on(async {
        let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
        let nodes = store.list::<NodeEncryptionKind>().await?.items;
        let bundle = store.get::<TrustBundleKind>(CLUSTER).await?;
        anyhow::Ok((policy, nodes, bundle))
    })?;
    if let Some(name) = &command.node {
        nodes.retain(|node| node.name() == name.as_str());
        anyhow::ensure!(
            !nodes.is_empty(),
            "node \"{name}\" is not known; see `testudo get nodes`"
        );
    }
    if command.tunnels {
        tunnels::show(&nodes, global)?;
    } else {
        let mut view = View::new(policy, &nodes);
        view.ca_rotation = bundle
            .map(|bundle| bundle.status)
            .filter(|status| status.phase != CaPhase::Settled);
        match global.format() {
            Format::Json | Format::Yaml => output::data(global.format(), &view)?,
            Format::Table => view.print(false)?,
            Format::Wide => view.print(true)?,
        }
    }
    match late {
        None => Ok(()),
        Some(why) => {
            let seconds = global.timeout().as_secs_f64();
            let text = format!("not settled after {seconds} s: {why}");
            Err(anyhow::Error::new(TimedOut(text)))
        }
    }
}

/// Waits until the cluster is where its policy wants it and every tunnel is up; `Some`: it was not in
/// time, and why.
async fn settled(store: &AnyStore, timeout: Duration) -> anyhow::Result<Option<String>> {
    let mut policies = store.watch::<EncryptionPolicyKind>().await?;
    let mut watched = store.watch::<NodeEncryptionKind>().await?;
    let (mut policy, mut nodes) = (None, BTreeMap::new());
    let mut synced = (false, false);
    let mut why = "the store has not answered".to_owned();
    let wait = async {
        loop {
            tokio::select! {
                event = policies.next() => match event {
                    Some(Event::Added(new) | Event::Modified(new)) => policy = Some(new),
                    Some(Event::Deleted(_)) => policy = None,
                    Some(Event::Synced) => synced.0 = true,
                    Some(Event::Problem(problem)) => why = problem.to_string(),
                    Some(Event::Solved(_)) => {}
                    None => break,
                },
                event = watched.next() => match event {
                    Some(Event::Added(node) | Event::Modified(node)) => {
                        nodes.insert(node.name().to_owned(), node);
                    }
                    Some(Event::Deleted(node)) => {
                        nodes.remove(node.name());
                    }
                    Some(Event::Synced) => synced.1 = true,
                    Some(Event::Problem(problem)) => why = problem.to_string(),
                    Some(Event::Solved(_)) => {}
                    None => break,
                },
            }
            if synced != (true, true) {
                continue;
            }
            match unsettled(policy.as_ref(), nodes.values()) {
                None => return Ok(()),
                Some(reason) => why = reason,
            }
        }
        Err(anyhow::anyhow!("the store has gone away"))
    };
    match tokio::time::timeout(timeout, wait).await {
        Ok(done) => done.map(|()| None),
        Err(_) => Ok(Some(why)),
    }
}

/// What is still to come; `None`: nothing.
fn unsettled<'a>(
    policy: Option<&EncryptionPolicy>,
    nodes: impl Iterator<Item = &'a NodeEncryption>,
) -> Option<String> {
    let Some(policy) = policy else {
        return Some("there is no policy; see `testudo init`".to_owned());
    };
    let (status, target) = (&policy.status, policy::target(policy));
    if status.observed_generation < policy.metadata.generation {
        return Some("the controller has not taken the policy up".to_owned());
    }
    let on = |text: String| match status.waiting_on.is_empty() {
        true => Some(text),
        false => Some(format!("{text}, waiting on {}", few(&status.waiting_on))),
    };
    if status.phase != target {
        return on(format!("at {} on the way to {target}", status.phase));
    }
    if status.nodes_acknowledged < status.nodes || !status.waiting_on.is_empty() {
        let (done, all) = (status.nodes_acknowledged, status.nodes);
        return on(format!("{done} of {all} nodes acknowledged {target}"));
    }
    if status.nodes == 0 && target != Phase::Disabled {
        return Some("no node is known".to_owned());
    }
    let missing: Vec<String> = nodes
        .filter(|node| node.status.tunnels_up < node.status.tunnels_expected)
        .map(|node| {
            let (up, all) = (node.status.tunnels_up, node.status.tunnels_expected);
            format!("{} ({up} of {all})", node.name())
        })
        .collect();
    match missing.is_empty() {
        true => None,
        false => Some(format!("tunnels are missing at {}", few(&missing))),
    }
}

/// The cluster, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    mode: Mode,
    enforcement: Enforcement,
    phase: Phase,
    target: Phase,
    rollout: u64,
    waiting_on: Vec<String>,
    nodes: Vec<NodeView>,
    tunnels: Count,
    /// The renewal of the nodes' certificates that was asked for last.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_rotation: Option<RotationProgress>,
    /// The rotation of the CA that goes on, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_rotation: Option<TrustBundleStatus>,
    conditions: Vec<Condition>,
}

#[derive(Serialize)]
struct Count {
    up: u32,
    expected: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    name: String,
    addresses: Vec<IpAddr>,
    datapath: String,
    /// Why it is not the kernel's, where it might have been.
    datapath_note: Option<String>,
    phase: Option<Phase>,
    /// Whether the phase acknowledged is the one in force.
    acknowledged: bool,
    tunnels: Count,
    certificate_serial: Option<String>,
    certificate_not_after: Option<UnixTime>,
    effective_mtu: Option<u32>,
    agent_pid: Option<u32>,
    agent_version: Option<String>,
    conditions: Vec<Condition>,
}

impl View {
    fn new(policy: Option<EncryptionPolicy>, nodes: &[NodeEncryption]) -> Self {
        let policy = policy.unwrap_or_else(|| EncryptionPolicy::new(CLUSTER, Default::default()));
        let status = policy.status;
        let nodes: Vec<NodeView> = nodes
            .iter()
            .map(|node| NodeView::new(node, status.rollout))
            .collect();
        Self {
            mode: policy.spec.mode,
            enforcement: policy.spec.enforcement,
            phase: status.phase,
            target: status.target,
            rollout: status.rollout,
            waiting_on: status.waiting_on,
            // Counted from what the nodes say now, not from what the controller last wrote.
            tunnels: Count {
                up: nodes.iter().map(|n| n.tunnels.up).sum(),
                expected: nodes.iter().map(|n| n.tunnels.expected).sum(),
            },
            nodes,
            certificate_rotation: status.certificate_rotation,
            ca_rotation: None,
            conditions: status.conditions,
        }
    }

    fn print(&self, wide: bool) -> Outcome {
        let mut headers = vec![
            "NODE",
            "ADDRESS",
            "PHASE",
            "TUNNELS",
            "CERTIFICATE",
            "STATE",
        ];
        if wide {
            headers.extend(["DATAPATH", "MTU", "SERIAL", "PID", "VERSION"]);
        }
        let mut columns = Columns::new(headers);
        for node in &self.nodes {
            columns.row(node.cells(wide));
        }
        columns.print()?;
        output::line("")?;
        output::line(&self.summary())?;
        for (text, nodes) in self.datapaths() {
            output::line(&format!("{text}: {}", few(&nodes)))?;
        }
        if let Some(text) = self.certificate_rotation.as_ref().and_then(renewing) {
            output::line(&text)?;
        }
        if let Some(text) = self.ca_rotation.as_ref().and_then(ca::rotation) {
            output::line(&text)?;
        }
        for condition in &self.conditions {
            let wrong = match &*condition.kind {
                "Degraded" => ConditionStatus::True,
                "PolicyReadable" | "SecretsUsable" | "RevocationsInForce" => ConditionStatus::False,
                _ => continue,
            };
            if condition.status == wrong {
                let kind = match wrong {
                    ConditionStatus::True => condition.kind.clone(),
                    _ => format!("not {}", condition.kind),
                };
                output::line(&format!("{kind}: {}", condition.message))?;
            }
        }
        Ok(())
    }

    /// Which datapath is whose, where that is worth a line.
    fn datapaths(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for node in &self.nodes {
            if let Some(note) = &node.datapath_note {
                let text = format!("datapath {} ({note})", node.datapath);
                all.entry(text).or_default().push(node.name.clone());
            }
        }
        all
    }

    fn summary(&self) -> String {
        let acknowledged = self.nodes.iter().filter(|n| n.acknowledged).count();
        let mut text = format!("Phase {}", self.phase);
        if self.phase != self.target {
            text += &format!(" on the way to {}", self.target);
        }
        text += &format!(
            ", {acknowledged} of {} nodes acknowledged, {} of {} tunnels up",
            self.nodes.len(),
            self.tunnels.up,
            self.tunnels.expected
        );
        if !self.waiting_on.is_empty() {
            text += &format!(", waiting on {}", few(&self.waiting_on));
        }
        text
    }
}

/// How far a renewal of the nodes' certificates is, while it goes on.
fn renewing(rotation: &RotationProgress) -> Option<String> {
    if rotation.waiting() == 0 {
        return None;
    }
    let mut text = format!(
        "Certificate rotation {}: {} of {} nodes have renewed",
        rotation.number, rotation.done, rotation.nodes
    );
    if !rotation.waiting_on.is_empty() {
        text += &format!(", waiting on {}", few(&rotation.waiting_on));
    }
    Some(text)
}

impl NodeView {
    fn new(node: &NodeEncryption, rollout: u64) -> Self {
        let status = &node.status;
        Self {
            name: node.name().to_owned(),
            addresses: node.spec.addresses.clone(),
            datapath: node.spec.datapath.clone(),
            datapath_note: status.datapath_note.clone(),
            phase: status.acknowledged.map(|a| a.phase),
            acknowledged: status.acknowledged.is_some_and(|a| a.rollout == rollout),
            tunnels: Count {
                up: status.tunnels_up,
                expected: status.tunnels_expected,
            },
            certificate_serial: status.certificate.as_ref().map(|c| c.serial.clone()),
            certificate_not_after: status.certificate.as_ref().map(|c| c.not_after),
            effective_mtu: status.effective_mtu,
            agent_pid: status.agent_pid,
            agent_version: status.agent_version.clone(),
            conditions: status.conditions.clone(),
        }
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let number = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
        let until = self.certificate_not_after.map(|t| t.to_string());
        let mut cells = vec![
            self.name.clone(),
            self.addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            self.phase.map(|p| p.to_string()).unwrap_or_default(),
            format!("{}/{}", self.tunnels.up, self.tunnels.expected),
            until
                .map(|t| format!("until {}", &t[..10.min(t.len())]))
                .unwrap_or_default(),
            self.state(),
        ];
        if wide {
            cells.extend([
                self.datapath.clone(),
                number(self.effective_mtu),
                self.certificate_serial.clone().unwrap_or_default(),
                number(self.agent_pid),
                self.agent_version.clone().unwrap_or_default(),
            ]);
        }
        cells
    }

    /// What is wrong comes first; else whether it keeps up.
    fn state(&self) -> String {
        let is = |kind: &str, status| {
            let mut found = self.conditions.iter();
            found.find(|c| c.kind == kind && c.status == status)
        };
        if let Some(bad) = is("Degraded", ConditionStatus::True) {
            return format!("Degraded: {}", bad.message);
        }
        if let Some(bad) = is("Ready", ConditionStatus::False) {
            return format!("NotReady: {}", bad.message);
        }
        match self.acknowledged {
            true => "Ready".to_owned(),
            false => "Progressing".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn what_is_waited_for_is_said() {
        let none: [NodeEncryption; 0] = [];
        assert!(unsettled(None, none.iter()).unwrap().contains("init"));
        let mut policy = EncryptionPolicy::new(CLUSTER, Default::default());
        policy.metadata.generation = 1;
        let said = |policy: &EncryptionPolicy, nodes: &[NodeEncryption]| {
            unsettled(Some(policy), nodes.iter())
        };
        assert!(said(&policy, &none).unwrap().contains("controller"));
        policy.status.observed_generation = 1;
        assert_eq!(said(&policy, &none), None);
        policy.spec.mode = Mode::Full;
        policy.status.waiting_on = vec!["n2".into()];
        assert_eq!(
            said(&policy, &none).unwrap(),
            "at Disabled on the way to Strict, waiting on n2"
        );
        policy.status.phase = Phase::Strict;
        policy.status.nodes = 2;
        policy.status.nodes_acknowledged = 1;
        assert!(said(&policy, &none).unwrap().contains("1 of 2 nodes"));
        policy.status.waiting_on.clear();
        policy.status.nodes_acknowledged = 2;
        let mut node = node();
        node.status.tunnels_expected = 1;
        let found = said(&policy, std::slice::from_ref(&node)).unwrap();
        assert_eq!(found, "tunnels are missing at n1 (0 of 1)");
        node.status.tunnels_up = 1;
        assert_eq!(said(&policy, &[node]), None);
    }

    #[test]
    fn a_renewal_is_shown_while_it_goes_on() {
        // What a controller of an older build has written says nothing of it.
        let mut policy: EncryptionPolicy = serde_json::from_value(serde_json::json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "EncryptionPolicy",
            "metadata": { "name": "cluster" },
            "spec": {},
            "status": { "phase": "Strict", "nodes": 3 },
        }))
        .unwrap();
        let shown = |policy: &EncryptionPolicy| {
            let view = View::new(Some(policy.clone()), &[]);
            view.certificate_rotation.as_ref().and_then(renewing)
        };
        assert_eq!(shown(&policy), None);
        policy.status.certificate_rotation = Some(RotationProgress {
            number: 4,
            done: 1,
            nodes: 3,
            waiting_on: vec!["n2".into(), "n3".into()],
            ..RotationProgress::default()
        });
        assert_eq!(
            shown(&policy).unwrap(),
            "Certificate rotation 4: 1 of 3 nodes have renewed, waiting on n2, n3"
        );
        policy.status.certificate_rotation = Some(RotationProgress {
            number: 4,
            done: 3,
            nodes: 3,
            ..RotationProgress::default()
        });
        assert_eq!(shown(&policy), None);
    }

    fn node() -> NodeEncryption {
        let node = serde_json::json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "NodeEncryption",
            "metadata": { "name": "n1" },
            "spec": {
                "uid": "00000000-0000-4000-8000-000000000001",
                "bootId": "00000000-0000-4000-8000-000000000002",
                "addresses": ["10.0.0.1"],
                "datapath": "kernel",
            },
        });
        serde_json::from_value(node).unwrap()
    }
}
