//! The alerts in `deploy/prometheus`, judged by Prometheus' own promtool.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

fn promtool(arguments: [&str; 2], file: &str) {
    let folder = testudo_interop::folder().unwrap();
    let root = testudo_interop::PROMETHEUS.root(&folder);
    let program = root.join("usr/bin/promtool");
    assert!(
        program.is_file(),
        "{} is missing: `cargo xtask packages` fetches it",
        program.display()
    );
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus");
    let output = Command::new(program)
        .args(arguments)
        .arg(file)
        .current_dir(rules)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}

#[test]
fn the_rules_can_be_read() {
    promtool(["check", "rules"], "alerts.yaml");
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    promtool(["test", "rules"], "alerts_test.yaml");
}
