//! The engine and libreswan's pluto. Where the kernel has no ESP pluto's requests to install SAs
//! are answered by `examples/pretend_xfrm.rs`, so negotiations finish but no packet passes.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::certificates::{Authority, Issued};
use common::{PEER, SECRET, US, Us, Wanted, run_alone};
use testudo_crypto::{KeMethod, KeyType};
use testudo_ike::{DownReason, FailedCheck};
use testudo_interop::{Daemon, Peer, World};
use testudo_model::SaMode;

/// pluto in its world.
struct Pluto {
    daemon: Daemon,
    world: World,
}

/// What pluto is told apart from what `Wanted` says.
struct Told {
    ike: String,
    esp: &'static str,
    secret: &'static str,
    more: &'static str,
    certificates: Option<(Issued, String)>,
}

impl Told {
    fn by(wanted: &Wanted) -> Self {
        let group = match wanted.ke {
            KeMethod::X25519 => "dh31",
            KeMethod::P256 => "dh19",
            KeMethod::P384 => "dh20",
            KeMethod::Modp2048 => "modp2048",
            other => panic!("pluto has no {other:?}"),
        };
        Self {
            ike: format!("aes_gcm256-sha2_256-{group}"),
            esp: "aes_gcm256",
            secret: SECRET,
            more: "",
            certificates: None,
        }
    }

    fn connection(&self, wanted: &Wanted) -> String {
        let [ours, theirs] = wanted.outer();
        let [inner_ours, inner_theirs] = wanted.inner();
        let bits = if wanted.v6 { 128 } else { 32 };
        let auth = if self.certificates.is_some() {
            " authby=ecdsa\n leftcert=peer\n leftsendcert=always\n rightca=%any\n"
        } else {
            " authby=secret\n"
        };
        let kind = match wanted.mode {
            SaMode::Tunnel => format!(
                " type=tunnel\n leftsubnet={inner_theirs}/{bits}\n rightsubnet={inner_ours}/{bits}\n"
            ),
            SaMode::Transport => " type=transport\n".into(),
        };
        format!(
            "config setup\n uniqueids=no\nconn t\n left={theirs}\n right={ours}\n leftid=@{PEER}\n \
             rightid=@{US}\n{auth}{kind} ikev2=insist\n ike={}\n esp={}\n leftupdown=/bin/true\n \
             retransmit-timeout=4s\n retransmit-interval=500ms\n keyingtries=1\n{} auto=add\n",
            self.ike, self.esp, self.more
        )
    }
}

/// The library that cargo builds from the example, beside this test.
fn pretend() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.ancestors().nth(2).unwrap();
    let library = folder.join("examples/libpretend_xfrm.so");
    assert!(
        library.is_file(),
        "{} is not built: cargo build -p testudo-interop --examples",
        library.display()
    );
    library
}

