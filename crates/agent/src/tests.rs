//! A controller and agents in one process: real store, real IKE over the loopback, datapaths in
//! memory.

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
use testudo_store::{DirStore, Store, tokens};
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::api::{Gettable, Request, Response, ask};
use crate::clock::Clock;
use crate::host::Host;
use crate::run::{close_first, run_on};
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
            store: format!("dir:{}", self.store.root().display()),
            state_dir: base.join("state"),
            socket: self.socket(node),
            addresses: vec![Ipv4Addr::new(127, self.subnet, 0, node).into()],
            follow_addresses: true,
            pod_cidrs: Vec::new(),
            join_token_file: Some(tokens::path(&self.store, &name(node))),
            danger_export_keys: None,
            datapath: None,
            ports: self.ports,
        }
    }

    fn socket(&self, node: u8) -> PathBuf {
        self.dir.path().join(format!("n{node}.sock"))
    }

    fn start(&mut self, node: u8) {
        let options = self.options(node);
        let host = Box::new(self.hosts[&node].clone());
        let store = self.store.clone();
        let (stop, stopped) = oneshot::channel();
        let task = spawn_local(async move {
            let (host, enforcement) = close_first(&options, host)?;
            let shutdown = async {
                let _ = stopped.await;
            };
            run_on(options, Clock::start(), host, enforcement, store, shutdown).await
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

#[test]
fn three_nodes_go_to_strict_rotate_and_back_to_disabled() {
    on_one_thread(async {
        let cluster = Cluster::new(11, 3);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let policy = cluster.hosts[&1].twin().policy().unwrap();
        assert_eq!(policy.clear_inbound, ClearTraffic::Drop);
        assert_eq!(policy.clear_outbound, ClearTraffic::Drop);
        assert!(policy.peers.iter().all(|p| p.outbound == Outbound::Encrypt));
        assert!(!cluster.hosts[&1].twin().receive(None), "clear is dropped");

        let before = cluster.node(2).await.unwrap().status.certificate.unwrap();
        cluster.policy(|spec| spec.certificates.rotation = 1).await;
        wait("the rotation", async || {
            let mut all = true;
            for node in 1..=3 {
                // Not one packet may be lost meanwhile.
                assert!(cluster.send(node, node % 3 + 1), "lost in the rotation");
                all &= cluster
                    .node(node)
                    .await
                    .is_some_and(|n| n.status.rotation == 1);
            }
            all
        })
        .await;
        let after = cluster.node(2).await.unwrap().status.certificate.unwrap();
        assert_ne!(before.serial, after.serial);

        let tunnels = Request::Get {
            get: Gettable::Tunnels,
        };
        let tunnels = cluster.ask(1, tunnels).await.tunnels.unwrap();
        assert_eq!(tunnels.len(), 2);
        assert!(tunnels.iter().all(|t| t.up && t.last_error.is_none()));
        assert_eq!(tunnels[0].remote_certificate.as_deref(), Some("n2"));

        cluster.policy(|spec| spec.mode = Mode::Disabled).await;
        cluster.reach(Phase::Disabled).await;
        for node in 1..=3 {
            let twin = cluster.hosts[&node].twin();
            assert!(twin.calls().contains(&Call::Clear));
            assert!(!traffic_file(&cluster.options(node).state_dir).exists());
        }
    });
}

/// A kernel goes on with the SAs of an agent that was killed: the peer cuts none of them before the
/// new ones are in use at both ends.
#[test]
fn nothing_is_cut_when_an_agent_comes_back_to_a_kernel_that_went_on() {
    on_one_thread(async {
        let mut cluster = Cluster::new(27, 2);
        cluster
            .policy(|spec| spec.datapath = DatapathChoice::Kernel)
            .await;
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let (left, peer_twin) = (cluster.hosts[&1].twin(), cluster.hosts[&2].twin());
        let both_ways = |left: &Twin, new: &Twin| {
            let Verdict::Sealed(out) = peer_twin.send(&peer(1)) else {
                panic!("the peer has nothing to send on");
            };
            assert!(
                left.receive(Some(out)) || new.receive(Some(out)),
                "nobody has {out}"
            );
            // Packets leave on the old SA until the new one is in use.
            let sealed = match new.send(&peer(2)) {
                Verdict::Sealed(spi) => spi,
                _ => match left.send(&peer(2)) {
                    Verdict::Sealed(spi) => spi,
                    _ => panic!("the kernel has nothing to send on"),
                },
            };
            assert!(peer_twin.receive(Some(sealed)), "the peer cut {sealed}");
            sealed
        };
        let old = both_ways(&left, &left);
        cluster.kill(1).await;
        both_ways(&left, &left);
        cluster.start(1);
        wait("new SAs in use both ways", async || {
            let new = cluster.hosts[&1].twin();
            let sealed = both_ways(&left, &new);
            let Verdict::Sealed(answer) = peer_twin.send(&peer(1)) else {
                panic!("the peer has nothing to send on");
            };
            sealed != old && new.receive(Some(answer))
        })
        .await;
        // What came on the old SA last may still be under way.
        assert!(peer_twin.receive(Some(old)), "it stays for a while");
        let tunnels = Request::Get {
            get: Gettable::Tunnels,
        };
        let tunnels = cluster.ask(2, tunnels).await.tunnels.unwrap();
        assert!(tunnels[0].up);
        assert_eq!(tunnels[0].children.len(), 2);
        assert!(tunnels[0].children[0].sending && !tunnels[0].children[1].sending);
    });
}

/// Another program flushes the kernel's SAs: they are made anew, and what stands is not lost.
#[test]
fn an_sa_that_somebody_removed_is_made_anew_at_once() {
    on_one_thread(async {
        let cluster = Cluster::new(29, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let twin = cluster.hosts[&1].twin();
        let child = twin.children()[0];
        twin.push_event(Event::SaLost { child });
        wait("another child", async || {
            assert!(cluster.send(1, 2) && cluster.send(2, 1), "lost meanwhile");
            twin.children().iter().all(|other| *other != child)
        })
        .await;
        cluster.all_sealed().await;
        let answer = cluster
            .ask(
                1,
                Request::Get {
                    get: Gettable::Drops,
                },
            )
            .await;
        assert_eq!(answer.drops.unwrap().agent["sas_lost"], 1);
    });
}

/// The host stays closed by the old datapath's rules until the new one has the policy in force, and
/// every SA is made anew.
#[test]
fn a_node_goes_from_one_datapath_to_the_other_and_is_never_open() {
    on_one_thread(async {
        let cluster = Cluster::new(23, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let first = cluster.hosts[&1].twin();
        assert_eq!(cluster.node(1).await.unwrap().spec.datapath, "user");
        cluster
            .policy(|spec| spec.datapath = DatapathChoice::Kernel)
            .await;
        wait("the other datapath", async || {
            let mut all = true;
            for node in 1..=2 {
                let n = cluster.node(node).await.unwrap();
                all &= n.spec.datapath == "kernel" && n.status.tunnels_up == 1;
                let twin = cluster.hosts[&node].twin();
                assert_ne!(twin.send(&peer(3 - node)), Verdict::Clear);
            }
            all
        })
        .await;
        cluster.all_sealed().await;
        let state = cluster.hosts[&1].0.lock().unwrap();
        assert_eq!(state.opened, 2);
        assert_eq!(
            state.chosen,
            [
                (DatapathChoice::Auto, None),
                (DatapathChoice::Kernel, Some("user".to_owned()))
            ]
        );
        assert!(!first.calls().contains(&Call::Clear), "its rules stood");
        assert!(state.settled >= 2, "the other's leftovers go afterwards");
    });
}

/// The key exchange changes with the policy, on new IKE SAs made before the old ones go.
#[test]
fn post_quantum_keys_are_disabled_and_required_as_the_policy_says() {
    on_one_thread(async {
        let cluster = Cluster::new(17, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        let hybrid = async |wanted: bool| {
            wait("the suite", async || {
                assert!(cluster.send(1, 2) && cluster.send(2, 1), "lost meanwhile");
                let mut all = true;
                for node in 1..=2 {
                    let get = Gettable::Tunnels;
                    let answer = cluster.ask(node, Request::Get { get }).await;
                    let tunnels = answer.tunnels.unwrap();
                    let ike = tunnels[0].ike.as_ref();
                    all &= ike.is_some_and(|ike| ike.suite.contains("ML_KEM_768") == wanted);
                }
                all
            })
            .await;
        };
        cluster.all_sealed().await;
        hybrid(true).await;
        cluster
            .policy(|spec| spec.ike.post_quantum = PostQuantum::Disabled)
            .await;
        hybrid(false).await;
        cluster
            .policy(|spec| spec.ike.post_quantum = PostQuantum::Required)
            .await;
        hybrid(true).await;
    });
}

/// Other algorithms come with new IKE SAs, made before the old ones go.
#[test]
fn algorithms_change_with_the_policy() {
    on_one_thread(async {
        let cluster = Cluster::new(18, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        cluster
            .policy(|spec| {
                spec.ike.ciphers = vec![NodeCipher::Aes128Gcm];
                spec.ike.key_exchanges = vec![NodeKeyExchange::P521];
                spec.esp.ciphers = vec![NodeCipher::Aes128Gcm];
            })
            .await;
        wait("the suite", async || {
            assert!(cluster.send(1, 2) && cluster.send(2, 1), "lost meanwhile");
            let mut all = true;
            for node in 1..=2 {
                let get = Gettable::Tunnels;
                let answer = cluster.ask(node, Request::Get { get }).await;
                let tunnels = answer.tunnels.unwrap();
                let suite = tunnels[0].ike.as_ref().map(|ike| ike.suite.clone());
                all &= suite.is_some_and(|suite| {
                    suite.starts_with("AES_GCM_16_128/") && suite.contains("ECP_521")
                });
            }
            all
        })
        .await;
    });
}

/// The crossing of ls/crossing-streams-bootup-01 and ovn-kubernetes#6471 (L59): an agent that was
/// killed is back at once, whichever side usually begins, and its peers drop its old SAs.
#[test]
fn a_killed_agent_closes_the_host_first_and_is_back_at_once() {
    on_one_thread(async {
        let mut cluster = Cluster::new(12, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        for node in [1, 2] {
            cluster.kill(node).await;
            let calls = cluster.hosts[&node].closed().len();
            let begin = Instant::now();
            cluster.start(node);
            wait("a restart", async || {
                cluster.hosts[&node].0.lock().unwrap().opened > 1
            })
            .await;
            cluster.all_sealed().await;
            assert!(
                begin.elapsed() < Duration::from_secs(2),
                "{:?}",
                begin.elapsed()
            );
            let closed = cluster.hosts[&node].closed();
            let first = closed[calls].as_ref().expect("the host was closed first");
            assert_eq!(first.clear_outbound, ClearTraffic::Drop);
            assert_eq!(first.clear_inbound, ClearTraffic::Drop);
        }
        // What the dead agents had is gone at their peers.
        let other = cluster.hosts[&1].twin();
        wait("old SAs to go", async || other.children().len() == 1).await;
    });
}

#[test]
fn sigterm_in_strict_leaves_the_host_closed_and_peers_told() {
    on_one_thread(async {
        let mut cluster = Cluster::new(13, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        let told_before = cluster.hosts[&1].closed().len();
        cluster.stop(1).await;
        assert!(!cluster.hosts[&1].twin().calls().contains(&Call::Clear));
        assert_eq!(cluster.hosts[&1].closed().len(), told_before);
        assert!(traffic_file(&cluster.options(1).state_dir).exists());
        let told = cluster.hosts[&2].twin();
        wait("the DELETE", async || told.children().is_empty()).await;
        assert_eq!(told.send(&peer(1)), Verdict::Dropped);
    });
}

/// The supervisor starts an agent again whose packet threads have ended; until then the host
/// stays closed.
#[test]
fn an_agent_whose_datapath_has_ended_ends_with_an_error() {
    on_one_thread(async {
        let mut cluster = Cluster::new(16, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        let host = cluster.hosts[&1].clone();
        let told_before = host.closed().len();
        host.twin().push_event(Event::Failed {
            reason: "a thread has ended".into(),
        });
        let agent = cluster.agents.remove(&1).unwrap();
        let error = agent.task.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("a thread has ended"), "{error}");
        assert_eq!(host.closed().len(), told_before);
        assert!(!host.twin().calls().contains(&Call::Clear));
        cluster.start(1);
        cluster.all_sealed().await;
    });
}

/// A peer that was restarted while its DELETEs and ours were lost sends on SAs that we do not
/// have: it is called, at most once a second.
#[test]
fn an_unknown_spi_makes_the_agent_call_the_peer() {
    on_one_thread(async {
        let cluster = Cluster::new(17, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        let twin = cluster.hosts[&1].twin();
        for _ in 0..3 {
            twin.push_event(Event::UnknownSpi {
                spi: Spi(0x1234_5678),
                remote: Ipv4Addr::new(127, 17, 0, 2).into(),
            });
        }
        let drops = Request::Get {
            get: Gettable::Drops,
        };
        wait("the count", async || {
            let drops = cluster.ask(1, drops.clone()).await.drops.unwrap();
            drops.agent.get("unknown_spi_events") == Some(&3)
        })
        .await;
        cluster.all_sealed().await;
    });
}

/// CVE-2023-28841 (L80), calico#3760 (L87): a node that cannot encrypt is closed and says so; it
/// acknowledges nothing.
#[test]
fn a_node_without_a_tun_is_degraded_and_heals() {
    on_one_thread(async {
        let cluster = Cluster::new(14, 2);
        cluster.hosts[&2].0.lock().unwrap().refuse = 3;
        cluster.init().await;
        wait("Degraded", async || {
            cluster.node(2).await.is_some_and(|n| {
                n.status.conditions.iter().any(|c| {
                    c.kind == "Degraded"
                        && c.status == ConditionStatus::True
                        && c.message.contains("/dev/net/tun")
                })
            })
        })
        .await;
        let acknowledged = cluster.node(2).await.unwrap().status.acknowledged;
        assert!(acknowledged.is_none_or(|a| a.phase == Phase::Disabled));
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
    });
}

/// A node's address changes while it runs: its peers read of it in the store, new SAs are made
/// between the new addresses, and packets are sealed all the while.
#[test]
fn a_node_that_moves_is_followed() {
    on_one_thread(async {
        let cluster = Cluster::new(32, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let home: IpAddr = Ipv4Addr::new(127, 32, 1, 2).into();
        cluster.hosts[&2].0.lock().unwrap().addresses = vec![home];
        wait("tunnels to the new address", async || {
            assert!(cluster.send(1, 2) && cluster.send(2, 1));
            let get = Gettable::Tunnels;
            let tunnels = cluster.ask(1, Request::Get { get }).await.tunnels;
            tunnels.iter().flatten().any(|t| t.remote_ip == Some(home))
        })
        .await;
        let moved = cluster.node(2).await.unwrap();
        assert_eq!(moved.spec.addresses, [home]);
        cluster.all_sealed().await;
    });
}

/// CVE-2023-28841 (L80): each step of the datapath fails once.
#[test]
fn a_step_that_fails_is_done_again() {
    on_one_thread(async {
        let cluster = Cluster::new(15, 2);
        cluster.init().await;
        wait("a datapath", async || {
            cluster.hosts[&1].0.lock().unwrap().opened == 1
        })
        .await;
        let twin = cluster.hosts[&1].twin();
        for operation in [
            Operation::SetTraffic,
            Operation::InstallInbound,
            Operation::InstallOutbound,
            Operation::UseOutbound,
        ] {
            twin.fail(operation, 1);
        }
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
    });
}
