//! strongSwan with the kernel's ESP, or what passes for it: transport mode, ESP without UDP,
//! extended sequence numbers, which its own ESP does not have. No packet passes.

use testudo_crypto::KeMethod;
use testudo_interop::Cable;
use testudo_model::SaMode;

use crate::alike::{Tell, Them};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::{TheirEsp, Wanted};

fn told(wanted: &Wanted) -> Told {
    let mut told = Told::by(wanted);
    told.through = TheirEsp::Pretended;
    told.esp = told.esp.replace("-noesn", "-esn");
    told
}

/// Rekeys of all SAs by either end.
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
        let count = us.ups.len();
        match ours {
            true => us.rekey_ike(),
            false => charon.order(us, "--rekey --ike t"),
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() > count && us.standing().len() == 1
        });
    }
    assert_eq!(us.failures, []);
    charon.settles(us, 1, 1);
}

fn meet(wanted: &Wanted) -> (Charon, Us) {
    let charon = Charon::start(wanted, told(wanted));
    let mut us = Us::new(wanted);
    us.go();
    charon.begin(&mut us, wanted);
    us.established();
    assert_eq!(us.made[0].mode, wanted.mode);
    (charon, us)
}

fn without_udp(mode: SaMode, v6: bool) {
    for (initiate, ke) in [(true, KeMethod::X25519), (false, KeMethod::P256)] {
        let wanted = Wanted {
            v6,
            mode,
            ke,
            ..Wanted::begun_by_us(initiate)
        };
        let (charon, mut us) = meet(&wanted);
        assert!(!us.ups[0].nat && us.made[0].esn);
        let sas = charon.sas(&mut us);
        let word = match mode {
            SaMode::Tunnel => "TUNNEL, ESP:AES_GCM_16-256/ESN",
            SaMode::Transport => "TRANSPORT, ESP:AES_GCM_16-256/ESN",
        };
        assert!(sas.contains(word), "{sas}");
        rekeys(&charon, &mut us);
    }
}

#[test]
fn tunnels_over_ipv4() {
    on_charon(|| without_udp(SaMode::Tunnel, false));
}

#[test]
fn tunnels_over_ipv6() {
    on_charon(|| without_udp(SaMode::Tunnel, true));
}

#[test]
fn transport_over_ipv4() {
    on_charon(|| without_udp(SaMode::Transport, false));
}

#[test]
fn transport_over_ipv6() {
    on_charon(|| without_udp(SaMode::Transport, true));
}

/// We ask for UDP, as a NAT would.
#[test]
fn transport_with_a_pretended_nat() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                mode: SaMode::Transport,
                forced: true,
                ..Wanted::begun_by_us(initiate)
            };
            let (charon, mut us) = meet(&wanted);
            assert!(us.ups[0].nat);
            rekeys(&charon, &mut us);
        }
    });
}

/// A true NAT changes an address that transport mode's traffic selectors name: the ends put
/// what they see in its place (RFC 7296, 2.23.1).
#[test]
fn transport_through_a_nat() {
    on_charon(|| {
        for cable in [Cable::NatBeforeUs, Cable::NatBeforePeer] {
            let wanted = Wanted {
                mode: SaMode::Transport,
                cable,
                ..Wanted::begun_by_us(cable == Cable::NatBeforeUs)
            };
            let mut told = told(&wanted);
            told.child = "local_ts = dynamic\n remote_ts = dynamic\n".into();
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            assert_eq!(us.made[0].mode, SaMode::Transport);
            rekeys(&charon, &mut us);
        }
    });
}