impl Pluto {
    fn start(wanted: &Wanted, told: Told) -> Self {
        let world = World::new().unwrap();
        let place = &world.place;
        let connection = told.connection(wanted);
        place.write("ipsec.conf", connection.as_bytes()).unwrap();
        let secrets = format!("@{US} @{PEER} : PSK \"{}\"\n", told.secret);
        place.write("secrets", secrets.as_bytes()).unwrap();
        let mut import = String::new();
        if let Some((own, ca)) = &told.certificates {
            place
                .write("peer.pem", own.certificate_pem().as_bytes())
                .unwrap();
            place.write("ca.pem", ca.as_bytes()).unwrap();
            place.write("peer.key", &own.key_pem()).unwrap();
            import = "openssl pkcs12 -export -in peer.pem -inkey peer.key -name peer \
                      -passout pass:x -out peer.p12\n\
                      certutil -A -d $nss -n ca -t CT,, -i ca.pem\n\
                      pk12util -i peer.p12 -d $nss -W x\n"
                .into();
        }
        let line = format!(
            "nss=sql:/var/lib/ipsec/nss\nmkdir -p /run/pluto /var/lib/ipsec/nss d\n\
             certutil -N -d $nss --empty-password\n{import}\
             export LD_PRELOAD={}\n\
             exec /usr/libexec/ipsec/pluto --nofork --stderrlog --rundir /run/pluto --no-dnssec \
             --config $PWD/ipsec.conf --secretsfile $PWD/secrets --ipsecdir $PWD/d",
            pretend().display()
        );
        let daemon = world.start(Peer::Libreswan, &line).unwrap();
        let pluto = Self { daemon, world };
        let end = Instant::now() + Duration::from_secs(15);
        while !pluto.log().contains("added IKEv2 connection")
            || !pluto.log().contains("loading secrets")
        {
            assert!(Instant::now() < end, "{}", pluto.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        pluto
    }

    fn whack(&self, line: &str) -> Command {
        let mut command = self.daemon.enter();
        command.args(["/usr/libexec/ipsec/whack", "--rundir", "/run/pluto"]);
        command.args(line.split(' '));
        command
    }

    /// Lets pluto begin, if that is wanted.
    fn begin(&self, us: &mut Us, wanted: &Wanted) {
        if !wanted.initiate {
            us.beside(&mut self.whack("--name t --initiate --asynchronous"));
        }
    }

    fn log(&self) -> String {
        self.world.text("output")
    }

    /// Whether pluto holds an established IKE SA.
    fn holds(&self) -> bool {
        let output = self.whack("--showstates").output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("ESTABLISHED_IKE_SA")
    }
}

/// Prints pluto's log when the test fails.
impl Drop for Pluto {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let at = log.find("listening for IKE").unwrap_or(0);
            println!("{}", &log[at..]);
        }
    }
}

fn test(name: &str, body: impl FnOnce() + Send + 'static) {
    run_alone(name, Peer::Libreswan, body);
}

fn established(wanted: &Wanted, told: Told) -> (Pluto, Us) {
    let pluto = Pluto::start(wanted, told);
    let mut us = Us::new(wanted);
    us.go();
    pluto.begin(&mut us, wanted);
    us.established();
    (pluto, us)
}

/// Pre-shared keys, each key exchange, either end beginning.
fn plain(v6: bool, mode: SaMode, initiate: bool) {
    for ke in [KeMethod::X25519, KeMethod::P256, KeMethod::P384] {
        let wanted = Wanted {
            v6,
            mode,
            ke,
            initiate,
            ..Wanted::default()
        };
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        assert_eq!(us.ups[0].initiator, initiate);
        assert_eq!(us.made[0].mode, mode);
        assert!(!us.ups[0].nat);
        us.wait(Duration::from_millis(200));
        assert_eq!(us.failures, []);
        assert_eq!(us.children().len(), 1, "{}", us.story());
        assert!(pluto.holds());
    }
}

#[test]
fn tunnels_over_ipv4() {
    test("tunnels_over_ipv4", || {
        plain(false, SaMode::Tunnel, true);
        plain(false, SaMode::Tunnel, false);
    });
}

#[test]
fn tunnels_over_ipv6() {
    test("tunnels_over_ipv6", || {
        plain(true, SaMode::Tunnel, true);
        plain(true, SaMode::Tunnel, false);
    });
}

#[test]
fn transport_over_ipv4() {
    test("transport_over_ipv4", || {
        plain(false, SaMode::Transport, true);
        plain(false, SaMode::Transport, false);
    });
}

#[test]
fn transport_over_ipv6() {
    test("transport_over_ipv6", || {
        plain(true, SaMode::Transport, true);
        plain(true, SaMode::Transport, false);
    });
}

#[test]
fn certificates_with_ecdsa() {
    test("certificates_with_ecdsa", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                secret: None,
                ..Wanted::default()
            };
            let (pluto, mut us) = certified(&wanted, [true, true]);
            pluto.begin(&mut us, &wanted);
            us.established();
            assert!(us.ups[0].certificate);
        }
    });
}

