//! The roll-out: which phase comes next, and what the policy's status says of it.

use testudo_model::policy::{Enforcement, Mode};
use testudo_model::{
    Condition, ConditionStatus, EncryptionPolicy, EncryptionPolicyStatus, NodeEncryption, Phase,
    UnixTime, condition,
};
use tracing::info;

/// What the policy's status should be now.
pub(crate) fn status<'a>(
    policy: &EncryptionPolicy,
    nodes: impl Iterator<Item = &'a NodeEncryption> + Clone,
    now: UnixTime,
) -> EncryptionPolicyStatus {
    let old = &policy.status;
    let target = target(policy);
    let acknowledged = |node: &&NodeEncryption| {
        node.status
            .acknowledged
            .is_some_and(|a| a.phase == old.phase && a.rollout == old.rollout)
    };
    let waiting_on: Vec<String> = nodes
        .clone()
        .filter(|n| !acknowledged(n))
        .map(|n| n.name().to_owned())
        .collect();
    let mut status = EncryptionPolicyStatus {
        target,
        nodes: count(nodes.clone().count()),
        nodes_acknowledged: count(nodes.clone().filter(acknowledged).count()),
        tunnels_up: nodes.clone().map(|n| n.status.tunnels_up).sum(),
        tunnels_expected: nodes.clone().map(|n| n.status.tunnels_expected).sum(),
        observed_generation: policy.metadata.generation,
        waiting_on,
        ..old.clone()
    };
    if status.waiting_on.is_empty() && old.phase != target {
        status.phase = old.phase.towards(target);
        status.rollout = old.rollout + 1;
        status.waiting_on = nodes.clone().map(|n| n.name().to_owned()).collect();
        status.nodes_acknowledged = 0;
    }
    set_conditions(policy, nodes, &mut status, now);
    status
}

fn target(policy: &EncryptionPolicy) -> Phase {
    match (policy.spec.mode, policy.spec.enforcement) {
        (Mode::Full, Enforcement::Strict) => Phase::Strict,
        (Mode::Full, Enforcement::Permissive) => Phase::Permissive,
        (Mode::Disabled | Mode::External, _) => Phase::Disabled,
    }
}

/// Tells of each step.
pub(crate) fn log(old: &EncryptionPolicyStatus, new: &EncryptionPolicyStatus) {
    if old.target != new.target {
        info!(target = %new.target, "roll-out towards {}", new.target);
    }
    if old.phase != new.phase {
        info!(
            rollout = new.rollout,
            nodes = new.nodes,
            "phase {}",
            new.phase
        );
    } else if old.waiting_on != new.waiting_on && !new.waiting_on.is_empty() {
        info!(phase = %new.phase, "waiting on {}", new.waiting_on.join(", "));
    } else if old.waiting_on != new.waiting_on {
        info!(phase = %new.phase, nodes = new.nodes, "acknowledged by all nodes");
    }
}

fn set_conditions<'a>(
    policy: &EncryptionPolicy,
    nodes: impl Iterator<Item = &'a NodeEncryption> + Clone,
    status: &mut EncryptionPolicyStatus,
    now: UnixTime,
) {
    let arrived = status.phase == status.target && status.waiting_on.is_empty();
    let tunnels = status.tunnels_up >= status.tunnels_expected;
    let degraded: Vec<String> = nodes.filter_map(degraded).collect();
    let place = match status.waiting_on.as_slice() {
        [] => format!("at {}", status.phase),
        names => format!("at {}, waiting on {}", status.phase, names.join(", ")),
    };
    let bool_status = |b: bool| match b {
        true => ConditionStatus::True,
        false => ConditionStatus::False,
    };
    let mut set = |kind: &str, on: bool, reason: &str, message: String| {
        let new = Condition {
            kind: kind.to_owned(),
            status: bool_status(on),
            reason: reason.to_owned(),
            message,
            last_transition_time: now,
            observed_generation: policy.metadata.generation,
        };
        condition::set(&mut status.conditions, new);
    };
    match (arrived, tunnels) {
        (true, true) => set("Ready", true, "AsWanted", place.clone()),
        (true, false) => set(
            "Ready",
            false,
            "TunnelsDown",
            "tunnels are missing".to_owned(),
        ),
        (false, _) => set("Ready", false, "Progressing", place.clone()),
    }
    match arrived {
        true => set("Progressing", false, "Arrived", place),
        false => set("Progressing", true, "RollingOut", place),
    }
    match degraded.is_empty() {
        true => set("Degraded", false, "AllWell", String::new()),
        false => set("Degraded", true, "NodesDegraded", degraded.join("; ")),
    }
}

/// What a node says is wrong with it.
fn degraded(node: &NodeEncryption) -> Option<String> {
    let mut conditions = node.status.conditions.iter();
    let bad = conditions.find(|c| c.kind == "Degraded" && c.status == ConditionStatus::True)?;
    Some(format!("{}: {}", node.name(), bad.message))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
