//! strongSwan with ML-KEM beside a classical key exchange (RFC 9242, RFC 9370).

use testudo_crypto::{KeMethod, KeyType};
use testudo_ike::{AdditionalKe, EngineConfig, FailedCheck};
use testudo_interop::Peer;

use crate::alike::life::rekeys;
use crate::alike::{Them, established, established_with};
use crate::certificates::Authority;
use crate::charon::{Charon, Told};
use crate::ours::Us;
use crate::wanted::{US, Wanted, run_alone};

fn on_next_charon(body: impl FnOnce() + Send + 'static) {
    run_alone(Peer::NextStrongSwan, body);
}

/// ML-KEM as the first additional key exchange, of the IKE SA and of children.
fn with(wanted: &Wanted, method: &str) -> Told {
    let mut told = Told::next(wanted);
    told.ike += &format!("-ke1_{method}");
    told.esp = told.esp.replace("-noesn", &format!("-ke1_{method}-noesn"));
    told
}

fn hybrid(wanted: &Wanted) -> Told {
    with(wanted, "mlkem768")
}

fn requiring(config: &mut EngineConfig, method: KeMethod) {
    config.suites.additional_ke = vec![AdditionalKe {
        methods: vec![method],
        required: true,
    }];
}

#[test]
fn x25519_with_ml_kem_768() {
    on_next_charon(|| {
        for (initiate, v6) in [(true, false), (false, false), (true, true), (false, true)] {
            let wanted = Wanted {
                v6,
                ..Wanted::begun_by_us(initiate)
            };
            let (charon, mut us) = established(&wanted, hybrid(&wanted));
            let suite = &us.ups[0].suite;
            assert!(
                suite.contains("CURVE_25519") && suite.contains("ML_KEM_768"),
                "{suite}"
            );
            assert!(charon.sas(&mut us).contains("KE1_ML_KEM_768"));
            assert_eq!(us.failures, []);
        }
    });
}

// The public key of ML-KEM-1024 is larger than the IKE messages that go unfragmented.
#[test]
fn p384_with_ml_kem_1024_in_fragments() {
    on_next_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                ke: KeMethod::P384,
                ..Wanted::begun_by_us(initiate)
            };
            let told = with(&wanted, "mlkem1024");
            let (_charon, us) = established_with(&wanted, told, |config| {
                requiring(config, KeMethod::MlKem1024);
            });
            let suite = &us.ups[0].suite;
            assert!(suite.contains("ML_KEM_1024"), "{suite}");
            assert!(
                us.fragments[0] > 1 && us.fragments[1] > 1,
                "{:?}",
                us.fragments
            );
        }
    });
}

#[test]
fn certificates_with_ml_kem() {
    on_next_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let authority = Authority::new();
            let mut told = hybrid(&wanted);
            let peer = authority.issue("peer", KeyType::EcdsaP256);
            told.certificates = Some((peer, authority.ca.certificate_pem()));
            let charon = Charon::start(&wanted, told);
            let mut us = Us::with(&wanted, |config| requiring(config, KeMethod::MlKem768));
            let own = authority.issue("us", KeyType::EcdsaP256).into_identity(US);
            us.certified(authority.verifier(), own);
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            us.ping();
            assert!(us.ups[0].suite.contains("ML_KEM_768"));
        }
    });
}

/// Three additional exchanges; then the end that did not begin rekeys the child.
#[test]
fn several_additional_exchanges() {
    on_next_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let told = with(&wanted, "mlkem768-ke2_ecp384-ke3_mlkem1024");
            let (charon, mut us) = established_with(&wanted, told, |config| {
                let methods = [KeMethod::MlKem768, KeMethod::P384, KeMethod::MlKem1024];
                let round = |method| AdditionalKe {
                    methods: vec![method],
                    required: true,
                };
                config.suites.additional_ke = methods.map(round).to_vec();
            });
            let suite = &us.ups[0].suite;
            let all = "/CURVE_25519/ML_KEM_768/ECP_384/ML_KEM_1024";
            assert!(suite.ends_with(all), "{suite}");
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
    });
}

/// Rekeys take another exchange.
fn rekeys_with_ml_kem(ours: bool) {
    for initiate in [true, false] {
        let charon = rekeys(hybrid, initiate, ours);
        let exchanges = charon.log().matches("parsed IKE_FOLLOWUP_KE").count();
        assert!(exchanges >= 5, "{exchanges} of IKE_FOLLOWUP_KE");
    }
}

#[test]
fn rekeys_by_us() {
    on_next_charon(|| rekeys_with_ml_kem(true));
}

#[test]
fn rekeys_by_charon() {
    on_next_charon(|| rekeys_with_ml_kem(false));
}

/// We can, charon does not: it is done without, or not at all.
#[test]
fn ml_kem_is_left_out_or_insisted_on() {
    on_next_charon(|| {
        let wanted = Wanted::default();
        let (_charon, us) = established(&wanted, Told::next(&wanted));
        assert!(!us.ups[0].suite.contains("ML_KEM"), "{}", us.ups[0].suite);
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let charon = Charon::start(&wanted, Told::next(&wanted));
            let mut us = Us::with(&wanted, |config| {
                config.retransmission.tries = 4;
                requiring(config, KeMethod::MlKem768);
            });
            us.go();
            if initiate {
                us.until("a failure that names the proposal", |us| {
                    us.failed(FailedCheck::Proposal)
                });
            } else {
                charon.order_in_vain(&mut us, "--initiate --child net --timeout 45");
            }
            assert!(us.ups.is_empty());
        }
    });
}
