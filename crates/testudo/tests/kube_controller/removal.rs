//! A Node that is deleted, and one that is made anew under its name.

use std::time::Instant;

use testudo_pki::{CertificateCheck, ExpectedPeer, verify_chain};

use crate::daemon::Daemon;
use crate::rollout::publish;
use crate::world::{World, now, wait};

pub(crate) fn revoked(world: &World, leader: &Daemon) {
    let uid = world.node("n3");
    let old_token = world.token("testudo-agent", Some("n3"));
    let old = world.certificate("n3", &uid);
    publish(world, "n3", &uid);
    let verdict = |certificate: &[u8]| {
        let verified = verify_chain(
            &[certificate],
            &world.bundle(),
            ExpectedPeer::AnyNode,
            now(),
        );
        verified.map(drop).map_err(|error| error.check)
    };
    assert_eq!(verdict(&old), Ok(()));
    let began = Instant::now();
    world.kubectl(&["delete", "node", "n3"]);
    wait("it is revoked", || {
        (verdict(&old) == Err(CertificateCheck::Revoked)).then_some(())
    });
    eprintln!("   revoked after {:.1} s", began.elapsed().as_secs_f32());
    wait("its object is gone", || {
        world.get("nodeencryption n3").is_none().then_some(())
    });
    wait("an Event", || {
        let events = world.events("NodeRevoked");
        let about = |event: &&serde_json::Value| event["regarding"]["name"] == "n3";
        events.iter().find(about).is_some().then_some(())
    });
    assert_eq!(
        leader.metric("testudo_controller_certificates_revoked_total"),
        Some(1.0)
    );

    // Another node of that name: what the old one held is worth nothing, and it gets its own.
    let new_uid = world.node("n3");
    assert_ne!(new_uid, uid);
    let refused = world.kubectl_as(&old_token, &["get", "csr"]).unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("Unauthorized") || refused.contains("must be logged in"),
        "{refused}"
    );
    let new = world.certificate("n3", &new_uid);
    assert_eq!(verdict(&new), Ok(()));
    assert_eq!(verdict(&old), Err(CertificateCheck::Revoked));
    publish(world, "n3", &new_uid);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(world.get("nodeencryption n3").is_some(), "it stays");
    world.kubectl(&["delete", "nodeencryption", "n3"]);
}
