//! Who gets a certificate, and who does not and why.

use rcgen::{CertificateParams, KeyPair, SanType};
use testudo_pki::{ExpectedPeer, NodeIdentity, verify_chain};

use crate::daemon::Daemon;
use crate::world::{Asking, NAMESPACE, World, now, pkcs10, wait};

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
        (
            "only system:serviceaccount:testudo-system:testudo-agent may ask",
            with(&|a| a.token = Some(bystander(world))),
        ),
        (
            "the annotation testudo.dev/node \"n1,n2\" names no node",
            with(&|a| a.node = "n1,n2".to_owned()),
        ),
        (
            "the annotation testudo.dev/uid \"of n1\" is no UID",
            with(&|a| a.uid = "of n1".to_owned()),
        ),
        (
            "/spec/request is no text",
            with(&|a| a.before = b"\xff\n".to_vec()),
        ),
    ];
    // Another signer's requests are none of ours.
    let foreign = world.ask(&with(&|a| {
        a.signer = "example.com/other".to_owned();
        a.token = None;
    }));
    // One after the other: of several of one node the newest alone is signed.
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
    assert_eq!(denied("stranger"), Some(7.0));
    assert_eq!(denied("request"), Some(2.0));
    assert_eq!(denied("unfit"), Some(3.0));
    let signed = leader.metric("testudo_controller_certificates_signed_total");
    assert_eq!(signed, Some(1.0));
    assert!(leader.log().contains("certificate denied: "));
}

/// A token of another ServiceAccount that may make requests too, bound to n1.
fn bystander(world: &World) -> String {
    let account = ["create", "serviceaccount", "bystander", "-n", NAMESPACE];
    world.kubectl(&account);
    let subject = format!("--serviceaccount={NAMESPACE}:bystander");
    let bind = ["create", "clusterrolebinding", "bystander"];
    world.kubectl(&[&bind[..], &["--clusterrole=testudo-agent", &subject]].concat());
    world.token("bystander", Some("n1"))
}

/// Requests with n1's name on them that stand there before anybody looks.
pub(crate) struct AtOnce {
    older: String,
    newest: String,
    bystanders: String,
}

/// While nobody leads n1's agent asks twice (its state was lost between), and then somebody else on that node.
pub(crate) fn at_once(world: &World) -> AtOnce {
    let uid = world.get("node n1").unwrap()["metadata"]["uid"].clone();
    let ask = |token: Option<String>| {
        let mut asking = world.own("n1", uid.as_str().unwrap());
        asking.token = token.or(asking.token);
        world.ask(&asking)
    };
    AtOnce {
        older: ask(None),
        newest: ask(None),
        bystanders: ask(Some(world.token("bystander", Some("n1")))),
    }
}

/// Each has an answer of its own, and the newest of the agent's alone is signed.
pub(crate) fn each_is_answered(world: &World, asked: &AtOnce) {
    world.answer(&asked.newest).unwrap();
    let older = world.answer(&asked.older).unwrap_err();
    assert!(older.contains("the node has asked again since"), "{older}");
    let bystanders = world.answer(&asked.bystanders).unwrap_err();
    assert!(bystanders.contains("may ask"), "{bystanders}");
    for name in [&asked.older, &asked.bystanders] {
        wait("an Event", || {
            let events = world.events("CertificateDenied");
            let mut about = events.iter().map(|event| &event["regarding"]["name"]);
            about.any(|named| named == name).then_some(())
        });
    }
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
