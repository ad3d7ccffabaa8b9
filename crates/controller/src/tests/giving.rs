//! Answers that cannot be written: the others' are, and nothing is signed twice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use testudo_metrics::Source;
use testudo_model::{EncryptionPolicyStatus, Kind};
use testudo_store::{Applied, Listing, Requester, StoreError, Watch};

use super::reluctant::Reluctant;
use super::*;
use crate::register::{Holder, Register};
use crate::run::Controller;
use crate::{DirSafe, Numbers};

/// What a store leaves out of a status that it is given.
type Cut = fn(&mut EncryptionPolicyStatus);

/// A store that takes no answer to the requests of these nodes.
#[derive(Clone)]
pub(super) struct Refusing {
    pub(super) store: DirStore,
    nodes: Arc<Mutex<BTreeSet<String>>>,
    /// Nor the removal of these nodes' objects.
    kept: Arc<Mutex<BTreeSet<String>>>,
    /// What it leaves out of the policy's status.
    cut: Arc<Mutex<Option<Cut>>>,
    /// Writes of the policy's status.
    writes: Arc<AtomicUsize>,
}

impl Refusing {
    fn refuse(&self, nodes: &[&str]) {
        let nodes = nodes.iter().map(|node| (*node).to_owned());
        *self.nodes.lock().unwrap() = nodes.collect();
    }

    pub(super) fn cut(&self, cut: Cut) {
        *self.cut.lock().unwrap() = Some(cut);
    }

    pub(super) fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    pub(super) fn keep(&self, nodes: &[&str]) {
        let nodes = nodes.iter().map(|node| (*node).to_owned());
        *self.kept.lock().unwrap() = nodes.collect();
    }
}

impl Store for Refusing {
    async fn get<K: Kind>(&self, name: &str) -> Result<Option<Object<K>>, StoreError> {
        self.store.get(name).await
    }

    async fn list<K: Kind>(&self) -> Result<Listing<K>, StoreError> {
        self.store.list().await
    }

    async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, StoreError> {
        self.store.create(object).await
    }

