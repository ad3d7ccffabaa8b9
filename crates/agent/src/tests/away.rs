//! Agents that start while the store is away.

use std::sync::atomic::{AtomicBool, Ordering};

use testudo_model::{CertificateRequest, Kind, Object};
use testudo_store::{Applied, Event, Listing, Requester, StoreError, Watch};

use super::*;

/// A store that says nothing until it is let.
#[derive(Clone)]
pub(super) struct Mute {
    store: DirStore,
    speaks: Arc<AtomicBool>,
}

impl Mute {
    pub(super) fn of(cluster: &Cluster) -> Mute {
        Mute {
            store: cluster.store.clone(),
            speaks: Arc::default(),
        }
    }

    pub(super) fn speak(&self) {
        self.speaks.store(true, Ordering::Relaxed);
    }

    fn there(&self) -> Result<&DirStore, StoreError> {
        match self.speaks.load(Ordering::Relaxed) {
            true => Ok(&self.store),
            false => Err(StoreError::Unavailable {
                what: "it says nothing".to_owned(),
                remedy: "let it".to_owned(),
            }),
        }
    }
}

impl Store for Mute {
    async fn get<K: Kind>(&self, name: &str) -> Result<Option<Object<K>>, StoreError> {
        self.there()?.get(name).await
    }

    async fn list<K: Kind>(&self) -> Result<Listing<K>, StoreError> {
        self.there()?.list().await
    }

    async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, StoreError> {
        self.there()?.create(object).await
    }

