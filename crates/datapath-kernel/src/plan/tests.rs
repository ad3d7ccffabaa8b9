//! The policies of each phase, written out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use testudo_model::{
    ClearTraffic, Outbound, PeerId, PeerTraffic, PortRange, ProtectedFlows, SaMode, Spi,
    TrafficPolicy, TrafficSelector,
};
use testudo_netlink::{XfrmAction, XfrmDirection, XfrmPolicy, XfrmTemplate};

use super::{Bindings, Change, InUse, changes, desired, desired_for, is_ours};
use crate::tag::{PRIORITY_PEER, REQID_BASE};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name() -> PeerId {
    PeerId::new("n2").unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Prepared,
    Permissive,
    Strict,
}

fn policy(step: Step, flows: ProtectedFlows, dual: bool) -> TrafficPolicy {
    let clear = match step {
        Step::Strict => ClearTraffic::Drop,
        _ => ClearTraffic::Pass,
    };
    let families = |texts: [&str; 2]| {
        texts
            .into_iter()
            .take(1 + usize::from(dual))
            .map(ip)
            .collect()
    };
    TrafficPolicy {
        addresses: families(["10.0.0.1", "fd00::1"]),
        flows,
        clear_inbound: clear,
        clear_outbound: clear,
        peers: vec![PeerTraffic {
            peer: name(),
            addresses: families(["10.0.0.2", "fd00::2"]),
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
            outbound: match step {
                Step::Prepared => Outbound::Clear,
                _ => Outbound::Encrypt,
            },
        }],
    }
}

fn overlay() -> ProtectedFlows {
    ProtectedFlows::Overlay { port: 6081 }
}

fn routed() -> ProtectedFlows {
    ProtectedFlows::Routed {
        local: vec!["10.244.1.0/24".parse().unwrap()],
        cluster: vec!["10.244.0.0/16".parse().unwrap()],
    }
}

fn bound() -> Bindings {
    let mut bindings = Bindings::default();
    assert_eq!(bindings.bind(&name()), Ok(REQID_BASE + 1));
    bindings
}

/// A child with SPI 0xabc in use, for what the two nodes may send each other.
fn in_use(mode: SaMode) -> Bindings {
    let mut bindings = bound();
    let sides = |texts: &[&str]| -> Vec<TrafficSelector> {
        let nets = texts.iter().map(|text| text.parse().unwrap());
        nets.map(TrafficSelector::prefix).collect()
    };
    let (local, remote) = match mode {
        SaMode::Transport => {
            let udp = |text| vec![TrafficSelector::host(ip(text)).with(17, PortRange::ANY)];
            (udp("10.0.0.1"), udp("10.0.0.2"))
        }
        SaMode::Tunnel => (
            sides(&["10.244.1.0/24", "10.0.0.1/32"]),
            sides(&["10.244.2.0/24", "10.0.0.2/32"]),
        ),
    };
    let child = InUse {
        spi: Spi(0xabc),
        cpu: None,
        mode,
        ends: (ip("192.0.2.1"), ip("192.0.2.2")),
        local,
        remote,
    };
    bindings.use_outbound(&name(), child);
    bindings
}

