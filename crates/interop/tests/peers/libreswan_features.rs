//! libreswan: fragments, post-quantum pre-shared keys, other ciphers, cookies.

use testudo_crypto::{Cipher, KeMethod, Prf, SecretBytes};
use testudo_ike::{PpkConfig, Suites};

use crate::alike::{Tell, Them, established};
use crate::certificates::{ForeignCa, Kind};
use crate::ours::Us;
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::{US, Wanted};

/// Certificates with intermediates in fragments, both ways (RFC 7383).
#[test]
fn messages_in_fragments() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let root = ForeignCa::new(Kind::P256);
            let sub = root.subordinate(Kind::Rsa3072);
            let mut told = Told::by(&wanted);
            let peer = sub.issue("peer", Kind::P256);
            told.certificates = Some((peer, root.certificate_pem()));
            told.more = " sendca=all\n fragmentation=force\n".into();
            let pluto = Pluto::start(&wanted, told);
            let mut us = Us::with(&wanted, |config| config.fragment_size = 700);
            us.certified(
                root.verifier(),
                sub.issue("us", Kind::P256).into_identity(US),
            );
            us.go();
            pluto.begin(&mut us, &wanted);
            us.established();
            pluto.settles(&mut us, 1, 1);
            let [sent, received] = us.fragments;
            assert!(
                sent >= 3 && received >= 2,
                "{sent} sent, {received} received"
            );
        }
    });
}

const PPK: &str = "0123456789abcdef0123456789abcdef";

fn ppk(secret: &str) -> Option<PpkConfig> {
    Some(PpkConfig {
        id: b"both".to_vec(),
        secret: SecretBytes::new(secret.as_bytes().to_vec()),
        required: true,
    })
}

/// pluto insists on that key; so do we.
fn mixing(wanted: &Wanted, secret: &str) -> Told {
    let mut told = Told::by(wanted);
    told.more = " ppk=insist\n".into();
    let (ours, theirs) = (crate::wanted::US, crate::wanted::PEER);
    told.secrets = format!("@{ours} @{theirs} : PPKS \"both\" \"{secret}\"\n");
    told
}

// RFC 8784.
#[test]
fn post_quantum_pre_shared_keys() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                ppk: ppk(PPK),
                ..Wanted::begun_by_us(initiate)
            };
            let (pluto, mut us) = established(&wanted, mixing(&wanted, PPK));
            assert!(pluto.log().contains("PPK"), "{}", pluto.log());
            us.rekey_ike();
            us.until("a successor of the IKE SA", |us| {
                us.ups.len() == 2 && us.standing().len() == 1
            });
            us.rekey_child();
            us.until("a successor of the child", |us| us.made.len() == 2);
        }
    });
}

/// Lesson L40.
#[test]
fn without_the_post_quantum_key_no_sa() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                ppk: ppk("a wrong key of thirty-two bytes."),
                ..Wanted::begun_by_us(initiate)
            };
            let pluto = Pluto::start(&wanted, mixing(&wanted, PPK));
            let mut us = Us::new(&wanted);
            us.go();
            pluto.begin(&mut us, &wanted);
            us.until("a failure", |us| !us.failures.is_empty());
            assert!(us.standing().is_empty() && us.children().is_empty());
            assert!(!pluto.is_up());
        }
    });
}

/// Each cipher for IKE and ESP.
#[test]
fn other_ciphers_for_a_peer_that_asks() {
    on_pluto(|| {
        let mut initiate = true;
        for cipher in Cipher::all() {
            let (ike, esp) = match cipher {
                Cipher::Gcm(aead) => {
                    let name = format!("aes_gcm{}", aead.key_bits());
                    (format!("{name}-sha2_256"), name)
                }
                Cipher::Cbc(suite) => {
                    // With 384 bits pluto would have a PRF of the same hash, too.
                    let (bits, sha) = (suite.cbc.key_bits(), suite.integrity.key_len() * 8);
                    let name = format!("aes{bits}-sha2_{sha}");
                    (name.clone(), name)
                }
            };
            if ike.ends_with("384") {
                continue;
            }
            let prf = match ike.ends_with("512") {
                true => Prf::HmacSha512,
                false => Prf::HmacSha256,
            };
            let wanted = Wanted {
                suites: Some(Suites {
                    ke_methods: vec![KeMethod::Modp2048],
                    additional_ke: Vec::new(),
                    prfs: vec![prf],
                    ike_ciphers: vec![cipher],
                    esp_ciphers: vec![cipher],
                    ..Suites::default()
                }),
                ..Wanted::begun_by_us(initiate)
            };
            let mut told = Told::by(&wanted);
            told.ike = format!("{ike}-modp2048");
            told.esp = esp;
            let (pluto, mut us) = established(&wanted, told);
            assert!(
                us.ups[0].suite.ends_with("MODP_2048"),
                "{}",
                us.ups[0].suite
            );
            pluto.settles(&mut us, 1, 1);
            initiate = !initiate;
        }
    });
}

/// Each end asks the other for a cookie (RFC 7296, 2.6).
#[test]
fn cookies() {
    on_pluto(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.setup = " ddos-mode=busy\n";
        let (_pluto, us) = established(&wanted, told);
        // One message more than otherwise.
        assert!(us.engine.counters().datagrams_in >= 3);
        let wanted = Wanted::begun_by_us(false);
        let pluto = Pluto::start(&wanted, Told::by(&wanted));
        let mut us = Us::with(&wanted, |config| config.limits.cookie_threshold = 0);
        us.go();
        pluto.begin(&mut us, &wanted);
        us.established();
        assert!(us.engine.counters().cookies_sent > 0);
    });
}
