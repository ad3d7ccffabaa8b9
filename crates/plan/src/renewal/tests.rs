use super::*;
use testudo_model::duration::YEAR;
use testudo_model::{BootId, Lifetime, NodeEncryptionSpec, NodeUid};

const BEGIN: UnixTime = UnixTime(1_000_000_000);

fn node(name: &str, uid: &str, rotation: u64) -> NodeEncryption {
    let spec = NodeEncryptionSpec {
        uid: NodeUid::new(uid).unwrap(),
        boot_id: BootId::new("b").unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        pod_cidrs: Vec::new(),
        datapath: "user".to_owned(),
        agent_socket: None,
    };
    let mut node = NodeEncryption::new(name, spec);
    node.status.rotation = rotation;
    node
}

fn certificate(life: u64) -> CertificateFacts {
    CertificateFacts {
        subject: String::new(),
        issuer: String::new(),
        serial: String::new(),
        not_before: BEGIN,
        not_after: BEGIN + Duration::from_secs(life),
    }
}

fn by_age(uid: &str, certificates: &Certificates, life: u64) -> u64 {
    let own = node("n1", uid, 0);
    let certificate = certificate(life);
    let known = Known {
        certificates,
        own: &own,
        nodes: &[],
        rotation_of: &|_| certificates.rotation,
        certificate: Some(&certificate),
        certificate_rotation: 0,
        signer: None,
        rotation_seen: BEGIN,
    };
    let Turn::Later(due) = turn(&known, BEGIN) else {
        panic!("not at once");
    };
    assert_eq!(turn(&known, due), Turn::Now(Reason::Age));
    assert!(matches!(
        turn(&known, due - Duration::from_secs(1)),
        Turn::Later(_)
    ));
    u64::try_from(due.0 - BEGIN.0).unwrap()
}

#[test]
fn by_age_nodes_are_spread_over_the_last_tenth() {
    let certificates = Certificates::default();
    let latest = 9 * YEAR / 2;
    let mut dues: Vec<u64> = (0..200)
        .map(|i| by_age(&format!("uid-{i}"), &certificates, 5 * YEAR))
        .collect();
    assert!(
        dues.iter()
            .all(|due| (latest - latest / 10 - 10..=latest).contains(due))
    );
    assert_eq!(by_age("uid-1", &certificates, 5 * YEAR), dues[1]);
    dues.sort_unstable();
    let widest = dues.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    assert!(widest < latest / 10 / 8, "a hole in the spread: {widest}");
}

#[test]
fn a_certificate_shorter_than_wanted_is_renewed_before_its_end() {
    let due = by_age("a", &Certificates::default(), 3600);
    assert!((2900..=3240).contains(&due), "{due}");
    let certificates = Certificates {
        renew_after: Lifetime::hours(1),
        node_lifetime: Lifetime::hours(2),
        ..Certificates::default()
    };
    let due = by_age("a", &certificates, 7200);
    assert!((3240..=3600).contains(&due), "{due}");
}

