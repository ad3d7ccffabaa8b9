//! TrustBundle: the CAs that nodes trust, published by the controller.

use serde::{Deserialize, Serialize};

use crate::object::{Empty, Kind, Object};

/// Marker of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundleKind;

/// The CAs in force; one object, named `cluster`.
pub type TrustBundle = Object<TrustBundleKind>;

impl Kind for TrustBundleKind {
    const KIND: &'static str = "TrustBundle";
    const PLURAL: &'static str = "trustbundles";
    type Spec = TrustBundleSpec;
    type Status = Empty;
}

/// The certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustBundleSpec {
    /// One or more CA certificates, PEM, concatenated.
    pub certificates: String,
    /// Revocation lists of those CAs, PEM (`X509 CRL`), concatenated. One that none of them
    /// signed is left out and told in the nodes' conditions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revocation_lists: String,
}
