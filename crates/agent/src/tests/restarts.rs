//! Agents that end and come back.

use super::*;

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
