use super::*;
use testudo_model::policy::{Enforcement, Keying, Mode};
use testudo_model::{BootId, ClearTraffic, EncryptionPolicySpec, NodeEncryptionSpec};

const AT: u64 = 5;

fn policy(phase: Phase, target: Phase) -> EncryptionPolicy {
    let mut spec = EncryptionPolicySpec::default();
    spec.overlay.kind = OverlayType::Vxlan;
    (spec.mode, spec.enforcement) = match target {
        Phase::Disabled | Phase::Prepared => (Mode::Disabled, Enforcement::Strict),
        Phase::Permissive => (Mode::Full, Enforcement::Permissive),
        Phase::Strict => (Mode::Full, Enforcement::Strict),
    };
    let mut policy = EncryptionPolicy::new("cluster", spec);
    policy.status.phase = phase;
    policy.status.target = target;
    policy.status.rollout = AT;
    policy.status.since = 2;
    policy
}

fn node(number: u8, word: Option<(Phase, u64)>) -> NodeEncryption {
    let spec = NodeEncryptionSpec {
        uid: NodeUid::new(format!("u{number}")).unwrap(),
        boot_id: BootId::new("b").unwrap(),
        addresses: vec![format!("10.0.0.{number}").parse().unwrap()],
        pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
        datapath: "user".to_owned(),
        agent_socket: None,
    };
    let mut node = NodeEncryption::new(format!("n{number}"), spec);
    node.status.acknowledged = word.map(|(phase, rollout)| Acknowledgement { phase, rollout });
    node
}

fn facts(peer: &str, inbound: bool, outbound: bool) -> Facts {
    let child = ChildFacts { inbound, outbound };
    let mut facts = Facts::new();
    for name in ["v4", "pods"] {
        facts
            .entry(PeerId::new(peer).unwrap())
            .or_default()
            .insert(name.to_owned(), child);
    }
    facts
}

fn doit(known: &Known<'_>) -> NodePlan {
    match plan(known) {
        Decision::Do(plan) => plan,
        Decision::Refused(reasons) => panic!("refused: {reasons:?}"),
    }
}

/// The traffic policy of n1 with n2 as it would stand before.
fn before(outbound: Outbound, clear_outbound: ClearTraffic) -> TrafficPolicy {
    let own = node(1, None);
    let known = Known {
        policy: &policy(Phase::Prepared, Phase::Strict),
        own: &own,
        nodes: &[node(2, None)],
        facts: &Facts::new(),
        previous: None,
    };
    let mut traffic = doit(&known).traffic.unwrap();
    traffic.peers[0].outbound = outbound;
    traffic.clear_outbound = clear_outbound;
    traffic
}

const CLEAR: Outbound = Outbound::Clear;
const SEAL: Outbound = Outbound::Encrypt;
const PASS: ClearTraffic = ClearTraffic::Pass;
const DROP: ClearTraffic = ClearTraffic::Drop;

