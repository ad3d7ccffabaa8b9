//! strongSwan: what either end refuses, and what is said of it.

use std::time::Duration;

use testudo_crypto::KeyType;
use testudo_ike::FailedCheck;

use crate::alike::certificates::certified;
use crate::alike::refusals::{
    a_wrong_pre_shared_key, another_key_exchange, no_common_esp_proposal, no_common_proposal,
};
use crate::alike::{Tell, Them, established};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::Wanted;

#[test]
fn a_wrong_pre_shared_key_is_named() {
    on_charon(a_wrong_pre_shared_key::<Charon>);
}

#[test]
fn a_certificate_of_another_ca_is_named() {
    on_charon(|| {
        for (initiate, its) in [(true, true), (true, false), (false, true), (false, false)] {
            let wanted = Wanted::certified(initiate);
            let trusted = [!its, its];
            let (charon, mut us) = certified::<Charon>(&wanted, KeyType::EcdsaP256, trusted);
            charon.begin_in_vain(&mut us, &wanted);
            let check = match its {
                true => FailedCheck::CertificateUnknownCa,
                false => FailedCheck::RefusedByPeer,
            };
            if initiate || its {
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
    on_charon(|| no_common_proposal::<Charon>("aes128-sha1-modp2048"));
}

#[test]
fn no_common_esp_proposal_leaves_the_ike_sa() {
    on_charon(|| {
        let (_charon, us) = no_common_esp_proposal::<Charon>("aes128-sha256");
        assert_eq!(us.standing().len(), 1);
    });
}

#[test]
fn another_key_exchange_is_asked_for() {
    on_charon(another_key_exchange::<Charon>);
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
                    false => charon.rekey_child(&mut us),
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
            charon.begin_in_vain(&mut us, &wanted);
            us.until("a failure that names the selectors", |us| {
                us.failed(FailedCheck::TrafficSelectors)
            });
            assert_eq!((us.standing().len(), us.children().len()), (1, 0));
        }
    });
}
