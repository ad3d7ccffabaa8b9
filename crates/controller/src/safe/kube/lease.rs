//! The lead by a Lease: the decisions are [`crate::election`]'s.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::json;
use testudo_crypto::{Random, SystemRandom};
use testudo_model::UnixTime;
use testudo_pki::hex;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{KubeSafeOptions, call, code};
use crate::election::{Action, Election, Record, Settings};
use crate::run::seconds;
use crate::safe::{Fence, Term};

/// Name of the Lease.
pub const LEASE: &str = "testudo-controller";

/// The Lease that is held, and the task that renews it.
pub struct KubeTerm {
    shared: Arc<Mutex<Election>>,
    began: Instant,
    lost: watch::Receiver<Option<String>>,
    lease: Lease,
    task: tokio::task::JoinHandle<()>,
    resigned: Arc<AtomicBool>,
}

impl KubeTerm {
    pub(super) async fn begin(client: Client, options: &KubeSafeOptions) -> anyhow::Result<Self> {
        let mut salt = [0; 4];
        SystemRandom::new().fill(&mut salt);
        let lease = Lease {
            api: Api::namespaced_with(client, &options.namespace, &resource()),
            me: format!("{}_{}", options.me, hex(&salt)),
        };
        let began = Instant::now();
        let mut election = Election::new(lease.me.as_str(), Settings::default());
        let mut told = String::new();
        loop {
            let text = match lease.turn(&mut election, began).await {
                Ok(_) if election.is_held(began.elapsed()) => break,
                Ok(_) => format!("{} leads", election.holder().unwrap_or("nobody")),
                Err(error) => format!("the Lease {LEASE} cannot be had: {error:#}"),
            };
            if text != told {
                info!("waiting for the lead: {text}");
                told = text;
            }
            tokio::time::sleep(wait(&election, began)).await;
        }
        info!(me = %lease.me, "leading");
        let shared = Arc::new(Mutex::new(election));
        let (sender, lost) = watch::channel(None);
        let task = tokio::spawn(renew(lease.clone(), shared.clone(), began, sender));
        Ok(Self {
            shared,
            began,
            lost,
            lease,
            task,
            resigned: Arc::default(),
        })
    }
}

impl Term for KubeTerm {
    fn is_held(&self) -> bool {
        self.fence().is_open()
    }

    fn fence(&self) -> Fence {
        let (shared, began) = (Arc::clone(&self.shared), self.began);
        let (lost, resigned) = (self.lost.clone(), Arc::clone(&self.resigned));
        Fence(Arc::new(move || {
            let election = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let held = election.is_held(began.elapsed());
            held && lost.borrow().is_none() && !resigned.load(Ordering::Acquire)
        }))
    }

    async fn lost(&mut self) -> String {
        loop {
            if let Some(why) = self.lost.borrow_and_update().clone() {
                return why;
            }
            if self.lost.changed().await.is_err() {
                return "nobody renews it".to_owned();
            }
        }
    }

    async fn resign(self) {
        self.task.abort();
        // Whoever still holds the fence writes nothing from here on.
        let held = self.is_held();
        self.resigned.store(true, Ordering::Release);
        if held && let Err(error) = self.lease.release().await {
            warn!("the Lease {LEASE} is left to run out: {error:#}");
        }
    }
}

/// Renews until the lead is lost. That it is lost is told in time, also while a call hangs.
async fn renew(
    lease: Lease,
    shared: Arc<Mutex<Election>>,
    began: Instant,
    lost: watch::Sender<Option<String>>,
) {
    let lock = || {
        shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    };
    loop {
        let mut election = lock();
        let now = began.elapsed();
        if let Action::Lost(why) = election.next(now) {
            let _ = lost.send(Some(why));
            return;
        }
        let left = election.until().unwrap_or(now).saturating_sub(now);
        let turn = tokio::time::timeout(left, lease.turn(&mut election, began)).await;
        if let Ok(Err(error)) = &turn {
            warn!("the Lease {LEASE} is not renewed: {error:#}");
        }
        if turn.is_ok() {
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = election.clone();
        }
        let left = election
            .until()
            .unwrap_or(now)
            .saturating_sub(began.elapsed());
        tokio::time::sleep(wait(&election, began).min(left)).await;
    }
}