/// (own UID, own rotation, the others' UIDs and rotations, seconds since it was seen, turn)
#[test]
fn a_rotation_goes_round_one_by_one() {
    let certificates = Certificates {
        rotation: 1,
        ..Certificates::default()
    };
    let after = |names: &[&str], places: u32| Turn::After {
        nodes: names.iter().map(|n| (*n).to_owned()).collect(),
        until: BEGIN + SLOT * places,
    };
    let go = Turn::Now(Reason::Rotation(1));
    type Case<'a> = (&'a str, &'a [(&'a str, u64)], u64, Turn);
    let cases: [Case<'_>; 6] = [
        ("a", &[("b", 0), ("c", 0)], 0, go.clone()),
        ("b", &[("a", 0), ("c", 0)], 0, after(&["na"], 1)),
        ("c", &[("b", 0), ("a", 0)], 0, after(&["na", "nb"], 2)),
        ("c", &[("b", 0), ("a", 1)], 14, after(&["nb"], 2)),
        ("c", &[("b", 1), ("a", 2)], 0, go.clone()),
        ("c", &[("b", 0), ("a", 0)], 30, go),
    ];
    for (uid, others, passed, expected) in cases {
        let own = node(&format!("n{uid}"), uid, 0);
        let mut nodes: Vec<_> = others
            .iter()
            .map(|(uid, rotation)| node(&format!("n{uid}"), uid, *rotation))
            .collect();
        nodes.push(own.clone());
        let certificate = certificate(5 * YEAR);
        let known = Known {
            certificates: &certificates,
            own: &own,
            nodes: &nodes,
            rotation_of: &|_| certificates.rotation,
            certificate: Some(&certificate),
            certificate_rotation: 0,
            signer: None,
            rotation_seen: BEGIN,
        };
        let now = BEGIN + Duration::from_secs(passed);
        assert_eq!(turn(&known, now), expected, "{uid} {others:?} {passed}");
        let asked = Known {
            certificate_rotation: 1,
            ..known
        };
        assert!(
            matches!(turn(&asked, now), Turn::Later(_)),
            "once is enough"
        );
    }
}

#[test]
fn without_a_certificate_nobody_waits() {
    let own = node("z", "z", 0);
    let known = Known {
        certificates: &Certificates {
            rotation: 3,
            ..Certificates::default()
        },
        own: &own,
        nodes: &[node("a", "a", 0)],
        rotation_of: &|_| 3,
        certificate: None,
        certificate_rotation: 0,
        signer: None,
        rotation_seen: BEGIN,
    };
    assert_eq!(turn(&known, BEGIN), Turn::Now(Reason::Missing));
}

#[test]
fn one_node_asked_alone_waits_for_nobody() {
    let certificates = Certificates::default();
    let own = node("nz", "z", 0);
    let certificate = certificate(5 * YEAR);
    let mut known = Known {
        certificates: &certificates,
        own: &own,
        nodes: &[node("na", "a", 0), node("nb", "b", 0)],
        rotation_of: &|name| u64::from(name == "nz"),
        certificate: Some(&certificate),
        certificate_rotation: 0,
        signer: None,
        rotation_seen: BEGIN,
    };
    assert_eq!(turn(&known, BEGIN), Turn::Now(Reason::Rotation(1)));
    known.certificate_rotation = 1;
    assert!(matches!(turn(&known, BEGIN), Turn::Later(_)));
}

/// (own UID, the CAs of the others' certificates by their UIDs, seconds since it was seen, turn)
#[test]
fn when_another_ca_signs_nodes_go_round_one_by_one() {
    let certificates = Certificates::default();
    let mut shown = certificate(5 * YEAR);
    shown.issuer = "old".to_owned();
    let after = |names: &[&str], places: u32| Turn::After {
        nodes: names.iter().map(|n| (*n).to_owned()).collect(),
        until: BEGIN + SLOT * places,
    };
    let go = Turn::Now(Reason::Authority);
    type Case<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)], u64, Turn);
    let cases: [Case<'_>; 6] = [
        (
            "a",
            &[("b", Some("old")), ("c", Some("old"))],
            0,
            go.clone(),
        ),
        ("b", &[("a", Some("old"))], 0, after(&["na"], 1)),
        ("b", &[("a", Some("old"))], 15, go.clone()),
        ("b", &[("a", Some("new"))], 0, go.clone()),
        // A node without a certificate has its own reason to ask, and nothing to change.
        ("b", &[("a", None)], 0, go.clone()),
        (
            "c",
            &[("a", Some("new")), ("b", Some("old"))],
            1,
            after(&["nb"], 2),
        ),
    ];
    for (uid, others, passed, expected) in cases {
        let own = node(&format!("n{uid}"), uid, 0);
        let nodes: Vec<_> = others
            .iter()
            .map(|(uid, ca)| {
                let mut other = node(&format!("n{uid}"), uid, 0);
                other.status.authorities.presented = ca.map(str::to_owned);
                other
            })
            .collect();
        let known = Known {
            certificates: &certificates,
            own: &own,
            nodes: &nodes,
            rotation_of: &|_| 0,
            certificate: Some(&shown),
            certificate_rotation: 0,
            signer: Some("new"),
            rotation_seen: BEGIN,
        };
        let now = BEGIN + Duration::from_secs(passed);
        assert_eq!(turn(&known, now), expected, "{uid} {others:?} {passed}");
        for signer in [Some("old"), None] {
            let same = Known { signer, ..known };
            assert!(matches!(turn(&same, now), Turn::Later(_)), "{signer:?}");
        }
    }
}

