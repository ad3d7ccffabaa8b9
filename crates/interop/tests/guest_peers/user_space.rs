//! Our end opens and seals ESP itself.

use testudo_interop::Peer;
use testudo_model::SaMode;

use crate::ours::Us;
use crate::wanted::{TheirEsp, Wanted};
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
/// `order` has the daemon do it, with the child or else the IKE SA.
fn rekeys(us: &mut Us, wanted: &Wanted, mut order: impl FnMut(&mut Us, bool)) {
    assert_eq!(us.made[0].mode, wanted.mode);
    assert_eq!(us.ups[0].nat, wanted.forced);
    for ours in [true, false, true] {
        let old = us.sending.unwrap();
        match ours {
            true => us.rekey_child(),
            false => order(us, true),
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
            false => order(us, false),
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
}

fn with_charon(wanted: &Wanted) {
    let mut told = charon::Told::by(wanted);
    told.through = TheirEsp::Kernel;
    told.esp = told.esp.replace("-noesn", "-esn");
    let (charon, mut us) = charon::established_with(wanted, told, soon_over);
    assert!(us.made[0].esn);
    rekeys(&mut us, wanted, |us, child| {
        let what = if child { "--child net" } else { "--ike t" };
        charon.order(us, &format!("--rekey {what}"));
    });
    charon.holds(&mut us, 1, 1);
}

fn with_pluto(wanted: &Wanted) {
    let mut told = pluto::Told::by(wanted);
    told.through = TheirEsp::Kernel;
    let (pluto, mut us) = pluto::established_with(wanted, told, soon_over);
    // It answers from when it has installed what it began.
    pluto.settles(&mut us, 1, 1);
    us.ping();
    rekeys(&mut us, wanted, |us, child| match child {
        true => pluto.rekey_child(us),
        false => pluto.rekey_ike(us),
    });
    pluto.settles(&mut us, 1, 1);
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
