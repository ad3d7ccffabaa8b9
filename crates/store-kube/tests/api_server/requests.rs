//! Certificate requests as `CertificateSigningRequest`s, written with tokens that are bound to nodes.

use testudo_crypto::{KeyType, SigningKey, SystemRandom};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{CertificateRequest, CertificateRequestSpec, NodeName, NodeUid};
use testudo_pki::{Ca, CaOptions, NodeIdentity, certificate_request, chain_to_pem, request_to_pem};
use testudo_store::conformance::requests::{Case, run};
use testudo_store::{Change, Requester, Store};
use testudo_store_kube::{USAGES, Writer};

use crate::world::World;

const NOW: u64 = 1_800_000_000;

fn asking(node: &str) -> (Vec<u8>, String) {
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let identity = NodeIdentity::new(node, "uid").unwrap();
    let der = certificate_request(&key, &identity).unwrap();
    let pem = request_to_pem(&der);
    (der, pem)
}

fn request(of: &str, node: &str) -> CertificateRequest {
    let spec = CertificateRequestSpec {
        node: NodeName::new(node).unwrap(),
        uid: NodeUid::new("uid").unwrap(),
        request: asking(node).1,
        proof: format!("0{}", of.len()),
    };
    CertificateRequest::new(node, spec)
}

pub(crate) async fn asked_and_answered(world: &World) {
    let node = world.agents_store("n1");
    let controller = world.store(Writer::Controller);
    let random = &mut SystemRandom::new();
    let ca = Ca::generate(&CaOptions::default(), NOW, random).unwrap();
    let (_, first) = asking("n1");
    let (der, second) = asking("n1");
    let identity = NodeIdentity::new("n1", "uid").unwrap();
    let issued = ca.sign_request(&der, &identity, 86_400, NOW, random);
    let certificate = chain_to_pem(&[issued.unwrap().der]);
    let case = Case {
        node: "n1",
        requests: [&first, &second],
        certificate: &certificate,
    };
    assert_eq!(run(&node, &controller, &case).await, Ok(()));
}

/// n1's token asks for n2: nobody takes that for n2's request, and the API server says who it was.
pub(crate) async fn strangers_are_told_apart(world: &World) {
    let n1 = world.agents_store("n1");
    let n2 = world.agents_store("n2");
    let controller = world.store(Writer::Controller);
    let own = n2.apply(request("n2", "n2")).await.unwrap().object;
    n1.apply(request("n1", "n2")).await.unwrap();
    // Without a token that is bound to any node.
    controller.apply(request("admin", "n2")).await.unwrap();
    let read = controller.get::<CertificateRequestKind>("n2").await;
    assert_eq!(read.unwrap(), Some(own.clone()));
    let listed = controller.list::<CertificateRequestKind>().await.unwrap();
    assert!(listed.problems.is_empty());
    let mut writers = Vec::new();
    for request in &listed.items {
        assert_eq!(request.spec.node.as_str(), "n2");
        match controller.requester(request).await.unwrap() {
            Requester::Authenticated(writer) => {
                let mut usages = writer.usages.clone();
                usages.sort();
                assert_eq!(usages, USAGES);
                writers.push((request.name().to_owned(), writer.username, writer.nodes));
            }
            Requester::HolderOf(_) => panic!("{}", request.name()),
        }
    }
    let account = "system:serviceaccount:testudo-system:testudo-agent";
    assert_eq!(writers.len(), 3, "{writers:?}");
    let n2s = ("n2".to_owned(), account.to_owned(), vec!["n2".to_owned()]);
    assert_eq!(writers[0], n2s);
    for (name, username, nodes) in &writers[1..] {
        assert!(name.starts_with("stranger."), "{name}");
        match username.as_str() {
            name if name == account => assert_eq!(nodes[..], ["n1"]),
            _ => assert!(nodes.is_empty(), "{nodes:?}"),
        }
    }
    // An agent sees what names its node, and no other's.
    let seen = n1.list::<CertificateRequestKind>().await.unwrap().items;
    assert!(seen.is_empty(), "{seen:?}");
    // They can be denied, each for itself.
    for mut stranger in listed.items.into_iter().skip(1) {
        stranger.status.answers = Some(stranger.spec.proof.clone());
        stranger.status.denied = Some("a stranger".to_owned());
        let denied = controller.update_status(&stranger).await.unwrap();
        assert_eq!(denied.status.denied.as_deref(), Some("a stranger"));
    }
    let read = controller.get::<CertificateRequestKind>("n2").await;
    assert_eq!(read.unwrap(), Some(own));
    world.kubectl(&["delete", "certificatesigningrequests", "--all"]);
}

/// Somebody approves by hand what must not be signed.
pub(crate) async fn approved_by_hand(world: &World) {
    let controller = world.store(Writer::Controller);
    let n1 = world.agents_store("n1");
    let mut asked = n1.apply(request("n1", "n1")).await.unwrap().object;
    let name = asked.metadata.annotations["testudo.dev/certificatesigningrequest"].clone();
    world.kubectl(&["certificate", "approve", &name]);
    asked.metadata.resource_version = None;
    asked.status.answers = Some(asked.spec.proof.clone());
    asked.status.denied = Some("two names".to_owned());
    let failed = controller.update_status(&asked).await.unwrap();
    assert_eq!(failed.status.denied.as_deref(), Some("two names"));
    let shown = world.kubectl(&["get", "certificatesigningrequest", &name]);
    assert!(shown.contains("Failed"), "{shown}");
    assert!(
        controller
            .delete::<CertificateRequestKind>("n1")
            .await
            .unwrap()
    );
}

/// Somebody has made what is to be the name of n1's request (L116): n1 asks under another, once.
pub(crate) async fn a_name_that_is_taken(world: &World) {
    let n1 = world.agents_store("n1");
    let asked = request("n1", "n1");
    let name = |request: &CertificateRequest| {
        let name = testudo_store_kube::name_of(request);
        name.unwrap().to_owned()
    };
    // The name is known from one that was there.
    let first = n1.apply(asked.clone()).await.unwrap().object;
    let taken = name(&first);
    world.kubectl(&["delete", "certificatesigningrequest", &taken]);
    // With another key; and the same, which was not written by n1.
    let (other, same) = (request("n1", "n1").spec.request, &asked.spec.request);
    for (request, mut stands) in [(&other, asked.clone()), (same, asked.clone())] {
        stands.spec.request.clone_from(request);
        let manifest = serde_json::json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {
                "name": taken,
                "labels": { "testudo.dev/node": "n1" },
                "annotations": {
                    "testudo.dev/node": "n1",
                    "testudo.dev/uid": "uid",
                    "testudo.dev/proof": stands.spec.proof,
                },
            },
            "spec": {
                "signerName": testudo_store_kube::SIGNER,
                "request": k8s_openapi::ByteString(request.clone().into_bytes()),
                "usages": USAGES,
            },
        });
        world.create(&manifest);
        let applied = n1.apply(asked.clone()).await.unwrap();
        assert_eq!(applied.change, Change::Created);
        assert_ne!(name(&applied.object), taken);
        assert_eq!(applied.object.spec, asked.spec);
        let seen = n1.get::<CertificateRequestKind>("n1").await.unwrap();
        assert_eq!(seen.as_ref(), Some(&applied.object));
        let again = n1.apply(asked.clone()).await.unwrap();
        assert_eq!(
            (again.change, again.object),
            (Change::Unchanged, applied.object)
        );
        world.kubectl(&["delete", "certificatesigningrequests", "--all"]);
    }
}
