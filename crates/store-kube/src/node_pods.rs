//! Which addresses the pods of a node have, as its Node says: what a routed cluster's agents go by.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use kube::api::{Api, ListParams};
use kube::core::ResourceExt;
use testudo_model::NodeName;
use testudo_model::node::NodeEncryptionKind;
use testudo_store::{Problem, StoreError};
use tokio::sync::mpsc;

use crate::follow::{Trouble, of_the_store};
use crate::list_watch::{Heard, ListWatch};
use crate::store::KubeStore;
use crate::verdict;

/// An annotation of a Node with the prefixes of its pods, between commas, where they are others than those of
/// its `spec.podCIDRs`: there are network plugins that hand addresses out by themselves. Empty: it has no pods.
pub const POD_CIDRS: &str = "testudo.dev/pod-cidrs";

/// As many prefixes as a NodeEncryption has room for.
const MOST: usize = 64;

/// What is heard of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePods {
    /// The prefixes of its pods; an error says why they are not known, and what to do. The same is told once.
    Are(Result<Vec<IpNet>, String>),
    /// The API server is away, or refuses. It is tried again.
    Away(Problem),
    /// It answers again.
    Back(Problem),
}

impl KubeStore {
    /// Follows the prefixes of a node's pods. The first [`NodePods::Are`] comes as soon as the API server
    /// answers, also when there is no such Node. Ends when the receiver is dropped.
    ///
    /// # Errors
    /// The configuration of the way to the API server cannot be read.
    pub async fn watch_pods(
        &self,
        node: &NodeName,
    ) -> Result<mpsc::Receiver<NodePods>, StoreError> {
        let api: Api<Node> = Api::all(self.client().await?);
        let only = ListParams::default().fields(&format!("metadata.name={node}"));
        let nodes = ListWatch::new(api, only, |node| pods(&node));
        let (sender, receiver) = mpsc::channel(4);
        let (store, name) = (self.clone(), node.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = follow(store, name, nodes, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Ok(receiver)
    }
}

type Pods = Result<Vec<IpNet>, String>;

/// Ends when nobody listens any more.
async fn follow(
    store: KubeStore,
    name: NodeName,
    mut nodes: ListWatch<Node, Pods>,
    sender: &mpsc::Sender<NodePods>,
) {
    let mut told = None;
    let mut trouble = Trouble::default();
    loop {
        let mut events = Vec::new();
        let found = match nodes.next().await {
            Heard::Listed(found) => {
                events.extend(trouble.over().map(NodePods::Back));
                let none = || Err(format!("the cluster has no Node \"{name}\""));
                Some(found.into_iter().next().unwrap_or_else(none))
            }
            Heard::Watching => {
                events.extend(trouble.over().map(NodePods::Back));
                None
            }
            Heard::Changed(found) => Some(found),
            // What becomes of its tunnels, the controller says: it takes the certificate back.
            Heard::Gone(_) => None,
            Heard::Failed(error) => {
                let server = store.server().await;
                let problem = trouble.more(told.is_some(), || {
                    let why = verdict::refused::<NodeEncryptionKind>(&server, "", error);
                    of_the_store(&server, "nodes", why.to_string())
                });
                events.extend(problem.map(NodePods::Away));
                None
            }
        };
        // A Node changes all the time, and mostly nothing of this.
        if let Some(found) = found.filter(|found| told.as_ref() != Some(found)) {
            events.push(NodePods::Are(found.clone()));
            told = Some(found);
        }
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// The prefixes that a Node names.
fn pods(node: &Node) -> Pods {
    let name = node.name_any();
    let (place, words): (&str, Vec<&str>) = match node.annotations().get(POD_CIDRS) {
        Some(text) => (POD_CIDRS, text.split(',').map(str::trim).collect()),
        None => ("spec.podCIDRs", assigned(node.spec.as_ref())),
    };
    let mut prefixes = Vec::new();
    for word in words.into_iter().filter(|word| !word.is_empty()) {
        let prefix: IpNet = word
            .parse()
            .map_err(|_| format!("Node {name}: {place}: \"{word}\" is no prefix"))?;
        if !prefixes.contains(&prefix.trunc()) {
            prefixes.push(prefix.trunc());
        }
    }
    if prefixes.len() > MOST {
        return Err(format!("Node {name}: {place}: more than {MOST} prefixes"));
    }
    if prefixes.is_empty() && place != POD_CIDRS {
        return Err(format!(
            "Node {name} has no spec.podCIDRs: let the controller manager assign them \
             (--allocate-node-cidrs), or write the prefixes of its pods into its annotation {POD_CIDRS} \
             (empty: it has no pods)"
        ));
    }
    Ok(prefixes)
}

/// What a controller has assigned: one prefix a family.
fn assigned(spec: Option<&NodeSpec>) -> Vec<&str> {
    let Some(spec) = spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten();
    let all: Vec<&str> = all.map(String::as_str).collect();
    match all.is_empty() {
        // Of an API server that knows one family.
        true => spec.pod_cidr.as_deref().into_iter().collect(),
        false => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(annotation: Option<&str>, spec: Value) -> Result<Vec<String>, String> {
        let mut node = json!({ "metadata": { "name": "n1" }, "spec": spec });
        if let Some(text) = annotation {
            node["metadata"]["annotations"] = json!({ POD_CIDRS: text });
        }
        let found = pods(&serde_json::from_value(node).unwrap())?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_node_names_its_pods_prefixes() {
        let both = json!({ "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"] });
        assert_eq!(
            of(None, both.clone()).unwrap(),
            ["10.1.0.0/24", "fd00:1::/64"]
        );
        let one = json!({ "podCIDR": "10.1.0.0/24" });
        assert_eq!(of(None, one).unwrap(), ["10.1.0.0/24"]);
        // A person's word goes before, in whatever shape.
        let said = of(
            Some(" 10.9.0.7/26,, 10.9.0.0/26 ,fd00:9::/64"),
            both.clone(),
        );
        assert_eq!(said.unwrap(), ["10.9.0.0/26", "fd00:9::/64"]);
        assert_eq!(of(Some(""), both), Ok(Vec::new()), "it has no pods");
    }

    #[test]
    fn what_a_node_does_not_say_is_not_known() {
        for spec in [
            json!({}),
            json!({ "podCIDRs": [] }),
            json!({ "podCIDR": "" }),
        ] {
            let why = of(None, spec).unwrap_err();
            assert!(
                why.contains("no spec.podCIDRs") && why.contains(POD_CIDRS),
                "{why}"
            );
        }
        let many: Vec<String> = (0..65).map(|n| format!("10.0.{n}.0/24")).collect();
        for (text, told) in [
            ("10.0.0.0/24 10.0.1.0/24", "is no prefix"),
            ("10.0.0.1", "is no prefix"),
            ("10.0.0.0/33", "is no prefix"),
            (&many.join(","), "more than 64"),
        ] {
            let why = of(Some(text), json!({ "podCIDR": "10.1.0.0/24" })).unwrap_err();
            assert!(why.contains("Node n1") && why.contains(told), "{why}");
        }
    }
}
