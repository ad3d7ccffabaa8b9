//! Nodes that are kept free of pods until their agents are ready: their gates are opened.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use testudo_model::policy::CLUSTER;
use testudo_model::{EncryptionPolicyStatus, NodeEncryption, Phase};
use testudo_plan::rollout;
use testudo_store::Store;
use tracing::info;

use crate::leader::{condition, holds};
use crate::news::{About, News};
use crate::run::{Complaint, Controller};
use crate::safe::{Gated, Safe};
use crate::stragglers::first;

/// A gate that was opened is looked at again after this time.
const OPENED: Duration = Duration::from_secs(5);
/// One that could not be opened is tried again after this time.
const SHUT: Duration = Duration::from_secs(10);
/// Once one could not be opened, no more are tried in this round after this time: where each takes as long
/// as a call may take, the controller has other things to do.
const ROUND: Duration = Duration::from_secs(5);

/// What was done with gates.
#[derive(Default)]
pub(crate) struct Gates {
    /// When to look again at those that were tried, by the node's UID.
    again: BTreeMap<String, Instant>,
    complaint: Complaint,
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// Lets pods start on nodes whose agents are ready. A gate that cannot be opened is told and counted, and
    /// keeps the controller from nothing else.
    pub(crate) async fn open_gates(&mut self) {
        let began = Instant::now();
        self.gates.again.retain(|_, then| began < *then);
        let policy = self.world.policies.objects.get(CLUSTER);
        let status = policy.map(|p| p.status.clone()).unwrap_or_default();
        let mut shut = Vec::new();
        for gated in self.safe.gated() {
            let node = self.world.nodes.objects.get(&gated.name);
            if !node.is_some_and(|node| is_ready(node, &gated, &status)) {
                continue;
            }
            if let Some(then) = self.gates.again.get(&gated.uid) {
                self.absent.look_at(*then);
                continue;
            }
            if !shut.is_empty() && began.elapsed() > ROUND {
                self.absent.look_at(Instant::now());
                break;
            }
            self.numbers.beat();
            let pause = match self.safe.open_gate(&gated).await {
                Ok(()) => {
                    self.tell_of_gate(&gated, status.phase);
                    OPENED
                }
                Err(error) => {
                    shut.push(format!("{} ({error:#})", gated.name));
                    SHUT
                }
            };
            let then = Instant::now() + pause;
            self.absent.look_at(then);
            self.gates.again.insert(gated.uid, then);
        }
        if !shut.is_empty() {
            self.numbers.failed("gates");
            let names = first(&shut);
            let text = format!("start-up taints are not taken off, and pods wait: {names}");
            self.gates.complaint.say(&text);
        }
    }

    fn tell_of_gate(&self, gated: &Gated, phase: Phase) {
        self.numbers.gate_opened();
        info!(node = gated.name, "the agent is ready: pods may start");
        let text = format!("the agent is ready in {phase}: pods may start");
        let about = About::Node(gated.name.clone());
        self.safe
            .tell(News::good(about, "AgentReady", "RemoveTaint", text));
    }
}

/// Whether the agent of this life of the node has the present step in force.
fn is_ready(node: &NodeEncryption, gated: &Gated, status: &EncryptionPolicyStatus) -> bool {
    let same = node.spec.uid.as_str() == gated.uid;
    // What an agent said before the node was booted again says nothing of now.
    let boot = gated.boot.is_empty() || node.spec.boot_id.as_str() == gated.boot;
    let off = status.phase == Phase::Disabled && condition(node, "Ready").is_some_and(holds);
    same && boot && (off || rollout::acknowledged(node, status))
}
