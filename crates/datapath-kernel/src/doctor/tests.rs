use testudo_netlink::{
    PortMatch, XfrmAction, XfrmDirection, XfrmPolicy, XfrmSelector, XfrmTemplate,
};

use super::facts::named_flowtables;
use super::*;
use crate::tag::{PRIORITY_PEER, REQID_BASE};

fn healthy() -> Facts {
    Facts {
        release: "6.18.44".into(),
        version: "#1 SMP".into(),
        usable: Ok(()),
        keys_readable: Some(true),
        firewall: Ok(()),
        statistics: true,
        policies: Vec::new(),
        daemons: Vec::new(),
        switched_off: Vec::new(),
        flowtables: Vec::new(),
        acquire_seconds: Some(30),
    }
}

fn found(facts: &Facts, check: &str) -> Option<Finding> {
    let mut all = examine(facts).into_iter();
    all.find(|finding| finding.check == check)
}

fn severity(facts: &Facts, check: &str) -> Option<Severity> {
    found(facts, check).map(|finding| finding.severity)
}

fn lack() -> Lack {
    Lack {
        what: "it is missing".into(),
        remedy: "get it".into(),
    }
}

fn foreign(priority: u32) -> XfrmPolicy {
    let any = "0.0.0.0/0".parse().unwrap();
    XfrmPolicy {
        direction: XfrmDirection::Out,
        selector: XfrmSelector {
            source: any,
            destination: any,
            protocol: 0,
            source_port: PortMatch::ANY,
            destination_port: PortMatch::ANY,
        },
        action: XfrmAction::Allow,
        priority,
        mark: (0, 0),
        if_id: 0,
        templates: Vec::new(),
    }
}

#[test]
fn a_healthy_host_has_nothing_to_say() {
    let findings = examine(&healthy());
    let bad = |f: &&Finding| f.severity != Severity::Ok || !f.remedy.is_empty();
    assert_eq!(findings.iter().find(bad), None);
    let mut names: Vec<_> = findings.iter().map(|f| f.check).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), findings.len(), "one finding a check");
}

#[test]
fn each_check_finds_what_it_is_for() {
    use Severity::{Failure, Note, Warning};
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = healthy();
        change(&mut facts);
        facts
    };
    let daemon = Daemon {
        name: "charon".into(),
        process: 7,
    };
    type Change<'a> = &'a dyn Fn(&mut Facts);
    let cases: [(&str, Severity, &str, Change<'_>); 12] = [
        (
            "kernel-release",
            Warning,
            "5.10.255 is older than 6.1",
            &|f| {
                f.release = "5.10.255".into();
            },
        ),
        ("kernel-release", Note, "no version", &|f| {
            f.release = "mine".into()
        }),
        ("kernel-ipsec", Failure, "it is missing", &|f| {
            f.usable = Err(lack())
        }),
        ("readable-keys", Note, "lockdown", &|f| {
            f.keys_readable = Some(false)
        }),
        ("nftables", Warning, "it is missing", &|f| {
            f.firewall = Err(lack())
        }),
        ("xfrm-statistics", Note, "xfrm_stat", &|f| {
            f.statistics = false
        }),
        ("other-policies", Note, "1 IPsec policies", &|f| {
            f.policies = vec![foreign(366_911)];
        }),
        (
            "other-policies",
            Warning,
            "in clear: out src 0.0.0.0/0 dst 0.0.0.0/0 priority 7",
            &|f| {
                f.policies = vec![foreign(366_911), foreign(7)];
            },
        ),
        ("other-daemons", Warning, "charon (process 7)", &|f| {
            f.daemons = vec![daemon.clone()]
        }),
        ("switched-off", Failure, "eth0.disable_xfrm", &|f| {
            f.switched_off = vec!["net.ipv4.conf.eth0.disable_xfrm=1".into()];
        }),
        ("flowtables", Warning, "inet fw fast", &|f| {
            f.flowtables = vec!["inet fw fast".into()]
        }),
        ("acquire-time", Note, "165", &|f| {
            f.acquire_seconds = Some(165)
        }),
    ];
    for (check, severity, words, change) in cases {
        let facts = with(change);
        let finding = found(&facts, check).unwrap();
        assert_eq!(finding.severity, severity, "{finding:?}");
        assert!(finding.line.contains(words), "{finding:?}");
        assert!(!finding.line.contains('\n') && !finding.remedy.contains('\n'));
        let others = examine(&facts).into_iter();
        let worse = others.filter(|f| f.check != check && f.severity > Severity::Ok);
        let worse: Vec<_> = worse.filter(|f| !f.check.starts_with("cve")).collect();
        assert!(worse.is_empty(), "{worse:?}");
    }
}

