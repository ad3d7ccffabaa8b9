//! The controller's life from start to stop.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use testudo_crypto::SystemRandom;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::policy::{CLUSTER, Certificates};
use testudo_model::{CaPhase, Phase, TrustBundle, TrustBundleSpec};
use testudo_pki::CaOptions;
use testudo_store::{DirStore, Store, StoreError, no_core_dumps, parse_location};
use testudo_store_kube::KubeStore;
use tracing::{error, info, warn};

use crate::authority::Authority;
use crate::documents::{self, Documents};
use crate::fenced::Fenced;
use crate::gates::Gates;
use crate::numbers::{Numbers, Standing};
use crate::pace;
use crate::register::Kept;
use crate::requests::Debts;
use crate::revocation::Absent;
use crate::safe::directory::DirSafe;
use crate::safe::kube::{KubeSafe, KubeSafeOptions};
use crate::safe::{Document, Safe, Term, Unusable};
use crate::steady::Steady;
use crate::stragglers::Patience;
use crate::world::World;

/// What the controller is told at its start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the cluster's objects are: `dir:PATH`.
    pub store: String,
    /// What is shown of it.
    pub serving: Serving,
}

/// What is shown over HTTP, and where.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// Where metrics, liveness and readiness are served; nowhere without it.
    pub metrics: Option<SocketAddr>,
    /// The build, for the metrics.
    pub version: String,
}

/// How often everything is looked at although nothing was told.
const IDLE: Duration = Duration::from_secs(30);

/// How soon it is tried again to lead on Kubernetes, where what is wrong may be put right.
const ANEW: Duration = Duration::from_secs(5);

/// The same complaint is not logged again before this time.
const AGAIN: Duration = Duration::from_secs(60);

/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Runs the controller of a directory store until `shutdown` is ready. An error means that it cannot
/// work at all; errors with single objects are logged and leave the others alone.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let location = parse_location(&options.store).map_err(anyhow::Error::msg)?;
    let store = DirStore::at(&location)?;
    let safe = DirSafe::open(&store);
    let numbers = Numbers::new(&options.serving.version, false);
    let _server = numbers.serve(options.serving.metrics).await?;
    lead(store, safe, &numbers, &location.to_string(), shutdown).await
}

/// Runs the controller of a Kubernetes cluster until `shutdown` is ready. What keeps it from working (the
/// lead was lost, the CA's Secret is gone or cannot be read) is logged and tried again; nothing changes
/// in the cluster meanwhile.
pub async fn run_on_kubernetes(
    store: KubeStore,
    options: KubeSafeOptions,
    serving: Serving,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    let name = format!("kube, namespace {}", options.namespace);
    store.agents_are(crate::admission::agents(&options.namespace, &options.agent));
    let numbers = Numbers::new(&serving.version, true);
    let _server = numbers.serve(serving.metrics).await?;
    let mut safe = None;
    let mut complaint = Complaint::default();
    loop {
        let attempt = async {
            let safe = match &safe {
                Some(safe) => KubeSafe::clone(safe),
                None => {
                    let made = KubeSafe::new(store.client().await?, options.clone());
                    safe.insert(made).clone()
                }
            };
            lead(store.clone(), safe, &numbers, &name, &mut shutdown).await
        };
        match attempt.await {
            Ok(()) => return Ok(()),
            Err(error) => {
                let text = format!("{error:#}");
                if error.is::<LeadLost>() {
                    // It led meanwhile: that this is over is news, also where it was so a moment ago.
                    complaint = Complaint::default();
                }
                complaint.say(&text);
                numbers.unready(Some(text));
            }
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(ANEW) => {}
        }
    }
}

/// Another one may lead now.
#[derive(Debug, thiserror::Error)]
#[error("the lead is lost: {0}")]
struct LeadLost(String);

