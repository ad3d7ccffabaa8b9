use testudo_model::condition::{self, Condition, ConditionStatus};
use testudo_model::{Acknowledgement, BootId, NodeUid, Phase, UnixTime};
use testudo_store::DirStore;

use super::*;

fn news() -> News {
    News {
        spec: NodeEncryptionSpec {
            uid: NodeUid::new("u1").unwrap(),
            boot_id: BootId::new("b1").unwrap(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            pod_cidrs: Vec::new(),
            datapath: "user".to_owned(),
            agent_socket: None,
        },
        status: NodeEncryptionStatus::default(),
        request: None,
        removed: false,
        again: 0,
    }
}

fn acknowledged(phase: Phase) -> Option<Acknowledgement> {
    Some(Acknowledgement { phase, rollout: 1 })
}

/// What a step of a roll-out or of a rotation waits for goes out at once, and counts and words do not.
#[test]
fn what_others_wait_for_is_told_from_what_they_do_not() {
    type Change = (&'static str, Haste, fn(&mut News));
    let changes: [Change; 11] = [
        ("nothing", Haste::None, |_| {}),
        ("tunnels", Haste::None, |n| {
            (n.status.tunnels_up, n.status.tunnels_expected) = (3, 4);
        }),
        ("MTU", Haste::None, |n| n.status.effective_mtu = Some(1400)),
        ("progress", Haste::None, |n| {
            let condition = Condition {
                kind: "Ready".to_owned(),
                status: ConditionStatus::False,
                reason: "Progressing".to_owned(),
                message: "leaving Prepared: n2: no tunnel".to_owned(),
                last_transition_time: UnixTime(0),
                observed_generation: 1,
            };
            condition::set(&mut n.status.conditions, condition);
        }),
        ("phase", Haste::Crowd, |n| {
            n.status.acknowledged = acknowledged(Phase::Strict);
        }),
        ("phase and datapath", Haste::Now, |n| {
            n.status.acknowledged = acknowledged(Phase::Strict);
            n.spec.datapath = "kernel".to_owned();
        }),
        ("rotation", Haste::Now, |n| n.status.rotation = 1),
        ("authorities", Haste::Now, |n| {
            n.status.authorities.trusted = vec!["CN=ca".to_owned()];
        }),
        ("per CPU", Haste::Now, |n| n.status.per_cpu = 2),
        ("datapath", Haste::Now, |n| {
            n.spec.datapath = "kernel".to_owned()
        }),
        ("written anew", Haste::Now, |n| n.again = 1),
    ];
    let last = news();
    for (what, haste, change) in changes {
        let mut next = last.clone();
        change(&mut next);
        assert_eq!(next.haste(&last), haste, "{what}");
    }
}

/// Words that nobody waits for are held back and go with the next that somebody does, and the last of
/// them is written by itself.
#[test]
fn words_that_nobody_waits_for_are_held_back_and_the_last_is_written() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        let node = NodeName::new("n1").unwrap();
        let status = async || {
            let node = store.get::<NodeEncryptionKind>("n1").await.unwrap();
            node.map(|node| node.status)
        };
        let reach = async |up: u32| {
            while status().await.is_none_or(|s| s.tunnels_up != up) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (sender, receiver) = watch::channel(None);
        // Nothing of the kind comes again in the life of this test, unless it goes with the rest.
        let hour = Duration::from_secs(3600);
        let task = tokio::spawn(publish(
            store.clone(),
            node.clone(),
            move |_| hour,
            receiver,
        ));
        let mut now = news();
        now.status.tunnels_up = 1;
        sender.send_replace(Some(now.clone()));
        reach(1).await;
        for up in 2..50 {
            now.status.tunnels_up = up;
            sender.send_replace(Some(now.clone()));
            tokio::time::sleep(Duration::from_millis(4)).await;
            assert_eq!(status().await.unwrap().tunnels_up, 1);
        }
        now.status.acknowledged = acknowledged(Phase::Prepared);
        sender.send_replace(Some(now.clone()));
        reach(49).await;
        assert_eq!(
            status().await.unwrap().acknowledged,
            now.status.acknowledged
        );
        task.abort();

        let (sender, receiver) = watch::channel(Some(now.clone()));
        let soon = Duration::from_millis(50);
        let task = tokio::spawn(publish(store.clone(), node, move |_| soon, receiver));
        for up in 50..60 {
            now.status.tunnels_up = up;
            sender.send_replace(Some(now.clone()));
            tokio::task::yield_now().await;
        }
        reach(59).await;
        task.abort();
    });
}

/// A store that refuses is asked ever more rarely, and never by all at the same time.
#[test]
fn failures_are_spread_out() {
    let mut failures = Failures::default();
    let error = anyhow::anyhow!("too many requests");
    let waits: Vec<Duration> = (0..8).map(|_| failures.another(&error)).collect();
    assert!(waits[7] > waits[0] * 4, "{waits:?}");
    let many: std::collections::BTreeSet<Duration> = (0..50)
        .map(|_| {
            let wait = jittered(CALM);
            assert!((CALM.mul_f64(0.79)..CALM.mul_f64(1.21)).contains(&wait));
            wait
        })
        .collect();
    assert!(many.len() > 1);
}

#[test]
fn a_small_cluster_sees_counts_at_once_and_a_large_one_within_seconds() {
    let of = |expected| {
        let mut news = news();
        news.status.tunnels_expected = expected;
        calm(&news)
    };
    assert_eq!(of(2), Duration::from_millis(100));
    assert_eq!(of(99), Duration::from_millis(4950));
    assert_eq!([of(1200), of(5000), of(u32::MAX)], [CALM; 3]);
}

/// All take a step in the same second: a small cluster tells of it at once, and a thousand nodes one after the
/// other, for each word goes to all of them.
#[test]
fn a_thousand_nodes_do_not_tell_of_a_step_in_one_second() {
    let of = |expected| {
        let mut news = news();
        news.status.tunnels_expected = expected;
        spread(&news)
    };
    assert_eq!([of(0), of(49), of(50)], [Duration::ZERO; 3]);
    assert_eq!(of(999), Duration::from_millis(47_450));
    assert_eq!([of(5000), of(u32::MAX)], [SPREAD; 2]);
    let mut seconds = [0u32; 48];
    for _ in 0..1000 {
        let second = share(of(999)).as_secs();
        seconds[usize::try_from(second).unwrap()] += 1;
    }
    // 21 each on the average.
    assert!(seconds.iter().all(|writes| *writes < 60), "{seconds:?}");
}
