//! What tests of the core share: children as the engine tells of them, and a core over the twin.

use std::time::Duration;

use testudo_crypto::{SecretBytes, SystemRandom};
use testudo_datapath::{Datapath, Twin};
use testudo_ike::{ChildUp, Engine, EngineConfig, Identity, IkeId, IkeUp, UseOutbound};
use testudo_model::{
    ChildId, Cipher, ClearTraffic, Encapsulation, InboundSaSpec, OutboundSaSpec, PeerId,
    ProtectedFlows, SaLimits, SaMode, Spi, TrafficPolicy,
};

use crate::core::Core;

pub(crate) fn peer() -> PeerId {
    PeerId::new("n2").unwrap()
}

/// The SPI of a child's half: those that we send on end with 1.
pub(crate) fn spi(child: u64, sent: u32) -> Spi {
    Spi(0x1000 + u32::try_from(child).unwrap() * 0x10 + sent)
}

/// The first IKE SA, which we began.
pub(crate) fn ike_up() -> IkeUp {
    IkeUp {
        ike: IkeId(1),
        peer: peer(),
        initiator: true,
        local: "10.0.0.1:500".parse().unwrap(),
        remote: "10.0.0.2:500".parse().unwrap(),
        nat: false,
        spis: ([1; 8], [2; 8]),
        suite: String::new(),
        ppk: false,
        replaces: None,
        took: Duration::ZERO,
        identity: Identity::Address("10.0.0.2".parse().unwrap()),
        certificate: None,
        danger_keys: None,
    }
}

/// A child between two addresses, which we began, of the first IKE SA.
pub(crate) fn child_up(child: u64, local: &str, remote: &str) -> ChildUp {
    let id = ChildId(child);
    let keymat = || SecretBytes::new(vec![7; 36]);
    let encapsulation = Encapsulation::None {
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
    };
    ChildUp {
        child: id,
        ike: IkeId(1),
        peer: peer(),
        name: format!("overlay-{child}"),
        resource: 0,
        inbound: InboundSaSpec {
            child: id,
            peer: peer(),
            spi: spi(child, 0),
            cipher: Cipher::AES_256_GCM,
            keymat: keymat(),
            esn: true,
            replay_window: 1024,
            mode: SaMode::Transport,
            encapsulation,
            local: Vec::new(),
            remote: Vec::new(),
        },
        outbound: OutboundSaSpec {
            child: id,
            peer: peer(),
            spi: spi(child, 1),
            cipher: Cipher::AES_256_GCM,
            keymat: keymat(),
            esn: true,
            mode: SaMode::Transport,
            encapsulation,
            local: Vec::new(),
            remote: Vec::new(),
            limits: SaLimits {
                soft_bytes: u64::MAX,
                soft_packets: u64::MAX,
            },
        },
        use_outbound: UseOutbound::Now,
        replaces: None,
        initiator: true,
        original_local: None,
        original_remote: None,
    }
}

/// A core whose datapath drops what is clear.
pub(crate) fn closed_core() -> (Core, Twin) {
    let twin = Twin::new();
    let engine = Engine::new(EngineConfig::default(), Box::new(SystemRandom::new()));
    let mut core = Core::new(engine, None);
    let mut datapath = twin.clone();
    datapath
        .set_traffic(&TrafficPolicy {
            addresses: Vec::new(),
            flows: ProtectedFlows::Overlay { port: 4789 },
            clear_inbound: ClearTraffic::Drop,
            clear_outbound: ClearTraffic::Drop,
            peers: Vec::new(),
        })
        .unwrap();
    core.datapath = Some(Box::new(datapath));
    (core, twin)
}
