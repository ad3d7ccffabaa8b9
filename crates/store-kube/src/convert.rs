//! From what an API server sends to an object of ours.

use kube::core::DynamicObject;
use serde_json::{Value, json};
use testudo_model::{API_VERSION, Kind, Metadata, Object};
use testudo_store::Problem;

use crate::{any, crd, request, verdict};

/// An object as it came.
pub(crate) struct Read<K: Kind> {
    /// Its name in the API.
    pub(crate) raw: String,
    /// Of several with one name in the store the greatest counts.
    pub(crate) order: String,
    /// Its name in the store.
    pub(crate) name: String,
    /// What it says, or why that cannot be known.
    pub(crate) object: Result<Object<K>, Problem>,
    /// Fields of its spec that this build does not know: those of a newer one.
    pub(crate) unknown: Vec<String>,
}

/// Reads an object. Unknown fields are left out: the API server lets none in that its CRD does not
/// have, so that they are those of a newer build and no typing errors. `agents`: the user that nodes ask for
/// certificates as, where that is known.
pub(crate) fn read<K: Kind>(raw: &DynamicObject, agents: Option<&str>) -> Read<K> {
    if request::is_request::<K>() {
        let read = request::read(raw, agents);
        return Read {
            raw: read.raw,
            order: read.order,
            name: read.name,
            object: read.object.map(any::same),
            unknown: read.unknown,
        };
    }
    let name = raw.metadata.name.clone().unwrap_or_default();
    let mut unknown = Vec::new();
    let object = object::<K>(raw, &mut unknown).map_err(|why| verdict::problem::<K>(&name, why));
    Read {
        raw: name.clone(),
        order: String::new(),
        name,
        object,
        unknown,
    }
}

fn object<K: Kind>(raw: &DynamicObject, unknown: &mut Vec<String>) -> Result<Object<K>, String> {
    let mut spec = raw.data.get("spec").cloned().unwrap_or_else(|| json!({}));
    if let Some(schema) = crd::spec_schema(K::KIND) {
        prune(&mut spec, schema, "spec", unknown);
    }
    let status = raw.data.get("status").cloned().unwrap_or_else(|| json!({}));
    let object = Object {
        api_version: API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        metadata: metadata(raw),
        spec: serde_json::from_value(spec).map_err(|e| format!("spec: {e}"))?,
        status: serde_json::from_value(status).map_err(|e| format!("status: {e}"))?,
    };
    K::readable(object.name(), &object.spec)?;
    Ok(object)
}

/// What matters to us of an object's metadata.
pub(crate) fn metadata(raw: &DynamicObject) -> Metadata {
    let metadata = &raw.metadata;
    Metadata {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone(),
        generation: metadata.generation.unwrap_or(1).unsigned_abs(),
        resource_version: metadata.resource_version.clone(),
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
    }
}

/// Takes out what the schema does not have, as an API server does.
fn prune(value: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    if let (Value::Array(items), Some(schema)) = (&mut *value, schema.get("items")) {
        for item in items {
            prune(item, schema, path, unknown);
        }
        return;
    }
    let (Value::Object(map), Some(known)) = (value, schema.get("properties")) else {
        return;
    };
    map.retain(|key, inner| {
        let path = format!("{path}.{key}");
        match known.get(key) {
            Some(schema) => {
                prune(inner, schema, &path, unknown);
                true
            }
            None => {
                unknown.push(path);
                false
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::policy::{EncryptionPolicyKind, Mode};

    fn policy(spec: Value, status: Value) -> Read<EncryptionPolicyKind> {
        let raw: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "testudo.dev/v1alpha1",
            "kind": "EncryptionPolicy",
            "metadata": {
                "name": "cluster", "uid": "u", "generation": 3, "resourceVersion": "9",
                "creationTimestamp": "2026-11-28T12:00:00Z", "finalizers": ["x"],
            },
            "spec": spec,
            "status": status,
        }))
        .unwrap();
        read(&raw, None)
    }

    #[test]
    fn fields_of_a_newer_build_are_told_and_left_out() {
        let read = policy(
            json!({"mode": "Full", "selection": {"a": 1}, "esp": {"padding": 3, "bytes": 7}}),
            json!({"phase": "Strict", "waves": [1]}),
        );
        let object = read.object.unwrap();
        assert_eq!((object.spec.mode, object.spec.esp.bytes), (Mode::Full, 7));
        assert_eq!(read.unknown, ["spec.esp.padding", "spec.selection"]);
        assert_eq!(object.metadata.generation, 3);
    }

    #[test]
    fn an_older_builds_object_has_the_defaults() {
        let object = policy(json!({"mode": "Full"}), json!({})).object.unwrap();
        assert_eq!(object.spec.esp, Default::default());
        assert_eq!(object.status, Default::default());
    }

    #[test]
    fn what_cannot_be_known_is_a_problem_with_the_objects_name() {
        for (spec, word) in [
            (json!({"mode": "Half"}), "Half"),
            (json!({"overlay": {"port": 0}}), "spec.overlay.port"),
        ] {
            let problem = policy(spec, json!({})).object.unwrap_err();
            let text = problem.to_string();
            assert!(text.starts_with("encryptionpolicies.testudo.dev/cluster: "));
            assert!(text.contains(word), "{text}");
            assert_eq!(problem.name.as_deref(), Some("cluster"));
        }
    }
}
