//! What goes wrong while the agent runs.

use super::*;

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

/// What stands is asked of the datapath: what somebody took away behind the agent's back is not
/// counted, and where nothing was said there is no number.
#[test]
fn what_stands_is_what_the_datapath_has() {
    on_one_thread(async {
        let cluster = Cluster::new(61, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
        let stands = async || {
            let get = Gettable::Tunnels;
            let tunnels = cluster.ask(1, Request::Get { get }).await.tunnels.unwrap();
            (
                tunnels[0].kernel_policies_installed,
                tunnels[0].security_associations_installed,
            )
        };
        assert_eq!(stands().await, (Some(1), 2));
        let twin = cluster.hosts[&1].twin();
        let child = twin.children()[0];
        twin.clone().remove(child).unwrap();
        twin.fail(Operation::Policies, 1);
        assert_eq!(stands().await, (None, 0));
        assert_eq!(stands().await, (Some(1), 0));
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

/// nft takes seconds on a busy machine: the loop does its other work and asks when it is told to.
#[test]
fn a_datapath_that_takes_its_time_is_asked_when_it_rings() {
    on_one_thread(async {
        let cluster = Cluster::new(34, 2);
        cluster.hosts[&1].0.lock().unwrap().held = true;
        cluster.init().await;
        let twin = || cluster.hosts[&1].twin();
        wait("the first question", async || twin().traffic_asked() > 0).await;
        let (begin, before) = (Instant::now(), twin().traffic_asked());
        for _ in 0..100 {
            let get = Gettable::Drops;
            cluster.ask(1, Request::Get { get }).await;
        }
        // What comes without an event is looked at every two seconds; peers that come change the policy.
        let most = 10 + begin.elapsed().as_secs();
        let asked = twin().traffic_asked() - before;
        assert!(
            asked <= most,
            "asked {asked} times in {:?}",
            begin.elapsed()
        );
        assert!(twin().policy().is_none());
        twin().hold_traffic(false);
        cluster.reach(Phase::Strict).await;
        cluster.all_sealed().await;
    });
}
