//! Takes back the certificates of nodes that are gone.
//!
//! A node is gone when somebody has removed it, when whoever knows the cluster's nodes knows it no more,
//! or, where nobody does, when its object has stayed away for a while: an agent that runs writes it again
//! at once. What happens then happens in this order, so that a controller that is killed in between goes
//! on where it was: the register says that its certificates are taken back, the CAs' lists say so, the
//! bundle is published with them, the node's object goes.

mod leftovers;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use testudo_model::EncryptionPolicyStatus;
use testudo_pki::hex;
use testudo_store::{Store, StoreError};
use tracing::info;

use crate::authority::Revocation;
use crate::documents;
use crate::news::{About, News};
use crate::register::{Holder, Register, ca_of};
use crate::run::{Complaint, Controller, seconds};
use crate::safe::{Document, Members, Safe};
use crate::stragglers::first;

/// For so long a node's object has to be away before the node is gone.
const AWAY: Duration = match cfg!(test) {
    true => Duration::from_millis(400),
    false => Duration::from_secs(60),
};
/// For so long one may hold a certificate without having been among the nodes.
const UNSEEN: Duration = Duration::from_secs(3600);
/// How often an object that somebody writes again and again is removed, and trouble is looked at again.
const SWEEP: Duration = Duration::from_secs(5);

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
        let gone = self.surely_gone(&mut next, &members).await?;
        let named = removed.iter().flat_map(|node| next.of_name(node.as_str()));
        let mut out: BTreeSet<Holder> = named.collect();
        out.extend(gone.iter().cloned());
        self.write_down(next, &out).await?;
        let done = self.sign_lists().await?;
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

    /// Holders that are gone for sure: the watches may be behind, and one that is back must not be thrown out.
    async fn surely_gone(
        &mut self,
        register: &mut Register,
        members: &Members,
    ) -> anyhow::Result<Vec<Holder>> {
        if self.find_gone(register, members).is_empty() {
            return Ok(Vec::new());
        }
        self.world.nodes.read_again(&self.store).await?;
        let mut sure = Vec::new();
        for holder in self.find_gone(register, members) {
            if self.safe.is_gone(&holder.name, &holder.uid).await? {
                sure.push(holder);
            }
        }
        Ok(sure)
    }

    /// Keeps the register in which the certificates of `out`, and those that nodes have left behind, are taken
    /// back; tells of it.
    async fn write_down(
        &mut self,
        mut next: Register,
        out: &BTreeSet<Holder>,
    ) -> anyhow::Result<()> {
        let mut taken = Vec::new();
        for holder in out {
            let count = next.revoke(holder, seconds());
            if count > 0 {
                taken.push((holder, count));
            }
        }
        self.supersede(&mut next);
        next.forget(self.sure_time(), &self.lists());
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
        for (Holder { name, uid }, count) in taken {
            info!(node = name, uid, count, "the node is gone: revoked");
            self.numbers.revoked(count);
            let text = format!(
                "node {name} with UID {uid} is gone: its certificates ({count}) are revoked"
            );
            let about = About::Node(name.clone());
            self.safe
                .tell(News::bad(about, "NodeRevoked", "Revoke", text));
        }
        Ok(())
    }

    /// Has the CAs sign lists of what the register says is taken back.
    async fn sign_lists(&mut self) -> anyhow::Result<Revocation> {
        let (now, sure) = (seconds(), self.sure_time().is_some());
        let register = &self.kept.register;
        let done = self.authority.revoke(&self.safe, register, now, sure).await;
        let done = done.with_context(|| {
            let names = first(&self.unlisted());
            format!("no revocation list is signed, and these stay trusted: {names}")
        })?;
        match done.done {
            true => Ok(done),
            false => Err(changed(&self.safe).into()),
        }
    }

    /// What time it is; `None`: nobody can be sure.
    fn sure_time(&self) -> Option<u64> {
        self.steady.is_sure(Instant::now()).then(seconds)
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
        self.kept.register.unlisted(self.sure_time(), &self.lists())
    }
}

/// Somebody else has changed what the safe holds: all is looked at again.
pub(crate) fn changed<K: Safe>(safe: &K) -> StoreError {
    StoreError::Conflict {
        kind: "document",
        name: safe.place(Document::Register),
    }
}
