//! An agent as the API server sees one.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use testudo_crypto::{KeyType, SigningKey, sha256};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::condition::{Condition, ConditionStatus};
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, rotation_of};
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    Acknowledgement, Authorities, BootId, CertificateFacts, CertificateRequest,
    CertificateRequestSpec, EncryptionPolicy, NodeEncryption, NodeEncryptionSpec,
    NodeEncryptionStatus, Phase, UnixTime,
};
use testudo_pki as pki;
use testudo_store::{Event, Store};
use testudo_store_kube::pause;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::cluster::NodeStore;
use super::peers::Peers;

/// So many nodes join at once: the next begins when one has its certificate, as far as the machine gets.
const JOINING: usize = 20;

/// Nodes renew in waves of a part of them all, as [`testudo_plan::renewal`] has it.
const WAVES: u32 = 20;

/// Steps of a roll-out are told over this time for each node beyond a first few, as agents do.
const SPREAD_EACH: Duration = Duration::from_millis(50);
const CROWD: u32 = 50;

/// Tunnels to all peers come up in this time. Of the way there an agent tells once.
const TUNNELS: Duration = Duration::from_secs(2);

/// What all agents have done together, and who may go on.
pub(super) struct Progress {
    certificates: AtomicU64,
    failures: AtomicU64,
    joining: Arc<Semaphore>,
    renewing: Arc<Semaphore>,
}

impl Progress {
    /// Of so many nodes.
    pub(super) fn new(nodes: u32) -> Self {
        Self {
            certificates: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            joining: Arc::new(Semaphore::new(JOINING)),
            renewing: Arc::new(Semaphore::new(nodes.div_ceil(WAVES) as usize)),
        }
    }

    /// Counts a call that failed and is tried again. Told of the first of all: a thousand say the same.
    pub(super) fn failed(&self, text: impl FnOnce() -> String) {
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            eprintln!("{}; it is tried again", text());
        }
    }

    /// Certificates taken up and told in a status.
    pub(super) fn certificates(&self) -> u64 {
        self.certificates.load(Ordering::Relaxed)
    }

    /// Calls that failed and were tried again.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Starts the agent of a node among this many.
pub(super) fn start(node: NodeStore, nodes: u32, watches: bool, progress: Arc<Progress>) {
    tokio::spawn(async move {
        let Ok(turn) = Arc::clone(&progress.joining).acquire_owned().await else {
            return;
        };
        let name = node.name.clone();
        let now = Instant::now();
        let mut agent = Agent {
            node,
            peers: nodes.saturating_sub(1),
            progress,
            facts: Facts::default(),
            later: None,
            words: None,
            applied: false,
            told: None,
            certificates: 0,
            asked: None,
            turn: Some(turn),
            waits: None,
            tries: 0,
            resume: now,
        };
        if let Err(error) = agent.live(watches).await {
            eprintln!("{name}: {error:#}; it ends");
        }
    });
}

/// What it says of itself.
#[derive(Clone, Default)]
struct Facts {
    acknowledged: Option<Acknowledgement>,
    rotation: u64,
    certificate: Option<CertificateFacts>,
    tunnels: u32,
    expected: u32,
    waits: bool,
    generation: u64,
}

/// A certificate that it wants.
struct Asked {
    rotation: u64,
    sent: bool,
    request: CertificateRequestSpec,
}

struct Agent {
    node: NodeStore,
    peers: u32,
    progress: Arc<Progress>,
    facts: Facts,
    /// The step that it is about to have done.
    later: Option<(Instant, Acknowledgement)>,
    /// When it has a word for people, as agents have at a chance time of their own: whether its tunnels are yet to
    /// come up, and of which policy it speaks.
    words: Option<(Instant, bool, u64)>,
    /// Its object has been made.
    applied: bool,
    /// The status that was written last.
    told: Option<NodeEncryptionStatus>,
    /// Certificates taken up that no status has told of.
    certificates: u64,
    asked: Option<Asked>,
    /// Its turn to have one, until it has told of it.
    turn: Option<OwnedSemaphorePermit>,
    /// Where its turn is told.
    waits: Option<oneshot::Receiver<OwnedSemaphorePermit>>,
    /// Writes that failed since the last one that did not.
    tries: u32,
    /// Nothing is written before.
    resume: Instant,
}

