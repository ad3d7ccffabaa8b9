//! `testudo patch`: changes of the policy as `kubectl patch` and `oc patch` have them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use json_patch::PatchOperation;
use serde_json::Value;
use testudo_model::EncryptionPolicy;
use testudo_model::policy::{CLUSTER, Mode, OverlayType};
use testudo_store::KindName;

use crate::amend;
use crate::change::Manner;
use crate::exit::{Outcome, Usage};
use crate::global::Global;
use crate::openshift::{Wish, is_network};
use crate::{objects, policy};

const EXAMPLES: &str = "\
Examples:
  testudo patch networks.operator.openshift.io cluster --type=merge -p \\
    '{\"spec\":{\"defaultNetwork\":{\"ovnKubernetesConfig\":{\"ipsecConfig\":{\"mode\":\"Full\"}}}}}'
  testudo patch encryptionpolicy cluster -p '{\"spec\":{\"enforcement\":\"Permissive\"}}' --diff
  testudo patch policy cluster --type=json \\
    -p '[{\"op\":\"replace\",\"path\":\"/spec/full/encapsulation\",\"value\":\"Always\"}]'";

/// Change the policy by a patch; OpenShift's patches of ipsecConfig have the same meaning here.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PatchCommand {
    /// EncryptionPolicy, or OpenShift's networks.operator.openshift.io; KIND/NAME too
    #[arg(value_name = "KIND")]
    kind: String,

    /// Its name: cluster
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// The patch, in JSON or YAML
    #[arg(
        short,
        long,
        value_name = "PATCH",
        conflicts_with = "patch_file",
        required_unless_present = "patch_file"
    )]
    patch: Option<String>,

    /// A file with the patch, or - for standard input
    #[arg(long, value_name = "FILE")]
    patch_file: Option<PathBuf>,

    /// What the patch is: a document of changes (RFC 7396) or a list of operations (RFC 6902)
    #[arg(
        long = "type",
        value_enum,
        value_name = "merge|json",
        default_value = "merge",
        hide_possible_values = true
    )]
    kind_of_patch: PatchType,

    #[command(flatten)]
    manner: Manner,
}

/// kubectl's names of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PatchType {
    Merge,
    Json,
}

/// What is patched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Network,
    Policy,
}

/// Runs the verb.
pub(crate) fn run(command: &PatchCommand, global: &Global) -> Outcome {
    let target = target(command)?;
    let (text, from) = match (&command.patch, &command.patch_file) {
        (Some(text), _) => (text.clone(), "the patch".to_owned()),
        (None, Some(file)) => (objects::read(file)?, file.display().to_string()),
        (None, None) => bail!("no patch is given"),
    };
    let patch: Value = serde_saphyr::from_str(&text)
        .with_context(|| format!("{from} is neither JSON nor YAML"))?;
    match target {
        Target::Network => {
            let wish = match command.kind_of_patch {
                PatchType::Merge if !patch.is_object() => Err(
                    "a merge patch is an object; for a list of operations say --type=json".into(),
                ),
                PatchType::Merge => Ok(Wish::Merge(patch)),
                PatchType::Json => Wish::json(patch),
            };
            let wish = wish.map_err(|error| anyhow::anyhow!("{error}"))?;
            wished(&wish, command.manner, global)
        }
        Target::Policy => {
            let changed = Patch::read(command.kind_of_patch, patch)?;
            let change = |policy: &mut EncryptionPolicy| {
                *policy = changed.done(policy)?;
                Ok(())
            };
            policy::change(global, command.manner, false, &change)
        }
    }
}

/// Makes the policy what OpenShift's words say.
pub(crate) fn wished(wish: &Wish, manner: Manner, global: &Global) -> Outcome {
    for field in wish.passed_over() {
        eprintln!("{field}: not Testudo's, passed over");
    }
    let change = |policy: &mut EncryptionPolicy| {
        let wanted = wish.wanted(&policy.spec)?;
        if wanted.mode == Mode::External && policy.spec.mode != Mode::External {
            eprintln!(
                "mode External: pods' traffic is not encrypted, and {}",
                testudo_model::external::NOT_SET_UP
            );
        }
        policy.spec.mode = wanted.mode;
        policy.spec.full = wanted.full;
        let overlay = &mut policy.spec.overlay;
        if wanted.mode == Mode::Full && overlay.kind == OverlayType::Auto && overlay.port.is_none()
        {
            // These are OVN-Kubernetes' words, and it has no other overlay.
            overlay.kind = OverlayType::Geneve;
            eprintln!(
                "mode Full: the policy named no overlay, so it is that of OVN-Kubernetes, Geneve on \
                 UDP 6081; for another patch spec.overlay of encryptionpolicy/{CLUSTER}"
            );
        }
        Ok(())
    };
    policy::change(global, manner, true, &change)
}

