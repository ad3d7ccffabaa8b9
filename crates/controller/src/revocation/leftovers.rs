//! Removes what nodes that are out have left in the store.

use std::time::{Duration, Instant};

use testudo_model::node::NodeEncryptionKind;
use testudo_model::request::CertificateRequestKind;
use testudo_model::{CertificateRequest, Kind, NodeEncryption};
use testudo_store::Store;
use tracing::info;

use super::SWEEP;
use crate::register::Holder;
use crate::run::Controller;
use crate::safe::{Members, Safe};
use crate::stragglers::first;

/// One that could not be removed is tried again after this time.
const STUCK: Duration = Duration::from_secs(10);
/// Once one could not be removed, no more are tried in this round after this time: where each takes as long
/// as a call may take, the controller has other things to do.
const ROUND: Duration = Duration::from_secs(5);

/// How soon an object is looked at again that was written while it was to be removed.
const SOON: Duration = Duration::from_millis(100);

impl<S: Store, K: Safe> Controller<S, K> {
    /// Removes what nodes that are out have in the store. An agent that does not know yet that it is out
    /// may write it again. What cannot be removed is told and counted, and keeps the controller from nothing
    /// else.
    pub(crate) async fn sweep(&mut self, members: &Members) {
        let register = &self.kept.register;
        let is_out = |name: &str, uid: &str| {
            let gone = match members {
                Members::These(nodes) => nodes.get(name).is_none_or(|there| there != uid),
                Members::ThosePublished => false,
            };
            gone || register.is_out(&Holder {
                name: name.to_owned(),
                uid: uid.to_owned(),
            })
        };
        let nodes = self.world.nodes.objects.values();
        let out = nodes.filter(|node| is_out(node.name(), node.spec.uid.as_str()));
        let nodes: Vec<NodeEncryption> = out.cloned().collect();
        let requests = self.world.requests.objects.values();
        // What was asked for and not answered yet is answered first.
        let out = requests.filter(|request| {
            let answered = request.status.certificate.is_some();
            answered && is_out(request.spec.node.as_str(), request.spec.uid.as_str())
        });
        let requests: Vec<CertificateRequest> = out.cloned().collect();
        let began = Instant::now();
        self.absent.swept.retain(|_, at| began < *at + SWEEP);
        self.absent.stuck.retain(|_, then| began < *then);
        // Certificates that were given out weigh less than nodes that others still go by.
        let nodes = nodes.into_iter().map(|node| Left::Node(Box::new(node)));
        let mut stuck = Vec::new();
        let requests = requests.into_iter();
        let requests = requests.map(|request| Left::Request(Box::new(request)));
        for left in nodes.chain(requests) {
            let key = left.key();
            if let Some(then) = self.absent.stuck.get(&key) {
                self.absent.look_at(*then);
                continue;
            }
            if !stuck.is_empty() && began.elapsed() > ROUND {
                self.absent.look_at(Instant::now());
                break;
            }
            self.numbers.beat();
            if let Err(error) = self.remove(left, members).await {
                stuck.push(format!("{} {} ({error:#})", key.0, key.1));
                let then = Instant::now() + STUCK;
                self.absent.look_at(then);
                self.absent.stuck.insert(key, then);
            }
        }
        if !stuck.is_empty() {
            self.numbers.failed("removal");
            let names = first(&stuck);
            let text = format!("what nodes that are gone have left is not removed: {names}");
            self.absent.stuck_complaint.say(&text);
        }
    }

    /// Removes one such object, if it is to go now.
    async fn remove(&mut self, left: Left, members: &Members) -> anyhow::Result<()> {
        let node = match left {
            Left::Node(node) => *node,
            Left::Request(request) => return self.remove_request(*request, members).await,
        };
        let now = Instant::now();
        let (name, uid) = (node.name().to_owned(), node.spec.uid.as_str());
        if let Some(at) = self.absent.swept.get(&name) {
            let then = *at + SWEEP;
            self.absent.look_at(then);
            return Ok(());
        }
        // Who has just come may not be among the members yet.
        let listed = matches!(members, Members::These(_));
        if listed && !self.safe.is_gone(&name, uid).await? {
            return Ok(());
        }
        // What is seen of one that cannot be read is not what stands there. In a cluster it is known of
        // which life it is; a broken file has none.
        let broken = self.world.nodes.broken().contains(&name);
        let deleted = match (broken, listed) {
            (false, _) => self.store.delete_seen(&node).await,
            (true, true) => {
                let mut life = node.clone();
                life.metadata.resource_version = None;
                self.store.delete_seen(&life).await
            }
            (true, false) => self.store.delete::<NodeEncryptionKind>(&name).await,
        };
        if matches!(&deleted, Err(e) if e.is_conflict()) {
            // Somebody has written it, and may be another node of that name.
            self.world.nodes.refresh(&self.store, &name).await?;
            self.absent.look_at(now + SOON);
            return Ok(());
        }
        deleted?;
        self.world.nodes.objects.remove(&name);
        info!(node = name, "the object of a node that is gone is removed");
        self.absent.swept.insert(name, now);
        Ok(())
    }
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// Removes this request and no other of the name.
    async fn remove_request(
        &mut self,
        request: CertificateRequest,
        members: &Members,
    ) -> anyhow::Result<()> {
        let (node, uid) = (request.spec.node.as_str(), request.spec.uid.as_str());
        // Who has just come may not be among the members yet, and may not have seen its answer.
        let listed = matches!(members, Members::These(_));
        if listed && !self.safe.is_gone(node, uid).await? {
            return Ok(());
        }
        let deleted = self.store.delete_seen(&request).await;
        if matches!(&deleted, Err(e) if e.is_conflict()) {
            let requests = &mut self.world.requests;
            requests.refresh(&self.store, request.name()).await?;
            self.absent.look_at(Instant::now() + SOON);
            return Ok(());
        }
        deleted?;
        self.world.requests.objects.remove(request.name());
        Ok(())
    }
}

/// What a node that is out has left in the store.
enum Left {
    Node(Box<NodeEncryption>),
    Request(Box<CertificateRequest>),
}

impl Left {
    fn key(&self) -> (&'static str, String) {
        match self {
            Self::Node(node) => (NodeEncryptionKind::KIND, node.name().to_owned()),
            Self::Request(request) => (CertificateRequestKind::KIND, request.name().to_owned()),
        }
    }
}