    async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Applied<K>, StoreError> {
        self.store.apply(object).await
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        if K::KIND == CertificateRequestKind::KIND
            && self.nodes.lock().unwrap().contains(object.name())
        {
            return Err(StoreError::Unavailable {
                what: format!("a webhook forbids it for {}", object.name()),
                remedy: "none".to_owned(),
            });
        }
        if K::KIND != EncryptionPolicyKind::KIND {
            return self.store.update_status(object).await;
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        let Some(cut) = *self.cut.lock().unwrap() else {
            return self.store.update_status(object).await;
        };
        let whole = serde_json::to_value(object).unwrap();
        let mut policy: EncryptionPolicy = serde_json::from_value(whole).unwrap();
        cut(&mut policy.status);
        let written = self.store.update_status(&policy).await?;
        Ok(serde_json::from_value(serde_json::to_value(written).unwrap()).unwrap())
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<bool, StoreError> {
        if K::KIND == NodeEncryptionKind::KIND && self.kept.lock().unwrap().contains(name) {
            return Err(StoreError::Unavailable {
                what: format!("a webhook forbids the removal of {name}"),
                remedy: "none".to_owned(),
            });
        }
        self.store.delete::<K>(name).await
    }

    async fn watch<K: Kind>(&self) -> Result<Watch<K>, StoreError> {
        self.store.watch().await
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        self.store.requester(request).await
    }
}

/// A controller whose rounds the test makes.
pub(super) struct Stepped {
    pub(super) store: Refusing,
    pub(super) controller: Controller<Refusing, Reluctant>,
    pub(super) numbers: Numbers,
    dir: tempfile::TempDir,
}

impl Stepped {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Refusing {
            store: DirStore::open(dir.path()).unwrap(),
            nodes: Arc::default(),
            kept: Arc::default(),
            cut: Arc::default(),
            writes: Arc::default(),
        };
        let safe = Reluctant::new(DirSafe::open(&store.store));
        let numbers = Numbers::new("test", false);
        let controller = Controller::open(store.clone(), safe, numbers.clone()).await;
        Self {
            controller: controller.unwrap(),
            store,
            numbers,
            dir,
        }
    }

    pub(super) async fn ask(&self, name: &str) {
        let request = request(name, &token(&self.store.store, name));
        self.store.apply(request).await.unwrap();
    }

    pub(super) async fn answer(&mut self) -> Result<(), StoreError> {
        let requests = &mut self.controller.world.requests;
        requests.read_again(&self.store).await.unwrap();
        self.controller.answer_requests().await
    }

    /// The serial number of the certificate that a node was given.
    pub(super) async fn given(&self, name: &str) -> Option<String> {
        let request = self.store.get::<CertificateRequestKind>(name).await;
        let status = request.unwrap().unwrap().status;
        let chain = chain_from_pem(&status.certificate?).unwrap();
        let facts = testudo_pki::CertificateFacts::read(&chain[0]).unwrap();
        Some(facts.serial)
    }

    /// A file of the store.
    pub(super) fn path(&self, file: &str) -> std::path::PathBuf {
        self.dir.path().join(file)
    }

    pub(super) fn register(&self) -> Register {
        self.controller.kept.register.clone()
    }

    /// What is counted as signed.
    async fn signed(&self) -> u64 {
        let text = self.numbers.page().await.unwrap().encode();
        let name = "testudo_controller_certificates_signed_total ";
        let count = text.lines().find_map(|line| line.strip_prefix(name));
        count.unwrap().parse().unwrap()
    }

    fn serials(&self) -> BTreeSet<String> {
        let register = self.register();
        let ca = crate::register::ca_of(self.controller.authority.ca.facts());
        let serials = register.serials_of(ca).into_iter();
        serials.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_written_keeps_no_other_back_and_is_not_signed_again() {
    let mut stepped = Stepped::start().await;
    for name in ["n1", "n2"] {
        stepped.ask(name).await;
    }
    stepped.store.refuse(&["n1"]);
    let error = stepped.answer().await.unwrap_err();
    assert!(error.to_string().contains("for n1"), "{error}");
    assert!(stepped.given("n2").await.is_some());
    assert_eq!(stepped.given("n1").await, None);
    // Tried again and again, it takes no more room.
    let before = stepped.register();
    for _ in 0..5 {
        stepped.answer().await.unwrap_err();
    }
    assert_eq!(stepped.register(), before);
    assert_eq!(stepped.serials().len(), 2);
    stepped.store.refuse(&[]);
    stepped.answer().await.unwrap();
    let given = stepped.given("n1").await.unwrap();
    assert!(stepped.serials().contains(&given));
    assert_eq!(stepped.register(), before);
    assert_eq!(stepped.signed().await, 2);
}

/// A request is deleted when its node has the answer, or before, and an agent of an earlier build makes it anew
/// each time.
#[tokio::test]
async fn who_asks_the_same_again_has_the_certificate_of_before() {
    let mut stepped = Stepped::start().await;
    let asked = request("n1", &token(&stepped.store.store, "n1"));
    stepped.store.create(node("n1")).await.unwrap();
    let nodes = &mut stepped.controller.world.nodes;
    nodes.read_again(&stepped.store).await.unwrap();
    let mut given = BTreeSet::new();
    for _ in 0..100 {
        stepped.store.apply(asked.clone()).await.unwrap();
        stepped.answer().await.unwrap();
        given.extend(stepped.given("n1").await);
        let deleted = stepped.store.delete::<CertificateRequestKind>("n1").await;
        assert!(deleted.unwrap());
        stepped.answer().await.unwrap();
    }
    assert_eq!((given.len(), stepped.serials()), (1, given));
    assert_eq!(stepped.signed().await, 1);
    // The node is gone, and nothing of it is remembered.
    assert_eq!(stepped.controller.owed.len(), 1);
    stepped.controller.world.nodes.objects.clear();
    stepped.answer().await.unwrap();
    assert!(stepped.controller.owed.is_empty());
}

#[tokio::test]
async fn what_is_owed_is_given_for_the_same_request_alone_and_while_it_is_good() {
    let mut stepped = Stepped::start().await;
    stepped.store.refuse(&["n1"]);
    stepped.ask("n1").await;
    stepped.answer().await.unwrap_err();
    let first = stepped.serials();
    // The node asks with another key.
    stepped.ask("n1").await;
    stepped.answer().await.unwrap_err();
    let second = stepped.serials();
    assert_eq!((first.len(), second.len()), (1, 2));
    // What it would be given is taken back meanwhile.
    let mut next = stepped.register();
    let n1 = Holder {
        name: "n1".to_owned(),
        uid: "uid-n1".to_owned(),
    };
    assert_eq!(next.revoke(&n1, crate::run::seconds()), 2);
    let controller = &mut stepped.controller;
    assert!(controller.kept.put(&controller.safe, next).await.unwrap());
    stepped.store.refuse(&[]);
    stepped.answer().await.unwrap();
    let given = stepped.given("n1").await.unwrap();
    assert!(!second.contains(&given));
    assert!(stepped.serials().contains(&given));
}

#[tokio::test]
async fn of_requests_that_are_gone_nothing_is_remembered() {
    let mut stepped = Stepped::start().await;
    for name in ["n1", "n2"] {
        let stranger = request(name, &SecretBytes::new(vec![7; 32]));
        stepped.store.apply(stranger).await.unwrap();
    }
    stepped.answer().await.unwrap();
    assert_eq!(stepped.controller.warned.len(), 2);
    stepped
        .store
        .delete::<CertificateRequestKind>("n1")
        .await
        .unwrap();
    stepped.answer().await.unwrap();
    let warned: Vec<_> = stepped.controller.warned.keys().collect();
    assert_eq!(warned, ["n2"]);
}
