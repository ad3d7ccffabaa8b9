//! libreswan: rekeys, deletions, liveness.

use std::time::{Duration, Instant};

use testudo_ike::DownReason;

use crate::pluto::{Told, established, on_pluto};
use crate::wanted::{PATIENCE, Wanted};

/// Two rekeys of the child and two of the IKE SA.
pub fn rekeys(told: fn(&Wanted) -> Told, initiate: bool, ours: bool) {
    let wanted = Wanted::begun_by_us(initiate);
    let (pluto, mut us) = established(&wanted, told(&wanted));
    for n in 2..=3 {
        let old = us.sending.unwrap();
        if ours {
            us.rekey_child();
        } else {
            pluto.rekey_child(&mut us);
        }
        us.until("a successor of the child", |us| {
            us.made.len() == n && us.sending.is_some_and(|c| c != old)
        });
        assert_eq!(us.made[n - 1].replaces, Some(old));
        us.until("the end of the old child", |us| us.children().len() == 1);
    }
    for n in 2..=3 {
        if ours {
            us.rekey_ike();
        } else {
            pluto.rekey_ike(&mut us);
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() == n && us.standing().len() == 1
        });
    }
    assert_eq!(us.children().len(), 1);
    assert_eq!(us.failures, []);
    let old = us.sending.unwrap();
    us.rekey_child();
    us.until("a rekey on the new IKE SA", |us| {
        us.sending.is_some_and(|c| c != old)
    });
}

#[test]
fn rekeys_by_us() {
    on_pluto(|| {
        rekeys(Told::by, true, true);
        rekeys(Told::by, false, true);
    });
}

#[test]
fn rekeys_by_pluto() {
    on_pluto(|| {
        rekeys(Told::by, true, false);
        rekeys(Told::by, false, false);
    });
}

#[test]
fn we_delete() {
    on_pluto(|| {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        let now = us.now();
        us.engine.close(&us.peer.clone(), now).unwrap();
        us.until("the end", |us| {
            us.standing().is_empty() && us.children().is_empty()
        });
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Closed);
        us.until("the end at pluto", |_| !pluto.holds());
    });
}

#[test]
fn pluto_deletes() {
    on_pluto(|| {
        let wanted = Wanted {
            initiate: false,
            ..Wanted::default()
        };
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        us.beside(&mut pluto.whack("--name t --terminate"));
        us.until("the end", |us| {
            us.standing().is_empty() && us.children().is_empty()
        });
        let down = us.ups[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
    });
}

#[test]
fn we_notice_that_pluto_died() {
    on_pluto(|| {
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
        us.until("pluto taken for dead", |us| us.standing().is_empty());
        assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Dead);
    });
}

#[test]
fn pluto_notices_that_we_died() {
    on_pluto(|| {
        let wanted = Wanted::default();
        let mut told = Told::by(&wanted);
        told.more = " dpddelay=1\n dpdtimeout=4\n dpdaction=clear\n".into();
        let (pluto, mut us) = established(&wanted, told);
        let before = us.engine.counters().datagrams_in;
        us.wait(Duration::from_millis(2500));
        assert!(us.engine.counters().datagrams_in > before, "it asks");
        assert_eq!(us.standing().len(), 1);
        drop(us);
        let end = Instant::now() + PATIENCE;
        while pluto.holds() {
            assert!(Instant::now() < end, "pluto holds on");
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}
