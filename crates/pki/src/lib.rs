//! Certificates: the CA, node requests, validation of chains, the renewal decision.
//!
//! A node makes its key, asks with a PKCS#10 request ([`certificate_request`]) and proves with
//! its join token that the request is its own ([`join_proof`]). The controller holds the [`Ca`]
//! and signs for that node alone ([`Ca::sign_request`]). Peers check each other with
//! [`verify_chain`] against a [`TrustBundle`], which may hold several CAs while one follows
//! another, and the revocation lists of those CAs. [`renewal`] says when a certificate is to be replaced.
//!
//! All is pure: the time (seconds since 1970, UTC) and the randomness are arguments, and nothing
//! here reads or writes a file.
#![forbid(unsafe_code)]

mod bundle;
mod ca;
mod error;
mod facts;
mod identity;
mod key;
mod rcgen_key;
mod renewal;
mod request;
mod revocation;
mod token;
mod verify;

pub use bundle::{InUse, TrustBundle, chain_from_pem, chain_to_pem, revocation_list_to_pem};
pub use ca::{Ca, CaOptions, IssuedCertificate};
pub use error::{CertificateCheck, CertificateError, PkiError, RequestError};
pub use facts::{CertificateFacts, CertificateTimes, hex, utc};
pub use identity::{NODE_DNS_SUFFIX, NODE_URI_PREFIX, NodeIdentity};
pub use key::{key_from_pem, key_to_pem, keys_from_pem};
pub use renewal::{Renewal, RenewalPolicy, renewal};
pub use request::{certificate_request, request_from_pem, request_to_pem};
pub use revocation::{
    MAX_REVOCATION_LIST, MAX_REVOCATION_LISTS, RevocationError, RevocationFacts, Revoked,
};
pub use token::{TOKEN_LEN, check_join_proof, join_proof, new_token, token_from_hex, token_to_hex};
pub use verify::{ExpectedPeer, PeerCertificate, verify_chain};

/// How long before "now" a certificate starts to be valid, in seconds: clocks of nodes differ.
pub const BACKDATE: u64 = 5 * 60;

/// Certificates larger than this many bytes are refused unread.
pub const MAX_CERTIFICATE: usize = 16 * 1024;

/// Certificates a peer may send in one chain.
pub const MAX_CHAIN: usize = 8;

/// CAs that one bundle may hold.
pub const MAX_ANCHORS: usize = 16;

#[cfg(test)]
mod tests;
