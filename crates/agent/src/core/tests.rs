//! What becomes of children when a peer's agent ends and comes back: events as the engine tells them,
//! time as the test says.

use testudo_datapath::{Call, Twin, Verdict};
use testudo_ike::{ChildDown, ChildUp, DownReason, IkeId};
use testudo_model::{ChildId, UnixTime};

use super::*;
use crate::fixtures::{child_up, closed_core, peer, spi};

/// A node whose peer's kernel carries the packets.
struct World {
    core: Core,
    twin: Twin,
}

fn at(seconds: u64) -> Now {
    Now {
        monotonic: Monotonic(Duration::from_secs(seconds)),
        wall: UnixTime(1_000_000 + i64::try_from(seconds).unwrap()),
    }
}

/// A child that the peer began.
fn up(child: u64) -> Event {
    Event::ChildUp(Box::new(ChildUp {
        ike: IkeId(child),
        name: "overlay-v4".to_owned(),
        initiator: false,
        ..child_up(child, "10.0.0.1", "10.0.0.2")
    }))
}

fn down(child: u64, reason: DownReason) -> Event {
    Event::ChildDown(ChildDown {
        child: ChildId(child),
        peer: peer(),
        name: "overlay-v4".to_owned(),
        resource: 0,
        reason,
    })
}

impl World {
    /// Child 1 is in use at both ends.
    fn new() -> World {
        let (mut core, twin) = closed_core();
        core.linger.set_kernels([peer()].into());
        let mut world = World { core, twin };
        world.core.events(vec![up(1)], at(0));
        world.hears(1, 0);
        assert!(world.sends_on(1));
        world
    }

    /// A packet of the peer's comes in on a child.
    fn hears(&mut self, child: u64, seconds: u64) -> bool {
        let heard = self.twin.receive(Some(spi(child, 0)));
        self.core.datapath_events(at(seconds));
        heard
    }

    fn sends_on(&self, child: u64) -> bool {
        self.twin.send(&peer()) == Verdict::Sealed(spi(child, 1))
    }

    /// Time passes, and a packet goes each way on a child in each second of it.
    fn carries(&mut self, child: u64, seconds: std::ops::Range<u64>) {
        for second in seconds {
            self.core.handle_timeout(at(second));
            assert!(self.sends_on(child), "{second} s: sent");
            assert!(self.hears(child, second), "{second} s: heard");
        }
    }

    fn children(&self) -> Vec<u64> {
        self.twin.children().iter().map(|child| child.0).collect()
    }
}

/// The peer's agent is killed and comes back; our answer is lost for twelve seconds. Its kernel has
/// nothing but the old child all the while.
#[test]
fn an_old_child_carries_until_the_peer_is_known_to_have_the_new_one() {
    let mut world = World::new();
    let back = vec![down(1, DownReason::InitialContact), up(2)];
    world.core.events(back, at(100));
    world.carries(1, 100..112);
    assert!(world.hears(2, 112), "it has our answer now");
    assert!(world.sends_on(2));
    // What is under way on the old one still arrives.
    world.core.handle_timeout(at(121));
    assert!(world.hears(1, 121) && world.sends_on(2));
    world.core.handle_timeout(at(122));
    assert_eq!(world.children(), [2]);
    assert!(world.sends_on(2));
}

/// A loop of crashes: each new agent ends before it has our answer, after shorter or longer times.
#[test]
fn a_peer_that_crashes_again_and_again_is_heard_on_what_its_kernel_has() {
    let mut world = World::new();
    let mut seconds = 100;
    for (new, lives) in [(2, 5), (3, 20), (4, 29), (5, 15), (6, 25)] {
        let back = vec![down(new - 1, DownReason::InitialContact), up(new)];
        world.core.events(back, at(seconds));
        assert_eq!(
            world.children(),
            [1, new],
            "what it never had does not stay"
        );
        world.carries(1, seconds..seconds + lives);
        seconds += lives;
    }
    assert!(world.hears(6, seconds) && world.sends_on(6));
    world.core.handle_timeout(at(seconds + 10));
    assert_eq!(world.children(), [6]);
}

/// The peer lives but proves nothing: its new child is sent on in the end. Then it is dead.
#[test]
fn packets_leave_on_the_old_child_again_when_the_new_one_goes_unproven() {
    let mut world = World::new();
    let back = vec![down(1, DownReason::InitialContact), up(2)];
    world.core.events(back, at(100));
    world.carries(1, 100..130);
    world.core.handle_timeout(at(130));
    assert!(world.sends_on(2) && world.hears(1, 130));
    world.core.events(vec![down(2, DownReason::Dead)], at(140));
    assert_eq!(world.children(), [1]);
    assert_eq!(world.core.tunnels.sending_children().count(), 1);
    let last = world.twin.calls().into_iter().rev();
    let mut used = last.filter(|call| matches!(call, Call::UseOutbound(_)));
    assert_eq!(used.next(), Some(Call::UseOutbound(ChildId(1))));
    world.carries(1, 141..700);
    world.core.handle_timeout(at(700));
    assert_eq!(world.children(), [0_u64; 0], "ten minutes are the most");
}

/// What the peer's agent itself ends, or its certificate, does not go on on an old child.
#[test]
fn an_old_child_is_no_way_out_for_a_peer_that_is_not_trusted() {
    for (reason, left) in [
        (DownReason::Untrusted, vec![]),
        (DownReason::PeerDeleted, vec![1]),
    ] {
        let mut world = World::new();
        let back = vec![down(1, DownReason::InitialContact), up(2)];
        world.core.events(back, at(100));
        assert!(world.hears(2, 101) && world.sends_on(2));
        world.core.events(vec![down(2, reason)], at(102));
        assert_eq!(world.children(), left, "{reason:?}");
        assert_eq!(world.core.tunnels.sending_children().count(), 0);
        world.core.handle_timeout(at(111));
        assert_eq!(world.children(), [0_u64; 0]);
    }
}
