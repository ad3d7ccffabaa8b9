//! Rekeys, deletions, liveness.

use std::time::{Duration, Instant};

use testudo_ike::DownReason;

use super::{Tell, Them, established};
use crate::ours::Us;
use crate::wanted::{PATIENCE, Wanted};

/// Two rekeys of the child and two of the IKE SA, by us or by the daemon, packets after each.
pub fn rekeys<T: Tell>(told: fn(&Wanted) -> T, initiate: bool, ours: bool) -> T::Them {
    let wanted = Wanted::begun_by_us(initiate);
    let (them, mut us) = established(&wanted, told(&wanted));
    for n in 2..=3 {
        let old = us.sending.unwrap();
        match ours {
            true => us.rekey_child(),
            false => them.rekey_child(&mut us),
        }
        us.until("a successor of the child", |us| {
            us.made.len() == n && us.sending.is_some_and(|c| c != old)
        });
        assert_eq!(us.made[n - 1].replaces, Some(old));
        them.ping(&mut us);
        us.until("the end of the old child", |us| us.children().len() == 1);
        them.ping(&mut us);
    }
    for n in 2..=3 {
        match ours {
            true => us.rekey_ike(),
            false => them.rekey_ike(&mut us),
        }
        us.until("a successor of the IKE SA", |us| {
            us.ups.len() == n && us.standing().len() == 1
        });
        them.ping(&mut us);
    }
    assert_eq!(us.children().len(), 1);
    assert_eq!(us.failures, []);
    // The successor of the child's successor is still rekeyed on the new IKE SA.
    let old = us.sending.unwrap();
    us.rekey_child();
    us.until("a rekey on the new IKE SA", |us| {
        us.sending.is_some_and(|c| c != old)
    });
    them.ping(&mut us);
    them
}

fn ended(us: &mut Us) {
    us.until("the end", |us| {
        us.standing().is_empty() && us.children().is_empty()
    });
}

/// We end the IKE SA that the daemon began.
pub fn we_delete<P: Them>() {
    let wanted = Wanted::begun_by_us(false);
    let (them, mut us) = established(&wanted, P::Told::by(&wanted));
    let now = us.now();
    us.engine.close(&us.peer.clone(), now).unwrap();
    ended(&mut us);
    assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Closed);
    // A daemon may begin anew at once; while it is asked nobody answers that.
    us.until("the end at the daemon", |_| !them.is_up());
}

/// The daemon ends the IKE SA that it began.
pub fn it_deletes<P: Them>(them: &P, us: &mut Us) {
    them.terminate(us);
    ended(us);
    let down = us.ups[0].down.as_ref().unwrap();
    assert_eq!(down.reason, DownReason::PeerDeleted);
}

/// Each end asks whether the other lives, and is answered.
pub fn both_live(us: &mut Us) {
    let before = us.engine.counters().datagrams_in;
    us.wait(Duration::from_secs(3));
    assert!(us.engine.counters().datagrams_in > before);
    assert_eq!(us.standing().len(), 1, "{}", us.story());
}

/// The daemon is killed.
pub fn we_notice_that_it_died<P: Them>() {
    let wanted = Wanted {
        liveness: Duration::from_secs(1),
        ..Wanted::begun_by_us(false)
    };
    let (mut them, mut us) = established(&wanted, P::Told::by(&wanted));
    both_live(&mut us);
    them.daemon().kill();
    us.until("their end taken for dead", |us| us.standing().is_empty());
    assert_eq!(us.ups[0].down.as_ref().unwrap().reason, DownReason::Dead);
    assert!(us.children().is_empty());
}

/// Our end vanishes.
pub fn it_notices_that_we_died<P: Them>() {
    let wanted = Wanted::default();
    let mut told = P::Told::by(&wanted);
    told.probe();
    let (them, mut us) = established(&wanted, told);
    // Only it asks.
    both_live(&mut us);
    drop(us);
    let end = Instant::now() + PATIENCE;
    while them.is_up() {
        assert!(Instant::now() < end, "it holds on");
        std::thread::sleep(Duration::from_millis(200));
    }
}
