//! A CA that somebody gives, in a Secret as cert-manager 1.21.2 was seen to write one: docs/kubernetes.md, "A
//! CA of your own".

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyIdMethod, KeyPair};
use rcgen::{DistinguishedName, KeyUsagePurpose};
use serde_json::{Value, json};
use testudo_crypto::{KeyType, Random, SigningKey, SystemRandom};
use testudo_pki::{CertificateFacts, key_to_pem};

use crate::secrets::until_told;
use crate::world::{NAMESPACE, World, base64, now, wait};

const USAGES: &[KeyUsagePurpose] = &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

/// What cert-manager issues for a Certificate with `isCA: true` of a self-signed issuer: no path length, valid
/// from this second on, the name of its key no hash that we would take, and no word on whose key signed it.
struct Made {
    name: String,
    certificate: String,
    key: String,
}

impl Made {
    fn new(name: &str, usages: &[KeyUsagePurpose]) -> Made {
        Made::of_the_key(name, usages, &KeyPair::generate().unwrap())
    }

    fn of_the_key(name: &str, usages: &[KeyUsagePurpose], key: &KeyPair) -> Made {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        let mut key_name = [0; 20];
        SystemRandom::new().fill(&mut key_name);
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_name.to_vec());
        let now = i64::try_from(now()).unwrap();
        let date = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        params.not_before = date(now);
        params.not_after = date(now + 87_600 * 3600);
        Made {
            name: name.to_owned(),
            certificate: params.self_signed(key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn with_key(&self, key: String) -> Made {
        Made {
            name: self.name.clone(),
            certificate: self.certificate.clone(),
            key,
        }
    }

    /// With the label and the annotations that are there; no owner, and `ca.crt` beside the two.
    fn secret(&self) -> Value {
        let certificate = base64(self.certificate.as_bytes());
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {
                "name": "given-ca",
                "namespace": NAMESPACE,
                "labels": { "controller.cert-manager.io/fao": "true" },
                "annotations": {
                    "cert-manager.io/alt-names": "",
                    "cert-manager.io/certificate-name": "testudo-ca-1",
                    "cert-manager.io/common-name": self.name,
                    "cert-manager.io/ip-sans": "",
                    "cert-manager.io/issuer-group": "",
                    "cert-manager.io/issuer-kind": "",
                    "cert-manager.io/issuer-name": "selfsigned",
                    "cert-manager.io/uri-sans": "",
                },
            },
            "data": {
                "ca.crt": certificate,
                "tls.crt": certificate,
                "tls.key": base64(self.key.as_bytes()),
            },
        })
    }
}

pub(crate) fn used(world: &World) {
    let key = KeyPair::generate().unwrap();
    let first = Made::of_the_key("Testudo CA 1", USAGES, &key);
    // To begin anew.
    world.kubectl(&["delete", "trustbundle", "cluster"]);
    world.kubectl(&["delete", "nodeencryption", "--all"]);
    let ours = ["testudo-ca", "testudo-certificates"];
    let delete = ["delete", "secret", "-n", NAMESPACE];
    world.kubectl(&[&delete[..], &ours].concat());

    let controller = world.controller("given", &["--ca-secret", "given-ca"]);
    until_told(world, "GivenCaMissing");
    assert_eq!(world.get("secret testudo-ca"), None, "no other CA is made");
    wait("it is not ready", || {
        (controller.page("/readyz")?.0 == 503).then_some(())
    });
    world.apply(&first.secret());
    let signs = |ca: &Made| {
        wait("the CA signs", || {
            let bundle = world.get("trustbundle cluster")?;
            (bundle["status"]["signer"] == ca.name).then_some(())
        });
    };
    signs(&first);
    let uid = world.node("n1");
    let issuer = || {
        let certificate = world.certificate("n1", &uid);
        CertificateFacts::read(&certificate).unwrap().issuer
    };
    assert_eq!(issuer(), first.name);
    assert_eq!(controller.page("/readyz").unwrap().0, 200);

    // One that cannot be used changes nothing: another encoding, algorithm or use than is asked of cert-manager.
    for (unusable, part) in unusable(&first) {
        world.apply(&unusable.secret());
        let told = wait(part, || {
            let told = until_told(world, "GivenCaUnusable");
            let message = told["message"].as_str()?.to_owned();
            message.contains(part).then_some(message)
        });
        eprintln!("   {told}");
    }
    assert_eq!(issuer(), first.name);

    // As cert-manager renews one, with another key or the same: the old one goes on, and it is told once.
    rotate(world, 1);
    held(world, "the CA is not replaced: Secret");
    let of_the_key = Made::of_the_key("Testudo CA 1b", USAGES, &key);
    let renewed = Made::new(&first.name, USAGES);
    for (renewed, part) in [(&renewed, "of the name"), (&of_the_key, "a key of its own")] {
        world.apply(&renewed.secret());
        held(world, part);
        for count in 0..5 {
            let annotation =
                json!({ "metadata": { "annotations": { "test": count.to_string() } } });
            world.patch("encryptionpolicy cluster", &annotation, &[]);
        }
        assert_eq!(issuer(), first.name);
        let log = controller.log();
        let lines = log.lines().filter(|line| line.contains("is not replaced"));
        assert_eq!(lines.filter(|line| line.contains(part)).count(), 1, "{log}");
    }
    until_told(world, "AsExpected");

    // The next one follows as any CA does.
    let second = Made::new("Testudo CA 2", USAGES);
    world.apply(&second.secret());
    signs(&second);
    assert_eq!(issuer(), second.name);
    wait("an Event", || {
        (world.events("CaRotation").len() >= 2).then_some(())
    });
    controller.lives();
}

/// What is put into the Secret, and what is said of it.
fn unusable(good: &Made) -> Vec<(Made, &'static str)> {
    let rsa = SigningKey::generate(KeyType::Rsa).unwrap();
    let rsa = String::from_utf8(key_to_pem(&rsa).unwrap().as_bytes().to_vec()).unwrap();
    let rsa = KeyPair::from_pem_and_sign_algo(&rsa, &rcgen::PKCS_RSA_SHA256).unwrap();
    // What cert-manager writes unless `encoding: PKCS8` is asked for, by its first line.
    let traditional = good.key.replace("PRIVATE KEY", "EC PRIVATE KEY");
    vec![
        (
            good.with_key("no key".to_owned()),
            "it holds no PRIVATE KEY",
        ),
        (Made::of_the_key("RSA", USAGES, &rsa), "RsaPss"),
        (good.with_key(traditional), "privateKey.encoding"),
        (Made::new("No lists", &USAGES[..1]), "cRLSign"),
    ]
}

fn rotate(world: &World, number: u64) {
    let rotate = json!({ "spec": { "certificates": { "caRotation": number } } });
    world.patch("encryptionpolicy cluster", &rotate, &[]);
}

/// Waits until the bundle's status and an Event say why the CA is not replaced.
fn held(world: &World, part: &str) {
    wait(part, || {
        let bundle = world.get("trustbundle cluster")?;
        assert_eq!(bundle["status"]["phase"], "Settled");
        let message = bundle["status"]["message"].as_str()?;
        message.contains(part).then_some(())
    });
    wait("an Event", || {
        let events = world.events("CaRotationHeld");
        let such = |event: &Value| {
            event["note"]
                .as_str()
                .is_some_and(|note| note.contains(part))
        };
        events.iter().any(such).then_some(())
    });
}
