//! What a server-side apply has to say: the fields that change, and those that are ours already.
//!
//! An object is written by several: a chart, a person with kubectl, our daemons. Who sends a whole
//! spec keeps all of it from then on, and everybody else's next change is a conflict. So a write names
//! only what it changes and what its manager keeps (a field that a manager leaves out, it gives up).

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

/// A field: the keys on the way to it.
type Path = Vec<String>;

/// What is to be sent to make an object what is wanted.
#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    /// It is so already.
    Nothing,
    /// A server-side apply of these fields, by force if whoever keeps one of them is to lose it.
    Apply {
        /// Metadata and spec, as far as they are ours.
        fields: Value,
        /// All that changes is ours or nobody's.
        force: bool,
    },
    /// A field has to go that an apply of ours cannot remove: the whole is to be replaced.
    Replace,
    /// A field has to go that somebody else keeps.
    Owned {
        /// The fields.
        fields: String,
        /// Who.
        owner: String,
    },
}

/// What stands and who keeps it.
pub(crate) struct Live<'a> {
    /// `metadata.labels`, `metadata.annotations` and `spec`, as [`parts`] gives them.
    parts: Value,
    owners: Vec<Owner<'a>>,
}

struct Owner<'a> {
    manager: &'a str,
    applies: bool,
    fields: &'a Value,
}

/// Labels, annotations and spec in one value: what an apply writes.
pub(crate) fn parts(labels: Value, annotations: Value, spec: Value) -> Value {
    json!({
        "metadata": { "labels": labels, "annotations": annotations },
        "spec": spec,
    })
}

impl<'a> Live<'a> {
    pub(crate) fn of(raw: &'a DynamicObject) -> Live<'a> {
        let metadata = &raw.metadata;
        let spec = raw.data.get("spec").cloned().unwrap_or_else(|| json!({}));
        let entries = metadata.managed_fields.as_deref().unwrap_or_default();
        let owners = entries
            .iter()
            .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty());
        Live {
            parts: parts(
                json!(metadata.labels.clone().unwrap_or_default()),
                json!(metadata.annotations.clone().unwrap_or_default()),
                spec,
            ),
            owners: owners
                .filter_map(|entry| {
                    Some(Owner {
                        manager: entry.manager.as_deref()?,
                        applies: entry.operation.as_deref() == Some("Apply"),
                        fields: &entry.fields_v1.as_ref()?.0,
                    })
                })
                .collect(),
        }
    }

    /// What is to be sent by `manager` to make it `target` ([`parts`]). `takes`: also from others.
    pub(crate) fn plan(&self, target: &Value, manager: &str, takes: bool) -> Plan {
        let mut changed = Vec::new();
        let mut fields = json!({});
        for (path, value) in leaves(target) {
            let differs = at(&self.parts, &path) != Some(value);
            if differs {
                changed.push(path.clone());
            }
            if differs || self.kept_by(manager, &path) {
                put(&mut fields, &path, value.clone());
            }
        }
        let removed: Vec<Path> = leaves(&self.parts)
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| at(target, path).is_none())
            .collect();
        if changed.is_empty() && removed.is_empty() {
            return Plan::Nothing;
        }
        // Giving a field up removes it only if our applies are all that keep it.
        let stays = |path: &&Path| {
            let mut keepers = self.keepers(path).peekable();
            keepers.peek().is_none() || keepers.any(|o| o.manager != manager || !o.applies)
        };
        let staying: Vec<&Path> = removed.iter().filter(stays).collect();
        let other = |path: &Path| {
            let mut keepers = self.keepers(path);
            keepers
                .find(|owner| owner.manager != manager)
                .map(|owner| owner.manager.to_owned())
        };
        if let Some(owner) = staying.iter().find_map(|path| other(path))
            && !takes
        {
            let theirs: Vec<String> = staying
                .iter()
                .filter(|path| other(path).as_ref() == Some(&owner))
                .map(|path| path.join("."))
                .collect();
            let verb = if theirs.len() == 1 { "is" } else { "are" };
            let fields = format!("{} {verb}", theirs.join(", "));
            return Plan::Owned { fields, owner };
        }
        if !staying.is_empty() {
            return Plan::Replace;
        }
        let force = takes || changed.iter().all(|path| other(path).is_none());
        Plan::Apply { fields, force }
    }

    fn keepers<'b>(&'b self, path: &'b Path) -> impl Iterator<Item = &'b Owner<'a>> {
        self.owners.iter().filter(|owner| keeps(owner.fields, path))
    }

    fn kept_by(&self, manager: &str, path: &Path) -> bool {
        self.keepers(path).any(|owner| owner.manager == manager)
    }
}

/// Carries the change from `known` to `wanted` over to `live`, which may hold more than this build
/// knows: what it does not know stays.
pub(crate) fn carry(live: &Value, known: &Value, wanted: &Value) -> Value {
    let (Value::Object(live), Value::Object(known), Value::Object(wanted)) = (live, known, wanted)
    else {
        return if known == wanted { live } else { wanted }.clone();
    };
    let mut target = live.clone();
    target.retain(|key, _| wanted.contains_key(key) || !known.contains_key(key));
    for (key, value) in wanted {
        let carried = match (live.get(key), known.get(key)) {
            (Some(live), Some(known)) => carry(live, known, value),
            // Left out of what we write because it is the default, and it stands there.
            (Some(live), None) if live == value => live.clone(),
            _ => value.clone(),
        };
        target.insert(key.clone(), carried);
    }
    Value::Object(target)
}

