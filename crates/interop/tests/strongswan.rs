//! The engine and strongSwan's charon. ESP passes through charon's kernel-libipsec: real
//! packets, in UDP and tunnel mode only, on any kernel that has TUN.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::certificates::{Authority, Issued};
use common::{PEER, SECRET, US, Us, Wanted, run_alone};
use testudo_crypto::{KeMethod, KeyType};
use testudo_ike::{DownReason, FailedCheck};
use testudo_interop::{Daemon, Peer, World};

/// charon in its world.
struct Charon {
    daemon: Daemon,
    world: World,
}

/// What charon is told apart from what `Wanted` says.
struct Told {
    ike: String,
    esp: String,
    secret: &'static str,
    dpd: &'static str,
    certificates: Option<(Issued, String)>,
}

impl Told {
    fn by(wanted: &Wanted) -> Self {
        let group = match wanted.ke {
            KeMethod::X25519 => "x25519",
            KeMethod::P256 => "ecp256",
            KeMethod::P384 => "ecp384",
            KeMethod::P521 => "ecp521",
            KeMethod::Modp2048 => "modp2048",
            other => panic!("charon has no {other:?}"),
        };
        Self {
            ike: format!("aes256gcm16-prfsha256-{group}"),
            esp: format!("aes256gcm16-{group}-noesn"),
            secret: SECRET,
            dpd: "0s",
            certificates: None,
        }
    }

    fn connection(&self, wanted: &Wanted) -> String {
        let [ours, theirs] = wanted.outer();
        let [inner_ours, inner_theirs] = wanted.inner();
        let auth = match self.certificates {
            Some(_) => "auth = pubkey\n certs = peer.pem",
            None => "auth = psk",
        };
        let remote = if self.certificates.is_some() {
            "pubkey"
        } else {
            "psk"
        };
        let (ike, esp, dpd, secret) = (&self.ike, &self.esp, self.dpd, self.secret);
        format!(
            "connections {{ t {{\n version = 2\n local_addrs = {theirs}\n remote_addrs = {ours}\n \
             proposals = {ike}\n dpd_delay = {dpd}\n encap = yes\n mobike = no\n \
             local {{\n {auth}\n id = {PEER}\n }}\n remote {{\n auth = {remote}\n id = {US}\n }}\n \
             children {{ net {{\n local_ts = {inner_theirs}\n remote_ts = {inner_ours}\n \
             mode = tunnel\n esp_proposals = {esp}\n }} }} }} }}\n\
             secrets {{ ike-t {{\n id-1 = {US}\n id-2 = {PEER}\n secret = \"{secret}\"\n }} }}\n"
        )
    }
}