/// All phases, targets, words of the peer, SAs and previous states: what must hold in each.
#[test]
fn every_combination_obeys_the_phase() {
    let words: Vec<Option<(Phase, u64)>> = std::iter::once(None)
        .chain(
            Phase::ALL
                .iter()
                .flat_map(|phase| [1, AT - 1, AT, AT + 1].map(|rollout| Some((*phase, rollout)))),
        )
        .collect();
    let previous = [
        None,
        Some(before(CLEAR, PASS)),
        Some(before(SEAL, PASS)),
        Some(before(SEAL, DROP)),
    ];
    let mut cases = 0;
    for phase in Phase::ALL {
        for target in [Phase::Disabled, Phase::Permissive, Phase::Strict] {
            for word in &words {
                for sas in [(false, false), (true, false), (true, true)] {
                    for previous in &previous {
                        one_case(phase, target, *word, sas, previous.as_ref());
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 4 * 3 * 17 * 3 * 4);
}

fn one_case(
    phase: Phase,
    target: Phase,
    word: Option<(Phase, u64)>,
    (inbound, outbound): (bool, bool),
    previous: Option<&TrafficPolicy>,
) {
    let policy = policy(phase, target);
    let own = node(1, None);
    let plan = doit(&Known {
        policy: &policy,
        own: &own,
        nodes: &[own.clone(), node(2, word)],
        facts: &facts("n2", inbound, outbound),
        previous,
    });
    let case = format!("{phase} -> {target}, {word:?}, {inbound} {outbound}, {previous:?}");
    let asked = Acknowledgement { phase, rollout: AT };
    let Some(traffic) = &plan.traffic else {
        assert_eq!(phase, Phase::Disabled, "{case}");
        assert!(
            plan.peers.is_empty() && plan.acknowledge == Some(asked),
            "{case}"
        );
        return;
    };
    assert_eq!(plan.peers.len(), 1, "{case}");
    let out = traffic.peers[0].outbound;
    let strict = phase == Phase::Strict;
    assert_eq!(traffic.clear_inbound == DROP, strict, "{case}");
    let complete = plan.waiting.is_empty();
    if complete {
        assert_eq!(plan.acknowledge, Some(asked), "{case}");
    }
    let accepts_clear =
        word.is_some_and(|(phase, rollout)| phase <= Phase::Permissive && rollout >= AT);
    let was_clear = previous.is_some_and(|p| p.peers[0].outbound == CLEAR);
    match phase {
        Phase::Disabled => panic!("traffic in Disabled: {case}"),
        Phase::Prepared => {
            assert_eq!((out, traffic.clear_outbound), (CLEAR, PASS), "{case}");
            let rising = target > Phase::Prepared;
            assert_eq!(complete, inbound || !rising, "{case}");
            assert_eq!(plan.acknowledge.is_some(), complete, "{case}");
        }
        Phase::Permissive => {
            // Never looser towards a peer that may drop clear.
            if out == CLEAR {
                assert!(was_clear || accepts_clear, "{case}");
            }
            if target == Phase::Strict {
                let closed = traffic.clear_outbound == DROP;
                assert_eq!(complete, closed, "a word is given only when closed: {case}");
                assert_eq!(closed, out == SEAL, "{case}");
                let was_closed = previous.is_none_or(|p| p.clear_outbound == DROP);
                assert!(closed || !was_closed, "opened on the way to Strict: {case}");
            }
            if target == Phase::Disabled {
                assert!(complete, "accepting clear is all that is asked: {case}");
            }
            let prepared = Acknowledgement {
                phase: Phase::Prepared,
                rollout: AT,
            };
            let disabled = Acknowledgement {
                phase: Phase::Disabled,
                rollout: AT,
            };
            if !complete {
                let so_far = if inbound { prepared } else { disabled };
                assert_eq!(plan.acknowledge, Some(so_far), "{case}");
            }
        }
        Phase::Strict => {
            assert_eq!((out, traffic.clear_outbound), (SEAL, DROP), "{case}");
            assert!(complete, "{case}");
        }
    }
}

#[test]
fn permissive_seals_to_those_who_said_they_can_open() {
    let own = node(1, None);
    let previous = before(CLEAR, PASS);
    for (word, outbound, expected) in [
        (None, true, CLEAR),
        (Some((Phase::Disabled, AT)), true, CLEAR),
        (Some((Phase::Prepared, AT - 1)), false, CLEAR),
        (Some((Phase::Prepared, AT - 1)), true, SEAL),
        (Some((Phase::Permissive, AT)), true, SEAL),
        // From before the cluster was Disabled: those SAs are gone.
        (Some((Phase::Strict, 1)), true, CLEAR),
    ] {
        let plan = doit(&Known {
            policy: &policy(Phase::Permissive, Phase::Strict),
            own: &own,
            nodes: &[node(2, word)],
            facts: &facts("n2", true, outbound),
            previous: Some(&previous),
        });
        assert_eq!(
            plan.traffic.unwrap().peers[0].outbound,
            expected,
            "{word:?}"
        );
        assert_eq!(plan.waiting.is_empty(), expected == SEAL);
    }
}

/// Found by the simulation: n1 has just come, n3 is Strict still, and n1 has not read n3 yet.
#[test]
fn a_newcomer_stays_closed_towards_strangers_that_may_drop_clear() {
    let own = node(1, None);
    let accepts = Some((Phase::Permissive, AT));
    let closed = before(SEAL, DROP);
    for (waiting_on, previous, expected) in [
        (vec!["n1", "n3"], None, DROP),
        (vec!["n1", "n3"], Some(&closed), DROP),
        (vec!["n1", "n2"], Some(&closed), PASS),
        (vec!["n1"], None, PASS),
        (vec!["n3"], Some(&before(CLEAR, PASS)), PASS),
    ] {
        let mut policy = policy(Phase::Permissive, Phase::Permissive);
        policy.status.waiting_on = waiting_on.iter().map(ToString::to_string).collect();
        let plan = doit(&Known {
            policy: &policy,
            own: &own,
            nodes: &[node(2, accepts)],
            facts: &facts("n2", true, true),
            previous,
        });
        let traffic = plan.traffic.unwrap();
        assert_eq!(
            traffic.clear_outbound, expected,
            "{waiting_on:?} {previous:?}"
        );
    }
}

#[test]
fn a_word_once_given_stands() {
    let own = node(1, Some((Phase::Prepared, AT)));
    let plan = doit(&Known {
        policy: &policy(Phase::Prepared, Phase::Strict),
        own: &own,
        nodes: &[node(2, None)],
        facts: &Facts::new(),
        previous: None,
    });
    assert_eq!(plan.acknowledge, own.status.acknowledged);
    assert_eq!(plan.waiting[0].peer.as_str(), "n2");
    assert!(plan.waiting[0].reason.contains("inbound SA"));
    assert_eq!((plan.tunnels_up, plan.tunnels_expected), (0, 1));
}

#[test]
fn an_overlays_children_are_udp_between_the_addresses_of_each_family() {
    let mut own = node(1, None);
    let mut peer = node(2, None);
    own.spec.addresses = ["10.0.0.1", "fd00::1", "10.9.9.1"]
        .map(|a| a.parse().unwrap())
        .to_vec();
    peer.spec.addresses = ["fd00::2", "10.0.0.2"].map(|a| a.parse().unwrap()).to_vec();
    let wanted = |own: &NodeEncryption, peer: &NodeEncryption| {
        let plan = doit(&Known {
            policy: &policy(Phase::Prepared, Phase::Strict),
            own,
            nodes: &[own.clone(), peer.clone()],
            facts: &Facts::new(),
            previous: None,
        });
        assert_eq!(plan.tunnels_expected, 2);
        plan.peers[0].clone()
    };
    let (ours, theirs) = (wanted(&own, &peer), wanted(&peer, &own));
    assert!(ours.initiate && !theirs.initiate, "the smaller UID begins");
    let names = |p: &PeerWanted| {
        p.children
            .iter()
            .map(|c| c.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&ours), ["v4", "v6"]);
    assert_eq!(names(&theirs), names(&ours), "both in the same order");
    for (a, b) in ours.children.iter().zip(&theirs.children) {
        assert_eq!((&a.local, &a.remote), (&b.remote, &b.local));
        assert_eq!(a.mode, SaMode::Transport);
        assert!(a.local[0].matches("10.0.0.1".parse().unwrap(), 17, 40_000) != (a.name == "v6"));
        assert!(!a.local[0].matches("10.0.0.1".parse().unwrap(), 6, 80));
    }
    assert_eq!(
        ours.addresses[0].remote,
        "10.0.0.2".parse::<IpAddr>().unwrap()
    );
    peer.spec.addresses.truncate(1);
    own.spec.addresses.truncate(1);
    let plan = doit(&Known {
        policy: &policy(Phase::Prepared, Phase::Strict),
        own: &own,
        nodes: &[peer],
        facts: &Facts::new(),
        previous: None,
    });
    assert!(plan.peers.is_empty());
    assert!(plan.waiting[0].reason.contains("family"));
}

fn routed(phase: Phase) -> EncryptionPolicy {
    let mut policy = policy(phase, Phase::Strict);
    policy.spec.overlay.kind = OverlayType::Routed;
    policy.spec.overlay.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    policy
}

#[test]
fn routed_pods_share_one_tunnel_with_the_hosts_that_talk_to_them() {
    let own = node(1, None);
    let plan = doit(&Known {
        policy: &routed(Phase::Strict),
        own: &own,
        nodes: &[node(2, None)],
        facts: &Facts::new(),
        previous: None,
    });
    let child = &plan.peers[0].children[0];
    assert_eq!((child.name.as_str(), child.mode), ("pods", SaMode::Tunnel));
    let shown: Vec<String> = child.remote.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.244.2.0-10.244.2.255", "10.0.0.2"]);
    let traffic = plan.traffic.unwrap();
    let ProtectedFlows::Routed { local, cluster } = &traffic.flows else {
        panic!("routed");
    };
    assert_eq!(local[0].to_string(), "10.244.1.0/24");
    assert_eq!(cluster[0].to_string(), "10.244.0.0/16");
    let (mut bare, mut other) = (own.clone(), node(2, None));
    bare.spec.pod_cidrs.clear();
    other.spec.pod_cidrs.clear();
    let plan = doit(&Known {
        policy: &routed(Phase::Prepared),
        own: &bare,
        nodes: &[other],
        facts: &Facts::new(),
        previous: None,
    });
    assert!(
        plan.peers.is_empty() && plan.waiting.is_empty(),
        "nothing to protect"
    );
}

#[test]
fn the_prefixes_of_a_node_that_is_gone_stay_closed_until_another_has_them() {
    let own = node(1, None);
    let facts = Facts::new();
    let step = |phase, nodes: &[NodeEncryption], previous: Option<&TrafficPolicy>| {
        doit(&Known {
            policy: &routed(phase),
            own: &own,
            nodes,
            facts: &facts,
            previous,
        })
    };
    let peers = |traffic: &TrafficPolicy| -> Vec<String> {
        let text = |p: &testudo_model::PeerTraffic| format!("{} {:?}", p.peer, p.pod_cidrs);
        traffic.peers.iter().map(text).collect()
    };
    let both = step(Phase::Strict, &[node(2, None), node(3, None)], None)
        .traffic
        .unwrap();
    let one = step(Phase::Strict, &[node(3, None)], Some(&both));
    assert_eq!(one.peers.len(), 1, "no SA with it");
    let one = one.traffic.unwrap();
    assert_eq!(peers(&one), peers(&both), "its prefix is closed");
    assert_eq!(one.peers[0].outbound, SEAL);
    let still = step(Phase::Strict, &[node(3, None)], Some(&one))
        .traffic
        .unwrap();
    assert_eq!(still, one, "and stays closed");
    let mut heir = node(4, None);
    heir.spec.pod_cidrs = node(2, None).spec.pod_cidrs;
    let taken = step(Phase::Strict, &[node(3, None), heir], Some(&one))
        .traffic
        .unwrap();
    assert_eq!(peers(&taken), ["n3 [10.244.3.0/24]", "n4 [10.244.2.0/24]"]);
    let open = step(Phase::Prepared, &[node(3, None)], Some(&one))
        .traffic
        .unwrap();
    assert_eq!(peers(&open), ["n3 [10.244.3.0/24]"]);
}

#[test]
fn what_is_not_built_is_refused_and_leaves_everything() {
    let own = node(1, None);
    let mut policy = policy(Phase::Strict, Phase::Strict);
    policy.spec.keying = Keying::PreSharedKey;
    let known = Known {
        policy: &policy,
        own: &own,
        nodes: &[],
        facts: &Facts::new(),
        previous: None,
    };
    assert!(matches!(plan(&known), Decision::Refused(reasons) if reasons.len() == 1));
}

#[test]
fn on_the_way_off_the_overlay_may_be_forgotten() {
    let own = node(1, None);
    let mut policy = policy(Phase::Permissive, Phase::Disabled);
    policy.spec.overlay = Overlay::default();
    let previous = before(SEAL, DROP);
    let known = Known {
        policy: &policy,
        own: &own,
        nodes: &[node(2, None)],
        facts: &facts("n2", true, true),
        previous: Some(&previous),
    };
    assert_eq!(doit(&known).traffic.unwrap().flows, previous.flows);
    let nothing = Known {
        previous: None,
        ..known
    };
    assert!(matches!(plan(&nothing), Decision::Refused(_)));
}

#[test]
fn what_two_nodes_claim_at_once_is_told() {
    let own = node(1, None);
    let mut copy = node(2, None);
    copy.spec.uid = own.spec.uid.clone();
    copy.spec.addresses = own.spec.addresses.clone();
    let mut wide = node(3, None);
    wide.spec.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let plan = doit(&Known {
        policy: &policy(Phase::Prepared, Phase::Strict),
        own: &own,
        nodes: &[copy, wide],
        facts: &Facts::new(),
        previous: None,
    });
    for word in [
        "same UID",
        "both claim the address 10.0.0.1",
        "overlaps n3's 10.244.0.0/16",
    ] {
        assert!(
            plan.problems.iter().any(|p| p.contains(word)),
            "{word}: {:?}",
            plan.problems
        );
    }
}

fn addresses_of(plan: &NodePlan, peer: &str) -> Vec<String> {
    let peers = plan
        .peers
        .iter()
        .filter(|wanted| wanted.peer.as_str() == peer);
    let ends = peers.flat_map(|wanted| &wanted.addresses);
    ends.map(|pair| pair.remote.to_string()).collect()
}

// A node that was taken over claims another's address: what is sent there must not go to it.
#[test]
fn a_disputed_address_stays_with_whom_it_was_and_a_new_one_is_nobodys() {
    let own = node(1, None);
    let policy = policy(Phase::Strict, Phase::Strict);
    let mut thief = node(3, None);
    thief.spec.addresses.push("10.0.0.2".parse().unwrap());
    thief.spec.addresses.push("10.0.0.1".parse().unwrap());
    let nodes = [own.clone(), node(2, None), thief];
    let previous = before(Outbound::Encrypt, ClearTraffic::Drop);
    let known = Known {
        policy: &policy,
        own: &own,
        nodes: &nodes,
        facts: &Facts::new(),
        previous: Some(&previous),
    };
    let plan = doit(&known);
    assert_eq!(addresses_of(&plan, "n2"), ["10.0.0.2"]);
    assert_eq!(addresses_of(&plan, "n3"), ["10.0.0.3"]);
    let traffic = plan.traffic.unwrap();
    let n3 = traffic.peers.iter().find(|peer| peer.peer.as_str() == "n3");
    assert_eq!(
        n3.unwrap().addresses,
        ["10.0.0.3".parse::<IpAddr>().unwrap()]
    );
    // Nobody had it: neither has it now.
    let first = doit(&Known {
        previous: None,
        ..known
    });
    assert_eq!(addresses_of(&first, "n2"), [""; 0]);
    assert_eq!(addresses_of(&first, "n3"), ["10.0.0.3"]);
    assert!(first.waiting.is_empty() || first.waiting[0].peer.as_str() == "n2");
}

#[test]
fn a_disputed_prefix_stays_with_whom_it_was() {
    let own = node(1, None);
    let mut policy = policy(Phase::Strict, Phase::Strict);
    policy.spec.overlay.kind = OverlayType::Routed;
    policy.spec.overlay.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let mut thief = node(3, None);
    thief.spec.pod_cidrs = vec![
        "10.244.2.128/25".parse().unwrap(),
        "10.244.0.0/16".parse().unwrap(),
    ];
    let nodes = [node(2, None), thief];
    let known = |previous| Known {
        policy: &policy,
        own: &own,
        nodes: &nodes,
        facts: &NOTHING,
        previous,
    };
    static NOTHING: Facts = Facts::new();
    let alone = doit(&Known {
        nodes: &nodes[..1],
        ..known(None)
    });
    let traffic = doit(&known(alone.traffic.as_ref())).traffic.unwrap();
    let pods = |name: &str| {
        let peer = traffic.peers.iter().find(|peer| peer.peer.as_str() == name);
        peer.map(|peer| peer.pod_cidrs.clone()).unwrap_or_default()
    };
    assert_eq!(
        pods("n2"),
        ["10.244.2.0/24".parse::<ipnet::IpNet>().unwrap()]
    );
    assert_eq!(pods("n3"), []);
}

// A node may claim any prefix in its own object: what is not the cluster's must not be drawn into
// its tunnel, least of all the nodes' own addresses.
#[test]
fn prefixes_outside_the_clusters_are_left_alone_and_named() {
    let mut greedy = node(2, None);
    let v6 = "fd00:2::/64".parse().unwrap();
    greedy.spec.pod_cidrs.push(v6);
    let wide = ["0.0.0.0/0", "10.0.0.0/24", "10.244.0.0/15"];
    greedy
        .spec
        .pod_cidrs
        .extend(wide.map(|c| c.parse::<ipnet::IpNet>().unwrap()));
    for phase in [Phase::Permissive, Phase::Strict] {
        let done = doit(&Known {
            policy: &routed(phase),
            own: &node(1, None),
            nodes: &[greedy.clone()],
            facts: &Facts::new(),
            previous: None,
        });
        let shown: Vec<String> = done.traffic.unwrap().peers[0]
            .pod_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        // The policy names no IPv6 prefixes: the node's own are protected all the same.
        assert_eq!(shown, ["10.244.2.0/24", "fd00:2::/64"]);
        assert_eq!(done.peers[0].children[0].remote.len(), 3);
        for claimed in wide {
            let named = |p: &String| p.contains("n2") && p.contains(claimed);
            assert!(done.problems.iter().any(named), "{:?}", done.problems);
        }
    }
}

/// A policy written anew without its status would say Disabled, step 0: a node that has come
/// further stays as it is.
#[test]
fn a_lost_status_opens_no_node() {
    let mut policy = policy(Phase::Strict, Phase::Strict);
    policy.status = Default::default();
    let mut known = Known {
        policy: &policy,
        own: &node(1, Some((Phase::Strict, 3))),
        nodes: &[],
        facts: &Facts::new(),
        previous: None,
    };
    let Decision::Refused(reasons) = plan(&known) else {
        panic!("it opens");
    };
    assert!(reasons[0].contains("step 3"), "{reasons:?}");
    let fresh = node(1, Some((Phase::Disabled, 0)));
    known.own = &fresh;
    assert_eq!(doit(&known).traffic, None);
}
