//! An agent as the API server sees one.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use testudo_crypto::{KeyType, SigningKey, sha256};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, rotation_of};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    Acknowledgement, BootId, CertificateFacts, CertificateRequest, CertificateRequestSpec,
    EncryptionPolicy, NodeEncryption, NodeEncryptionSpec, NodeEncryptionStatus, UnixTime,
};
use testudo_pki as pki;
use testudo_store::{Event, Store};

use super::cluster::NodeStore;

/// Nodes renew one after another, a tenth of a second each: real agents spread theirs over minutes.
const TURN: Duration = Duration::from_millis(100);

/// What all agents have done together.
#[derive(Default)]
pub(super) struct Progress {
    certificates: AtomicU64,
}

impl Progress {
    /// Certificates taken up and told in a status.
    pub(super) fn certificates(&self) -> u64 {
        self.certificates.load(Ordering::Relaxed)
    }
}

/// Starts the agent of a node among this many.
pub(super) fn start(node: NodeStore, nodes: u32, watches: bool, progress: Arc<Progress>) {
    tokio::spawn(async move {
        // Not all at the same instant.
        tokio::time::sleep(TURN.mul_f64(f64::from(node.number) / 4.0)).await;
        let name = node.name.clone();
        let mut agent = Agent {
            node,
            nodes,
            progress,
            policy: None,
            status: NodeEncryptionStatus::default(),
            asked: None,
            made: 0,
        };
        // As a real one, it goes on trying.
        while let Err(error) = agent.live(watches).await {
            eprintln!("{name}: {error:#}; once more");
            agent.asked = None;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

struct Agent {
    node: NodeStore,
    nodes: u32,
    progress: Arc<Progress>,
    policy: Option<EncryptionPolicy>,
    status: NodeEncryptionStatus,
    /// The request that is under way, by its proof, and the rotation that it answers.
    asked: Option<(String, u64)>,
    /// Certificates asked for.
    made: u64,
}

impl Agent {
    async fn live(&mut self, all: bool) -> anyhow::Result<()> {
        let store = self.node.store.clone();
        let mut policies = store.watch::<EncryptionPolicyKind>().await?;
        let mut bundles = store.watch::<TrustBundleKind>().await?;
        let mut requests = store.watch::<CertificateRequestKind>().await?;
        let mut nodes = match all {
            true => Some(store.watch::<NodeEncryptionKind>().await?),
            false => None,
        };
        let own = NodeEncryption::new(self.node.name.as_str(), self.spec()?);
        store.apply(own).await?;
        loop {
            tokio::select! {
                event = policies.next() => match event.context("the policy's watch")? {
                    Event::Added(new) | Event::Modified(new) if new.name() == CLUSTER => {
                        self.policy = Some(new);
                        self.act().await?;
                    }
                    _ => {}
                },
                event = requests.next() => match event.context("the requests' watch")? {
                    Event::Added(new) | Event::Modified(new) => self.answered(&new).await?,
                    _ => {}
                },
                event = bundles.next() => {
                    event.context("the bundle's watch")?;
                }
                event = async {
                    match &mut nodes {
                        Some(nodes) => nodes.next().await,
                        None => std::future::pending().await,
                    }
                } => {
                    event.context("the nodes' watch")?;
                }
            }
        }
    }

    fn spec(&self) -> anyhow::Result<NodeEncryptionSpec> {
        let [_, _, high, low] = self.node.number.to_be_bytes();
        Ok(NodeEncryptionSpec {
            uid: self.node.uid.clone(),
            boot_id: BootId::new("00000000-0000-4000-8000-000000000001")?,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 200, high, low))],
            pod_cidrs: Vec::new(),
            datapath: "kernel".to_owned(),
            agent_socket: Some(format!("/run/testudo/{}.sock", self.node.name)),
        })
    }

    /// Acknowledges the phase, and asks for a certificate where one is wanted.
    async fn act(&mut self) -> anyhow::Result<()> {
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        let wanted = rotation_of(policy, self.node.name.as_str());
        let word = Acknowledgement {
            phase: policy.status.phase,
            rollout: policy.status.rollout,
        };
        let missing = self.status.certificate.is_none() || self.status.rotation < wanted;
        let others = self.nodes.saturating_sub(1);
        let mut status = self.status.clone();
        status.acknowledged = Some(word);
        status.tunnels_expected = others;
        status.tunnels_up = others;
        self.tell(status).await?;
        if missing
            && self
                .asked
                .as_ref()
                .is_none_or(|(_, rotation)| *rotation < wanted)
        {
            if self.status.certificate.is_some() {
                tokio::time::sleep(TURN.mul_f64(f64::from(self.node.number))).await;
            }
            self.ask(wanted).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, rotation: u64) -> anyhow::Result<()> {
        let (name, uid) = (self.node.name.as_str(), self.node.uid.as_str());
        let key = SigningKey::generate(KeyType::EcdsaP256)?;
        let identity = pki::NodeIdentity::new(name, uid)?;
        let request = pki::certificate_request(&key, &identity)?;
        let proof = pki::hex(&sha256(&[&request]));
        let spec = CertificateRequestSpec {
            node: self.node.name.clone(),
            uid: self.node.uid.clone(),
            request: pki::request_to_pem(&request),
            proof: proof.clone(),
        };
        self.asked = Some((proof, rotation));
        self.made += 1;
        self.node
            .store
            .apply(CertificateRequest::new(name, spec))
            .await?;
        Ok(())
    }

    async fn answered(&mut self, request: &CertificateRequest) -> anyhow::Result<()> {
        let Some((proof, rotation)) = &self.asked else {
            return Ok(());
        };
        if request.name() != self.node.name.as_str()
            || request.status.answers.as_ref() != Some(proof)
        {
            return Ok(());
        }
        if let Some(why) = &request.status.denied {
            anyhow::bail!("its request was denied: {why}");
        }
        let Some(pem) = &request.status.certificate else {
            return Ok(());
        };
        let chain = pki::chain_from_pem(pem)?;
        let facts = pki::CertificateFacts::read(chain.first().context("an empty chain")?)?;
        let mut status = self.status.clone();
        status.rotation = *rotation;
        status.certificate = Some(CertificateFacts {
            subject: facts.subject,
            issuer: facts.issuer,
            serial: facts.serial,
            not_before: time(facts.times.not_before),
            not_after: time(facts.times.not_after),
        });
        self.asked = None;
        self.tell(status).await?;
        self.progress.certificates.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the status, if it is another.
    async fn tell(&mut self, status: NodeEncryptionStatus) -> anyhow::Result<()> {
        if status == self.status {
            return Ok(());
        }
        let mut object = NodeEncryption::new(self.node.name.as_str(), self.spec()?);
        object.status = status.clone();
        self.node.store.update_status(&object).await?;
        self.status = status;
        Ok(())
    }
}

fn time(seconds: u64) -> UnixTime {
    UnixTime(i64::try_from(seconds).unwrap_or(i64::MAX))
}
