//! Takes back the certificates of nodes that are gone.
//!
//! A node is gone when somebody has removed it, when whoever knows the cluster's nodes knows it no more,
//! or, where nobody does, when its object has stayed away for a while: an agent that runs writes it again
//! at once. What happens then happens in this order, so that a controller that is killed in between goes
//! on where it was: the register says that its certificates are taken back, the CAs' lists say so, the
//! bundle is published with them, the node's object goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::request::CertificateRequestKind;
use testudo_model::{EncryptionPolicyStatus, Kind, NodeEncryption};
use testudo_pki::hex;
use testudo_store::{Store, StoreError};
use tracing::{info, warn};

use crate::documents;
use crate::leader::first;
use crate::news::{About, News};
use crate::register::{Given, Holder, Register, ca_of};
use crate::run::{Complaint, Controller, seconds};
use crate::safe::{Document, Members, Safe};

/// For so long a node's object has to be away before the node is gone.
const AWAY: Duration = match cfg!(test) {
    true => Duration::from_millis(400),
    false => Duration::from_secs(60),
};
/// For so long one may hold a certificate without having been among the nodes.
const UNSEEN: Duration = Duration::from_secs(3600);
/// How often an object that somebody writes again and again is removed.
const SWEEP: Duration = Duration::from_secs(5);

/// One that could not be removed is tried again after this time.
const STUCK: Duration = Duration::from_secs(10);
/// Once one could not be removed, no more are tried in this round after this time: where each takes as long
/// as a call may take, the controller has other things to do.
const ROUND: Duration = Duration::from_secs(5);

/// How soon an object is looked at again that was written while it was to be removed.
const SOON: Duration = Duration::from_millis(100);

/// The type of the condition in the policy's status, and its reason where it does not hold.
const CONDITION: &str = "RevocationsInForce";
const HELD: &str = "RevocationHeld";

/// What this run knows of nodes that are away.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    /// Since when.
    since: BTreeMap<Holder, Instant>,
    /// When an object was last removed.
    swept: BTreeMap<String, Instant>,
    /// When to try again to remove what could not be removed, by kind and name.
    stuck: BTreeMap<(&'static str, String), Instant>,
    /// What was last complained of those.
    stuck_complaint: Complaint,
    /// Why certificates of nodes that are gone are not taken back, though they should be.
    held: Option<String>,
    held_complaint: Complaint,
    /// When to look again.
    again: Option<Instant>,
}

