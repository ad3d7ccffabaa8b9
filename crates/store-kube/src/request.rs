//! Certificate requests are `CertificateSigningRequest`s of `certificates.k8s.io/v1`, signerName
//! `testudo.dev/node`: the API server says who wrote one, and keeps it as it was written.
//!
//! A request's object has a name of its own, made from node and request, so that nobody can take the
//! place of one that is still to come. What the store calls `NODE` is the newest of those that were
//! written by the agents' user with a token bound to that node; one of anybody else, one that cannot be read
//! ([`unfit`]) and an older one have names that are no node's, and are there to be denied.

use std::time::SystemTime;

use k8s_openapi::ByteString;
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    CertificateRequest, CertificateRequestSpec, CertificateRequestStatus, Kind, NodeName, NodeUid,
    Object,
};
use testudo_store::Authenticated;

use crate::convert::{Read, metadata};
use crate::verdict;

/// The signer of nodes' certificates.
pub const SIGNER: &str = "testudo.dev/node";

/// The key usages that a node asks for. `ipsecIKE` (RFC 4945 5.1.3.12) has no name in Kubernetes.
pub const USAGES: [&str; 2] = ["digital signature", "ipsec end system"];

/// Label: the node that a request names, cut where labels are cut.
const NODE_LABEL: &str = "testudo.dev/node";
/// Annotations: what the request says of its writer.
const NODE: &str = "testudo.dev/node";
const UID: &str = "testudo.dev/uid";
const PROOF: &str = "testudo.dev/proof";
/// Annotation: nanoseconds since 1970 by its writer's clock. The API server's creation time has whole
/// seconds, and a node that is denied may ask twice in one.
const MADE: &str = "testudo.dev/made";
/// Annotation of the object in the store: its name in the API. Set when it is read.
const NAME: &str = "testudo.dev/certificatesigningrequest";

/// Annotation of the object in the store: why it is not to be signed, whoever has written it. Set when it
/// is read.
const UNFIT: &str = "testudo.dev/unfit";

/// What the names of requests that are no node's begin with.
const STRANGER: &str = "stranger.";

/// In the place of a node and a UID where none is said.
const NOBODY: &str = "nobody";
const NONE: &str = "none";

/// Of what somebody has written so many characters are repeated.
const REPEATED: usize = 80;

/// Where a bound token's node stands in the extras of the user (KEP-4193): its name, and the UID that it
/// had when the token was made. Tokens bound to a pod have both as well as those bound to a Node.
const NODE_EXTRA: &str = "authentication.kubernetes.io/node-name";
const NODE_UID_EXTRA: &str = "authentication.kubernetes.io/node-uid";

/// Whether `K` is the kind that becomes a `CertificateSigningRequest`.
pub(crate) fn is_request<K: Kind>() -> bool {
    K::KIND == CertificateRequestKind::KIND
}

pub(crate) fn resource() -> ApiResource {
    ApiResource {
        group: "certificates.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "certificates.k8s.io/v1".to_owned(),
        kind: "CertificateSigningRequest".to_owned(),
        plural: "certificatesigningrequests".to_owned(),
    }
}

/// Which requests are ours, as a selector of fields.
pub(crate) fn field_selector() -> String {
    format!("spec.signerName={SIGNER}")
}

/// The requests that may have this name in the store, as a selector of labels; `None`: any may.
pub(crate) fn label_selector(name: &str) -> Option<String> {
    let one = !name.starts_with(STRANGER);
    one.then(|| format!("{NODE_LABEL}={}", label(name)))
}

/// A node's name may be longer than a label's value.
fn label(node: &str) -> String {
    match node.len() {
        0..=63 => node.to_owned(),
        _ => format!("{}-{}", node[..46].trim_end_matches('.'), digest(&[node])),
    }
}

