//! OpenShift's words: the `ipsecConfig` of `networks.operator.openshift.io`, in the shapes in which its
//! users write it, as a change of the EncryptionPolicy. `docs/openshift.md` says what maps to what.

use json_patch::PatchOperation;
use serde::Deserialize;
use serde_json::{Value, json};
use testudo_model::policy::{EncapsulationMode, EncryptionPolicySpec, Full, Mode};

use crate::amend;

/// Where `ipsecConfig` stands in the Network object.
const CONFIG: &str = "/spec/defaultNetwork/ovnKubernetesConfig/ipsecConfig";

/// The API group of the Network object.
const GROUP: &str = "operator.openshift.io";

/// What somebody wants of the Network object named `cluster`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wish {
    /// A manifest of the object: its `ipsecConfig` is what is wanted, as a whole.
    Manifest(Value),
    /// `oc patch --type=merge`.
    Merge(Value),
    /// `oc patch --type=json`.
    Json(Vec<PatchOperation>),
}

/// What of the policy OpenShift's words speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) mode: Mode,
    pub(crate) full: Full,
}

/// Whether a word names the Network object's kind, as `oc` takes it.
pub(crate) fn is_network(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    let (kind, group) = word.split_once('.').unwrap_or((&word, GROUP));
    let versioned = group.strip_prefix("v1.").unwrap_or(group);
    // kubectl completes the beginning of a group that ends at a dot.
    let is_group = GROUP == versioned || GROUP.starts_with(&format!("{versioned}."));
    matches!(kind, "network" | "networks") && is_group
}

impl Wish {
    /// Reads a document that is OpenShift's: a Network manifest, a merge patch of one (no kind, but
    /// `spec.defaultNetwork`), or a JSON patch (a list of operations). `None`: it is something else.
    pub(crate) fn read(document: Value) -> Option<Result<Wish, String>> {
        if document.is_array() {
            return Some(Wish::json(document));
        }
        let word = |key: &str| document.get(key).and_then(Value::as_str);
        match (word("apiVersion"), word("kind")) {
            (Some(version), kind) if version.starts_with(&format!("{GROUP}/")) => {
                let name = document.pointer("/metadata/name").and_then(Value::as_str);
                Some(match (kind, name) {
                    (Some("Network"), Some("cluster")) => Ok(Wish::Manifest(document)),
                    (Some("Network"), _) => Err("the Network object is named \"cluster\"".into()),
                    (kind, _) => Err(format!(
                        "of {GROUP} only Network has a meaning here, not {}",
                        kind.unwrap_or("an object without a kind")
                    )),
                })
            }
            (None, None) if document.pointer("/spec/defaultNetwork").is_some() => {
                Some(Ok(Wish::Merge(document)))
            }
            _ => None,
        }
    }

    /// A JSON patch.
    pub(crate) fn json(operations: Value) -> Result<Wish, String> {
        let read = serde_json::from_value(operations);
        read.map(Wish::Json)
            .map_err(|error| format!("this is no JSON patch (RFC 6902): {error}"))
    }

    /// What the policy is to say.
    pub(crate) fn wanted(&self, spec: &EncryptionPolicySpec) -> Result<Wanted, String> {
        let now = Wanted {
            mode: spec.mode,
            full: spec.full,
        };
        let wanted = match self {
            Wish::Manifest(manifest) => match manifest.pointer(CONFIG) {
                Some(config) => read(config)?,
                None => {
                    return Err(format!(
                        "the manifest has no {}: it says nothing of IPsec",
                        dotted(CONFIG)
                    ));
                }
            },
            Wish::Merge(patch) => merged(now, patch)?,
            Wish::Json(operations) => patched(now, operations)?,
        };
        // What stands already may be left standing: `testudo stop` keeps the settings of Full.
        if wanted != now && wanted.mode != Mode::Full && wanted.full != Full::default() {
            return Err(forbidden(wanted.mode));
        }
        Ok(wanted)
    }

    /// Fields of a manifest that have no meaning here; its other writers see to them.
    pub(crate) fn passed_over(&self) -> Vec<String> {
        let Wish::Manifest(manifest) = self else {
            return Vec::new();
        };
        let mut rest = manifest.clone();
        remove_config(&mut rest);
        let standing = ["/spec/defaultNetwork/type", "/spec/defaultNetwork"];
        let mut found = Vec::new();
        leaves(&rest["spec"], "/spec", &mut found);
        found.retain(|path| {
            !standing.contains(&path.as_str()) && !path.ends_with("KubernetesConfig")
        });
        found.iter().map(|path| dotted(path)).collect()
    }
}

fn forbidden(mode: Mode) -> String {
    format!(
        "{}.full holds settings of mode Full, and the mode is {mode:?}: leave it out, or remove it \
         with [{{\"op\": \"remove\", \"path\": \"{CONFIG}/full\"}}]",
        dotted(CONFIG)
    )
}

fn dotted(path: &str) -> String {
    path.trim_start_matches('/').replace('/', ".")
}

/// The Network object as far as it is known here.
fn network(config: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": "Network",
        "metadata": { "name": "cluster" },
        "spec": { "defaultNetwork": {
            "type": "OVNKubernetes",
            "ovnKubernetesConfig": { "ipsecConfig": config },
        } },
    })
}

