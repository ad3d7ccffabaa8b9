//! What the engine says: events for the agent, datagrams for the sockets, numbers for people.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testudo_crypto::{Cipher, SecretBytes};
use testudo_model::{ChildId, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerId, Spi, UnixTime};

use crate::config::Identity;
use crate::verify::FailedCheck;

/// Names an IKE SA for as long as the engine lives. A rekeyed IKE SA gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeId(pub u64);

/// A datagram to send, from the socket that `local` names: a keepalive leaves from that of port
/// 4500, whose mapping it keeps alive. On port 4500 the sender puts the non-ESP marker (RFC 3948,
/// 2.2) before an IKE message: `marker` says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// From which of our addresses and ports.
    pub local: SocketAddr,
    /// Where to.
    pub remote: SocketAddr,
    /// Whether four zero bytes go before the message.
    pub marker: bool,
    /// The IKE message, or a keepalive (RFC 3948, 2.3).
    pub bytes: Vec<u8>,
}

/// What happened, in order.
pub enum Event {
    /// An IKE SA was authenticated, or one was rekeyed (`replaces` names the old one).
    IkeUp(Box<IkeUp>),
    /// An IKE SA is gone, with the children that were not handed over.
    IkeDown(IkeDown),
    /// Install these SAs: the inbound one at once; the outbound one at once when `use_outbound`
    /// says so, else at [`Event::OutboundReady`].
    ChildUp(Box<ChildUp>),
    /// Send on this child from now on, instead of on any other of the same peer,
    /// name and resource.
    OutboundReady {
        /// The child to send on.
        child: ChildId,
        /// Its peer.
        peer: PeerId,
        /// Its name in the peer's configuration.
        name: String,
        /// Which of the children of that name.
        resource: u32,
    },
    /// Remove both SAs of this child.
    ChildDown(ChildDown),
    /// The peer was seen at another address or port by an authenticated message: change the
    /// addresses of these children.
    PathChanged(PathChanged),
    /// A negotiation failed.
    Failed(Failure),
    /// The peer speaks of ESP on the path between us.
    Receipt(Receipt),
}

/// An authenticated IKE SA.
pub struct IkeUp {
    /// The SA.
    pub ike: IkeId,
    /// The peer.
    pub peer: PeerId,
    /// Whether we began the exchange.
    pub initiator: bool,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Whether a NAT (or forced encapsulation) puts ESP into UDP.
    pub nat: bool,
    /// SPIs of initiator and responder.
    pub spis: ([u8; 8], [u8; 8]),
    /// The algorithms, for people: `AES_GCM_16_256/PRF_HMAC_SHA2_256/CURVE_25519`.
    pub suite: String,
    /// Whether a post-quantum pre-shared key is in its keys (RFC 8784).
    pub ppk: bool,
    /// The IKE SA that this one replaces by a rekey.
    pub replaces: Option<IkeId>,
    /// How long it took: from the IKE_SA_INIT that this end sent or took in. Zero for a rekey, whose
    /// SA is whole when it begins.
    pub took: Duration,
    /// The peer's proven identity.
    pub identity: Identity,
    /// The peer's certificate; `None` with a pre-shared key.
    pub certificate: Option<CertificateFacts>,
    /// Keys to read a capture with, IKE_AUTH and what follows; only with `danger_export_keys`.
    pub danger_keys: Option<DangerIkeKeys>,
}

/// What people want to know of a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Serial number in hex.
    pub serial: String,
    /// Subject.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// When it ends.
    pub not_after: UnixTime,
}

/// The keys of an IKE SA's messages, for tshark's IKEv2 decryption table.
#[derive(Clone)]
pub struct DangerIkeKeys {
    /// What they are for.
    pub cipher: Cipher,
    /// SK_ei; with an AEAD key and salt.
    pub sk_ei: SecretBytes,
    /// SK_er; with an AEAD key and salt.
    pub sk_er: SecretBytes,
    /// SK_ai; empty with an AEAD.
    pub sk_ai: SecretBytes,
    /// SK_ar; empty with an AEAD.
    pub sk_ar: SecretBytes,
}

/// An IKE SA that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeDown {
    /// The SA.
    pub ike: IkeId,
    /// The peer.
    pub peer: PeerId,
    /// Why.
    pub reason: DownReason,
}

/// Why an SA is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// Another SA took its place.
    Replaced,
    /// The peer deleted it.
    PeerDeleted,
    /// We closed it: a command, or the peer was removed from the configuration.
    Closed,
    /// Our datapath did not take it.
    Refused,
    /// The peer stopped answering.
    Dead,
    /// Its hard lifetime, or the peer's certificate, ended.
    Expired,
    /// The peer said INITIAL_CONTACT: it has forgotten this SA.
    InitialContact,
    /// The peer's certificate no longer verifies.
    Untrusted,
    /// The peer broke the protocol, or lost one of its SAs.
    Error,
}

/// Whether the outbound SA may carry packets yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseOutbound {
    /// Use it now, instead of any other child of the same peer, name and resource.
    Now,
    /// Install it, but send on the old child until [`Event::OutboundReady`].
    Wait,
}

