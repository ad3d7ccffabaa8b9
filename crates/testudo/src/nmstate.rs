//! NMState's words: the interfaces `type: ipsec` of a NodeNetworkConfigurationPolicy, as
//! ExternalConnections. `docs/external.md` says what maps to what.

use serde_json::Value;
use testudo_model::external::{ExternalConnectionKind, NodeSelector};
use testudo_model::{ExternalConnection, Kind, PeerId};
use testudo_store::Store;

mod libreswan;

/// The API group of the policy.
const GROUP: &str = "nmstate.io";

/// The annotation of a connection that was made from an interface: the interface's name.
const INTERFACE: &str = "testudo.dev/nmstate-interface";

/// What a policy wants of connections.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// Its name.
    name: String,
    /// The nodes that it is for.
    nodes: NodeSelector,
    interfaces: Vec<Interface>,
    /// What of it has no meaning here, for people.
    pub(crate) passed_over: Vec<String>,
}

/// An interface of a policy.
#[derive(Clone, Debug, PartialEq)]
struct Interface {
    name: String,
    /// `None`: it is to be absent.
    connection: Option<ExternalConnection>,
}

/// What is to be done in a store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// This is to stand.
    Apply(Box<ExternalConnection>),
    /// The connection of this name is to go.
    Remove(String),
    /// There is none of this name that could go.
    Absent(String),
}

/// Whether a document is of NMState's API.
pub(crate) fn is_policy(document: &Value) -> bool {
    let version = document.get("apiVersion").and_then(Value::as_str);
    version.is_some_and(|v| v.split('/').next() == Some(GROUP))
}

impl Policy {
    /// Reads a document; the error names the field and says what to do.
    pub(crate) fn read(document: &Value) -> Result<Policy, String> {
        let kind = document.get("kind").and_then(Value::as_str);
        if kind != Some("NodeNetworkConfigurationPolicy") {
            return Err(format!(
                "of {GROUP} only NodeNetworkConfigurationPolicy has a meaning here, not {}",
                kind.unwrap_or("an object without a kind")
            ));
        }
        let name = document.pointer("/metadata/name").and_then(Value::as_str);
        let name = name.ok_or("metadata.name is missing")?;
        let nodes = selector(document.pointer("/spec/nodeSelector"))?;
        let mut policy = Policy {
            name: name.to_owned(),
            nodes,
            interfaces: Vec::new(),
            passed_over: Vec::new(),
        };
        for (field, _) in members(document.get("spec")) {
            if !["nodeSelector", "desiredState"].contains(&field.as_str()) {
                policy.passed_over.push(format!("spec.{field}"));
            }
        }
        for (field, _) in members(document.pointer("/spec/desiredState")) {
            if field != "interfaces" {
                policy
                    .passed_over
                    .push(format!("spec.desiredState.{field}"));
            }
        }
        let interfaces = document.pointer("/spec/desiredState/interfaces");
        let interfaces = interfaces.and_then(Value::as_array);
        for (number, one) in interfaces.into_iter().flatten().enumerate() {
            let at = format!("spec.desiredState.interfaces[{number}]");
            if one.get("type").and_then(Value::as_str) != Some("ipsec") {
                policy.passed_over.push(at);
                continue;
            }
            let read = policy.interface(one, &at);
            policy
                .interfaces
                .push(read.map_err(|text| format!("{at}: {text}"))?);
        }
        match policy.interfaces.is_empty() {
            true => Err("no interface of it has type: ipsec".to_owned()),
            false => Ok(policy),
        }
    }

