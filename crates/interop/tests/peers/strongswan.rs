//! strongSwan: key exchanges, pre-shared keys, both families, either end beginning.

use testudo_crypto::KeMethod;

use crate::alike::{Tell, established};
use crate::charon::{Told, on_charon};
use crate::wanted::Wanted;

/// Pre-shared keys, each key exchange, both families, either end beginning.
fn plain(v6: bool, initiate: bool) {
    for ke in [KeMethod::X25519, KeMethod::P256, KeMethod::P384] {
        let wanted = Wanted {
            v6,
            ke,
            initiate,
            ..Wanted::default()
        };
        let (_charon, us) = established(&wanted, Told::by(&wanted));
        let up = &us.ups[0];
        assert!(up.nat && up.initiator == initiate);
        assert_eq!(up.remote.port(), 4500);
        let name = match ke {
            KeMethod::X25519 => "CURVE_25519",
            KeMethod::P256 => "ECP_256",
            _ => "ECP_384",
        };
        assert!(up.suite.ends_with(name), "{}", up.suite);
        assert_eq!(us.failures, []);
    }
}

#[test]
fn pre_shared_keys_over_ipv4_we_begin() {
    on_charon(|| plain(false, true));
}

#[test]
fn pre_shared_keys_over_ipv4_charon_begins() {
    on_charon(|| {
        plain(false, false);
    });
}

#[test]
fn pre_shared_keys_over_ipv6_we_begin() {
    on_charon(|| plain(true, true));
}

#[test]
fn pre_shared_keys_over_ipv6_charon_begins() {
    on_charon(|| {
        plain(true, false);
    });
}

#[test]
fn forced_encapsulation_moves_to_port_4500() {
    on_charon(|| {
        let wanted = Wanted {
            forced: true,
            ..Wanted::default()
        };
        let (_charon, us) = established(&wanted, Told::by(&wanted));
        assert_eq!(us.ups[0].remote.port(), 4500);
    });
}

#[test]
fn modp_2048_for_old_peers() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                ke: KeMethod::Modp2048,
                initiate,
                ..Wanted::default()
            };
            let (_charon, us) = established(&wanted, Told::by(&wanted));
            assert!(
                us.ups[0].suite.ends_with("MODP_2048"),
                "{}",
                us.ups[0].suite
            );
        }
    });
}
