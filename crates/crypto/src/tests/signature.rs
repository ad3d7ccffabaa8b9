//! What signatures and keys are refused, and how schemes are named.

use super::unhex;
use crate::{KeyType, SignatureError, SignatureScheme as Scheme, SigningKey, VerifyingKey};

/// DER of any element, with the shortest length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let head = match len {
        0..128 => vec![tag, len as u8],
        128..256 => vec![tag, 0x81, len as u8],
        _ => vec![tag, 0x82, (len >> 8) as u8, len as u8],
    };
    [head, content.to_vec()].concat()
}

/// A SubjectPublicKeyInfo of rsaEncryption around an RSAPublicKey.
pub(crate) fn spki(key: &[u8]) -> Vec<u8> {
    let algorithm = unhex("300d06092a864886f70d0101010500");
    let bits = der(3, &[&[0], key].concat());
    der(0x30, &[algorithm, bits].concat())
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<VerifyingKey, SignatureError> {
    let numbers = [der(2, modulus), der(2, exponent)].concat();
    VerifyingKey::from_spki(&spki(&der(0x30, &numbers)))
}

/// A modulus of that many bits (a multiple of 8), top and bottom bit set.
fn modulus(bits: usize) -> Vec<u8> {
    let mut bytes = vec![0xa7; bits / 8 + 1];
    bytes[0] = 0;
    bytes
}

const F4: [u8; 3] = [1, 0, 1];

// CVE-2017-9022, CVE-2017-11185, CVE-2018-17540 (lesson L31); below 2048 bits and e = 3: lesson L30.
#[test]
fn degenerate_rsa_keys_are_refused() {
    assert!(rsa(&modulus(2048), &F4).is_ok());
    assert!(rsa(&modulus(8192), &F4).is_ok());
    for bits in [8, 64, 512, 1024, 2040, 8200, 16384] {
        assert!(rsa(&modulus(bits), &F4).is_err(), "{bits} bits");
    }
    let mut short = modulus(2048);
    short[1] = 0x7f;
    assert!(rsa(&short[1..], &F4).is_err(), "2047 bits");
    let mut even = modulus(2048);
    even[256] = 0xa6;
    assert!(rsa(&even, &F4).is_err());
    let exponents: [&[u8]; 10] = [
        &[],
        &[0],
        &[1],
        &[2],
        &[3],
        &[17],
        &[1, 0, 0],
        &[0, 1, 0, 1],
        &[0x81, 0, 1],
        &[1, 0, 0, 0, 0, 1],
    ];
    for exponent in exponents {
        assert!(rsa(&modulus(2048), exponent).is_err(), "e = {exponent:?}");
    }
    // Negative, zero, empty, and a modulus longer than its number.
    assert!(rsa(&modulus(2048)[1..], &F4).is_err());
    assert!(rsa(&[0], &F4).is_err());
    assert!(rsa(&[], &F4).is_err());
    assert!(rsa(&[&[0], modulus(2048).as_slice()].concat(), &F4).is_err());
}

#[test]
fn rsa_keys_that_are_not_der_are_refused() {
    let numbers = [der(2, &modulus(2048)), der(2, &F4)].concat();
    let key = der(0x30, &numbers);
    let good = spki(&key);
    assert!(VerifyingKey::from_spki(&good).is_ok());
    let refused = |der: &[u8]| assert!(VerifyingKey::from_spki(der).is_err());
    refused(&[&good[..], &[0]].concat());
    refused(&good[..good.len() - 1]);
    refused(&spki(&[&key[..], &[0]].concat()));
    refused(&spki(&der(0x30, &[&numbers[..], &der(2, &[1])].concat())));
    // An indefinite length, and one longer than need be.
    refused(&spki(&[&[0x30, 0x80], &numbers[..], &[0, 0]].concat()));
    let len = numbers.len() as u16;
    let long = [&[0x30, 0x83, 0], &len.to_be_bytes()[..], &numbers].concat();
    refused(&spki(&long));
    // Bits left over in the BIT STRING; no NULL; id-RSASSA-PSS.
    let mut bits = good.clone();
    let at = bits.len() - key.len() - 1;
    bits[at] = 1;
    refused(&bits);
    let bare = unhex("300b06092a864886f70d010101");
    let string = der(3, &[&[0], &key[..]].concat());
    refused(&der(0x30, &[bare, string.clone()].concat()));
    let pss = Scheme::RsaPssSha256.algorithm_identifier().to_vec();
    refused(&der(0x30, &[pss, string].concat()));
    for len in 0..good.len() {
        refused(&good[..len]);
    }
}

#[test]
fn rsa_signs_with_each_hash_and_survives_pkcs8() {
    let key = SigningKey::generate(KeyType::Rsa).unwrap();
    let again = SigningKey::from_pkcs8(key.to_pkcs8().unwrap().as_bytes()).unwrap();
    assert_eq!(again.key_type(), KeyType::Rsa);
    assert_eq!(again.public_spki(), key.public_spki());
    assert_eq!(key.public_spki(), spki(key.public_raw()));
    let public = VerifyingKey::from_spki(&key.public_spki()).unwrap();
    let schemes = [
        Scheme::RsaPssSha256,
        Scheme::RsaPssSha384,
        Scheme::RsaPssSha512,
    ];
    assert_eq!(key.schemes(), schemes);
    for scheme in schemes {
        let mut signature = again.sign_with(scheme, b"message").unwrap();
        for checked in public.schemes() {
            let good = public.verify(checked, b"message", &signature);
            assert_eq!(good.is_ok(), checked == scheme);
        }
        let longer = [&[0], &signature[..]].concat();
        assert!(public.verify(scheme, b"message", &longer).is_err());
        assert!(public.verify(scheme, b"message", &signature[1..]).is_err());
        assert!(public.verify(scheme, b"message", &[]).is_err());
        // As large as the modulus.
        assert!(public.verify(scheme, b"message", &[0xff; 384]).is_err());
        signature[9] ^= 1;
        assert!(public.verify(scheme, b"message", &signature).is_err());
    }
    for scheme in [Scheme::RsaPkcs1Sha256, Scheme::EcdsaP256Sha256] {
        let refused = key.sign_with(scheme, b"message").err();
        assert_eq!(refused, Some(SignatureError::SchemeMismatch(scheme)));
    }
}

#[test]
fn ecdsa_keys_sign_with_their_own_hash_alone() {
    for kind in KeyType::ALL {
        let key = SigningKey::generate(kind).unwrap();
        assert_eq!(key.schemes(), [kind.scheme()]);
        let public = VerifyingKey::from_spki(&key.public_spki()).unwrap();
        let signature = key.sign(b"message").unwrap();
        for scheme in Scheme::ALL {
            let good = public.verify(scheme, b"message", &signature);
            assert_eq!(good.is_ok(), scheme == kind.scheme());
            if scheme != kind.scheme() {
                assert!(key.sign_with(scheme, b"message").is_err());
            }
        }
    }
}

#[test]
fn identifiers_name_the_scheme_that_the_key_can_check() {
    for kind in KeyType::ALL.into_iter().chain([KeyType::Rsa]) {
        let key = SigningKey::generate(kind).unwrap();
        let public = VerifyingKey::from_spki(&key.public_spki()).unwrap();
        for scheme in Scheme::ALL {
            let found = public.scheme_for(scheme.algorithm_identifier());
            if public.schemes().contains(&scheme) {
                assert_eq!(found, Some(scheme));
            }
            assert!(found.is_none_or(|found| public.schemes().contains(&found)));
        }
    }
}

// CVE-2021-41990, CVE-2018-6459 (lesson L32).
#[test]
fn pss_identifiers_are_strict() {
    let find = |text: &str| Scheme::from_algorithm_identifier(&unhex(text));
    // As RFC 7427 A.4 and OpenSSL write SHA-256, MGF1 with SHA-256, salt 32.
    let full = "3041 06092a864886f70d01010a 3034 a00f300d06096086480165030402010500 \
                a11c301a06092a864886f70d010108300d06096086480165030402010500 a203020120";
    assert_eq!(find(full), Some(Scheme::RsaPssSha256));
    // With the default trailer written, and with hashes without NULL.
    let trailer = "3046 06092a864886f70d01010a 3039 a00f300d06096086480165030402010500 \
                   a11c301a06092a864886f70d010108300d06096086480165030402010500 a203020120 \
                   a303020101";
    assert_eq!(find(trailer), Some(Scheme::RsaPssSha256));
    let bare = "303d 06092a864886f70d01010a 3030 a00d300b0609608648016503040201 \
                a11a301806092a864886f70d010108300b0609608648016503040201 a203020120";
    assert_eq!(find(bare), Some(Scheme::RsaPssSha256));
    for (what, text) in [
        ("no parameters", "300b06092a864886f70d01010a"),
        ("NULL", "300d06092a864886f70d01010a0500"),
        ("SHA-1 by default", "300d06092a864886f70d01010a3000"),
        ("salt 20", &full.replace("a203020120", "a203020114")),
        ("salt 0", &full.replace("a203020120", "a203020100")),
        ("salt -1", &full.replace("a203020120", "a2030201ff")),
        (
            "salt of 33 bytes",
            &full.replace("a203020120", "a203020121"),
        ),
        (
            "a huge salt",
            "3044 06092a864886f70d01010a 3037 a00f300d06096086480165030402010500 \
             a11c301a06092a864886f70d010108300d06096086480165030402010500 a20602047fffffff",
        ),
        (
            "another MGF hash",
            &full.replacen("02010500 a203", "02020500 a203", 1),
        ),
        (
            "another hash",
            &full.replacen("02010500 a11c", "02020500 a11c", 1),
        ),
        ("another MGF", &full.replace("0d010108", "0d010109")),
        ("trailer 2", &trailer.replace("a303020101", "a303020102")),
        (
            "MGF1 without its hash",
            "3034 06092a864886f70d01010a 3027 a00f300d06096086480165030402010500 \
             a10d300b06092a864886f70d010108 a203020120",
        ),
        ("bytes behind", &format!("{full} 00")),
    ] {
        assert_eq!(find(text), None, "{what}");
    }
}

#[test]
fn short_identifiers_are_those_of_rfc_7427() {
    for (text, scheme) in [
        ("300d06092a864886f70d01010b0500", Scheme::RsaPkcs1Sha256),
        ("300d06092a864886f70d01010c0500", Scheme::RsaPkcs1Sha384),
        ("300d06092a864886f70d01010d0500", Scheme::RsaPkcs1Sha512),
        ("300a06082a8648ce3d040302", Scheme::EcdsaP256Sha256),
        ("300a06082a8648ce3d040303", Scheme::EcdsaP384Sha384),
        ("300a06082a8648ce3d040304", Scheme::EcdsaP521Sha512),
        ("300506032b6570", Scheme::Ed25519),
    ] {
        assert_eq!(
            Scheme::from_algorithm_identifier(&unhex(text)),
            Some(scheme)
        );
    }
    // SHA-1: sha1WithRSAEncryption, ecdsa-with-SHA1.
    for text in ["300d06092a864886f70d0101050500", "300906072a8648ce3d0401"] {
        assert_eq!(Scheme::from_algorithm_identifier(&unhex(text)), None);
    }
}
