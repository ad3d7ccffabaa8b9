//! The command line on a real API server.

mod common;

use std::process::Command;

use serde_json::Value;
use testudo_kube_env::{Cluster, Component, Options};

use common::{Answer, BINARY, begin, run};

struct World {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl World {
    fn testudo(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(BINARY);
        command.arg("--kubeconfig").arg(self.cluster.kubeconfig());
        command.args(arguments);
        run(command)
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).expect("kubectl")
    }

    fn file(&self, text: &str) -> String {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, text).expect("a manifest");
        file.display().to_string()
    }

    fn policy(&self) -> Value {
        let answer = self.testudo(&["get", "policy", "cluster", "-o", "json"]);
        serde_json::from_str(&answer.expect(0).out).expect("JSON")
    }
}

const POLICY: &str = "apiVersion: testudo.dev/v1alpha1\nkind: EncryptionPolicy\n\
    metadata:\n  name: cluster\nspec:\n  mode: Full\n  enforcement: Permissive\n  \
    overlay: { type: VXLAN }\n";

#[test]
fn the_command_line_works_on_an_api_server() {
    let Some(_turn) = begin("the_command_line_works_on_an_api_server") else {
        return;
    };
    let cluster = Cluster::up(&Options::named("kube-store"), &|line| eprintln!("{line}"));
    let world = World {
        cluster: cluster.expect("a control plane"),
        dir: tempfile::tempdir().expect("a folder"),
    };
    // Without the CRDs it says what is missing and how to get it.
    let answer = world.testudo(&["init", "--wait=false"]).expect(1);
    assert!(
        answer.err.contains("testudo crds | kubectl apply"),
        "{answer}"
    );
    let crds = world.testudo(&["crds"]).expect(0).out;
    let file = world.file(&crds);
    world.kubectl(&["apply", "--server-side", "-f", &file]);
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
    ];
    let names = [
        "encryptionpolicies.testudo.dev",
        "nodeencryptions.testudo.dev",
    ];
    world.kubectl(&[&wait[..], &names].concat());

    let answer = world.testudo(&["init", "--wait=false"]).expect(1);
    assert!(answer.err.contains("--overlay"), "{answer}");
    let words = ["init", "--overlay", "vxlan", "--wait=false"];
    world.testudo(&words).expect(0);
    assert_eq!(world.policy()["spec"]["mode"], "Full");
    let file = world.file(POLICY);
    for said in ["configured", "unchanged"] {
        let answer = world.testudo(&["apply", "-f", &file]).expect(0);
        assert!(answer.out.contains(said), "{answer}");
    }
    assert_eq!(world.policy()["spec"]["enforcement"], "Permissive");
    world.testudo(&["stop", "--wait=false"]).expect(0);
    let shown = world.kubectl(&["get", "encpol", "cluster"]);
    assert!(shown.contains("Disabled"), "{shown}");
    let late = world.testudo(&["start", "--timeout", "1s"]).expect(3);
    assert!(late.err.contains("is the controller running?"), "{late}");

    // A field that somebody else keeps is named with its owner.
    world.testudo(&["delete", "-f", &file]).expect(0);
    let theirs = world.file(&POLICY.replace("Permissive", "Strict"));
    let helm = [
        "apply",
        "--server-side",
        "--field-manager=helm",
        "-f",
        &theirs,
    ];
    world.kubectl(&helm);
    let answer = world.testudo(&["stop", "--wait=false"]).expect(1);
    assert!(
        answer.err.contains("spec.mode is kept by \"helm\""),
        "{answer}"
    );
    let status = world.testudo(&["status"]).expect(0);
    assert!(status.out.contains("Phase Disabled"), "{status}");
    // Who removes the release has to turn it off all the same.
    world
        .testudo(&["stop", "--take-over", "--wait=false"])
        .expect(0);
    assert_eq!(world.policy()["spec"]["mode"], "Disabled");
    assert_eq!(world.policy()["spec"]["enforcement"], "Strict");

    // Without the API server: one line with its name.
    let stopped = world.cluster.stop_component(Component::ApiServer);
    stopped.expect("the API server is stopped");
    let answer = world.testudo(&["get", "nodes"]).expect(1);
    assert_eq!(answer.err.lines().count(), 1, "{answer}");
    assert!(answer.err.contains(&world.cluster.server()), "{answer}");
    assert!(answer.err.contains("cannot be reached"), "{answer}");
}
