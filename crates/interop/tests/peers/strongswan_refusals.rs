//! strongSwan: what either end refuses, and what is said of it.

use std::time::Duration;

use testudo_crypto::{KeMethod, KeyType};
use testudo_ike::FailedCheck;

use crate::certificates::Authority;
use crate::charon::{Charon, Told, established, on_charon};
use crate::ours::Us;
use crate::wanted::{PEER, US, Wanted};

#[test]
fn a_wrong_pre_shared_key_is_named() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                ..Wanted::default()
            };
            let mut told = Told::by(&wanted);
            told.secret = "another";
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            if !initiate {
                let (ok, text) = us.beside(&mut charon.swanctl("--initiate --child net"));
                assert!(
                    !ok && text.contains("AUTH_FAILED") || text.contains("failed"),
                    "{text}"
                );
            }
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
fn a_certificate_of_another_ca_is_named() {
    on_charon(|| {
        for (initiate, foreign) in [(true, PEER), (true, US), (false, PEER), (false, US)] {
            let wanted = Wanted {
                initiate,
                secret: None,
                ..Wanted::default()
            };
            let (authority, other) = (Authority::new(), Authority::new());
            let of = |name| if name == foreign { &other } else { &authority };
            let mut told = Told::by(&wanted);
            let peer = of(PEER).issue("peer", KeyType::EcdsaP256);
            told.certificates = Some((peer, authority.ca.certificate_pem()));
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            let own = of(US).issue("us", KeyType::EcdsaP256).into_identity(US);
            us.certified(authority.verifier(), own);
            us.go();
            if !initiate {
                charon.order_in_vain(&mut us, "--initiate --child net");
            }
            let check = if foreign == PEER {
                FailedCheck::CertificateUnknownCa
            } else {
                FailedCheck::RefusedByPeer
            };
            if initiate || foreign == PEER {
                us.until("a failure that names the CA", |us| us.failed(check));
            }
            us.wait(Duration::from_millis(300));
            assert!(
                us.children().is_empty() && us.standing().is_empty(),
                "{}",
                us.story()
            );
        }
    });
}

#[test]
fn no_common_proposal_is_named() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                ..Wanted::default()
            };
            let mut told = Told::by(&wanted);
            told.ike = "aes128-sha1-modp2048".into();
            let charon = Charon::start(&wanted, told);
            let mut us = Us::with(&wanted, |config| config.retransmission.tries = 4);
            us.go();
            if initiate {
                us.until("a failure that names the proposal", |us| {
                    us.failed(FailedCheck::Proposal)
                });
            } else {
                let text = charon.order_in_vain(&mut us, "--initiate --child net");
                assert!(charon.log().contains("NO_PROP"), "{text}");
            }
            assert!(us.ups.is_empty());
        }
    });
}

#[test]
fn no_common_esp_proposal_leaves_the_ike_sa() {
    on_charon(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.esp = "aes128-sha256".into();
        let _charon = Charon::start(&wanted, told);
        let mut us = Us::new(&wanted);
        us.go();
        us.until("a failure that names the child", |us| {
            let of_child = |f: &testudo_ike::Failure| f.child.as_deref() == Some("net");
            us.failures
                .iter()
                .any(|f| of_child(f) && f.check == FailedCheck::Proposal)
        });
        assert_eq!(us.standing().len(), 1);
    });
}

#[test]
fn another_key_exchange_is_asked_for() {
    on_charon(|| {
        let wanted = Wanted {
            ke: KeMethod::P256,
            ..Wanted::default()
        };
        let charon = Charon::start(&wanted, Told::by(&wanted));
        let mut us = Us::with(&wanted, |config| {
            config.suites.ke_methods = vec![KeMethod::X25519, KeMethod::P256];
        });
        us.go();
        us.established();
        us.ping();
        assert!(us.ups[0].suite.ends_with("ECP_256"), "{}", us.ups[0].suite);
        drop(charon);
    });
}

/// charon's child covers more than ours, and is narrowed to it (RFC 7296, 2.9). Its successors
/// cover the same (lesson L51).
#[test]
fn a_wider_child_is_narrowed() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let mut told = Told::by(&wanted);
            told.child = "local_ts = 10.2.0.0/16\n remote_ts = 10.0.0.0/8\n".into();
            let (charon, mut us) = established(&wanted, told);
            for ours in [true, false] {
                let old = us.sending.unwrap();
                match ours {
                    true => us.rekey_child(),
                    false => charon.order(&mut us, "--rekey --child net"),
                }
                us.until("a successor", |us| {
                    us.sending.is_some_and(|c| c != old) && us.children().len() == 1
                });
                us.ping();
            }
            let sas = charon.sas(&mut us);
            assert!(
                sas.contains("local  10.2.0.1/32") && sas.contains("remote 10.1.0.1/32"),
                "{sas}"
            );
        }
    });
}

/// charon's child is about other addresses: TS_UNACCEPTABLE, the IKE SA stays.
#[test]
fn a_child_of_other_addresses_is_refused() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let mut told = Told::by(&wanted);
            told.child = "local_ts = 10.99.0.0/16\n".into();
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            if !initiate {
                charon.order_in_vain(&mut us, "--initiate --child net --timeout 45");
            }
            us.until("a failure that names the selectors", |us| {
                us.failed(FailedCheck::TrafficSelectors)
            });
            assert_eq!((us.standing().len(), us.children().len()), (1, 0));
        }
    });
}
