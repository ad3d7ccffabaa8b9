//! ExternalConnection: an IPsec connection between nodes of the cluster and a host outside.
//!
//! The vocabulary is that of libreswan as NMState has it (`left` is the node, `right` the host
//! outside), one field for one word, in this API's spelling. What stands in NMState as a secret or
//! as a name in a node's certificate store is a reference to a Secret here.
//!
//! Agents of this version do not serve it: [`NOT_SERVED`] says so to people.

mod condition;
mod end;
mod rules;
mod secret;
mod selector;
mod suite;
mod words;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::duration::Lifetime;
use crate::object::{Kind, Object};

pub use condition::{ACCEPTED, NOT_SERVED, NOT_SET_UP, PROGRAMMED, judged};
pub use end::{Endpoint, Identity, ProtoPort};
pub use secret::{BundleReference, CertificateReference, KeyReference};
pub use selector::{NodeSelector, Operator, Requirement};
pub use suite::{EspSuite, IkeSuite};
pub use words::{AddressFamily, AuthBy, ConnectionType, DpdAction, Ikev2, RsaSigKey, SendCert};

/// The most prefixes of one side.
pub const MOST_SUBNETS: usize = 32;

/// The most suites of one list.
pub const MOST_SUITES: usize = 8;

/// The most nodes, labels or requirements that a selector names.
pub const MOST_SELECTED: usize = 64;

/// The shortest and longest lifetime of an SA, in seconds.
pub const SA_SECONDS: [u64; 2] = [60, 86_400];

/// The longest `dpdDelay` and `dpdTimeout`, in seconds.
pub const DPD_SECONDS: [u64; 2] = [3_600, 86_400];

/// Marker of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalConnectionKind;

/// A connection to a host outside the cluster.
pub type ExternalConnection = Object<ExternalConnectionKind>;

impl Kind for ExternalConnectionKind {
    const KIND: &'static str = "ExternalConnection";
    const PLURAL: &'static str = "externalconnections";
    type Spec = ExternalConnectionSpec;
    type Status = ExternalConnectionStatus;

    fn validate(_name: &str, spec: &ExternalConnectionSpec) -> Result<(), String> {
        rules::check(spec)
    }

    /// What is wrong with it is said in its status, by the controller.
    fn readable(_name: &str, _spec: &ExternalConnectionSpec) -> Result<(), String> {
        Ok(())
    }
}

