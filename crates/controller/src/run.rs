//! The controller's life from start to stop.

use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use testudo_crypto::SystemRandom;
use testudo_model::policy::{CLUSTER, Certificates};
use testudo_model::{
    CertificateRequest, CertificateRequestStatus, NodeEncryption, TrustBundle, TrustBundleSpec,
    UnixTime,
};
use testudo_pki::{CaOptions, chain_to_pem, utc};
use testudo_plan::rollout;
use testudo_store::{DirStore, Store, StoreError, no_core_dumps, parse_location};
use testudo_store_kube::KubeStore;
use tracing::{debug, error, info, warn};

use crate::authority::Authority;
use crate::leader;
use crate::register::{Given, Holder, Kept, Register};
use crate::revocation::{Absent, changed};
use crate::safe::directory::DirSafe;
use crate::safe::kube::{KubeSafe, KubeSafeOptions};
use crate::safe::{Document, Safe, Term};
use crate::signer::{Denial, Signer};
use crate::steady::Steady;
use crate::world::World;

/// What the controller is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the cluster's objects are: `dir:PATH`.
    pub store: String,
}

/// How often everything is looked at although nothing was told.
const IDLE: Duration = Duration::from_secs(30);

/// How soon a request is looked at again of which it was not known whose it is.
const LATER: Duration = Duration::from_secs(3);

/// How soon it is tried again to lead on Kubernetes, where what is wrong may be put right.
const ANEW: Duration = Duration::from_secs(5);

/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Runs the controller of a directory store until `shutdown` is ready. An error means that it cannot
/// work at all; errors with single objects are logged and leave the others alone.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let location = parse_location(&options.store).map_err(anyhow::Error::msg)?;
    let store = DirStore::at(&location)?;
    let safe = DirSafe::open(&store);
    lead(store, safe, &location.to_string(), shutdown).await
}

/// Runs the controller of a Kubernetes cluster until `shutdown` is ready. What keeps it from working (the
/// lead was lost, the CA's Secret is gone or cannot be read) is logged and tried again; nothing changes
/// in the cluster meanwhile.
pub async fn run_on_kubernetes(
    store: KubeStore,
    options: KubeSafeOptions,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    let name = format!("kube, namespace {}", options.namespace);
    loop {
        let attempt = async {
            let safe = KubeSafe::new(store.client().await?, options.clone());
            lead(store.clone(), safe, &name, &mut shutdown).await
        };
        match attempt.await {
            Ok(()) => return Ok(()),
            Err(error) => error!("{error:#}; trying again"),
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(ANEW) => {}
        }
    }
}

/// Waits for the lead and runs the controller until `shutdown` is ready or the lead is lost, which is an
/// error. `name` is the store's, for the log.
pub async fn lead<S: Store, K: Safe>(
    store: S,
    safe: K,
    name: &str,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    no_core_dumps().context("turning core dumps off")?;
    tokio::pin!(shutdown);
    let mut term = tokio::select! {
        () = &mut shutdown => return Ok(()),
        term = safe.lead() => term?,
    };
    let work = async {
        let mut controller = Controller::open(store, safe).await?;
        info!(store = %name, "controller started");
        controller.work().await
    };
    let outcome = tokio::select! {
        () = &mut shutdown => Ok(()),
        done = work => done,
        why = term.lost() => Err(anyhow::anyhow!("the lead is lost: {why}")),
    };
    term.resign().await;
    if outcome.is_ok() {
        info!("controller stopped");
    }
    outcome
}

/// All that the controller works with.
pub(crate) struct Controller<S, K> {
    pub(crate) store: S,
    pub(crate) safe: K,
    pub(crate) authority: Authority,
    pub(crate) world: World,
    /// Why the rotation of the CA was begun, or how the last one ended.
    pub(crate) rotation_note: String,
    /// Whether the clock is to be believed.
    pub(crate) steady: Steady,
    /// Who holds certificates.
    pub(crate) kept: Kept,
    /// Nodes that are away.
    pub(crate) absent: Absent,
    /// What was last logged of the end of the CA that signs.
    pub(crate) end_told: Option<String>,
    /// The bundle as we last published it.
    published: Option<TrustBundleSpec>,
    /// The answers that this run has logged already as denied, by node.
    warned: std::collections::BTreeMap<String, String>,
}