/// A new child SA pair.
pub struct ChildUp {
    /// The child.
    pub child: ChildId,
    /// The IKE SA that it hangs on.
    pub ike: IkeId,
    /// The peer.
    pub peer: PeerId,
    /// Its name in the peer's configuration.
    pub name: String,
    /// 0, or the resource that it is for (RFC 9611): children of one name and different
    /// resources carry the same traffic and stand side by side.
    pub resource: u32,
    /// The SA we receive on: install it at once.
    pub inbound: InboundSaSpec,
    /// The SA we send on: install it after the inbound one.
    pub outbound: OutboundSaSpec,
    /// Whether the outbound SA may be used.
    pub use_outbound: UseOutbound,
    /// The child that this one was negotiated to replace.
    pub replaces: Option<ChildId>,
    /// Whether we began the exchange that made it.
    pub initiator: bool,
    /// In transport mode, where a NAT changes our address: the one that the peer sends to, which
    /// checksums of its packets cover (RFC 7296, 2.23.1; RFC 3948, 3.1.2).
    pub original_local: Option<IpAddr>,
    /// The same of the peer's address: the one that it has itself.
    pub original_remote: Option<IpAddr>,
}

/// A child that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildDown {
    /// The child.
    pub child: ChildId,
    /// Its peer.
    pub peer: PeerId,
    /// Its name in the peer's configuration.
    pub name: String,
    /// Which of the children of that name.
    pub resource: u32,
    /// Why.
    pub reason: DownReason,
}

/// A peer that moved.
#[derive(Debug, Clone)]
pub struct PathChanged {
    /// The IKE SA.
    pub ike: IkeId,
    /// The peer.
    pub peer: PeerId,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's new address and port.
    pub remote: SocketAddr,
    /// How ESP travels from now on.
    pub encapsulation: Encapsulation,
    /// The children whose outer addresses and ports change.
    pub children: Vec<ChildId>,
}

/// What a peer of our kind says of ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receipt {
    /// It asks what came in on a child: [`crate::Engine::tell_esp`] answers.
    Asked {
        /// The child.
        child: ChildId,
        /// The peer.
        peer: PeerId,
        /// The question's number, for the answer.
        number: u32,
    },
    /// Its counts of a child, in answer to [`crate::Engine::ask_esp`].
    Counts {
        /// The child.
        child: ChildId,
        /// The peer.
        peer: PeerId,
        /// The number of the question.
        number: u32,
        /// What it has received of us, and sent.
        counts: EspCounts,
    },
    /// It has found that ESP is filtered on the path, and asks for UDP encapsulation therefore.
    Filtered {
        /// The peer.
        peer: PeerId,
    },
}

/// How far one end of a child has come, in sequence numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EspCounts {
    /// The highest that it has accepted; 0: nothing came in.
    pub received: u64,
    /// The highest that it has sent; 0: nothing was sent.
    pub sent: u64,
}

/// A negotiation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The peer, where it is known and its part in the exchange is proven or we began it.
    pub peer: Option<PeerId>,
    /// Where the other side's messages come from.
    pub remote: SocketAddr,
    /// The child that failed, `unmatched` when the peer asked for one that none of ours matches;
    /// `None` when the IKE SA failed.
    pub child: Option<String>,
    /// The check that failed.
    pub check: FailedCheck,
    /// Whether the error is worth showing as the peer's state: the other side proved itself,
    /// or we began the attempt. A stranger's failed try is not.
    pub authenticated: bool,
    /// The details for a person.
    pub text: String,
}

/// Numbers since the engine began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams and messages dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Failed negotiations, by check.
    pub failures: BTreeMap<&'static str, u64>,
    /// Datagrams taken in.
    pub datagrams_in: u64,
    /// Datagrams put out.
    pub datagrams_out: u64,
    /// Requests sent again.
    pub retransmits: u64,
    /// Answers sent again for repeated requests.
    pub answers_repeated: u64,
    /// IKE_SA_INIT attempts that we began.
    pub attempts: u64,
    /// IKE SAs authenticated.
    pub ike_established: u64,
    /// IKE SAs rekeyed.
    pub ike_rekeys: u64,
    /// Children made, rekeys included.
    pub children_made: u64,
    /// Children rekeyed.
    pub child_rekeys: u64,
    /// Children that the datapath did not take ([`crate::Engine::refuse_child`]).
    pub children_refused: u64,
    /// Cookies asked for.
    pub cookies_sent: u64,
    /// Jobs given away.
    pub jobs: u64,
}

/// An IKE SA as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeStatus {
    /// The SA.
    pub ike: IkeId,
    /// The peer, once it is known.
    pub peer: Option<PeerId>,
    /// The state's name.
    pub state: &'static str,
    /// Whether we began it.
    pub initiator: bool,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// When it was established.
    pub established: Option<UnixTime>,
    /// The algorithms, as in [`IkeUp::suite`]; empty until it is established.
    pub suite: String,
    /// Rekeys of the IKE SA since it was first established.
    pub rekeys: u32,
    /// How many requests the peer says that it takes at once; we send one.
    pub peer_window: u32,
    /// Its children.
    pub children: Vec<ChildStatus>,
}

/// A child as status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildStatus {
    /// The child.
    pub child: ChildId,
    /// Its name.
    pub name: String,
    /// 0, or the resource that it is for (RFC 9611).
    pub resource: u32,
    /// The SPI we receive on.
    pub spi_in: Spi,
    /// The SPI we send on.
    pub spi_out: Spi,
    /// When it was made.
    pub established: UnixTime,
    /// Rekeys before it.
    pub rekeys: u32,
    /// What its packets are protected with.
    pub cipher: Cipher,
    /// Whether packets are sent on it.
    pub sending: bool,
    /// Whether we are deleting it: it only receives, until the peer has answered.
    pub deleting: bool,
}
