//! Changes of objects: made, or only shown (`--dry-run`, `--diff`).

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use testudo_model::EncryptionPolicy;
use testudo_store::{AnyObject, Change, KindName};
use testudo_store_kube::AnyStore;

use crate::difference::unified;
use crate::exit::Outcome;
use crate::global::Global;
use crate::output;

/// Whether a change is made, or only shown.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Say what would be done, and do nothing
    #[arg(
        long,
        value_enum,
        value_name = "none|client",
        num_args = 0..=1,
        require_equals = true,
        default_value = "none",
        default_missing_value = "client",
        hide_possible_values = true
    )]
    dry_run: DryRun,

    /// Print the lines that would change, and change nothing
    #[arg(long)]
    diff: bool,
}

/// kubectl's words for a dry run; the API server is not asked for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DryRun {
    None,
    Client,
}

impl Manner {
    /// Nothing is to be written.
    pub(crate) fn only_shows(self) -> bool {
        self.diff || self.dry_run == DryRun::Client
    }
}

/// What became of one object.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Done {
    kind: &'static str,
    name: String,
    result: &'static str,
    /// Nothing was written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// The lines that would change.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
}

impl Done {
    /// It was done.
    pub(crate) fn new(kind: KindName, name: &str, result: &'static str) -> Self {
        Self {
            kind: kind.as_str(),
            name: name.to_owned(),
            result,
            dry_run: false,
            diff: None,
        }
    }

    /// It would be done.
    pub(crate) fn shown(kind: KindName, name: &str, result: &'static str) -> Self {
        Self {
            dry_run: true,
            ..Self::new(kind, name, result)
        }
    }

    /// What writing an object would do, by what stands in the store.
    pub(crate) async fn would_be(
        store: &AnyStore,
        wanted: &AnyObject,
        manner: Manner,
    ) -> anyhow::Result<Self> {
        let (kind, name) = (wanted.kind(), wanted.name());
        let standing = kind.get(store, Some(name)).await?.pop();
        Self::between(standing.as_ref(), wanted, manner)
    }

    /// The same where what stands is known.
    pub(crate) fn between(
        standing: Option<&AnyObject>,
        wanted: &AnyObject,
        manner: Manner,
    ) -> anyhow::Result<Self> {
        let new = written(wanted)?;
        let (old, change) = match standing {
            None => (Value::Null, Change::Created),
            Some(standing) => match written(standing)? {
                old if old == new => (old, Change::Unchanged),
                old => (old, Change::Configured),
            },
        };
        let diff = manner
            .diff
            .then(|| anyhow::Ok(unified(&yaml(&old)?, &yaml(&new)?)));
        Ok(Self {
            dry_run: true,
            diff: diff.transpose()?,
            ..Self::new(wanted.kind(), wanted.name(), change.as_str())
        })
    }
}

/// What a write of an object is about: no status, nothing that the store gives.
fn written(object: &AnyObject) -> anyhow::Result<Value> {
    let whole = serde_json::to_value(object)?;
    let part = |pointer: &str| whole.pointer(pointer).cloned();
    let mut shown = json!({ "spec": part("/spec") });
    for (name, pointer) in [
        ("labels", "/metadata/labels"),
        ("annotations", "/metadata/annotations"),
    ] {
        if let Some(found) = part(pointer) {
            shown[name] = found;
        }
    }
    Ok(shown)
}

fn yaml(value: &Value) -> anyhow::Result<String> {
    match value {
        Value::Null => Ok(String::new()),
        value => Ok(serde_saphyr::to_string(value)?),
    }
}

/// Prints what became of objects, in the manner of kubectl.
pub(crate) fn report(global: &Global, done: &[Done]) -> Outcome {
    if global.format().is_data() {
        return output::data(global.format(), &done);
    }
    for one in done {
        let name = format!("{}/{}", one.kind.to_ascii_lowercase(), one.name);
        let said = match one.dry_run {
            true => format!("{name} {} (dry run)", one.result),
            false => format!("{name} {}", one.result),
        };
        match &one.diff {
            None => output::line(&said)?,
            Some(diff) => {
                eprintln!("{}", output::harmless(&said));
                if !diff.is_empty() {
                    let head = format!("--- {name}\n+++ {name}, wanted");
                    output::line(&format!("{head}\n{}", diff.trim_end()))?;
                }
            }
        }
    }
    Ok(())
}

/// What a change of the policy is made with. An error names the field.
pub(crate) type PolicyChange<'a> = dyn Fn(&mut EncryptionPolicy) -> Result<(), String> + 'a;