impl<S: Store, K: Safe> Controller<S, K> {
    async fn open(store: S, safe: K) -> anyhow::Result<Self> {
        let world = World::open(&store).await?;
        let settings = settings(&world);
        let options = CaOptions {
            lifetime: settings.ca_lifetime.0.as_secs(),
            ..CaOptions::default()
        };
        let policy = world.policies.objects.get(CLUSTER);
        let asked = policy.map(|p| p.spec.certificates.ca_rotation);
        let trusted = world.bundles.objects.get(CLUSTER);
        if trusted.is_some_and(|bundle| !bundle.spec.certificates.is_empty())
            && safe.read(Document::Authority).await?.is_none()
        {
            anyhow::bail!(
                "{} is gone, and nodes trust the CA that was in it: restore it, or delete the \
                 TrustBundle to begin anew with a CA that no node trusts yet",
                safe.place(Document::Authority)
            );
        }
        let random = &mut SystemRandom::new();
        let authority = Authority::open(&safe, &options, asked, seconds(), random)
            .await
            .context("the controller cannot sign certificates")?;
        let told = world.bundles.objects.get(CLUSTER);
        Ok(Self {
            rotation_note: told.map_or_else(String::new, |b| b.status.message.clone()),
            steady: Steady::new(Instant::now(), seconds()),
            end_told: None,
            kept: Kept::open(&safe).await?,
            absent: Absent::default(),
            store,
            safe,
            authority,
            world,
            published: None,
            warned: Default::default(),
        })
    }

