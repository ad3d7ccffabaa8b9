//! strongSwan with a NAT between the ends, which changes addresses and ports.

use testudo_interop::{BEHIND, Cable};

use crate::alike::{Tell, established};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::{Wanted, ip};

fn behind(cable: Cable) -> Wanted {
    Wanted {
        cable,
        initiate: cable == Cable::NatBeforeUs,
        ..Wanted::default()
    }
}

/// Rekeys of all SAs by either end, packets after each.
fn rekeys(charon: &Charon, us: &mut Us) {
    for ours in [true, false] {
        let old = us.sending.unwrap();
        match ours {
            true => us.rekey_child(),
            false => charon.order(us, "--rekey --child net"),
        }
        us.until("a successor of the child", |us| {
            us.sending.is_some_and(|c| c != old) && us.children().len() == 1
        });
        us.ping();
        let count = us.ups.len();
        match ours {
            true => us.rekey_ike(),
            false => charon.order(us, "--rekey --ike t"),
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() > count && us.standing().len() == 1
        });
        us.ping();
    }
    assert_eq!(us.failures, []);
}

#[test]
fn we_are_behind_a_nat() {
    on_charon(|| {
        let wanted = behind(Cable::NatBeforeUs);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        assert!(us.ups[0].nat);
        assert_eq!(us.ups[0].remote.port(), 4500);
        let seen = charon.sas(&mut us);
        let seen = seen.split_once("us.node.testudo' @ 192.0.2.1[").unwrap().1;
        let port: u16 = seen.split_once(']').unwrap().0.parse().unwrap();
        assert!((20000..30000).contains(&port), "{port}");
        rekeys(&charon, &mut us);
    });
}

#[test]
fn charon_is_behind_a_nat() {
    on_charon(|| {
        let wanted = behind(Cable::NatBeforePeer);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        assert!(us.ups[0].nat);
        let remote = us.ups[0].remote;
        assert_eq!(remote.ip(), ip("192.0.2.2"));
        assert!((20000..30000).contains(&remote.port()), "{remote}");
        rekeys(&charon, &mut us);
        assert!(charon.sas(&mut us).contains(BEHIND[0]));
    });
}

/// The NAT is restarted: charon's next message comes from another port, and we follow it
/// (RFC 7296, 2.23).
#[test]
fn the_nat_before_charon_forgets_the_port() {
    on_charon(|| {
        let wanted = behind(Cable::NatBeforePeer);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.world.forget_mappings(None).unwrap();
        charon.order(&mut us, "--rekey --child net");
        us.until("its new port", |us| !us.moves.is_empty());
        assert_ne!(us.moves[0].remote.port(), us.ups[0].remote.port());
        us.ping();
        rekeys(&charon, &mut us);
    });
}

/// The NAT gets another address, too.
#[test]
fn the_nat_before_charon_moves() {
    on_charon(|| {
        let wanted = behind(Cable::NatBeforePeer);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.world.forget_mappings(Some("192.0.2.77")).unwrap();
        charon.order(&mut us, "--rekey --child net");
        us.until("its new address", |us| !us.moves.is_empty());
        assert_eq!(us.moves[0].remote.ip(), ip("192.0.2.77"));
        us.ping();
        rekeys(&charon, &mut us);
    });
}

/// The NAT that hides us is restarted: charon follows our next message.
#[test]
fn the_nat_before_us_forgets_the_port() {
    on_charon(|| {
        let wanted = behind(Cable::NatBeforeUs);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.world.forget_mappings(None).unwrap();
        us.rekey_child();
        us.until("a successor of the child", |us| us.made.len() > 1);
        us.until("no other", |us| us.children().len() == 1);
        us.ping();
        rekeys(&charon, &mut us);
    });
}
