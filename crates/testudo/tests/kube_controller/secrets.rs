//! Secrets that somebody breaks, removes or replaces while the controller runs.

use serde_json::{Value, json};
use testudo_crypto::SystemRandom;
use testudo_pki::{Ca, CaOptions};

use crate::daemon::Daemon;
use crate::rollout::policy;
use crate::world::{World, base64, now, wait};

const CA: &str = "secret testudo-ca";

/// Waits for the condition; `reason` of the trouble, or `AsExpected`.
pub(crate) fn until_told(world: &World, reason: &str) -> Value {
    wait(&format!("the condition says {reason}"), || {
        let policy = policy(world);
        let conditions = policy["status"]["conditions"].as_array().cloned()?;
        let found = conditions
            .into_iter()
            .find(|c| c["type"] == "SecretsUsable")?;
        assert_eq!(
            found["observedGeneration"],
            policy["metadata"]["generation"]
        );
        (found["reason"] == reason).then_some(found)
    })
}

/// A Secret's data and who it is.
fn stands(world: &World, what: &str) -> Option<(Value, Value)> {
    let secret = world.get(what)?;
    let version = secret["metadata"]["resourceVersion"].clone();
    Some((secret["data"].clone(), version))
}

/// An object to be made again.
fn copy(world: &World, what: &str) -> Value {
    let mut secret = world.get(what).unwrap();
    let name = secret["metadata"]["name"].clone();
    let namespace = secret["metadata"]["namespace"].clone();
    secret["metadata"] = json!({ "name": name, "namespace": namespace });
    secret
}

pub(crate) fn broken(world: &World, leader: &Daemon) {
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    let uid = uid.as_str().unwrap();
    let good = copy(world, CA);
    let bundle = world.bundle().to_pem();
    let other = Ca::generate(&CaOptions::default(), now(), &mut SystemRandom::new()).unwrap();
    let mut foreign = other.certificate_pem().into_bytes();
    foreign.extend_from_slice(other.key_pem().unwrap().as_bytes());
    for (reason, document) in [
        ("CaUnusable", json!(base64(b"no CA at all"))),
        ("CaUnusable", Value::Null),
        ("CaForeign", json!(base64(&foreign))),
    ] {
        world.patch(CA, &json!({ "data": { "document": document } }), &[]);
        let put = stands(world, CA);
        let condition = until_told(world, reason);
        assert_eq!(condition["status"], "False", "{condition}");
        wait("an Event", || {
            let events = world.events(reason);
            let about = |event: &Value| event["regarding"]["name"] == "testudo-ca";
            events.iter().any(about).then_some(())
        });
        assert!(leader.log().contains("what was read last goes on"));
        // The last good state goes on.
        world.certificate("n1", uid);
        assert_eq!(world.bundle().to_pem(), bundle);
        assert_eq!(stands(world, CA), put, "nothing is overwritten");
        assert_eq!(
            leader.metric("testudo_controller_unusable_secrets"),
            Some(1.0)
        );
        let data = good["data"].clone();
        world.patch(CA, &json!({ "data": data }), &[]);
        until_told(world, "AsExpected");
    }
    world.kubectl(&["delete", "secret", "testudo-ca", "-n", "testudo-system"]);
    until_told(world, "CaMissing");
    world.certificate("n1", uid);
    assert_eq!(world.get(CA), None, "no other CA is made");
    world.apply(&good);
    until_told(world, "AsExpected");

    // Without the register nothing is given out that could not be taken back.
    let register = copy(world, "secret testudo-certificates");
    let delete = ["delete", "secret", "testudo-certificates"];
    world.kubectl(&[&delete[..], &["-n", "testudo-system"]].concat());
    until_told(world, "RegisterMissing");
    let asked = world.ask(&world.own("n1", uid));
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(world.answered(&asked), None);
    assert_eq!(world.get("secret testudo-certificates"), None);
    world.apply(&register);
    until_told(world, "AsExpected");
    world.answer(&asked).unwrap();
    leader.lives();
}
