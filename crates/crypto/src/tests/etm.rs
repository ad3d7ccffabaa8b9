//! AES-CBC with HMAC: RFC vectors and refusals.

use super::unhex;
use crate::{
    CBC_IV_LEN, Cbc, Cipher, CipherKey, EtmError, EtmKey, EtmSuite, Integrity, OpenError, Prf,
};

fn suites() -> impl Iterator<Item = EtmSuite> {
    Cbc::ALL.into_iter().flat_map(|cbc| {
        let with = move |integrity| EtmSuite { cbc, integrity };
        Integrity::ALL.into_iter().map(with)
    })
}

fn key(suite: EtmSuite) -> EtmKey {
    let cipher = vec![1; suite.cbc.key_len()];
    let integrity = vec![2; suite.integrity.key_len()];
    EtmKey::new(suite, &cipher, &integrity).unwrap()
}

/// RFC 3602 section 4, cases 1 and 2 (the ciphers; the MAC is not looked at).
#[test]
fn rfc_3602_4_aes_128_cbc() {
    let suite = EtmSuite {
        cbc: Cbc::Aes128,
        integrity: Integrity::HmacSha256_128,
    };
    for (key, iv, plain, cipher) in [
        (
            "06a9214036b8a15b512e03d534120006",
            "3dafba429d9eb430b422da802c9fac41",
            "53696e676c6520626c6f636b206d7367",
            "e353779c1079aeb82708942dbe77181a",
        ),
        (
            "c286696d887c9aa0611bbb3e2025a45a",
            "562e17996d093d28ddb3ba695a2e6f58",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
        ),
    ] {
        let key = EtmKey::new(suite, &unhex(key), &[0; 32]).unwrap();
        let iv: [u8; CBC_IV_LEN] = unhex(iv).try_into().unwrap();
        let mut buf = unhex(plain);
        let mut icv = [0; 16];
        key.seal_in_place(iv, &[], &mut buf, &[], &mut icv).unwrap();
        assert_eq!(buf, unhex(cipher));
        key.open_in_place(iv, &[], &mut buf, &[], &icv).unwrap();
        assert_eq!(buf, unhex(plain));
    }
}

/// The check value is the front half of the HMAC over all that RFC 4303 names;
/// the PRF, checked by RFC 4231, says what it is.
#[test]
fn the_icv_covers_each_part() {
    for suite in suites() {
        let prf = match suite.integrity {
            Integrity::HmacSha256_128 => Prf::HmacSha256,
            Integrity::HmacSha384_192 => Prf::HmacSha384,
            Integrity::HmacSha512_256 => Prf::HmacSha512,
        };
        let iv = [3; CBC_IV_LEN];
        let mut buf = [9; 48];
        let mut icv = vec![0; suite.integrity.icv_len()];
        key(suite)
            .seal_in_place(iv, b"head", &mut buf, b"esn", &mut icv)
            .unwrap();
        let whole = prf.compute(
            &vec![2; suite.integrity.key_len()],
            &[b"head", &iv, &buf, b"esn"],
        );
        assert_eq!(icv.len(), whole.len() / 2);
        assert_eq!(icv, whole.as_bytes()[..icv.len()]);
    }
}

#[test]
fn whatever_is_changed_is_refused_and_left_as_it_was() {
    for suite in suites() {
        let key = key(suite);
        let iv = [3; CBC_IV_LEN];
        let mut sealed = [9; 48];
        let mut icv = vec![0; suite.integrity.icv_len()];
        key.seal_in_place(iv, b"head", &mut sealed, b"esn", &mut icv)
            .unwrap();
        let refused = |iv, before: &[u8], buf: &[u8], after: &[u8], icv: &[u8]| {
            let mut opened = buf.to_vec();
            let error = key.open_in_place(iv, before, &mut opened, after, icv);
            assert_eq!(error, Err(OpenError));
            assert_eq!(opened, buf);
        };
        refused([4; CBC_IV_LEN], b"head", &sealed, b"esn", &icv);
        refused(iv, b"heads", &sealed, b"esn", &icv);
        refused(iv, b"head", &sealed, b"esm", &icv);
        refused(iv, b"head", &sealed[..32], b"esn", &icv);
        refused(iv, b"head", &sealed[..47], b"esn", &icv);
        refused(iv, b"head", &[], b"esn", &icv);
        refused(iv, b"head", &sealed, b"esn", &[]);
        refused(iv, b"head", &sealed, b"esn", &icv[..icv.len() - 1]);
        refused(iv, b"head", &sealed, b"esn", &[&icv[..], &[0]].concat());
        for byte in 0..icv.len() {
            let mut wrong = icv.clone();
            wrong[byte] ^= 1;
            refused(iv, b"head", &sealed, b"esn", &wrong);
        }
        let mut wrong = sealed;
        wrong[47] ^= 0x80;
        refused(iv, b"head", &wrong, b"esn", &icv);
        key.open_in_place(iv, b"head", &mut sealed, b"esn", &icv)
            .unwrap();
        assert_eq!(sealed, [9; 48]);
    }
}