/// A policy in a line: direction, ends, port, rank, what becomes of the packet.
fn line(policy: &XfrmPolicy) -> String {
    let direction = match policy.direction {
        XfrmDirection::In => "in",
        XfrmDirection::Out => "out",
        XfrmDirection::Forward => "fwd",
    };
    let selector = &policy.selector;
    let port = match selector.destination_port.mask {
        0 => String::new(),
        _ => format!(" udp {}", selector.destination_port.value),
    };
    let end = |net: ipnet::IpNet| match net.prefix_len() {
        0 if net.addr().is_ipv4() => "any4".to_owned(),
        0 => "any6".to_owned(),
        length if length == net.max_prefix_len() => net.addr().to_string(),
        _ => net.to_string(),
    };
    let fate = match (policy.action, policy.templates.first()) {
        (XfrmAction::Block, Some(_)) => "block".to_owned(),
        (XfrmAction::Block, None) => "block untagged".to_owned(),
        (XfrmAction::Allow, None) => "pass".to_owned(),
        (XfrmAction::Allow, Some(t)) => {
            let spi = match t.spi {
                0 => String::new(),
                spi => format!(" spi {spi:x}"),
            };
            let optional = if t.optional { " or clear" } else { "" };
            let reqid = t.reqid - REQID_BASE;
            format!(
                "{:?} {reqid}{spi} {} > {}{optional}",
                t.mode, t.source, t.destination
            )
        }
    };
    let (from, to, rank) = (
        end(selector.source),
        end(selector.destination),
        policy.priority - 58_000,
    );
    format!("{direction} {from} > {to}{port} [{rank}] {fate}")
}

fn lines(policy: &TrafficPolicy, bindings: &Bindings) -> BTreeSet<String> {
    desired(policy, bindings, true).iter().map(line).collect()
}

fn expect(policy: &TrafficPolicy, bindings: &Bindings, expected: &[&str]) {
    let expected = expected.iter().map(ToString::to_string).collect();
    assert_eq!(lines(policy, bindings), expected);
}

#[test]
fn overlay_prepared() {
    let policy = policy(Step::Prepared, overlay(), false);
    expect(&policy, &Bindings::default(), &[]);
    let open = "in 10.0.0.2 > 10.0.0.1 udp 6081 [740] Transport 1 10.0.0.2 > 10.0.0.1 or clear";
    expect(&policy, &bound(), &[open]);
    // A child is there, but packets leave in clear until the policy says otherwise.
    expect(&policy, &in_use(SaMode::Transport), &[open]);
}

#[test]
fn overlay_permissive() {
    let policy = policy(Step::Permissive, overlay(), false);
    let open = "in 10.0.0.2 > 10.0.0.1 udp 6081 [740] Transport 1 10.0.0.2 > 10.0.0.1 or clear";
    let others = "out any4 > 10.0.0.2 udp 6081 [750] block";
    expect(
        &policy,
        &bound(),
        &[open, others, "out 10.0.0.1 > 10.0.0.2 udp 6081 [740] block"],
    );
    expect(
        &policy,
        &in_use(SaMode::Transport),
        &[
            open,
            others,
            "out 10.0.0.1 > 10.0.0.2 udp 6081 [740] Transport 1 spi abc 10.0.0.1 > 10.0.0.2",
        ],
    );
}

#[test]
fn overlay_strict_of_both_families() {
    // The child in use is of IPv4; IPv6 has none.
    let policy = policy(Step::Strict, overlay(), true);
    expect(
        &policy,
        &in_use(SaMode::Transport),
        &[
            "in 10.0.0.2 > 10.0.0.1 udp 6081 [740] Transport 1 10.0.0.2 > 10.0.0.1",
            "in any4 > any4 udp 6081 [750] block",
            "in any6 > any6 udp 6081 [750] block",
            "in fd00::2 > fd00::1 udp 6081 [740] Transport 1 fd00::2 > fd00::1",
            "out 10.0.0.1 > 10.0.0.2 udp 6081 [740] Transport 1 spi abc 10.0.0.1 > 10.0.0.2",
            "out any4 > any4 udp 6081 [750] block",
            "out any6 > any6 udp 6081 [750] block",
            "out fd00::1 > fd00::2 udp 6081 [740] block",
            // Nothing of IPv6 is beside IPsec on the loopback device.
            "in ::1 > ::1 udp 6081 [736] pass",
            "in fd00::1 > fd00::1 udp 6081 [736] pass",
            "out ::1 > ::1 udp 6081 [736] pass",
            "out fd00::1 > fd00::1 udp 6081 [736] pass",
        ],
    );
    let without_ipv6 = desired(&policy, &in_use(SaMode::Transport), false);
    assert!(
        without_ipv6
            .iter()
            .all(|p| p.selector.source.addr().is_ipv4())
    );
    assert_eq!(without_ipv6.len(), 4);
}