fn target(command: &PatchCommand) -> anyhow::Result<Target> {
    let usage = |text: String| anyhow::Error::new(Usage(text));
    let (kind, name) = match (command.kind.split_once('/'), &command.name) {
        (Some((kind, name)), None) => (kind, name),
        (None, Some(name)) => (command.kind.as_str(), name.as_str()),
        (None, None) => return Err(usage("give a name too: cluster".to_owned())),
        (Some(_), Some(_)) => return Err(usage("give KIND/NAME, or KIND and NAME".to_owned())),
    };
    let plain = kind.strip_suffix(".testudo.dev").unwrap_or(kind);
    let target = match (is_network(kind), KindName::parse(plain)) {
        (true, _) => Target::Network,
        (false, Ok(KindName::Policy)) => Target::Policy,
        (false, _) if plain.eq_ignore_ascii_case("encpol") => Target::Policy,
        (false, Ok(other)) => {
            let other = other.as_str();
            return Err(usage(format!(
                "{other} is written by agents and the controller alone"
            )));
        }
        (false, Err(_)) => {
            return Err(usage(format!(
                "{kind:?} is neither EncryptionPolicy nor networks.operator.openshift.io"
            )));
        }
    };
    match name {
        CLUSTER => Ok(target),
        other => Err(usage(format!(
            "{kind}: the one is named {CLUSTER:?}, not {other:?}"
        ))),
    }
}

/// A patch of our own object.
enum Patch {
    Merge(Value),
    Json(Vec<PatchOperation>),
}

impl Patch {
    fn read(kind: PatchType, patch: Value) -> anyhow::Result<Self> {
        match kind {
            PatchType::Merge if patch.is_object() => Ok(Self::Merge(patch)),
            PatchType::Merge => {
                bail!("a merge patch is an object; for a list of operations say --type=json")
            }
            PatchType::Json => serde_json::from_value(patch)
                .map(Self::Json)
                .context("this is no JSON patch (RFC 6902)"),
        }
    }

    /// The policy with the patch in it. Nothing but spec, labels and annotations can change.
    fn done(&self, policy: &EncryptionPolicy) -> Result<EncryptionPolicy, String> {
        let before = serde_json::to_value(policy).map_err(|error| error.to_string())?;
        let after = match self {
            Self::Merge(patch) => amend::merged(&before, patch),
            Self::Json(operations) => amend::apply(&before, operations)?,
        };
        let after: EncryptionPolicy =
            serde_json::from_value(after).map_err(|error| error.to_string())?;
        let (mut old, mut new) = (policy.clone(), after.clone());
        for object in [&mut old, &mut new] {
            object.spec = Default::default();
            object.metadata.labels.clear();
            object.metadata.annotations.clear();
        }
        match old == new {
            true => Ok(after),
            false => Err("only spec, labels and annotations can be patched".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use testudo_model::policy::{EncapsulationMode, EncryptionPolicySpec};

    fn policy() -> EncryptionPolicy {
        EncryptionPolicy::new(CLUSTER, EncryptionPolicySpec::default())
    }

    #[test]
    fn our_own_object_is_patched_both_ways() {
        let merge = json!({"spec": {"mode": "Full", "full": {"encapsulation": "Always"}}});
        let list = json!([
            {"op": "replace", "path": "/spec/mode", "value": "Full"},
            {"op": "add", "path": "/spec/full/encapsulation", "value": "Always"},
        ]);
        for (kind, patch) in [(PatchType::Merge, merge), (PatchType::Json, list)] {
            let done = Patch::read(kind, patch).unwrap().done(&policy()).unwrap();
            assert_eq!(done.spec.mode, Mode::Full);
            assert_eq!(done.spec.full.encapsulation, EncapsulationMode::Always);
        }
        for (patch, hint) in [
            (json!({"spec": {"modus": 1}}), "modus"),
            (json!({"spec": {"mode": "On"}}), "On"),
            (json!({"metadata": {"name": "x"}}), "only spec"),
            (json!({"status": {"phase": "Strict"}}), "only spec"),
            (json!({"kind": "Pod"}), "only spec"),
        ] {
            let patch = Patch::read(PatchType::Merge, patch).unwrap();
            let error = patch.done(&policy()).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
        Patch::read(PatchType::Merge, json!([])).err().unwrap();
        Patch::read(PatchType::Json, json!({})).err().unwrap();
    }
}
