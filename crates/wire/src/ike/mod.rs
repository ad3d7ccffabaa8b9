//! IKEv2 messages (RFC 7296), with fragments (RFC 7383) and several key exchanges (RFC 9370).
//!
//! Reading a datagram (without the non-ESP marker):
//! 1. [`Header::parse`] finds the SA and lets one answer even a message that fails later.
//! 2. [`Message::parse`] checks lengths and decodes the clear payloads. Each one keeps its raw
//!    `body`, reserved bytes as they were sent, since AUTH is computed over those.
//! 3. [`Encrypted::ranges`] says where AAD, IV, ciphertext and ICV lie in the datagram; after
//!    decryption [`strip_padding`] and [`parse_chain`] give the inner payloads.
//!
//! Writing: collect payloads in a [`Chain`], then [`build_clear`], [`build_encrypted`] or
//! [`build_fragments`]. The latter two return a [`Sealing`]: bytes with room for IV and ICV and
//! the ranges to encrypt in place.

mod build;
mod header;
mod notify;
mod parse;
mod payload;
mod proposal;
#[cfg(test)]
mod tests;
mod ts;

pub use build::{BuildError, Chain, Sealing, build_clear, build_encrypted, build_fragments};
pub use header::{ExchangeType, Flags, HEADER_LEN, Header};
pub use notify::{Notify, NotifyType};
pub use parse::{
    Encrypted, EncryptedLayout, EncryptedRanges, Fragment, Message, ParsedPayload, parse_chain,
    strip_padding,
};
pub use payload::{
    AuthMethod, Authentication, CertEncoding, Certificate, CertificateRequest, Delete, IdType,
    Identification, KeyExchange, Payload, PayloadType, UnknownPayload,
};
pub use proposal::{
    EncryptionId, EsnId, IntegrityId, KeyExchangeId, PrfId, Proposal, ProtocolId, Transform,
    TransformType,
};
pub use ts::{AddressRange, PortRange, TrafficSelector, TrafficSelectors, TsType};

/// Bounds on what one message may hold. A peer that sends more gets INVALID_SYNTAX.
pub mod limits {
    /// Bytes of a datagram.
    pub const MESSAGE: usize = 65_535;
    /// Payloads of a message: clear ones and, apart, those inside an Encrypted payload.
    pub const PAYLOADS: usize = 64;
    /// Proposals of an SA payload.
    pub const PROPOSALS: usize = 64;
    /// Transforms of all proposals of an SA payload together.
    pub const TRANSFORMS: usize = 512;
    /// Attributes of one transform.
    pub const ATTRIBUTES: usize = 8;
    /// Traffic selectors of a payload (its count is one byte).
    pub const TRAFFIC_SELECTORS: usize = 255;
    /// SPIs of a Delete payload.
    pub const DELETE_SPIS: usize = 512;
    /// Smallest nonce, in bytes (RFC 7296, 3.9).
    pub const NONCE_MIN: usize = 16;
    /// Largest nonce, in bytes (RFC 7296, 3.9).
    pub const NONCE_MAX: usize = 256;
}
