//! Two hundred nodes: what the controller asks of the store in a wave does not grow with their number, but
//! for what is each node's own; and how often it looks at all of them does not either.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use testudo_store::{Applied, Listing, Requester, StoreError, Watch};

use super::*;
use crate::{DirSafe, Numbers};

const NODES: usize = 200;

/// A store that counts what is asked of it, by verb and kind.
#[derive(Clone)]
struct Counted {
    store: DirStore,
    calls: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Counted {
    fn count<K: testudo_model::Kind>(&self, verb: &str) {
        let call = format!("{verb} {}", K::PLURAL);
        *self.calls.lock().unwrap().entry(call).or_default() += 1;
    }

    fn take(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Store for Counted {
    async fn get<K: testudo_model::Kind>(
        &self,
        name: &str,
    ) -> Result<Option<Object<K>>, StoreError> {
        self.count::<K>("get");
        self.store.get(name).await
    }

    async fn list<K: testudo_model::Kind>(&self) -> Result<Listing<K>, StoreError> {
        self.count::<K>("list");
        self.store.list().await
    }

    async fn create<K: testudo_model::Kind>(
        &self,
        object: Object<K>,
    ) -> Result<Object<K>, StoreError> {
        self.count::<K>("create");
        self.store.create(object).await
    }

    async fn apply<K: testudo_model::Kind>(
        &self,
        object: Object<K>,
    ) -> Result<Applied<K>, StoreError> {
        self.count::<K>("apply");
        self.store.apply(object).await
    }

    async fn update_status<K: testudo_model::Kind>(
        &self,
        object: &Object<K>,
    ) -> Result<Object<K>, StoreError> {
        self.count::<K>("status");
        self.store.update_status(object).await
    }

    async fn delete<K: testudo_model::Kind>(&self, name: &str) -> Result<bool, StoreError> {
        self.count::<K>("delete");
        self.store.delete::<K>(name).await
    }

    async fn watch<K: testudo_model::Kind>(&self) -> Result<Watch<K>, StoreError> {
        self.count::<K>("watch");
        self.store.watch().await
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        self.count::<CertificateRequestKind>("requester");
        self.store.requester(request).await
    }
}

#[tokio::test]
async fn what_a_wave_asks_of_the_store_does_not_grow_with_the_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let counted = Counted {
        store: store.clone(),
        calls: Arc::default(),
    };
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n:03}")).collect();
    for name in &names {
        store.create(node(name)).await.unwrap();
    }
    let numbers = Numbers::new("test", false);
    let safe = DirSafe::open(&store);
    let (stop, stopped) = oneshot::channel::<()>();
    let running = {
        let (counted, numbers) = (counted.clone(), numbers.clone());
        tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            crate::lead(counted, safe, &numbers, "test", stopped).await
        })
    };
    until_published(&store).await;

    // Certificates: for each node what is its own.
    for name in &names {
        let token = token(&store, name);
        store.apply(request(name, &token)).await.unwrap();
    }
    for name in &names {
        assert_eq!(answer(&store, name).await.status.denied, None);
    }
    let calls = counted.take();
    println!("{NODES} certificates: {calls:?}");
    let all: usize = calls.values().sum();
    assert!(all <= 3 * NODES + 20, "{all}");

    // A roll-out, each node at a time of its own.
    want(&store, Mode::Full).await;
    let phase = Phase::Prepared;
    until(&store, |p| p.status.phase == phase).await;
    counted.take();
    let began = Instant::now();
    let rounds = numbers.rounds();
    let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await.unwrap();
    let status = policy.unwrap().status;
    let word = Acknowledgement {
        phase: status.phase,
        rollout: status.rollout,
    };
    for name in &names {
        change_status::<_, NodeEncryptionKind>(&store, name, |_, status| {
            status.acknowledged = Some(word);
        })
        .await
        .unwrap();
    }
    until(&store, |p| {
        p.status.phase > phase || p.status.waiting_on.is_empty()
    })
    .await;
    let calls = counted.take();
    let took = began.elapsed();
    println!("{phase}: {calls:?} in {took:?}");
    // Progress once a second, the step, and what a conflict reads anew.
    let all: usize = calls.values().sum();
    let most = 8 + 2 * usize::try_from(took.as_secs()).unwrap();
    assert!(all <= most, "{all} in {took:?}: {calls:?}");
    assert_eq!(calls.get("list nodeencryptions"), None);
    // A round is over all nodes: one for each node that says something would be the square.
    let rounds = u128::from(numbers.rounds() - rounds);
    let most = took.as_millis() / crate::pace::round(NODES).as_millis() + 2;
    println!("{rounds} rounds, {most} at most");
    assert!(rounds <= most, "{rounds} rounds in {took:?}");
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}
