//! Which children are judged, and what no count is.

use testudo_datapath::{Datapath, Twin};
use testudo_ike::IkeId;
use testudo_model::{Monotonic, Spi, UnixTime};

use super::*;
use crate::fixtures::{child_up, closed_core, ike_up, peer};

fn now() -> Now {
    Now {
        monotonic: Monotonic::default(),
        wall: UnixTime(1_000_000),
    }
}

/// Two children, of which the first travels where its IKE messages do.
fn dual_stack() -> (Core, Twin) {
    let (mut core, mut twin) = closed_core();
    core.tunnels.ike_up(&ike_up(), now());
    for up in [
        child_up(1, "10.0.0.1", "10.0.0.2"),
        child_up(2, "fd00::1", "fd00::2"),
    ] {
        core.tunnels.child_up(&up, now());
        twin.install_inbound(up.inbound).unwrap();
        twin.install_outbound(up.outbound).unwrap();
    }
    (core, twin)
}

/// What IKE tells holds for the path of IKE: that nothing arrives on another while IKE passes may be
/// an outage of that other path.
#[test]
fn a_child_on_another_path_than_its_ike_sa_is_not_judged() {
    let (core, _) = dual_stack();
    let seen: Vec<ChildId> = core
        .watched_counters(Whom::All, now())
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
    assert!(
        core.watched_counters(Whom::All, now())[0]
            .counters
            .is_some()
    );
    twin.remove(ChildId(1)).unwrap();
    assert_eq!(core.esp_counts(ChildId(1)), None);
    assert!(
        core.watched_counters(Whom::All, now())[0]
            .counters
            .is_none()
    );
    // Of one that only opens the other half is not missing.
    let mut inbound = child_up(1, "10.0.0.1", "10.0.0.2").inbound;
    inbound.spi = Spi(0x2000);
    twin.install_inbound(inbound).unwrap();
    assert_eq!(core.esp_counts(ChildId(1)), None);
    core.tunnels.opens_only(ChildId(1));
    assert_eq!(core.esp_counts(ChildId(1)), Some(none));
}

/// Where one peer of many is tried, the others are not looked at more often for it.
#[test]
fn a_try_with_one_peer_looks_at_that_peer_alone() {
    let (mut core, mut twin) = dual_stack();
    let other = PeerId::new("n3").unwrap();
    let mut up = child_up(3, "10.0.0.1", "10.0.0.3");
    (up.peer, up.ike) = (other.clone(), IkeId(3));
    let mut ike = ike_up();
    (ike.ike, ike.peer, ike.remote) = (IkeId(3), other.clone(), "10.0.0.3:500".parse().unwrap());
    core.tunnels.ike_up(&ike, now());
    core.tunnels.child_up(&up, now());
    let path = up.outbound.encapsulation;
    twin.install_inbound(up.inbound).unwrap();
    twin.install_outbound(up.outbound).unwrap();
    let start = Monotonic::default();
    for peer in [peer(), other.clone()] {
        core.paths.came_up(&peer, &path, start);
    }
    let seen = |core: &Core, whom| {
        let seen = core.watched_counters(whom, now());
        seen.iter().map(|s| s.child).collect::<Vec<_>>()
    };
    assert_eq!(seen(&core, Whom::Tried), []);
    core.paths.try_now(&other, start);
    core.paths.came_up(&other, &path, start);
    assert_eq!(seen(&core, Whom::Tried), [ChildId(3)]);
    assert_eq!(seen(&core, Whom::All), [ChildId(1), ChildId(3)]);
    // Five looks a second, of which one takes in all.
    let at = |millis| Monotonic(std::time::Duration::from_millis(millis));
    let mut looks = Vec::new();
    for millis in (0..=2000).step_by(50) {
        if let Some(whom) = core.paths.look_due(at(millis)) {
            looks.push((millis, whom));
            let seen = core.watched_counters(whom, now());
            core.paths.look(whom, &seen, at(millis));
        }
    }
    let all = looks.iter().filter(|(_, whom)| *whom == Whom::All);
    assert_eq!(all.map(|(at, _)| *at).collect::<Vec<_>>(), [1000, 2000]);
    assert_eq!(looks.len(), 10, "{looks:?}");
}