impl Agent {
    async fn live(&mut self, all: bool) -> anyhow::Result<()> {
        let store = self.node.store.clone();
        let mut policies = store.watch::<EncryptionPolicyKind>().await?;
        let mut bundles = store.watch::<TrustBundleKind>().await?;
        let mut requests = store.watch::<CertificateRequestKind>().await?;
        let _nodes = match all {
            true => Some(Peers::follow(&store, Arc::clone(&self.progress)).await?),
            false => None,
        };
        loop {
            let due = self.due();
            tokio::select! {
                event = policies.next() => match event.context("the policy's watch")? {
                    Event::Added(new) | Event::Modified(new) if new.name() == CLUSTER => {
                        self.obey(&new)?;
                    }
                    _ => {}
                },
                event = requests.next() => match event.context("the requests' watch")? {
                    Event::Added(new) | Event::Modified(new) => self.answered(&new)?,
                    _ => {}
                },
                event = bundles.next() => {
                    event.context("the bundle's watch")?;
                }
                turn = next(&mut self.waits) => {
                    self.turn = turn;
                    self.waits = None;
                }
                () = tokio::time::sleep_until(due.unwrap_or(self.resume)), if due.is_some() => {
                    self.write_or_try_later().await;
                }
            }
        }
    }

    /// When there is something to write, if at all.
    fn due(&self) -> Option<Instant> {
        let news = !self.applied || self.told.as_ref() != Some(&self.status());
        let news = news.then_some(self.resume);
        let step = self.later.map(|(then, _)| then);
        let words = self.words.map(|(then, ..)| then);
        let asks = self.asked.as_ref().is_some_and(|asked| !asked.sent) && self.turn.is_some();
        let ask = asks.then_some(self.resume);
        [news, step, words, ask].into_iter().flatten().min()
    }

    async fn write_or_try_later(&mut self) {
        let now = Instant::now();
        if let Some((_, word)) = self.later.take_if(|(then, _)| *then <= now) {
            self.facts.acknowledged = Some(word);
            self.facts.expected = match word.phase {
                Phase::Disabled => 0,
                _ => self.peers,
            };
            self.facts.tunnels = self.facts.expected;
            self.facts.waits = false;
            // They go with it.
            if let Some((_, _, generation)) = self.words.take() {
                self.facts.generation = generation;
            }
        }
        if let Some((_, up, generation)) = self.words.take_if(|(then, ..)| *then <= now) {
            self.facts.generation = generation;
            if up {
                self.facts.expected = self.peers;
                self.facts.tunnels = self.peers / 2;
                self.facts.waits = true;
            }
        }
        if now < self.resume {
            return;
        }
        match self.write().await {
            Ok(()) => self.tries = 0,
            Err(error) => {
                self.tries = self.tries.saturating_add(1);
                self.resume = Instant::now() + pause(self.tries);
                let name = &self.node.name;
                self.progress.failed(|| format!("{name}: {error:#}"));
            }
        }
    }

    /// As a real one: the object, its status, the request.
    async fn write(&mut self) -> anyhow::Result<()> {
        let store = self.node.store.clone();
        let mut object = NodeEncryption::new(self.node.name.as_str(), self.spec()?);
        if !self.applied {
            store.apply(object.clone()).await?;
            self.applied = true;
        }
        object.status = self.status();
        if self.told.as_ref() != Some(&object.status) {
            store.update_status(&object).await?;
            self.told = Some(object.status);
            let taken_up = std::mem::take(&mut self.certificates);
            let all = &self.progress.certificates;
            all.fetch_add(taken_up, Ordering::Relaxed);
            if taken_up > 0 {
                self.turn = None;
            }
        }
        if let Some(asked) = &mut self.asked
            && !asked.sent
            && self.turn.is_some()
        {
            let name = self.node.name.as_str();
            let request = CertificateRequest::new(name, asked.request.clone());
            store.apply(request).await?;
            asked.sent = true;
        }
        Ok(())
    }

