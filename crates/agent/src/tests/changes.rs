//! What somebody wants to be different: phases, datapaths, algorithms, addresses.

use super::*;

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