#[test]
fn broken_blocks_and_wrong_keys_are_refused() {
    for suite in suites() {
        for len in [1, 15, 17, 31] {
            let mut icv = vec![0; suite.integrity.icv_len()];
            let sealed = key(suite).seal_in_place([0; 16], &[], &mut vec![0; len], &[], &mut icv);
            assert_eq!(sealed.err(), Some(EtmError::Padding(len)));
        }
        let (right, auth) = (suite.cbc.key_len(), suite.integrity.key_len());
        for (cipher, integrity) in [(right - 1, auth), (right, auth + 1), (0, auth), (right, 0)] {
            let error = EtmKey::new(suite, &vec![0; cipher], &vec![0; integrity]).err();
            let wanted = EtmError::KeyLength {
                suite,
                cipher,
                integrity,
            };
            assert_eq!(error, Some(wanted));
        }
    }
}

#[test]
fn numbers_are_those_of_the_registry() {
    for (id, integrity) in (12..).zip(Integrity::ALL) {
        assert_eq!(integrity.id(), id);
        assert_eq!(Integrity::from_id(id), Some(integrity));
    }
    assert_eq!(Cbc::from_transform(12, 128), Some(Cbc::Aes128));
    assert_eq!(Cbc::from_transform(12, 256), Some(Cbc::Aes256));
    assert_eq!(Cbc::from_transform(12, 192), None);
    assert_eq!(Cbc::from_transform(20, 128), None);
}

/// RFC 3602 section 3: nobody may foretell an IV. Nor does one come twice, and
/// it is not the cipher's own view of a counter, which a chosen block could ask
/// for.
#[test]
fn each_message_has_an_iv_of_its_own() {
    for suite in suites() {
        let key = key(suite);
        let mut seen = std::collections::BTreeSet::new();
        for number in [0, 1, 2, 3, u64::from(u32::MAX), u64::MAX] {
            let iv = key.iv(number).unwrap();
            assert!(seen.insert(iv));
            assert_eq!(key.iv(number), Ok(iv));
            let mut block = u128::from(number).to_be_bytes();
            let mut icv = vec![0; suite.integrity.icv_len()];
            key.seal_in_place([0; 16], &[], &mut block, &[], &mut icv)
                .unwrap();
            assert_ne!(block, iv);
        }
        let other = EtmKey::new(
            suite,
            &vec![1; suite.cbc.key_len()],
            &vec![3; suite.integrity.key_len()],
        )
        .unwrap();
        assert_ne!(other.iv(0), key.iv(0));
    }
}

#[test]
fn every_cipher_seals_and_opens_and_refuses_what_was_changed() {
    for cipher in Cipher::all() {
        let keymat: Vec<u8> = (0..).take(cipher.keymat_len()).collect();
        let key = CipherKey::new(cipher, &keymat).unwrap();
        assert_eq!(key.cipher(), cipher);
        assert!(CipherKey::new(cipher, &keymat[1..]).is_err());
        assert!(CipherKey::new(cipher, &[]).is_err());
        let (mut iv, mut icv) = (vec![0; cipher.iv_len()], vec![0; cipher.icv_len()]);
        let mut text = [7; 32];
        key.seal_in_place(5, b"head", &mut iv, &mut text, &mut icv)
            .unwrap();
        assert_ne!(text, [7; 32]);
        let opened = |before: &[u8], iv: &[u8], icv: &[u8]| {
            let mut text = text;
            key.open_in_place(before, iv, &mut text, icv).map(|()| text)
        };
        assert_eq!(opened(b"head", &iv, &icv), Ok([7; 32]));
        assert!(opened(b"heat", &iv, &icv).is_err());
        assert!(opened(b"head", &iv[1..], &icv).is_err());
        assert!(opened(b"head", &iv, &icv[1..]).is_err());
        iv[0] ^= 1;
        assert!(opened(b"head", &iv, &icv).is_err());
    }
}

#[test]
fn ciphers_have_the_lengths_and_names_of_their_parts() {
    let all: Vec<_> = Cipher::all().collect();
    assert_eq!(all.len(), 8);
    let named: Vec<_> = all.iter().map(|c| (c.name(), c.keymat_len())).collect();
    assert_eq!(named[0], ("AES_GCM_16_256", 36));
    assert_eq!(named[1], ("AES_GCM_16_128", 20));
    assert_eq!(named[2], ("AES_CBC_256/HMAC_SHA2_256_128", 64));
    assert_eq!(named[7], ("AES_CBC_128/HMAC_SHA2_512_256", 80));
}
