//! Additional key exchanges after CREATE_CHILD_SA, one an IKE_FOLLOWUP_KE exchange (RFC 9370,
//! 2.2.4 and 2.2.5). Nothing stands before the last one is done.
//!
//! The initiator's half is part of its pending request; its window stays taken to the end. The
//! responder keeps a [`Follower`] for each request that goes on, found by the link in
//! ADDITIONAL_KEY_EXCHANGE, a few of them and not for long.
//!
//! When both ends rekey the same SA and know it from the four nonces of CREATE_CHILD_SA, the
//! loser (RFC 7296, 2.8.1) does not go on. An end that learns of the other's request later
//! goes on, and what was made twice is resolved as without additional exchanges.

use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::{KePrivate, SecretBytes};
use testudo_model::{ChildId, Monotonic, Now, PeerId};
use testudo_wire::ike::{ExchangeType, KeyExchange, Notify, NotifyType, Payload};

use crate::addke::{AdditionalKe, Rounds};
use crate::engine::Engine;
use crate::error::{Fault, Refusal};
use crate::event::IkeId;
use crate::exchange::Reply;
use crate::keys::Suite;
use crate::message::Payloads;
use crate::sa::child::Agreement;
use crate::sa::{Established, IkeSa, Pending, Phase, Slot, Task};
use crate::timers::Deadline;

/// How long the peer has for the next exchange.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests of the peer's on one IKE SA that may be going on.
const MOST: usize = 4;
/// Bytes of our links.
const LINK_LEN: usize = 16;
/// The longest link that is sent back.
const LONGEST_LINK: usize = 1024;

/// The initiator's additional key exchanges.
pub(crate) struct FollowUp {
    rounds: Rounds,
    /// SK(0) and those after it.
    secrets: Vec<SecretBytes>,
    /// Our half of the one under way.
    ke: Arc<KePrivate>,
}

/// The responder's.
pub(crate) struct Follower {
    link: Vec<u8>,
    rounds: Rounds,
    /// SK(0) and those after it.
    secrets: Vec<SecretBytes>,
    until: Monotonic,
    makes: Making,
    /// The child's configuration has changed since we agreed to it.
    overtaken: bool,
}

/// What the peer's request makes once all key exchanges are done.
pub(crate) enum Making {
    Child(Box<ChildMaking>),
    Ike(IkeMaking),
}

/// A child that we agreed to.
pub(crate) struct ChildMaking {
    pub(crate) agreement: Agreement,
    pub(crate) shares: Option<bool>,
    pub(crate) spi_in: u32,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
    pub(crate) rekeyed: Option<ChildId>,
    pub(crate) born: u64,
}

/// A successor of the IKE SA that we agreed to.
pub(crate) struct IkeMaking {
    pub(crate) suite: Suite,
    pub(crate) spi_i: u64,
    pub(crate) spi_r: u64,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
}

impl Making {
    /// The smaller nonce, by which crossing rekeys are told apart.
    fn tie(&self) -> &[u8] {
        let (i, r) = match self {
            Self::Child(child) => (&child.nonce_i, &child.nonce_r),
            Self::Ike(ike) => (&ike.nonce_i, &ike.nonce_r),
        };
        i.min(r)
    }

    fn rekeys(&self, child: ChildId) -> bool {
        matches!(self, Self::Child(making) if making.rekeyed == Some(child))
    }

    /// It is a child of this name.
    fn is_of(&self, name: &str) -> bool {
        matches!(self, Self::Child(making) if making.agreement.slot.name == name)
    }

    fn is_ike(&self) -> bool {
        matches!(self, Self::Ike(_))
    }
}

impl Follower {
    /// The method of the next exchange.
    fn next(&self) -> Option<testudo_crypto::KeMethod> {
        self.rounds.after(self.secrets.len() - 1)
    }
}

#[cfg(test)]
impl Follower {
    pub(crate) fn link_for_tests(&self) -> Vec<u8> {
        self.link.clone()
    }
}

impl Established {
    /// A task that waits until the peer is done: it would be refused now, or would stand in the
    /// way of what the peer is doing (RFC 7296, 2.25).
    pub(crate) fn yields(&self, task: &Task) -> bool {
        match task {
            Task::RekeyIke => !self.followers.is_empty(),
            Task::CreateChild(_)
            | Task::RekeyChild(_)
            | Task::DeleteChild(_)
            | Task::DeleteSpi(_) => self.followers.iter().any(|f| f.makes.is_ike()),
            _ => false,
        }
    }

    /// What the children are for that the peer is making.
    pub(crate) fn slots_to_come(&self) -> impl Iterator<Item = &Slot> {
        self.followers.iter().filter_map(|f| match &f.makes {
            Making::Child(making) => Some(&making.agreement.slot),
            Making::Ike(_) => None,
        })
    }