    fn spec(&self) -> anyhow::Result<NodeEncryptionSpec> {
        let [_, _, high, low] = self.node.number.to_be_bytes();
        Ok(NodeEncryptionSpec {
            uid: self.node.uid.clone(),
            boot_id: BootId::new("00000000-0000-4000-8000-000000000001")?,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 200, high, low))],
            pod_cidrs: Vec::new(),
            datapath: "kernel".to_owned(),
            agent_socket: Some("/run/testudo/agent.sock".to_owned()),
        })
    }

    /// All that a real one says, so that it is as long.
    fn status(&self) -> NodeEncryptionStatus {
        let facts = &self.facts;
        let ca = facts.certificate.as_ref().map(|facts| facts.issuer.clone());
        let phase = facts.acknowledged.unwrap_or_default().phase;
        let make = |kind: &str, holds: bool, reason: &str, message: String| Condition {
            kind: kind.to_owned(),
            status: match holds {
                true => ConditionStatus::True,
                false => ConditionStatus::False,
            },
            reason: reason.to_owned(),
            message,
            last_transition_time: UnixTime(1_800_000_000),
            observed_generation: facts.generation,
        };
        let ready = match facts.waits {
            true => make("Ready", false, "Progressing", format!("leaving {phase}")),
            false => make(
                "Ready",
                true,
                "PhaseInForce",
                format!("{phase} is in force"),
            ),
        };
        NodeEncryptionStatus {
            acknowledged: facts.acknowledged,
            certificate: facts.certificate.clone(),
            rotation: facts.rotation,
            authorities: Authorities {
                trusted: ca.iter().cloned().collect(),
                presented: ca.clone(),
                peers: ca.filter(|_| facts.tunnels > 0).into_iter().collect(),
                ..Authorities::default()
            },
            tunnels_up: facts.tunnels,
            tunnels_expected: facts.expected,
            effective_mtu: (facts.tunnels > 0).then_some(1390),
            agent_pid: Some(4000 + self.node.number),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            conditions: vec![
                ready,
                make("Degraded", false, "AsExpected", String::new()),
                make("StoreReachable", true, "AsExpected", String::new()),
            ],
            ..NodeEncryptionStatus::default()
        }
    }

    /// Takes the step that the policy asks for, and wants a certificate where there is to be another.
    fn obey(&mut self, policy: &EncryptionPolicy) -> anyhow::Result<()> {
        let word = Acknowledgement {
            phase: policy.status.phase,
            rollout: policy.status.rollout,
        };
        let now = Instant::now();
        let generation = policy.metadata.generation;
        let mut speaks = self.facts.generation != generation;
        if self.facts.acknowledged.is_none() {
            self.facts.generation = generation;
            speaks = false;
        }
        if self.facts.acknowledged != Some(word) && self.later.is_none_or(|(_, w)| w != word) {
            let up = self.facts.expected == 0 && word.phase != Phase::Disabled;
            if up {
                self.words = Some((now + self.calm(), true, generation));
                speaks = false;
            }
            // Nothing is to be done for a first word.
            let then = match (self.facts.acknowledged, up) {
                (None, _) => now,
                (_, true) => now + TUNNELS + self.share(),
                (_, false) => now + self.share(),
            };
            self.later = Some((then, word));
        }
        if speaks && self.words.is_none() {
            self.words = Some((now + self.calm(), false, generation));
        }
        let wanted = rotation_of(policy, self.node.name.as_str());
        let have = self.facts.certificate.as_ref().map(|_| self.facts.rotation);
        let coming = self.asked.as_ref().map(|asked| asked.rotation);
        if have.max(coming).is_none_or(|newest| newest < wanted) {
            self.asked = Some(Asked {
                rotation: wanted,
                sent: false,
                request: self.request()?,
            });
            if self.turn.is_none() {
                let (sender, waits) = oneshot::channel();
                let turns = Arc::clone(&self.progress.renewing);
                tokio::spawn(async move {
                    if let Ok(turn) = turns.acquire_owned().await {
                        // Whoever has gone needs no turn.
                        drop(sender.send(turn));
                    }
                });
                self.waits = Some(waits);
            }
        }
        Ok(())
    }

    /// Its share of the time over which all say what nobody waits for.
    fn calm(&self) -> Duration {
        let part = 1.0 - f64::from(self.node.number) / f64::from(self.peers.max(1));
        let all = SPREAD_EACH.saturating_mul(self.peers);
        all.mul_f64(part.max(0.0))
    }

    /// Its share of the time over which all tell of a step.
    fn share(&self) -> Duration {
        let crowd = self.peers.saturating_sub(CROWD);
        let part = f64::from(self.node.number) / f64::from(self.peers.max(1));
        SPREAD_EACH.saturating_mul(crowd).mul_f64(part)
    }

    fn request(&self) -> anyhow::Result<CertificateRequestSpec> {
        let (name, uid) = (self.node.name.as_str(), self.node.uid.as_str());
        let key = SigningKey::generate(KeyType::EcdsaP256)?;
        let identity = pki::NodeIdentity::new(name, uid)?;
        let request = pki::certificate_request(&key, &identity)?;
        Ok(CertificateRequestSpec {
            node: self.node.name.clone(),
            uid: self.node.uid.clone(),
            request: pki::request_to_pem(&request),
            proof: pki::hex(&sha256(&[&request])),
        })
    }

    fn answered(&mut self, request: &CertificateRequest) -> anyhow::Result<()> {
        let Some(asked) = &self.asked else {
            return Ok(());
        };
        if request.name() != self.node.name.as_str()
            || request.status.answers.as_ref() != Some(&asked.request.proof)
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
        self.facts.rotation = asked.rotation;
        self.facts.certificate = Some(CertificateFacts {
            subject: facts.subject,
            issuer: facts.issuer,
            serial: facts.serial,
            not_before: time(facts.times.not_before),
            not_after: time(facts.times.not_after),
        });
        self.asked = None;
        self.certificates += 1;
        Ok(())
    }
}

/// The turn that is waited for, if one is.
async fn next(
    waits: &mut Option<oneshot::Receiver<OwnedSemaphorePermit>>,
) -> Option<OwnedSemaphorePermit> {
    match waits {
        Some(waits) => waits.await.ok(),
        None => std::future::pending().await,
    }
}

fn time(seconds: u64) -> UnixTime {
    UnixTime(i64::try_from(seconds).unwrap_or(i64::MAX))
}
