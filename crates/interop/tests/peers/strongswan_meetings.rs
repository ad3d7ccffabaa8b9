//! strongSwan: both ends beginning at once, beginning twice, reauthenticating, coming back
//! from a crash.

use std::process::{Command, Stdio};
use std::time::Duration;

use testudo_ike::DownReason;

use crate::alike::{Tell, Them, established};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::Wanted;

/// Both end with one IKE SA and one child, and packets pass. Lesson L57.
#[test]
fn both_begin_at_once() {
    on_charon(|| {
        for head_start in [0, 20] {
            let wanted = Wanted {
                liveness: Duration::from_secs(1),
                ..Wanted::default()
            };
            let charon = Charon::start(&wanted, Told::by(&wanted));
            let mut us = Us::new(&wanted);
            let mut order = charon.swanctl("--initiate --child net --timeout 45");
            let mut begun = order.stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(head_start));
            us.go();
            us.until("charon has begun", |_| begun.try_wait().unwrap().is_some());
            us.established();
            charon.settles(&mut us, 1, 1);
            us.until("one of each", Us::is_tidy);
            us.ping();
        }
    });
}

/// Orders in a heap lead to one IKE SA and one child. Lesson L60.
#[test]
fn charon_begins_several_times_at_once() {
    on_charon(|| {
        let wanted = Wanted::begun_by_us(false);
        let charon = Charon::start(&wanted, Told::by(&wanted));
        let mut us = Us::new(&wanted);
        us.go();
        let order = || charon.swanctl("--initiate --child net --timeout 45");
        let quiet = |mut order: Command| order.stdout(Stdio::null()).spawn().unwrap();
        let mut begun = [0; 4].map(|_| quiet(order()));
        us.until("charon has begun", |_| {
            begun.iter_mut().all(|b| b.try_wait().unwrap().is_some())
        });
        us.established();
        us.until("one of each", |us| {
            us.standing().len() == 1 && us.children().len() == 1
        });
        charon.settles(&mut us, 1, 1);
        us.ping();
    });
}

/// The old IKE SA is deleted, then a new one is made.
#[test]
fn charon_reauthenticates_with_a_break() {
    on_charon(|| drop(reauthenticates("make_before_break = no")));
}

/// The new IKE SA is made, with a child, then the old one is deleted. Lesson L62.
#[test]
fn charon_reauthenticates_without_a_break() {
    on_charon(|| {
        let lost = reauthenticates("make_before_break = yes");
        // charon deletes the old SA while packets on it may still wait in its own queue.
        assert!(lost.len() < 10, "{lost:?}");
    });
}

fn reauthenticates(settings: &str) -> Vec<u16> {
    let wanted = Wanted::begun_by_us(false);
    let mut told = Told::by(&wanted);
    told.settings = settings.into();
    told.connection = "reauth_time = 3s\n rand_time = 0s\n over_time = 20s\n".into();
    let (charon, mut us) = established(&wanted, told);
    let (_, lost) = us.flow("two reauthentications", |us| us.ups.len() >= 3);
    for up in &us.ups[..2] {
        let reason = up.down.as_ref().map(|down| down.reason);
        let expected = [Some(DownReason::PeerDeleted), Some(DownReason::Replaced)];
        assert!(expected.contains(&reason), "{}", us.story());
    }
    us.until("something to send on", |us| us.sending.is_some());
    us.ping();
    drop(charon);
    lost
}

/// charon is killed, comes back, knows nothing, and begins: INITIAL_CONTACT ends what we hold.
#[test]
fn charon_crashes_and_begins_again() {
    on_charon(|| {
        let wanted = Wanted::begun_by_us(false);
        let (mut charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.crash_and_return();
        charon.begin(&mut us, &wanted);
        us.until("a second IKE SA", |us| us.ups.len() == 2);
        let down = us.ups[0].down.as_ref().expect("the first one is down");
        assert_eq!(down.reason, DownReason::InitialContact);
        us.ping();
        assert_eq!((us.standing().len(), us.children().len()), (1, 1));
        charon.settles(&mut us, 1, 1);
    });
}

/// charon is killed and comes back; we notice by its silence and begin. Lesson L59.
#[test]
fn charon_crashes_and_we_begin_again() {
    on_charon(|| {
        let wanted = Wanted {
            liveness: Duration::from_secs(1),
            ..Wanted::default()
        };
        let (mut charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.crash_and_return();
        us.until("a second IKE SA", |us| {
            us.ups.len() == 2 && us.sending.is_some()
        });
        us.ping();
        assert_eq!((us.standing().len(), us.children().len()), (1, 1));
        charon.settles(&mut us, 1, 1);
    });
}

/// We forget everything and begin: charon holds only the new SAs.
#[test]
fn we_crash_and_begin_again() {
    on_charon(|| {
        let wanted = Wanted::default();
        let (charon, us) = established(&wanted, Told::by(&wanted));
        drop(us);
        let mut us = Us::new(&wanted);
        us.go();
        us.established();
        us.ping();
        charon.settles(&mut us, 1, 1);
    });
}
