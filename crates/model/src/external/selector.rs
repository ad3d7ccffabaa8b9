//! Which nodes have a connection.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::NodeName;

/// Nodes by their labels, as Kubernetes selects (`metav1.LabelSelector`), or by their names. All nodes
/// if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeSelector {
    /// Labels that a node must have, with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// What must hold beside them, every one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
    /// The nodes themselves, instead of labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<NodeName>,
}

/// What must hold of a node's label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what: for In and NotIn alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// Its value is one of those named.
    In,
    /// It is none of them, or there is no such label.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is none.
    DoesNotExist,
}

impl NodeSelector {
    /// Whether it selects every node.
    pub fn is_all(&self) -> bool {
        *self == NodeSelector::default()
    }

    /// Whether a node of this name and these labels is selected.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|n| n.as_str() == name);
        let mut wanted = self.match_labels.iter();
        named
            && wanted.all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|one| one.holds(labels))
    }

    /// Whether both select a node for certain, whatever nodes and labels there are.
    pub fn shares_nodes(&self, other: &NodeSelector) -> bool {
        let named = self.names.iter().any(|name| other.names.contains(name));
        self.is_all() || other.is_all() || self == other || named
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let among = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => among,
            Operator::NotIn => !among,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Whether a text is a label's key: `[PREFIX/]NAME`.
pub(super) fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(|p| NodeName::new(p).is_ok())
}

/// Whether a text is a label's value: at most 63 letters, digits, `-`, `_` and `.`, the first and last of
/// them a letter or digit.
pub(super) fn is_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= 63
        && bytes.iter().all(inner)
        && ends.iter().flatten().all(|b| b.is_ascii_alphanumeric())
}