/// How long until the next turn.
fn wait(election: &Election, began: Instant) -> Duration {
    match election.next(began.elapsed()) {
        Action::Wait(time) => time.max(Duration::from_millis(50)),
        Action::Write { .. } => Duration::from_millis(50),
        Action::Lost(_) => Duration::ZERO,
    }
}

/// The Lease in the API.
#[derive(Clone)]
struct Lease {
    api: Api<DynamicObject>,
    me: String,
}

impl Lease {
    /// Reads it and writes it if that is to be done.
    async fn turn(&self, election: &mut Election, began: Instant) -> anyhow::Result<()> {
        let now = began.elapsed();
        let read = match call(self.api.get_opt(LEASE)).await {
            Ok(read) => read,
            Err(error) => {
                election.failed(now);
                return Err(error);
            }
        };
        election.read(read.as_ref().map(record), began.elapsed());
        let now = began.elapsed();
        let Action::Write { transitions } = election.next(now) else {
            return Ok(());
        };
        let object = self.object(read.as_ref(), &self.me, transitions)?;
        let params = PostParams::default();
        let written = match &read {
            None => call(self.api.create(&params, &object)).await,
            Some(_) => call(self.api.replace(LEASE, &params, &object)).await,
        };
        match written {
            Ok(written) => election.wrote(record(&written), now),
            // Somebody was faster, which is no trouble.
            Err(error) if code(&error) == 409 => election.failed(now),
            Err(error) => {
                election.failed(now);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Leaves it to whoever comes next.
    async fn release(&self) -> anyhow::Result<()> {
        let read = call(self.api.get_opt(LEASE)).await?;
        if let Some(read) = read.filter(|read| record(read).holder == self.me) {
            let transitions = record(&read).transitions;
            let object = self.object(Some(&read), "", transitions)?;
            call(self.api.replace(LEASE, &PostParams::default(), &object)).await?;
        }
        Ok(())
    }

    fn object(
        &self,
        old: Option<&DynamicObject>,
        holder: &str,
        transitions: i64,
    ) -> anyhow::Result<DynamicObject> {
        let mut object = match old {
            Some(old) => old.clone(),
            None => DynamicObject::new(LEASE, &resource()),
        };
        let time = UnixTime(i64::try_from(seconds())?).to_rfc3339();
        let time = format!("{}.000000Z", time.trim_end_matches('Z'));
        let before = old.map(record);
        let same = before.is_some_and(|record| record.holder == holder);
        let acquired = object.data.pointer("/spec/acquireTime").cloned();
        // Whoever releases it leaves a time of which only that it is positive matters.
        let lease = match holder {
            "" => 1,
            _ => Settings::default().lease.as_secs(),
        };
        object.data["spec"] = json!({
            "holderIdentity": holder,
            "leaseDurationSeconds": lease,
            "acquireTime": acquired.filter(|_| same).unwrap_or_else(|| json!(time)),
            "renewTime": time,
            "leaseTransitions": transitions,
        });
        Ok(object)
    }
}

fn record(object: &DynamicObject) -> Record {
    let spec = &object.data["spec"];
    let seconds = spec["leaseDurationSeconds"].as_u64();
    Record {
        holder: spec["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        lease: seconds.map_or(Settings::default().lease, Duration::from_secs),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec["leaseTransitions"].as_i64().unwrap_or(0),
    }
}

fn resource() -> ApiResource {
    ApiResource {
        group: "coordination.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "coordination.k8s.io/v1".to_owned(),
        kind: "Lease".to_owned(),
        plural: "leases".to_owned(),
    }
}