#[test]
fn routed_prepared() {
    let policy = policy(Step::Prepared, routed(), false);
    expect(&policy, &Bindings::default(), &[]);
    expect(
        &policy,
        &bound(),
        &[
            "in 10.244.2.0/24 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0 or clear",
            "in 10.244.2.0/24 > 10.0.0.1 [740] Tunnel 1 0.0.0.0 > 0.0.0.0 or clear",
            "in 10.0.0.2 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0 or clear",
            "fwd 10.244.2.0/24 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0 or clear",
            "fwd 10.0.0.2 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0 or clear",
        ],
    );
}

#[test]
fn routed_permissive() {
    let policy = policy(Step::Permissive, routed(), false);
    let out = |bindings: &Bindings| -> Vec<String> {
        let all = lines(&policy, bindings).into_iter();
        all.filter(|line| line.starts_with("out")).collect()
    };
    assert_eq!(
        out(&bound()),
        [
            "out 10.0.0.1 > 10.244.2.0/24 [740] block",
            "out 10.244.1.0/24 > 10.0.0.2 [740] block",
            "out 10.244.1.0/24 > 10.244.2.0/24 [740] block",
            "out any4 > 10.244.1.0/24 [736] pass",
            "out any4 > 10.244.2.0/24 [750] block",
        ]
    );
    assert_eq!(
        out(&in_use(SaMode::Tunnel)),
        [
            "out 10.0.0.1 > 10.244.2.0/24 [740] Tunnel 1 spi abc 192.0.2.1 > 192.0.2.2",
            "out 10.244.1.0/24 > 10.0.0.2 [740] Tunnel 1 spi abc 192.0.2.1 > 192.0.2.2",
            "out 10.244.1.0/24 > 10.244.2.0/24 [740] Tunnel 1 spi abc 192.0.2.1 > 192.0.2.2",
            "out any4 > 10.244.1.0/24 [736] pass",
            "out any4 > 10.244.2.0/24 [750] block",
        ]
    );
}

#[test]
fn routed_strict() {
    let policy = policy(Step::Strict, routed(), false);
    expect(
        &policy,
        &in_use(SaMode::Tunnel),
        &[
            "out any4 > 10.244.1.0/24 [736] pass",
            "out 10.244.1.0/24 > 10.244.2.0/24 [740] Tunnel 1 spi abc 192.0.2.1 > 192.0.2.2",
            "out 10.0.0.1 > 10.244.2.0/24 [740] Tunnel 1 spi abc 192.0.2.1 > 192.0.2.2",
            "out 10.244.1.0/24 > 10.0.0.2 [740] Tunnel 1 spi abc 192.0.2.1 > 192.0.2.2",
            "out any4 > 10.244.2.0/24 [750] block",
            "out any4 > 10.244.0.0/16 [750] block",
            "in 10.244.1.0/24 > 10.244.1.0/24 [736] pass",
            "in 10.244.1.0/24 > 10.0.0.1 [736] pass",
            "in 10.244.2.0/24 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0",
            "in 10.244.2.0/24 > 10.0.0.1 [740] Tunnel 1 0.0.0.0 > 0.0.0.0",
            "in 10.0.0.2 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0",
            "in 10.244.0.0/16 > 10.244.1.0/24 [750] block",
            "in 10.244.0.0/16 > 10.0.0.1 [750] block",
            "fwd 10.244.1.0/24 > 10.244.1.0/24 [736] pass",
            "fwd 10.244.2.0/24 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0",
            "fwd 10.0.0.2 > 10.244.1.0/24 [740] Tunnel 1 0.0.0.0 > 0.0.0.0",
            "fwd 10.244.0.0/16 > 10.244.1.0/24 [750] block",
        ],
    );
}

