//! Connections to hosts outside: each is told what is wrong with it, and that nobody serves it.

use testudo_model::external::{
    ACCEPTED, ExternalConnectionKind, KeyReference, NOT_SERVED, PROGRAMMED,
};
use testudo_model::{Condition, ExternalConnection, ExternalConnectionSpec};

use super::*;

fn connection(name: &str, right: &str, subnets: &[&str]) -> ExternalConnection {
    let mut spec = ExternalConnectionSpec::to(right.parse().unwrap());
    spec.right_subnets = subnets.iter().map(|net| net.parse().unwrap()).collect();
    spec.psk = Some(KeyReference::of("key".parse().unwrap()));
    Object::new(name, spec)
}

/// The condition of that type, of the present generation.
async fn said(store: &DirStore, name: &str, kind: &str) -> Option<Condition> {
    let read = store.get::<ExternalConnectionKind>(name).await.unwrap()?;
    let generation = read.metadata.generation;
    let mut conditions = read.status.conditions.into_iter();
    conditions.find(|c| c.kind == kind && c.observed_generation == generation)
}

/// Waits until the connection is (not) accepted for that reason; what is said then.
async fn judged(store: &DirStore, name: &str, reason: &str) -> String {
    let wait = async {
        loop {
            match said(store, name, ACCEPTED).await {
                Some(accepted) if accepted.reason == reason => {
                    let good = accepted.status == ConditionStatus::True;
                    assert_eq!(good, reason == "Accepted");
                    return accepted.message;
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("{name} is not {reason} in time"))
}

#[tokio::test]
async fn each_connection_is_judged_and_said_not_to_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let controller = Running::start(dir.path());
    store.create(node("n1")).await.unwrap();
    let overlay = Overlay {
        kind: OverlayType::Routed,
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ..Overlay::default()
    };
    let spec = EncryptionPolicySpec {
        overlay,
        ..EncryptionPolicySpec::default()
    };
    let policy = EncryptionPolicy::new(CLUSTER, spec);
    store.apply(policy).await.unwrap();
    let outside = ["198.51.100.0/24"];
    for made in [
        connection("office", "203.0.113.7", &outside),
        connection("office-2", "203.0.113.7", &outside),
        connection("node", "10.0.0.1", &[]),
        connection("pods", "203.0.113.8", &["192.0.2.0/24", "10.244.3.0/24"]),
        // All addresses are meant, the pods' among them: that is no dispute about single ones.
        connection("all", "203.0.113.9", &["0.0.0.0/0"]),
    ] {
        store.create(made).await.unwrap();
    }
    judged(&store, "office", "Accepted").await;
    judged(&store, "all", "Accepted").await;
    let text = judged(&store, "office-2", "Duplicate").await;
    assert!(text.contains("\"office\""), "{text}");
    let text = judged(&store, "node", "NodeAddress").await;
    assert!(text.starts_with("spec.right: 10.0.0.1"), "{text}");
    let text = judged(&store, "pods", "PodPrefix").await;
    assert!(
        text.starts_with("spec.rightSubnets: 10.244.3.0/24"),
        "{text}"
    );
    for name in ["office", "office-2", "node", "pods", "all"] {
        let programmed = said(&store, name, PROGRAMMED).await.unwrap();
        assert_eq!(programmed.status, ConditionStatus::False, "{name}");
        assert_eq!(programmed.reason, "NotServed", "{name}");
        assert_eq!(programmed.message, NOT_SERVED, "{name}");
    }
    // What was in the way goes, and what was wrong is mended.
    store
        .delete::<ExternalConnectionKind>("office")
        .await
        .unwrap();
    judged(&store, "office-2", "Accepted").await;
    let mended = connection("pods", "203.0.113.8", &["192.0.2.0/24"]);
    store.apply(mended).await.unwrap();
    judged(&store, "pods", "Accepted").await;
    controller.stop().await;
}