impl Absent {
    /// How long until it is to be looked at again, if at all.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        Some(self.again?.saturating_duration_since(now))
    }

    /// Looks again then, at the latest.
    pub(crate) fn look_at(&mut self, then: Instant) {
        self.again = Some(self.again.map_or(then, |again| again.min(then)));
    }

    /// Says in the policy's status that certificates are not taken back. Where that never was so it says
    /// nothing.
    pub(crate) fn set_condition(&self, status: &mut EncryptionPolicyStatus, generation: u64) {
        let held = self.held.clone().map(|text| (HELD, text));
        documents::set_where_wrong(status, generation, CONDITION, held);
    }

    /// Those of `missing` that have been so for long enough.
    fn gone(&mut self, missing: Vec<(Holder, bool)>, now: Instant) -> Vec<Holder> {
        let is_missing: BTreeSet<&Holder> = missing.iter().map(|(holder, _)| holder).collect();
        self.since.retain(|holder, _| is_missing.contains(holder));
        let mut gone = Vec::new();
        for (holder, seen) in missing {
            let since = *self.since.entry(holder.clone()).or_insert(now);
            let until = since + if seen { AWAY } else { UNSEEN };
            match until <= now {
                true => gone.push(holder),
                false => self.look_at(until),
            }
        }
        gone
    }
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// Finds nodes that are gone and takes their certificates back. Trouble with it is told in every way
    /// there is, because who is not wanted any more stays trusted; it keeps the controller from nothing else.
    /// An error is a conflict: all is to be looked at again.
    pub(crate) async fn keep_out(&mut self) -> Result<(), StoreError> {
        self.absent.again = None;
        let held = match self.try_to_keep_out().await {
            Ok(()) => None,
            Err(error) => {
                let store = error.downcast_ref::<StoreError>();
                if store.is_some_and(StoreError::is_conflict) {
                    return Err(changed(&self.safe));
                }
                Some(format!("{error:#}"))
            }
        };
        match &held {
            Some(text) => {
                self.numbers.failed("revocation");
                let text = format!("certificates are not taken back: {text}");
                if self.absent.held_complaint.say(&text) {
                    let news = News::bad(About::Bundle, HELD, "Revoke", text);
                    self.safe.tell(news);
                }
                self.absent.look_at(Instant::now() + SWEEP);
            }
            None if self.absent.held.is_some() => {
                let text = "certificates of nodes that are gone are taken back again";
                info!("{text}");
                let news = News::good(About::Bundle, "RevocationResumed", "Revoke", text);
                self.safe.tell(news);
                self.absent.held_complaint = Complaint::default();
            }
            None => {}
        }
        self.absent.held = held;
        Ok(())
    }

    async fn try_to_keep_out(&mut self) -> anyhow::Result<()> {
        let removed = self.safe.removed().await?;
        let members = self.safe.members().await?;
        let mut next = self.kept.register.clone();
        self.adopt(&mut next);
        let mut gone = self.find_gone(&mut next, &members);
        if !gone.is_empty() {
            // The watches may be behind: one that is back must not be thrown out.
            self.world.nodes.read_again(&self.store).await?;
            gone = self.find_gone(&mut next, &members);
            let mut sure = Vec::with_capacity(gone.len());
            for holder in gone {
                if self.safe.is_gone(&holder.name, &holder.uid).await? {
                    sure.push(holder);
                }
            }
            gone = sure;
        }
        let named = removed.iter().flat_map(|node| next.of_name(node.as_str()));
        let mut out: BTreeSet<Holder> = named.collect();
        out.extend(gone.iter().cloned());
        let mut taken = Vec::new();
        for holder in &out {
            let count = next.revoke(holder, seconds());
            if count > 0 {
                taken.push((holder, count));
            }
        }
        self.supersede(&mut next);
        let (now, sure) = (seconds(), self.steady.is_sure(Instant::now()));
        next.forget(sure.then_some(now), &self.lists());
        let kept = self.kept.put(&self.safe, next).await.with_context(|| {
            let names: Vec<String> = taken.iter().map(|(node, _)| node.name.clone()).collect();
            match names.is_empty() {
                true => "the register is not written".to_owned(),
                false => format!("nodes that are gone stay trusted: {}", first(&names)),
            }
        });
        if !kept? {
            return Err(changed(&self.safe).into());
        }
        for (holder, count) in taken {
            info!(
                node = holder.name,
                uid = holder.uid,
                count,
                "the node is gone: revoked"
            );
            self.numbers.revoked(count);
            let text = format!(
                "node {} with UID {} is gone: its certificates ({count}) are revoked",
                holder.name, holder.uid
            );
            let about = About::Node(holder.name.clone());
            self.safe
                .tell(News::bad(about, "NodeRevoked", "Revoke", text));
        }
        let register = &self.kept.register;
        let done = self.authority.revoke(&self.safe, register, now, sure).await;
        let done = done.with_context(|| {
            let names = first(&self.unlisted());
            format!("no revocation list is signed, and these stay trusted: {names}")
        })?;
        if !done.done {
            return Err(changed(&self.safe).into());
        }
        if done.signed > 0 {
            info!(lists = done.signed, "revocation lists signed");
            self.publish_bundle().await?;
        }
        self.sweep(&members).await;
        let mut names: BTreeSet<String> = removed.iter().map(ToString::to_string).collect();
        let gone = gone.into_iter().map(|holder| holder.name);
        names.extend(gone.filter(|name| {
            let lives = self.kept.register.of_name(name);
            lives.iter().all(|holder| self.kept.register.is_out(holder))
        }));
        for name in names {
            self.safe.expelled(&name).await?;
            info!(node = name, "the node is removed");
        }
        anyhow::ensure!(
            done.left_out == 0,
            "{} certificates do not fit into the revocation lists, and these nodes stay trusted: {}; rotate \
             the CA (`testudo ca rotate`), which makes all of them worthless",
            done.left_out,
            first(&self.unlisted())
        );
        Ok(())
    }

    /// Holders that are gone, by what is known of the nodes now.
    fn find_gone(&mut self, register: &mut Register, members: &Members) -> Vec<Holder> {
        let present = self.present(register, members);
        register.see(&present);
        let missing = register.missing(&present);
        match members {
            Members::These(_) => missing.into_iter().map(|(holder, _)| holder).collect(),
            // All at once: the directory is not there, rather than the nodes.
            Members::ThosePublished if present.is_empty() => Vec::new(),
            Members::ThosePublished => self.absent.gone(missing, Instant::now()),
        }
    }

    fn present(&self, register: &Register, members: &Members) -> BTreeSet<Holder> {
        let holder = |name: &str, uid: &str| Holder {
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        match members {
            Members::These(nodes) => nodes.iter().map(|(name, uid)| holder(name, uid)).collect(),
            Members::ThosePublished => {
                let nodes = self.world.nodes.objects.values();
                let readable = nodes.map(|node| holder(node.name(), node.spec.uid.as_str()));
                // Nobody knows who that is: anybody who ever had the name.
                let broken = self.world.nodes.broken();
                let broken = broken.iter().flat_map(|name| register.of_name(name));
                readable.chain(broken).collect()
            }
        }
    }

    /// Takes certificates into the register that were given out by an earlier build: those that nodes
    /// show, each by one node, and of CAs that can take them back.
    fn adopt(&self, register: &mut Register) {
        let mut shown: BTreeMap<(String, String), Vec<(Holder, u64)>> = BTreeMap::new();
        let (known, keyed) = (register.known(), self.authority.keyed());
        for node in self.world.nodes.objects.values() {
            let Some(certificate) = &node.status.certificate else {
                continue;
            };
            let mut of_it = keyed.iter().map(|ca| ca.facts());
            let Some(ca) = of_it.find(|facts| facts.subject == certificate.issuer) else {
                continue;
            };
            let serial = certificate.serial.to_ascii_lowercase();
            let well_formed = crate::register::serial_bytes(&serial).is_some();
            if !well_formed || known.contains(&(ca_of(ca), serial.as_str())) {
                continue;
            }
            let holder = Holder {
                name: node.name().to_owned(),
                uid: node.spec.uid.to_string(),
            };
            let end = u64::try_from(certificate.not_after.0).unwrap_or(0);
            let end = end.min(ca.times.not_after);
            let key = (ca_of(ca).to_owned(), serial);
            shown.entry(key).or_default().push((holder, end));
        }
        for ((ca, serial), mut holders) in shown {
            // What two nodes claim may be either's.
            let (Some((holder, not_after)), true) = (holders.pop(), holders.is_empty()) else {
                continue;
            };
            let given = Given {
                ca,
                serial,
                not_after,
                revoked: None,
            };
            if let Err(full) = register.give(holder, given) {
                warn!("a certificate of before is not written down: {full}");
            }
        }
    }

    /// Takes back what nodes that show a later certificate were given long before it.
    fn supersede(&self, register: &mut Register) {
        let keyed = self.authority.keyed();
        for node in self.world.nodes.objects.values() {
            let Some(shown) = &node.status.certificate else {
                continue;
            };
            let mut cas = keyed.iter().map(|ca| ca.facts());
            let Some(ca) = cas.find(|facts| facts.subject == shown.issuer) else {
                continue;
            };
            let holder = Holder {
                name: node.name().to_owned(),
                uid: node.spec.uid.to_string(),
            };
            let serial = shown.serial.to_ascii_lowercase();
            let count = register.supersede(&holder, ca_of(ca), &serial, seconds());
            if count > 0 {
                info!(
                    node = holder.name,
                    count, "certificates of before are revoked: the node has asked for many"
                );
            }
        }
    }

    /// The CAs that are trusted, each with the serial numbers that its list names.
    fn lists(&self) -> BTreeMap<String, BTreeSet<String>> {
        let bundle = &self.authority.bundle;
        let named = |spki: &[u8]| -> BTreeSet<String> {
            let (list, _) = bundle.revocations_of(spki).unwrap_or_default();
            let serials = list.revoked.iter().map(|revoked| {
                let text = hex(&revoked.serial);
                let zeros = text.len() - text.trim_start_matches("00").len();
                text[zeros..].to_owned()
            });
            serials.collect()
        };
        bundle
            .facts()
            .map(|ca| (ca_of(&ca).to_owned(), named(&ca.spki)))
            .collect()
    }

    /// Nodes of which certificates are taken back that no list names yet.
    fn unlisted(&self) -> Vec<String> {
        let now = self.steady.is_sure(Instant::now()).then(seconds);
        self.kept.register.unlisted(now, &self.lists())
    }

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
        let requests: Vec<String> = out.map(|request| request.name().to_owned()).collect();
        let began = Instant::now();
        self.absent.swept.retain(|_, at| began < *at + SWEEP);
        self.absent.stuck.retain(|_, then| began < *then);
        // Certificates that were given out weigh less than nodes that others still go by.
        let nodes = nodes.into_iter().map(|node| Left::Node(Box::new(node)));
        let mut stuck = Vec::new();
        for left in nodes.chain(requests.into_iter().map(Left::Request)) {
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
            Left::Request(name) => {
                self.store.delete::<CertificateRequestKind>(&name).await?;
                self.world.requests.objects.remove(&name);
                return Ok(());
            }
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

/// What a node that is out has left in the store.
enum Left {
    Node(Box<NodeEncryption>),
    /// By name.
    Request(String),
}

impl Left {
    fn key(&self) -> (&'static str, String) {
        match self {
            Self::Node(node) => (NodeEncryptionKind::KIND, node.name().to_owned()),
            Self::Request(name) => (CertificateRequestKind::KIND, name.clone()),
        }
    }
}

/// Somebody else has changed what the safe holds: all is looked at again.
pub(crate) fn changed<K: Safe>(safe: &K) -> StoreError {
    StoreError::Conflict {
        kind: "document",
        name: safe.place(Document::Register),
    }
}
