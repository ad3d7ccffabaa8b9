//! libreswan: what either end refuses, and what is said of it.

use testudo_crypto::{KeMethod, KeyType};
use testudo_ike::FailedCheck;

use crate::libreswan_certificates::certified;
use crate::ours::Us;
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::Wanted;

#[test]
fn our_certificate_of_another_ca_is_refused() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                secret: None,
                ..Wanted::default()
            };
            let (pluto, mut us) = certified(&wanted, KeyType::EcdsaP256, [true, false]);
            pluto.begin(&mut us, &wanted);
            if initiate {
                us.until("pluto's refusal", |us| {
                    us.failed(FailedCheck::RefusedByPeer)
                });
                assert!(us.standing().is_empty() && us.children().is_empty());
            } else {
                // It ends its half without a word (no AUTHENTICATION_FAILED, RFC 7296, 2.21.2):
                // ours stands until liveness ends it.
                us.until("pluto's decision", |_| {
                    pluto.log().contains("certificate payload rejected")
                });
            }
            assert!(!pluto.holds());
        }
    });
}

#[test]
fn its_certificate_of_another_ca_is_named() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                secret: None,
                ..Wanted::default()
            };
            let (pluto, mut us) = certified(&wanted, KeyType::EcdsaP256, [false, true]);
            pluto.begin(&mut us, &wanted);
            us.until("a failure that names the CA", |us| {
                us.failed(FailedCheck::CertificateUnknownCa)
            });
            assert!(us.standing().is_empty() && us.children().is_empty());
        }
    });
}

#[test]
fn a_wrong_pre_shared_key_is_named() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                ..Wanted::default()
            };
            let mut told = Told::by(&wanted);
            told.secret = "another secret that is long";
            let pluto = Pluto::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            pluto.begin(&mut us, &wanted);
            let check = if initiate {
                FailedCheck::RefusedByPeer
            } else {
                FailedCheck::PreSharedKey
            };
            us.until("a failure that names the key", |us| us.failed(check));
            assert!(us.ups.is_empty() && us.made.is_empty());
        }
    });
}

#[test]
fn no_common_proposal_is_named() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                ..Wanted::default()
            };
            let mut told = Told::by(&wanted);
            told.ike = "aes256-sha1-modp2048".into();
            let pluto = Pluto::start(&wanted, told);
            let mut us = Us::with(&wanted, |config| config.retransmission.tries = 4);
            us.go();
            pluto.begin(&mut us, &wanted);
            if initiate {
                us.until("a failure that names the proposal", |us| {
                    us.failed(FailedCheck::Proposal)
                });
            } else {
                us.until("our refusal", |_| {
                    pluto.log().contains("NO_PROPOSAL_CHOSEN")
                });
            }
            assert!(us.ups.is_empty());
        }
    });
}

#[test]
fn no_common_esp_proposal_is_named() {
    on_pluto(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.esp = "aes128-sha2_256".into();
        let _pluto = Pluto::start(&wanted, told);
        let mut us = Us::new(&wanted);
        us.go();
        us.until("a failure that names the child", |us| {
            let of_child = |f: &testudo_ike::Failure| f.child.as_deref() == Some("net");
            let about = |f: &testudo_ike::Failure| f.check == FailedCheck::Proposal;
            us.failures.iter().any(|f| of_child(f) && about(f))
        });
        assert!(us.made.is_empty());
    });
}

#[test]
fn another_key_exchange_is_asked_for() {
    on_pluto(|| {
        let wanted = Wanted {
            ke: KeMethod::P256,
            ..Wanted::default()
        };
        let pluto = Pluto::start(&wanted, Told::by(&wanted));
        let mut us = Us::with(&wanted, |config| {
            config.suites.ke_methods = vec![KeMethod::X25519, KeMethod::P256];
        });
        us.go();
        us.established();
        assert!(us.ups[0].suite.ends_with("ECP_256"), "{}", us.ups[0].suite);
        drop(pluto);
    });
}
