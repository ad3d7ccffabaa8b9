//! What either end refuses, and what is said of it.

use testudo_crypto::KeMethod;
use testudo_ike::{FailedCheck, Failure};

use super::{Tell, Them};
use crate::ours::Us;
use crate::wanted::Wanted;

/// The daemon has another pre-shared key.
pub fn a_wrong_pre_shared_key<P: Them>() {
    for initiate in [true, false] {
        let wanted = Wanted::begun_by_us(initiate);
        let mut told = P::Told::by(&wanted);
        *told.terms().secret = "another secret that is long";
        let them = P::start(&wanted, told);
        let mut us = Us::new(&wanted);
        us.go();
        them.begin_in_vain(&mut us, &wanted);
        let check = match initiate {
            true => FailedCheck::RefusedByPeer,
            false => FailedCheck::PreSharedKey,
        };
        us.until("a failure that names the key", |us| us.failed(check));
        assert!(us.ups.is_empty() && us.made.is_empty());
    }
}

/// The daemon wants what we do not have.
pub fn no_common_proposal<P: Them>(ike: &str) {
    for initiate in [true, false] {
        let wanted = Wanted::begun_by_us(initiate);
        let mut told = P::Told::by(&wanted);
        *told.terms().ike = ike.into();
        let them = P::start(&wanted, told);
        let mut us = Us::with(&wanted, |config| config.retransmission.tries = 4);
        us.go();
        them.begin_in_vain(&mut us, &wanted);
        if initiate {
            us.until("a failure that names the proposal", |us| {
                us.failed(FailedCheck::Proposal)
            });
        } else {
            us.until("our refusal", |_| them.log().contains("NO_PROP"));
        }
        assert!(us.ups.is_empty());
    }
}

/// The same for ESP alone; what became of it.
pub fn no_common_esp_proposal<P: Them>(esp: &str) -> (P, Us) {
    let wanted = Wanted::default();
    let mut told = P::Told::by(&wanted);
    *told.terms().esp = esp.into();
    let them = P::start(&wanted, told);
    let mut us = Us::new(&wanted);
    us.go();
    us.until("a failure that names the child", |us| {
        let of_child = |f: &Failure| f.child.as_deref() == Some("net");
        let about = |f: &Failure| f.check == FailedCheck::Proposal;
        us.failures.iter().any(|f| of_child(f) && about(f))
    });
    assert!(us.made.is_empty());
    (them, us)
}

/// INVALID_KE_PAYLOAD: the daemon takes the second of ours.
pub fn another_key_exchange<P: Them>() {
    let wanted = Wanted {
        ke: KeMethod::P256,
        ..Wanted::default()
    };
    let them = P::start(&wanted, P::Told::by(&wanted));
    let mut us = Us::with(&wanted, |config| {
        config.suites.ke_methods = vec![KeMethod::X25519, KeMethod::P256];
    });
    us.go();
    us.established();
    them.ping(&mut us);
    assert!(us.ups[0].suite.ends_with("ECP_256"), "{}", us.ups[0].suite);
}
