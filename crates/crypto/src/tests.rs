//! Published vectors, refusals, properties.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use proptest::prelude::*;

use super::*;

mod etm;
mod examples;
mod kdf;
mod ke;
mod signature;
mod wycheproof_aead;
mod wycheproof_kex;
mod wycheproof_sig;

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert_eq!(digits.len() % 2, 0, "half a byte in {text}");
    let byte = |pair: &[u32]| (pair[0] * 16 + pair[1]) as u8;
    digits.chunks(2).map(byte).collect()
}

#[test]
fn sha_known_answers() {
    // FIPS 180-4 examples.
    let abc: &[&[u8]] = &[b"a", b"", b"bc"];
    assert_eq!(
        sha1(abc).to_vec(),
        unhex("a9993e364706816aba3e25717850c26c9cd0d89d")
    );
    assert_eq!(
        sha1(&[]).to_vec(),
        unhex("da39a3ee5e6b4b0d3255bfef95601890afd80709")
    );
    assert_eq!(
        sha256(abc).to_vec(),
        unhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    );
    assert_eq!(
        sha256(&[b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"]).to_vec(),
        unhex("248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
    );
}

/// Key, message in parts, and the output of each PRF.
type HmacCase = (&'static [u8], &'static [&'static [u8]], [&'static str; 3]);

#[test]
fn hmac_rfc_4231() {
    let cases: [HmacCase; 2] = [
        (
            &[0x0b; 20],
            &[b"Hi ", b"There"],
            [
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
                "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c
                 faea9ea9076ede7f4af152e8b2fa9cb6",
                "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde
                 daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
            ],
        ),
        (
            b"Jefe",
            &[b"what do ya want ", b"for nothing?"],
            [
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e
                 8e2240ca5e69e2c78b3239ecfab21649",
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554
                 9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
            ],
        ),
    ];
    for (key, parts, outputs) in cases {
        for (prf, output) in Prf::ALL.into_iter().zip(outputs) {
            assert_eq!(prf.compute(key, parts).as_bytes(), unhex(output), "{prf:?}");
        }
        assert_eq!(hmac_sha256(key, parts).to_vec(), unhex(outputs[0]));
    }
    // A key longer than the block (case 6).
    assert_eq!(
        hmac_sha256(
            &[0xaa; 131],
            &[b"Test Using Larger Than Block-Size Key - Hash Key First"]
        )
        .to_vec(),
        unhex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
    );
}

#[test]
fn prf_plus_by_the_hkdf_expand_vectors() {
    // HKDF-Expand (RFC 5869 2.3) is prf+ (RFC 7296 2.13) by another name, so
    // cases 1 and 2 of RFC 5869 appendix A are vectors for it.
    let info: Vec<u8> = (0xf0..=0xf9).collect();
    let out = Prf::HmacSha256.plus(
        &unhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"),
        &[&info[..4], &info[4..]],
        42,
    );
    assert_eq!(
        out.as_bytes(),
        unhex(
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf
             34007208d5b887185865"
        )
    );
    let info: Vec<u8> = (0xb0..=0xff).collect();
    let out = Prf::HmacSha256.plus(
        &unhex("06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244"),
        &[&info],
        82,
    );
    assert_eq!(
        out.as_bytes(),
        unhex(
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c
             59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71
             cc30c58179ec3e87c14c01d5c1f3434f1d87"
        )
    );
}

#[test]
fn prf_plus_is_the_chain_of_rfc_7296_for_each_prf() {
    for prf in Prf::ALL {
        let mut expected = Vec::new();
        let mut last = Vec::new();
        for count in 1..=255u8 {
            last = prf
                .compute(b"key", &[&last, b"seed", &[count]])
                .as_bytes()
                .to_vec();
            expected.extend_from_slice(&last);
        }
        let size = prf.output_len();
        for len in [0, 1, size - 1, size, size + 1, 3 * size + 7, 255 * size] {
            let out = prf.plus(b"key", &[b"se", b"ed"], len);
            assert_eq!(out.as_bytes(), &expected[..len], "{prf:?} {len}");
        }
    }
}

#[test]
#[should_panic(expected = "prf+ ends")]
fn prf_plus_refuses_more_than_255_outputs() {
    Prf::HmacSha256.plus(b"key", &[], 255 * 32 + 1);
}

#[test]
fn aes_gcm_known_answers() {
    // Test cases 4 and 16 of the GCM specification by McGrew and Viega: same
    // plaintext, same additional data, 128- and 256-bit keys.
    let half = "feffe9928665731c6d6a8f9467308308";
    let nonce = unhex("cafebabefacedbaddecaf888");
    let plain = unhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    );
    let aad = unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let cases = [
        (
            Aead::Aes128Gcm16,
            half.to_string(),
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
             21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
            "5bc94fbc3221a5db94fae95ae7121a47",
        ),
        (
            Aead::Aes256Gcm16,
            half.repeat(2),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ];
    for (aead, key, cipher, tag) in cases {
        let keymat = [unhex(&key), nonce[..SALT_LEN].to_vec()].concat();
        let key = AeadKey::new(aead, &keymat).unwrap();
        let iv: [u8; IV_LEN] = nonce[SALT_LEN..].try_into().unwrap();
        let mut buf = plain.clone();
        let icv = key.seal_in_place(iv, &aad, &mut buf);
        assert_eq!(buf, unhex(cipher));
        assert_eq!(icv.to_vec(), unhex(tag));
        key.open_in_place(iv, &aad, &mut buf, &icv).unwrap();
        assert_eq!(buf, plain);
        let mut wrong = icv;
        wrong[15] ^= 1;
        let mut buf = unhex(cipher);
        assert_eq!(
            key.open_in_place(iv, &aad, &mut buf, &wrong),
            Err(OpenError)
        );
        assert_ne!(buf, plain);
    }
}

#[test]
fn aead_takes_only_its_own_length() {
    for aead in Aead::ALL {
        assert_eq!(aead.keymat_len(), aead.key_len() + 4);
        assert_eq!(Aead::from_transform(aead.id(), aead.key_bits()), Some(aead));
        for len in [0, 16, 19, 20, 21, 32, 35, 36, 37] {
            let result = AeadKey::new(aead, &vec![1; len]);
            assert_eq!(result.is_ok(), len == aead.keymat_len(), "{aead:?} {len}");
        }
    }
    assert_eq!(Aead::from_transform(20, 192), None);
    assert_eq!(Aead::from_transform(20, 0), None);
}

/// Both sides from their scalars, checked against the published values.
fn exchange(method: KeMethod, i: &str, gi: &str, r: &str, gr: &str, secret: &str) {
    let initiator = KePrivate::from_scalar(method, &unhex(i)).unwrap();
    let responder = KePrivate::from_scalar(method, &unhex(r)).unwrap();
    assert_eq!(initiator.public(), unhex(gi));
    assert_eq!(responder.public(), unhex(gr));
    assert_eq!(initiator.public().len(), method.public_len());
    let secret = unhex(secret);
    assert_eq!(secret.len(), method.secret_len());
    assert_eq!(initiator.agree(&unhex(gr)).ok().unwrap().as_bytes(), secret);
    assert_eq!(responder.agree(&unhex(gi)).ok().unwrap().as_bytes(), secret);
}

#[test]
fn rfc_5903_8_1_p256() {
    exchange(
        KeMethod::P256,
        "c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433",
        "dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c3772581180
         5271a0461cdb8252d61f1c456fa3e59ab1f45b33accf5f58389e0577b8990bb3",
        "c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53",
        "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf63
         56fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab",
        "d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de",
    );
}

#[test]
fn rfc_5903_8_2_p384() {
    exchange(
        KeMethod::P384,
        "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655
         e35b538041e649ee3faef896783ab194",
        "667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6
         de3ac808acb4bdb4c88732aee95f41aa
         9482ed1fc0eeb9cafc4984625ccfc23f65032149e0e144ada024181535a0f38e
         eb9fcff3c2c947dae69b4c634573a81c",
        "41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942
         e0308312916b8ed2960e4bd55a7448fc",
        "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d
         0d1ac43a0336def96fda41d0774a3571
         dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1ff
         f83fa40142209dff5eaad96db9e6386c",
        "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4
         d603135569b9e9d09cf5d4a270f59746",
    );
}

#[test]
fn rfc_5903_8_3_p521() {
    exchange(
        KeMethod::P521,
        "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a0
         95aa85a30fe1c2952c6771d937ba9777f5957b2639bab072462f68c27a57382d4a52",
        "0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbe
         e1e3bf42e00b8e380aeae57c2d107564941885942af5a7f4601723c4195d176ced3e
         017cae20b6641d2eeb695786d8c946146239d099e18e1d5a514c739d7cb4a10a
         d8a788015ac405d7799dc75e7b7d5b6cf2261a6a7f1507438bf01beb6ca3926f9582",
        "0145ba99a847af43793fdd0e872e7cdfa16be30fdc780f97bccc3f078380201e
         9c677d600b343757a3bdbf2a3163e4c2f869cca7458aa4a4effc311f5cb151685eb9",
        "00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a21
         9b97c356436adc6e95bb0352f6be64a6c2912d4ef2d0433ced2b6171640012d9460f
         015c68226383956e3bd066e797b623c27ce0eac2f551a10c2c724d9852077b87
         220b6536c5c408a1d2aebb8e86d678ae49cb57091f4732296579ab44fcd17f0fc56a",
        "01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04
         d1427e73ca4baa240a34786859810c06b3c715a3a8cc3151f2bee417996d19f3ddea",
    );
}

#[test]
fn rfc_7748_6_1_x25519() {
    exchange(
        KeMethod::X25519,
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    );
}

#[test]
fn rfc_7748_5_2_x25519() {
    let scalar = unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
    let point = unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
    let private = KePrivate::from_scalar(KeMethod::X25519, &scalar).unwrap();
    assert_eq!(
        private.agree(&point).ok().unwrap().as_bytes(),
        unhex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    );
}

fn diffie_hellman() -> impl Iterator<Item = KeMethod> {
    KeMethod::ALL.into_iter().filter(|method| !method.is_kem())
}

#[test]
fn generated_keys_agree_and_depend_on_the_source_alone() {
    for method in diffie_hellman() {
        assert_eq!(KeMethod::from_id(method.id()), Some(method));
        let mut random = DangerousSeededRandom::new(7);
        let (a, b) = (
            KePrivate::generate(method, &mut random),
            KePrivate::generate(method, &mut random),
        );
        let again = KePrivate::generate(method, &mut DangerousSeededRandom::new(7));
        assert_eq!(again.public(), a.public());
        assert_ne!(a.public(), b.public());
        assert_eq!(a.method(), method);
        let (pa, pb) = (a.public().to_vec(), b.public().to_vec());
        assert!(a.agree(&pb).ok().unwrap() == b.agree(&pa).ok().unwrap());
        let system = KePrivate::generate(method, &mut SystemRandom::new());
        assert_ne!(system.public(), pa);
    }
    assert_eq!(KeMethod::from_id(15), None);
}

#[test]
fn wrong_lengths_are_refused() {
    for method in KeMethod::ALL {
        for len in [
            0,
            1,
            method.response_len() - 1,
            method.response_len() + 1,
            1000,
        ] {
            let private = KePrivate::generate(method, &mut DangerousSeededRandom::new(1));
            let error = private.agree(&vec![1; len]).err();
            let want = method.response_len();
            assert_eq!(
                error,
                Some(KeError::Length {
                    method,
                    want,
                    got: len
                })
            );
        }
    }
}

#[test]
fn points_off_the_curve_and_all_zero_are_refused() {
    for method in diffie_hellman() {
        let draw = || KePrivate::generate(method, &mut DangerousSeededRandom::new(1));
        let unusable = Some(KeError::Unusable(method));
        assert_eq!(draw().agree(&vec![0; method.public_len()]).err(), unusable);
        if ![KeMethod::X25519, KeMethod::Modp2048].contains(&method) {
            let mut peer = draw().public().to_vec();
            *peer.last_mut().unwrap() ^= 1;
            assert_eq!(draw().agree(&peer).err(), unusable);
            assert_eq!(
                draw().agree(&vec![0xff; method.public_len()]).err(),
                unusable
            );
        }
    }
    // u = 1 has order 4 on the curve: the result would be all zero.
    let mut one = [0; 32];
    one[0] = 1;
    let private = KePrivate::generate(KeMethod::X25519, &mut DangerousSeededRandom::new(1));
    assert_eq!(
        private.agree(&one).err(),
        Some(KeError::Unusable(KeMethod::X25519))
    );
}

#[test]
fn scalars_out_of_range_are_redrawn() {
    /// All ones (above the order of P-256 and P-384), then zeros, then usable.
    struct Reluctant(u32, DangerousSeededRandom);
    impl Random for Reluctant {
        fn fill(&mut self, out: &mut [u8]) {
            self.0 += 1;
            match self.0 {
                1 => out.fill(0xff),
                2 => out.fill(0),
                _ => self.1.fill(out),
            }
        }
    }
    for method in [KeMethod::P256, KeMethod::P384, KeMethod::P521] {
        let mut random = Reluctant(0, DangerousSeededRandom::new(3));
        let key = KePrivate::generate(method, &mut random);
        assert_eq!(random.0, 3, "{method:?}");
        assert_eq!(key.public().len(), method.public_len());
    }
}

#[test]
fn rfc_8032_7_1_ed25519() {
    let cases = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155
             5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ];
    for (seed, public, message, signature) in cases {
        // The PKCS#8 wrapping of RFC 8410 section 7.
        let pkcs8 = [unhex("302e020100300506032b657004220420"), unhex(seed)].concat();
        let key = SigningKey::from_pkcs8(&pkcs8).ok().unwrap();
        assert_eq!(key.public_raw(), unhex(public));
        assert_eq!(key.sign(&unhex(message)).unwrap(), unhex(signature));
        assert_eq!(key.to_pkcs8().ok().unwrap().as_bytes(), pkcs8);
        let verifier = VerifyingKey::from_spki(&key.public_spki()).ok().unwrap();
        let scheme = SignatureScheme::Ed25519;
        let (message, signature) = (unhex(message), unhex(signature));
        verifier.verify(scheme, &message, &signature).unwrap();
    }
}

#[test]
fn rfc_6979_a_2_5_p256_signature_verifies() {
    let point = unhex(
        "04 60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6
            7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299",
    );
    // r and s as SEQUENCE of INTEGER, each with a zero before its high bit.
    let signature = unhex(
        "3046
         022100 efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716
         022100 f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
    );
    let spki = [
        unhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
        point,
    ]
    .concat();
    let key = VerifyingKey::from_spki(&spki).ok().unwrap();
    let scheme = SignatureScheme::EcdsaP256Sha256;
    key.verify(scheme, b"sample", &signature).unwrap();
    assert_eq!(
        key.verify(scheme, b"Sample", &signature),
        Err(SignatureError::Signature)
    );
}

#[test]
fn every_kind_of_key_signs_verifies_and_survives_pkcs8() {
    for kind in KeyType::ALL {
        let key = SigningKey::generate(kind).ok().unwrap();
        let stored = key.to_pkcs8().ok().unwrap();
        let key = SigningKey::from_pkcs8(stored.as_bytes()).ok().unwrap();
        assert_eq!(key.key_type(), kind);
        assert_eq!(key.scheme(), kind.scheme());
        let verifier = VerifyingKey::from_spki(&key.public_spki()).ok().unwrap();
        assert_eq!(verifier.key_type(), kind);
        assert_eq!(verifier.schemes()[0], kind.scheme());
        let signature = key.sign(b"octets").unwrap();
        verifier
            .verify(kind.scheme(), b"octets", &signature)
            .unwrap();
        assert_eq!(
            verifier.verify(kind.scheme(), b"octetz", &signature),
            Err(SignatureError::Signature)
        );
        for other in SignatureScheme::ALL {
            let found = SignatureScheme::from_algorithm_identifier(other.algorithm_identifier());
            assert_eq!(found.map(SignatureScheme::hash), Some(other.hash()));
            if other != kind.scheme() {
                let wanted = match verifier.schemes().contains(&other) {
                    true => SignatureError::Signature,
                    false => SignatureError::SchemeMismatch(other),
                };
                assert_eq!(verifier.verify(other, b"octets", &signature), Err(wanted));
            }
        }
    }
}

#[test]
fn our_spki_is_the_librarys() {
    for kind in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::EcdsaP521] {
        let key = SigningKey::generate(kind).ok().unwrap();
        let algorithm = match kind {
            KeyType::EcdsaP256 => &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            KeyType::EcdsaP384 => &aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING,
            _ => &aws_lc_rs::signature::ECDSA_P521_SHA512_ASN1_SIGNING,
        };
        let pkcs8 = key.to_pkcs8().ok().unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_bytes()).unwrap();
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        assert_eq!(key.public_spki(), der.as_ref());
    }
    let key = SigningKey::generate(KeyType::Ed25519).ok().unwrap();
    let pkcs8 = key.to_pkcs8().ok().unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_bytes()).unwrap();
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    assert_eq!(key.public_spki(), der.as_ref());
}

