//! CertificateRequest: how a node asks for its certificate through a directory store. On
//! Kubernetes `certificates.k8s.io/v1` takes this place.

use serde::{Deserialize, Serialize};

use crate::name::{NodeName, NodeUid};
use crate::object::{Kind, Object};

/// Marker of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequestKind;

/// A node's request; the object's name is the node's.
pub type CertificateRequest = Object<CertificateRequestKind>;

impl Kind for CertificateRequestKind {
    const KIND: &'static str = "CertificateRequest";
    const PLURAL: &'static str = "certificaterequests";
    type Spec = CertificateRequestSpec;
    type Status = CertificateRequestStatus;

    fn validate(name: &str, spec: &CertificateRequestSpec) -> Result<(), String> {
        if spec.node.as_str() != name {
            return Err(format!(
                "spec.node: \"{}\" asks under the name \"{name}\"",
                spec.node
            ));
        }
        if spec.request.len() > 16 * 1024 {
            return Err("spec.request: longer than 16 KiB".to_owned());
        }
        Ok(())
    }
}

/// What the node asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateRequestSpec {
    /// Who asks.
    pub node: NodeName,
    /// The node's UID.
    pub uid: NodeUid,
    /// The PKCS#10 request, PEM.
    pub request: String,
    /// HMAC-SHA256 with the node's join token over `node || 0 || uid || 0 || DER request`, hex:
    /// only the holder of the token can ask for this name.
    pub proof: String,
}

/// The controller's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateRequestStatus {
    /// The proof of the request this answers: a status never answers a later request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
    /// The chain, PEM, the node's certificate first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Why it was denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
}
