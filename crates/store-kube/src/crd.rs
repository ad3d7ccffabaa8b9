//! CustomResourceDefinitions, made from the types of `testudo_model`.
//!
//! Shapes, descriptions and defaults come from the types; what serde cannot state and our own
//! validation refuses stands in `rules`, as CEL for the API server to refuse it too.

mod external;
mod rules;
mod structural;

use std::sync::LazyLock;

use serde_json::{Value, json};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::external::ExternalConnectionKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::EncryptionPolicyKind;
use testudo_model::{API_VERSION, Kind};

/// The CRDs in the order of their kinds.
pub fn all() -> Vec<Value> {
    KINDS.iter().map(|kind| kind.definition.clone()).collect()
}

/// The CRDs as the documents of one manifest, for `kubectl apply -f -`.
pub fn manifest() -> String {
    let documents = KINDS.iter().map(|kind| {
        // JSON is YAML; written by hand it would be unreadable, and so would be its differences.
        yaml(&kind.definition)
    });
    documents.collect::<Vec<_>>().join("---\n")
}

/// The structural schema of a kind's spec; `None` for a kind that is no CRD.
pub(crate) fn spec_schema(kind: &str) -> Option<&'static Value> {
    let known = KINDS.iter().find(|known| known.kind == kind)?;
    known
        .definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
}

struct Defined {
    kind: &'static str,
    definition: Value,
}

static KINDS: LazyLock<[Defined; 4]> = LazyLock::new(|| {
    [
        define::<EncryptionPolicyKind>(
            "What the cluster's encryption is to be, and how far it is.",
        ),
        define::<NodeEncryptionKind>("What a node is and how far it is; written by its agent."),
        define::<TrustBundleKind>("The CAs that nodes trust; written by the controller."),
        define::<ExternalConnectionKind>(
            "A connection between nodes and a host outside the cluster. Agents of this version do \
             not set it up: its condition Programmed says so.",
        ),
    ]
});

fn define<K: Kind>(what: &str) -> Defined
where
    K::Spec: schemars::JsonSchema,
    K::Status: schemars::JsonSchema,
{
    let (group, version) = API_VERSION.split_once('/').unwrap_or_default();
    let mut schema = json!({
        "type": "object",
        "description": what,
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": structural::of::<K::Spec>(),
            "status": structural::of::<K::Status>(),
        },
    });
    structural::without_defaults(&mut schema["properties"]["status"]);
    rules::add(K::KIND, &mut schema);
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{group}", K::PLURAL),
            "labels": { "app.kubernetes.io/name": "testudo" },
        },
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": {
                "kind": K::KIND,
                "listKind": format!("{}List", K::KIND),
                "plural": K::PLURAL,
                "singular": K::KIND.to_ascii_lowercase(),
                "shortNames": rules::short_names(K::KIND),
                "categories": ["testudo"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": rules::columns(K::KIND),
                "schema": { "openAPIV3Schema": schema },
            }],
        },
    });
    Defined {
        kind: K::KIND,
        definition,
    }
}

/// Block style for maps and lists, JSON for what stands in them.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                text.push_str(&format!("{pad}{}:", scalar(&json!(key))));
                nested(inner, indent + 2, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_block(item) {
                    let mut inner = String::new();
                    block(item, indent + 2, &mut inner);
                    text.push_str(&format!("{pad}- {}", inner.trim_start()));
                } else {
                    text.push_str(&format!("{pad}- {}\n", scalar(item)));
                }
            }
        }
        other => text.push_str(&format!("{pad}{}\n", scalar(other))),
    }
}

fn nested(value: &Value, indent: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        block(value, indent, text);
    } else {
        text.push_str(&format!(" {}\n", scalar(value)));
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A word as it is, all else as JSON, which is YAML.
fn scalar(value: &Value) -> String {
    let plain = |text: &str| {
        // Words that some reader takes for something else.
        const TAKEN: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && !TAKEN.contains(&text.to_ascii_lowercase().as_str())
    };
    match value {
        Value::String(text) if plain(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