/// Certificates for both ends; whether of the trusted CA: pluto's and ours.
fn certified(wanted: &Wanted, trusted: [bool; 2]) -> (Pluto, Us) {
    let (authority, other) = (Authority::new(), Authority::new());
    let of = |good| if good { &authority } else { &other };
    let mut told = Told::by(wanted);
    let peer = of(trusted[0]).issue("peer", KeyType::EcdsaP256);
    told.certificates = Some((peer, authority.ca.certificate_pem()));
    let pluto = Pluto::start(wanted, told);
    let mut us = Us::new(wanted);
    let own = of(trusted[1]).issue("us", KeyType::EcdsaP256);
    us.certified(authority.verifier(), own.into_identity(US));
    us.go();
    (pluto, us)
}

#[test]
fn our_certificate_of_another_ca_is_refused() {
    test("our_certificate_of_another_ca_is_refused", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                secret: None,
                ..Wanted::default()
            };
            let (pluto, mut us) = certified(&wanted, [true, false]);
            pluto.begin(&mut us, &wanted);
            if initiate {
                us.until("pluto's refusal", 6, |us| {
                    failed(us, FailedCheck::RefusedByPeer)
                });
                assert!(us.standing().is_empty() && us.children().is_empty());
            } else {
                // It ends its half without a word (no AUTHENTICATION_FAILED, RFC 7296, 2.21.2):
                // ours stands until liveness ends it.
                us.until("pluto's decision", 6, |_| {
                    pluto.log().contains("certificate payload rejected")
                });
            }
            assert!(!pluto.holds());
        }
    });
}

#[test]
fn its_certificate_of_another_ca_is_named() {
    test("its_certificate_of_another_ca_is_named", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                initiate,
                secret: None,
                ..Wanted::default()
            };
            let (pluto, mut us) = certified(&wanted, [false, true]);
            pluto.begin(&mut us, &wanted);
            us.until("a failure that names the CA", 6, |us| {
                failed(us, FailedCheck::CertificateUnknownCa)
            });
            assert!(us.standing().is_empty() && us.children().is_empty());
        }
    });
}

#[test]
fn forced_encapsulation_moves_to_port_4500() {
    test("forced_encapsulation_moves_to_port_4500", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                forced: true,
                initiate,
                ..Wanted::default()
            };
            let (_pluto, us) = established(&wanted, Told::by(&wanted));
            assert!(us.ups[0].nat);
            assert_eq!(us.ups[0].remote.port(), 4500);
        }
    });
}

#[test]
fn pluto_asks_for_encapsulation() {
    test("pluto_asks_for_encapsulation", || {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.more = " encapsulation=yes\n";
        let (_pluto, us) = established(&wanted, told);
        assert!(us.ups[0].nat);
        assert_eq!(us.ups[0].remote.port(), 4500);
    });
}

/// Two rekeys of the child and two of the IKE SA.
fn rekeys(initiate: bool, ours: bool) {
    let wanted = Wanted {
        initiate,
        ..Wanted::default()
    };
    let (pluto, mut us) = established(&wanted, Told::by(&wanted));
    for n in 2..=3 {
        let old = us.sending.unwrap();
        if ours {
            let now = us.now();
            us.engine.rekey_child(old, now).unwrap();
            us.drain();
        } else {
            us.beside(&mut pluto.whack("--name t --rekey-ipsec --asynchronous"));
        }
        us.until("a successor of the child", 8, |us| {
            us.made.len() == n && us.sending.is_some_and(|c| c != old)
        });
        assert_eq!(us.made[n - 1].replaces, Some(old));
        us.until("the end of the old child", 10, |us| {
            us.children().len() == 1
        });
    }
    for n in 2..=3 {
        if ours {
            let now = us.now();
            us.engine.rekey_ike(&us.peer.clone(), now).unwrap();
            us.drain();
        } else {
            us.beside(&mut pluto.whack("--name t --rekey-ike --asynchronous"));
        }
        us.until("a successor of the IKE SA", 8, |us| {
            us.ups.len() == n && us.standing().len() == 1
        });
    }
    assert_eq!(us.children().len(), 1);
    assert_eq!(us.failures, []);
    let old = us.sending.unwrap();
    let now = us.now();
    us.engine.rekey_child(old, now).unwrap();
    us.until("a rekey on the new IKE SA", 8, |us| {
        us.sending.is_some_and(|c| c != old)
    });
}

