//! libreswan: key exchanges, pre-shared keys, tunnel and transport mode, both families.

use std::time::Duration;

use testudo_crypto::KeMethod;
use testudo_model::SaMode;

use crate::alike::{Tell, Them, established};
use crate::pluto::{Told, on_pluto};
use crate::wanted::Wanted;

/// Pre-shared keys, each key exchange, either end beginning.
fn plain(v6: bool, mode: SaMode, initiate: bool) {
    for ke in [KeMethod::X25519, KeMethod::P256, KeMethod::P384] {
        let wanted = Wanted {
            v6,
            mode,
            ke,
            initiate,
            ..Wanted::default()
        };
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        assert_eq!(us.ups[0].initiator, initiate);
        assert_eq!(us.made[0].mode, mode);
        assert!(!us.ups[0].nat);
        us.wait(Duration::from_millis(200));
        assert_eq!(us.failures, []);
        assert_eq!(us.children().len(), 1, "{}", us.story());
        assert!(pluto.is_up());
    }
}

#[test]
fn tunnels_over_ipv4() {
    on_pluto(|| {
        plain(false, SaMode::Tunnel, true);
        plain(false, SaMode::Tunnel, false);
    });
}

#[test]
fn tunnels_over_ipv6() {
    on_pluto(|| {
        plain(true, SaMode::Tunnel, true);
        plain(true, SaMode::Tunnel, false);
    });
}

#[test]
fn transport_over_ipv4() {
    on_pluto(|| {
        plain(false, SaMode::Transport, true);
        plain(false, SaMode::Transport, false);
    });
}

#[test]
fn transport_over_ipv6() {
    on_pluto(|| {
        plain(true, SaMode::Transport, true);
        plain(true, SaMode::Transport, false);
    });
}

#[test]
fn forced_encapsulation_moves_to_port_4500() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                forced: true,
                initiate,
                ..Wanted::default()
            };
            let (_pluto, us) = established(&wanted, Told::by(&wanted));
            assert!(us.ups[0].nat);
            assert_eq!(us.ups[0].remote.port(), 4500);
        }
    });
}

#[test]
fn pluto_asks_for_encapsulation() {
    on_pluto(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.more = " encapsulation=yes\n".into();
        let (_pluto, us) = established(&wanted, told);
        assert!(us.ups[0].nat);
        assert_eq!(us.ups[0].remote.port(), 4500);
    });
}

#[test]
fn modp_2048_for_old_peers() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                ke: KeMethod::Modp2048,
                initiate,
                ..Wanted::default()
            };
            let (_pluto, us) = established(&wanted, Told::by(&wanted));
            assert!(
                us.ups[0].suite.ends_with("MODP_2048"),
                "{}",
                us.ups[0].suite
            );
        }
    });
}
