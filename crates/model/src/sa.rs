//! ESP security associations as a datapath is asked to install them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use testudo_crypto::Cipher;
use testudo_crypto::SecretBytes;

use crate::name::PeerId;
use crate::selector::TrafficSelector;

/// An ESP SPI (RFC 4303 2.1). 0 to 255 are reserved and never used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

/// A pair of SAs that one negotiation made, as the IKE engine numbers them. Never given twice by
/// one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub u64);

/// Which of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SaDirection {
    /// From the peer to us; the SPI is ours.
    Inbound,
    /// From us to the peer; the SPI is the peer's.
    Outbound,
}

/// Names one SA in a datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaId {
    /// The pair it belongs to.
    pub child: ChildId,
    /// Which of the two.
    pub direction: SaDirection,
}

/// Transport or tunnel (RFC 4301 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SaMode {
    /// The IP header stays; the payload is protected.
    Transport,
    /// The whole packet goes inside a new one between the tunnel's ends.
    Tunnel,
}

/// ESP straight on IP, or inside UDP (RFC 3948).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// IP protocol 50 between the two addresses.
    None {
        /// Ours.
        local: IpAddr,
        /// The peer's.
        remote: IpAddr,
    },
    /// UDP between the two ends; the peer's may be a NAT's.
    Udp {
        /// Ours, port 4500 as a rule.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
    },
}

impl Encapsulation {
    /// Our address.
    pub fn local(&self) -> IpAddr {
        match self {
            Encapsulation::None { local, .. } => *local,
            Encapsulation::Udp { local, .. } => local.ip(),
        }
    }

    /// The peer's address.
    pub fn remote(&self) -> IpAddr {
        match self {
            Encapsulation::None { remote, .. } => *remote,
            Encapsulation::Udp { remote, .. } => remote.ip(),
        }
    }
}

/// When a datapath says that an outbound SA wants a successor. It goes on sending after it has
/// said so; the end of its sequence numbers stops it, and of what its key may seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaLimits {
    /// ESP payload bytes.
    pub soft_bytes: u64,
    /// Packets.
    pub soft_packets: u64,
}

/// An SA that opens what the peer sends.
pub struct InboundSaSpec {
    /// The pair.
    pub child: ChildId,
    /// Whose packets it opens.
    pub peer: PeerId,
    /// Ours, on the wire.
    pub spi: Spi,
    /// The cipher.
    pub cipher: Cipher,
    /// Its keys, `cipher.keymat_len()` bytes: with AES-GCM key and salt (RFC 4106 8.1), else the
    /// cipher's key and the integrity key (RFC 7296 2.17).
    pub keymat: SecretBytes,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Packets of history against replays.
    pub replay_window: u32,
    /// Transport or tunnel.
    pub mode: SaMode,
    /// How ESP travels.
    pub encapsulation: Encapsulation,
    /// What the peer may send: our side.
    pub local: Vec<TrafficSelector>,
    /// What the peer may send: its side.
    pub remote: Vec<TrafficSelector>,
}

/// An SA that seals what we send.
pub struct OutboundSaSpec {
    /// The pair.
    pub child: ChildId,
    /// Who opens its packets.
    pub peer: PeerId,
    /// The peer's, on the wire.
    pub spi: Spi,
    /// The cipher.
    pub cipher: Cipher,
    /// Its keys, `cipher.keymat_len()` bytes: with AES-GCM key and salt (RFC 4106 8.1), else the
    /// cipher's key and the integrity key (RFC 7296 2.17).
    pub keymat: SecretBytes,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Transport or tunnel.
    pub mode: SaMode,
    /// How ESP travels.
    pub encapsulation: Encapsulation,
    /// What we may send: our side.
    pub local: Vec<TrafficSelector>,
    /// What we may send: the peer's side.
    pub remote: Vec<TrafficSelector>,
    /// When a successor is wanted.
    pub limits: SaLimits,
}