const CONFIG: &str = "charon-systemd {
  load = random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem curve25519 aes gcm hmac kdf drbg sha1 sha2 kernel-libipsec kernel-netlink socket-default vici
  retransmit_tries = 3
  retransmit_timeout = 0.7
  retransmit_base = 1.2
  plugins { vici { socket = unix:///run/vici } }
  filelog { log {
    path = PLACE/log
    default = 1
    ike = 2
    cfg = 2
    flush_line = yes
  } }
}
";

impl Charon {
    fn start_told(wanted: &Wanted, told: Told) -> Self {
        let world = World::new().unwrap();
        let place = &world.place;
        let config = CONFIG.replace("PLACE", &place.path().display().to_string());
        place.write("strongswan.conf", config.as_bytes()).unwrap();
        let connection = told.connection(wanted);
        place.write("swanctl.conf", connection.as_bytes()).unwrap();
        if let Some((own, ca)) = &told.certificates {
            place
                .write("x509/peer.pem", own.certificate_pem().as_bytes())
                .unwrap();
            place.write("x509ca/ca.pem", ca.as_bytes()).unwrap();
            place.write("pkcs8/peer.pem", &own.key_pem()).unwrap();
        }
        let line = format!(
            "export STRONGSWAN_CONF={0}/strongswan.conf SWANCTL_DIR={0}\nexec charon-systemd",
            place.path().display()
        );
        let daemon = world.start(Peer::StrongSwan, &line).unwrap();
        let charon = Self { daemon, world };
        let end = std::time::Instant::now() + Duration::from_secs(8);
        while !charon.swanctl("--stats").output().unwrap().status.success() {
            assert!(std::time::Instant::now() < end, "{}", charon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let loaded = charon.swanctl("--load-all --noprompt").output().unwrap();
        let text = String::from_utf8_lossy(&loaded.stdout).into_owned()
            + &String::from_utf8_lossy(&loaded.stderr);
        assert!(loaded.status.success(), "{text}{}", charon.log());
        charon
    }

    fn swanctl(&self, line: &str) -> Command {
        let mut command = self.daemon.enter();
        let place = self.world.place.path();
        command.env("SWANCTL_DIR", place);
        command.env("STRONGSWAN_CONF", place.join("strongswan.conf"));
        command.arg("swanctl").args(line.split(' '));
        command.args(["--uri", "unix:///run/vici"]);
        command
    }

    /// Lets charon begin, if that is wanted.
    fn begin(&self, us: &mut Us, wanted: &Wanted) {
        if !wanted.initiate {
            let (ok, text) = us.beside(&mut self.swanctl("--initiate --child net --timeout 10"));
            assert!(ok, "{text}{}", us.story());
        }
    }

    fn log(&self) -> String {
        self.world.text("output") + &self.world.text("log")
    }
}

/// Prints charon's log when the test fails.
impl Drop for Charon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

fn test(name: &str, body: impl FnOnce() + Send + 'static) {
    run_alone(name, Peer::StrongSwan, body);
}

/// Establishes, passes packets, and looks at the agreed suite.
fn established(wanted: &Wanted, told: Told) -> (Charon, Us) {
    let charon = Charon::start_told(wanted, told);
    let mut us = Us::new(wanted);
    us.go();
    charon.begin(&mut us, wanted);
    us.established();
    us.ping();
    (charon, us)
}

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
    test("pre_shared_keys_over_ipv4_we_begin", || plain(false, true));
}

#[test]
fn pre_shared_keys_over_ipv4_charon_begins() {
    test("pre_shared_keys_over_ipv4_charon_begins", || {
        plain(false, false);
    });
}

#[test]
fn pre_shared_keys_over_ipv6_we_begin() {
    test("pre_shared_keys_over_ipv6_we_begin", || plain(true, true));
}

#[test]
fn pre_shared_keys_over_ipv6_charon_begins() {
    test("pre_shared_keys_over_ipv6_charon_begins", || {
        plain(true, false);
    });
}

/// Certificates of both ends under one CA.
fn certified(kind: KeyType, initiate: bool) {
    let wanted = Wanted {
        initiate,
        secret: None,
        ..Wanted::default()
    };
    let authority = Authority::new();
    let mut told = Told::by(&wanted);
    let peer = authority.issue("peer", kind);
    told.certificates = Some((peer, authority.ca.certificate_pem()));
    let charon = Charon::start_told(&wanted, told);
    let mut us = Us::new(&wanted);
    let own = authority.issue("us", kind).into_identity(US);
    us.certified(authority.verifier(), own);
    us.go();
    charon.begin(&mut us, &wanted);
    us.established();
    us.ping();
    assert!(us.ups[0].certificate);
}

#[test]
fn certificates_with_ecdsa() {
    test("certificates_with_ecdsa", || {
        certified(KeyType::EcdsaP256, true);
        certified(KeyType::EcdsaP256, false);
    });
}

#[test]
fn certificates_with_ed25519() {
    test("certificates_with_ed25519", || {
        certified(KeyType::Ed25519, true);
        certified(KeyType::Ed25519, false);
    });
}

#[test]
fn forced_encapsulation_moves_to_port_4500() {
    test("forced_encapsulation_moves_to_port_4500", || {
        let wanted = Wanted {
            forced: true,
            ..Wanted::default()
        };
        let (_charon, us) = established(&wanted, Told::by(&wanted));
        assert_eq!(us.ups[0].remote.port(), 4500);
    });
}

/// Two rekeys of the child and two of the IKE SA, packets after each.
fn rekeys(initiate: bool, ours: bool) {
    let wanted = Wanted {
        initiate,
        ..Wanted::default()
    };
    let (charon, mut us) = established(&wanted, Told::by(&wanted));
    for n in 2..=3 {
        let old = us.sending.unwrap();
        if ours {
            let now = us.now();
            us.engine.rekey_child(old, now).unwrap();
            us.drain();
        } else {
            let (ok, text) = us.beside(&mut charon.swanctl("--rekey --child net"));
            assert!(ok, "{text}");
        }
        us.until("a successor of the child", 5, |us| {
            us.made.len() == n && us.sending.is_some_and(|c| c != old)
        });
        assert_eq!(us.made[n - 1].replaces, Some(old));
        us.ping();
        us.until("the end of the old child", 10, |us| {
            us.children().len() == 1
        });
        us.ping();
    }
    for n in 2..=3 {
        if ours {
            let now = us.now();
            us.engine.rekey_ike(&us.peer.clone(), now).unwrap();
            us.drain();
        } else {
            let (ok, text) = us.beside(&mut charon.swanctl("--rekey --ike t"));
            assert!(ok, "{text}");
        }
        us.until("a successor of the IKE SA", 5, |us| {
            us.ups.len() == n && us.standing().len() == 1
        });
        us.ping();
    }
    assert_eq!(us.children().len(), 1);
    assert_eq!(us.failures, []);
    // The successor of the child's successor is still rekeyed on the new IKE SA.
    let old = us.sending.unwrap();
    let now = us.now();
    us.engine.rekey_child(old, now).unwrap();
    us.until("a rekey on the new IKE SA", 5, |us| {
        us.sending.is_some_and(|c| c != old)
    });
    us.ping();
}

#[test]
fn rekeys_by_us() {
    test("rekeys_by_us", || {
        rekeys(true, true);
        rekeys(false, true);
    });
}

#[test]
fn rekeys_by_charon() {
    test("rekeys_by_charon", || {
        rekeys(true, false);
        rekeys(false, false);
    });
}

#[test]
fn we_delete() {
    test("we_delete", || {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        let now = us.now();
        us.engine.close(&us.peer.clone(), now).unwrap();
        us.until("the end", 5, |us| {
            us.standing().is_empty() && us.children().is_empty()
        });
        us.wait(Duration::from_millis(200));
        let (ok, text) = us.beside(&mut charon.swanctl("--list-sas"));
        assert!(ok && !text.contains("ESTABLISHED"), "{text}");
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Closed);
    });
}

#[test]
fn charon_deletes() {
    test("charon_deletes", || {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        let (ok, text) = us.beside(&mut charon.swanctl("--terminate --child net"));
        assert!(ok, "{text}");
        us.until("the end of the child", 5, |us| us.children().is_empty());
        let down = us.made[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
        let (ok, text) = us.beside(&mut charon.swanctl("--initiate --child net"));
        assert!(ok, "{text}");
        us.established();
        us.ping();
        let (ok, text) = us.beside(&mut charon.swanctl("--terminate --ike t"));
        assert!(ok, "{text}");
        us.until("the end", 5, |us| us.standing().is_empty());
        let down = us.ups[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
        assert!(us.children().is_empty());
    });
}

#[test]
fn what_charon_deletes_we_make_again() {
    test("what_charon_deletes_we_make_again", || {
        let wanted = Wanted::default();
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        for line in ["--terminate --child net", "--terminate --ike t"] {
            let made = us.made.len();
            let (ok, text) = us.beside(&mut charon.swanctl(line));
            assert!(ok, "{text}");
            us.until("another child", 8, |us| {
                us.made.len() > made && us.sending.is_some()
            });
            us.ping();
        }
    });
}

#[test]
fn each_end_sees_that_the_other_lives() {
    test("each_end_sees_that_the_other_lives", || {
        let wanted = Wanted {
            liveness: Duration::from_secs(1),
            ..Wanted::default()
        };
        let mut told = Told::by(&wanted);
        told.dpd = "1s";
        let (_charon, mut us) = established(&wanted, told);
        let before = us.engine.counters().datagrams_in;
        us.wait(Duration::from_secs(3));
        assert!(us.engine.counters().datagrams_in > before);
        assert_eq!(us.standing().len(), 1, "{}", us.story());
        us.ping();
    });
}

#[test]
fn we_notice_that_charon_died() {
    test("we_notice_that_charon_died", || {
        let wanted = Wanted {
            liveness: Duration::from_secs(1),
            initiate: false,
            ..Wanted::default()
        };
        let (mut charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.daemon.kill();
        us.until("charon taken for dead", 25, |us| us.standing().is_empty());
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Dead);
        assert!(us.children().is_empty());
    });
}

#[test]
fn charon_notices_that_we_died() {
    test("charon_notices_that_we_died", || {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.dpd = "1s";
        let (charon, us) = established(&wanted, told);
        drop(us);
        let end = std::time::Instant::now() + Duration::from_secs(12);
        loop {
            let output = charon.swanctl("--list-sas").output().unwrap();
            if !String::from_utf8_lossy(&output.stdout).contains("ESTABLISHED") {
                break;
            }
            assert!(std::time::Instant::now() < end, "charon holds on");
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

/// Whether some failure names the check.
fn failed(us: &Us, check: FailedCheck) -> bool {
    us.failures.iter().any(|f| f.check == check)
}

#[test]
fn a_wrong_pre_shared_key_is_named() {
    test("a_wrong_pre_shared_key_is_named", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                ..Wanted::default()
            };
            let mut told = Told::by(&wanted);
            told.secret = "another";
            let charon = Charon::start_told(&wanted, told);
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
            us.until("a failure that names the key", 5, |us| failed(us, check));
            assert!(us.ups.is_empty() && us.made.is_empty());
        }
    });
}

#[test]
fn a_certificate_of_another_ca_is_named() {
    test("a_certificate_of_another_ca_is_named", || {
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
            let charon = Charon::start_told(&wanted, told);
            let mut us = Us::new(&wanted);
            let own = of(US).issue("us", KeyType::EcdsaP256).into_identity(US);
            us.certified(authority.verifier(), own);
            us.go();
            if !initiate {
                let (ok, text) = us.beside(&mut charon.swanctl("--initiate --child net"));
                assert!(!ok, "{text}");
            }
            let check = if foreign == PEER {
                FailedCheck::CertificateUnknownCa
            } else {
                FailedCheck::RefusedByPeer
            };
            if initiate || foreign == PEER {
                us.until("a failure that names the CA", 5, |us| failed(us, check));
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
    test("no_common_proposal_is_named", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                ..Wanted::default()
            };
            let mut told = Told::by(&wanted);
            told.ike = "aes128-sha1-modp2048".into();
            let charon = Charon::start_told(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            if initiate {
                us.until("a failure that names the proposal", 12, |us| {
                    failed(us, FailedCheck::Proposal)
                });
            } else {
                let (ok, text) = us.beside(&mut charon.swanctl("--initiate --child net"));
                assert!(!ok, "{text}");
                assert!(charon.log().contains("NO_PROP"), "{text}");
            }
            assert!(us.ups.is_empty());
        }
    });
}

#[test]
fn no_common_esp_proposal_leaves_the_ike_sa() {
    test("no_common_esp_proposal_leaves_the_ike_sa", || {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.esp = "aes128-sha256".into();
        let _charon = Charon::start_told(&wanted, told);
        let mut us = Us::new(&wanted);
        us.go();
        us.until("a failure that names the child", 5, |us| {
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
    test("another_key_exchange_is_asked_for", || {
        let wanted = Wanted {
            ke: KeMethod::P256,
            ..Wanted::default()
        };
        let charon = Charon::start_told(&wanted, Told::by(&wanted));
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

#[test]
fn modp_2048_for_old_peers() {
    test("modp_2048_for_old_peers", || {
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
