//! The controller's side: when the cluster takes the next step.

use std::borrow::Borrow;

use testudo_model::{
    Acknowledgement, Condition, ConditionStatus, EncryptionPolicy, EncryptionPolicyStatus,
    NodeEncryption, Phase, UnixTime, condition,
};

/// How many nodes a message names before it says how many more there are.
const NAMED: usize = 8;

/// The policy's next status. At most one step is taken; call it again after each change of the
/// policy or of a node, the status just made included. Where nothing changes the result equals
/// the present status.
///
/// `unreadable` names nodes whose object stands there but cannot be read: they are waited for,
/// because nobody knows what they do.
pub fn next<N: Borrow<NodeEncryption>>(
    policy: &EncryptionPolicy,
    nodes: &[N],
    unreadable: &[String],
    now: UnixTime,
) -> EncryptionPolicyStatus {
    let nodes: &[&NodeEncryption] = &nodes.iter().map(Borrow::borrow).collect::<Vec<_>>();
    let refusals = crate::refusals(&policy.spec);
    let mut status = policy.status.clone();
    if refusals.is_empty() && !recover(policy, nodes, &mut status) {
        step(policy, nodes, unreadable, &mut status);
    }
    count(nodes, unreadable, &mut status);
    status.observed_generation = policy.metadata.generation;
    conditions(nodes, &refusals, unreadable, now, &mut status);
    status
}

/// Whether a node has done what the policy's present step asks for.
pub fn acknowledged(node: &NodeEncryption, status: &EncryptionPolicyStatus) -> bool {
    node.status.acknowledged
        == Some(Acknowledgement {
            phase: status.phase,
            rollout: status.rollout,
        })
}

/// A policy whose status was lost (its file was written anew without one, or the object was made
/// anew) while nodes have given their word to earlier steps: the roll-out goes on from the highest
/// phase of them, which was set only after all had acknowledged the one before. The agents stay
/// as they are meanwhile ([`crate::node::plan`]).
fn recover(
    policy: &EncryptionPolicy,
    nodes: &[&NodeEncryption],
    status: &mut EncryptionPolicyStatus,
) -> bool {
    if status.rollout != 0 {
        return false;
    }
    let words = || {
        nodes
            .iter()
            .filter_map(|node| node.status.acknowledged)
            .filter(|word| word.rollout > 0)
    };
    let Some(rollout) = words().map(|word| word.rollout).max() else {
        return false;
    };
    status.phase = words().map(|word| word.phase).max().unwrap_or_default();
    status.target = crate::target(&policy.spec);
    // A step of its own, so that no word of before answers it.
    status.rollout = rollout.saturating_add(1);
    status.since = status.rollout;
    true
}

fn step(
    policy: &EncryptionPolicy,
    nodes: &[&NodeEncryption],
    unreadable: &[String],
    status: &mut EncryptionPolicyStatus,
) {
    let target = crate::target(&policy.spec);
    let turned = target != status.target;
    status.target = target;
    let nobody = nodes.is_empty() && unreadable.is_empty();
    let all = unreadable.is_empty() && nodes.iter().all(|node| acknowledged(node, status));
    let go = match status.phase {
        // Nobody has SAs or sends ESP: there is nothing to wait for but a first node.
        Phase::Disabled => target != Phase::Disabled && !nobody,
        // Accepting clear again harms nobody, whoever is Strict already and who is not yet.
        Phase::Strict => target != Phase::Strict,
        // What was acknowledged was a promise for another way.
        Phase::Prepared | Phase::Permissive if turned => false,
        Phase::Prepared | Phase::Permissive => {
            status.phase != target && all && (target < status.phase || !nobody)
        }
    };
    if go {
        if status.phase == Phase::Disabled {
            status.since = status.rollout.saturating_add(1);
        }
        status.phase = status.phase.towards(target);
    }
    // At rest a change of the target asks for no new word: Disabled is Disabled.
    let asks_anew = turned && matches!(status.phase, Phase::Prepared | Phase::Permissive);
    if go || asks_anew {
        status.rollout = status.rollout.saturating_add(1);
    }
}

