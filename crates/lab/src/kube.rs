//! A lab whose nodes are nodes of a real API server: what is made there and removed again, and how the
//! daemons get to it.
//!
//! ```text
//! kube/admin.kubeconfig     the caller's own, the one context of it that is meant
//! kube/installed            there are objects of this lab in the API server
//! kube/controller/          kubeconfig and token of the controller
//! nodes/n1/kube/            those of the agent of n1, and the UID of its Node
//! ```
//!
//! Objects carry the label `testudo.dev/lab` with the lab's name. A cluster has one Testudo: where one is
//! already that is not of a lab of this name, nothing is touched. An agent reaches the API server at
//! the loopback of its own namespace, where the supervisor listens (`relay`): nothing of that crosses the
//! underlay.

mod access;
mod manifests;
mod objects;
mod relay;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::sync::mpsc;

use crate::lab::Lab;
use crate::lifecycle::Progress;
use crate::place::{make_directory, write_atomic};
use access::Credentials;
use objects::Api;

pub(crate) use access::{choose, kubeconfig_of_agent, kubeconfig_of_controller};

/// The namespace of the controller and the ServiceAccounts.
pub(crate) const NAMESPACE: &str = "testudo-system";
/// The label of all that a lab makes in an API server; its value is the lab's name.
pub(crate) const LABEL: &str = "testudo.dev/lab";

/// How often tokens and Nodes are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Tokens that are older are renewed; they are valid for twice as long.
const RENEW: Duration = Duration::from_secs(1800);

fn admin(lab: &Lab) -> PathBuf {
    lab.directory().join("kube/admin.kubeconfig")
}

fn marker(lab: &Lab) -> PathBuf {
    lab.directory().join("kube/installed")
}

/// Where the lab's objects are, as every verb names it.
pub(crate) fn location(lab: &Lab) -> testudo_store::Location {
    testudo_store::Location::Kubernetes(testudo_store::Kubernetes {
        kubeconfig: Some(admin(lab)),
        context: None,
    })
}

/// Keeps the kubeconfig that the lab goes by.
pub(crate) fn keep(lab: &Lab, kubeconfig: &[u8]) -> Result<()> {
    make_directory(&lab.directory().join("kube"))?;
    write_atomic(&admin(lab), kubeconfig)
}

/// Makes all that the lab has in the API server, but for what its daemons write.
pub(crate) fn install(lab: &Lab, progress: Progress<'_>) -> Result<()> {
    let server = lab.server().context("a lab of an API server")?.to_owned();
    progress(&format!("lab {}: nodes of {server}", lab.name()));
    crate::cluster::block_on(async {
        let api = Api::open(lab).await?;
        api.check_ours(lab).await?;
        api.remove(lab).await.context("what an earlier lab left")?;
        write_atomic(&marker(lab), lab.id().as_bytes())?;
        api.define(lab.name()).await?;
        for manifest in manifests::of_cluster(lab.name()) {
            api.apply(&manifest).await?;
        }
        for node in &lab.layout().nodes {
            add_node(lab, &api, &node.name).await?;
        }
        api.renew(lab, &Credentials::controller(lab)).await?;
        lab.fill(&lab.store()?).await
    })
}

/// The Node of a node, and its agent's credentials.
async fn add_node(lab: &Lab, api: &Api, name: &str) -> Result<()> {
    make_directory(&lab.node_dir(name).join("kube"))?;
    let uid = api.apply(&manifests::node(lab.name(), name)).await?;
    api.renew(lab, &Credentials::agent(lab, name, &uid)).await
}

/// The same of a lab that is up.
pub(crate) fn install_node(lab: &Lab, name: &str) -> Result<()> {
    crate::cluster::block_on(async { add_node(lab, &Api::open(lab).await?, name).await })
}

/// Removes a Node; the controller does the rest.
pub(crate) fn remove_node(lab: &Lab, name: &str) -> Result<()> {
    crate::cluster::block_on(async { Api::open(lab).await?.delete_node(name).await })
}