#[test]
fn secrets_compare_by_content() {
    assert!(SecretBytes::new(vec![1, 2]) == SecretBytes::from(&[1, 2][..]));
    assert!(SecretBytes::new(vec![1, 2]) != SecretBytes::new(vec![1, 3]));
    assert!(SecretBytes::new(vec![1, 2]) != SecretBytes::new(vec![1, 2, 3]));
    assert_eq!(SecretBytes::new(vec![1, 2]).len(), 2);
    assert!(SecretBytes::new(Vec::new()).is_empty());
}

#[test]
fn hash_numbers_are_those_of_the_registry() {
    for id in 0..10 {
        let known = HashAlgorithm::from_id(id);
        assert_eq!(
            known.map(HashAlgorithm::id),
            (2..=5).contains(&id).then_some(id)
        );
    }
    for prf in Prf::ALL {
        assert_eq!(Prf::from_id(prf.id()), Some(prf));
    }
    // PRF_HMAC_SHA1 is not known here.
    assert_eq!(Prf::from_id(2), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = SigningKey::from_pkcs8(&bytes);
        let _ = VerifyingKey::from_spki(&bytes);
        let _ = SignatureScheme::from_algorithm_identifier(&bytes);
        for method in KeMethod::ALL {
            let private = KePrivate::generate(method, &mut DangerousSeededRandom::new(1));
            let _ = private.agree(&bytes);
        }
    }

    #[test]
    fn a_damaged_spki_is_refused(index in 0usize..91, flip in 1u8..) {
        let key = SigningKey::generate(KeyType::EcdsaP256).ok().unwrap();
        let mut spki = key.public_spki();
        prop_assert_eq!(spki.len(), 91);
        spki[index] ^= flip;
        // A point with one byte changed lies on the curve only by a chance of 2^-250.
        prop_assert!(VerifyingKey::from_spki(&spki).is_err());
    }
}

