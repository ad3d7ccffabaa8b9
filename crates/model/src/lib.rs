//! Nodes, policies, security associations: the nouns every other crate speaks in.
//!
//! Two families live here. The *objects* (`policy`, `node`, `request`, `bundle`, `external`) are what
//! stands in a store and in Kubernetes, group `testudo.dev/v1alpha1`. The *specs* (`sa`,
//! `selector`, `traffic`) are what the IKE engine and the planner hand to a datapath.
#![forbid(unsafe_code)]

pub mod algorithm;
pub mod bundle;
pub mod condition;
pub mod duration;
pub mod external;
pub mod name;
pub mod node;
pub mod object;
pub mod phase;
pub mod policy;
pub mod request;
pub mod sa;
pub mod selector;
pub mod time;
pub mod traffic;

pub use bundle::{CaPhase, CaWaiting, TrustBundle, TrustBundleSpec, TrustBundleStatus};
pub use condition::{Condition, ConditionStatus};
pub use duration::Lifetime;
pub use external::{ExternalConnection, ExternalConnectionSpec, ExternalConnectionStatus};
pub use name::{BootId, NodeName, NodeUid, PeerId, SecretName};
pub use node::{
    Authorities, CertificateFacts, NodeEncryption, NodeEncryptionSpec, NodeEncryptionStatus,
};
pub use object::{API_VERSION, Empty, Kind, Metadata, Object};
pub use phase::{Acknowledgement, Phase};
pub use policy::{EncryptionPolicy, EncryptionPolicySpec, EncryptionPolicyStatus};
pub use request::{CertificateRequest, CertificateRequestSpec, CertificateRequestStatus};
pub use sa::{
    ChildId, Cipher, Encapsulation, InboundSaSpec, OutboundSaSpec, SaDirection, SaId, SaLimits,
    SaMode, Spi,
};
pub use selector::{PortRange, TrafficSelector};
pub use time::{Monotonic, Now, UnixTime};
pub use traffic::{ClearTraffic, Outbound, PeerTraffic, ProtectedFlows, TrafficPolicy};
