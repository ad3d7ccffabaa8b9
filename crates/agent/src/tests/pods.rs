//! Nodes whose pods' prefixes are those of their Node.

use ipnet::IpNet;
use testudo_model::ProtectedFlows;
use testudo_store::Problem;
use testudo_store_kube::NodePods;
use tokio::sync::mpsc::{self, Sender};

use super::away::Mute;
use super::*;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|net| net.parse().unwrap()).collect()
}

fn are(texts: &[&str]) -> NodePods {
    NodePods::Are(Ok(nets(texts)))
}

fn away() -> Problem {
    Problem {
        file: PathBuf::from("https://10.0.0.1/nodes"),
        name: None,
        line: 0,
        column: 0,
        reason: "https://10.0.0.1 cannot be reached".to_owned(),
    }
}

/// A routed cluster of two, and what tells each of its Node.
fn routed(subnet: u8) -> (Cluster, [Sender<NodePods>; 2]) {
    let mut cluster = Cluster::new(subnet, 0);
    let senders = [1, 2].map(|node| {
        cluster.hosts.insert(node, Fake::default());
        let (sender, pods) = mpsc::channel(4);
        let store = cluster.store.clone();
        let pods = Some(pods);
        cluster.start_by(node, Sources { store, pods });
        sender
    });
    (cluster, senders)
}

impl Cluster {
    async fn encrypt(&self) {
        self.policy(|spec| {
            spec.mode = Mode::Full;
            spec.overlay.kind = OverlayType::Routed;
            spec.overlay.pod_cidrs = nets(&["10.244.0.0/16"]);
        })
        .await;
    }

    /// What a node has in force: its own prefixes, and those of the one peer.
    fn prefixes(&self, node: u8) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
        let policy = self.hosts[&node].twin().policy()?;
        let ProtectedFlows::Routed { local, .. } = policy.flows else {
            return None;
        };
        Some((local, policy.peers.first()?.pod_cidrs.clone()))
    }

    async fn is_degraded_by(&self, node: u8, word: &str) -> bool {
        let Some(node) = self.node(node).await else {
            return false;
        };
        let mut conditions = node.status.conditions.iter();
        conditions.any(|c| {
            c.kind == "Degraded" && c.status == ConditionStatus::True && c.message.contains(word)
        })
    }
}

/// A node says nothing before it has heard of its Node, acknowledges nothing before that has a prefix, and
/// goes with what the Node says.
#[test]
fn pods_prefixes_follow_the_node_and_no_step_is_taken_without_them() {
    on_one_thread(async {
        let (cluster, [first, second]) = routed(76);
        first.send(are(&["10.244.1.0/24"])).await.unwrap();
        wait("the first node", async || {
            let node = cluster.node(1).await;
            node.is_some_and(|node| node.spec.pod_cidrs == nets(&["10.244.1.0/24"]))
        })
        .await;
        assert_eq!(cluster.node(2).await, None, "it has heard nothing");

        let none = "Node n2 has no spec.podCIDRs".to_owned();
        second.send(NodePods::Are(Err(none.clone()))).await.unwrap();
        wait("the second node", async || cluster.node(2).await.is_some()).await;
        cluster.encrypt().await;
        let status = async || {
            let policy = cluster.store.get::<EncryptionPolicyKind>(CLUSTER).await;
            policy.unwrap().unwrap().status
        };
        wait("the complaint", async || {
            let waits = status().await.waiting_on.contains(&"n2".to_owned());
            waits && cluster.is_degraded_by(2, &none).await
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let phase = status().await.phase;
        assert!(phase <= Phase::Prepared, "{phase}");
        assert_eq!(cluster.node(2).await.unwrap().status.acknowledged, None);

        second.send(are(&["10.244.2.0/24"])).await.unwrap();
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        assert!(!cluster.is_degraded_by(2, "").await);
        let one = (nets(&["10.244.1.0/24"]), nets(&["10.244.2.0/24"]));
        assert_eq!(cluster.prefixes(1), Some(one));

        // One more, under traffic, which is never in clear.
        let two = ["10.244.2.0/24", "10.244.9.0/24"];
        second.send(are(&two)).await.unwrap();
        let get = Gettable::Tunnels;
        wait("the second prefix", async || {
            assert_ne!(cluster.hosts[&1].twin().send(&peer(2)), Verdict::Clear);
            let tunnels = cluster.ask(1, Request::Get { get }).await.tunnels.unwrap();
            let sealed = format!("{:?}", tunnels[0].children).contains("10.244.9.0");
            sealed && cluster.prefixes(1).unwrap().1 == nets(&two)
        })
        .await;
        cluster.all_sealed().await;

        // A word that is gone takes nothing away.
        second.send(NodePods::Are(Err(none.clone()))).await.unwrap();
        wait("the complaint", async || {
            cluster.is_degraded_by(2, "known before stay").await
        })
        .await;
        assert_eq!(cluster.prefixes(2).unwrap().0, nets(&two));
        // Off it goes all the same.
        cluster.policy(|spec| spec.mode = Mode::Disabled).await;
        cluster.reach(Phase::Disabled).await;
    });
}

/// An agent that starts while the API server is away has the prefixes that its node had.
#[test]
fn pods_prefixes_outlive_a_restart_without_the_api_server() {
    on_one_thread(async {
        let (mut cluster, [first, second]) = routed(77);
        first.send(are(&["10.244.1.0/24"])).await.unwrap();
        second.send(are(&["10.244.2.0/24"])).await.unwrap();
        cluster.encrypt().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let before = cluster.prefixes(2);

        cluster.kill(2).await;
        cluster.hosts[&2].0.lock().unwrap().opened = 0;
        let (sender, pods) = mpsc::channel(4);
        let (store, pods) = (Mute::of(&cluster), Some(pods));
        cluster.start_by(
            2,
            Sources {
                store: store.clone(),
                pods,
            },
        );
        sender.send(NodePods::Away(away())).await.unwrap();
        wait("a restart without the API server", async || {
            cluster.hosts[&2].0.lock().unwrap().opened > 0 && cluster.prefixes(2).is_some()
        })
        .await;
        assert_eq!(cluster.prefixes(2), before);
        cluster.all_sealed().await;
        let get = Gettable::Status;
        let status = cluster.ask(2, Request::Get { get }).await.status.unwrap();
        assert!(status.store_away_since.is_some() && status.problems.is_empty());

        store.speak();
        sender.send(NodePods::Back(away())).await.unwrap();
        sender.send(are(&["10.244.2.0/24"])).await.unwrap();
        wait("the API server", async || {
            let status = cluster.ask(2, Request::Get { get }).await.status.unwrap();
            status.store_away_since.is_none()
        })
        .await;
        assert_eq!(cluster.prefixes(2), before);
        cluster.all_sealed().await;
    });
}
