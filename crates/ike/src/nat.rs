//! NAT detection (RFC 7296, 2.23).

use std::net::{IpAddr, SocketAddr};

use testudo_crypto::{Random, sha1};
use testudo_wire::ike::{Notify, NotifyType, Payload};

use crate::message::Payloads;

/// What stands between the two ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// A NAT changes our address.
    pub(crate) local: bool,
    /// A NAT changes the peer's address, or the peer wants encapsulation.
    pub(crate) remote: bool,
    /// We want encapsulation, or the peer has said that it does.
    pub(crate) forced: bool,
}

impl Nat {
    /// Whether ESP goes into UDP, and IKE to port 4500.
    pub(crate) fn encapsulate(&self) -> bool {
        self.local || self.remote || self.forced
    }

    /// Where the addresses of a transport child's selectors are not what the other end sees:
    /// (our address, the peer's) (RFC 7296, 2.23.1).
    pub(crate) fn hides(&self, local: SocketAddr, remote: SocketAddr) -> Hidden {
        Hidden {
            local: self.local.then_some(local.ip()),
            remote: self.remote.then_some(remote.ip()),
        }
    }

    /// What a peer's message says; `local` and `remote` are the addresses it travelled between.
    /// A peer that sends no such notifies knows no NAT traversal.
    pub(crate) fn detect(
        payloads: &Payloads,
        spis: (u64, u64),
        local: SocketAddr,
        remote: SocketAddr,
        forced: bool,
    ) -> Self {
        let mut sources = payloads
            .notifies
            .iter()
            .filter(|n| n.kind == NotifyType::NAT_DETECTION_SOURCE_IP)
            .peekable();
        let Some(destination) = payloads.notify(NotifyType::NAT_DETECTION_DESTINATION_IP) else {
            return Self::default();
        };
        if sources.peek().is_none() {
            return Self::default();
        }
        let theirs = hash(spis, remote);
        Self {
            local: destination.data != hash(spis, local),
            remote: !sources.any(|n| n.data == theirs),
            forced,
        }
    }
}

/// Our address and the peer's as the IKE SA has them, each where a NAT changes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hidden {
    pub(crate) local: Option<IpAddr>,
    pub(crate) remote: Option<IpAddr>,
}

/// The two notifies of our message. A wanted encapsulation is had by a source that is no
/// address of ours: the peer sees a NAT.
pub(crate) fn notifies(
    spis: (u64, u64),
    local: SocketAddr,
    remote: SocketAddr,
    forced: bool,
    random: &mut dyn Random,
) -> [Payload; 2] {
    let mut source = hash(spis, local);
    if forced {
        random.fill(&mut source);
    }
    [
        Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, source)),
        Payload::Notify(Notify::new(
            NotifyType::NAT_DETECTION_DESTINATION_IP,
            hash(spis, remote),
        )),
    ]
}

fn hash((spi_i, spi_r): (u64, u64), address: SocketAddr) -> [u8; 20] {
    let port = address.port().to_be_bytes();
    let (spi_i, spi_r) = (spi_i.to_be_bytes(), spi_r.to_be_bytes());
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => sha1(&[&spi_i, &spi_r, &ip.octets(), &port]),
        IpAddr::V6(ip) => sha1(&[&spi_i, &spi_r, &ip.octets(), &port]),
    }
}