#[test]
fn rekeys_by_us() {
    test("rekeys_by_us", || {
        rekeys(true, true);
        rekeys(false, true);
    });
}

#[test]
fn rekeys_by_pluto() {
    test("rekeys_by_pluto", || {
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
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        let now = us.now();
        us.engine.close(&us.peer.clone(), now).unwrap();
        us.until("the end", 5, |us| {
            us.standing().is_empty() && us.children().is_empty()
        });
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Closed);
        us.until("the end at pluto", 5, |_| !pluto.holds());
    });
}

#[test]
fn pluto_deletes() {
    test("pluto_deletes", || {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        us.beside(&mut pluto.whack("--name t --terminate"));
        us.until("the end", 5, |us| {
            us.standing().is_empty() && us.children().is_empty()
        });
        let down = us.ups[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
    });
}

#[test]
fn we_notice_that_pluto_died() {
    test("we_notice_that_pluto_died", || {
        let wanted = Wanted {
            liveness: Duration::from_secs(1),
            initiate: false,
            ..Wanted::default()
        };
        let (mut pluto, mut us) = established(&wanted, Told::by(&wanted));
        let before = us.engine.counters().datagrams_in;
        us.wait(Duration::from_secs(3));
        assert!(us.engine.counters().datagrams_in > before);
        assert_eq!(us.standing().len(), 1);
        pluto.daemon.kill();
        us.until("pluto taken for dead", 25, |us| us.standing().is_empty());
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Dead);
    });
}

#[test]
fn pluto_notices_that_we_died() {
    test("pluto_notices_that_we_died", || {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.more = " dpddelay=1\n dpdtimeout=4\n dpdaction=clear\n";
        let (pluto, mut us) = established(&wanted, told);
        let before = us.engine.counters().datagrams_in;
        us.wait(Duration::from_millis(2500));
        assert!(us.engine.counters().datagrams_in > before, "it asks");
        assert_eq!(us.standing().len(), 1);
        drop(us);
        let end = Instant::now() + Duration::from_secs(15);
        while pluto.holds() {
            assert!(Instant::now() < end, "pluto holds on");
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
            us.until("a failure that names the key", 8, |us| failed(us, check));
            assert!(us.ups.is_empty() && us.made.is_empty());
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
            told.ike = "aes256-sha1-modp2048".into();
            let pluto = Pluto::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.go();
            pluto.begin(&mut us, &wanted);
            if initiate {
                us.until("a failure that names the proposal", 12, |us| {
                    failed(us, FailedCheck::Proposal)
                });
            } else {
                us.until("our refusal", 8, |_| {
                    pluto.log().contains("NO_PROPOSAL_CHOSEN")
                });
            }
            assert!(us.ups.is_empty());
        }
    });
}

#[test]
fn no_common_esp_proposal_is_named() {
    test("no_common_esp_proposal_is_named", || {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.esp = "aes128-sha2_256";
        let _pluto = Pluto::start(&wanted, told);
        let mut us = Us::new(&wanted);
        us.go();
        us.until("a failure that names the child", 8, |us| {
            let of_child = |f: &testudo_ike::Failure| f.child.as_deref() == Some("net");
            let about = |f: &testudo_ike::Failure| f.check == FailedCheck::Proposal;
            us.failures.iter().any(|f| of_child(f) && about(f))
        });
        assert!(us.made.is_empty());
    });
}

#[test]
fn another_key_exchange_is_asked_for() {
    test("another_key_exchange_is_asked_for", || {
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

#[test]
fn modp_2048_for_old_peers() {
    test("modp_2048_for_old_peers", || {
        for initiate in [true, false] {
            let wanted = Wanted {
                ke: KeMethod::Modp2048,
                initiate,
                ..Wanted::default()
            };
            let (_pluto, us) = established(&wanted, Told::by(&wanted));
            assert!(
                us.ups[0].suite.ends_with("MODP_2048"),
                "{}",
                us.ups[0].suite
            );
        }
    });
}
