//! strongSwan: rekeys that cross, messages that are lost.

use std::process::Stdio;
use std::time::Duration;

use crate::alike::{Tell, Them, established};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::Wanted;

/// What either end does at once.
type Act = (fn(&mut Us), &'static str);

const CHILD: Act = (Us::rekey_child, "--rekey --child net");
const IKE: Act = (Us::rekey_ike, "--rekey --ike t");

/// charon is told first, and we begin after so many milliseconds: some of the requests cross.
fn cross(charon: &Charon, us: &mut Us, ours: Act, theirs: Act, delay: u64) {
    let before = us.made.len() + us.ups.len();
    let mut order = charon.swanctl(theirs.1);
    let mut order = order.stdout(Stdio::null()).spawn().unwrap();
    us.wait(Duration::from_millis(delay));
    ours.0(us);
    us.until("charon has done it", |_| {
        order.try_wait().unwrap().is_some()
    });
    us.until("something new", |us| us.made.len() + us.ups.len() > before);
    us.until("one of each", Us::is_tidy);
    charon.settles(us, 1, 1);
    us.until("one of each", Us::is_tidy);
    us.ping();
}

fn crossings(ours: Act, theirs: Act) {
    for initiate in [true, false] {
        let wanted = Wanted::begun_by_us(initiate);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        for delay in [0, 5, 10, 15, 20, 30] {
            cross(&charon, &mut us, ours, theirs, delay);
        }
    }
}

// Lessons L43 to L46, with a peer that is not of our making.
#[test]
fn rekeys_of_the_child_cross() {
    on_charon(|| crossings(CHILD, CHILD));
}

#[test]
fn rekeys_of_the_ike_sa_cross() {
    on_charon(|| crossings(IKE, IKE));
}

// Lesson L53.
#[test]
fn our_rekey_of_the_child_crosses_its_of_the_ike_sa() {
    on_charon(|| crossings(CHILD, IKE));
}

#[test]
fn our_rekey_of_the_ike_sa_crosses_its_of_the_child() {
    on_charon(|| crossings(IKE, CHILD));
}

/// A quarter of the IKE messages is lost from before the first one on.
#[test]
fn lost_messages_are_sent_again() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let charon = Charon::start(&wanted, Told::by(&wanted));
            charon.world.lose(25).unwrap();
            let mut us = Us::new(&wanted);
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            us.ping();
            for (ours, theirs) in [CHILD, IKE, CHILD] {
                for by_us in [true, false] {
                    let before = us.made.len() + us.ups.len();
                    match by_us {
                        true => ours(&mut us),
                        false => charon.order(&mut us, theirs),
                    }
                    us.until("a successor", |us| us.made.len() + us.ups.len() > before);
                    us.until("one of each", Us::is_tidy);
                    us.ping();
                }
            }
            charon.settles(&mut us, 1, 1);
            assert_eq!(us.failures, []);
        }
    });
}
