//! Which children are judged, and what no count is.

use testudo_crypto::{SecretBytes, SystemRandom};
use testudo_datapath::{Datapath, Twin};
use testudo_ike::{ChildUp, Engine, EngineConfig, Identity, IkeId, UseOutbound};
use testudo_model::{
    Cipher, ClearTraffic, InboundSaSpec, Monotonic, OutboundSaSpec, ProtectedFlows, SaLimits,
    SaMode, Spi, TrafficPolicy, UnixTime,
};

use super::*;

fn now() -> Now {
    Now {
        monotonic: Monotonic::default(),
        wall: UnixTime(1_000_000),
    }
}

fn peer() -> PeerId {
    PeerId::new("n2").unwrap()
}

fn ike_up() -> IkeUp {
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
        identity: Identity::Address("10.0.0.2".parse().unwrap()),
        certificate: None,
        danger_keys: None,
    }
}

/// A child between two addresses.
fn child_up(child: u64, local: &str, remote: &str) -> ChildUp {
    let child = ChildId(child);
    let keymat = || SecretBytes::new(vec![7; 36]);
    let encapsulation = Encapsulation::None {
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
    };
    let spi = 0x1000 + 0x10 * u32::try_from(child.0).unwrap();
    ChildUp {
        child,
        ike: IkeId(1),
        peer: peer(),
        name: format!("overlay-{}", child.0),
        resource: 0,
        inbound: InboundSaSpec {
            child,
            peer: peer(),
            spi: Spi(spi),
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
            child,
            peer: peer(),
            spi: Spi(spi + 1),
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

/// Two children, of which the first travels where its IKE messages do.
fn dual_stack() -> (Core, Twin) {
    let twin = Twin::new();
    let engine = Engine::new(EngineConfig::default(), Box::new(SystemRandom::new()));
    let mut core = Core::new(engine, None);
    let mut datapath = twin.clone();
    let traffic = TrafficPolicy {
        addresses: Vec::new(),
        flows: ProtectedFlows::Overlay { port: 4789 },
        clear_inbound: ClearTraffic::Drop,
        clear_outbound: ClearTraffic::Drop,
        peers: Vec::new(),
    };
    datapath.set_traffic(&traffic).unwrap();
    core.tunnels.ike_up(&ike_up(), now());
    for up in [
        child_up(1, "10.0.0.1", "10.0.0.2"),
        child_up(2, "fd00::1", "fd00::2"),
    ] {
        core.tunnels.child_up(&up, now());
        datapath.install_inbound(up.inbound).unwrap();
        datapath.install_outbound(up.outbound).unwrap();
    }
    core.datapath = Some(Box::new(datapath));
    (core, twin)
}

/// What IKE tells holds for the path of IKE: that nothing arrives on another while IKE passes may be
/// an outage of that other path.
#[test]
fn a_child_on_another_path_than_its_ike_sa_is_not_judged() {
    let (core, _) = dual_stack();
    let seen: Vec<ChildId> = core
        .watched_counters(now())
        .iter()
        .map(|s| s.child)
        .collect();
    assert_eq!(seen, [ChildId(1)]);
    assert!(core.esp_counts(ChildId(2)).is_some(), "the peer may ask");
}

#[test]
fn an_sa_that_is_gone_has_no_count() {
    let (mut core, mut twin) = dual_stack();
    let none = EspCounts::default();
    assert_eq!(core.esp_counts(ChildId(1)), Some(none));
    assert!(core.watched_counters(now())[0].counters.is_some());
    twin.remove(ChildId(1)).unwrap();
    assert_eq!(core.esp_counts(ChildId(1)), None);
    assert!(core.watched_counters(now())[0].counters.is_none());
    // Of one that only opens the other half is not missing.
    let mut inbound = child_up(1, "10.0.0.1", "10.0.0.2").inbound;
    inbound.spi = Spi(0x2000);
    twin.install_inbound(inbound).unwrap();
    assert_eq!(core.esp_counts(ChildId(1)), None);
    core.tunnels.opens_only(ChildId(1));
    assert_eq!(core.esp_counts(ChildId(1)), Some(none));
}
