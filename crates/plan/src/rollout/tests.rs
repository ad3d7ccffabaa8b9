use super::*;
use testudo_model::policy::{Enforcement, Keying, Mode, OverlayType};
use testudo_model::{BootId, EncryptionPolicySpec, NodeEncryptionSpec, NodeUid};

const NOW: UnixTime = UnixTime(1000);

fn policy(target: Phase) -> EncryptionPolicy {
    let mut spec = EncryptionPolicySpec::default();
    spec.overlay.kind = OverlayType::Geneve;
    (spec.mode, spec.enforcement) = match target {
        Phase::Disabled | Phase::Prepared => (Mode::Disabled, Enforcement::Strict),
        Phase::Permissive => (Mode::Full, Enforcement::Permissive),
        Phase::Strict => (Mode::Full, Enforcement::Strict),
    };
    let mut policy = EncryptionPolicy::new("cluster", spec);
    policy.status.target = target;
    policy
}

fn node(name: &str, acknowledged: Option<(Phase, u64)>) -> NodeEncryption {
    let spec = NodeEncryptionSpec {
        uid: NodeUid::new(name).unwrap(),
        boot_id: BootId::new("b").unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        pod_cidrs: Vec::new(),
        datapath: "user".to_owned(),
        agent_socket: None,
    };
    let mut node = NodeEncryption::new(name, spec);
    node.status.acknowledged =
        acknowledged.map(|(phase, rollout)| Acknowledgement { phase, rollout });
    node
}

fn condition<'a>(status: &'a EncryptionPolicyStatus, kind: &str) -> &'a Condition {
    status.conditions.iter().find(|c| c.kind == kind).unwrap()
}

/// Every phase, target and word of the one node: where the cluster goes, and the count.
#[test]
fn every_phase_target_and_word() {
    const AT: u64 = 5;
    let words = [None].into_iter().chain(
        Phase::ALL
            .iter()
            .flat_map(|phase| [AT - 1, AT, AT + 1].map(|rollout| Some((*phase, rollout)))),
    );
    for word in words {
        for phase in Phase::ALL {
            for target in [Phase::Disabled, Phase::Permissive, Phase::Strict] {
                let mut policy = policy(target);
                policy.status.phase = phase;
                policy.status.rollout = AT;
                let next = next(&policy, &[node("n1", word)], &[], NOW);
                let given = word == Some((phase, AT));
                let free = phase == Phase::Disabled || phase == Phase::Strict;
                let moves = phase != target && (given || free);
                let expected = if moves { phase.towards(target) } else { phase };
                let case = format!("{word:?} {phase} -> {target}");
                assert_eq!(next.phase, expected, "{case}");
                assert_eq!(next.rollout, AT + u64::from(moves), "{case}");
                let waits = word != Some((next.phase, next.rollout));
                assert_eq!(next.waiting_on.is_empty(), !waits, "{case}");
                let ready = condition(&next, "Ready").status == ConditionStatus::True;
                assert_eq!(ready, !waits && next.phase == target, "{case}");
            }
        }
    }
}

#[test]
fn a_change_of_the_target_is_a_step_of_its_own() {
    for (phase, old, new, expected, asks) in [
        (
            Phase::Disabled,
            Phase::Disabled,
            Phase::Strict,
            Phase::Prepared,
            true,
        ),
        (
            Phase::Prepared,
            Phase::Strict,
            Phase::Disabled,
            Phase::Prepared,
            true,
        ),
        (
            Phase::Prepared,
            Phase::Disabled,
            Phase::Strict,
            Phase::Prepared,
            true,
        ),
        (
            Phase::Permissive,
            Phase::Strict,
            Phase::Permissive,
            Phase::Permissive,
            true,
        ),
        (
            Phase::Permissive,
            Phase::Permissive,
            Phase::Strict,
            Phase::Permissive,
            true,
        ),
        (
            Phase::Permissive,
            Phase::Strict,
            Phase::Disabled,
            Phase::Permissive,
            true,
        ),
        (
            Phase::Strict,
            Phase::Strict,
            Phase::Disabled,
            Phase::Permissive,
            true,
        ),
        (
            Phase::Strict,
            Phase::Strict,
            Phase::Permissive,
            Phase::Permissive,
            true,
        ),
        (
            Phase::Strict,
            Phase::Permissive,
            Phase::Strict,
            Phase::Strict,
            false,
        ),
    ] {
        let mut policy = policy(new);
        policy.status.phase = phase;
        policy.status.target = old;
        policy.status.rollout = 9;
        let next = next(&policy, &[node("n1", Some((phase, 9)))], &[], NOW);
        assert_eq!(next.phase, expected, "{phase}: {old} -> {new}");
        assert_eq!(next.target, new);
        assert_eq!(next.rollout, 9 + u64::from(asks), "{phase}: {old} -> {new}");
    }
}

#[test]
fn the_first_node_starts_a_roll_out_and_no_node_none() {
    let policy = policy(Phase::Strict);
    let idle = next::<NodeEncryption>(&policy, &[], &[], NOW);
    assert_eq!((idle.phase, idle.rollout), (Phase::Disabled, 0));
    assert_eq!(condition(&idle, "Ready").reason, "NoNodes");
    let started = next(&policy, &[node("n1", None)], &[], NOW);
    assert_eq!(
        (started.phase, started.rollout, started.since),
        (Phase::Prepared, 1, 1)
    );
    assert_eq!(started.waiting_on, ["n1"]);
}

