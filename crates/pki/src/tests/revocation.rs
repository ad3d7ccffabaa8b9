//! Revocation lists: which are believed (lesson L38: CVE-less reports in strongSwan 5.6.3 and
//! 5.9.11 of lists taken from the wrong issuer or from the future).

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::*;

const WEEK: u64 = 7 * 24 * 3600;

fn list_at(ca: &Ca, revoked: &[&[u8]], number: u64, now: u64) -> Vec<u8> {
    let entry = |der: &&[u8]| Revoked::certificate(der, now).unwrap();
    let revoked: Vec<Revoked> = revoked.iter().map(entry).collect();
    ca.revocation_list(&revoked, number, now, now + WEEK)
        .unwrap()
}

fn verdict(der: &[u8], bundle: &TrustBundle, now: u64) -> Result<(), CertificateCheck> {
    verify_chain(&[der], bundle, ExpectedPeer::AnyNode, now)
        .map(drop)
        .map_err(|e| e.check)
}

#[test]
fn a_revoked_certificate_is_refused_and_its_neighbour_is_not() {
    let ca = ca();
    let n1 = issue_at(&ca, &node("n1"), NOW);
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let request = certificate_request(&key, &node("n2")).unwrap();
    // With other random bytes, so another serial number.
    let n2 = ca
        .sign_request(&request, &node("n2"), YEAR, NOW, &mut Counter(77))
        .unwrap()
        .der;
    let mut trusted = bundle(&[&ca]);
    assert_eq!(verdict(&n1, &trusted, NOW), Ok(()));
    assert_eq!(
        trusted.add_revocation_list(&list_at(&ca, &[&n1], 1, NOW)),
        Ok(true)
    );
    assert_eq!(verdict(&n1, &trusted, NOW), Err(CertificateCheck::Revoked));
    assert_eq!(verdict(&n2, &trusted, NOW), Ok(()));
}

#[test]
fn a_list_counts_past_its_next_update() {
    let ca = ca();
    let n1 = issue_at(&ca, &node("n1"), NOW);
    let mut trusted = bundle(&[&ca]);
    let list = list_at(&ca, &[&n1], 1, NOW);
    trusted.add_revocation_list(&list).unwrap();
    let late = NOW + 2 * WEEK;
    assert_eq!(verdict(&n1, &trusted, late), Err(CertificateCheck::Revoked));
}

#[test]
fn the_newest_list_that_has_begun_counts() {
    let ca = ca();
    let n1 = issue_at(&ca, &node("n1"), NOW);
    let mut trusted = bundle(&[&ca]);
    let day = 24 * 3600;
    trusted
        .add_revocation_list(&list_at(&ca, &[&n1], 1, NOW))
        .unwrap();
    // It takes the revocation back, and says that it comes from tomorrow.
    trusted
        .add_revocation_list(&list_at(&ca, &[], 2, NOW + day))
        .unwrap();
    assert_eq!(verdict(&n1, &trusted, NOW), Err(CertificateCheck::Revoked));
    assert_eq!(verdict(&n1, &trusted, NOW + day), Ok(()));
    // An older list that turns up late changes nothing.
    trusted
        .add_revocation_list(&list_at(&ca, &[&n1], 1, NOW - day))
        .unwrap();
    assert_eq!(verdict(&n1, &trusted, NOW + day), Ok(()));
}

