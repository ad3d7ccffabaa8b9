//! What a lab has in an API server, as manifests.

use serde_json::{Value, json};

use super::{LABEL, NAMESPACE};

/// Namespace, ServiceAccounts and what they may do. In the order in which they are made.
pub(super) fn of_cluster(lab: &str) -> Vec<Value> {
    let mut all = vec![named("v1", "Namespace", None, NAMESPACE)];
    for account in ["testudo-agent", "testudo-controller"] {
        all.push(named("v1", "ServiceAccount", Some(NAMESPACE), account));
    }
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    for (name, rules) in [
        ("testudo-agent", agent()),
        ("testudo-controller", controller()),
    ] {
        let mut role = named(RBAC, "ClusterRole", None, name);
        role["rules"] = rules;
        all.push(role);
        all.push(binding(RBAC, "ClusterRole", None, name));
    }
    let name = "testudo-controller";
    let mut role = named(RBAC, "Role", Some(NAMESPACE), name);
    role["rules"] = controller_at_home();
    all.push(role);
    all.push(binding(RBAC, "Role", Some(NAMESPACE), name));
    // Events about objects of the cluster stand in `default`.
    for namespace in [NAMESPACE, "default"] {
        let name = "testudo-controller-events";
        let mut role = named(RBAC, "Role", Some(namespace), name);
        role["rules"] = json!([rule("events.k8s.io", &["events"], &["create", "patch"])]);
        all.push(role);
        let mut binding = binding(RBAC, "Role", Some(namespace), name);
        binding["subjects"][0]["name"] = json!("testudo-controller");
        all.push(binding);
    }
    for manifest in &mut all {
        manifest["metadata"]["labels"] = json!({ LABEL: lab });
    }
    all
}

/// The Node of a node.
pub(super) fn node(lab: &str, name: &str) -> Value {
    let mut node = named("v1", "Node", None, name);
    node["metadata"]["labels"] = json!({ LABEL: lab });
    node
}

fn named(version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": version, "kind": kind, "metadata": { "name": name },
    });
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

/// A role of an account of the same name.
fn binding(version: &str, role: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut binding = named(version, &format!("{role}Binding"), namespace, name);
    binding["roleRef"] =
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name });
    binding["subjects"] =
        json!([{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }]);
    binding
}

const OURS: &str = "testudo.dev";
const CERTIFICATES: &str = "certificates.k8s.io";

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

/// As the chart has them (`charts/testudo/templates/rbac.yaml`).
fn agent() -> Value {
    json!([
        rule(
            OURS,
            &["encryptionpolicies", "externalconnections", "trustbundles"],
            &["get", "list", "watch"]
        ),
        rule(
            OURS,
            &["nodeencryptions"],
            &["get", "list", "watch", "create", "patch", "update"]
        ),
        rule(OURS, &["nodeencryptions/status"], &["patch", "update"]),
        rule(
            CERTIFICATES,
            &["certificatesigningrequests"],
            &["get", "list", "watch", "create"]
        ),
    ])
}

fn controller() -> Value {
    let mut signers = rule(CERTIFICATES, &["signers"], &["approve", "sign"]);
    signers["resourceNames"] = json!(["testudo.dev/node"]);
    json!([
        rule(
            OURS,
            &["encryptionpolicies", "externalconnections"],
            &["get", "list", "watch"]
        ),
        rule(
            OURS,
            &["encryptionpolicies/status", "externalconnections/status"],
            &["patch", "update"]
        ),
        rule(
            OURS,
            &["nodeencryptions"],
            &["get", "list", "watch", "delete"]
        ),
        rule(
            OURS,
            &["trustbundles"],
            &["get", "list", "watch", "create", "patch", "update"]
        ),
        rule(OURS, &["trustbundles/status"], &["patch", "update"]),
        rule(
            CERTIFICATES,
            &["certificatesigningrequests"],
            &["get", "list", "watch", "delete"]
        ),
        rule(
            CERTIFICATES,
            &[
                "certificatesigningrequests/approval",
                "certificatesigningrequests/status"
            ],
            &["patch"]
        ),
        signers,
        rule("", &["nodes"], &["get", "list", "watch"]),
    ])
}

