//! Certificates of each kind, chains.

use testudo_crypto::KeyType;

use super::{Tell, Them};
use crate::certificates::{Authority, ForeignCa, Issued, Kind};
use crate::ours::Us;
use crate::wanted::{US, Wanted};

/// Both ends with certificates, each trusting a CA; the daemon is told what `change` says.
pub fn meet<T: Tell>(
    wanted: &Wanted,
    [own, peer]: [Issued; 2],
    [ours, theirs]: [&ForeignCa; 2],
    change: impl FnOnce(&mut T),
) -> (T::Them, Us) {
    let mut told = T::by(wanted);
    *told.terms().certificates = Some((peer, theirs.certificate_pem()));
    change(&mut told);
    let them = T::Them::start(wanted, told);
    let mut us = Us::new(wanted);
    us.certified(ours.verifier(), own.into_identity(US));
    us.go();
    (them, us)
}

/// Begins and passes packets.
pub fn agree<P: Them>(them: &P, us: &mut Us, wanted: &Wanted) {
    them.begin(us, wanted);
    us.established();
    them.ping(us);
    assert!(us.ups[0].certificate);
    them.settles(us, 1, 1);
    assert_eq!(us.failures, []);
}

/// Testudo's own CA for both ends; whether of the trusted one: the daemon's and ours.
pub fn certified<P: Them>(wanted: &Wanted, kind: KeyType, trusted: [bool; 2]) -> (P, Us) {
    let (authority, other) = (Authority::new(), Authority::new());
    let of = |good| if good { &authority } else { &other };
    let mut told = P::Told::by(wanted);
    let peer = of(trusted[0]).issue("peer", kind);
    *told.terms().certificates = Some((peer, authority.ca.certificate_pem()));
    let them = P::start(wanted, told);
    let mut us = Us::new(wanted);
    let own = of(trusted[1]).issue("us", kind);
    us.certified(authority.verifier(), own.into_identity(US));
    us.go();
    (them, us)
}

/// Certificates of Testudo's own CA, either end beginning.
pub fn of_ours<P: Them>(kind: KeyType, v6: bool) {
    for initiate in [true, false] {
        let wanted = Wanted {
            v6,
            ..Wanted::certified(initiate)
        };
        let (them, mut us) = certified::<P>(&wanted, kind, [true, true]);
        agree(&them, &mut us, &wanted);
    }
}

/// The daemon has an RSA key; we have ECDSA.
pub fn its_rsa<T: Tell>(initiate: bool, kind: Kind, change: impl FnOnce(&mut T)) {
    let wanted = Wanted::certified(initiate);
    let ca = ForeignCa::new(kind);
    let issued = [ca.issue("us", Kind::P256), ca.issue("peer", kind)];
    let (them, mut us) = meet(&wanted, issued, [&ca, &ca], change);
    agree(&them, &mut us, &wanted);
}

/// We have an RSA key, and sign with it.
pub fn our_rsa<T: Tell>(change: impl Fn(&mut T)) {
    for (initiate, kind) in [(true, Kind::Rsa2048), (false, Kind::Rsa3072)] {
        let wanted = Wanted::certified(initiate);
        let ca = ForeignCa::new(Kind::P256);
        let issued = [ca.issue("us", kind), ca.issue("peer", Kind::P256)];
        let (them, mut us) = meet(&wanted, issued, [&ca, &ca], &change);
        agree(&them, &mut us, &wanted);
    }
}

/// Each end under an intermediate CA of its own kind, of one root that both trust. Each must send
/// the intermediate, which the other lacks.
pub fn intermediate_cas<T: Tell>(kind: Kind, change: impl Fn(&mut T)) {
    for initiate in [true, false] {
        let wanted = Wanted::certified(initiate);
        let root = ForeignCa::new(Kind::P384);
        let subs = [0, 1].map(|_| root.subordinate(kind));
        let issued = [
            subs[0].issue("us", Kind::P256),
            subs[1].issue("peer", Kind::P256),
        ];
        let (them, mut us) = meet(&wanted, issued, [&root, &root], &change);
        agree(&them, &mut us, &wanted);
    }
}

/// Each end trusts only the other's CA: CERTREQ names another than its own.
pub fn roots_of_their_own<P: Them>() {
    for initiate in [true, false] {
        let wanted = Wanted::certified(initiate);
        let roots = [0, 1].map(|_| ForeignCa::new(Kind::P256));
        let issued = [
            roots[0].issue("us", Kind::P256),
            roots[1].issue("peer", Kind::P256),
        ];
        let trusted = [&roots[1], &roots[0]];
        let (them, mut us) = meet(&wanted, issued, trusted, |_: &mut P::Told| {});
        agree(&them, &mut us, &wanted);
    }
}