/// A thousand nodes of which some are dead and some slow: all are renewed, a twentieth at a time, and
/// nobody is asked by all at once.
#[test]
fn a_thousand_nodes_go_in_waves() {
    const NODES: usize = 1000;
    const DEAD: usize = 7;
    let certificates = Certificates {
        rotation: 1,
        ..Certificates::default()
    };
    let mut chance = crate::chance::Chance(7);
    let certificate = certificate(5 * YEAR);
    let named = (0..NODES).map(|i| {
        let uid = format!("{:016x}", chance.next());
        node(&format!("n{i}"), &uid, 0)
    });
    let mut nodes: Vec<NodeEncryption> = named.collect();
    nodes.sort_by(|a, b| a.spec.uid.cmp(&b.spec.uid));
    let dead: Vec<bool> = (0..NODES).map(|i| i % (NODES / DEAD) == 3).collect();
    // When each has begun, and when it is done.
    let mut begun: Vec<Option<(u64, u64)>> = vec![None; NODES];
    let (mut most_at_once, mut most_a_second, mut second) = (0, 0, 0);
    while begun
        .iter()
        .zip(&dead)
        .any(|(begun, dead)| begun.is_none() && !dead)
    {
        let now = BEGIN + Duration::from_secs(second);
        let mut began = Vec::new();
        // Those whose turn may be near, and some of the others.
        let waits = |i: &usize| !dead[*i] && begun[*i].is_none();
        let waiting: Vec<usize> = (0..NODES).filter(waits).collect();
        let (near, far) = waiting.split_at(waiting.len().min(2 * NODES / WAVES));
        let far = far.iter().step_by(97);
        for &i in near.iter().chain(far) {
            let own = &nodes[i];
            let known = Known {
                certificates: &certificates,
                own,
                nodes: &nodes,
                rotation_of: &|_| 1,
                certificate: Some(&certificate),
                certificate_rotation: 0,
                signer: None,
                rotation_seen: BEGIN,
            };
            if turn(&known, now) == Turn::Now(Reason::Rotation(1)) {
                began.push(i);
            }
        }
        for i in &began {
            // Most take some seconds; one in fifty takes a minute.
            let takes = match chance.one_in(50) {
                true => 60,
                false => 2 + chance.below(8) as u64,
            };
            begun[*i] = Some((second, second + takes));
        }
        most_a_second = most_a_second.max(began.len());
        let under_way = begun.iter().flatten().filter(|(_, end)| *end > second);
        most_at_once = most_at_once.max(under_way.count());
        second += 1;
        for (i, begun) in begun.iter().enumerate() {
            if begun.is_some_and(|(_, end)| end <= second) {
                nodes[i].status.rotation = 1;
            }
        }
        assert!(second < 400, "it takes too long");
    }
    println!("{second} s, at most {most_at_once} at once and {most_a_second} begun in a second");
    assert!(most_at_once <= 2 * NODES / WAVES, "{most_at_once}");
    assert!(most_a_second <= NODES / WAVES, "{most_a_second}");
    assert!(second > 60, "all at once");
}