    /// The peer is making a successor of this IKE SA that wins over one with the nonces `tie`.
    pub(crate) fn loses_to_follower(&self, tie: &[u8]) -> bool {
        let mut ikes = self.followers.iter().filter(|f| f.makes.is_ike());
        ikes.any(|f| f.makes.tie() > tie)
    }
}

fn link_payload(link: Vec<u8>) -> Payload {
    Payload::Notify(Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, link))
}

fn link_of(payloads: &Payloads) -> Option<&[u8]> {
    payloads
        .notify(NotifyType::ADDITIONAL_KEY_EXCHANGE)
        .map(|n| &n.data[..])
        .filter(|link| (1..=LONGEST_LINK).contains(&link.len()))
}

impl Engine {
    /// The additional key exchanges to be offered for children: none to a peer that took none
    /// for the IKE SA.
    pub(crate) fn additional_on(&self, id: IkeId) -> &[AdditionalKe] {
        let est = self.sas.get(&id).and_then(IkeSa::established);
        match est {
            Some(est) if !est.keys.suite.additional.is_empty() => &self.suites_on(id).additional_ke,
            _ => &[],
        }
    }

    /// The next half of ours after `secrets`, if another exchange is due, and the payloads that
    /// begin it. `answer` is the peer's last.
    pub(crate) fn next_follow_up(
        &mut self,
        rounds: Rounds,
        secrets: Vec<SecretBytes>,
        answer: &Payloads,
    ) -> Result<(FollowUp, Vec<Payload>), Fault> {
        let method = rounds
            .after(secrets.len().saturating_sub(1))
            .ok_or(Fault::Bug("no key exchange is due"))?;
        let link = link_of(answer).ok_or(Fault::Misbehaved("missing_link"))?;
        let ke = Arc::new(KePrivate::generate(method, &mut *self.random));
        let payloads = vec![
            Payload::KeyExchange(KeyExchange {
                method: method.id(),
                data: ke.public().to_vec(),
            }),
            link_payload(link.to_vec()),
        ];
        let next = FollowUp {
            rounds,
            secrets,
            ke,
        };
        Ok((next, payloads))
    }

    /// Reads the answer to our half: the secrets so far, and the exchanges that there are.
    pub(crate) fn take_follow_up(
        &mut self,
        up: FollowUp,
        payloads: &Payloads,
    ) -> Result<(Rounds, Vec<SecretBytes>), Fault> {
        let (_, shared) = self.finish_ke(&up.ke, payloads)?;
        let mut secrets = up.secrets;
        secrets.push(shared);
        Ok((up.rounds, secrets))
    }

    pub(crate) fn send_follow_up(
        &mut self,
        now: Now,
        id: IkeId,
        payloads: &[Payload],
        pending: Pending,
    ) {
        self.send_request(now, id, ExchangeType::IKE_FOLLOWUP_KE, payloads, pending);
    }

    /// Whether our rekey of `child` with the nonces `tie` has lost to one of the peer's that we
    /// know of.
    pub(crate) fn rekey_is_lost(&self, id: IkeId, child: ChildId, tie: &[u8]) -> bool {
        let est = self.sas.get(&id).and_then(IkeSa::established);
        let going_on = est.is_some_and(|e| {
            let mut rekeys = e.followers.iter().filter(|f| f.makes.rekeys(child));
            rekeys.any(|f| f.makes.tie() > tie)
        });
        let Some(old) = self.children.get(&child) else {
            return false;
        };
        let mut made = self.up_children(&old.peer, &old.slot);
        going_on || made.any(|c| c.replaces == Some(child) && !c.initiator && &c.tie[..] > tie)
    }

