//! strongSwan: rekeys, deletions, liveness.

use std::time::{Duration, Instant};

use testudo_ike::DownReason;

use crate::charon::{Charon, Told, established, on_charon};
use crate::wanted::{PATIENCE, Wanted};

/// Two rekeys of the child and two of the IKE SA, packets after each.
pub fn rekeys(told: fn(&Wanted) -> Told, initiate: bool, ours: bool) -> Charon {
    let wanted = Wanted::begun_by_us(initiate);
    let (charon, mut us) = established(&wanted, told(&wanted));
    for n in 2..=3 {
        let old = us.sending.unwrap();
        if ours {
            us.rekey_child();
        } else {
            charon.order(&mut us, "--rekey --child net");
        }
        us.until("a successor of the child", |us| {
            us.made.len() == n && us.sending.is_some_and(|c| c != old)
        });
        assert_eq!(us.made[n - 1].replaces, Some(old));
        us.ping();
        us.until("the end of the old child", |us| us.children().len() == 1);
        us.ping();
    }
    for n in 2..=3 {
        if ours {
            us.rekey_ike();
        } else {
            charon.order(&mut us, "--rekey --ike t");
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() == n && us.standing().len() == 1
        });
        us.ping();
    }
    assert_eq!(us.children().len(), 1);
    assert_eq!(us.failures, []);
    // The successor of the child's successor is still rekeyed on the new IKE SA.
    let old = us.sending.unwrap();
    us.rekey_child();
    us.until("a rekey on the new IKE SA", |us| {
        us.sending.is_some_and(|c| c != old)
    });
    us.ping();
    charon
}

#[test]
fn rekeys_by_us() {
    on_charon(|| {
        rekeys(Told::by, true, true);
        rekeys(Told::by, false, true);
    });
}

#[test]
fn rekeys_by_charon() {
    on_charon(|| {
        rekeys(Told::by, true, false);
        rekeys(Told::by, false, false);
    });
}

#[test]
fn we_delete() {
    on_charon(|| {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        let now = us.now();
        us.engine.close(&us.peer.clone(), now).unwrap();
        us.until("the end", |us| {
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
    on_charon(|| {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.order(&mut us, "--terminate --child net");
        us.until("the end of the child", |us| us.children().is_empty());
        let down = us.made[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
        charon.order(&mut us, "--initiate --child net");
        us.established();
        us.ping();
        charon.order(&mut us, "--terminate --ike t");
        us.until("the end", |us| us.standing().is_empty());
        let down = us.ups[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
        assert!(us.children().is_empty());
    });
}

#[test]
fn what_charon_deletes_we_make_again() {
    on_charon(|| {
        let wanted = Wanted::default();
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        for line in ["--terminate --child net", "--terminate --ike t"] {
            let made = us.made.len();
            charon.order(&mut us, line);
            us.until("another child", |us| {
                us.made.len() > made && us.sending.is_some()
            });
            us.ping();
        }
    });
}

#[test]
fn each_end_sees_that_the_other_lives() {
    on_charon(|| {
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
    on_charon(|| {
        let wanted = Wanted {
            liveness: Duration::from_secs(1),
            initiate: false,
            ..Wanted::default()
        };
        let (mut charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.daemon.kill();
        us.until("charon taken for dead", |us| us.standing().is_empty());
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Dead);
        assert!(us.children().is_empty());
    });
}

#[test]
fn charon_notices_that_we_died() {
    on_charon(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.dpd = "1s";
        let (charon, us) = established(&wanted, told);
        drop(us);
        let end = Instant::now() + PATIENCE;
        loop {
            let output = charon.swanctl("--list-sas").output().unwrap();
            if !String::from_utf8_lossy(&output.stdout).contains("ESTABLISHED") {
                break;
            }
            assert!(Instant::now() < end, "charon holds on");
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}
