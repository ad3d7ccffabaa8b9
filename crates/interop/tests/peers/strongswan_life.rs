//! strongSwan: rekeys, deletions, liveness.

use std::time::Duration;

use testudo_ike::DownReason;

use crate::alike::{Tell, established, life};
use crate::charon::{Charon, Told, on_charon};
use crate::wanted::Wanted;

#[test]
fn rekeys_by_us() {
    on_charon(|| {
        life::rekeys(Told::by, true, true);
        life::rekeys(Told::by, false, true);
    });
}

#[test]
fn rekeys_by_charon() {
    on_charon(|| {
        life::rekeys(Told::by, true, false);
        life::rekeys(Told::by, false, false);
    });
}

#[test]
fn we_delete() {
    on_charon(life::we_delete::<Charon>);
}

#[test]
fn charon_deletes() {
    on_charon(|| {
        let wanted = Wanted::begun_by_us(false);
        let (charon, mut us) = established(&wanted, Told::by(&wanted));
        charon.order(&mut us, "--terminate --child net");
        us.until("the end of the child", |us| us.children().is_empty());
        let down = us.made[0].down.as_ref().unwrap();
        assert_eq!(down.reason, DownReason::PeerDeleted);
        charon.order(&mut us, "--initiate --child net");
        us.established();
        us.ping();
        life::it_deletes(&charon, &mut us);
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
        told.probe();
        let (_charon, mut us) = established(&wanted, told);
        life::both_live(&mut us);
        us.ping();
    });
}

#[test]
fn we_notice_that_charon_died() {
    on_charon(life::we_notice_that_it_died::<Charon>);
}

#[test]
fn charon_notices_that_we_died() {
    on_charon(life::it_notices_that_we_died::<Charon>);
}
