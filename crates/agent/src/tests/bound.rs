//! Nodes whose Node was made anew under their agent.

use testudo_store::Kubernetes;

use super::*;
use crate::bound::take_identity;

/// What stands in a token (RFC 7519 3) that is bound to n1 of the UID `u-old`: base64url of
/// `{"kubernetes.io": {"node": {"name": "n1", "uid": "u-old"}}}`.
const OLD: &str = "eyJrdWJlcm5ldGVzLmlvIjogeyJub2RlIjogeyJuYW1lIjogIm4xIiwgInVpZCI6ICJ1LW9sZCJ9fX0";
/// The same of `u-new`.
const NEW: &str = "eyJrdWJlcm5ldGVzLmlvIjogeyJub2RlIjogeyJuYW1lIjogIm4xIiwgInVpZCI6ICJ1LW5ldyJ9fX0";

/// An agent that gets no certificate looks at its token again: when that names another UID, it ends, and
/// goes on under that one when it is started again.
#[test]
fn an_agent_whose_node_was_made_anew_ends_and_takes_the_new_uid_up() {
    on_one_thread(async {
        let mut cluster = Cluster::new(75, 1);
        cluster.init().await;
        cluster.kill(1).await;
        let _ = std::fs::remove_file(cluster.socket(1));
        let token = cluster.dir.path().join("token");
        let write = |claims: &str| std::fs::write(&token, format!("e30.{claims}.e30")).unwrap();
        write(OLD);
        let kubeconfig = cluster.dir.path().join("kubeconfig");
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:1" } }],
            "users": [{ "name": "u", "user": { "tokenFile": token } }],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        let mut options = cluster.options(1);
        options.store = Location::Kubernetes(Kubernetes {
            kubeconfig: Some(kubeconfig),
            context: None,
        });
        take_identity(&options).await.unwrap();
        let uid = || std::fs::read_to_string(options.state_dir.join("uid")).unwrap();
        assert_eq!(uid().trim(), "u-old");

        // The controller of this store denies what comes without a proof of the join token.
        let host = Box::new(cluster.hosts[&1].clone());
        let (begun, store) = (options.clone(), cluster.store.clone());
        let sources = Sources { store, pods: None };
        let task = spawn_local(async move {
            let (host, enforcement) = close_first(&begun, host)?;
            run_on(
                begun,
                Clock::start(),
                host,
                enforcement,
                sources,
                std::future::pending(),
            )
            .await
        });
        wait("a denial", async || {
            let status = Request::Get {
                get: Gettable::Status,
            };
            if !cluster.socket(1).exists() {
                return false;
            }
            let status = cluster.ask(1, status).await.status.unwrap();
            status.problems.iter().any(|p| p.contains("denied"))
        })
        .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!task.is_finished(), "it is who it was");
        write(NEW);
        let ended = tokio::time::timeout(PATIENCE, task).await.expect("it ends");
        let error = format!("{:#}", ended.unwrap().unwrap_err());
        assert!(
            error.contains("made anew") && error.contains("u-new"),
            "{error}"
        );
        take_identity(&options).await.unwrap();
        assert_eq!(uid().trim(), "u-new");
    });
}
