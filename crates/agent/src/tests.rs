//! A controller and agents in one process: real store, real IKE over the loopback, datapaths in
//! memory.

mod authorities;
mod away;
mod bound;
mod changes;
mod metrics;
mod mishaps;
mod pods;
mod requests;
mod resources;
mod restarts;
mod rogue;
mod upkeep;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testudo_datapath::{Call, Datapath, DatapathError, Event, Operation, Twin, Verdict};
use testudo_model::algorithm::{NodeCipher, NodeKeyExchange};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{
    CLUSTER, DatapathChoice, EncryptionPolicyKind, Mode, OverlayType, PostQuantum,
};
use testudo_model::{
    ClearTraffic, ConditionStatus, EncryptionPolicy, EncryptionPolicySpec, NodeEncryption,
    NodeName, Now, Outbound, PeerId, Phase, Spi, TrafficPolicy,
};
use testudo_store::{DirStore, Location, Store, tokens};
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::api::{Gettable, Request, Response, ask};
use crate::clock::Clock;
use crate::host::Host;
use crate::run::{Sources, close_first, run_on};
use crate::{Options, Ports};

/// Far more than a slow machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host in memory. Clones share it, as agents that follow each other on one node do.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    /// The datapath that was opened last.
    twin: Twin,
    /// What the rules alone were told, in order; `None`: cleared.
    closed: Vec<Option<TrafficPolicy>>,
    /// So many tries to open fail.
    refuse: u32,
    opened: u32,
    /// What was wanted, and what was open then; the changes alone.
    chosen: Vec<(DatapathChoice, Option<String>)>,
    settled: u32,
    /// CPUs of the datapath that can have SAs of their own.
    cpus: u32,
    /// It has a policy in force only when the test says so.
    held: bool,
    /// Where it has moved to; none: it has not.
    addresses: Vec<IpAddr>,
}

impl Fake {
    fn twin(&self) -> Twin {
        self.0.lock().unwrap().twin.clone()
    }

    fn closed(&self) -> Vec<Option<TrafficPolicy>> {
        self.0.lock().unwrap().closed.clone()
    }
}

impl Host for Fake {
    fn choose(&mut self, choice: DatapathChoice, standing: Option<&str>, _: Now) {
        let mut state = self.0.lock().unwrap();
        if state.chosen.last().is_none_or(|(last, _)| *last != choice) {
            state.chosen.push((choice, standing.map(str::to_owned)));
        }
    }

    fn kind(&self) -> &'static str {
        let state = self.0.lock().unwrap();
        match state.chosen.last() {
            Some((DatapathChoice::Kernel, _)) => "kernel",
            _ => "user",
        }
    }

    fn note(&self) -> Option<&str> {
        None
    }

    fn problem(&self) -> Option<&str> {
        None
    }

    fn settled(&mut self) -> Result<(), DatapathError> {
        self.0.lock().unwrap().settled += 1;
        Ok(())
    }

    fn close(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        self.0.lock().unwrap().closed.push(Some(policy.clone()));
        Ok(())
    }

    fn clear(&mut self) -> Result<(), DatapathError> {
        self.0.lock().unwrap().closed.push(None);
        Ok(())
    }

    fn open(&mut self, bell: Arc<Notify>) -> Result<Box<dyn Datapath>, DatapathError> {
        let kind = self.kind();
        let mut state = self.0.lock().unwrap();
        if state.refuse > 0 {
            state.refuse -= 1;
            return Err(DatapathError::Missing {
                what: "/dev/net/tun is missing".into(),
                remedy: "load the module tun".into(),
            });
        }
        state.opened += 1;
        state.twin = Twin::new();
        state.twin.pass_for(kind);
        state.twin.have_cpus(state.cpus);
        state.twin.hold_traffic(state.held);
        let mut twin = state.twin.clone();
        twin.set_waker(Arc::new(move || bell.notify_one()));
        Ok(Box::new(twin))
    }

    fn interface(&self) -> &str {
        "fake0"
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.0.lock().unwrap().addresses.clone()
    }

    fn path_mtu(&self, _: IpAddr, _: IpAddr) -> Option<u32> {
        Some(1500)
    }
}

struct Agent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

struct Cluster {
    dir: tempfile::TempDir,
    store: DirStore,
    ports: Ports,
    subnet: u8,
    hosts: BTreeMap<u8, Fake>,
    agents: BTreeMap<u8, Agent>,
    controller: JoinHandle<anyhow::Result<()>>,
}

fn name(node: u8) -> NodeName {
    NodeName::new(format!("n{node}")).unwrap()
}

fn peer(node: u8) -> PeerId {
    PeerId::from(&name(node))
}