#[test]
fn a_list_of_a_stranger_is_refused_and_the_good_one_stays() {
    let ours = ca();
    let other = Ca::generate(&CaOptions::default(), NOW, &mut Counter(2)).unwrap();
    let n1 = issue_at(&ours, &node("n1"), NOW);
    let mut trusted = bundle(&[&ours]);
    let good = list_at(&ours, &[&n1], 1, NOW);
    trusted.add_revocation_list(&good).unwrap();

    let strange = trusted.add_revocation_list(&list_at(&other, &[], 9, NOW + 1));
    assert!(matches!(
        strange,
        Err(RevocationError::UnknownIssuer { .. })
    ));
    // The same name with another key.
    let twin = Ca::generate(&CaOptions::default(), NOW, &mut Counter(1)).unwrap();
    assert_eq!(twin.facts().subject, ours.facts().subject);
    let forged = trusted.add_revocation_list(&list_at(&twin, &[], 9, NOW + 1));
    assert!(matches!(forged, Err(RevocationError::BadSignature { .. })));
    // One bit of the good one.
    for at in [good.len() / 2, good.len() - 1] {
        let mut damaged = list_at(&ours, &[], 9, NOW + 1);
        let at = at.min(damaged.len() - 1);
        damaged[at] ^= 1;
        assert!(trusted.add_revocation_list(&damaged).is_err(), "{at}");
    }
    assert_eq!(verdict(&n1, &trusted, NOW), Err(CertificateCheck::Revoked));
}

#[test]
fn a_ca_without_crl_sign_signs_no_list() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key).unwrap();
    let mut trusted = TrustBundle::new();
    trusted.add(certificate.der()).unwrap();
    // The maker of the list pretends otherwise to itself.
    params.key_usages = vec![];
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2027, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7),
            revocation_time: rcgen::date_time_ymd(2027, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&Issuer::new(params, key)).unwrap();
    let refused = trusted.add_revocation_list(list.der());
    assert!(matches!(refused, Err(RevocationError::NotAllowed { .. })));
}

/// Others find the CA of a list by the name of its key, which a CA that is not of our making has by SHA-1.
#[test]
fn a_list_names_the_key_as_the_certificate_of_its_ca_does() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
    let certificate = params.self_signed(&key).unwrap();
    let given = Ca::load(&chain_to_pem(&[certificate.der()]), &key.serialize_der()).unwrap();
    assert_eq!(given.facts().subject_key_id, Some("07".repeat(20)));
    for ca in [given, ca()] {
        let der = list_at(&ca, &[], 1, NOW);
        let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
        let named = list
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
                _ => None,
            });
        let named = named.map(|name| hex(name.0));
        assert_eq!(named, ca.facts().subject_key_id);
    }
}

#[test]
fn a_list_travels_as_pem_and_bad_blocks_are_told() {
    let ca = ca();
    let n1 = issue_at(&ca, &node("n1"), NOW);
    let mut trusted = bundle(&[&ca]);
    let text = format!(
        "{}{}{}",
        revocation_list_to_pem(b"no list"),
        ca.certificate_pem(),
        revocation_list_to_pem(&list_at(&ca, &[&n1], 1, NOW))
    );
    let refused = trusted.add_revocation_lists_from_pem(&text);
    assert!(matches!(
        refused.as_slice(),
        [RevocationError::Malformed(_)]
    ));
    assert_eq!(verdict(&n1, &trusted, NOW), Err(CertificateCheck::Revoked));
}

// A text that cannot be read must not bring back who was revoked.
#[test]
fn lists_of_before_can_be_kept() {
    let ca = ca();
    let n1 = issue_at(&ca, &node("n1"), NOW);
    let mut before = bundle(&[&ca]);
    let list = list_at(&ca, &[&n1], 1, NOW);
    before.add_revocation_list(&list).unwrap();
    let mut after = bundle(&[&ca]);
    let damaged = revocation_list_to_pem(&list).replacen("-----END", "----END", 1);
    assert_eq!(after.add_revocation_lists_from_pem(&damaged).len(), 1);
    assert_eq!(verdict(&n1, &after, NOW), Ok(()));
    after.keep_revocation_lists(&before);
    assert_eq!(verdict(&n1, &after, NOW), Err(CertificateCheck::Revoked));
    // But none of a CA that is trusted no more.
    let other = Ca::generate(&CaOptions::default(), NOW, &mut Counter(2)).unwrap();
    let mut moved = bundle(&[&other]);
    moved.keep_revocation_lists(&before);
    assert_eq!(moved.revocation_lists_to_pem(), "");
}

