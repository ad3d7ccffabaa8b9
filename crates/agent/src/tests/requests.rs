//! Certificate requests that somebody deletes: kube-controller-manager cleans up an hour after the answer,
//! and an administrator whenever.

use testudo_model::request::CertificateRequestKind;
use testudo_model::{CertificateRequest, NodeEncryptionStatus};

use super::*;

impl Cluster {
    async fn request(&self, node: u8) -> Option<CertificateRequest> {
        let name = name(node);
        let request = self.store.get::<CertificateRequestKind>(name.as_str());
        request.await.unwrap()
    }

    async fn delete_request(&self, node: u8) {
        let name = name(node);
        let deleted = self.store.delete::<CertificateRequestKind>(name.as_str());
        assert!(deleted.await.unwrap(), "there was none");
    }

    async fn status(&self, node: u8) -> NodeEncryptionStatus {
        self.node(node).await.map(|n| n.status).unwrap_or_default()
    }
}

/// One request a certificate: a cluster that lives on would else give each node another certificate an hour.
#[test]
fn a_request_that_has_its_answer_is_not_made_again_when_it_is_deleted() {
    on_one_thread(async {
        let cluster = Cluster::new(38, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        let serial = async |node| Some(cluster.status(node).await.certificate?.serial);
        let before = [serial(1).await.unwrap(), serial(2).await.unwrap()];
        for node in [1, 2] {
            cluster.delete_request(node).await;
        }
        // The agent reads all that was deleted before it writes its node anew, and with that all it has to say.
        for node in [1, 2] {
            let name = name(node);
            let deleted = cluster.store.delete::<NodeEncryptionKind>(name.as_str());
            assert!(deleted.await.unwrap());
            wait("the node's object", async || serial(node).await.is_some()).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        for node in [1, 2] {
            assert_eq!(cluster.request(node).await, None, "asked again: n{node}");
        }
        assert_eq!(before.clone().map(Some), [serial(1).await, serial(2).await]);

        // The next one is asked for when it is wanted.
        cluster.policy(|spec| spec.certificates.rotation = 1).await;
        wait("the rotation", async || {
            cluster.status(1).await.rotation == 1 && cluster.status(2).await.rotation == 1
        })
        .await;
        assert_ne!(before[0], serial(1).await.unwrap());
        cluster.all_sealed().await;
    });
}

/// One that nobody has answered yet is still asked for, and by the same key.
#[test]
fn a_request_that_is_open_is_made_again_when_it_is_deleted() {
    on_one_thread(async {
        let mut cluster = Cluster::new(39, 2);
        cluster.init().await;
        cluster.reach(Phase::Strict).await;
        let before = cluster.request(1).await.unwrap().spec;
        cluster.controller.abort();
        cluster.policy(|spec| spec.certificates.rotation = 1).await;
        let open = async || {
            let request = cluster.request(1).await?;
            (request.spec != before).then_some(request.spec)
        };
        wait("another request", async || open().await.is_some()).await;
        let asked = open().await;
        for restart in [false, true] {
            if restart {
                cluster.kill(1).await;
                cluster.start(1);
                let seen = || cluster.hosts[&1].0.lock().unwrap().opened > 1;
                wait("the agent", async || seen()).await;
            }
            cluster.delete_request(1).await;
            wait("the request", async || cluster.request(1).await.is_some()).await;
            let again = cluster.request(1).await.unwrap().spec;
            assert_eq!(Some(again), asked);
        }
    });
}
