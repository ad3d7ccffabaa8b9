//! Gates of nodes, one of which cannot be opened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use testudo_metrics::Source;
use testudo_model::{Condition, UnixTime};
use testudo_store::Requester;

use super::*;
use crate::run::Controller;
use crate::safe::directory::Lock;
use crate::{Denial, DirSafe, Document, Gated, Members, Numbers, Safe, SafeError, Sealed, Version};

/// A directory's safe that has gates; that of `shut` cannot be opened.
struct Gatehouse {
    safe: DirSafe,
    names: Vec<&'static str>,
    shut: &'static str,
    /// How often each was tried.
    tried: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Safe for Gatehouse {
    type Term = Lock;

    async fn lead(&self) -> anyhow::Result<Lock> {
        self.safe.lead().await
    }

    async fn read(&self, document: Document) -> anyhow::Result<Option<Sealed>> {
        self.safe.read(document).await
    }

    async fn replace(
        &self,
        document: Document,
        text: &SecretBytes,
        over: Option<&Version>,
    ) -> Result<Version, SafeError> {
        self.safe.replace(document, text, over).await
    }

    fn place(&self, document: Document) -> String {
        self.safe.place(document)
    }

    async fn members(&self) -> anyhow::Result<Members> {
        self.safe.members().await
    }

    async fn is_gone(&self, name: &str, uid: &str) -> anyhow::Result<bool> {
        self.safe.is_gone(name, uid).await
    }

    async fn removed(&self) -> anyhow::Result<Vec<NodeName>> {
        self.safe.removed().await
    }

    async fn expelled(&self, node: &str) -> anyhow::Result<()> {
        self.safe.expelled(node).await
    }

    fn gated(&self) -> Vec<Gated> {
        let gated = self.names.iter().map(|name| Gated {
            name: (*name).to_owned(),
            uid: format!("uid-{name}"),
            boot: String::new(),
        });
        gated.collect()
    }

    async fn open_gate(&self, node: &Gated) -> anyhow::Result<()> {
        let mut tried = self.tried.lock().unwrap();
        *tried.entry(node.name.clone()).or_default() += 1;
        anyhow::ensure!(node.name != self.shut, "a webhook forbids it");
        Ok(())
    }

    async fn authenticate(
        &self,
        request: &CertificateRequest,
        requester: &Requester,
    ) -> Result<(), Denial> {
        self.safe.authenticate(request, requester).await
    }
}

#[tokio::test]
async fn a_gate_that_cannot_be_opened_holds_up_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    for name in ["n1", "n2", "n3"] {
        let mut node = node(name);
        node.status.conditions.push(Condition {
            kind: "Ready".to_owned(),
            // n3's agent is not.
            status: match name {
                "n3" => ConditionStatus::False,
                _ => ConditionStatus::True,
            },
            reason: "AsExpected".to_owned(),
            message: String::new(),
            last_transition_time: UnixTime(0),
            observed_generation: 0,
        });
        store.create(node).await.unwrap();
    }
    let tried = Arc::default();
    let safe = Gatehouse {
        safe: DirSafe::open(&store),
        names: vec!["n1", "n2", "n3"],
        shut: "n1",
        tried: Arc::clone(&tried),
    };
    let numbers = Numbers::new("test", false);
    let mut controller = Controller::open(store, safe, numbers.clone())
        .await
        .unwrap();
    // The round goes on to its end; and neither is asked for again at once.
    for _ in 0..2 {
        controller.reconcile().await.unwrap();
    }
    let each = BTreeMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 1)]);
    assert_eq!(*tried.lock().unwrap(), each);
    assert!(controller.absent.pause(Instant::now()).is_some());
    let page = numbers.page().await.unwrap().encode();
    let failed = "testudo_controller_reconcile_errors_total{step=\"gates\"} 1";
    assert!(page.lines().any(|line| line == failed), "{page}");
}
