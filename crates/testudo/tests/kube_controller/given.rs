//! A CA that somebody gives, in a Secret as cert-manager makes one.

use serde_json::{Value, json};
use testudo_crypto::SystemRandom;
use testudo_pki::{Ca, CaOptions};

use crate::secrets::until_told;
use crate::world::{NAMESPACE, World, base64, now, wait};

fn secret(ca: &Ca) -> Value {
    let certificate = base64(ca.certificate_pem().as_bytes());
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": { "name": "given-ca", "namespace": NAMESPACE },
        "data": {
            "tls.crt": certificate,
            "ca.crt": certificate,
            "tls.key": base64(ca.key_pem().unwrap().as_bytes()),
        },
    })
}

pub(crate) fn used(world: &World) {
    let random = &mut SystemRandom::new();
    let mut make = || Ca::generate(&CaOptions::default(), now(), random).unwrap();
    let (first, second) = (make(), make());
    let name = |ca: &Ca| ca.facts().subject.clone();
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
    world.apply(&secret(&first));
    let signs = |ca: &Ca| {
        wait("the CA signs", || {
            let bundle = world.get("trustbundle cluster")?;
            (bundle["status"]["signer"] == name(ca)).then_some(())
        });
    };
    signs(&first);
    let uid = world.node("n1");
    let issuer = |certificate: &[u8]| {
        let facts = testudo_pki::CertificateFacts::read(certificate).unwrap();
        facts.issuer
    };
    assert_eq!(issuer(&world.certificate("n1", &uid)), name(&first));
    assert_eq!(controller.page("/readyz").unwrap().0, 200);

    // One that cannot be used changes nothing.
    let given = "secret given-ca";
    world.patch(
        given,
        &json!({ "data": { "tls.key": base64(b"no key") } }),
        &[],
    );
    until_told(world, "GivenCaUnusable");
    assert_eq!(issuer(&world.certificate("n1", &uid)), name(&first));

    // The next one follows as any CA does.
    world.apply(&secret(&second));
    until_told(world, "AsExpected");
    let rotate = json!({ "spec": { "certificates": { "caRotation": 1 } } });
    world.patch("encryptionpolicy cluster", &rotate, &[]);
    signs(&second);
    assert_eq!(issuer(&world.certificate("n1", &uid)), name(&second));
    wait("an Event", || {
        (world.events("CaRotation").len() >= 2).then_some(())
    });
    controller.lives();
}