/// Removes all that the lab has in the API server. True: there was something.
pub(crate) fn remove(lab: &Lab, progress: Progress<'_>) -> Result<bool> {
    if lab.server().is_none() || !marker(lab).exists() {
        return Ok(false);
    }
    let server = lab.server().unwrap_or_default().to_owned();
    progress(&format!("removing the lab's objects from {server}"));
    let removed = crate::cluster::block_on(async { Api::open(lab).await?.remove(lab).await });
    removed.with_context(|| {
        format!(
            "objects of lab {0} are left there; when it answers again: kubectl delete \
             node,namespace,clusterrole,clusterrolebinding,crd -l {LABEL}={0}",
            lab.name()
        )
    })?;
    Ok(true)
}

/// What the supervisor does for the API server's sake, beside its daemons. Ends with the process.
pub(crate) struct Care {
    changed: mpsc::UnboundedSender<Lab>,
}

impl Care {
    /// Begins; none for a lab with a directory. Listens in all nodes when it returns.
    pub(crate) fn start(lab: &Lab) -> Result<Option<Self>> {
        if lab.server().is_none() {
            return Ok(None);
        }
        let (changed, receiver) = mpsc::unbounded_channel();
        let mut listeners = relay::Listeners::default();
        listeners.open(lab)?;
        let lab = lab.clone();
        std::thread::Builder::new()
            .name("kube".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(care(lab, listeners, receiver)),
                    Err(error) => eprintln!("no way to the API server: {error}"),
                }
            })
            .context("start a thread")?;
        Ok(Some(Self { changed }))
    }

    /// The lab has other nodes now.
    pub(crate) fn tell(&self, lab: &Lab) {
        let _ = self.changed.send(lab.clone());
    }
}

async fn care(
    mut lab: Lab,
    mut listeners: relay::Listeners,
    mut changed: mpsc::UnboundedReceiver<Lab>,
) {
    listeners.serve(&lab);
    let mut made: BTreeMap<String, Instant> = BTreeMap::new();
    let mut told = String::new();
    loop {
        match tokio::time::timeout(LOOK, changed.recv()).await {
            Ok(Some(now)) => {
                lab = now;
                if let Err(error) = listeners.open(&lab) {
                    eprintln!("{error:#}");
                }
                listeners.serve(&lab);
                continue;
            }
            Ok(None) => return,
            Err(_) => {}
        }
        // An outage is said once.
        let said = match look(&lab, &mut made).await {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        if said != told && !(said.is_empty() || told.is_empty())
            || told.is_empty() != said.is_empty()
        {
            match said.is_empty() {
                true => eprintln!("tokens can be renewed again"),
                false => eprintln!("tokens cannot be renewed: {said}"),
            }
        }
        told = said;
    }
}

/// Renews tokens in time, and at once where a Node was made anew: its agent starts again as that one.
async fn look(lab: &Lab, made: &mut BTreeMap<String, Instant>) -> Result<()> {
    let api = Api::open(lab).await?;
    let uids = api.nodes(lab.name()).await?;
    for node in &lab.layout().nodes {
        let Some(uid) = uids.get(&node.name) else {
            continue;
        };
        let credentials = Credentials::agent(lab, &node.name, uid);
        let another = !credentials.are_of_this_node();
        let since = *made.entry(node.name.clone()).or_insert_with(Instant::now);
        if !another && since.elapsed() < RENEW {
            continue;
        }
        api.renew(lab, &credentials).await?;
        made.insert(node.name.clone(), Instant::now());
        if another && let Some(agent) = lab.agent_process(&node.name) {
            eprintln!("{}: its Node is another one now", node.name);
            agent.signal(Signal::TERM);
        }
    }
    let since = *made.entry(String::new()).or_insert_with(Instant::now);
    if since.elapsed() >= RENEW {
        api.renew(lab, &Credentials::controller(lab)).await?;
        made.insert(String::new(), Instant::now());
    }
    Ok(())
}

/// What cannot be a lab of an API server.
pub(crate) fn check(place: &crate::place::Place) -> Result<()> {
    ensure!(
        *place == crate::place::Place::Machine,
        "a lab with --store kube needs root: a user's lab has no way to the API server"
    );
    Ok(())
}