/// What the controller may do in its own namespace.
fn controller_at_home() -> Value {
    let mut secrets = rule("", &["secrets"], &["get", "list", "watch", "update"]);
    secrets["resourceNames"] = json!(["testudo-ca", "testudo-certificates"]);
    let mut lease = rule("coordination.k8s.io", &["leases"], &["get", "update"]);
    lease["resourceNames"] = json!(["testudo-controller"]);
    json!([
        secrets,
        // Who creates has no name to be held to.
        rule("", &["secrets"], &["create"]),
        lease,
        rule("coordination.k8s.io", &["leases"], &["create"]),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Kind and name of the role, group, resource, name of the object, verb.
    type Right = [String; 6];

    fn words(value: &Value, key: &str) -> Vec<String> {
        let list = value[key].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    }

    fn ours() -> BTreeSet<Right> {
        let mut all = BTreeSet::new();
        for role in of_cluster("lab") {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let place = (text(&role["kind"]), text(&role["metadata"]["name"]));
                let of = |key| words(rule, key);
                add(
                    &mut all,
                    &place,
                    (of("apiGroups"), of("resources")),
                    (of("resourceNames"), of("verbs")),
                );
            }
        }
        all
    }

    fn add(
        all: &mut BTreeSet<Right>,
        (kind, role): &(String, String),
        (groups, resources): (Vec<String>, Vec<String>),
        (mut names, verbs): (Vec<String>, Vec<String>),
    ) {
        if names.is_empty() {
            names.push(String::new());
        }
        for group in &groups {
            for resource in &resources {
                for name in &names {
                    for verb in &verbs {
                        let right = [kind, role, group, resource, name, verb];
                        all.insert(right.map(String::clone));
                    }
                }
            }
        }
    }

    /// The chart's, with what is only there where a value asks for it left out.
    fn charts() -> BTreeSet<Right> {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../charts/testudo/templates/rbac.yaml"
        );
        let text = std::fs::read_to_string(file).unwrap();
        let text = text.replace("{{ if .Values.startupTaint.remove }}, patch{{ end }}", "");
        let list = |line: &str| -> Vec<String> {
            let inner = line.split_once('[').unwrap().1.split_once(']').unwrap().0;
            inner
                .split(',')
                .map(|word| word.trim().trim_matches('"').to_owned())
                .collect()
        };
        let mut all = BTreeSet::new();
        for document in text.split("\n---\n") {
            let after = |key: &str| {
                let line = document
                    .lines()
                    .find(|line| line.trim_start().starts_with(key));
                line.map(|line| line.split_once(':').unwrap().1.trim().to_owned())
            };
            let Some(kind) = after("kind:") else { continue };
            let place = (kind, after("name:").unwrap());
            // What stands between `with` and `end` is optional; a lab's agents are told their pods' prefixes.
            let mut optional = false;
            let mut rule: (Vec<String>, Vec<String>, Vec<String>) = Default::default();
            for line in document.lines().map(str::trim) {
                optional |= line.starts_with("{{- with");
                optional |= line.starts_with("{{- if eq (.Values.agent.podPrefixes");
                if line == "{{- end }}" {
                    optional = false;
                }
                if optional || line.contains("{{") {
                    continue;
                }
                if let Some(groups) = line.strip_prefix("- apiGroups:") {
                    rule = (list(groups), Vec::new(), Vec::new());
                } else if let Some(resources) = line.strip_prefix("resources:") {
                    rule.1 = list(resources);
                } else if let Some(names) = line.strip_prefix("resourceNames:") {
                    rule.2 = list(names);
                } else if let Some(verbs) = line.strip_prefix("verbs:") {
                    let (groups, resources, names) = rule.clone();
                    add(&mut all, &place, (groups, resources), (names, list(verbs)));
                }
            }
        }
        all
    }

    #[test]
    fn a_labs_daemons_have_the_rights_that_the_chart_gives_and_no_other() {
        let (ours, charts) = (ours(), charts());
        assert!(charts.len() > 40, "{charts:#?}");
        let more: Vec<_> = ours.difference(&charts).collect();
        let less: Vec<_> = charts.difference(&ours).collect();
        assert!(
            more.is_empty() && less.is_empty(),
            "more: {more:#?}\nless: {less:#?}"
        );
    }
}
