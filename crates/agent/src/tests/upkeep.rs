//! What an agent looks after while nothing happens.

use testudo_model::{Monotonic, Now, UnixTime};
use testudo_store::Event as Seen;

use super::*;
use crate::enforcement::{Enforcement, PolicyFile};
use crate::node::Node;
use crate::objects::Told;

pub(super) fn at(seconds: u64) -> Now {
    Now {
        monotonic: Monotonic(Duration::from_secs(seconds)),
        wall: UnixTime(1_800_000_000),
    }
}

pub(super) fn strict_node(dir: &Path, fake: &Fake) -> Node {
    let options = Options {
        node: name(1),
        store: testudo_store::Location::Directory(dir.to_owned()),
        state_dir: dir.to_owned(),
        socket: dir.join("n1.sock"),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        follow_addresses: false,
        pod_cidrs: Vec::new(),
        pods_from_node: false,
        join_token_file: None,
        danger_export_keys: None,
        keeper: None,
        datapath: None,
        metrics: None,
        metrics_by_peer: false,
        ports: Ports { ike: 0, nat: 0 },
        version: "1".to_owned(),
    };
    let enforcement = Enforcement::new(PolicyFile::new(dir), None);
    let mut node = Node::new(options, Box::new(fake.clone()), enforcement).unwrap();
    let mut spec = EncryptionPolicySpec {
        mode: Mode::Full,
        ..EncryptionPolicySpec::default()
    };
    spec.overlay.kind = OverlayType::Vxlan;
    let mut policy = EncryptionPolicy::new(CLUSTER, spec);
    (policy.status.phase, policy.status.target) = (Phase::Strict, Phase::Strict);
    node.take(Told::Policy(Seen::Added(policy)));
    node.take(Told::Policy(Seen::Synced));
    node.take(Told::Bundle(Seen::Synced));
    node.take(Told::Node(Seen::Synced));
    node.take(Told::Request(Seen::Synced));
    node
}

// A firewall that is restarted flushes all of nft, ours too: clear packets would be accepted until
// the policy changes (moby's CVE-2023-28842, cilium#24773: rules that are not there).
#[tokio::test]
async fn rules_that_another_program_flushed_are_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let mut node = strict_node(dir.path(), &fake);
    let told = |fake: &Fake| {
        let calls = fake.twin().calls();
        let set = calls.iter().filter(|c| matches!(c, Call::SetTraffic(_)));
        set.count()
    };
    node.update(at(100));
    let first = told(&fake);
    assert!(first >= 1);
    for second in 101..105 {
        node.update(at(second));
    }
    assert_eq!(told(&fake), first, "told again without need");
    // Nothing happens; its own deadline brings it round.
    let deadline = node.deadline(at(105));
    assert!(deadline <= Monotonic(Duration::from_secs(115)));
    node.update(Now {
        monotonic: deadline,
        ..at(105)
    });
    let later = node.deadline(at(115));
    node.update(Now {
        monotonic: later,
        ..at(115)
    });
    assert!(told(&fake) > first);
}