fn digest(parts: &[&str]) -> String {
    let bytes: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    let digest = testudo_crypto::sha256(&bytes);
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// The name in the API of a request to come.
pub(crate) fn name_for(spec: &CertificateRequestSpec) -> String {
    let node: String = spec.node.as_str().chars().take(200).collect();
    let digest = digest(&[&spec.request, "\n", &spec.proof]);
    format!("testudo.{}.{digest}", node.trim_end_matches(['.', '-']))
}

/// Another name for it, where somebody has taken that one. Nobody knows it beforehand.
pub(crate) fn other_name_for(spec: &CertificateRequestSpec, random: [u8; 8]) -> String {
    let name = name_for(spec);
    let digits: String = random.iter().map(|b| format!("{b:02x}")).collect();
    // The digest of what is asked makes room for it.
    let stem = name
        .rsplit_once('.')
        .map_or(name.as_str(), |(stem, _)| stem);
    format!("{stem}.{digits}")
}

/// The name in the API of a request that was read.
pub fn name_of(request: &CertificateRequest) -> Option<&str> {
    request.metadata.annotations.get(NAME).map(String::as_str)
}

/// Why a request that was read is not to be signed, whoever has written it: it cannot be read, or its node has
/// asked again since.
pub fn unfit(request: &CertificateRequest) -> Option<&str> {
    request.metadata.annotations.get(UNFIT).map(String::as_str)
}

/// The name in the store of a request that is no node's, by the UID of its object.
pub(crate) fn stranger(uid: Option<&str>) -> String {
    format!("{STRANGER}{}", uid.unwrap_or_default())
}

/// One that its node has followed up by a newer one, with a name of its own.
pub(crate) fn superseded(mut older: CertificateRequest) -> CertificateRequest {
    older.metadata.name = stranger(older.metadata.uid.as_deref());
    let why = "the node has asked again since: the newest of its requests is answered".to_owned();
    older.metadata.annotations.insert(UNFIT.to_owned(), why);
    older
}

/// The object that asks, under this name in the API.
pub(crate) fn manifest(request: &CertificateRequest, name: &str) -> Value {
    let spec = &request.spec;
    let mut annotations = request.metadata.annotations.clone();
    annotations.remove(NAME);
    annotations.remove(UNFIT);
    annotations.insert(NODE.to_owned(), spec.node.to_string());
    annotations.insert(UID.to_owned(), spec.uid.to_string());
    annotations.insert(PROOF.to_owned(), spec.proof.clone());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    annotations.insert(MADE.to_owned(), format!("{nanos:020}"));
    let mut labels = request.metadata.labels.clone();
    labels.insert(NODE_LABEL.to_owned(), label(spec.node.as_str()));
    json!({
        "apiVersion": resource().api_version,
        "kind": resource().kind,
        "metadata": { "name": name, "labels": labels, "annotations": annotations },
        "spec": {
            "signerName": SIGNER,
            "request": ByteString(spec.request.clone().into_bytes()),
            "usages": USAGES,
        },
    })
}

/// Reads a `CertificateSigningRequest`. One that somebody made by hand is read too, whatever it says, with what
/// is missing filled in, so that it can be denied. `agents`: the user that nodes ask as; none: any may be theirs.
pub(crate) fn read(raw: &DynamicObject, agents: Option<&str>) -> Read<CertificateRequestKind> {
    let name = raw.metadata.name.clone().unwrap_or_default();
    let writer = requester(raw);
    let annotation = |key| raw.metadata.annotations.as_ref()?.get(key).cloned();
    let bound = match &writer.nodes[..] {
        [node] => Some(node.clone()),
        _ => None,
    };
    let claimed = annotation(NODE).or_else(|| bound.clone());
    let mut unfit = None;
    let object = object(raw, claimed.as_deref(), &mut unfit);
    let theirs = unfit.is_none() && agents.is_none_or(|agents| writer.username == agents);
    let own = bound.filter(|node| theirs && claimed.as_ref() == Some(node));
    let stored = own.unwrap_or_else(|| stranger(raw.metadata.uid.as_deref()));
    let made = raw.metadata.creation_timestamp.as_ref();
    let made = made.map(|time| json!(time).as_str().unwrap_or_default().to_owned());
    Read {
        order: format!(
            "{} {} {name}",
            made.unwrap_or_default(),
            annotation(MADE).unwrap_or_default()
        ),
        object: match object {
            Ok(mut object) => {
                object.metadata.name.clone_from(&stored);
                let annotations = &mut object.metadata.annotations;
                annotations.insert(NAME.to_owned(), name.clone());
                annotations.remove(UNFIT);
                annotations.extend(unfit.map(|why| (UNFIT.to_owned(), why)));
                Ok(object)
            }
            Err(why) => Err(verdict::problem::<CertificateRequestKind>(&name, why)),
        },
        name: stored,
        raw: name,
        unknown: Vec::new(),
    }
}

/// What it says. What cannot be read is left out, and why is put into `unfit`.
fn object(
    raw: &DynamicObject,
    node: Option<&str>,
    unfit: &mut Option<String>,
) -> Result<CertificateRequest, String> {
    let annotation = |key| raw.metadata.annotations.as_ref()?.get(key).cloned();
    let mut bytes = |at: &str| -> Option<String> {
        let value = raw.data.pointer(at).filter(|value| !value.is_null())?;
        let bytes = serde_json::from_value(value.clone()).map(|bytes: ByteString| bytes.0);
        let text = bytes.map(String::from_utf8);
        if !matches!(text, Ok(Ok(_))) {
            unfit.get_or_insert_with(|| format!("{at} is no text"));
        }
        text.ok()?.ok()
    };
    let request = bytes("/spec/request").unwrap_or_default();
    // What somebody has signed is an answer, whatever it is.
    let certificate = bytes("/status/certificate").filter(|pem| !pem.is_empty());
    let proof = annotation(PROOF).unwrap_or_else(|| digest(&[&request]));
    let node = match NodeName::new(node.unwrap_or(NOBODY)) {
        Ok(node) => node,
        Err(_) => {
            let said = repeated(NODE, node.unwrap_or_default());
            unfit.get_or_insert_with(|| format!("{said} names no node"));
            NodeName::new(NOBODY).map_err(|e| e.to_string())?
        }
    };
    let uid = annotation(UID).unwrap_or_else(|| NONE.to_owned());
    let uid = match NodeUid::new(&uid) {
        Ok(uid) => uid,
        Err(_) => {
            unfit.get_or_insert_with(|| format!("{} is no UID", repeated(UID, &uid)));
            NodeUid::new(NONE).map_err(|e| e.to_string())?
        }
    };
    let status = CertificateRequestStatus {
        certificate,
        denied: condition(raw, "Denied").or_else(|| condition(raw, "Failed")),
        answers: None,
    };
    let answered = status.certificate.is_some() || status.denied.is_some();
    let spec = CertificateRequestSpec {
        node,
        uid,
        request,
        proof: proof.clone(),
    };
    let mut object: CertificateRequest = Object::new("", spec);
    object.metadata = metadata(raw);
    object.status = CertificateRequestStatus {
        answers: answered.then_some(proof),
        ..status
    };
    Ok(object)
}

/// An annotation as somebody has written it, for messages.
fn repeated(key: &str, text: &str) -> String {
    let more = match text.chars().nth(REPEATED) {
        Some(_) => "…",
        None => "",
    };
    let text: String = text.chars().take(REPEATED).collect();
    format!("the annotation {key} {text:?}{more}")
}

/// Whether a condition of this type is true, and its message.
pub(crate) fn condition(raw: &DynamicObject, kind: &str) -> Option<String> {
    let conditions = raw.data.pointer("/status/conditions")?.as_array()?;
    let found = conditions
        .iter()
        .find(|c| c["type"] == kind && c["status"] == "True")?;
    let text = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default();
    Some(match text("message") {
        "" => text("reason").to_owned(),
        message => message.to_owned(),
    })
}

/// Who wrote it, by the API server's word.
pub(crate) fn requester(raw: &DynamicObject) -> Authenticated {
    let texts = |at: &str| -> Vec<String> {
        let list = raw.data.pointer(at).and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let username = raw.data.pointer("/spec/username").and_then(Value::as_str);
    // RFC 6901: a slash in a key is ~1.
    let extra = |key: &str| texts(&format!("/spec/extra/{}", key.replace('/', "~1")));
    Authenticated {
        username: username.unwrap_or_default().to_owned(),
        groups: texts("/spec/groups"),
        nodes: extra(NODE_EXTRA),
        node_uids: extra(NODE_UID_EXTRA),
        usages: texts("/spec/usages"),
    }
}

/// The conditions with one more: Approved, Denied or Failed.
pub(crate) fn with_condition(raw: &DynamicObject, kind: &str, message: &str) -> Value {
    let old = raw.data.pointer("/status/conditions");
    let mut conditions = old.and_then(Value::as_array).cloned().unwrap_or_default();
    conditions.push(json!({
        "type": kind,
        "status": "True",
        "reason": format!("Testudo{kind}"),
        "message": message,
    }));
    Value::Array(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(extra: Value, annotations: Value, conditions: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {
                "name": "testudo.n1.00", "uid": "u1", "annotations": annotations,
                "creationTimestamp": "2026-11-28T12:00:00Z",
            },
            "spec": {
                "signerName": SIGNER, "request": "UEVN", "usages": USAGES, "groups": ["g"],
                "username": "system:serviceaccount:testudo-system:testudo-agent", "extra": extra,
            },
            "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    fn bound(node: &str) -> Value {
        json!({ NODE_EXTRA: [node] })
    }

    #[test]
    fn only_a_token_bound_to_the_node_makes_a_request_the_nodes() {
        let claims = json!({ NODE: "n1", UID: "uid-1", PROOF: "ab" });
        let own = read(&raw(bound("n1"), claims.clone(), json!([])), None);
        assert_eq!(own.name, "n1");
        let object = own.object.unwrap();
        assert_eq!((object.name(), object.spec.proof.as_str()), ("n1", "ab"));
        assert_eq!(object.spec.request, "PEM");
        assert_eq!(name_of(&object), Some("testudo.n1.00"));
        let two = json!({ NODE_EXTRA: ["n1", "n2"] });
        for extra in [bound("n2"), json!({}), two] {
            let stranger = read(&raw(extra, claims.clone(), json!([])), None);
            assert_eq!(stranger.name, "stranger.u1");
            assert_eq!(stranger.object.unwrap().spec.node.as_str(), "n1");
        }
    }

    #[test]
    fn one_of_another_user_is_not_the_nodes_whatever_its_token_is_bound_to() {
        let claims = json!({ NODE: "n1", UID: "uid-1", PROOF: "ab" });
        let raw = raw(bound("n1"), claims, json!([]));
        let name = |agents| read(&raw, Some(agents)).name;
        assert_eq!(
            name("system:serviceaccount:testudo-system:testudo-agent"),
            "n1"
        );
        assert_eq!(
            name("system:serviceaccount:other:testudo-agent"),
            "stranger.u1"
        );
    }

    #[test]
    fn what_cannot_be_read_is_there_to_be_denied() {
        let long = "x ".repeat(5000);
        for (annotations, why) in [
            (
                json!({ NODE: "n1,n2", UID: "u" }),
                "testudo.dev/node \"n1,n2\"",
            ),
            (json!({ NODE: long, UID: "u" }), "\"… names no node"),
            (
                json!({ NODE: "n1", UID: "two words" }),
                "testudo.dev/uid \"two words\"",
            ),
            (json!({ NODE: "n1", UID: "" }), "testudo.dev/uid \"\""),
        ] {
            let read = read(&raw(bound("n1"), annotations, json!([])), None);
            assert_eq!(read.name, "stranger.u1");
            let object = read.object.unwrap();
            let said = unfit(&object).unwrap();
            assert!(said.contains(why) && said.len() < 200, "{said}");
            assert_eq!(object.status, CertificateRequestStatus::default());
        }
        // PEM may stand among any bytes.
        let mut bytes = raw(bound("n1"), json!({ NODE: "n1", UID: "u" }), json!([]));
        bytes.data["spec"]["request"] = json!(ByteString(b"\xffPEM".to_vec()));
        let object = read(&bytes, None).object.unwrap();
        assert_eq!(unfit(&object), Some("/spec/request is no text"));
        assert_eq!(object.name(), "stranger.u1");
        // Nobody says so of another's.
        let good = json!({ NODE: "n1", UID: "u", UNFIT: "says who" });
        let object = read(&raw(bound("n1"), good, json!([])), None)
            .object
            .unwrap();
        assert_eq!((object.name(), unfit(&object)), ("n1", None));
    }

    #[test]
    fn the_api_servers_word_on_the_writer_is_taken() {
        let extra = json!({ NODE_EXTRA: ["n1"], NODE_UID_EXTRA: ["uid-1"] });
        let writer = requester(&raw(extra, json!({}), json!([])));
        assert_eq!(writer.nodes, ["n1"]);
        assert_eq!(writer.node_uids, ["uid-1"]);
        assert_eq!(writer.groups, ["g"]);
        assert_eq!(writer.usages, USAGES);
        assert!(writer.username.ends_with(":testudo-agent"));
        let writer = requester(&raw(bound("n1"), json!({}), json!([])));
        assert!(writer.node_uids.is_empty());
    }

    #[test]
    fn a_denial_is_an_answer_and_an_approval_alone_is_none() {
        let with = |kind: &str| {
            let condition = json!([{"type": kind, "status": "True", "message": "why"}]);
            let read = read(&raw(bound("n1"), json!({ PROOF: "ab" }), condition), None);
            read.object.unwrap().status
        };
        assert_eq!(with("Approved"), CertificateRequestStatus::default());
        for kind in ["Denied", "Failed"] {
            let status = with(kind);
            assert_eq!(status.denied.as_deref(), Some("why"));
            assert_eq!(status.answers.as_deref(), Some("ab"));
        }
    }

    #[test]
    fn names_and_labels_of_long_nodes_fit() {
        let long = format!("{}.{}", "a".repeat(63), "b".repeat(63));
        let spec = CertificateRequestSpec {
            node: NodeName::new(format!("{long}.{}", "c".repeat(63))).unwrap(),
            uid: NodeUid::new("u").unwrap(),
            request: "r".to_owned(),
            proof: "p".to_owned(),
        };
        assert!(name_for(&spec).len() <= 253);
        assert!(testudo_store::check_name(&name_for(&spec)).is_ok());
        let other = other_name_for(&spec, [7; 8]);
        assert!(other.len() <= 253 && testudo_store::check_name(&other).is_ok());
        assert_ne!(other, name_for(&spec));
        assert!(label(&long).len() <= 63);
        assert_ne!(label(&long), label(&long.replace('b', "c")));
    }
}
