//! Our end opens and seals ESP itself.

use testudo_interop::Peer;
use testudo_model::SaMode;

use crate::alike::{Tell, Them, established_with};
use crate::wanted::Wanted;
use crate::{charon, in_guest, pluto, soon_over};

/// Either end beginning, in either family, as ESP and in UDP, one after the other.
fn each(mode: SaMode, v6: bool, one: fn(&Wanted)) {
    for (initiate, forced) in [(true, false), (false, false), (true, true), (false, true)] {
        let wanted = Wanted {
            v6,
            mode,
            forced,
            ..Wanted::begun_by_us(initiate)
        };
        one(&wanted);
    }
}

/// Children and IKE SAs rekeyed by us, by the daemon and again by us, with packets after each.
fn rekeys<T: Tell>(wanted: &Wanted, told: T) {
    let (them, mut us) = established_with(wanted, told, soon_over);
    assert_eq!((us.made[0].mode, us.made[0].esn), (wanted.mode, true));
    assert_eq!(us.ups[0].nat, wanted.forced);
    for ours in [true, false, true] {
        let old = us.sending.unwrap();
        match ours {
            true => us.rekey_child(),
            false => them.rekey_child(&mut us),
        }
        us.until("a successor of the child", |us| {
            us.sending.is_some_and(|c| c != old)
        });
        us.ping();
        us.until("the end of the old child", |us| us.children().len() == 1);
        us.ping();
        let count = us.ups.len();
        match ours {
            true => us.rekey_ike(),
            false => them.rekey_ike(&mut us),
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() > count && us.standing().len() == 1
        });
        us.ping();
    }
    assert_eq!(us.failures, []);
    // Nothing was answered but through ESP.
    let opened: u32 = us.made.iter().map(|m| m.opened).sum();
    assert_eq!(opened, 30, "{}", us.story());
    them.settles(&mut us, 1, 1);
}

fn with_charon(wanted: &Wanted) {
    rekeys(wanted, charon::Told::on_a_kernel(wanted));
}

fn with_pluto(wanted: &Wanted) {
    rekeys(wanted, pluto::Told::on_a_kernel(wanted));
}

#[test]
fn charon_in_tunnel_mode_over_ipv4() {
    in_guest(Peer::StrongSwan, || {
        each(SaMode::Tunnel, false, with_charon)
    });
}

#[test]
fn charon_in_tunnel_mode_over_ipv6() {
    in_guest(Peer::StrongSwan, || each(SaMode::Tunnel, true, with_charon));
}

#[test]
fn charon_in_transport_mode_over_ipv4() {
    in_guest(Peer::StrongSwan, || {
        each(SaMode::Transport, false, with_charon);
    });
}

#[test]
fn charon_in_transport_mode_over_ipv6() {
    in_guest(Peer::StrongSwan, || {
        each(SaMode::Transport, true, with_charon);
    });
}

#[test]
fn pluto_in_tunnel_mode_over_ipv4() {
    in_guest(Peer::Libreswan, || each(SaMode::Tunnel, false, with_pluto));
}

#[test]
fn pluto_in_tunnel_mode_over_ipv6() {
    in_guest(Peer::Libreswan, || each(SaMode::Tunnel, true, with_pluto));
}

#[test]
fn pluto_in_transport_mode_over_ipv4() {
    in_guest(Peer::Libreswan, || {
        each(SaMode::Transport, false, with_pluto);
    });
}

#[test]
fn pluto_in_transport_mode_over_ipv6() {
    in_guest(Peer::Libreswan, || {
        each(SaMode::Transport, true, with_pluto);
    });
}