    /// Does what is to be done, again and again; ends only with an error.
    async fn work(&mut self) -> anyhow::Result<()> {
        loop {
            let pause = match self.reconcile().await {
                Ok(()) => self.idle(),
                Err(e) if e.is_conflict() => RETRY,
                Err(e) => {
                    error!("{e}; trying again");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                alive = self.world.changed() => {
                    anyhow::ensure!(alive, "the store's watch has ended");
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How long to wait when nothing is told: until all is looked at again, or the clock is believed.
    fn idle(&mut self) -> Duration {
        let now = Instant::now();
        let idle = match self.steady.look(now, seconds()) {
            Duration::ZERO => IDLE,
            left => IDLE.min(left),
        };
        self.absent.pause(now).map_or(idle, |pause| idle.min(pause))
    }

    /// Does all that is to be done now.
    async fn reconcile(&mut self) -> Result<(), StoreError> {
        self.publish_bundle().await?;
        self.keep_out().await?;
        self.answer_requests().await?;
        self.lead().await?;
        self.rotate().await
    }

    /// The published bundle is exactly what the CA file says: whoever may write objects must not
    /// be able to add a CA for longer than a moment.
    pub(crate) async fn publish_bundle(&mut self) -> Result<(), StoreError> {
        let spec = TrustBundleSpec {
            certificates: self.authority.bundle.to_pem(),
            revocation_lists: self.authority.bundle.revocation_lists_to_pem(),
        };
        let published = self.world.bundles.objects.get(CLUSTER);
        if published.is_some_and(|b| b.spec == spec) {
            self.published = Some(spec);
            return Ok(());
        }
        if self.published.as_ref() == Some(&spec) {
            warn!("the trust bundle was not what the CA file says: writing it again");
        }
        let object = TrustBundle::new(CLUSTER, spec.clone());
        let applied = self.store.apply(object).await?;
        info!(cas = self.authority.bundle.len(), "trust bundle published");
        self.world.bundles.put(applied.object);
        self.published = Some(spec);
        Ok(())
    }

    pub(crate) async fn answer_requests(&mut self) -> Result<(), StoreError> {
        let open: Vec<CertificateRequest> = self
            .world
            .requests
            .objects
            .values()
            .filter(|r| r.status.answers.as_ref() != Some(&r.spec.proof))
            .cloned()
            .collect();
        let mut register = self.kept.register.clone();
        let mut answers = Vec::with_capacity(open.len());
        for mut request in open {
            match self.decide(&request, &mut register).await {
                Some(status) => {
                    request.status = status;
                    answers.push(request);
                }
                None => self.absent.look_at(Instant::now() + LATER),
            }
        }
        // What nobody has written down nobody has.
        match self.kept.put(&self.safe, register).await {
            Ok(true) => {}
            Ok(false) => return Err(changed(&self.safe)),
            Err(error) => {
                return Err(StoreError::Unavailable {
                    what: format!("no certificate is given out: {error:#}"),
                    remedy: format!("see to {}", self.safe.place(Document::Register)),
                });
            }
        }
        for request in answers {
            let name = request.name().to_owned();
            match self.store.update_status(&request).await {
                Ok(written) => self.world.requests.put(written),
                Err(e) if e.is_conflict() || e.is_not_found() => {
                    debug!(node = name, "the request changed meanwhile");
                    let requests = &mut self.world.requests;
                    requests.refresh(&self.store, &name).await?;
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn decide(
        &mut self,
        request: &CertificateRequest,
        register: &mut Register,
    ) -> Option<CertificateRequestStatus> {
        let node = request.name().to_owned();
        let mut status = CertificateRequestStatus {
            answers: Some(request.spec.proof.clone()),
            ..CertificateRequestStatus::default()
        };
        let requester = match self.store.requester(request).await {
            Ok(requester) => requester,
            Err(e) => {
                error!(node, "{e}");
                status.denied = Some(Denial::TokenUnreadable(e.to_string()).to_string());
                return Some(status);
            }
        };
        let admitted = self.safe.authenticate(request, &requester).await;
        let decided = admitted.and_then(|()| {
            let signer = Signer {
                ca: &self.authority.ca,
                lifetime: settings(&self.world).node_lifetime.0.as_secs(),
                nodes: &self.world.nodes.objects,
                now: seconds(),
            };
            let issued = signer.decide(request, &mut SystemRandom::new())?;
            let holder = Holder {
                name: request.spec.node.to_string(),
                uid: request.spec.uid.to_string(),
            };
            let given = Given::new(self.authority.ca.facts(), &issued.facts);
            register.give(holder, given)?;
            Ok(issued)
        });
        if let Err(denial @ Denial::Unknown(_)) = &decided {
            warn!(node, "{denial}");
            return None;
        }
        match decided {
            Ok(issued) => {
                info!(
                    node,
                    serial = issued.facts.serial,
                    until = %utc(issued.facts.times.not_after),
                    "certificate signed"
                );
                self.warned.remove(&node);
                status.certificate = Some(chain_to_pem(&[issued.der]));
            }
            Err(denial) => {
                let text = denial.to_string();
                if self.warned.get(&node) != Some(&text) {
                    warn!(node, "certificate denied: {text}");
                    self.warned.insert(node, text.clone());
                }
                status.denied = Some(text);
            }
        }
        Some(status)
    }

    /// Takes every step of the roll-out that can be taken now.
    async fn lead(&mut self) -> Result<(), StoreError> {
        // Bounded: a roll-out has as many steps as there are phases.
        for _ in 0..8 {
            let Some(policy) = self.world.policies.objects.get(CLUSTER) else {
                return Ok(());
            };
            let nodes: Vec<NodeEncryption> = self.world.nodes.objects.values().cloned().collect();
            let unreadable = self.world.nodes.unreadable();
            let now = UnixTime(i64::try_from(seconds()).unwrap_or(i64::MAX));
            let status = rollout::next(policy, &nodes, &unreadable, now);
            if status == policy.status {
                return Ok(());
            }
            leader::log(&policy.status, &status);
            let mut policy = policy.clone();
            policy.status = status;
            match self.store.update_status(&policy).await {
                Ok(written) => self.world.policies.put(written),
                Err(e) if e.is_conflict() || e.is_not_found() => {
                    let policies = &mut self.world.policies;
                    policies.refresh(&self.store, CLUSTER).await?;
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The lifetimes in force: the policy's, or the defaults before there is one.
pub(crate) fn settings(world: &World) -> Certificates {
    let policy = world.policies.objects.get(CLUSTER);
    policy.map(|p| p.spec.certificates).unwrap_or_default()
}

/// Seconds since 1970.
pub(crate) fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