    async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Applied<K>, StoreError> {
        self.there()?.apply(object).await
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        self.there()?.update_status(object).await
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<bool, StoreError> {
        self.there()?.delete::<K>(name).await
    }

    async fn watch<K: Kind>(&self) -> Result<Watch<K>, StoreError> {
        let (sender, watch) = Watch::channel();
        let this = self.clone();
        spawn_local(async move {
            while !this.speaks.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let mut watch = this.store.watch::<K>().await.unwrap();
            while let Some(event) = watch.next().await {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(watch)
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        self.there()?.requester(request).await
    }
}

fn kept_file(cluster: &Cluster, node: u8) -> PathBuf {
    cluster.options(node).state_dir.join("store.json")
}

/// What a host was told after its first `seen` words to the rules alone, and a datapath that was opened
/// since.
fn told(host: &Fake, seen: usize) -> Vec<Option<TrafficPolicy>> {
    let calls = host.twin().calls().into_iter();
    let datapath = calls.filter_map(|call| match call {
        Call::SetTraffic(policy) => Some(Some(policy)),
        Call::Clear => Some(None),
        _ => None,
    });
    host.closed()
        .into_iter()
        .skip(seen)
        .chain(datapath)
        .collect()
}

fn assert_all_dropped(told: &[Option<TrafficPolicy>]) {
    assert!(!told.is_empty());
    for policy in told {
        let policy = policy.as_ref().expect("nothing was cleared");
        let clear = (policy.clear_inbound, policy.clear_outbound);
        assert_eq!(clear, (ClearTraffic::Drop, ClearTraffic::Drop));
        let sealed = |peer: &testudo_model::PeerTraffic| peer.outbound == Outbound::Encrypt;
        assert!(policy.peers.iter().all(sealed), "{policy:?}");
    }
}

/// The node of an agent that came up while the store was away seals and drops as before, says nothing
/// new of itself, and goes by the store when that is back: also about who is gone.
#[test]
fn an_agent_that_starts_without_the_store_goes_on_with_what_it_said_last() {
    on_one_thread(async {
        let mut cluster = Cluster::new(71, 3);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        cluster.kill(1).await;
        cluster.hosts.get_mut(&1).unwrap().0.lock().unwrap().opened = 0;
        let seen = cluster.hosts[&1].closed().len();
        let store = Mute::of(&cluster);
        cluster.start_with(1, store.clone());
        wait("a restart without the store", async || {
            cluster.hosts[&1].0.lock().unwrap().opened > 0
        })
        .await;
        cluster.all_sealed().await;
        let status = Request::Get {
            get: Gettable::Status,
        };
        let status = cluster.ask(1, status).await.status.unwrap();
        assert_eq!(status.phase, Phase::Strict);
        assert_all_dropped(&told(&cluster.hosts[&1], seen));

        // A node goes while this one cannot hear of it.
        cluster.stop(3).await;
        cluster
            .store
            .delete::<NodeEncryptionKind>("n3")
            .await
            .unwrap();
        assert!(cluster.hosts[&1].twin().send(&peer(2)) != Verdict::Clear);
        store.speak();
        wait("n3 to be forgotten", async || {
            let tunnels = Request::Get {
                get: Gettable::Tunnels,
            };
            let tunnels = cluster.ask(1, tunnels).await.tunnels.unwrap();
            tunnels.iter().all(|tunnel| tunnel.peer != peer(3))
        })
        .await;
        assert!(cluster.send(1, 2));
    });
}

/// Without the file, and with one that cannot be read, a node stays closed until the store speaks.
#[test]
fn without_what_the_store_said_nothing_is_opened() {
    on_one_thread(async {
        let mut cluster = Cluster::new(72, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        for text in [None, Some("{")] {
            cluster.kill(1).await;
            std::fs::remove_file(kept_file(&cluster, 1)).unwrap();
            if let Some(text) = text {
                std::fs::write(kept_file(&cluster, 1), text).unwrap();
            }
            cluster.hosts[&1].0.lock().unwrap().opened = 0;
            let store = Mute::of(&cluster);
            cluster.start_with(1, store.clone());
            tokio::time::sleep(crate::memory::PATIENCE + Duration::from_millis(500)).await;
            assert_eq!(cluster.hosts[&1].0.lock().unwrap().opened, 0);
            let closed = cluster.hosts[&1].closed();
            let last = closed.last().unwrap().as_ref().unwrap();
            assert_eq!(last.clear_outbound, ClearTraffic::Drop);
            store.speak();
            cluster.all_sealed().await;
            wait("the file", async || kept_file(&cluster, 1).exists()).await;
        }
    });
}

/// What is older than what was in force opens nothing: it may say what the cluster was before it went on.
#[test]
fn late_news_do_not_open_a_node_that_was_closed() {
    on_one_thread(async {
        let mut cluster = Cluster::new(73, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        for phase in ["Prepared", "Disabled"] {
            cluster.kill(1).await;
            let file = kept_file(&cluster, 1);
            let text = std::fs::read(&file).unwrap();
            let mut kept: serde_json::Value = serde_json::from_slice(&text).unwrap();
            kept["policy"]["status"]["phase"] = phase.into();
            kept["acknowledged"]["phase"] = phase.into();
            std::fs::write(&file, kept.to_string()).unwrap();
            let seen = cluster.hosts[&1].closed().len();
            cluster.hosts[&1].0.lock().unwrap().opened = 0;
            let store = Mute::of(&cluster);
            cluster.start_with(1, store.clone());
            wait("a restart without the store", async || {
                let host = &cluster.hosts[&1];
                host.0.lock().unwrap().opened > 0 && host.twin().policy().is_some()
            })
            .await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_all_dropped(&told(&cluster.hosts[&1], seen));
            assert!(cluster.hosts[&1].twin().send(&peer(2)) != Verdict::Clear);
            store.speak();
            cluster.all_sealed().await;
            cluster.reach(Phase::Strict).await;
            assert_all_dropped(&told(&cluster.hosts[&1], seen));
        }
    });
}

/// A node that cannot keep what the store says acknowledges nothing that rests on it, says why, and opens
/// nothing from older news when it starts without the store.
#[test]
fn what_could_not_be_written_is_not_acknowledged() {
    on_one_thread(async {
        let mut cluster = Cluster::new(74, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        // No file can take a folder's place.
        let file = kept_file(&cluster, 1);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        cluster.policy(|spec| spec.mode = Mode::Disabled).await;
        wait("the complaint", async || {
            let node = cluster.node(1).await.unwrap();
            let degraded = node.status.conditions.iter().find(|c| c.kind == "Degraded");
            degraded.is_some_and(|c| {
                c.status == ConditionStatus::True && c.message.contains("store.json")
            })
        })
        .await;
        let acknowledged = async || cluster.node(1).await.unwrap().status.acknowledged.unwrap();
        assert_eq!(acknowledged().await.phase, Phase::Strict);
        wait("the other's word", async || {
            let other = cluster.node(2).await.unwrap();
            other.status.acknowledged.unwrap().phase == Phase::Permissive
        })
        .await;
        assert_eq!(acknowledged().await.phase, Phase::Strict);

        cluster.kill(1).await;
        cluster.hosts[&1].0.lock().unwrap().opened = 0;
        let store = Mute::of(&cluster);
        cluster.start_with(1, store.clone());
        tokio::time::sleep(crate::memory::PATIENCE + Duration::from_millis(500)).await;
        assert_eq!(cluster.hosts[&1].0.lock().unwrap().opened, 0);

        std::fs::remove_dir(&file).unwrap();
        store.speak();
        cluster.reach(Phase::Disabled).await;
        assert!(file.is_file());
    });
}

/// All watches lose the store at once: it is one outage, and no fault of the node's.
#[test]
fn an_outage_is_told_once_and_is_no_fault_of_the_node() {
    use crate::objects::{Objects, Told};
    let problem = |plural: &str| testudo_store::Problem {
        file: PathBuf::from(format!("https://10.0.0.1/{plural}")),
        name: None,
        line: 0,
        column: 0,
        reason: "https://10.0.0.1 cannot be reached".to_owned(),
    };
    let mut objects = Objects::new();
    objects.take(Told::Policy(Event::Problem(problem("a"))), &name(1));
    objects.take(Told::Node(Event::Problem(problem("b"))), &name(1));
    assert_eq!((objects.away.len(), objects.problems.len()), (2, 0));
    objects.take(Told::Policy(Event::Solved(problem("a"))), &name(1));
    assert_eq!(objects.away.len(), 1);
    objects.take(Told::Node(Event::Solved(problem("b"))), &name(1));
    assert!(objects.away.is_empty());
}
