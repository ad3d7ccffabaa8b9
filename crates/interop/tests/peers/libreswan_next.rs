//! libreswan of Debian's next release: what differs from the older one in its state machines.

use testudo_interop::Peer;
use testudo_model::SaMode;

use crate::alike::life::rekeys;
use crate::alike::{Them, established};
use crate::pluto::Told;
use crate::wanted::{Wanted, run_alone};

fn on_next_pluto(body: impl FnOnce() + Send + 'static) {
    run_alone(Peer::NextLibreswan, body);
}

#[test]
fn pre_shared_keys() {
    on_next_pluto(|| {
        for (initiate, mode) in [(true, SaMode::Tunnel), (false, SaMode::Transport)] {
            let wanted = Wanted {
                mode,
                ..Wanted::begun_by_us(initiate)
            };
            let (pluto, mut us) = established(&wanted, Told::next(&wanted));
            pluto.settles(&mut us, 1, 1);
        }
    });
}

#[test]
fn rekeys_by_us() {
    on_next_pluto(|| {
        rekeys(Told::next, true, true);
        rekeys(Told::next, false, true);
    });
}

#[test]
fn rekeys_by_pluto() {
    on_next_pluto(|| {
        rekeys(Told::next, true, false);
        rekeys(Told::next, false, false);
    });
}