/// Waits for the lead and runs the controller until `shutdown` is ready or the lead is lost, which is an
/// error. `name` is the store's, for the log.
pub async fn lead<S: Store, K: Safe>(
    store: S,
    safe: K,
    numbers: &Numbers,
    name: &str,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    no_core_dumps().context("turning core dumps off")?;
    tokio::pin!(shutdown);
    numbers.stands(Standing::Waits);
    let mut term = tokio::select! {
        () = &mut shutdown => return Ok(()),
        term = safe.lead() => term?,
    };
    numbers.stands(Standing::Leads);
    let fence = term.fence();
    let work = async {
        let store = Fenced { store, fence };
        let mut controller = Controller::open(store, safe, numbers.clone()).await?;
        info!(store = %name, "controller started");
        numbers.unready(None);
        controller.work().await
    };
    let outcome = tokio::select! {
        () = &mut shutdown => Ok(()),
        done = work => done,
        why = term.lost() => Err(LeadLost(why).into()),
    };
    numbers.stands(Standing::Waits);
    term.resign().await;
    if outcome.is_ok() {
        info!("controller stopped");
    }
    outcome
}

/// Logs errors, and the same one not again and again.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<(String, Instant)>,
}

impl Complaint {
    /// Whether it was said now.
    pub(crate) fn say(&mut self, text: &str) -> bool {
        let now = Instant::now();
        let said = |(last, at): &(String, Instant)| last == text && now < *at + AGAIN;
        let news = !self.last.as_ref().is_some_and(said);
        if news {
            error!("{text}; trying again");
            self.last = Some((text.to_owned(), now));
        }
        news
    }
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
    /// What was told last of why the CA is not replaced.
    pub(crate) held_told: Option<String>,
    /// What the documents of the safe are like.
    pub(crate) documents: Documents,
    /// What is shown to Prometheus.
    pub(crate) numbers: Numbers,
    /// How long the step of the roll-out that goes on has been waited for.
    pub(crate) wave: Patience<(Phase, u64)>,
    /// The same of the renewal of the nodes' certificates, by its number.
    pub(crate) renewal_wave: Patience<u64>,
    /// The same of the step of the CA's rotation.
    pub(crate) ca_wave: Patience<(CaPhase, u64)>,
    /// What was told of a policy that cannot be read.
    pub(crate) unreadable_told: Option<String>,
    /// What was done with the gates of nodes.
    pub(crate) gates: Gates,
    /// When the policy's and the bundle's status were written last.
    pub(crate) written: [Option<Instant>; 2],
    /// The part of the round that goes on, for the metrics.
    part: &'static str,
    /// The bundle as we last published it.
    published: Option<TrustBundleSpec>,
    /// The answers that this run has logged already as denied, by request.
    pub(crate) warned: BTreeMap<String, String>,
    /// What nodes were signed last, for those who ask the same again.
    pub(crate) owed: Debts,
}

/// Which status was written when: the index into [`Controller::written`].
pub(crate) const POLICY: usize = 0;
pub(crate) const BUNDLE: usize = 1;

impl<S: Store, K: Safe> Controller<S, K> {
    pub(crate) async fn open(store: S, safe: K, numbers: Numbers) -> anyhow::Result<Self> {
        let world = World::open(&store).await?;
        match Self::begin(&store, &safe, &world).await {
            Ok((authority, kept)) => {
                let told = world.bundles.objects.get(CLUSTER);
                Ok(Self {
                    rotation_note: told.map_or_else(String::new, |b| b.status.message.clone()),
                    steady: Steady::new(Instant::now(), seconds()),
                    end_told: None,
                    held_told: None,
                    kept,
                    absent: Absent::default(),
                    documents: Documents::default(),
                    numbers,
                    wave: Patience::default(),
                    renewal_wave: Patience::default(),
                    ca_wave: Patience::default(),
                    unreadable_told: None,
                    gates: Gates::default(),
                    written: [None; 2],
                    part: "start",
                    store,
                    safe,
                    authority,
                    world,
                    published: None,
                    warned: BTreeMap::new(),
                    owed: Debts::new(),
                })
            }
            Err(error) => {
                documents::tell_of_the_start(&store, &safe, &world, &error).await;
                Err(error)
            }
        }
    }

