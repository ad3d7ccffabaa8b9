//! libreswan: what either end refuses, and what is said of it.

use testudo_crypto::KeyType;
use testudo_ike::FailedCheck;

use crate::alike::Them;
use crate::alike::certificates::certified;
use crate::alike::refusals::{
    a_wrong_pre_shared_key, another_key_exchange, no_common_esp_proposal, no_common_proposal,
};
use crate::pluto::{Pluto, on_pluto};
use crate::wanted::Wanted;

#[test]
fn our_certificate_of_another_ca_is_refused() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let (pluto, mut us) = certified::<Pluto>(&wanted, KeyType::EcdsaP256, [true, false]);
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
            assert!(!pluto.is_up());
        }
    });
}

#[test]
fn its_certificate_of_another_ca_is_named() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let (pluto, mut us) = certified::<Pluto>(&wanted, KeyType::EcdsaP256, [false, true]);
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
    on_pluto(a_wrong_pre_shared_key::<Pluto>);
}

#[test]
fn no_common_proposal_is_named() {
    on_pluto(|| no_common_proposal::<Pluto>("aes256-sha1-modp2048"));
}

#[test]
fn no_common_esp_proposal_is_named() {
    on_pluto(|| {
        no_common_esp_proposal::<Pluto>("aes128-sha2_256");
    });
}

#[test]
fn another_key_exchange_is_asked_for() {
    on_pluto(another_key_exchange::<Pluto>);
}
