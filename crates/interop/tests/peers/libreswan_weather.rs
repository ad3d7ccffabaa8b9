//! libreswan: messages that are lost.

use crate::alike::{Tell, Them};
use crate::ours::Us;
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::Wanted;

/// What either end does.
type Act = (fn(&mut Us), fn(&Pluto, &mut Us));

const CHILD: Act = (Us::rekey_child, Pluto::rekey_child);
const IKE: Act = (Us::rekey_ike, Pluto::rekey_ike);

/// A tenth of the IKE messages is lost from before the first one on: pluto tries six times.
#[test]
fn lost_messages_are_sent_again() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted::begun_by_us(initiate);
            let pluto = Pluto::start(&wanted, Told::by(&wanted));
            pluto.world.lose(10).unwrap();
            let mut us = Us::new(&wanted);
            us.go();
            pluto.begin(&mut us, &wanted);
            us.established();
            for (ours, theirs) in [CHILD, IKE, CHILD] {
                for by_us in [true, false] {
                    let before = us.made.len() + us.ups.len();
                    match by_us {
                        true => ours(&mut us),
                        false => theirs(&pluto, &mut us),
                    }
                    us.until("a successor", |us| us.made.len() + us.ups.len() > before);
                    us.until("one of each", Us::is_tidy);
                }
            }
            pluto.settles(&mut us, 1, 1);
            assert_eq!(us.failures, []);
        }
    });
}
