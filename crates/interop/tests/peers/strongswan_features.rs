//! strongSwan: fragments, post-quantum pre-shared keys, other ciphers, cookies, IKE SAs that are
//! made without a child.

use testudo_crypto::{Cipher, KeMethod, Prf, SecretBytes};
use testudo_ike::{FailedCheck, PpkConfig, Suites};

use crate::alike::{Tell, Them, established, established_with};
use crate::certificates::{ForeignCa, Kind};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::{US, Wanted};

/// Certificates with intermediates in small fragments, both ways (RFC 7383).
#[test]
fn messages_in_fragments() {
    on_charon(|| {
        for (initiate, v6) in [(true, false), (false, true)] {
            let wanted = Wanted {
                v6,
                ..Wanted::certified(initiate)
            };
            let root = ForeignCa::new(Kind::P256);
            let sub = root.subordinate(Kind::Rsa2048);
            let mut told = Told::by(&wanted);
            let peer = sub.issue("peer", Kind::P256);
            told.certificates = Some((peer, root.certificate_pem()));
            told.settings = "fragment_size = 600".into();
            let charon = Charon::start(&wanted, told);
            let mut us = Us::with(&wanted, |config| config.fragment_size = 700);
            us.certified(
                root.verifier(),
                sub.issue("us", Kind::P256).into_identity(US),
            );
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            us.ping();
            let [sent, received] = us.fragments;
            assert!(
                sent >= 3 && received >= 3,
                "{sent} sent, {received} received"
            );
            assert!(charon.log().contains("reassembled fragmented IKE message"));
        }
    });
}

fn ppk(secret: &str) -> Option<PpkConfig> {
    Some(PpkConfig {
        id: b"for both".to_vec(),
        secret: SecretBytes::new(secret.as_bytes().to_vec()),
        required: true,
    })
}

const PPK: &str = "0123456789abcdef0123456789abcdef";

/// charon insists on that key; so do we.
fn mixing(wanted: &Wanted, secret: &str) -> Told {
    let mut told = Told::by(wanted);
    told.connection = "ppk_id = \"for both\"\n ppk_required = yes\n".into();
    told.secrets = format!("ppk-t {{\n id = \"for both\"\n secret = \"{secret}\"\n }}\n");
    told
}

// RFC 8784.
#[test]
fn post_quantum_pre_shared_keys() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                ppk: ppk(PPK),
                ..Wanted::begun_by_us(initiate)
            };
            let (charon, mut us) = established(&wanted, mixing(&wanted, PPK));
            assert!(charon.log().contains("using PPK"), "{}", charon.log());
            us.rekey_ike();
            us.until("a successor of the IKE SA", |us| {
                us.ups.len() == 2 && us.standing().len() == 1
            });
            us.rekey_child();
            us.until("a successor of the child", |us| us.made.len() == 2);
            us.ping();
        }
    });
}

/// Lesson L40.
#[test]
fn without_the_post_quantum_key_no_sa() {
    on_charon(|| {
        for (initiate, ours, theirs) in [
            (true, Some("a wrong key of thirty-two bytes."), Some(PPK)),
            (false, Some("a wrong key of thirty-two bytes."), Some(PPK)),
            (true, None, Some(PPK)),
            (false, Some(PPK), None),
        ] {
            let wanted = Wanted {
                ppk: ours.and_then(ppk),
                ..Wanted::begun_by_us(initiate)
            };
            let told = match theirs {
                Some(secret) => mixing(&wanted, secret),
                None => Told::by(&wanted),
            };
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            if initiate {
                us.until("a failure", |us| !us.failures.is_empty());
            } else {
                charon.order_in_vain(&mut us, "--initiate --child net --timeout 45");
            }
            us.until("nothing", |us| {
                us.standing().is_empty() && us.children().is_empty()
            });
        }
    });
}

