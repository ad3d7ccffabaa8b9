//! strongSwan of Debian's next release: what differs from the older one in its state machines.

use testudo_crypto::{KeMethod, KeyType};
use testudo_ike::AdditionalKe;
use testudo_interop::Peer;

use crate::certificates::Authority;
use crate::charon::{Charon, Told, established, established_with};
use crate::ours::Us;
use crate::strongswan_life::rekeys;
use crate::wanted::{US, Wanted, run_alone};

fn on_next_charon(body: impl FnOnce() + Send + 'static) {
    run_alone(Peer::NextStrongSwan, body);
}

#[test]
fn pre_shared_keys() {
    on_next_charon(|| {
        for initiate in [true, false] {
            for (ke, v6) in [(KeMethod::X25519, false), (KeMethod::P521, true)] {
                let wanted = Wanted {
                    ke,
                    v6,
                    ..Wanted::begun_by_us(initiate)
                };
                let (charon, mut us) = established(&wanted, Told::next(&wanted));
                charon.holds(&mut us, 1, 1);
            }
        }
    });
}

#[test]
fn certificates() {
    on_next_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let authority = Authority::new();
            let mut told = Told::next(&wanted);
            let peer = authority.issue("peer", KeyType::EcdsaP256);
            told.certificates = Some((peer, authority.ca.certificate_pem()));
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            let own = authority.issue("us", KeyType::EcdsaP256).into_identity(US);
            us.certified(authority.verifier(), own);
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            us.ping();
        }
    });
}

#[test]
fn rekeys_by_us() {
    on_next_charon(|| {
        rekeys(Told::next, true, true);
        rekeys(Told::next, false, true);
    });
}

#[test]
fn rekeys_by_charon() {
    on_next_charon(|| {
        rekeys(Told::next, true, false);
        rekeys(Told::next, false, false);
    });
}

/// What charon is told for additional key exchanges (RFC 9370), `ke1_mlkem768` and so on.
fn with_additional(wanted: &Wanted, exchanges: &str) -> Told {
    let mut told = Told::next(wanted);
    told.ike += &format!("-{exchanges}");
    told.esp = told.esp.replace("-noesn", &format!("-{exchanges}-noesn"));
    told
}

fn with_ml_kem(wanted: &Wanted) -> Told {
    with_additional(wanted, "ke1_mlkem768")
}

fn rounds(lists: &[&[KeMethod]], required: bool) -> Vec<AdditionalKe> {
    let round = |methods: &&[KeMethod]| AdditionalKe {
        methods: methods.to_vec(),
        required,
    };
    lists.iter().map(round).collect()
}

/// Each set of exchanges, both ends beginning; then a child rekeyed by the other end.
#[test]
fn additional_key_exchanges() {
    on_next_charon(|| {
        let cases: [(&str, &[&[KeMethod]], &str); 3] = [
            ("ke1_mlkem768", &[&[KeMethod::MlKem768]], "/ML_KEM_768"),
            ("ke1_mlkem1024", &[&[KeMethod::MlKem1024]], "/ML_KEM_1024"),
            (
                "ke1_mlkem768-ke2_ecp384-ke3_mlkem1024",
                &[
                    &[KeMethod::MlKem768],
                    &[KeMethod::P384],
                    &[KeMethod::MlKem1024],
                ],
                "/ML_KEM_768/ECP_384/ML_KEM_1024",
            ),
        ];
        for (theirs, ours, name) in cases {
            for initiate in [true, false] {
                let wanted = Wanted::begun_by_us(initiate);
                let told = with_additional(&wanted, theirs);
                let (charon, mut us) = established_with(&wanted, told, |config| {
                    config.suites.additional_ke = rounds(ours, true);
                });
                assert!(us.ups[0].suite.ends_with(name), "{}", us.ups[0].suite);
                charon.holds(&mut us, 1, 1);
                let old = us.sending.unwrap();
                if initiate {
                    charon.order(&mut us, "--rekey --child net");
                } else {
                    us.rekey_child();
                }
                us.until("a successor of the child", |us| {
                    us.sending.is_some_and(|c| c != old)
                });
                us.ping();
            }
        }
    });
}

/// With certificates IntAuth is part of what is signed.
#[test]
fn additional_key_exchanges_with_certificates() {
    on_next_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let authority = Authority::new();
            let mut told = with_ml_kem(&wanted);
            let peer = authority.issue("peer", KeyType::EcdsaP256);
            told.certificates = Some((peer, authority.ca.certificate_pem()));
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            let own = authority.issue("us", KeyType::EcdsaP256).into_identity(US);
            us.certified(authority.verifier(), own);
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            us.ping();
            assert!(us.ups[0].suite.ends_with("/ML_KEM_768"));
        }
    });
}

#[test]
fn rekeys_by_us_with_ml_kem() {
    on_next_charon(|| {
        rekeys(with_ml_kem, true, true);
        rekeys(with_ml_kem, false, true);
    });
}

#[test]
fn rekeys_by_charon_with_ml_kem() {
    on_next_charon(|| {
        rekeys(with_ml_kem, true, false);
        rekeys(with_ml_kem, false, false);
    });
}