fn count(nodes: &[&NodeEncryption], unreadable: &[String], status: &mut EncryptionPolicyStatus) {
    let mut waiting: Vec<String> = nodes
        .iter()
        .filter(|node| !acknowledged(node, status))
        .map(|node| node.name().to_owned())
        .chain(unreadable.iter().cloned())
        .collect();
    waiting.sort_unstable();
    waiting.dedup();
    let sum = |part: fn(&NodeEncryption) -> u32| {
        nodes
            .iter()
            .fold(0u32, |sum, node| sum.saturating_add(part(node)))
    };
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    status.nodes = number(nodes.len());
    status.nodes_acknowledged = number(
        nodes
            .iter()
            .filter(|node| acknowledged(node, status))
            .count(),
    );
    status.waiting_on = waiting;
    status.tunnels_up = sum(|node| node.status.tunnels_up);
    status.tunnels_expected = sum(|node| node.status.tunnels_expected);
}

fn conditions(
    nodes: &[&NodeEncryption],
    refusals: &[String],
    unreadable: &[String],
    now: UnixTime,
    status: &mut EncryptionPolicyStatus,
) {
    let (phase, target) = (status.phase, status.target);
    let settled = phase == target && status.waiting_on.is_empty() && refusals.is_empty();
    let waiting = names(&status.waiting_on);
    let (reason, message) = if settled {
        ("Settled", format!("all {} nodes are {phase}", status.nodes))
    } else if !refusals.is_empty() {
        ("Unsupported", refusals.join("; "))
    } else if status.nodes == 0 && status.waiting_on.is_empty() {
        ("NoNodes", "no node has reported yet".to_owned())
    } else if status.waiting_on.is_empty() {
        ("Moving", format!("{phase}, on the way to {target}"))
    } else if phase == target {
        ("Waiting", format!("{phase}; waiting for {waiting}"))
    } else {
        (
            "Waiting",
            format!("{phase}, on the way to {target}; waiting for {waiting}"),
        )
    };
    let degraded: Vec<String> = nodes.iter().filter_map(|node| complaint(node)).collect();
    let (bad, bad_reason, bad_message) = if !refusals.is_empty() {
        (true, "Unsupported", refusals.join("; "))
    } else if !unreadable.is_empty() {
        let text = format!("objects that cannot be read: {}", names(unreadable));
        (true, "Unreadable", text)
    } else if !degraded.is_empty() {
        (true, "Nodes", names(&degraded))
    } else {
        (false, "AsExpected", String::new())
    };
    let generation = status.observed_generation;
    let mut set = |kind: &str, holds: bool, reason: &str, message: String| {
        let condition = Condition {
            kind: kind.to_owned(),
            status: truth(holds),
            reason: reason.to_owned(),
            message,
            last_transition_time: now,
            observed_generation: generation,
        };
        condition::set(&mut status.conditions, condition);
    };
    set("Ready", settled, reason, message.clone());
    set(
        "Progressing",
        !settled && refusals.is_empty(),
        reason,
        message,
    );
    set("Degraded", bad, bad_reason, bad_message);
}

fn complaint(node: &NodeEncryption) -> Option<String> {
    node.status
        .conditions
        .iter()
        .find(|c| c.kind == "Degraded" && c.status == ConditionStatus::True)
        .map(|c| format!("{}: {}", node.name(), c.message))
}

fn truth(holds: bool) -> ConditionStatus {
    match holds {
        true => ConditionStatus::True,
        false => ConditionStatus::False,
    }
}

fn names(all: &[String]) -> String {
    let mut text = all
        .iter()
        .take(NAMED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if all.len() > NAMED {
        text.push_str(&format!(" and {} more", all.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests;
