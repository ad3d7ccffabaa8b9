//! What the chart has for the Prometheus operator, by the operator's own CRDs.

use testudo_kube_env::operator;

use super::{NAMESPACE, World, helm, text};

pub(super) fn it_is_accepted(world: &World) {
    for file in operator::crds().expect("the operator's CRDs") {
        // One of them is too long for what a client-side apply writes down.
        let said = world.kubectl(&["apply", "--server-side", "-f", text(&file)]);
        assert!(said.done, "{}", said.err);
    }
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "servicemonitors.monitoring.coreos.com",
        "prometheusrules.monitoring.coreos.com",
    ];
    assert!(world.kubectl(&wait).done);
    let rendered = helm(&[
        "template",
        "testudo",
        text(&world.chart.archive),
        "--namespace",
        NAMESPACE,
        "--set=prometheusRule.enabled=true,serviceMonitor.enabled=true",
        "--set=serviceMonitor.labels.release=prometheus",
    ]);
    assert!(rendered.done, "{}", rendered.err);
    let ours: Vec<&str> = rendered
        .out
        .split("\n---\n")
        .filter(|object| object.contains("apiVersion: monitoring.coreos.com/"))
        .collect();
    let path = world.dir.path().join("monitoring.yaml");
    std::fs::write(&path, ours.join("\n---\n")).expect("a file");
    let file = text(&path);
    let said = world.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", file]);
    assert!(said.done, "{}", said.err);
    for object in [
        "servicemonitor.monitoring.coreos.com/testudo",
        "prometheusrule.monitoring.coreos.com/testudo",
    ] {
        assert!(said.out.contains(object), "{object}: {}", said.out);
    }
    // The schema is the operator's: what is not its is refused.
    let wrong = ours.join("\n---\n").replace("interval:", "intervall:");
    std::fs::write(&path, wrong).expect("a file");
    let said = world.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", file]);
    assert!(!said.done && said.err.contains("intervall"), "{}", said.err);
}
