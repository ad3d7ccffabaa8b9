//! Who gets a certificate, and who does not and why.

use rcgen::{CertificateParams, KeyPair, SanType};
use testudo_pki::{ExpectedPeer, NodeIdentity, verify_chain};

use crate::daemon::Daemon;
use crate::world::{Asking, World, now, pkcs10, wait};

pub(crate) fn signed_or_denied(world: &World, leader: &Daemon) {
    let (n1, n2) = (world.node("n1"), world.node("n2"));
    let good = world.own("n1", &n1);
    let name = world.ask(&good);
    let pem = world.answer(&name).unwrap();
    let chain = testudo_pki::chain_from_pem(&pem).unwrap();
    let identity = NodeIdentity::new("n1", &n1).unwrap();
    let expected = ExpectedPeer::Node(&identity);
    verify_chain(&[&chain[0]], &world.bundle(), expected, now()).unwrap();

    let with = |change: &dyn Fn(&mut Asking)| {
        let mut asking = good.clone();
        change(&mut asking);
        asking
    };
    let usages = |list: &[&str]| list.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
    let two = two_names(&n1);
    let bad = [
        (
            "asked by node n1 for node n2",
            with(&|a| {
                a.node = "n2".to_owned();
                a.uid.clone_from(&n2);
                a.request = pkcs10("n2", &n2);
            }),
        ),
        // n1's own request around what is another's.
        ("n1", with(&|a| a.request = pkcs10("n2", &n2))),
        ("n2.node.testudo", with(&|a| a.request.clone_from(&two))),
        (
            "the usages asked for are",
            with(&|a| a.usages = usages(&["digital signature", "server auth"])),
        ),
        (
            "the usages asked for are",
            with(&|a| a.usages = usages(&["digital signature", "ipsec end system", "client auth"])),
        ),
        (
            "only system:serviceaccount:testudo-system:testudo-agent may ask",
            with(&|a| a.token = None),
        ),
        (
            "bound to no node",
            with(&|a| a.token = Some(world.token("testudo-agent", None))),
        ),
        (
            "has UID",
            with(&|a| {
                a.uid.clone_from(&n2);
                a.request = pkcs10("n1", &n2);
            }),
        ),
    ];
    // Another signer's requests are none of ours.
    let foreign = world.ask(&with(&|a| {
        a.signer = "example.com/other".to_owned();
        a.token = None;
    }));
    // One after the other: of several of one node the newest alone is looked at.
    for (why, asking) in &bad {
        let name = world.ask(asking);
        let denied = world.answer(&name).unwrap_err();
        assert!(denied.contains(why), "{name}: {denied}: {why}");
        eprintln!("   denied: {denied}");
        let told = wait("an Event", || {
            let events = world.events("CertificateDenied");
            events
                .into_iter()
                .find(|event| event["regarding"]["name"] == name.as_str())
        });
        assert_eq!(told["type"], "Warning");
        assert!(told["note"].as_str().unwrap().contains(&denied));
    }
    assert_eq!(world.answered(&foreign), None);
    let denied = |reason: &str| {
        let name = "testudo_controller_requests_denied_total";
        leader.metric(&format!("{name}{{reason=\"{reason}\"}}"))
    };
    assert_eq!(denied("stranger"), Some(6.0));
    assert_eq!(denied("request"), Some(2.0));
    let signed = leader.metric("testudo_controller_certificates_signed_total");
    assert_eq!(signed, Some(1.0));
    assert!(leader.log().contains("certificate denied: "));
}

/// A request of n1 that asks for n2 as well.
fn two_names(uid: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "n1");
    let names = [NodeIdentity::new("n1", uid), NodeIdentity::new("n2", uid)];
    for name in names {
        let name = name.unwrap().dns_name();
        let name = SanType::DnsName(name.try_into().unwrap());
        params.subject_alt_names.push(name);
    }
    let request = params.serialize_request(&key).unwrap();
    testudo_pki::request_to_pem(request.der())
}
