//! The agent's life from start to stop.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use testudo_store::{Store, no_core_dumps};
use testudo_store_kube::{AnyStore, NodePods, Writer};
use tokio::sync::mpsc::Receiver;

use crate::Options;
use crate::api::server::Server;
use crate::bound::{self, Doubt};
use crate::choice::{ChoosingHost, Side, expects_user};
use crate::clock::Clock;
use crate::enforcement::{Enforcement, PolicyFile};
use crate::files;
use crate::host::Host;
use crate::kernel::KernelSide;
use crate::metrics;
use crate::node::Node;
use crate::objects::Watches;
use crate::publish::Publisher;
use crate::sockets::{Datagram, Sockets};
use crate::user::UserSide;

/// Runs the agent until `shutdown` is ready. An error means that the node stays closed and that
/// the agent is to be started again.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<()> {
    no_core_dumps().context("turning core dumps off")?;
    let host = Box::new(ChoosingHost::new(
        Box::new(UserSide::new(&options)),
        Box::new(KernelSide::new(&options)),
        &options.state_dir,
    ));
    let clock = Clock::start();
    let (host, enforcement) = close_first(&options, host)?;
    prepare(&options);
    bound::take_identity(&options).await?;
    let writer = Writer::Agent(options.node.clone());
    let store = AnyStore::open(&options.store, writer).context("opening the store")?;
    let pods = match (&store, options.pods_from_node) {
        (AnyStore::Kube(store), true) => Some(store.watch_pods(&options.node).await?),
        (AnyStore::Dir(_), true) => bail!("a directory has no Node to take pods' prefixes from"),
        (_, false) => None,
    };
    let sources = Sources { store, pods };
    run_on(options, clock, host, enforcement, sources, shutdown).await
}

/// What an agent goes by.
pub(crate) struct Sources<S> {
    pub(crate) store: S,
    /// What this node's Node says of its pods, where that counts.
    pub(crate) pods: Option<Receiver<NodePods>>,
}

/// Does at the start what may cost the host a packet under traffic. Where the kernel's datapath can be
/// had and nothing speaks for ours, the host's routing is left alone: ours may never come.
fn prepare(options: &Options) {
    let expected = expects_user(options.datapath, &options.state_dir);
    if !expected && KernelSide::new(options).probe().is_ok() {
        return;
    }
    if let Err(error) = UserSide::new(options).prepare() {
        tracing::warn!("to switch encryption on may cost a packet: {error}");
    }
}

/// Before anything else: what was dropped when the agent last ran is dropped again. The host may
/// have been booted since.
pub(crate) fn close_first(
    options: &Options,
    mut host: Box<dyn Host>,
) -> Result<(Box<dyn Host>, Enforcement<PolicyFile>)> {
    files::make_private_dir(&options.state_dir)?;
    let file = PolicyFile::new(&options.state_dir);
    let kept = match file.load() {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!("{error:#}; the host's rules stay as they are until the store is read");
            return Ok((host, Enforcement::of_unknown(file)));
        }
    };
    if let Some(policy) = &kept
        && let Err(error) = host.close(policy)
    {
        // The loop tries again, and acknowledges nothing before it has succeeded.
        tracing::error!("the host could not be closed at the start: {error}");
    }
    Ok((host, Enforcement::new(file, kept)))
}

pub(crate) async fn run_on<S: Store>(
    options: Options,
    clock: Clock,
    host: Box<dyn Host>,
    enforcement: Enforcement<PolicyFile>,
    sources: Sources<S>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let (_server, mut calls) = Server::start(&options.socket)?;
    let (_metrics, mut questions) = metrics::start(options.metrics).await?;
    let Sources { store, pods } = sources;
    let mut watches = Watches::start(&store, pods)
        .await
        .context("watching the store")?;
    let publisher = Publisher::start(store, options.node.clone());
    let mut node = Node::new(options, host, enforcement)?;
    let bell = Arc::clone(&node.bell);
    let memory_bell = Arc::clone(&node.memory_bell);
    tracing::info!(node = %node.identity.name, uid = %node.identity.uid, "the agent runs");
    let mut doubt = Doubt::default();
    let mut shutdown = pin!(shutdown);
    loop {
        let now = clock.now();
        node.update(now);
        if node.has_news() {
            publisher.tell(node.news.clone());
        }
        if let Some(reason) = &node.core.failed {
            let reason = reason.clone();
            node.stop(clock.now());
            bail!("the datapath has ended: {reason}; the node stays closed until the next start");
        }
        if let Err(error) = doubt.look(&node, now).await {
            node.stop(clock.now());
            return Err(error);
        }
        let deadline = clock.instant(node.deadline(now));
        tokio::select! {
            () = &mut shutdown => break,
            told = watches.next() => {
                let Some(told) = told else {
                    bail!("the store has ended its watches; the agent is to be started again");
                };
                node.take(told);
                while let Some(told) = watches.try_next() {
                    node.take(told);
                }
            }
            datagrams = receive(&mut node.core.sockets) => {
                node.core.datagrams(datagrams, clock.now());
            }
            () = bell.notified() => {
                if node.datapath_rang(clock.now()) {
                    bell.notify_one();
                }
            }
            () = memory_bell.notified() => node.has_written(),
            Some((request, reply)) = calls.recv() => {
                let _ = reply.send(node.answer(&request, clock.now()));
            }
            Some(question) = questions.recv() => node.answer_question(question, clock.now()),
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
    }
    tracing::info!(node = %node.identity.name, "the agent stops");
    node.stop(clock.now());
    Ok(())
}

async fn receive(sockets: &mut Option<Sockets>) -> Vec<Datagram> {
    match sockets {
        Some(sockets) => sockets.receive().await,
        None => pending().await,
    }
}