#[test]
fn lists_are_bounded() {
    let ca = ca();
    let mut trusted = bundle(&[&ca]);
    let huge = vec![0x30; MAX_REVOCATION_LIST + 1];
    assert!(trusted.add_revocation_list(&huge).is_err());
    for number in 0..MAX_REVOCATION_LISTS as u64 {
        let list = list_at(&ca, &[], number, NOW + number);
        assert_eq!(trusted.add_revocation_list(&list), Ok(true));
        assert_eq!(trusted.add_revocation_list(&list), Ok(false));
    }
    let one_more = list_at(&ca, &[], 99, NOW + 99);
    assert_eq!(
        trusted.add_revocation_list(&one_more),
        Err(RevocationError::TooMany)
    );
}

/// The list is one of the root's about the intermediate: all below it is gone.
#[test]
fn a_revoked_intermediate_takes_its_leaves_with_it() {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.distinguished_name
        .push(DnType::CommonName, "revoking root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
    let root_issuer = Issuer::new(root, root_key);

    let middle_key = KeyPair::generate().unwrap();
    let mut middle = CertificateParams::default();
    middle
        .distinguished_name
        .push(DnType::CommonName, "intermediate");
    middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    middle.serial_number = Some(SerialNumber::from(4711));
    let middle_der = middle.signed_by(&middle_key, &root_issuer).unwrap();
    let middle_issuer = Issuer::new(middle, middle_key);

    let leaf_key = KeyPair::generate().unwrap();
    let leaf = leaf_params("n1")
        .signed_by(&leaf_key, &middle_issuer)
        .unwrap();
    let chain: [&[u8]; 2] = [leaf.der(), middle_der.der()];
    let mut trusted = TrustBundle::new();
    trusted.add(&root_der).unwrap();
    let judge = |trusted: &TrustBundle| {
        verify_chain(&chain, trusted, ExpectedPeer::AnyNode, NOW).map_err(|e| e.check)
    };
    assert!(judge(&trusted).is_ok());
    let list = crate::revocation::parameters(
        KeyIdMethod::Sha256,
        &[Revoked {
            serial: 4711u64.to_be_bytes()[6..].to_vec(),
            at: NOW,
        }],
        1,
        NOW,
        NOW + WEEK,
    );
    let list = list.unwrap().signed_by(&root_issuer).unwrap();
    trusted.add_revocation_list(list.der()).unwrap();
    assert_eq!(judge(&trusted), Err(CertificateCheck::Revoked));
}

/// One list a CA, made from the one before: what it says is read back, and the other CA's stays.
#[test]
fn a_list_takes_the_place_of_those_of_its_ca() {
    let (ours, other) = (ca(), ca());
    let n1 = issue_at(&ours, &node("n1"), NOW);
    let mut trusted = bundle(&[&ours, &other]);
    let spki = ours.facts().spki.clone();
    assert_eq!(trusted.revocations_of(&spki), None);
    for (ca, number) in [(&other, 1), (&ours, 1), (&ours, 2)] {
        let list = list_at(ca, &[&n1], number, NOW + number);
        trusted.add_revocation_list(&list).unwrap();
    }
    let (facts, lists) = trusted.revocations_of(&spki).unwrap();
    assert_eq!((facts.number, lists), (2, 2));
    assert_eq!(facts.this_update, NOW + 2);
    assert_eq!(facts.next_update, Some(NOW + 2 + WEEK));
    assert_eq!(facts.revoked, [Revoked::certificate(&n1, NOW + 2).unwrap()]);

    // Also one that is older by the clock: whoever made the others had a wrong one.
    trusted
        .replace_revocation_list(&list_at(&ours, &[], 3, NOW))
        .unwrap();
    let (facts, lists) = trusted.revocations_of(&spki).unwrap();
    assert_eq!((facts.number, lists, facts.revoked.len()), (3, 1, 0));
    assert_eq!(verdict(&n1, &trusted, NOW), Ok(()));
    let (kept, _) = trusted.revocations_of(&other.facts().spki).unwrap();
    assert_eq!(kept.revoked.len(), 1);
}