#[test]
fn switching_to_a_successor_replaces_one_policy() {
    let policy = policy(Step::Strict, overlay(), false);
    let mut bindings = in_use(SaMode::Transport);
    let have = desired(&policy, &bindings, true);
    let out = have.iter().find(|p| line(p).contains("spi abc")).unwrap();
    let found = bindings.in_use(&name(), SaMode::Transport, &out.selector);
    let mut next = found.unwrap().clone();
    next.spi = Spi(0xdef);
    bindings.use_outbound(&name(), next);
    let want = desired_for(&policy, &bindings, true, &name());
    let touched: BTreeSet<_> = want.iter().map(XfrmPolicy::key).collect();
    let have: Vec<_> = have
        .into_iter()
        .filter(|p| touched.contains(&p.key()))
        .collect();
    let plan = changes(&have, &want);
    let [Change::Replace(switched)] = plan.changes.as_slice() else {
        panic!("{:?}", plan.changes);
    };
    assert!(line(switched).contains("spi def"), "{}", line(switched));
    // The old one's end changes nothing, the new one's closes.
    bindings.stop_using(&name(), Spi(0xabc));
    assert_eq!(desired_for(&policy, &bindings, true, &name()), want);
    bindings.stop_using(&name(), Spi(0xdef));
    let closed = desired_for(&policy, &bindings, true, &name());
    assert_eq!(changes(&want, &closed).changes.len(), 1);
    assert!(
        closed
            .iter()
            .any(|p| line(p) == "out 10.0.0.1 > 10.0.0.2 udp 6081 [740] block")
    );
}

#[test]
fn an_sa_that_is_gone_is_not_adopted() {
    let policy = policy(Step::Strict, overlay(), false);
    let have = desired(&policy, &in_use(SaMode::Transport), true);
    for stands in [true, false] {
        let mut again = Bindings::default();
        again.adopt(&policy, &have, |t| stands.then_some(Spi(t.spi)));
        assert_eq!(again.reqid(&name()), Some(REQID_BASE + 1));
        let unchanged = changes(&have, &desired(&policy, &again, true))
            .changes
            .is_empty();
        assert_eq!(unchanged, stands);
    }
}

#[test]
fn request_ids_that_were_found_are_not_given_to_others() {
    let policy = policy(Step::Strict, overlay(), false);
    let have = desired(&policy, &in_use(SaMode::Transport), true);
    let mut bindings = Bindings::default();
    bindings.reserve(REQID_BASE + 2);
    bindings.adopt(&policy, &have, |t| Some(Spi(t.spi)));
    let other = PeerId::new("n3").unwrap();
    assert_eq!(bindings.bind(&other), Ok(REQID_BASE + 3));
    bindings.forget(&other);
    assert_eq!(
        bindings.bind(&other),
        Ok(REQID_BASE + 4),
        "not again at once"
    );
}

#[test]
fn of_two_that_claim_an_address_the_one_that_proved_itself_is_heard() {
    let mut policy = policy(Step::Strict, overlay(), false);
    let mut first = policy.peers[0].clone();
    first.peer = PeerId::new("n1-gone").unwrap();
    policy.peers.insert(0, first.clone());
    let mut bindings = in_use(SaMode::Transport);
    bindings.bind(&first.peer).unwrap();
    let all = lines(&policy, &bindings);
    let heard = "in 10.0.0.2 > 10.0.0.1 udp 6081 [740] Transport 1 10.0.0.2 > 10.0.0.1";
    let sealed = "out 10.0.0.1 > 10.0.0.2 udp 6081 [740] Transport 1 spi abc 10.0.0.1 > 10.0.0.2";
    assert!(all.contains(heard) && all.contains(sealed), "{all:#?}");
    bindings.stop_using(&name(), Spi(0xabc));
    let all = lines(&policy, &bindings);
    assert!(!all.contains(heard), "the first by name: {all:#?}");
}

