//! strongSwan of Debian's next release: what differs from the older one in its state machines.

use testudo_crypto::{KeMethod, KeyType};
use testudo_interop::Peer;

use crate::alike::life::rekeys;
use crate::alike::{Them, established};
use crate::certificates::Authority;
use crate::charon::{Charon, Told};
use crate::ours::Us;
use crate::wanted::{US, Wanted, run_alone};

fn on_next_charon(body: impl FnOnce() + Send + 'static) {
    run_alone(Peer::NextStrongSwan, body);
}

#[test]
fn pre_shared_keys() {
    on_next_charon(|| {
        for initiate in [true, false] {
            for (ke, v6) in [(KeMethod::X25519, false), (KeMethod::P521, true)] {
                let wanted = Wanted {
                    ke,
                    v6,
                    ..Wanted::begun_by_us(initiate)
                };
                let (charon, mut us) = established(&wanted, Told::next(&wanted));
                charon.settles(&mut us, 1, 1);
            }
        }
    });
}

#[test]
fn certificates() {
    on_next_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let authority = Authority::new();
            let mut told = Told::next(&wanted);
            let peer = authority.issue("peer", KeyType::EcdsaP256);
            told.certificates = Some((peer, authority.ca.certificate_pem()));
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            let own = authority.issue("us", KeyType::EcdsaP256).into_identity(US);
            us.certified(authority.verifier(), own);
            us.go();
            charon.begin(&mut us, &wanted);
            us.established();
            us.ping();
        }
    });
}

#[test]
fn rekeys_by_us() {
    on_next_charon(|| {
        rekeys(Told::next, true, true);
        rekeys(Told::next, false, true);
    });
}

#[test]
fn rekeys_by_charon() {
    on_next_charon(|| {
        rekeys(Told::next, true, false);
        rekeys(Told::next, false, false);
    });
}
