//! TrustBundle: the CAs that nodes trust, published by the controller.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::object::{Kind, Object};
use crate::time::UnixTime;

/// Marker of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundleKind;

/// The CAs in force; one object, named `cluster`.
pub type TrustBundle = Object<TrustBundleKind>;

impl Kind for TrustBundleKind {
    const KIND: &'static str = "TrustBundle";
    const PLURAL: &'static str = "trustbundles";
    type Spec = TrustBundleSpec;
    type Status = TrustBundleStatus;
}

/// The certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustBundleSpec {
    /// One or more CA certificates, PEM, concatenated. The first one signs: a node whose certificate
    /// is of another asks for the next.
    pub certificates: String,
    /// Revocation lists of those CAs, PEM (`X509 CRL`), concatenated. One that none of them
    /// signed is left out and told in the nodes' conditions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revocation_lists: String,
}

/// How far one CA has followed another; written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrustBundleStatus {
    /// Where the rotation stands.
    pub phase: CaPhase,
    /// Counts the rotations of this cluster; 0 before the first.
    pub rotation: u64,
    /// The last value of [`crate::policy::Certificates::ca_rotation`] that was answered.
    pub answered: u64,
    /// Common name of the CA that signs.
    pub signer: String,
    /// Common name of the other CA: in `Trusting` the one that will sign, in `Issuing` the one that
    /// goes, in `Retiring` the one that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The rotation was taken back: the CA that goes is the new one.
    #[serde(skip_serializing_if = "is_false")]
    pub taken_back: bool,
    /// How many nodes hold the rotation.
    #[serde(skip_serializing_if = "is_zero")]
    pub waiting: u64,
    /// The nodes that hold the rotation, and why; of many the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting_on: Vec<CaWaiting>,
    /// When the CA that signs ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer_not_after: Option<UnixTime>,
    /// Why the rotation cannot be taken back although it is in `Trusting` or `Issuing`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub irrevocable: String,
    /// When `phase` began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<UnixTime>,
    /// Why the rotation was begun, how the last one ended, or what keeps the controller from the next
    /// step.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// A node that holds a rotation of the CA.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct CaWaiting {
    /// Its name.
    pub node: String,
    /// What it has not done, for people.
    pub reason: String,
}

/// The steps in which one CA follows another. Each is left when every node has done its part.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum CaPhase {
    /// One CA, no rotation.
    #[default]
    Settled,
    /// The new CA is in the bundle and signs nothing yet: nodes come to trust it.
    Trusting,
    /// The new CA signs: nodes take new certificates and show them to all peers.
    Issuing,
    /// The old CA has left the bundle and its key is gone: nodes cease to trust it.
    Retiring,
}

impl fmt::Display for CaPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CaPhase::Settled => "Settled",
            CaPhase::Trusting => "Trusting",
            CaPhase::Issuing => "Issuing",
            CaPhase::Retiring => "Retiring",
        })
    }
}
