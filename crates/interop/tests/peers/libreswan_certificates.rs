//! libreswan: certificates of each kind, chains.

use testudo_crypto::KeyType;

use crate::certificates::{Authority, ForeignCa, Issued, Kind};
use crate::ours::Us;
use crate::pluto::{Pluto, Told, on_pluto};
use crate::wanted::{US, Wanted};

/// Certificates for both ends; whether of the trusted CA: pluto's and ours.
pub fn certified(wanted: &Wanted, kind: KeyType, trusted: [bool; 2]) -> (Pluto, Us) {
    let (authority, other) = (Authority::new(), Authority::new());
    let of = |good| if good { &authority } else { &other };
    let mut told = Told::by(wanted);
    let peer = of(trusted[0]).issue("peer", kind);
    told.certificates = Some((peer, authority.ca.certificate_pem()));
    let pluto = Pluto::start(wanted, told);
    let mut us = Us::new(wanted);
    let own = of(trusted[1]).issue("us", kind);
    us.certified(authority.verifier(), own.into_identity(US));
    us.go();
    (pluto, us)
}

fn agree(pluto: &Pluto, us: &mut Us, wanted: &Wanted) {
    pluto.begin(us, wanted);
    us.established();
    assert!(us.ups[0].certificate);
    pluto.settles(us, 1, 1);
    assert_eq!(us.failures, []);
}

/// Certificates of Testudo's own CA.
fn ours(kind: KeyType, v6: bool) {
    for initiate in [true, false] {
        let wanted = Wanted {
            v6,
            ..Wanted::certified(initiate)
        };
        let (pluto, mut us) = certified(&wanted, kind, [true, true]);
        agree(&pluto, &mut us, &wanted);
    }
}

#[test]
fn certificates_with_ecdsa_p256() {
    on_pluto(|| ours(KeyType::EcdsaP256, false));
}

#[test]
fn certificates_with_ecdsa_p384() {
    on_pluto(|| ours(KeyType::EcdsaP384, false));
}

#[test]
fn certificates_with_ecdsa_p521() {
    on_pluto(|| ours(KeyType::EcdsaP521, false));
}

#[test]
fn certificates_over_ipv6() {
    on_pluto(|| ours(KeyType::EcdsaP256, true));
}

/// Both ends with certificates, each trusting a CA; pluto is told what `change` says.
fn meet(
    wanted: &Wanted,
    [own, peer]: [Issued; 2],
    [ours, theirs]: [&ForeignCa; 2],
    change: impl FnOnce(&mut Told),
) -> (Pluto, Us) {
    let mut told = Told::by(wanted);
    told.certificates = Some((peer, theirs.certificate_pem()));
    change(&mut told);
    let pluto = Pluto::start(wanted, told);
    let mut us = Us::new(wanted);
    us.certified(ours.verifier(), own.into_identity(US));
    us.go();
    (pluto, us)
}

/// pluto has an RSA key, and signs with RSASSA-PSS (RFC 7427, A.4.3); we have ECDSA.
#[test]
fn its_rsa_signatures() {
    on_pluto(|| {
        for (initiate, kind) in [(true, Kind::Rsa2048), (false, Kind::Rsa3072)] {
            let wanted = Wanted::certified(initiate);
            let ca = ForeignCa::new(kind);
            let issued = [ca.issue("us", Kind::P256), ca.issue("peer", kind)];
            let (pluto, mut us) = meet(&wanted, issued, [&ca, &ca], |told| {
                told.authby = "rsa-sha2,ecdsa-sha2";
                told.more = " leftauth=rsasig\n rightauth=ecdsa\n".into();
            });
            agree(&pluto, &mut us, &wanted);
        }
    });
}

/// We have an RSA key, and sign with it.
#[test]
fn our_rsa_signatures() {
    on_pluto(|| {
        for (initiate, kind) in [(true, Kind::Rsa2048), (false, Kind::Rsa3072)] {
            let wanted = Wanted::certified(initiate);
            let ca = ForeignCa::new(Kind::P256);
            let issued = [ca.issue("us", kind), ca.issue("peer", Kind::P256)];
            let (pluto, mut us) = meet(&wanted, issued, [&ca, &ca], |told| {
                told.authby = "rsa-sha2,ecdsa-sha2";
                told.more = " leftauth=ecdsa\n rightauth=rsasig\n".into();
            });
            agree(&pluto, &mut us, &wanted);
        }
    });
}

/// Each end under an intermediate CA of its own, of one root that both trust.
#[test]
fn intermediate_cas_travel_along() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let root = ForeignCa::new(Kind::P384);
            let subs = [0, 1].map(|_| root.subordinate(Kind::P521));
            let issued = [
                subs[0].issue("us", Kind::P256),
                subs[1].issue("peer", Kind::P256),
            ];
            let (pluto, mut us) = meet(&wanted, issued, [&root, &root], |told| {
                told.more = " sendca=all\n".into();
            });
            agree(&pluto, &mut us, &wanted);
        }
    });
}

/// Each end trusts only the other's CA: CERTREQ names another than its own (lesson L42).
#[test]
fn each_end_has_its_own_root() {
    on_pluto(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let roots = [0, 1].map(|_| ForeignCa::new(Kind::P256));
            let issued = [
                roots[0].issue("us", Kind::P256),
                roots[1].issue("peer", Kind::P256),
            ];
            let (pluto, mut us) = meet(&wanted, issued, [&roots[1], &roots[0]], |_| {});
            agree(&pluto, &mut us, &wanted);
        }
    });
}
