//! Children for CPUs or queues beside the one that all may use (RFC 9611).
//!
//! The end that began the IKE SA asks for them, when the peer has said SA_RESOURCE_INFO of the
//! child without a resource (the fallback one) and until it says TS_MAX_QUEUE.
//!
//! The notify's data is opaque (RFC 9611, 4.1 and 5.1). Ours is a [`TAG`] and the resource's number,
//! which means something between nodes of our kind alone: a child asked for so has that number at
//! both ends, so that one made twice is known for it. What another implementation says there means
//! nothing to us: its child gets the lowest number that is free and that we are not asking for.

use testudo_model::{ChildId, Now, PeerId};
use testudo_wire::ike::{Notify, NotifyType, Payload};

use crate::config::ChildConfig;
use crate::engine::Engine;
use crate::error::{Fault, Refusal};
use crate::event::IkeId;
use crate::message::Payloads;
use crate::sa::{Child, Established, IkeSa, Slot};

/// Tells a number of ours from what others say.
const TAG: [u8; 4] = *b"tsdo";

/// The notify that goes with a child of this resource; 0: the fallback one.
pub(crate) fn info(resource: u32) -> Payload {
    let data = [TAG, resource.to_be_bytes()].concat();
    Payload::Notify(Notify::new(NotifyType::SA_RESOURCE_INFO, data))
}