    /// Our own rekey of `child` is done: one of the peer's that has lost to it will not go on.
    pub(crate) fn forget_lost_followers(&mut self, id: IkeId, child: ChildId, tie: &[u8]) {
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            let lost = |f: &Follower| f.makes.rekeys(child) && f.makes.tie() < tie;
            est.followers.retain(|f| !lost(f));
        }
    }

    /// A child's configuration changed: what was agreed to of it before will not stand.
    pub(crate) fn overtake_followers(&mut self, peer: &PeerId, name: &str) {
        let all: Vec<IkeId> = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|p| p.sas.iter().copied())
            .collect();
        for id in all {
            let est = self.sas.get_mut(&id).and_then(IkeSa::established_mut);
            for follower in est.into_iter().flat_map(|e| e.followers.iter_mut()) {
                follower.overtaken |= follower.makes.is_of(name);
            }
        }
    }

    /// Whether another request of the peer's may go on in additional exchanges.
    pub(crate) fn may_follow(&self, id: IkeId) -> Result<(), Fault> {
        let est = self.sas.get(&id).and_then(IkeSa::established);
        match est {
            Some(est) if est.followers.len() < MOST => Ok(()),
            _ => Err(Fault::Incompatible(Refusal::TemporaryFailure)),
        }
    }

    /// Keeps what the peer's request makes until the additional exchanges are done; gives the
    /// payload that links them.
    pub(crate) fn keep_follower(
        &mut self,
        id: IkeId,
        rounds: Rounds,
        secret: SecretBytes,
        makes: Making,
        now: Now,
    ) -> Payload {
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            // The peer has given up what it asked for before.
            let again = |f: &Follower| match &makes {
                Making::Ike(_) => f.makes.is_ike(),
                Making::Child(new) => new.rekeyed.is_some_and(|old| f.makes.rekeys(old)),
            };
            est.followers.retain(|f| !again(f));
        }
        let follower = Follower {
            link: Vec::new(),
            rounds,
            secrets: vec![secret],
            until: Monotonic::default(),
            makes,
            overtaken: false,
        };
        self.put_follower(id, follower, now)
    }

    fn put_follower(&mut self, id: IkeId, mut follower: Follower, now: Now) -> Payload {
        let link = self.random_bytes(LINK_LEN);
        follower.link.clone_from(&link);
        follower.until = now.monotonic + PATIENCE;
        self.timers.set_once(Deadline::FollowUp(id), follower.until);
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            est.followers.push(follower);
        }
        link_payload(link)
    }

    /// The peer has not gone on in time.
    pub(crate) fn follow_ups_over(&mut self, id: IkeId, now: Now) {
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return;
        };
        let before = est.followers.len();
        est.followers.retain(|f| f.until > now.monotonic);
        let over = before - est.followers.len();
        let open = est.phase == Phase::Open;
        if let Some(next) = est.followers.iter().map(|f| f.until).min() {
            self.timers.set(Deadline::FollowUp(id), next);
        }
        for _ in 0..over {
            self.count_drop("follow_up_timeout");
        }
        if open {
            self.settle(id, now);
        }
        self.pump(id, now);
    }

    /// An authentic IKE_FOLLOWUP_KE request.
    pub(crate) fn follow_request(
        &mut self,
        now: Now,
        id: IkeId,
        payloads: &Payloads,
    ) -> Result<Reply, Fault> {
        let est = self
            .sas
            .get(&id)
            .and_then(IkeSa::established)
            .ok_or(Fault::Bug("not established"))?;
        let link = link_of(payloads).ok_or(Fault::Incompatible(Refusal::StateNotFound))?;
        let index = est
            .followers
            .iter()
            .position(|f| f.link == link)
            .ok_or(Fault::Incompatible(Refusal::StateNotFound))?;
        let follower = &est.followers[index];
        let method = follower
            .next()
            .ok_or(Fault::Bug("no key exchange is due"))?;
        let stands = self.still_stands(est, follower);
        let exchanged = stands.and_then(|()| self.answer_ke(method, payloads));
        if matches!(exchanged, Err(Fault::Suspended)) {
            return Err(Fault::Suspended);
        }
        let est = self
            .sas
            .get_mut(&id)
            .and_then(IkeSa::established_mut)
            .ok_or(Fault::Bug("not established"))?;
        let mut follower = est.followers.remove(index);
        let (public, shared) = exchanged?;
        follower.secrets.push(shared);
        if follower.next().is_some() {
            let link = self.put_follower(id, follower, now);
            return Ok(Reply::of(vec![public, link]));
        }
        match follower.makes {
            Making::Child(making) => self.made_child(id, *making, &follower.secrets, now)?,
            Making::Ike(making) => self.made_ike(id, &making, &follower.secrets, now)?,
        }
        Ok(Reply::of(vec![public]))
    }

    /// What was agreed to in CREATE_CHILD_SA may be overtaken by other exchanges, or by a change
    /// of the configuration. The peer may ask anew.
    fn still_stands(&self, est: &Established, follower: &Follower) -> Result<(), Fault> {
        let rekeyed = match &follower.makes {
            Making::Child(making) => making.rekeyed,
            Making::Ike(_) => None,
        };
        // Deleted meanwhile, or about to be, by either end (RFC 7296, 2.25.1).
        let leaves = |old| {
            self.children
                .get(&old)
                .is_none_or(|c| !c.is_up() || c.stale)
        };
        let overtaken = follower.overtaken || rekeyed.is_some_and(leaves);
        if est.phase != Phase::Open || overtaken {
            return Err(Fault::Incompatible(Refusal::TemporaryFailure));
        }
        Ok(())
    }
}

impl FollowUp {
    /// Our half of the one under way.
    pub(crate) fn private(&self) -> &Arc<KePrivate> {
        &self.ke
    }
}
