//! The command as other programs call it: output, exit codes, messages.

// Helpers of an integration test are tests too, but clippy does not see that.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const POLICY: &str = "apiVersion: testudo.dev/v1alpha1
kind: EncryptionPolicy
metadata:
  name: cluster
spec:
  mode: Disabled
  overlay:
    type: VXLAN
";

const NODE: &str = "apiVersion: testudo.dev/v1alpha1
kind: NodeEncryption
metadata:
  name: NAME
spec:
  uid: uid-NAME
  bootId: boot
  addresses: [192.0.2.1]
  datapath: user
";

const CONNECTION: &str = "apiVersion: testudo.dev/v1alpha1
kind: ExternalConnection
metadata:
  name: office
spec:
  right: 203.0.113.7
  rightSubnets: [198.51.100.0/24]
  leftCert:
    secretName: office
  dpdDelay: 30s
";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> String {
        format!("dir:{}", self.dir.path().join("store").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_testudo"));
        command
            .args(arguments)
            .env("TESTUDO_STORE", self.store())
            .env_remove("TESTUDO_LOG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            errors(&output)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn controller(&self) -> Daemon {
        let child = self.command(&["controller"]).stderr(Stdio::null()).spawn();
        let daemon = Daemon(child.unwrap());
        wait_for(&self.dir.path().join("store/trustbundles/cluster.yaml"));
        daemon
    }
}

/// A daemon that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(path: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !path.exists() {
        assert!(std::time::Instant::now() < deadline, "{}", path.display());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn output(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let place = Place::new();
    for arguments in [
        &["bogus"][..],
        &["get", "pods"],
        &["status", "--timeout", "soon"],
        &["status", "--store", "/somewhere"],
        &["apply"],
        &["agent"],
    ] {
        let output = place.run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(text(&output).is_empty() && !errors(&output).is_empty());
    }
}

#[test]
fn a_missing_store_is_one_line_that_says_what_to_do() {
    let place = Place::new();
    for verb in [
        &["status"][..],
        &["get", "nodes"],
        &["ca", "show"],
        &["certs", "list"],
    ] {
        let output = place.run(verb);
        assert_eq!(code(&output), 1, "{verb:?}");
        let said = errors(&output);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.contains("--store") && said.contains("controller"),
            "{said}"
        );
    }
    let output = place.run(&["start"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("testudo init"));
}

#[test]
fn objects_are_applied_printed_and_deleted() {
    let place = Place::new();
    let file = place.file(
        "policy.yaml",
        &format!("{POLICY}---\n{}", NODE.replace("NAME", "n1")),
    );
    let applied = place.run(&["apply", "-f", &file]);
    assert_eq!(code(&applied), 0, "{}", errors(&applied));
    assert_eq!(
        text(&applied),
        "encryptionpolicy/cluster created\nnodeencryption/n1 created\n"
    );
    let again = place.json(&["apply", "-f", &file]);
    assert_eq!(again[0]["result"], "unchanged");

    let policy = place.json(&["get", "policy", "cluster"]);
    assert_eq!(policy["spec"]["overlay"]["type"], "VXLAN");
    let nodes = place.json(&["get", "nodes"]);
    assert_eq!(nodes["items"][0]["metadata"]["name"], "n1");
    let table = text(&place.run(&["get", "nodes"]));
    assert!(
        table.starts_with("NAME") && table.contains("192.0.2.1"),
        "{table}"
    );
    let yaml = text(&place.run(&["get", "policy", "cluster", "-o", "yaml"]));
    let second = place.file("again.yaml", &yaml);
    assert_eq!(code(&place.run(&["apply", "-f", &second])), 0);

    assert_eq!(code(&place.run(&["get", "node", "n7"])), 1);
    let deleted = place.run(&["delete", "-f", &file]);
    assert!(text(&deleted).contains("nodeencryption/n1 deleted"));
    assert_eq!(code(&place.run(&["get", "node", "n1"])), 1);
}

#[test]
fn a_bad_manifest_changes_nothing_and_says_where_it_is_bad() {
    let place = Place::new();
    place.run(&["apply", "-f", &place.file("good.yaml", POLICY)]);
    let bad = POLICY.replace("mode: Disabled", "mode: Full\n  modus: Full");
    let bad = place.file("bad.yaml", &bad);
    let output = place.run(&["apply", "-f", &bad]);
    assert_eq!(code(&output), 1);
    assert!(
        errors(&output).contains("bad.yaml:7"),
        "{}",
        errors(&output)
    );
    let policy = place.json(&["get", "policy", "cluster"]);
    assert_eq!(policy["spec"]["mode"], "Disabled");
}

