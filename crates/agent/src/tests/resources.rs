//! Children for single CPUs, between nodes with different numbers of CPUs.

use testudo_model::policy::DatapathChoice;

use super::*;

/// What a node has with a peer: how many children, and which resources it sends on.
async fn children(cluster: &Cluster, node: u8, with: u8) -> (usize, Vec<u32>) {
    let get = Gettable::Tunnels;
    let answer = cluster.ask(node, Request::Get { get }).await;
    let tunnels = answer.tunnels.unwrap();
    let found = tunnels.into_iter().find(|tunnel| tunnel.peer == peer(with));
    let children = found.map(|tunnel| tunnel.children).unwrap_or_default();
    let sending = children.iter().filter(|c| c.sending);
    let mut sending: Vec<u32> = sending.map(|c| c.resource).collect();
    sending.sort_unstable();
    (children.len(), sending)
}

async fn come_to(cluster: &Cluster, of_each: usize, sending: &BTreeMap<u8, Vec<u32>>) {
    wait("children of CPUs", async || {
        for (node, wanted) in sending {
            for with in sending.keys().filter(|with| *with != node) {
                assert!(cluster.send(*node, *with), "lost meanwhile");
                let found = children(cluster, *node, *with).await;
                if found != (of_each, wanted.clone()) {
                    return false;
                }
            }
        }
        true
    })
    .await;
}

/// Each pair has as many as the policy says, whatever its nodes have: each sends on those that it has
/// a CPU for. The policy changes while all stands, and nothing is lost meanwhile.
#[test]
fn each_node_sends_on_what_it_has_cpus_for() {
    on_one_thread(async {
        let cluster = Cluster::new(41, 3);
        for (node, cpus) in [(1, 2), (2, 4)] {
            cluster.hosts[&node].0.lock().unwrap().cpus = cpus;
        }
        cluster
            .policy(|spec| spec.datapath = DatapathChoice::Kernel)
            .await;
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let none = BTreeMap::from([1, 2, 3].map(|node| (node, vec![0])));
        come_to(&cluster, 1, &none).await;
        cluster.policy(|spec| spec.esp.per_cpu = 3).await;
        let sending = BTreeMap::from([(1, vec![0, 1, 2]), (2, vec![0, 1, 2, 3]), (3, vec![0])]);
        come_to(&cluster, 4, &sending).await;
        // Of a child that the peer alone sends on one SA is installed.
        for (node, installed) in [(1, 7), (2, 8), (3, 5)] {
            let get = Gettable::Tunnels;
            let answer = cluster.ask(node, Request::Get { get }).await;
            for tunnel in answer.tunnels.unwrap() {
                assert_eq!(tunnel.security_associations_installed, installed);
            }
        }
        let of_cpus = cluster.hosts[&1].twin().of_cpus();
        let wanted = [(peer(2), 0), (peer(2), 1), (peer(3), 0), (peer(3), 1)];
        assert_eq!(of_cpus, wanted);
        let status = |node: u8| {
            let get = Gettable::Status;
            cluster.ask(node, Request::Get { get })
        };
        let note = |response: Response| response.status.unwrap().datapath_note;
        assert_eq!(note(status(1).await), None);
        let without = note(status(3).await).unwrap();
        assert!(without.contains("no SAs for single CPUs"), "{without}");
        wait("the object that says it", async || {
            let object = cluster.node(2).await.unwrap();
            object.status.per_cpu == 3
        })
        .await;
        cluster.policy(|spec| spec.esp.per_cpu = 0).await;
        come_to(&cluster, 1, &none).await;
        assert_eq!(cluster.hosts[&2].twin().of_cpus(), []);
    });
}
