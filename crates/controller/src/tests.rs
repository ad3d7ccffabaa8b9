//! The controller on a real directory store, with nodes that acknowledge as agents do.

use std::path::Path;
use std::time::{Duration, Instant};

use testudo_crypto::{KeyType, SecretBytes, SigningKey};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{
    CLUSTER, EncryptionPolicyKind, EncryptionPolicySpec, Mode, Overlay, OverlayType,
};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    Acknowledgement, CertificateRequest, CertificateRequestSpec, ConditionStatus, EncryptionPolicy,
    NodeEncryption, NodeEncryptionSpec, NodeName, NodeUid, Object, Phase,
};
use testudo_pki::{
    ExpectedPeer, NodeIdentity, TrustBundle, certificate_request, chain_from_pem, hex, join_proof,
    request_to_pem, verify_chain,
};
use testudo_store::{DirStore, Event, Store, change_status, tokens};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{Options, run};

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let options = Options {
            store: format!("dir:{}", dir.display()),
            ..Options::default()
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(options, async {
            let _ = stopped.await;
        }));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn node(name: &str) -> NodeEncryption {
    Object::new(
        name,
        NodeEncryptionSpec {
            uid: NodeUid::new(format!("uid-{name}")).unwrap(),
            boot_id: "boot".parse().unwrap(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            pod_cidrs: vec![],
            datapath: "user".into(),
            agent_socket: None,
        },
    )
}

/// Acknowledges every phase, as an agent does.
async fn acknowledge(store: DirStore, name: &str) {
    let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
    while let Some(event) = watch.next().await {
        let (Event::Added(policy) | Event::Modified(policy)) = event else {
            continue;
        };
        let word = Acknowledgement {
            phase: policy.status.phase,
            rollout: policy.status.rollout,
        };
        change_status::<_, NodeEncryptionKind>(&store, name, |_, status| {
            status.acknowledged = Some(word);
        })
        .await
        .unwrap();
    }
}

async fn want(store: &DirStore, mode: Mode) {
    let overlay = Overlay {
        kind: OverlayType::Vxlan,
        ..Overlay::default()
    };
    let spec = EncryptionPolicySpec {
        mode,
        overlay,
        ..EncryptionPolicySpec::default()
    };
    store
        .apply(EncryptionPolicy::new(CLUSTER, spec))
        .await
        .unwrap();
}

/// Waits until the policy is as wanted.
async fn until(store: &DirStore, wanted: impl Fn(&EncryptionPolicy) -> bool) {
    let follow = async {
        let mut watch = store.watch::<EncryptionPolicyKind>().await.unwrap();
        while let Some(event) = watch.next().await {
            let (Event::Added(policy) | Event::Modified(policy)) = event else {
                continue;
            };
            let current = policy.status.observed_generation == policy.metadata.generation;
            if current && wanted(&policy) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, follow)
        .await
        .expect("in time");
}

fn arrived(phase: Phase) -> impl Fn(&EncryptionPolicy) -> bool {
    move |p| p.status.phase == phase && p.status.waiting_on.is_empty() && p.status.nodes > 0
}

#[tokio::test]
async fn three_nodes_go_to_strict_and_back_step_by_step() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let controller = Running::start(dir.path());
    for name in ["n1", "n2", "n3"] {
        store.create(node(name)).await.unwrap();
        tokio::spawn(acknowledge(store.clone(), name));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    want(&store, Mode::Full).await;
    until(&store, arrived(Phase::Strict)).await;
    println!("strict after {:?}", began.elapsed());
    let policy = store
        .get::<EncryptionPolicyKind>(CLUSTER)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (policy.status.nodes, policy.status.nodes_acknowledged),
        (3, 3)
    );
    let ready = policy.status.conditions.iter().find(|c| c.kind == "Ready");
    assert_eq!(ready.unwrap().status, ConditionStatus::True);

    // Quiet when there is nothing to do: no write changes the object's version.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let later = store
        .get::<EncryptionPolicyKind>(CLUSTER)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        later.metadata.resource_version,
        policy.metadata.resource_version
    );

    want(&store, Mode::Disabled).await;
    until(&store, arrived(Phase::Disabled)).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_node_that_says_nothing_is_named_and_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    store.create(node("n1")).await.unwrap();
    store.create(node("n2")).await.unwrap();
    tokio::spawn(acknowledge(store.clone(), "n1"));
    let controller = Running::start(dir.path());
    want(&store, Mode::Full).await;
    until(&store, |p| {
        p.status.target == Phase::Strict && p.status.waiting_on == ["n2"]
    })
    .await;
    // A restart forgets nothing, and does not step over the silent node.
    controller.stop().await;
    let controller = Running::start(dir.path());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let policy = store
        .get::<EncryptionPolicyKind>(CLUSTER)
        .await
        .unwrap()
        .unwrap();
    assert!(policy.status.phase <= Phase::Prepared);
    tokio::spawn(acknowledge(store.clone(), "n2"));
    until(&store, arrived(Phase::Strict)).await;
    controller.stop().await;
}

