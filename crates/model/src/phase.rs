//! The phases of a roll-out: `Disabled -> Prepared -> Permissive -> Strict`, and back.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far encryption has been rolled out. The order is the order of the roll-out.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum Phase {
    /// Nothing of ours is in the traffic's way.
    #[default]
    Disabled,
    /// IKE SAs and inbound SAs stand; traffic still leaves in clear, both are accepted.
    Prepared,
    /// Outbound is encrypted to every peer that can open it; clear is still accepted.
    Permissive,
    /// Clear packets of protected flows are dropped in both directions.
    Strict,
}

impl Phase {
    /// All phases in the order of a roll-out.
    pub const ALL: [Phase; 4] = [
        Phase::Disabled,
        Phase::Prepared,
        Phase::Permissive,
        Phase::Strict,
    ];

    /// The phase after this one, towards `Strict`.
    pub fn next(self) -> Option<Phase> {
        Phase::ALL.get(self as usize + 1).copied()
    }

    /// The phase before this one, towards `Disabled`.
    pub fn previous(self) -> Option<Phase> {
        (self as usize)
            .checked_sub(1)
            .and_then(|i| Phase::ALL.get(i))
            .copied()
    }

    /// One step from here towards `target`; `self` when it is there.
    pub fn towards(self, target: Phase) -> Phase {
        let step = match self.cmp(&target) {
            std::cmp::Ordering::Less => self.next(),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => self.previous(),
        };
        step.unwrap_or(self)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Disabled => "Disabled",
            Phase::Prepared => "Prepared",
            Phase::Permissive => "Permissive",
            Phase::Strict => "Strict",
        })
    }
}

/// An agent's word that it has done what a phase asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgement {
    /// The phase that is in force on the node. In a `Permissive` step it may be an earlier one: the
    /// node accepts clear and is that far; the step itself is not acknowledged by it.
    pub phase: Phase,
    /// The step of the roll-out this answers ([`crate::policy::EncryptionPolicyStatus::rollout`]);
    /// an acknowledgement of an earlier step does not count.
    pub rollout: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_out_goes_one_step_at_a_time_and_back_the_same_way() {
        let mut phase = Phase::Disabled;
        let mut seen = vec![phase];
        while phase != Phase::Strict {
            phase = phase.towards(Phase::Strict);
            seen.push(phase);
        }
        assert_eq!(seen, Phase::ALL);
        while phase != Phase::Disabled {
            phase = phase.towards(Phase::Disabled);
            assert_eq!(Some(phase), {
                seen.pop();
                seen.last().copied()
            });
        }
    }
}