    fn interface(&mut self, interface: &Value, at: &str) -> Result<Interface, String> {
        let name = interface.get("name").and_then(Value::as_str);
        let name = name.ok_or("name is missing")?.to_owned();
        let mut absent = false;
        for (field, value) in members(Some(interface)) {
            match (field.as_str(), value.as_str()) {
                ("name" | "type" | "libreswan", _) | ("state", Some("up")) => {}
                ("state", Some("absent")) => absent = true,
                ("state", _) => return Err(format!("state: {value} is neither up nor absent")),
                // NetworkManager's way to say that the host outside gives addresses or routes.
                ("ipv4" | "ipv6" | "description" | "profile-name", _) => {
                    self.passed_over.push(format!("{at}.{field}"));
                }
                _ => {
                    return Err(format!(
                        "{field} is not known of an interface of type ipsec"
                    ));
                }
            }
        }
        let connection = match absent {
            true => None,
            false => {
                let words = interface.get("libreswan");
                let words = words.ok_or("libreswan is missing: it says what is to be set up")?;
                let mut spec = libreswan::read(words)?;
                spec.node_selector = self.nodes.clone();
                let mut made = ExternalConnection::new(object_name(&name)?, spec);
                made.metadata
                    .annotations
                    .insert(INTERFACE.to_owned(), name.clone());
                libreswan::checked(
                    words,
                    ExternalConnectionKind::validate(made.name(), &made.spec),
                )?;
                Some(made)
            }
        };
        Ok(Interface { name, connection })
    }

    /// What is to be done where those connections stand already.
    pub(crate) fn steps(&self, standing: &[ExternalConnection]) -> Result<Vec<Step>, String> {
        let of_interface = |interface: &str| {
            let interface = interface.to_owned();
            standing.iter().filter(move |one| {
                one.metadata.annotations.get(INTERFACE) == Some(&interface)
                    && one.spec.node_selector == self.nodes
            })
        };
        let mut steps = Vec::new();
        for interface in &self.interfaces {
            let mut known = of_interface(&interface.name);
            let Some(wanted) = &interface.connection else {
                let before = steps.len();
                steps.extend(known.map(|one| Step::Remove(one.name().to_owned())));
                if steps.len() == before {
                    steps.push(Step::Absent(object_name(&interface.name)?));
                }
                continue;
            };
            let mut wanted = wanted.clone();
            if let Some(known) = known.next() {
                wanted.metadata.name = known.name().to_owned();
            } else if let Some(other) = standing.iter().find(|o| o.name() == wanted.name()) {
                if !other.metadata.annotations.contains_key(INTERFACE) {
                    return Err(format!(
                        "interface {}: externalconnection/{} was not made from a policy and stays: give \
                         the interface another name",
                        interface.name,
                        wanted.name()
                    ));
                }
                // The same interface of other nodes: the policy tells them apart.
                wanted.metadata.name = format!("{}.{}", wanted.name(), object_name(&self.name)?);
            }
            steps.push(Step::Apply(Box::new(wanted)));
        }
        Ok(steps)
    }
}

/// Reads what stands and says what is to be done.
pub(crate) async fn steps<S: Store>(store: &S, policies: &[Policy]) -> anyhow::Result<Vec<Step>> {
    let mut standing = store.list::<ExternalConnectionKind>().await?.items;
    let mut all = Vec::new();
    for policy in policies {
        let steps = policy.steps(&standing).map_err(anyhow::Error::msg)?;
        for step in &steps {
            match step {
                Step::Apply(made) => {
                    standing.retain(|one| one.name() != made.name());
                    standing.push(ExternalConnection::clone(made));
                }
                Step::Remove(name) => standing.retain(|one| one.name() != name),
                Step::Absent(_) => {}
            }
        }
        all.extend(steps);
    }
    Ok(all)
}

fn members(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

/// The policy's `nodeSelector`: labels and their values.
fn selector(labels: Option<&Value>) -> Result<NodeSelector, String> {
    let mut selector = NodeSelector::default();
    match labels {
        None | Some(Value::Null) => {}
        Some(Value::Object(labels)) => {
            for (key, value) in labels {
                let value = match value {
                    Value::String(text) => text.clone(),
                    Value::Bool(_) | Value::Number(_) => value.to_string(),
                    _ => return Err(format!("spec.nodeSelector: {key} has no value")),
                };
                selector.match_labels.insert(key.clone(), value);
            }
        }
        Some(_) => return Err("spec.nodeSelector holds labels and their values".to_owned()),
    }
    Ok(selector)
}

/// A name of NetworkManager's as one of Kubernetes': small letters, `-` where there was `_`.
fn object_name(name: &str) -> Result<String, String> {
    let made = name.to_ascii_lowercase().replace('_', "-");
    match PeerId::new(made) {
        Ok(made) => Ok(made.to_string()),
        Err(error) => Err(format!(
            "\"{name}\" cannot become the name of an object: {}",
            error.reason
        )),
    }
}

#[cfg(test)]
mod tests;
