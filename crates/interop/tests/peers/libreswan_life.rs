//! libreswan: rekeys, deletions, liveness.

use crate::alike::{Tell, established, life};
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::Wanted;

#[test]
fn rekeys_by_us() {
    on_pluto(|| {
        life::rekeys(Told::by, true, true);
        life::rekeys(Told::by, false, true);
    });
}

#[test]
fn rekeys_by_pluto() {
    on_pluto(|| {
        life::rekeys(Told::by, true, false);
        life::rekeys(Told::by, false, false);
    });
}

#[test]
fn we_delete() {
    on_pluto(life::we_delete::<Pluto>);
}

#[test]
fn pluto_deletes() {
    on_pluto(|| {
        let wanted = Wanted::begun_by_us(false);
        let (pluto, mut us) = established(&wanted, Told::by(&wanted));
        life::it_deletes(&pluto, &mut us);
    });
}

#[test]
fn we_notice_that_pluto_died() {
    on_pluto(life::we_notice_that_it_died::<Pluto>);
}

#[test]
fn pluto_notices_that_we_died() {
    on_pluto(life::it_notices_that_we_died::<Pluto>);
}
