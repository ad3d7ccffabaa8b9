//! Tells of a roll-out's steps in the log.

use testudo_model::EncryptionPolicyStatus;
use tracing::{info, warn};

/// Tells what has changed between two statuses of the policy.
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
    } else if old.waiting_on != new.waiting_on {
        match new.waiting_on.as_slice() {
            [] => info!(phase = %new.phase, nodes = new.nodes, "acknowledged by all nodes"),
            names => info!(phase = %new.phase, "waiting on {}", names.join(", ")),
        }
    }
    let complaint = |status: &EncryptionPolicyStatus| {
        let mut degraded = status.conditions.iter().filter(|c| c.kind == "Degraded");
        degraded
            .find(|c| !c.message.is_empty())
            .map(|c| c.message.clone())
    };
    let (before, now) = (complaint(old), complaint(new));
    match now {
        Some(text) if before.as_ref() != Some(&text) => warn!("degraded: {text}"),
        None if before.is_some() => info!("no longer degraded"),
        _ => {}
    }
}
