//! Pure decisions: the phases of a roll-out, and what a node has to do next.
//!
//! [`rollout`] is the controller's side: when the cluster may take the next step. [`node`] is the
//! agent's side: which peers it wants, what it does with packets, and what it may acknowledge.
//! [`renewal`] says whose turn it is to renew a certificate, [`authority`] when one CA follows another.
//!
//! # Why no packet is lost, and none leaves in clear that should not
//!
//! Two rules hold at every moment, in every order in which agents learn of things:
//!
//! 1. No node sends clear to a node that drops clear.
//! 2. No node sends ESP to a node that has taken its SAs away on purpose.
//!
//! Going up, the controller asks for `Strict` only when every node has acknowledged `Permissive`,
//! and while the target is `Strict` an agent acknowledges `Permissive` only after it has closed
//! its outbound side for good: to every peer, known or not yet known, sealed or not at all. So
//! whoever drops clear first finds nobody that still sends it. Going down, clear is accepted
//! everywhere before anybody sends it (`Strict` to `Permissive`), and nobody sends ESP any more
//! before anybody removes SAs (`Prepared` to `Disabled`). A change of the target is a step of its
//! own, with acknowledgements of its own, because what an acknowledgement promises depends on
//! where the cluster is going.
#![forbid(unsafe_code)]

pub mod authority;
#[cfg(test)]
mod chance;
mod disputes;
pub mod node;
mod peers;
pub mod renewal;
pub mod rollout;
#[cfg(test)]
mod sim;
mod traffic;

use testudo_model::policy::{Enforcement, Keying, Mode, OverlayType};
use testudo_model::{EncryptionPolicySpec, Phase};

/// Where the spec wants the cluster to be.
pub fn target(spec: &EncryptionPolicySpec) -> Phase {
    match (spec.mode, spec.enforcement) {
        (Mode::Disabled | Mode::External, _) => Phase::Disabled,
        (Mode::Full, Enforcement::Permissive) => Phase::Permissive,
        (Mode::Full, Enforcement::Strict) => Phase::Strict,
    }
}

/// What this build cannot do of a spec, a sentence each with what to write instead. While there
/// is any, controller and agents stay as they are.
pub fn refusals(spec: &EncryptionPolicySpec) -> Vec<String> {
    let mut refusals = Vec::new();
    if spec.mode != Mode::Full {
        return refusals;
    }
    let mut refuse = |text: &str| refusals.push(text.to_owned());
    if spec.keying == Keying::PreSharedKey {
        refuse("spec.keying: PreSharedKey is not built yet; write Certificate");
    }
    if spec.overlay.kind == OverlayType::Auto && spec.overlay.port.is_none() {
        refuse(
            "spec.overlay.type: Auto is not found out yet; write Geneve, VXLAN or Routed, \
             or give spec.overlay.port",
        );
    }
    let strict = spec.enforcement == Enforcement::Strict;
    if spec.overlay.kind == OverlayType::Routed && spec.overlay.pod_cidrs.is_empty() && strict {
        refuse(
            "spec.overlay.podCIDRs: Strict cannot close what it does not know; write the prefixes \
             that hold all pods of all nodes",
        );
    }
    if spec.host_traffic {
        refuse("spec.hostTraffic: traffic between hosts is not built yet; write false");
    }
    refusals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_field_and_the_way_out() {
        let mut spec = EncryptionPolicySpec {
            mode: Mode::Full,
            ..EncryptionPolicySpec::default()
        };
        assert!(refusals(&spec)[0].contains("spec.overlay.type"));
        spec.overlay.port = Some(6081);
        assert!(refusals(&spec).is_empty());
        spec.overlay.kind = OverlayType::Routed;
        assert!(refusals(&spec)[0].contains("spec.overlay.podCIDRs"));
        spec.overlay.pod_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(refusals(&spec).is_empty());
        spec.keying = Keying::PreSharedKey;
        spec.host_traffic = true;
        assert_eq!(refusals(&spec).len(), 2);
        spec.mode = Mode::Disabled;
        assert!(refusals(&spec).is_empty(), "what is off needs nothing");
    }

    #[test]
    fn targets() {
        for (mode, enforcement, phase) in [
            (Mode::Disabled, Enforcement::Strict, Phase::Disabled),
            (Mode::External, Enforcement::Strict, Phase::Disabled),
            (Mode::Full, Enforcement::Permissive, Phase::Permissive),
            (Mode::Full, Enforcement::Strict, Phase::Strict),
        ] {
            let spec = EncryptionPolicySpec {
                mode,
                enforcement,
                ..EncryptionPolicySpec::default()
            };
            assert_eq!(target(&spec), phase);
        }
    }
}
