//! What the engine is told: its own identity, its suites and limits, its peers.

use std::net::IpAddr;
use std::time::Duration;

use testudo_crypto::{SecretBytes, SigningKey};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{PeerId, SaLimits, SaMode, TrafficSelector};

use crate::suites::Suites;

/// An IKE identity (RFC 7296, 3.5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN. Compared without regard to case.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_DER_ASN1_DN, the name's DER.
    DistinguishedName(Vec<u8>),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
}

/// Who this engine is, and how it proves it.
pub struct LocalIdentity {
    /// The identity sent in IDi and IDr.
    pub id: Identity,
    /// Certificate and key; `None` when every peer uses a pre-shared key.
    pub certificate: Option<CertificateCredential>,
}

/// A certificate chain with the key of its first certificate.
pub struct CertificateCredential {
    /// DER certificates, the engine's own first, then intermediates; never the root.
    pub chain: Vec<Vec<u8>>,
    /// The private key of the first certificate.
    pub key: SigningKey,
}

/// How a peer proves who it is, and how we prove ourselves to it.
pub enum PeerAuth {
    /// RFC 7427 signatures, the certificate judged by the [`crate::CertificateVerifier`].
    Certificate,
    /// A pre-shared key (RFC 7296, 2.15).
    PreSharedKey(SecretBytes),
}

/// A post-quantum pre-shared key (RFC 8784): in addition to [`PeerAuth`], which it does not take
/// the place of.
#[derive(Clone, PartialEq, Eq)]
pub struct PpkConfig {
    /// Its name, the same at both ends. It travels encrypted, to the peer alone.
    pub id: Vec<u8>,
    /// The key: at least 32 bytes of full entropy (RFC 8784, 4).
    pub secret: SecretBytes,
    /// Whether a peer that does not use it is refused. Else the two go on without it: for the
    /// time until all have it.
    pub required: bool,
}

/// An address pair on which a peer may be reached. Ports start at
/// [`EngineConfig::port`] and move to [`EngineConfig::nat_port`] behind a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    /// Our address towards the peer.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
}

/// A peer and the children wanted with it.
pub struct PeerConfig {
    /// The peer's name: what events and commands call it.
    pub id: PeerId,
    /// The identity that it must claim and prove.
    pub remote_identity: Identity,
    /// How both sides authenticate.
    pub auth: PeerAuth,
    /// A post-quantum pre-shared key besides.
    pub ppk: Option<PpkConfig>,
    /// Where it may be reached; tried in this order, the next one after a failure.
    pub addresses: Vec<PeerAddress>,
    /// Whether this side starts by itself. Exactly one side should; both may.
    pub initiate: bool,
    /// UDP encapsulation of ESP: when a NAT is seen, or always.
    pub encapsulation: EncapsulationMode,
    /// What may be negotiated with it instead of [`EngineConfig::suites`].
    pub suites: Option<Suites>,
    /// The children wanted. The first is negotiated with IKE_AUTH.
    pub children: Vec<ChildConfig>,
}

/// One child SA pair wanted with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildConfig {
    /// Its name, unique for the peer.
    pub name: String,
    /// Transport or tunnel.
    pub mode: SaMode,
    /// What we send and receive on our side, in order of preference.
    pub local_ts: Vec<TrafficSelector>,
    /// The same of the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// How many more children of the same selectors, one for each CPU or queue, are wanted
    /// beside it, and how many the peer may make (RFC 9611). They are numbered from 1.
    pub resources: u32,
}

/// Retransmission of requests (RFC 7296, 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmission {
    /// The wait after the first transmission.
    pub initial: Duration,
    /// The longest wait between two transmissions; each wait doubles up to here.
    pub longest: Duration,
    /// How often a request is sent in all before the peer is taken for dead.
    pub tries: u32,
}