#[test]
fn waiting_in_vain_is_exit_code_3_with_the_reason() {
    let place = Place::new();
    let began = std::time::Instant::now();
    let output = place.run(&["init", "--overlay", "vxlan", "--timeout", "500ms"]);
    assert_eq!(code(&output), 3);
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
    assert!(
        errors(&output).contains("testudo controller"),
        "{}",
        errors(&output)
    );

    let _controller = place.controller();
    let node = place.file("n1.yaml", &NODE.replace("NAME", "n1"));
    place.run(&["apply", "-f", &node]);
    let output = place.run(&["init", "--timeout", "1s"]);
    assert_eq!(code(&output), 3);
    assert!(errors(&output).contains("n1"), "{}", errors(&output));
}

#[test]
fn a_policy_that_would_be_refused_is_not_written() {
    let place = Place::new();
    let output = place.run(&["init", "--wait=false"]);
    assert_eq!(code(&output), 1);
    let said = errors(&output);
    assert!(
        said.contains("spec.overlay.type") && said.contains("--overlay"),
        "{said}"
    );
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(code(&place.run(&["get", "policy", "cluster"])), 1);
}

#[test]
fn without_wait_the_wish_is_written_and_that_is_all() {
    let place = Place::new();
    let output = place.run(&["init", "--overlay", "geneve", "--wait=false"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let policy = place.json(&["get", "policy", "cluster"]);
    assert_eq!(policy["spec"]["mode"], "Full");
    assert_eq!(policy["spec"]["enforcement"], "Strict");
    assert_eq!(policy["spec"]["overlay"]["type"], "Geneve");
    assert_eq!(code(&place.run(&["stop", "--wait=false"])), 0);
    let policy = place.json(&["get", "policy", "cluster"]);
    assert_eq!(policy["spec"]["mode"], "Disabled");
    assert_eq!(policy["spec"]["overlay"]["type"], "Geneve");
}

#[test]
fn the_ca_and_tokens_of_a_controller_are_shown_without_secrets() {
    let place = Place::new();
    let _controller = place.controller();
    let cas = place.json(&["ca", "show"]);
    let subject = cas["cas"][0]["subject"].as_str().unwrap();
    assert!(subject.starts_with("Testudo CA "), "{subject}");
    assert!(!cas.to_string().contains("PRIVATE"));
    let token = text(&place.run(&["certs", "token", "n1"]));
    let path = Path::new(token.trim());
    let first = std::fs::read(path).unwrap();
    place.run(&["certs", "token", "n1"]);
    assert_eq!(std::fs::read(path).unwrap(), first);
    let status = place.json(&["status"]);
    assert_eq!(status["phase"], "Disabled");
    assert_eq!(status["nodes"], Value::Array(vec![]));
}

/// Without nodes a rotation has nobody to wait for.
#[test]
fn the_ca_is_rotated_and_both_are_shown_meanwhile() {
    let place = Place::new();
    let output = place.run(&["ca", "rotate"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("no CA yet"), "{}", errors(&output));
    let _controller = place.controller();
    let output = place.run(&["ca", "rotate"]);
    assert_eq!(code(&output), 1);
    assert!(
        errors(&output).contains("testudo init"),
        "{}",
        errors(&output)
    );
    place.run(&["init", "--overlay", "geneve", "--wait=false"]);
    let names = |shown: &Value| -> Vec<String> {
        let cas = shown["cas"].as_array().unwrap().iter();
        cas.map(|ca| format!("{} {}", ca["role"], ca["subject"]))
            .collect()
    };
    let first = names(&place.json(&["ca", "show"]));
    assert_eq!(first.len(), 1);
    assert!(first[0].starts_with("\"signs\""), "{first:?}");

    let view = place.json(&["ca", "rotate"]);
    assert_eq!(view["done"], true, "{view:#}");
    assert_eq!(
        (&view["rotation"], &view["phase"]),
        (&1.into(), &"Settled".into())
    );
    let second = names(&place.json(&["ca", "show"]));
    assert_ne!(first, second);
    let shown = text(&place.run(&["ca", "show"]));
    assert!(shown.contains("CA rotation 1: Settled"), "{shown}");

    // A node without an agent: it never says that it trusts anybody.
    let node = NODE.replace("NAME", "n1");
    place.run(&["apply", "-f", &place.file("n1.yaml", &node)]);
    let output = place.run(&["ca", "rotate", "--timeout", "2s"]);
    assert_eq!(code(&output), 3, "{}", errors(&output));
    assert!(
        errors(&output).contains("n1 (does not trust"),
        "{}",
        errors(&output)
    );
    let both = names(&place.json(&["ca", "show"]));
    assert_eq!(both[0], second[0]);
    assert!(both[1].starts_with("\"follows\""), "{both:?}");
    let output = place.run(&["ca", "rotate", "--wait=false"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("rotation 2 of the CA goes on"));
    let status = text(&place.run(&["status"]));
    assert!(status.contains("CA rotation 2: Trusting"), "{status}");

    let output = place.run(&["ca", "rotate", "--abort"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert!(
        text(&output).starts_with("rotation taken back"),
        "{}",
        text(&output)
    );
    assert_eq!(names(&place.json(&["ca", "show"])), second);
    let output = place.run(&["ca", "rotate", "--abort"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("no rotation"));
}

#[test]
fn without_a_controller_a_rotation_is_asked_for_once_and_is_exit_code_3() {
    let place = Place::new();
    drop(place.controller());
    place.run(&["init", "--overlay", "geneve", "--wait=false"]);
    for _ in 0..2 {
        let output = place.run(&["ca", "rotate", "--timeout", "300ms"]);
        assert_eq!(code(&output), 3, "{}", errors(&output));
        assert!(
            errors(&output).contains("does it run"),
            "{}",
            errors(&output)
        );
        let policy = place.json(&["get", "policy", "cluster"]);
        assert_eq!(policy["spec"]["certificates"]["caRotation"], 1);
    }
}

#[test]
fn a_silent_agent_is_named_and_is_exit_code_1() {
    let place = Place::new();
    let node = NODE.replace("NAME", "n1").replace(
        "  datapath: user",
        "  datapath: user\n  agentSocket: /nowhere/agent.sock",
    );
    place.run(&["apply", "-f", &place.file("n1.yaml", &node)]);
    let output = place.run(&["status", "--tunnels"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("node n1: /nowhere/agent.sock"));
    let output = place.run(&["status", "--tunnels", "--node", "n7"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("n7"));
}

#[test]
fn the_doctor_says_what_is_wrong_and_fails_with_it() {
    let place = Place::new();
    let output = place.run(&["doctor", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let severity = |finding: &Value| finding["severity"].as_str().unwrap().to_owned();
    let failed = findings
        .iter()
        .any(|finding| severity(finding) == "failure");
    assert_eq!(report["ok"], !failed);
    assert_eq!(code(&output), i32::from(failed));
    for check in [
        "kernel-release",
        "kernel-ipsec",
        "other-policies",
        "nftables",
    ] {
        let found: Vec<_> = findings.iter().filter(|f| f["check"] == check).collect();
        assert_eq!(found.len(), 1, "{check}: {findings:?}");
    }
    // For people: a line a check, and the same answer.
    let shown = place.run(&["doctor"]);
    assert_eq!(code(&shown), code(&output));
    assert_eq!(text(&shown).lines().count(), 1 + findings.len());
}

#[test]
fn a_connection_to_a_host_outside_is_kept_and_said_not_to_be_served() {
    let place = Place::new();
    let _controller = place.controller();
    let file = place.file("office.yaml", CONNECTION);
    let applied = place.run(&["apply", "-f", &file]);
    assert!(applied.status.success(), "{}", errors(&applied));
    assert_eq!(output(&applied), "externalconnection/office created\n");
    let warned = errors(&applied);
    let warning = "warning: externalconnection/office: agents of this version do not set up";
    assert!(warned.starts_with(warning), "{warned}");

    // What cannot be is refused with its line, and a key that is written out is not repeated.
    let text = CONNECTION.replace("30s", "30s\n  dpdTimeout: 10s");
    let bad = place.run(&["apply", "-f", &place.file("bad.yaml", &text)]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        errors(&bad).contains("bad.yaml:11: spec.dpdTimeout: 10s"),
        "{}",
        errors(&bad)
    );
    let text = CONNECTION.replace("leftCert:\n    secretName: office", "psk: hunter2");
    let bad = place.run(&["apply", "-f", &place.file("bad.yaml", &text)]);
    let said = errors(&bad);
    assert!(
        said.contains("put it into a Secret") && !said.contains("hunter2"),
        "{said}"
    );

    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let shown = loop {
        let shown = output(&place.run(&["get", "extconn"]));
        if shown.contains("NotServed") {
            break shown;
        }
        assert!(std::time::Instant::now() < deadline, "{shown}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    let row = [
        "office",
        "tunnel",
        "203.0.113.7",
        "198.51.100.0/24",
        "True",
        "False",
        "NotServed",
    ];
    assert_eq!(rows[1], row, "{shown}");
    let wide = output(&place.run(&["get", "externalconnections", "-o", "wide"]));
    for word in [
        "certificate/office",
        "all",
        "%defaultroute",
        "no packet is treated differently",
    ] {
        assert!(wide.contains(word), "{word}: {wide}");
    }
    let json = place.json(&["get", "externalconnection", "office"]);
    assert_eq!(json["spec"]["saLifetime"], "8h");
    assert_eq!(json["status"]["conditions"][1]["reason"], "NotServed");
    let yaml = output(&place.run(&["get", "extconn", "office", "-o", "yaml"]));
    assert!(yaml.contains("kind: ExternalConnection"), "{yaml}");
    let gone = place.run(&["delete", "externalconnections", "office"]);
    assert_eq!(output(&gone), "externalconnection/office deleted\n");
}
