//! Whether an API server's word on who wrote a `CertificateSigningRequest` makes it the node's own.
//!
//! The names inside of the PKCS#10 are looked at by the CA ([`testudo_pki::Ca::sign_request`]): it signs
//! for the one node that the request is about, and refuses one that asks for a second name.

use testudo_model::CertificateRequest;
use testudo_store::Authenticated;

use crate::signer::Denial;

/// The user that the agents of a ServiceAccount are.
pub(crate) fn agents(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

/// Who may ask, and for what.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// `system:serviceaccount:NAMESPACE:NAME` of the agents.
    pub(crate) agent: String,
    /// The usages, all of them and no other.
    pub(crate) usages: Vec<String>,
}

/// Decides. `node` is the UID of the Node of that name; `None`: there is none.
pub(crate) fn admit(
    rules: &Rules,
    request: &CertificateRequest,
    who: &Authenticated,
    node: Option<&str>,
) -> Result<(), Denial> {
    let deny = |why: String| Err(Denial::Stranger(why));
    let (name, uid) = (request.spec.node.as_str(), request.spec.uid.as_str());
    if who.username != rules.agent {
        return deny(format!(
            "asked by {}; only {} may ask",
            who.username, rules.agent
        ));
    }
    let bound = match &who.nodes[..] {
        [bound] => bound,
        [] => {
            return deny(
                "the token that it was asked with is bound to no node: agents need the token of \
                 their pod"
                    .to_owned(),
            );
        }
        many => return deny(format!("the token is bound to {} nodes", many.len())),
    };
    if bound != name {
        return deny(format!("asked by node {bound} for node {name}"));
    }
    let sorted = |usages: &[String]| {
        let mut usages = usages.to_vec();
        usages.sort();
        usages
    };
    if sorted(&who.usages) != sorted(&rules.usages) {
        return deny(format!(
            "the usages asked for are {}; write {}",
            who.usages.join(", "),
            rules.usages.join(", ")
        ));
    }
    match node {
        None => return deny(format!("there is no node {name}")),
        Some(known) if known != uid => {
            return deny(format!(
                "node {name} has UID {known}, and the request is for {uid}"
            ));
        }
        Some(_) => {}
    }
    // The name alone says nothing of which machine asks: the token of a pod goes on being good for a while
    // after its Node was removed, also when another has come under the name.
    let stale = |why: String| Err(Denial::OtherLife(why));
    match &who.node_uids[..] {
        [made_for] if made_for == uid => Ok(()),
        [made_for] => stale(format!(
            "the token was made for an earlier node {name} with UID {made_for}, and the request is for {uid}"
        )),
        [] => stale("the token does not say the UID of its node".to_owned()),
        many => stale(format!("the token has {} UIDs of nodes", many.len())),
    }
}

#[cfg(test)]
mod tests {
    use testudo_model::{CertificateRequestSpec, NodeName, NodeUid, Object};

    use super::*;

    #[test]
    fn only_the_agent_of_the_one_node_asked_for_is_let_in() {
        let rules = Rules {
            agent: "system:serviceaccount:t:agent".to_owned(),
            usages: vec![
                "digital signature".to_owned(),
                "ipsec end system".to_owned(),
            ],
        };
        let request: CertificateRequest = Object::new(
            "n1",
            CertificateRequestSpec {
                node: NodeName::new("n1").unwrap(),
                uid: NodeUid::new("u1").unwrap(),
                request: String::new(),
                proof: String::new(),
            },
        );
        let good = Authenticated {
            username: rules.agent.clone(),
            groups: vec!["system:serviceaccounts".to_owned()],
            nodes: vec!["n1".to_owned()],
            node_uids: vec!["u1".to_owned()],
            usages: vec![
                "ipsec end system".to_owned(),
                "digital signature".to_owned(),
            ],
        };
        let with = |change: &dyn Fn(&mut Authenticated)| {
            let mut who = good.clone();
            change(&mut who);
            who
        };
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let cases: [(Authenticated, Option<&str>, Option<&str>); 13] = [
            (good.clone(), Some("u1"), None),
            (
                with(&|who| who.username = "system:serviceaccount:t:default".to_owned()),
                Some("u1"),
                Some("only system:serviceaccount:t:agent"),
            ),
            (
                with(&|who| who.username = "system:serviceaccount:other:agent".to_owned()),
                Some("u1"),
                Some("only system:serviceaccount:t:agent"),
            ),
            (
                with(&|who| who.username = "system:node:n1".to_owned()),
                Some("u1"),
                Some("only"),
            ),
            (with(&|who| who.username.clear()), Some("u1"), Some("only")),
            (with(&|who| who.nodes.clear()), Some("u1"), Some("no node")),
            (
                with(&|who| who.nodes = texts(&["n1", "n2"])),
                Some("u1"),
                Some("2 nodes"),
            ),
            (
                with(&|who| who.nodes = texts(&["n2"])),
                Some("u1"),
                Some("node n2 for node n1"),
            ),
            (
                with(&|who| who.usages.push("server auth".to_owned())),
                Some("u1"),
                Some("usages"),
            ),
            (
                with(&|who| who.usages = texts(&["digital signature"])),
                Some("u1"),
                Some("usages"),
            ),
            (with(&|who| who.usages.clear()), Some("u1"), Some("usages")),
            (good.clone(), None, Some("there is no node n1")),
            (good.clone(), Some("u2"), Some("has UID u2")),
        ];
        for (who, node, denied) in cases {
            let result = admit(&rules, &request, &who, node);
            match (denied, result) {
                (None, result) => result.unwrap(),
                (Some(part), Err(error)) => {
                    assert!(error.to_string().contains(part), "{error}: {part}");
                }
                (Some(part), Ok(())) => panic!("let in: {part}, {who:?}"),
            }
        }
        // The Node is the one asked for, and the token is that of another life of it.
        for (uids, part) in [
            (&["u0"][..], "earlier node n1 with UID u0"),
            (&[], "does not say the UID"),
            (&["u1", "u0"], "2 UIDs"),
            (&["u1", "u1"], "2 UIDs"),
        ] {
            let who = with(&|who| who.node_uids = texts(uids));
            let denial = admit(&rules, &request, &who, Some("u1")).unwrap_err();
            assert!(denial.to_string().contains(part), "{denial}: {part}");
            assert_eq!(denial.reason(), "other_life");
        }
    }
}
