//! strongSwan: certificates of each kind, chains, revocation.

use testudo_crypto::{KeyType, SignatureScheme};
use testudo_ike::{FailedCheck, Suites};

use crate::certificates::{Authority, ForeignCa, Issued, Kind};
use crate::charon::{Charon, Told, on_charon};
use crate::ours::Us;
use crate::wanted::{US, Wanted};

/// Both ends with certificates, each trusting a CA; charon is told what `change` says.
fn meet(
    wanted: &Wanted,
    [own, peer]: [Issued; 2],
    [ours, theirs]: [&ForeignCa; 2],
    change: impl FnOnce(&mut Told),
) -> (Charon, Us) {
    let mut told = Told::by(wanted);
    told.certificates = Some((peer, theirs.certificate_pem()));
    change(&mut told);
    let charon = Charon::start(wanted, told);
    let mut us = Us::new(wanted);
    us.certified(ours.verifier(), own.into_identity(US));
    us.go();
    (charon, us)
}

/// Begins and passes packets.
fn agree(charon: &Charon, us: &mut Us, wanted: &Wanted) {
    charon.begin(us, wanted);
    us.established();
    us.ping();
    assert!(us.ups[0].certificate);
}

/// Certificates of Testudo's own CA.
fn certified(kind: KeyType, v6: bool) {
    for initiate in [true, false] {
        let wanted = Wanted {
            v6,
            ..Wanted::certified(initiate)
        };
        let authority = Authority::new();
        let mut told = Told::by(&wanted);
        let peer = authority.issue("peer", kind);
        told.certificates = Some((peer, authority.ca.certificate_pem()));
        let charon = Charon::start(&wanted, told);
        let mut us = Us::new(&wanted);
        let own = authority.issue("us", kind).into_identity(US);
        us.certified(authority.verifier(), own);
        us.go();
        agree(&charon, &mut us, &wanted);
    }
}

#[test]
fn certificates_with_ecdsa_p256() {
    on_charon(|| certified(KeyType::EcdsaP256, false));
}

#[test]
fn certificates_with_ecdsa_p384() {
    on_charon(|| certified(KeyType::EcdsaP384, false));
}

#[test]
fn certificates_with_ecdsa_p521() {
    on_charon(|| certified(KeyType::EcdsaP521, false));
}

#[test]
fn certificates_with_ed25519() {
    on_charon(|| certified(KeyType::Ed25519, false));
}

#[test]
fn certificates_over_ipv6() {
    on_charon(|| certified(KeyType::EcdsaP256, true));
}

/// Charon has an RSA key; we have ECDSA.
fn rsa(kind: Kind, settings: &'static str) {
    for initiate in [true, false] {
        let wanted = Wanted::certified(initiate);
        let ca = ForeignCa::new(kind);
        let issued = [ca.issue("us", Kind::P256), ca.issue("peer", kind)];
        let (charon, mut us) = meet(&wanted, issued, [&ca, &ca], |told| {
            told.settings = settings.into();
        });
        agree(&charon, &mut us, &wanted);
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

/// Each end under an intermediate CA of its own, of one root that both trust. Each must send
/// the intermediate, which the other lacks.
#[test]
fn intermediate_cas_travel_along() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let root = ForeignCa::new(Kind::P384);
            let subs = [0, 1].map(|_| root.subordinate(Kind::P256));
            let issued = [
                subs[0].issue("us", Kind::P256),
                subs[1].issue("peer", Kind::P256),
            ];
            let (charon, mut us) = meet(&wanted, issued, [&root, &root], |_| {});
            agree(&charon, &mut us, &wanted);
        }
    });
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
            let (charon, mut us) = meet(&wanted, issued, [&root, &root], |_| {});
            agree(&charon, &mut us, &wanted);
        }
    });
}

/// Each end trusts only the other's CA: CERTREQ names another than its own (lesson L42).
#[test]
fn each_end_has_its_own_root() {
    on_charon(|| {
        for initiate in [true, false] {
            let wanted = Wanted::certified(initiate);
            let roots = [0, 1].map(|_| ForeignCa::new(Kind::P256));
            let issued = [
                roots[0].issue("us", Kind::P256),
                roots[1].issue("peer", Kind::P256),
            ];
            let (charon, mut us) = meet(&wanted, issued, [&roots[1], &roots[0]], |_| {});
            agree(&charon, &mut us, &wanted);
        }
    });
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
            let (charon, mut us) = meet(&wanted, issued, [&root, &root], |_| {});
            if !initiate {
                charon.order_in_vain(&mut us, "--initiate --child net");
            }
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
            let (charon, mut us) = meet(&wanted, issued, [&ca, &ca], |_| {});
            if !initiate {
                charon.order_in_vain(&mut us, "--initiate --child net --timeout 45");
            }
            us.until("a refusal", |us| us.failed(FailedCheck::AuthMethod));
            us.until("nothing left", |us| us.standing().is_empty());
        }
    });
}

/// We have an RSA key, and sign with it.
#[test]
fn our_rsa_signatures() {
    on_charon(|| {
        for (initiate, kind) in [(true, Kind::Rsa2048), (false, Kind::Rsa3072)] {
            let wanted = Wanted::certified(initiate);
            let ca = ForeignCa::new(Kind::P256);
            let issued = [ca.issue("us", kind), ca.issue("peer", Kind::P256)];
            let (charon, mut us) = meet(&wanted, issued, [&ca, &ca], |_| {});
            agree(&charon, &mut us, &wanted);
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
            if !initiate {
                charon.order_in_vain(&mut us, "--initiate --child net --timeout 45");
            }
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
            let (charon, mut us) = meet(&wanted, issued, [&ca, &ca], |told| {
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