    /// Takes up what the safe holds.
    async fn begin(store: &S, safe: &K, world: &World) -> anyhow::Result<(Authority, Kept)> {
        let options = CaOptions {
            lifetime: settings(world).ca_lifetime.0.as_secs(),
            ..CaOptions::default()
        };
        let policy = world.policies.objects.get(CLUSTER);
        let asked = policy.map(|p| p.spec.certificates.ca_rotation);
        // The watch may have begun before another controller published it.
        let trusted = store.get::<TrustBundleKind>(CLUSTER).await;
        let trusts = |bundle: &TrustBundle| !bundle.spec.certificates.is_empty();
        let published = match trusted {
            Ok(bundle) => bundle.as_ref().is_some_and(trusts),
            // It is there, and will be written anew.
            Err(StoreError::Invalid(_)) => true,
            Err(error) => return Err(error.into()),
        };
        if published && safe.read(Document::Authority).await?.is_none() {
            let text = format!(
                "{} is gone, and nodes trust the CA that was in it: restore it, or delete the \
                 TrustBundle to begin anew with a CA that no node trusts yet",
                safe.place(Document::Authority)
            );
            let reason = "CaMissing";
            return Err(Unusable { reason, text }.into());
        }
        let kept = Kept::begin(safe, published).await?;
        let random = &mut SystemRandom::new();
        let register = &kept.register;
        let authority = Authority::open(safe, register, &options, asked, seconds(), random)
            .await
            .context("the controller cannot sign certificates")?;
        Ok((authority, kept))
    }

    /// Does what is to be done, again and again; ends only with an error.
    async fn work(&mut self) -> anyhow::Result<()> {
        let mut complaint = Complaint::default();
        loop {
            let began = Instant::now();
            self.numbers.round();
            let done = self.reconcile().await;
            self.show();
            let pause = match done {
                Ok(()) => self.idle(),
                Err(e) if e.is_conflict() => RETRY,
                Err(e) => {
                    complaint.say(&e.to_string());
                    self.numbers.failed(self.part);
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                alive = self.world.changed() => {
                    anyhow::ensure!(alive, "the store's watch has ended");
                }
                () = self.safe.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            self.gather(began + pace::round(self.world.nodes.objects.len()))
                .await?;
        }
    }

    /// Takes in what is told until then: no watch is held up, and all of it is one round's.
    async fn gather(&mut self, until: Instant) -> anyhow::Result<()> {
        while Instant::now() < until {
            tokio::select! {
                alive = self.world.changed() => {
                    anyhow::ensure!(alive, "the store's watch has ended");
                }
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
        Ok(())
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

    /// Until when a status that only tells of progress is held back; `None`: it may be written now.
    pub(crate) fn hold(&self, which: usize) -> Option<Instant> {
        let nodes = self.world.nodes.objects.len();
        let then = self.written[which]? + pace::progress(nodes);
        (Instant::now() < then).then_some(then)
    }

    /// Does all that is to be done now.
    pub(crate) async fn reconcile(&mut self) -> Result<(), StoreError> {
        self.part = "documents";
        self.see_to_documents().await?;
        self.part = "bundle";
        self.publish_bundle().await?;
        self.part = "removal";
        self.keep_out().await?;
        self.part = "requests";
        let answered = self.answer_requests().await;
        // A register that cannot be written keeps nobody from leading.
        self.part = "rollout";
        self.lead().await?;
        self.part = "gates";
        self.open_gates().await;
        self.part = "rotation";
        self.rotate().await?;
        self.part = "connections";
        let judged = self.judge_connections().await;
        if answered.is_err() {
            self.part = "requests";
        }
        answered.and(judged)
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
        let mut object = TrustBundle::new(CLUSTER, spec.clone());
        // Only over what was seen; what cannot be read is written over.
        let broken = self.world.bundles.broken();
        if !broken.iter().any(|name| name == CLUSTER) {
            object.metadata.resource_version =
                published.and_then(|b| b.metadata.resource_version.clone());
        }
        let applied = match self.store.apply(object).await {
            Err(conflict) if conflict.is_conflict() => {
                let bundles = &mut self.world.bundles;
                match bundles.refresh(&self.store, CLUSTER).await {
                    Err(StoreError::Invalid(_)) => drop(bundles.objects.remove(CLUSTER)),
                    refreshed => refreshed?,
                }
                return Err(conflict);
            }
            applied => applied?,
        };
        info!(cas = self.authority.bundle.len(), "trust bundle published");
        self.world.bundles.put(applied.object);
        self.published = Some(spec);
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
