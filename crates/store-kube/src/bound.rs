//! The Node that our own token is bound to: who we are in the cluster, told by the API server that issued
//! it (KEP-4193). Nothing is verified here: a token that lies is refused where it is shown.

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use testudo_model::{NodeName, NodeUid};
use testudo_store::{Kubernetes, StoreError};

use crate::link;

/// A Node as a token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundNode {
    /// Its name.
    pub name: NodeName,
    /// The UID of the object: another one when a Node was made anew under the same name.
    pub uid: NodeUid,
}

/// The Node that the token of these credentials is bound to. `None`: it is bound to none, or there is no
/// token (a client certificate, say).
///
/// # Errors
/// The credentials cannot be read.
pub async fn bound_node(at: &Kubernetes) -> Result<Option<BoundNode>, StoreError> {
    Ok(token(at).await?.and_then(|token| claimed(token.trim())))
}

/// The ServiceAccount whose token these credentials are, as the API server names its user. `None`: it is no
/// ServiceAccount's.
pub(crate) async fn account(at: &Kubernetes) -> Result<Option<String>, StoreError> {
    let claims = token(at).await?.and_then(|token| claims(token.trim()));
    let user = claims.and_then(|claims| claims["sub"].as_str().map(str::to_owned));
    Ok(user.filter(|user| user.starts_with("system:serviceaccount:")))
}

async fn token(at: &Kubernetes) -> Result<Option<String>, StoreError> {
    let auth = link::config(at).await?.auth_info;
    match (&auth.token, &auth.token_file) {
        (Some(_), _) => {
            let said = serde_json::to_value(&auth).unwrap_or_default();
            Ok(said["token"].as_str().map(str::to_owned))
        }
        (None, Some(file)) => {
            let read = std::fs::read_to_string(file);
            let read = read.map_err(|error| StoreError::Unavailable {
                what: format!("the token {file} cannot be read: {error}"),
                remedy: "see to the pod's volume of its service account".to_owned(),
            })?;
            Ok(Some(read))
        }
        (None, None) => Ok(None),
    }
}

/// What stands in a token (RFC 7519 3).
fn claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    // base64url without padding (RFC 7515 2), as the base64 that the client library reads.
    let mut text = payload.replace('-', "+").replace('_', "/");
    text.extend(std::iter::repeat_n('=', (4 - text.len() % 4) % 4));
    let bytes: ByteString = serde_json::from_value(json!(text)).ok()?;
    serde_json::from_slice(&bytes.0).ok()
}

/// What stands in it about a node.
fn claimed(token: &str) -> Option<BoundNode> {
    let claims = claims(token)?;
    let node = &claims["kubernetes.io"]["node"];
    Some(BoundNode {
        name: NodeName::new(node["name"].as_str()?).ok()?,
        uid: NodeUid::new(node["uid"].as_str()?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        let text = json!(ByteString(claims.as_bytes().to_vec()));
        let text = text.as_str().unwrap().replace('+', "-").replace('/', "_");
        format!("e30.{}.c2ln", text.trim_end_matches('='))
    }

    #[test]
    fn a_token_names_its_node() {
        for pad in ["", " ", "  ", "   "] {
            let text = format!(
                r#"{{"kubernetes.io":{{"node":{{"name":"n1","uid":"0f-1"}}}},"x":"{pad}ÿ?>"}}"#
            );
            let node = claimed(&token(&text)).unwrap();
            assert_eq!((node.name.as_str(), node.uid.as_str()), ("n1", "0f-1"));
        }
    }

    #[test]
    fn a_token_that_is_bound_to_none_names_none() {
        let pod = r#"{"kubernetes.io":{"pod":{"name":"p","uid":"1"}}}"#;
        let half = r#"{"kubernetes.io":{"node":{"name":"n1"}}}"#;
        for text in [
            token(pod),
            token(half),
            token("[]"),
            "opaque".to_owned(),
            "a.b.c".to_owned(),
            String::new(),
        ] {
            assert_eq!(claimed(&text), None, "{text}");
        }
    }
}
