//! libreswan with a NAT between the ends, which changes addresses and ports.

use testudo_interop::Cable;
use testudo_model::SaMode;

use crate::alike::{Tell, Them, established};
use crate::ours::Us;
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::{Wanted, ip};

fn behind(cable: Cable) -> Wanted {
    Wanted {
        cable,
        initiate: cable == Cable::NatBeforeUs,
        ..Wanted::default()
    }
}

/// Rekeys of all SAs by either end.
fn rekeys(pluto: &Pluto, us: &mut Us, wanted: &Wanted) {
    for ours in [true, false] {
        // What goes for a name may be an instance of a template, which whack does not find.
        if !ours && wanted.cable == Cable::NatBeforeUs {
            continue;
        }
        let old = us.sending.unwrap();
        if ours {
            us.rekey_child();
        } else {
            pluto.rekey_child(us);
        }
        us.until("a successor of the child", |us| {
            us.sending.is_some_and(|c| c != old) && us.children().len() == 1
        });
        let count = us.ups.len();
        if ours {
            us.rekey_ike();
        } else {
            pluto.rekey_ike(us);
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() > count && us.standing().len() == 1
        });
    }
    assert_eq!(us.failures, []);
    pluto.settles(us, 1, 1);
}

#[test]
fn we_are_behind_a_nat() {
    on_pluto(|| {
        let wanted = behind(Cable::NatBeforeUs);
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        assert!(us.ups[0].nat);
        assert_eq!(us.ups[0].remote.port(), 4500);
        rekeys(&pluto, &mut us, &wanted);
    });
}

#[test]
fn pluto_is_behind_a_nat() {
    on_pluto(|| {
        let wanted = behind(Cable::NatBeforePeer);
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        assert!(us.ups[0].nat);
        let remote = us.ups[0].remote;
        assert_eq!(remote.ip(), ip("192.0.2.2"));
        assert!((20000..30000).contains(&remote.port()), "{remote}");
        rekeys(&pluto, &mut us, &wanted);
    });
}

/// The NAT moves: pluto's next message comes from another address and port (RFC 7296, 2.23).
#[test]
fn the_nat_before_pluto_moves() {
    on_pluto(|| {
        let wanted = behind(Cable::NatBeforePeer);
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        pluto.world.forget_mappings(Some("192.0.2.77")).unwrap();
        pluto.rekey_child(&mut us);
        us.until("its new address", |us| !us.moves.is_empty());
        assert_eq!(us.moves[0].remote.ip(), ip("192.0.2.77"));
        us.until("the rekey", |us| us.made.len() == 2);
        us.until("the old one's end", |us| us.children().len() == 1);
        rekeys(&pluto, &mut us, &wanted);
    });
}

/// Transport mode in UDP: each end is asked to pretend a NAT.
#[test]
fn transport_mode_with_a_pretended_nat() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                forced: true,
                mode: SaMode::Transport,
                ..Wanted::begun_by_us(initiate)
            };
            let (pluto, mut us) = established(&wanted, Told::by(&wanted));
            assert!(us.ups[0].nat);
            assert_eq!(us.made[0].mode, SaMode::Transport);
            rekeys(&pluto, &mut us, &wanted);
        }
    });
}

/// A true NAT changes an address that transport mode's traffic selectors name (RFC 7296, 2.23.1).
/// pluto knows that when it begins; our rekey of such a child it answers with TS_UNACCEPTABLE.
#[test]
fn transport_mode_through_a_nat() {
    on_pluto(|| {
        let wanted = Wanted {
            mode: SaMode::Transport,
            ..behind(Cable::NatBeforePeer)
        };
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        assert_eq!(us.made[0].mode, SaMode::Transport);
        pluto.rekey_child(&mut us);
        us.until("a successor of the child", |us| {
            us.made.len() == 2 && us.children().len() == 1
        });
        pluto.rekey_ike(&mut us);
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() == 2 && us.standing().len() == 1
        });
        assert_eq!(us.failures, []);
        pluto.settles(&mut us, 1, 1);
    });
}
