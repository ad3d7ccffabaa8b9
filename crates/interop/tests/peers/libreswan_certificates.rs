//! libreswan: certificates of each kind, chains.

use testudo_crypto::KeyType;

use crate::alike::certificates::{intermediate_cas, its_rsa, of_ours, our_rsa, roots_of_their_own};
use crate::certificates::Kind;
use crate::pluto::{Pluto, Told, on_pluto};

#[test]
fn certificates_with_ecdsa_p256() {
    on_pluto(|| of_ours::<Pluto>(KeyType::EcdsaP256, false));
}

#[test]
fn certificates_with_ecdsa_p384() {
    on_pluto(|| of_ours::<Pluto>(KeyType::EcdsaP384, false));
}

#[test]
fn certificates_with_ecdsa_p521() {
    on_pluto(|| of_ours::<Pluto>(KeyType::EcdsaP521, false));
}

#[test]
fn certificates_over_ipv6() {
    on_pluto(|| of_ours::<Pluto>(KeyType::EcdsaP256, true));
}

/// One end signs by RSA, the other by ECDSA.
fn mixed(told: &mut Told, its: &str, ours: &str) {
    told.authby = "rsa-sha2,ecdsa-sha2";
    told.more = format!(" leftauth={its}\n rightauth={ours}\n");
}

// RFC 7427, A.4.3: RSASSA-PSS.
#[test]
fn its_rsa_signatures() {
    on_pluto(|| {
        for (initiate, kind) in [(true, Kind::Rsa2048), (false, Kind::Rsa3072)] {
            its_rsa(initiate, kind, |told| mixed(told, "rsasig", "ecdsa"));
        }
    });
}

#[test]
fn our_rsa_signatures() {
    on_pluto(|| our_rsa(|told| mixed(told, "ecdsa", "rsasig")));
}

#[test]
fn intermediate_cas_travel_along() {
    on_pluto(|| {
        intermediate_cas(Kind::P521, |told: &mut Told| {
            told.more = " sendca=all\n".into();
        });
    });
}

// Lesson L42.
#[test]
fn each_end_has_its_own_root() {
    on_pluto(roots_of_their_own::<Pluto>);
}