#[test]
fn behind_a_nat_the_peer_is_heard_from_there_too() {
    let policy = policy(Step::Strict, overlay(), false);
    let mut bindings = bound();
    bindings.set_also_at(&name(), BTreeSet::from([ip("198.51.100.7")]));
    let all = lines(&policy, &bindings);
    let heard = "in 198.51.100.7 > 10.0.0.1 udp 6081 [740] Transport 1 198.51.100.7 > 10.0.0.1";
    assert!(all.contains(heard), "{all:#?}");
}

#[test]
fn behind_a_nat_no_peer_is_heard_from_where_another_one_is() {
    let mut policy = policy(Step::Strict, overlay(), false);
    let other = PeerId::new("n3").unwrap();
    policy.peers.push(PeerTraffic {
        peer: other.clone(),
        addresses: vec![ip("10.0.0.3")],
        pod_cidrs: Vec::new(),
        ..policy.peers[0].clone()
    });
    let mut bindings = in_use(SaMode::Transport);
    let nat = ip("198.51.100.7");
    bindings.bind(&other).unwrap();
    bindings.set_also_at(&name(), BTreeSet::from([ip("10.0.0.3"), nat]));
    let heard = |bindings: &Bindings, policies: Vec<XfrmPolicy>, from: IpAddr| {
        let inbound =
            |p: &&XfrmPolicy| p.direction == XfrmDirection::In && p.selector.source.addr() == from;
        let found = policies.iter().find(inbound)?;
        bindings.peer(found.templates[0].reqid).cloned()
    };
    for peer in [name(), other.clone()] {
        let part = desired_for(&policy, &bindings, true, &peer);
        assert_ne!(heard(&bindings, part, ip("10.0.0.3")), Some(name()));
    }
    let all = desired(&policy, &bindings, true);
    assert_eq!(
        heard(&bindings, all.clone(), ip("10.0.0.3")),
        Some(other.clone())
    );
    assert_eq!(heard(&bindings, all, nat), Some(name()));
    // Both behind one NAT: who has the address does not hang on whose policies are made anew.
    bindings.set_also_at(&other, BTreeSet::from([nat]));
    let all = heard(&bindings, desired(&policy, &bindings, true), nat);
    for peer in [name(), other] {
        let part = desired_for(&policy, &bindings, true, &peer);
        assert_eq!(heard(&bindings, part, nat), all);
    }
    assert!(!bindings.set_also_at(&name(), BTreeSet::from([ip("10.0.0.3"), nat])));
    assert!(
        bindings.set_also_at(&name(), BTreeSet::from([nat])),
        "one went"
    );
}

#[test]
fn an_sa_that_is_out_of_use_for_a_moment_comes_back_to_its_place() {
    let policy = policy(Step::Strict, routed(), false);
    let mut bindings = in_use(SaMode::Tunnel);
    let before = desired(&policy, &bindings, true);
    let named = |p: &&XfrmPolicy| p.direction == XfrmDirection::Out && p.templates[0].spi != 0;
    let sealing = |all: &[XfrmPolicy]| {
        all.iter()
            .filter(|p| !p.templates.is_empty())
            .find(named)
            .cloned()
    };
    let seal = sealing(&before).unwrap();
    let older = bindings
        .in_use(&name(), SaMode::Tunnel, &seal.selector)
        .unwrap()
        .clone();
    let newer = InUse {
        spi: Spi(older.spi.0 + 1),
        cpu: None,
        ..older.clone()
    };
    bindings.use_outbound(&name(), newer.clone());
    let both = desired(&policy, &bindings, true);
    assert_eq!(bindings.stop_using(&name(), Spi(older.spi.0 + 2)), None);
    assert_eq!(bindings.stop_using(&name(), older.spi), Some(1));
    bindings.use_again(&name(), 1, older.clone());
    assert_eq!(
        desired(&policy, &bindings, true),
        both,
        "the newer one stays the first"
    );
    assert_eq!(bindings.stop_using(&name(), newer.spi), Some(0));
    assert_eq!(desired(&policy, &bindings, true), before);
    assert_eq!(bindings.stop_using(&name(), older.spi), Some(0));
    assert_eq!(
        sealing(&desired(&policy, &bindings, true)),
        None,
        "it blocks"
    );
}

