//! Numerical examples of RFCs that IKEv2 rests on.

use super::unhex;
use crate::{KeMethod, KePrivate, SignatureScheme as Scheme};

/// RFC 8031, appendix A: both random numbers, both public values, one secret.
#[test]
fn rfc_8031_a_curve25519() {
    let i = "751fb4308655b476b6789b7325f9ea8cddd16a58533ff6d9e60009464a5f9d94";
    let r = "0a54645253290d60ddadd0e030bacd9e5501efdc220755a1e978f1b839a05688";
    let public_i = "48d5ddd4061257ba166fa3f9bbdb74f1a4e81c089384fa77f790709f0dfbc766";
    let public_r = "0be7c1f5aad87d7e448662673298a443478b859745179eaf564c79c0ef6eee25";
    let secret = "c74950607a12327f3204d94b6825bfb068b7f8319a9e3708ed3d43ce8130c950";
    let key = |text: &str| KePrivate::from_scalar(KeMethod::X25519, &unhex(text)).unwrap();
    assert_eq!(key(i).public(), unhex(public_i));
    assert_eq!(key(r).public(), unhex(public_r));
    for (mine, theirs) in [(i, public_r), (r, public_i)] {
        let agreed = key(mine).agree(&unhex(theirs)).ok().unwrap();
        assert_eq!(agreed.as_bytes(), unhex(secret));
    }
}

/// RFC 7427, appendix A: each example of an AlgorithmIdentifier, and what becomes of it here. What
/// has SHA-1 or DSA in it is refused.
#[test]
fn rfc_7427_a_algorithm_identifiers() {
    for (section, text, want) in [
        ("A.1.1", "300d 06092a864886f70d010105 0500", None),
        (
            "A.1.2",
            "300d 06092a864886f70d01010b 0500",
            Some(Scheme::RsaPkcs1Sha256),
        ),
        (
            "A.1.3",
            "300d 06092a864886f70d01010c 0500",
            Some(Scheme::RsaPkcs1Sha384),
        ),
        (
            "A.1.4",
            "300d 06092a864886f70d01010d 0500",
            Some(Scheme::RsaPkcs1Sha512),
        ),
        ("A.2.1", "3009 06072a8648ce380403", None),
        ("A.2.2", "300b 0609608648016503040302", None),
        ("A.3.1", "3009 06072a8648ce3d0401", None),
        (
            "A.3.2",
            "300a 06082a8648ce3d040302",
            Some(Scheme::EcdsaP256Sha256),
        ),
        (
            "A.3.3",
            "300a 06082a8648ce3d040303",
            Some(Scheme::EcdsaP384Sha384),
        ),
        (
            "A.3.4",
            "300a 06082a8648ce3d040304",
            Some(Scheme::EcdsaP521Sha512),
        ),
        ("A.4.1", "300d 06092a864886f70d01010a 3000", None),
        (
            "A.4.2",
            "303e 06092a864886f70d01010a 3031 a00b 3009 06052b0e03021a 0500 \
             a118 3016 06092a864886f70d010108 3009 06052b0e03021a 0500 a203020114 a303020101",
            None,
        ),
        (
            "A.4.3",
            "3046 06092a864886f70d01010a 3039 a00f 300d 0609608648016503040201 0500 \
             a11c 301a 06092a864886f70d010108 300d 0609608648016503040201 0500 \
             a203020120 a303020101",
            Some(Scheme::RsaPssSha256),
        ),
    ] {
        let found = Scheme::from_algorithm_identifier(&unhex(text));
        assert_eq!(found, want, "{section}");
    }
}

/// What is written before a signature, whole: RFC 7427, appendix A.1 and A.3; RFC 8420, appendix
/// A.1; RSASSA-PSS as RFC 4055, 3.1 has it (A.4.3 of RFC 7427 without the default trailer).
#[test]
fn every_scheme_is_written_byte_by_byte() {
    let pss = |hash: &str, salt: &str| {
        format!(
            "3041 06092a864886f70d01010a 3034 a00f 300d 06096086480165030402{hash} 0500 \
             a11c 301a 06092a864886f70d010108 300d 06096086480165030402{hash} 0500 a2030201{salt}"
        )
    };
    let pkcs1 = |last: &str| format!("300d 06092a864886f70d0101{last} 0500");
    let ecdsa = |last: &str| format!("300a 06082a8648ce3d0403{last}");
    let mut seen = 0;
    for (text, schemes) in [
        (
            ecdsa("02"),
            vec![
                Scheme::EcdsaP256Sha256,
                Scheme::EcdsaP384Sha256,
                Scheme::EcdsaP521Sha256,
            ],
        ),
        (
            ecdsa("03"),
            vec![
                Scheme::EcdsaP256Sha384,
                Scheme::EcdsaP384Sha384,
                Scheme::EcdsaP521Sha384,
            ],
        ),
        (
            ecdsa("04"),
            vec![
                Scheme::EcdsaP256Sha512,
                Scheme::EcdsaP384Sha512,
                Scheme::EcdsaP521Sha512,
            ],
        ),
        ("3005 06032b6570".into(), vec![Scheme::Ed25519]),
        (pss("01", "20"), vec![Scheme::RsaPssSha256]),
        (pss("02", "30"), vec![Scheme::RsaPssSha384]),
        (pss("03", "40"), vec![Scheme::RsaPssSha512]),
        (pkcs1("0b"), vec![Scheme::RsaPkcs1Sha256]),
        (pkcs1("0c"), vec![Scheme::RsaPkcs1Sha384]),
        (pkcs1("0d"), vec![Scheme::RsaPkcs1Sha512]),
    ] {
        for scheme in schemes {
            assert_eq!(scheme.algorithm_identifier(), unhex(&text), "{scheme:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, Scheme::ALL.len());
}