/// A peer of its own kind, and what charon calls that.
fn old(cipher: Cipher, ke: KeMethod) -> Option<Suites> {
    Some(Suites {
        ke_methods: vec![ke],
        additional_ke: Vec::new(),
        prfs: vec![Prf::HmacSha256],
        ike_ciphers: vec![cipher],
        esp_ciphers: vec![cipher],
        ..Suites::default()
    })
}

/// Each cipher for IKE and ESP, real packets under each.
#[test]
fn other_ciphers_for_a_peer_that_asks() {
    on_charon(|| {
        let mut initiate = true;
        for cipher in Cipher::all() {
            let name = match cipher {
                Cipher::Gcm(aead) => format!("aes{}gcm16", aead.key_bits()),
                Cipher::Cbc(suite) => {
                    let (bits, sha) = (suite.cbc.key_bits(), suite.integrity.key_len() * 8);
                    format!("aes{bits}-sha{sha}")
                }
            };
            let wanted = Wanted {
                suites: old(cipher, KeMethod::Modp2048),
                ..Wanted::begun_by_us(initiate)
            };
            let mut told = Told::by(&wanted);
            told.ike = format!("{name}-prfsha256-modp2048");
            told.esp = format!("{name}-modp2048-noesn");
            let (_charon, us) = established(&wanted, told);
            assert!(
                us.ups[0].suite.ends_with("MODP_2048"),
                "{}",
                us.ups[0].suite
            );
            initiate = !initiate;
        }
    });
}

/// What one peer may, another may not.
#[test]
fn old_suites_are_for_the_peer_that_asks_alone() {
    on_charon(|| {
        let wanted = Wanted::begun_by_us(false);
        let mut told = Told::by(&wanted);
        told.ike = "aes256-sha256-prfsha256-modp2048".into();
        let charon = Charon::start(&wanted, told);
        // The key exchange of `Wanted` is all that is allowed.
        let mut us = Us::new(&wanted);
        us.go();
        charon.order_in_vain(&mut us, "--initiate --child net --timeout 45");
        assert!(charon.log().contains("NO_PROP"));
        assert!(us.ups.is_empty());
    });
}

fn cbc(wanted: &Wanted) -> Told {
    let mut told = Told::by(wanted);
    told.ike = "aes128-sha256-prfsha256-x25519".into();
    told.esp = "aes128-sha256-x25519-noesn".into();
    told
}

#[test]
fn rekeys_with_cbc() {
    on_charon(|| {
        let cipher = Cipher::all().find(|c| matches!(c, Cipher::Cbc(s) if s.cbc.key_bits() == 128));
        let suites = old(cipher.unwrap(), KeMethod::X25519);
        let wanted = Wanted {
            suites,
            ..Wanted::default()
        };
        let (charon, mut us) = established(&wanted, cbc(&wanted));
        charon.order(&mut us, "--rekey --child net");
        us.until("a successor of the child", |us| {
            us.children().len() == 1 && us.made.len() == 2
        });
        us.ping();
        us.rekey_ike();
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() == 2 && us.standing().len() == 1
        });
        us.rekey_child();
        us.until("a third child", |us| us.made.len() == 3);
        us.ping();
    });
}

/// We ask for a cookie each time (RFC 7296, 2.6).
#[test]
fn charon_answers_our_cookie() {
    on_charon(|| {
        let wanted = Wanted::begun_by_us(false);
        let (_charon, us) = established_with(&wanted, Told::by(&wanted), |config| {
            config.limits.cookie_threshold = 0;
        });
        assert!(us.engine.counters().cookies_sent > 0);
    });
}

/// The IKE SA is made alone, the child by CREATE_CHILD_SA (RFC 6023).
#[test]
fn charon_begins_without_a_child() {
    on_charon(|| {
        let wanted = Wanted::begun_by_us(false);
        let mut told = Told::by(&wanted);
        told.connection = "childless = force".into();
        let (charon, us) = established(&wanted, told);
        assert!(charon.log().contains("CREATE_CHILD_SA request"));
        assert_eq!((us.ups.len(), us.made.len()), (1, 1));
        assert!(!us.failed(FailedCheck::Protocol));
        drop(charon);
    });
}