#[test]
fn our_own_policies_are_not_held_against_us() {
    let mut facts = healthy();
    let mut ours = foreign(PRIORITY_PEER);
    let any = "0.0.0.0".parse().unwrap();
    ours.templates = vec![XfrmTemplate {
        source: any,
        destination: any,
        spi: 0,
        mode: testudo_netlink::XfrmMode::Transport,
        reqid: REQID_BASE,
        optional: false,
    }];
    facts.policies = vec![ours];
    assert_eq!(severity(&facts, "other-policies"), Some(Severity::Ok));
}

// L78, L79, L101: the kernels with the known holes are named.
#[test]
fn kernels_with_known_holes_are_named() {
    let holes = |release: &str, version: &str| -> Vec<(&'static str, Severity)> {
        let mut facts = healthy();
        facts.release = release.into();
        facts.version = version.into();
        let all = examine(&facts).into_iter();
        all.filter(|f| f.check.starts_with("cve"))
            .map(|f| (f.check, f.severity))
            .collect()
    };
    let warned = |checks: &[&'static str]| -> Vec<_> {
        checks
            .iter()
            .map(|check| (*check, Severity::Warning))
            .collect()
    };
    let (ipv6, geneve) = ("cve-2020-1749", "cve-2020-25645");
    let (overflow, shared) = ("cve-2022-27666", "cve-2026-43284");
    assert_eq!(
        holes("5.4.0", ""),
        warned(&[ipv6, geneve, overflow, shared])
    );
    assert_eq!(holes("5.5.19", ""), warned(&[geneve, overflow, shared]));
    assert_eq!(holes("5.9.1", ""), warned(&[overflow, shared]));
    assert_eq!(holes("5.16.15", ""), warned(&[shared]));
    for (before, mended) in [
        ("6.1.170", "6.1.171"),
        ("6.6.137", "6.6.138"),
        ("6.12.86-cloud", "6.12.87-cloud"),
        ("6.18.27", "6.18.28"),
        ("7.0.4", "7.0.5"),
    ] {
        assert_eq!(holes(before, ""), warned(&[shared]), "{before}");
        assert_eq!(holes(mended, ""), [], "{mended}");
    }
    assert_eq!(holes("7.1.0", ""), []);
    assert_eq!(
        holes("6.7.12", ""),
        warned(&[shared]),
        "a series that ended"
    );
    // A vendor's number says nothing; the version may.
    let unknown = [(shared, Severity::Note)];
    assert_eq!(holes("6.8.0-45-generic", "#45-Ubuntu SMP"), unknown);
    assert_eq!(holes("6.1.0-50-amd64", "#1 SMP"), unknown);
    let debian = |patch| format!("#1 SMP PREEMPT_DYNAMIC Debian 6.1.{patch}-1 (2026-05-01)");
    assert_eq!(holes("6.1.0-50-amd64", &debian(176)), []);
    assert_eq!(holes("6.1.0-20-amd64", &debian(85)), warned(&[shared]));
}

#[test]
fn flowtables_are_named_with_their_tables() {
    let listed = "table inet fw {\n\tflowtable fast {\n\t\thook ingress priority 0\n\t}\n}\n\
                  table ip x {\n\tflowtable y {\n\t}\n}\n";
    assert_eq!(named_flowtables(listed), ["inet fw fast", "ip x y"]);
    assert_eq!(named_flowtables(""), [] as [&str; 0]);
}