/// Bounds on what peers can make the engine hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Half-open SAs (a peer's IKE_SA_INIT without a verified IKE_AUTH) in all.
    pub half_open: usize,
    /// Half-open SAs from one source address.
    pub half_open_per_address: usize,
    /// Half-open SAs from which on a cookie is asked for (RFC 7296, 2.6).
    pub cookie_threshold: usize,
    /// Established IKE SAs for one authenticated peer.
    pub ike_sas_per_peer: usize,
    /// Child SAs on one IKE SA.
    pub children_per_ike_sa: usize,
    /// Commands that wait on one IKE SA for the message window.
    pub pending_commands: usize,
    /// Fragments of one message (RFC 7383).
    pub fragments: usize,
    /// Bytes that a message in fragments may have.
    pub fragmented_message: usize,
    /// Bytes of all fragments that wait for the rest of their messages. When there are more, the
    /// oldest message goes, those of peers that have not proven themselves first.
    pub fragment_bytes: usize,
}

/// Settings of an [`crate::Engine`].
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What may be negotiated with peers that have no suites of their own.
    pub suites: Suites,
    /// Soft lifetime of an IKE SA: after it, less jitter, it is rekeyed. It expires hard
    /// after it and a quarter more.
    pub ike_lifetime: Duration,
    /// Soft lifetime of a child, as for the IKE SA.
    pub child_lifetime: Duration,
    /// Largest part of a lifetime that jitter takes away, in percent (0 to 50).
    pub jitter_percent: u32,
    /// Silence from a peer after which it is probed. Zero: never.
    pub liveness: Duration,
    /// Retransmission of requests.
    pub retransmission: Retransmission,
    /// How long a half-open SA may last.
    pub half_open_timeout: Duration,
    /// The first wait before a failed peer is tried again; doubles up to `retry_longest`.
    pub retry_initial: Duration,
    /// The longest wait before a failed peer is tried again.
    pub retry_longest: Duration,
    /// How long the inbound half of a replaced child goes on receiving late packets.
    pub linger: Duration,
    /// Anti-replay window that inbound SAs are given, in packets.
    pub replay_window: u32,
    /// After how many bytes or packets the datapath asks for a rekey.
    pub soft_limits: SaLimits,
    /// Bounds.
    pub limits: Limits,
    /// The largest IP packet, in bytes, that a message after IKE_SA_INIT is sent in; a larger
    /// message goes in fragments (RFC 7383, 2.5.1). Every IPv6 path takes the default of 1280,
    /// and nearly every IPv4 path. 0: fragments are neither made nor taken.
    pub fragment_size: u16,
    /// How many requests each peer may have on their way to us at once, told it with
    /// SET_WINDOW_SIZE (RFC 7296, 2.3): 1 to 64.
    pub window: u32,
    /// Whether asymmetric operations are given away as jobs ([`crate::Engine::poll_job`]). If
    /// not, they are computed within the call that needs them.
    pub offload: bool,
    /// UDP port of IKE: 500.
    pub port: u16,
    /// UDP port of IKE and ESP through a NAT: 4500.
    pub nat_port: u16,
    /// Puts SK_ei and SK_er into events so that a capture can be read. Never in production.
    pub danger_export_keys: bool,
}

impl Default for Retransmission {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(500),
            longest: Duration::from_secs(8),
            tries: 7,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            half_open: 4096,
            half_open_per_address: 16,
            cookie_threshold: 64,
            ike_sas_per_peer: 8,
            children_per_ike_sa: 256,
            pending_commands: 512,
            fragments: 256,
            fragmented_message: 64 << 10,
            fragment_bytes: 4 << 20,
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            suites: Suites::default(),
            ike_lifetime: Duration::from_secs(8 * 3600),
            child_lifetime: Duration::from_secs(3600),
            jitter_percent: 10,
            liveness: Duration::from_secs(30),
            retransmission: Retransmission::default(),
            half_open_timeout: Duration::from_secs(30),
            retry_initial: Duration::from_secs(1),
            retry_longest: Duration::from_secs(60),
            linger: Duration::from_secs(5),
            replay_window: 4096,
            soft_limits: SaLimits {
                soft_bytes: 1 << 46,
                soft_packets: 1 << 36,
            },
            limits: Limits::default(),
            fragment_size: 1280,
            window: 4,
            offload: false,
            port: 500,
            nat_port: 4500,
            danger_export_keys: false,
        }
    }
}