/// A request of `name`, proven with `token`, and its key's public part.
fn request(name: &str, token: &SecretBytes) -> CertificateRequest {
    let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
    let uid = format!("uid-{name}");
    let identity = NodeIdentity::new(name, &uid).unwrap();
    let der = certificate_request(&key, &identity).unwrap();
    Object::new(
        name,
        CertificateRequestSpec {
            node: NodeName::new(name).unwrap(),
            proof: hex(&join_proof(token, name, &uid, &der)),
            uid: NodeUid::new(uid).unwrap(),
            request: request_to_pem(&der),
        },
    )
}

/// The answer to the request that stands in the store under this name now.
async fn answer(store: &DirStore, name: &str) -> CertificateRequest {
    let follow = async {
        let mut watch = store.watch::<CertificateRequestKind>().await.unwrap();
        while let Some(event) = watch.next().await {
            if let Event::Added(r) | Event::Modified(r) = event
                && r.name() == name
                && r.status.answers.as_ref() == Some(&r.spec.proof)
            {
                return r;
            }
        }
        panic!("the watch has ended");
    };
    tokio::time::timeout(PATIENCE, follow)
        .await
        .expect("in time")
}

fn token(store: &DirStore, name: &str) -> SecretBytes {
    let token = tokens::ensure(store, &NodeName::new(name).unwrap()).unwrap();
    SecretBytes::new(token.as_bytes().to_vec())
}

#[tokio::test]
async fn requests_are_signed_or_denied_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let (n1, _n2) = (token(&store, "n1"), token(&store, "n2"));
    let controller = Running::start(dir.path());

    store.apply(request("n1", &n1)).await.unwrap();
    let signed = answer(&store, "n1").await.status;
    assert_eq!(signed.denied, None);
    let chain = chain_from_pem(&signed.certificate.unwrap()).unwrap();
    let bundle = store
        .get::<TrustBundleKind>(CLUSTER)
        .await
        .unwrap()
        .unwrap();
    let bundle = TrustBundle::from_pem(&bundle.spec.certificates).unwrap();
    let identity = NodeIdentity::new("n1", "uid-n1").unwrap();
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    let expected = ExpectedPeer::Node(&identity);
    verify_chain(&chain, &bundle, expected, crate::run::seconds()).unwrap();

    // n1's token does not make n2's certificate.
    store.apply(request("n2", &n1)).await.unwrap();
    let denied = answer(&store, "n2").await.status;
    assert_eq!(denied.certificate, None);
    assert!(denied.denied.unwrap().contains("join token of node n2"));

    // A later request gets an answer of its own, from the same CA after a restart.
    controller.stop().await;
    let controller = Running::start(dir.path());
    store.apply(request("n1", &n1)).await.unwrap();
    let second = answer(&store, "n1").await.status.certificate.unwrap();
    let second = chain_from_pem(&second).unwrap();
    assert_ne!(chain[0], second[0]);
    verify_chain(&[&second[0]], &bundle, expected, crate::run::seconds()).unwrap();
    controller.stop().await;
}

#[tokio::test]
async fn broken_objects_and_foreign_cas_do_not_get_far() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let n1 = token(&store, "n1");
    let broken = dir.path().join("nodeencryptions/n9.yaml");
    std::fs::write(&broken, "kind: NodeEncryption\nspec: [").unwrap();
    std::fs::write(dir.path().join("certificaterequests/n8.yaml"), "").unwrap();
    let controller = Running::start(dir.path());
    store.apply(request("n1", &n1)).await.unwrap();
    assert_eq!(answer(&store, "n1").await.status.denied, None);

    let mut bundle = store
        .get::<TrustBundleKind>(CLUSTER)
        .await
        .unwrap()
        .unwrap();
    let good = bundle.spec.certificates.clone();
    bundle.spec.certificates = "none".into();
    // Whoever writes it does not care what the controller has written meanwhile.
    bundle.metadata.resource_version = None;
    store.apply(bundle).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let bundle = store
            .get::<TrustBundleKind>(CLUSTER)
            .await
            .unwrap()
            .unwrap();
        if bundle.spec.certificates == good {
            break;
        }
        assert!(Instant::now() < deadline, "the bundle was not put right");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    controller.stop().await;
}

#[tokio::test]
async fn there_is_one_controller_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let first = Running::start(dir.path());
    until_published(&store).await;
    let second = Running::start(dir.path()).task.await.unwrap();
    assert!(
        second
            .unwrap_err()
            .to_string()
            .contains("another controller")
    );
    first.stop().await;
    let third = Running::start(dir.path());
    tokio::time::sleep(Duration::from_millis(50)).await;
    third.stop().await;
}

async fn until_published(store: &DirStore) {
    let mut watch = store.watch::<TrustBundleKind>().await.unwrap();
    while !matches!(watch.next().await, Some(Event::Added(_))) {}
}

mod external;
mod gates;
mod giving;
mod holding;
mod many;
mod progress;
mod reluctant;
mod removal;
mod rotation;
mod stale;