impl Cluster {
    /// A cluster whose addresses no other test has: `127.SUBNET.0.NODE`.
    fn new(subnet: u8, nodes: u8) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = DirStore::open(&root).unwrap();
        let options = testudo_controller::Options {
            store: format!("dir:{}", root.display()),
            ..testudo_controller::Options::default()
        };
        let controller = spawn_local(testudo_controller::run(options, std::future::pending()));
        let probe = UdpSocket::bind((Ipv4Addr::new(127, subnet, 0, 1), 0)).unwrap();
        let port = probe.local_addr().unwrap().port();
        let mut cluster = Cluster {
            dir,
            store,
            ports: Ports {
                ike: port,
                nat: port ^ 1,
            },
            subnet,
            hosts: (1..=nodes).map(|n| (n, Fake::default())).collect(),
            agents: BTreeMap::new(),
            controller,
        };
        drop(probe);
        for node in 1..=nodes {
            cluster.start(node);
        }
        cluster
    }

    fn options(&self, node: u8) -> Options {
        let base = self.dir.path().join(format!("n{node}"));
        tokens::ensure(&self.store, &name(node)).unwrap();
        Options {
            node: name(node),
            store: Location::Directory(self.store.root().to_owned()),
            state_dir: base.join("state"),
            socket: self.socket(node),
            addresses: vec![Ipv4Addr::new(127, self.subnet, 0, node).into()],
            follow_addresses: true,
            pod_cidrs: Vec::new(),
            pods_from_node: false,
            join_token_file: Some(tokens::path(&self.store, &name(node))),
            danger_export_keys: None,
            keeper: None,
            datapath: None,
            // A port of TCP, which IKE's is not.
            metrics: Some((Ipv4Addr::new(127, self.subnet, 0, node), self.ports.ike).into()),
            metrics_by_peer: node == 2,
            ports: self.ports,
            version: "1".to_owned(),
        }
    }

    fn socket(&self, node: u8) -> PathBuf {
        self.dir.path().join(format!("n{node}.sock"))
    }

    fn start(&mut self, node: u8) {
        self.start_with(node, self.store.clone());
    }

    fn start_with(&mut self, node: u8, store: impl Store) {
        let sources = Sources { store, pods: None };
        self.start_by(node, sources);
    }

    fn start_by(&mut self, node: u8, sources: Sources<impl Store>) {
        let options = Options {
            pods_from_node: sources.pods.is_some(),
            ..self.options(node)
        };
        let host = Box::new(self.hosts[&node].clone());
        let (stop, stopped) = oneshot::channel();
        let task = spawn_local(async move {
            let (host, enforcement) = close_first(&options, host)?;
            let shutdown = async {
                let _ = stopped.await;
            };
            run_on(
                options,
                Clock::start(),
                host,
                enforcement,
                sources,
                shutdown,
            )
            .await
        });
        self.agents.insert(node, Agent { stop, task });
    }

    /// As SIGKILL does.
    async fn kill(&mut self, node: u8) {
        let agent = self.agents.remove(&node).unwrap();
        agent.task.abort();
        let _ = agent.task.await;
    }

    /// As SIGTERM does.
    async fn stop(&mut self, node: u8) {
        let agent = self.agents.remove(&node).unwrap();
        agent.stop.send(()).unwrap();
        agent.task.await.unwrap().unwrap();
    }

    async fn policy(&self, change: impl FnOnce(&mut EncryptionPolicySpec)) {
        let mut spec = match self
            .store
            .get::<EncryptionPolicyKind>(CLUSTER)
            .await
            .unwrap()
        {
            Some(policy) => policy.spec,
            None => EncryptionPolicySpec::default(),
        };
        change(&mut spec);
        let object = EncryptionPolicy::new(CLUSTER, spec);
        self.store.apply(object).await.unwrap();
    }

    async fn init(&self) {
        self.policy(|spec| {
            spec.mode = Mode::Full;
            spec.overlay.kind = OverlayType::Vxlan;
        })
        .await;
    }

    async fn node(&self, node: u8) -> Option<NodeEncryption> {
        let name = name(node);
        self.store
            .get::<NodeEncryptionKind>(name.as_str())
            .await
            .unwrap()
    }

    async fn reach(&self, phase: Phase) {
        wait(&format!("{phase}"), async || {
            let policy = self
                .store
                .get::<EncryptionPolicyKind>(CLUSTER)
                .await
                .unwrap();
            policy.is_some_and(|p| {
                let s = &p.status;
                s.phase == phase
                    && s.nodes == s.nodes_acknowledged
                    && s.nodes as usize == self.hosts.len()
            })
        })
        .await;
    }

    async fn ask(&self, node: u8, request: Request) -> Response {
        let socket = self.socket(node);
        tokio::task::spawn_blocking(move || ask(&socket, &request, Duration::from_secs(5)))
            .await
            .unwrap()
            .unwrap()
    }

    /// A packet from one node to another; whether it came through sealed.
    fn send(&self, from: u8, to: u8) -> bool {
        match self.hosts[&from].twin().send(&peer(to)) {
            Verdict::Sealed(spi) => self.hosts[&to].twin().receive(Some(spi)),
            Verdict::Clear | Verdict::Dropped => false,
        }
    }

    async fn all_sealed(&self) {
        let pairs: Vec<(u8, u8)> = self
            .hosts
            .keys()
            .flat_map(|a| self.hosts.keys().map(move |b| (*a, *b)))
            .filter(|(a, b)| a != b)
            .collect();
        wait("sealed packets between all nodes", async || {
            pairs.iter().all(|(a, b)| self.send(*a, *b))
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.controller.abort();
        for agent in self.agents.values() {
            agent.task.abort();
        }
    }
}

async fn wait(what: &str, done: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !done().await {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a test on one thread, as the agent does.
fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn traffic_file(state: &Path) -> PathBuf {
    state.join("traffic.json")
}