/// The number that a node of our kind gave.
fn number(data: &[u8]) -> Option<u32> {
    let number = data.strip_prefix(&TAG)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

/// Whether a message says SA_RESOURCE_INFO.
pub(crate) fn says_info(payloads: &Payloads) -> bool {
    payloads.notify(NotifyType::SA_RESOURCE_INFO).is_some()
}

impl Engine {
    /// The children of a name that stand on an IKE SA, as they are configured.
    fn of_name<'e>(&'e self, est: &'e Established, name: &str) -> impl Iterator<Item = &'e Child> {
        est.children
            .iter()
            .filter_map(|id| self.children.get(id))
            .filter(move |c| c.is_up() && !c.stale && c.slot.name == name)
    }

    /// Which of our children a peer's request for `config` makes.
    pub(crate) fn requested_slot(
        &self,
        ike: IkeId,
        config: &ChildConfig,
        payloads: &Payloads,
    ) -> Result<Slot, Fault> {
        let slot = |resource| Slot {
            name: config.name.clone(),
            resource,
        };
        let Some(notify) = payloads.notify(NotifyType::SA_RESOURCE_INFO) else {
            return Ok(slot(0));
        };
        match number(&notify.data) {
            Some(number) if number <= config.resources => return Ok(slot(number)),
            // It wants more of them than we do.
            Some(_) => return Err(Fault::Incompatible(Refusal::TsMaxQueue)),
            None => {}
        }
        let est = self.sas.get(&ike).and_then(IkeSa::established);
        let stands = |n| {
            let mut all = est.into_iter().flat_map(|e| self.of_name(e, &config.name));
            all.any(|c| c.slot.resource == n)
        };
        if !stands(0) {
            return Ok(slot(0));
        }
        // One that will stand soon is not free: this child would be taken for it made twice.
        let comes = |n| {
            let of = |s: &Slot| *s == slot(n);
            est.is_some_and(|e| e.asked_slot().is_some_and(of) || e.slots_to_come().any(of))
        };
        (1..=config.resources)
            .find(|n| !stands(*n) && !comes(*n))
            .map(slot)
            .ok_or(Fault::Incompatible(Refusal::TsMaxQueue))
    }

    /// The slots of `config` that are missing on an IKE SA that we began.
    pub(crate) fn missing_slots(&self, ike: IkeId, config: &ChildConfig) -> Vec<Slot> {
        let Some(est) = self.sas.get(&ike).and_then(IkeSa::established) else {
            return Vec::new();
        };
        let slot = |resource| Slot {
            name: config.name.clone(),
            resource,
        };
        let there: Vec<&Child> = self.of_name(est, &config.name).collect();
        let Some(fallback) = there.iter().find(|c| c.slot.resource == 0) else {
            return vec![slot(0)];
        };
        if fallback.shares == Some(false) {
            return Vec::new();
        }
        let most = self.most_resources(est, config);
        let has = |n: u32| there.iter().any(|c| c.slot.resource == n);
        let have = (1..=config.resources).filter(|n| has(*n)).count();
        (1..=config.resources)
            .filter(|n| !has(*n))
            .take((most as usize).saturating_sub(have))
            .map(slot)
            .collect()
    }

    /// How many the peer is known to take of those that we want.
    fn most_resources(&self, est: &Established, config: &ChildConfig) -> u32 {
        let most = est.most_resources.get(&config.name).copied();
        most.map_or(config.resources, |most| most.min(config.resources))
    }

    /// The peer takes no more children of this name than stand now: it is not asked until one of
    /// them is gone.
    pub(crate) fn resources_full(&mut self, ike: IkeId, name: &str) {
        let Some(est) = self.sas.get(&ike).and_then(IkeSa::established) else {
            return;
        };
        let have = self.of_name(est, name).filter(|c| c.slot.resource > 0);
        let have = u32::try_from(have.count()).unwrap_or(u32::MAX);
        if let Some(est) = self.sas.get_mut(&ike).and_then(IkeSa::established_mut) {
            est.most_resources.insert(name.to_owned(), have);
            est.tasks.retain(|task| {
                let crate::sa::Task::CreateChild(slot) = task else {
                    return true;
                };
                slot.resource == 0 || slot.name != *name
            });
        }
    }

    /// What the peer refused is asked for again: we want another number now.
    pub(crate) fn forget_full(&mut self, peer: &PeerId) {
        let all: Vec<IkeId> = self
            .peers
            .get(peer)
            .into_iter()
            .flat_map(|p| p.sas.iter().copied())
            .collect();
        for id in all {
            if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
                est.most_resources.clear();
            }
        }
    }

    /// The peer says by other means that it takes children for resources, or more of them: it is asked
    /// again for those that it refused. Not for a peer that does not know RFC 9611.
    pub fn ask_again(&mut self, peer: &PeerId, now: Now) {
        self.forget_full(peer);
        let known = self.peers.get(peer).map(|p| &p.children);
        let all: Vec<ChildId> = known
            .into_iter()
            .flatten()
            .flat_map(|(_, set)| set)
            .copied()
            .collect();
        for id in all {
            if let Some(child) = self
                .children
                .get_mut(&id)
                .filter(|c| c.shares == Some(false))
            {
                child.shares = None;
            }
        }
        self.keep_up(peer, false, now);
    }

    /// Whether the child of an old IKE SA has nothing to wait for on a new one: the peer takes
    /// none for its resource there, or we no longer want it.
    pub(crate) fn is_left_out(&self, old: &Child, new: &Established) -> bool {
        let config = self
            .peers
            .get(&old.peer)
            .and_then(|p| p.child(&old.slot.name));
        let Some(config) = config.filter(|_| old.slot.resource > 0) else {
            return false;
        };
        let refused = |c: &Child| c.slot.resource == 0 && c.shares == Some(false);
        old.slot.resource > config.resources
            || new.most_resources.contains_key(&config.name)
            || self.of_name(new, &config.name).any(refused)
    }

    /// Children for resources that are no longer wanted.
    pub(crate) fn surplus_resources(&self, peer: &PeerId) -> Vec<(IkeId, ChildId)> {
        let Some(known) = self.peers.get(peer) else {
            return Vec::new();
        };
        let surplus = |slot: &Slot| {
            known
                .child(&slot.name)
                .is_some_and(|c| slot.resource > c.resources)
        };
        known
            .children
            .iter()
            .filter(|(slot, _)| surplus(slot))
            .flat_map(|(_, set)| set)
            .filter_map(|id| self.children.get(id))
            .filter(|c| c.is_up())
            .map(|c| (c.ike, c.id))
            .collect()
    }
}