/// Whether a set of fields (`managedFields`) holds this one, or a whole of which it is a part.
fn keeps(fields: &Value, path: &[String]) -> bool {
    let mut fields = fields;
    for key in path {
        match fields.get(format!("f:{key}")) {
            Some(inner) => fields = inner,
            None => return false,
        }
        if fields.as_object().is_some_and(Map::is_empty) {
            return true;
        }
    }
    // A map of which single keys are kept is not kept as a whole.
    fields.get(".").is_some()
}

/// Every field that is no map, or an empty one. Lists are whole.
fn leaves(value: &Value) -> Vec<(Path, &Value)> {
    fn walk<'a>(value: &'a Value, path: &mut Path, found: &mut Vec<(Path, &'a Value)>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, inner) in map {
                    path.push(key.clone());
                    walk(inner, path, found);
                    path.pop();
                }
            }
            // Labels without a label, a spec without a field: nothing to be said.
            Value::Object(_) if path.len() < 3 => {}
            _ => found.push((path.clone(), value)),
        }
    }
    let mut found = Vec::new();
    walk(value, &mut Vec::new(), &mut found);
    found
}

fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

fn put(value: &mut Value, path: &[String], leaf: Value) {
    let mut value = value;
    for key in path {
        if !value.is_object() {
            *value = json!({});
        }
        // An index into an object makes what is missing.
        value = &mut value[key.as_str()];
    }
    *value = leaf;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(spec: Value, owners: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "EncryptionPolicy",
            "metadata": { "name": "cluster", "managedFields": owners },
            "spec": spec,
        }))
        .unwrap()
    }

    fn owner(manager: &str, operation: &str, fields: Value) -> Value {
        json!({
            "manager": manager, "operation": operation, "apiVersion": "testudo.dev/v1alpha1",
            "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": fields },
        })
    }

    fn target(spec: Value) -> Value {
        parts(json!({}), json!({}), spec)
    }

    #[test]
    fn only_what_changes_and_what_is_ours_is_sent() {
        let raw = live(
            json!({"mode": "Full", "keying": "Certificate", "esp": {"bytes": 1, "packets": 2}}),
            json!([
                owner(
                    "helm",
                    "Apply",
                    json!({"f:keying": {}, "f:esp": {"f:bytes": {}}})
                ),
                owner("testudo-cli", "Apply", json!({"f:mode": {}})),
            ]),
        );
        let wanted = json!({"mode": "Full", "keying": "Certificate",
            "esp": {"bytes": 1, "packets": 3}});
        let plan = Live::of(&raw).plan(&target(wanted), "testudo-cli", false);
        let fields = json!({"spec": {"mode": "Full", "esp": {"packets": 3}}});
        assert_eq!(
            plan,
            Plan::Apply {
                fields,
                force: true
            }
        );
    }

    #[test]
    fn what_somebody_else_keeps_is_not_taken_by_a_person() {
        let raw = live(
            json!({"mode": "Full"}),
            json!([owner("helm", "Apply", json!({"f:mode": {}}))]),
        );
        let wanted = target(json!({"mode": "Disabled"}));
        let fields = json!({"spec": {"mode": "Disabled"}});
        for (takes, force) in [(false, false), (true, true)] {
            let plan = Live::of(&raw).plan(&wanted, "testudo-cli", takes);
            let fields = fields.clone();
            assert_eq!(plan, Plan::Apply { fields, force });
        }
    }

    #[test]
    fn a_removal_is_given_up_replaced_or_refused_by_who_keeps_the_field() {
        let plan = |owners: Value, takes: bool| {
            let raw = live(json!({"overlay": {"type": "VXLAN", "port": 1}}), owners);
            let wanted = target(json!({"overlay": {"type": "VXLAN"}}));
            Live::of(&raw).plan(&wanted, "testudo-cli", takes)
        };
        let port = || json!({"f:overlay": {"f:port": {}}});
        let given_up = Plan::Apply {
            fields: json!({}),
            force: true,
        };
        let mine = || owner("testudo-cli", "Apply", port());
        assert_eq!(plan(json!([mine()]), false), given_up);
        let made = owner("testudo-cli", "Update", port());
        assert_eq!(plan(json!([mine(), made]), false), Plan::Replace);
        assert_eq!(plan(json!([]), false), Plan::Replace);
        let theirs = || owner("helm", "Apply", port());
        let refused = Plan::Owned {
            fields: "spec.overlay.port is".to_owned(),
            owner: "helm".to_owned(),
        };
        assert_eq!(plan(json!([mine(), theirs()]), false), refused);
        assert_eq!(plan(json!([mine(), theirs()]), true), Plan::Replace);
    }

    #[test]
    fn what_stands_already_is_not_sent() {
        let raw = live(json!({"mode": "Full"}), json!([]));
        let plan = Live::of(&raw).plan(&target(json!({"mode": "Full"})), "x", false);
        assert_eq!(plan, Plan::Nothing);
    }

    /// A newer build's fields survive an older build's write.
    #[test]
    fn what_this_build_does_not_know_is_carried_along() {
        let live = json!({"mode": "Full", "newer": {"a": 1}, "esp": {"bytes": 1, "newer": 2}});
        let known = json!({"mode": "Full", "esp": {"bytes": 1}, "old": 3});
        let wanted = json!({"mode": "Disabled", "esp": {"bytes": 9}});
        assert_eq!(
            carry(&live, &known, &wanted),
            json!({"mode": "Disabled", "newer": {"a": 1}, "esp": {"bytes": 9, "newer": 2}})
        );
    }
}