/// A merge patch. `ipsecConfig: {}` is how IPsec was turned on before there were modes.
fn merged(now: Wanted, patch: &Value) -> Result<Wanted, String> {
    let config = patch.pointer(CONFIG);
    if config.and_then(|config| config.get("mode")) == Some(&Value::Null) {
        return Err(mode_stays());
    }
    let empty = config
        .and_then(Value::as_object)
        .is_some_and(|c| c.is_empty());
    // `full` with its default is as if it were not there: a merge to another mode may leave it out.
    let document = match (empty, now.full == Full::default()) {
        (true, _) if now.mode == Mode::Disabled => {
            let document = network(json!({}));
            only_config(&document, &amend::merged(&document, patch))?;
            return Ok(Wanted {
                mode: Mode::Full,
                ..now
            });
        }
        (_, true) => network(json!({ "mode": now.mode })),
        (_, false) => network(json!({ "mode": now.mode, "full": now.full })),
    };
    outcome(&document, &amend::merged(&document, patch))
}

/// A JSON patch. `full` is there to be removed or tested where the mode is Full.
fn patched(now: Wanted, operations: &[PatchOperation]) -> Result<Wanted, String> {
    let (mode, full) = (format!("{CONFIG}/mode"), format!("{CONFIG}/full"));
    let mut brings_full = false;
    for operation in operations {
        let taken = match operation {
            PatchOperation::Remove(it) => it.path.as_str(),
            PatchOperation::Move(it) => it.from.as_str(),
            PatchOperation::Add(_) | PatchOperation::Replace(_) | PatchOperation::Copy(_) => {
                brings_full |= operation.path().as_str().starts_with(&full);
                continue;
            }
            PatchOperation::Test(_) => continue,
        };
        if taken == mode {
            return Err(mode_stays());
        }
    }
    let shown = now.mode == Mode::Full || now.full != Full::default();
    let document = match shown {
        true => network(json!({ "mode": now.mode, "full": now.full })),
        false => network(json!({ "mode": now.mode })),
    };
    let mut done = amend::apply(&document, operations)?;
    if let Some(config) = done.pointer_mut(CONFIG).and_then(Value::as_object_mut)
        && !brings_full
        && config.get("full") == Some(&json!(Full::default()))
    {
        config.remove("full");
    }
    outcome(&document, &done)
}

fn mode_stays() -> String {
    format!(
        "{}.mode cannot be removed: say Disabled, External or Full",
        dotted(CONFIG)
    )
}

/// What a changed object says, if nothing but its `ipsecConfig` has changed.
fn outcome(before: &Value, after: &Value) -> Result<Wanted, String> {
    only_config(before, after)?;
    read(after.pointer(CONFIG).unwrap_or(&Value::Null))
}

/// Refuses a change of anything else.
fn only_config(before: &Value, after: &Value) -> Result<(), String> {
    let (mut before, mut after) = (before.clone(), after.clone());
    remove_config(&mut before);
    remove_config(&mut after);
    if before == after {
        return Ok(());
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    leaves(&before, "", &mut old);
    leaves(&after, "", &mut new);
    let changed = |path: &&String| before.pointer(path) != after.pointer(path);
    let place = new.iter().chain(&old).find(changed);
    let place = place.map_or_else(|| "the object".to_owned(), |path| dotted(path));
    Err(format!(
        "{place} is not Testudo's: of the Network object only {} has a meaning here",
        dotted(CONFIG)
    ))
}

fn remove_config(object: &mut Value) {
    let (parent, key) = CONFIG.rsplit_once('/').unwrap_or(("", CONFIG));
    if let Some(map) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
        map.remove(key);
    }
}

/// Pointers to every value that is no map, or an empty one.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                leaves(inner, &format!("{path}/{key}"), found);
            }
        }
        Value::Null => {}
        _ => found.push(path.to_owned()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    mode: Option<Mode>,
    full: Option<Full>,
}

/// An `ipsecConfig` by itself: absent is Disabled, empty is Full (as it was before there were modes).
fn read(config: &Value) -> Result<Wanted, String> {
    if config.is_null() {
        return Ok(Wanted {
            mode: Mode::Disabled,
            full: Full::default(),
        });
    }
    let wrong = |error| format!("{}: {error}", dotted(CONFIG));
    let config = Config::deserialize(config).map_err(wrong)?;
    match (config.mode, config.full) {
        (Some(Mode::Full), full) => Ok(Wanted {
            mode: Mode::Full,
            full: full.unwrap_or_default(),
        }),
        (Some(mode), None) => Ok(Wanted {
            mode,
            full: Full::default(),
        }),
        (Some(mode), Some(full)) if full.encapsulation == EncapsulationMode::Auto => {
            // Told apart from none at all only by whoever wrote it: it was written here.
            Err(forbidden(mode))
        }
        // Whether it stood there before is for the caller to say.
        (Some(mode), Some(full)) => Ok(Wanted { mode, full }),
        (None, None) => Ok(Wanted {
            mode: Mode::Full,
            full: Full::default(),
        }),
        (None, Some(_)) => Err(format!(
            "{}.full holds settings of mode Full: say mode: Full",
            dotted(CONFIG)
        )),
    }
}

#[cfg(test)]
mod tests;
