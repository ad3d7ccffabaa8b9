//! libreswan: both ends beginning at once, beginning twice, reauthenticating, coming back from
//! a crash.

use std::time::Duration;

use testudo_ike::DownReason;

use crate::alike::{Tell, Them, established};
use crate::ours::Us;
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::Wanted;

/// pluto shows by its probes that it has got our last answer, as it would by ESP.
fn watchful(wanted: &Wanted) -> Told {
    let mut told = Told::by(wanted);
    told.more = " dpddelay=1\n dpdtimeout=60\n".into();
    told
}

/// Both end with one IKE SA and one child. Lesson L57.
#[test]
fn both_begin_at_once() {
    on_pluto(|| {
        for head_start in [0, 30] {
            let wanted = Wanted::default();
            let pluto = Pluto::start(&wanted, watchful(&wanted));
            let mut us = Us::new(&wanted);
            let mut order = pluto.whack("--name t --initiate --asynchronous");
            let mut begun = order.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(head_start));
            us.go();
            us.until("pluto has begun", |_| begun.try_wait().unwrap().is_some());
            us.established();
            pluto.settles(&mut us, 1, 1);
            us.until("one of each", Us::is_tidy);
        }
    });
}

/// Orders in a heap lead to one IKE SA and one child. Lesson L60.
#[test]
fn pluto_begins_several_times() {
    on_pluto(|| {
        let wanted = Wanted::begun_by_us(false);
        let pluto = Pluto::start(&wanted, watchful(&wanted));
        let mut us = Us::new(&wanted);
        us.go();
        for _ in 0..4 {
            us.beside(&mut pluto.whack("--name t --initiate --asynchronous"));
        }
        us.established();
        pluto.settles(&mut us, 1, 1);
        us.until("one of each", Us::is_tidy);
    });
}

/// pluto is killed, comes back, knows nothing, and begins: INITIAL_CONTACT, or a newer SA of
/// the same peer, ends what we hold. Lesson L59.
#[test]
fn pluto_crashes_and_begins_again() {
    on_pluto(|| {
        let wanted = Wanted::begun_by_us(false);
        let mut told = Told::by(&wanted);
        told.more = " initial-contact=yes\n".into();
        let (mut pluto, mut us) = established(&wanted, told);
        pluto.crash_and_return();
        pluto.begin(&mut us, &wanted);
        us.until("a second IKE SA", |us| us.ups.len() == 2);
        let down = us.ups[0].down.as_ref().expect("the first one is down");
        assert_eq!(down.reason, DownReason::InitialContact);
        us.until("one child", |us| us.children().len() == 1);
        pluto.settles(&mut us, 1, 1);
    });
}

/// pluto is killed and comes back; we notice by its silence and begin. Lesson L59.
#[test]
fn pluto_crashes_and_we_begin_again() {
    on_pluto(|| {
        let wanted = Wanted {
            liveness: Duration::from_secs(1),
            ..Wanted::default()
        };
        let (mut pluto, mut us) = established(&wanted, Told::by(&wanted));
        pluto.crash_and_return();
        us.until("a second IKE SA", |us| {
            us.ups.len() == 2 && us.sending.is_some()
        });
        assert_eq!((us.standing().len(), us.children().len()), (1, 1));
        pluto.settles(&mut us, 1, 1);
    });
}

/// We forget everything and begin: pluto holds only the new child, and the old IKE SA until
/// liveness or its lifetime ends it.
#[test]
fn we_crash_and_begin_again() {
    on_pluto(|| {
        let wanted = Wanted::default();
        let (pluto, us) = established(&wanted, Told::by(&wanted));
        drop(us);
        let mut us = Us::new(&wanted);
        us.go();
        us.established();
        pluto.settles(&mut us, 2, 1);
    });
}

/// pluto's lifetimes are some seconds: it makes a new IKE SA instead of rekeying the old one.
#[test]
fn pluto_reauthenticates() {
    on_pluto(|| {
        let wanted = Wanted::begun_by_us(false);
        let mut told = Told::by(&wanted);
        told.more = " reauth=yes\n ikelifetime=8s\n rekeymargin=4s\n rekeyfuzz=0%\n".into();
        let (_pluto, mut us) = established(&wanted, told);
        us.until("two reauthentications", |us| us.ups.len() >= 3);
        us.until("the first one's end", |us| us.ups[0].down.is_some());
        us.until("a child to send on", |us| us.sending.is_some());
    });
}

/// The same with rekeys, and of children too.
#[test]
fn pluto_rekeys_by_time() {
    on_pluto(|| {
        let wanted = Wanted::begun_by_us(false);
        let mut told = Told::by(&wanted);
        told.more = " reauth=no\n ikelifetime=14s\n salifetime=8s\n rekeymargin=4s\n \
                     rekeyfuzz=0%\n"
            .into();
        let (_pluto, mut us) = established(&wanted, told);
        us.until("rekeys", |us| us.ups.len() >= 2 && us.made.len() >= 3);
        assert_eq!(us.failures, []);
    });
}