/// What is wanted of a connection. `left` is the node, `right` the host outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalConnectionSpec {
    /// The nodes that have the connection; all, if nothing is selected.
    #[serde(default, skip_serializing_if = "NodeSelector::is_all")]
    pub node_selector: NodeSelector,
    /// Whether whole packets go inside ESP, or what is in them.
    #[serde(rename = "type", default)]
    pub kind: ConnectionType,
    /// The version of IKE: 2 and no other.
    #[serde(default)]
    pub ikev2: Ikev2,

    /// The node's address or name on the way to the host outside. `%defaultroute`: that of each
    /// node's route there.
    #[serde(default)]
    pub left: Endpoint,
    /// Who the node says it is: `%fromcert` (the certificate's subject), an address, `@name`,
    /// `user@name`, a distinguished name as in `CN=n1, O=Example`, or `@[text]`. Its address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_id: Option<Identity>,
    /// The prefixes behind the node. Its address alone if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub left_subnets: Vec<IpNet>,
    /// The node's protocol and port: `udp/4789`, `tcp/%any`, `gre`, `47`. All of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_proto_port: Option<ProtoPort>,
    /// The node's certificate and key, with the chain up to the CA: a PKCS#12 bundle in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_cert: Option<BundleReference>,
    /// Where the node's public key is: in its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_rsa_sig_key: Option<RsaSigKey>,
    /// When the node sends its certificate; `always` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_send_cert: Option<SendCert>,
    /// Whether the host outside gives the node an address inside the tunnel (RFC 7296 2.19).
    #[serde(default)]
    pub left_mode_cfg_client: bool,

    /// The address or name of the host outside.
    pub right: Endpoint,
    /// Who the host outside must be, written as `leftId` is. Its address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_id: Option<Identity>,
    /// The prefixes behind the host outside. Its address alone if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub right_subnets: Vec<IpNet>,
    /// The protocol and port of the host outside, written as `leftProtoPort` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_proto_port: Option<ProtoPort>,
    /// The one certificate that the host outside may show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_cert: Option<CertificateReference>,
    /// The CA that the certificate of the host outside must come from: its distinguished name, or
    /// `%same` for the one of `leftCert`. Any CA of that bundle if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_ca: Option<String>,
    /// Where the public key of the host outside is: in its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_rsa_sig_key: Option<RsaSigKey>,

    /// The pre-shared key, in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<KeyReference>,
    /// How both sides prove who they are. What the credential allows if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auth_by: Vec<AuthBy>,
    /// Whether the identity of the host outside must stand in its certificate.
    #[serde(default = "yes")]
    pub require_id_on_certificate: bool,

    /// Suites of IKE, the preferred first: `aes_gcm256-sha2_512-dh19`, `aes256-sha2_256-dh14`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ike: Vec<IkeSuite>,
    /// Suites of ESP, the preferred first: `aes_gcm256`, `aes_gcm128-dh31`, `aes256-sha2_256`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub esp: Vec<EspSuite>,
    /// Age at which the IKE SA is rekeyed: 1m to 1d.
    #[serde(default = "eight_hours")]
    pub ike_lifetime: Lifetime,
    /// Age at which a child SA is rekeyed: 1m to 1d.
    #[serde(default = "eight_hours")]
    pub sa_lifetime: Lifetime,
    /// How long nothing may come before the host outside is asked whether it is there. Never asked
    /// if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpd_delay: Option<Lifetime>,
    /// How long it may not answer until it is held to be gone; longer than `dpdDelay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpd_timeout: Option<Lifetime>,
    /// What becomes of the connection then; `hold` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpd_action: Option<DpdAction>,

    /// The number of a virtual interface that the connection's packets are routed to. Without one
    /// the packets are caught by policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipsec_interface: Option<u32>,
    /// The family of `left` and `right`, where names have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_addr_family: Option<AddressFamily>,
    /// The family of the packets inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_addr_family: Option<AddressFamily>,
}

fn yes() -> bool {
    true
}

fn eight_hours() -> Lifetime {
    Lifetime::hours(8)
}

impl ExternalConnectionSpec {
    /// A connection to that host with all defaults; it has no credential yet.
    pub fn to(right: Endpoint) -> ExternalConnectionSpec {
        ExternalConnectionSpec {
            node_selector: NodeSelector::default(),
            kind: ConnectionType::default(),
            ikev2: Ikev2::default(),
            left: Endpoint::default(),
            left_id: None,
            left_subnets: Vec::new(),
            left_proto_port: None,
            left_cert: None,
            left_rsa_sig_key: None,
            left_send_cert: None,
            left_mode_cfg_client: false,
            right,
            right_id: None,
            right_subnets: Vec::new(),
            right_proto_port: None,
            right_cert: None,
            right_ca: None,
            right_rsa_sig_key: None,
            psk: None,
            auth_by: Vec::new(),
            require_id_on_certificate: true,
            ike: Vec::new(),
            esp: Vec::new(),
            ike_lifetime: eight_hours(),
            sa_lifetime: eight_hours(),
            dpd_delay: None,
            dpd_timeout: None,
            dpd_action: None,
            ipsec_interface: None,
            host_addr_family: None,
            client_addr_family: None,
        }
    }

    /// Whether it can be; the error names the field. A store lets nothing be written that fails here,
    /// but a reader may meet what an older build, another CRD or an editor has let in.
    pub fn check(&self) -> Result<(), String> {
        rules::check(self)
    }
}

/// What was made of a connection; written by the controller. What each node makes of it is no part of
/// it: connections times nodes would be written, and each change read by all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalConnectionStatus {
    /// The generation of the spec this speaks of.
    pub observed_generation: u64,
    /// Accepted, Programmed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests;
