//! A real control plane: it starts, does its work, is stopped and started, and leaves nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testudo_kube_env::{Cluster, Component, Options, names};

/// Names of the control plane's own that tests elsewhere lean on.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

#[test]
fn a_control_plane_does_what_testudo_leans_on_and_leaves_nothing() -> Result<()> {
    let name = format!("test-{}", std::process::id());
    let start = Instant::now();
    let cluster = Cluster::up(&Options::named(&name), &|line| eprintln!("{line}"))?;
    eprintln!("up in {:.1} s", start.elapsed().as_secs_f32());
    for process in cluster.processes() {
        let memory = process
            .memory
            .with_context(|| format!("{} has ended", process.name))?;
        eprintln!("{}: {} MiB", process.name, memory / 1024);
    }

    let version: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["version", "-o", "json"])?)?;
    for side in ["clientVersion", "serverVersion"] {
        let git = version[side]["gitVersion"].as_str().context(side)?;
        assert!(git.starts_with("v1."), "{side}: {git}");
    }
    a_bound_token_says_its_node(&cluster)?;
    strangers_get_nothing(&cluster)?;
    an_outage_loses_nothing(&cluster)?;

    let directory = cluster.directory();
    let pids: Vec<i32> = cluster
        .processes()
        .iter()
        .map(|process| process.pid)
        .collect();
    cluster.down()?;
    assert!(!directory.exists());
    assert!(!names().contains(&name));
    assert!(
        !Path::new("/run/netns")
            .join(format!("testudo-kube-{name}"))
            .exists()
    );
    for pid in pids {
        // Another may have got the PID: then it is no program of ours.
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        assert!(
            !program.starts_with(testudo_kube_env::programs::cache()?),
            "{pid} runs"
        );
    }
    Ok(())
}

/// A token for a ServiceAccount that is bound to a Node puts the node's name and UID into the extras
/// of a CSR that is made with it: what the controller goes by when it approves.
fn a_bound_token_says_its_node(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "testudo"])?;
    cluster.kubectl(&["create", "serviceaccount", "agent", "-n", "testudo"])?;
    let rule = [
        "--verb=create,get",
        "--resource=certificatesigningrequests.certificates.k8s.io",
    ];
    cluster.kubectl(&[&["create", "clusterrole", "agent"][..], &rule].concat())?;
    let binding = [
        "clusterrolebinding",
        "agent",
        "--clusterrole=agent",
        "--serviceaccount=testudo:agent",
    ];
    cluster.kubectl(&[&["create"][..], &binding].concat())?;
    let folder = cluster.directory();
    apply(
        cluster,
        "node.json",
        &serde_json::json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        }),
    )?;
    let uid = cluster.kubectl(&["get", "node", "n1", "-o", "jsonpath={.metadata.uid}"])?;
    let token = cluster.kubectl(&[
        "create",
        "token",
        "agent",
        "-n",
        "testudo",
        "--bound-object-kind=Node",
        "--bound-object-name=n1",
        &format!("--bound-object-uid={uid}"),
    ])?;

    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-keyout", "/dev/null", "-subj", "/CN=n1", "-out"])
        .arg(folder.join("n1.csr"))
        .output()?;
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let coded = std::process::Command::new("openssl")
        .args(["base64", "-A", "-in"])
        .arg(folder.join("n1.csr"))
        .output()?;
    let request = String::from_utf8(coded.stdout)?;
    let file = write(
        cluster,
        "csr.json",
        &serde_json::json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": { "name": "n1" },
            "spec": {
                "request": request.trim(),
                "signerName": "testudo.dev/node",
                "usages": ["digital signature"],
            },
        }),
    )?;
    with_token(cluster, token.trim(), &["create", "-f", &file])?;
    let csr: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["get", "csr", "n1", "-o", "json"])?)?;
    assert_eq!(
        csr["spec"]["username"],
        "system:serviceaccount:testudo:agent"
    );
    let extra = &csr["spec"]["extra"];
    assert_eq!(
        extra["authentication.kubernetes.io/node-name"][0], "n1",
        "{csr}"
    );
    assert_eq!(
        extra["authentication.kubernetes.io/node-uid"][0],
        uid.as_str(),
        "{csr}"
    );

    // Once the Node is gone the token is worth nothing.
    cluster.kubectl(&["delete", "node", "n1"])?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while with_token(cluster, token.trim(), &["get", "csr", "n1"]).is_ok() {
        assert!(Instant::now() < deadline, "a token outlives its Node");
        std::thread::sleep(Duration::from_millis(200));
    }
    let metadata = cluster.kubectl(&["get", "--raw", "/.well-known/openid-configuration"])?;
    assert!(metadata.contains(ISSUER), "{metadata}");
    Ok(())
}

/// Without RBAC's word a ServiceAccount may read nothing, and nobody may without a name.
fn strangers_get_nothing(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "serviceaccount", "stranger", "-n", "testudo"])?;
    let token = cluster.kubectl(&["create", "token", "stranger", "-n", "testudo"])?;
    for token in [token.trim(), "nonsense"] {
        let said = with_token(cluster, token, &["get", "secrets", "-n", "testudo"]);
        let text = said.err().context("a stranger reads secrets")?.to_string();
        assert!(
            text.contains("Forbidden") || text.contains("Unauthorized"),
            "{text}"
        );
    }
    Ok(())
}

/// The API server and its database stop and start; what was written is there.
fn an_outage_loses_nothing(cluster: &Cluster) -> Result<()> {
    cluster.stop_component(Component::ApiServer)?;
    let request = ["get", "namespace", "testudo", "--request-timeout=2s"];
    assert!(cluster.kubectl(&request).is_err(), "who answers?");
    cluster.stop_component(Component::Etcd)?;
    cluster.start_component(Component::Etcd)?;
    cluster.start_component(Component::ApiServer)?;
    cluster.ready()?;
    cluster.kubectl(&request)?;
    Ok(())
}

fn apply(cluster: &Cluster, file: &str, object: &serde_json::Value) -> Result<()> {
    let path = write(cluster, file, object)?;
    cluster.kubectl(&["apply", "-f", &path])?;
    Ok(())
}

fn write(cluster: &Cluster, file: &str, object: &serde_json::Value) -> Result<String> {
    let path = cluster.directory().join(file);
    std::fs::write(&path, object.to_string())?;
    Ok(path.to_str().context("a path that is text")?.to_owned())
}

/// kubectl with a token in the place of the administrator's certificate.
fn with_token(cluster: &Cluster, token: &str, arguments: &[&str]) -> Result<String> {
    let output = cluster
        .kubectl_command()?
        .env("KUBECONFIG", "/dev/null")
        .arg(format!("--server={}", cluster.server()))
        .arg(format!(
            "--certificate-authority={}/pki/ca.crt",
            cluster.directory().display()
        ))
        .arg(format!("--token={token}"))
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{said}");
    Ok(String::from_utf8(output.stdout)?)
}