#[test]
fn an_empty_cluster_can_be_switched_off() {
    let mut policy = policy(Phase::Disabled);
    policy.status.phase = Phase::Strict;
    policy.status.target = Phase::Strict;
    for _ in 0..4 {
        policy.status = next::<NodeEncryption>(&policy, &[], &[], NOW);
    }
    assert_eq!(policy.status.phase, Phase::Disabled);
}

#[test]
fn all_nodes_count_and_those_that_cannot_be_read_too() {
    let mut policy = policy(Phase::Strict);
    policy.status.phase = Phase::Prepared;
    policy.status.rollout = 1;
    let done = Some((Phase::Prepared, 1));
    let status = next(&policy, &[node("n1", done), node("n2", None)], &[], NOW);
    assert_eq!(
        (status.phase, &status.waiting_on[..]),
        (Phase::Prepared, &["n2".to_owned()][..])
    );
    assert!(
        condition(&status, "Progressing")
            .message
            .contains("waiting for n2")
    );
    let status = next(&policy, &[node("n1", done)], &["n3".to_owned()], NOW);
    assert_eq!(
        (status.phase, &status.waiting_on[..]),
        (Phase::Prepared, &["n3".to_owned()][..])
    );
    assert_eq!(condition(&status, "Degraded").reason, "Unreadable");
    // Its object is gone: nobody waits for it.
    let status = next(&policy, &[node("n1", done)], &[], NOW);
    assert_eq!(status.phase, Phase::Permissive);
}

#[test]
fn a_node_that_joins_a_strict_cluster_sets_nothing_back() {
    let mut policy = policy(Phase::Strict);
    policy.status.phase = Phase::Strict;
    policy.status.rollout = 3;
    let old = node("n1", Some((Phase::Strict, 3)));
    let joined = next(&policy, &[old, node("n2", None)], &[], NOW);
    assert_eq!((joined.phase, joined.rollout), (Phase::Strict, 3));
    assert_eq!(condition(&joined, "Ready").status, ConditionStatus::False);
    assert_eq!((joined.nodes, joined.nodes_acknowledged), (2, 1));
}

#[test]
fn what_is_not_built_moves_nothing_and_says_why() {
    let mut policy = policy(Phase::Strict);
    policy.status.phase = Phase::Permissive;
    policy.status.rollout = 2;
    policy.spec.keying = Keying::PreSharedKey;
    let status = next(
        &policy,
        &[node("n1", Some((Phase::Permissive, 2)))],
        &[],
        NOW,
    );
    assert_eq!(status.phase, Phase::Permissive);
    let degraded = condition(&status, "Degraded");
    assert_eq!(degraded.status, ConditionStatus::True);
    assert!(degraded.message.contains("spec.keying"));
}

#[test]
fn nothing_new_is_the_same_status_at_any_later_time() {
    let mut policy = policy(Phase::Strict);
    let nodes = [node("n1", None), node("n2", None)];
    policy.status = next(&policy, &nodes, &[], NOW);
    assert_eq!(next(&policy, &nodes, &[], UnixTime(2000)), policy.status);
}

#[test]
fn long_lists_are_cut_in_messages() {
    let mut policy = policy(Phase::Strict);
    policy.status.phase = Phase::Prepared;
    let nodes: Vec<_> = (0..20).map(|i| node(&format!("n{i:02}"), None)).collect();
    let status = next(&policy, &nodes, &[], NOW);
    assert_eq!(status.waiting_on.len(), 20);
    assert!(
        condition(&status, "Ready")
            .message
            .ends_with("n07 and 12 more")
    );
}

/// A policy that was written anew without its status, in a cluster that has come some way: the
/// roll-out goes on from where it was, on a step of its own, and never starts over in clear.
#[test]
fn a_lost_status_is_found_again_in_the_nodes_words() {
    let nodes = [
        node("n1", Some((Phase::Strict, 3))),
        node("n2", Some((Phase::Permissive, 2))),
        node("n3", None),
    ];
    let mut policy = policy(Phase::Strict);
    policy.status = EncryptionPolicyStatus::default();
    let found = next(&policy, &nodes, &[], NOW);
    assert_eq!((found.phase, found.rollout), (Phase::Strict, 4));
    assert_eq!((found.target, found.since), (Phase::Strict, 4));
    assert_eq!(found.waiting_on, ["n1", "n2", "n3"]);
    policy.status = found.clone();
    assert_eq!(next(&policy, &nodes, &[], NOW).phase, Phase::Strict);

    // It is Disabled that is wanted now: down the usual way.
    let mut off = self::policy(Phase::Disabled);
    off.status = EncryptionPolicyStatus::default();
    let found = next(&off, &nodes, &[], NOW);
    assert_eq!(
        (found.phase, found.target),
        (Phase::Strict, Phase::Disabled)
    );
    off.status = found;
    assert_eq!(next(&off, &nodes, &[], NOW).phase, Phase::Permissive);

    // A cluster that was never anything but Disabled begins at the beginning.
    let fresh = [node("n1", Some((Phase::Disabled, 0)))];
    policy.status = EncryptionPolicyStatus::default();
    assert_eq!(next(&policy, &fresh, &[], NOW).phase, Phase::Prepared);
}