fn foreign(of: &XfrmPolicy) -> XfrmPolicy {
    let template = XfrmTemplate {
        reqid: 7,
        ..of.templates[0]
    };
    XfrmPolicy {
        priority: 366_911,
        templates: vec![template],
        ..of.clone()
    }
}

#[test]
fn a_conflict_is_named_and_what_opens_waits() {
    let strict = policy(Step::Strict, overlay(), false);
    let want = desired(&strict, &in_use(SaMode::Transport), true);
    let sealed = want.iter().find(|p| line(p).contains("spi abc")).unwrap();
    let theirs = foreign(sealed);
    assert!(!is_ours(&theirs));
    let plan = changes(std::slice::from_ref(&theirs), &want);
    let [conflict] = plan.conflicts.as_slice() else {
        panic!("{:?}", plan.conflicts);
    };
    assert_eq!(
        conflict.to_string(),
        "another program's policy is in the way: out src 10.0.0.1/32 dst 10.0.0.2/32 \
         proto 17 dport 6081 priority 366911 action allow reqid 7"
    );
    // All else that closes is done, and nothing is done to theirs.
    assert_eq!(plan.changes.len(), want.len() - 1);
    let touches = |change: &Change| match change {
        Change::Add(p) | Change::Replace(p) => p.key() == theirs.key(),
        Change::Remove(key) => *key == theirs.key(),
    };
    assert!(!plan.changes.iter().any(touches));
    // On the way back nothing opens as long as it stands there.
    let mut have = want.clone();
    have.retain(|p| p.key() != theirs.key());
    have.push(theirs);
    let permissive = policy(Step::Permissive, overlay(), false);
    let plan = changes(
        &have,
        &desired(&permissive, &in_use(SaMode::Transport), true),
    );
    let opens = |change: &Change| matches!(change, Change::Remove(_) | Change::Replace(_));
    assert!(!plan.changes.iter().any(opens), "{:?}", plan.changes);
}

#[test]
fn what_others_have_is_left_alone() {
    let strict = policy(Step::Strict, routed(), false);
    let ours = desired(&strict, &in_use(SaMode::Tunnel), true);
    let mut theirs: Vec<XfrmPolicy> = Vec::new();
    for policy in &ours {
        let mut marked = policy.clone();
        marked.mark = (1, 1);
        let mut on_interface = policy.clone();
        on_interface.if_id = 3;
        theirs.extend([marked, on_interface]);
    }
    // Ours in all but one thing each.
    let mut allow = ours
        .iter()
        .find(|p| p.templates.is_empty())
        .unwrap()
        .clone();
    allow.priority = PRIORITY_PEER;
    allow.selector.protocol = 6;
    let mut block = allow.clone();
    block.action = XfrmAction::Block;
    block.selector.protocol = 17;
    theirs.extend([allow, block]);
    assert!(!theirs.iter().any(is_ours));
    let have: Vec<_> = ours.iter().chain(&theirs).cloned().collect();
    assert!(changes(&have, &ours).changes.is_empty());
    let plan = changes(&have, &[]);
    assert_eq!(plan.changes.len(), ours.len());
    let keys: BTreeSet<_> = ours.iter().map(XfrmPolicy::key).collect();
    for change in plan.changes {
        assert!(matches!(change, Change::Remove(key) if keys.contains(&key)));
    }
}
