//! strongSwan: certificates of each kind, chains, revocation.

use testudo_crypto::{KeyType, SignatureScheme};
use testudo_ike::{FailedCheck, Suites};

use crate::alike::certificates::{
    agree, intermediate_cas, its_rsa, meet, of_ours, our_rsa, roots_of_their_own,
};
use crate::alike::{Tell, Them};
use crate::certificates::{ForeignCa, Kind};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::{US, Wanted};

#[test]
fn certificates_with_ecdsa_p256() {
    on_charon(|| of_ours::<Charon>(KeyType::EcdsaP256, false));
}

#[test]
fn certificates_with_ecdsa_p384() {
    on_charon(|| of_ours::<Charon>(KeyType::EcdsaP384, false));
}

#[test]
fn certificates_with_ecdsa_p521() {
    on_charon(|| of_ours::<Charon>(KeyType::EcdsaP521, false));
}

#[test]
fn certificates_with_ed25519() {
    on_charon(|| of_ours::<Charon>(KeyType::Ed25519, false));
}

#[test]
fn certificates_over_ipv6() {
    on_charon(|| of_ours::<Charon>(KeyType::EcdsaP256, true));
}

fn rsa(kind: Kind, settings: &str) {
    for initiate in [true, false] {
        its_rsa(initiate, kind, |told: &mut Told| {
            told.settings = settings.into();
        });
    }
}

// RFC 7427, A.4.2: sha256WithRSAEncryption.
#[test]
fn its_rsa_signatures_with_pkcs1() {
    on_charon(|| rsa(Kind::Rsa2048, ""));
}

// RFC 7427, A.4.3: RSASSA-PSS.
#[test]
fn its_rsa_signatures_with_pss() {
    on_charon(|| rsa(Kind::Rsa3072, "rsa_pss = yes"));
}

#[test]
fn our_rsa_signatures() {
    on_charon(|| our_rsa(|_: &mut Told| {}));
}

#[test]
fn intermediate_cas_travel_along() {
    on_charon(|| intermediate_cas(Kind::P256, |_: &mut Told| {}));
}

#[test]
fn a_chain_of_two_intermediate_cas() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let root = ForeignCa::new(Kind::P256);
            let upper = root.subordinate(Kind::P256);
            let subs = [0, 1].map(|_| upper.subordinate(Kind::P256));
            let issued = [
                subs[0].issue("us", Kind::P256),
                subs[1].issue("peer", Kind::P256),
            ];
            let (charon, mut us) = meet(&wanted, issued, [&root, &root], |_: &mut Told| {});
            agree(&charon, &mut us, &wanted);
        }
    });
}

// Lesson L42.
#[test]
fn each_end_has_its_own_root() {
    on_charon(roots_of_their_own::<Charon>);
}

#[test]
fn without_the_intermediate_either_end_refuses() {
    on_charon(|| {
        for (initiate, of_us) in [(true, true), (true, false), (false, false)] {
            let wanted = Wanted::certified(initiate);
            let root = ForeignCa::new(Kind::P256);
            // One each: charon keeps what it sees of the other's, and would send it as its own.
            let subs = [0, 1].map(|_| root.subordinate(Kind::P256));
            let mut issued = [
                subs[0].issue("us", Kind::P256),
                subs[1].issue("peer", Kind::P256),
            ];
            issued[usize::from(!of_us)].chain.truncate(1);
            let (charon, mut us) = meet(&wanted, issued, [&root, &root], |_: &mut Told| {});
            charon.begin_in_vain(&mut us, &wanted);
            let check = match of_us {
                true => FailedCheck::RefusedByPeer,
                false => FailedCheck::CertificateUnknownCa,
            };
            us.until("a refusal", |us| us.failed(check));
            us.until("nothing left", |us| {
                us.children().is_empty() && us.standing().is_empty()
            });
        }
    });
}

/// A key type, padding or hash that is not for this peer is refused (lesson L34).
#[test]
fn a_signature_scheme_that_is_not_allowed() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted {
                suites: Some(Suites {
                    signatures: vec![SignatureScheme::EcdsaP256Sha256],
                    ..Suites::default()
                }),
                ..Wanted::certified(initiate)
            };
            let ca = ForeignCa::new(Kind::P256);
            let issued = [ca.issue("us", Kind::P256), ca.issue("peer", Kind::Rsa2048)];
            let (charon, mut us) = meet(&wanted, issued, [&ca, &ca], |_: &mut Told| {});
            charon.begin_in_vain(&mut us, &wanted);
            us.until("a refusal", |us| us.failed(FailedCheck::AuthMethod));
            us.until("nothing left", |us| us.standing().is_empty());
        }
    });
}

/// We have a list of the revoked, with charon's certificate on it or not.
#[test]
fn its_certificate_revoked_by_a_crl_is_refused() {
    on_charon(|| {
        for (initiate, revoked) in [(true, false), (true, true), (false, true)] {
            let wanted = Wanted::certified(initiate);
            let ca = ForeignCa::new(Kind::P256);
            let (own, peer) = (ca.issue("us", Kind::P256), ca.issue("peer", Kind::P256));
            let crl = ca.crl(&[if revoked { &peer } else { &own }]);
            let mut told = Told::by(&wanted);
            told.certificates = Some((peer, ca.certificate_pem()));
            let charon = Charon::start(&wanted, told);
            let mut us = Us::new(&wanted);
            us.certified(ca.verifier_with(&crl), own.into_identity(US));
            us.go();
            if !revoked {
                agree(&charon, &mut us, &wanted);
                continue;
            }
            charon.begin_in_vain(&mut us, &wanted);
            us.until("a refusal", |us| us.failed(FailedCheck::CertificateRevoked));
            us.until("nothing left", |us| us.standing().is_empty());
        }
    });
}

/// charon insists on a CRL and has one.
#[test]
fn our_certificate_revoked_by_a_crl_is_refused() {
    on_charon(|| {
        for revoked in [false, true] {
            let wanted = Wanted::certified(true);
            let ca = ForeignCa::new(Kind::P256);
            let issued = [ca.issue("us", Kind::P256), ca.issue("peer", Kind::P256)];
            let another = ca.issue("another", Kind::P256);
            let crl = ca.crl(&[if revoked { &issued[0] } else { &another }]);
            let (charon, mut us) = meet(&wanted, issued, [&ca, &ca], |told: &mut Told| {
                told.remote = "revocation = strict".into();
                told.files = vec![("x509crl/ca.pem", crl)];
            });
            if revoked {
                us.until("a refusal", |us| us.failed(FailedCheck::RefusedByPeer));
                assert!(charon.log().contains("certificate was revoked"));
            } else {
                agree(&charon, &mut us, &wanted);
            }
        }
    });
}