// RFC 7427 names a hash and no curve; libreswan signs with the longest hash that both announce.
#[test]
fn any_announced_hash_fits_any_curve() {
    use aws_lc_rs::signature::{ECDSA_P521_SHA384_ASN1_SIGNING, EcdsaKeyPair};

    let key = SigningKey::generate(KeyType::EcdsaP521).ok().unwrap();
    let verifier = VerifyingKey::from_spki(&key.public_spki()).ok().unwrap();
    let pkcs8 = key.to_pkcs8().ok().unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P521_SHA384_ASN1_SIGNING, pkcs8.as_bytes()).unwrap();
    let random = aws_lc_rs::rand::SystemRandom::new();
    let signature = pair.sign(&random, b"octets").unwrap();
    let check = |scheme| verifier.verify(scheme, b"octets", signature.as_ref());
    // The identifier is the same for each curve.
    let identifier = SignatureScheme::EcdsaP384Sha384.algorithm_identifier();
    let scheme = verifier.scheme_for(identifier).unwrap();
    assert_eq!(scheme, SignatureScheme::EcdsaP521Sha384);
    check(scheme).unwrap();
    for wrong in [
        SignatureScheme::EcdsaP521Sha256,
        SignatureScheme::EcdsaP521Sha512,
    ] {
        assert_eq!(check(wrong), Err(SignatureError::Signature));
    }
    for other in [SignatureScheme::Ed25519, SignatureScheme::EcdsaP384Sha384] {
        assert_eq!(check(other), Err(SignatureError::SchemeMismatch(other)));
    }
}
