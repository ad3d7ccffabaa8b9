//! What is done about what the kernel tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testudo_datapath::{DatapathError, Event};
use testudo_model::{Encapsulation, SaDirection, SaId};
use testudo_netlink::{
    XfrmAlgorithm, XfrmEvent, XfrmListedSa, XfrmNotice, XfrmPolicyKey, XfrmSaId, XfrmSaName,
};

use crate::core::{Core, refused};
use crate::plan::{changes, desired, is_ours};
use crate::probe::missing;
use crate::tag::{is_our_reqid, is_our_sa};
use crate::timers::Due;

/// When what failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl Core {
    /// One notification. What we asked for ourselves is known already.
    pub(crate) fn hear(&mut self, notice: XfrmNotice) {
        if notice.port == self.xfrm.port() {
            return;
        }
        match notice.event {
            XfrmEvent::Expire { sa, hard } => self.expired(&sa, hard),
            XfrmEvent::SaDeleted(sa) if is_our_reqid(sa.reqid) => self.lost(&sa.id),
            XfrmEvent::Acquire { id, template, .. } if is_our_reqid(template.reqid) => {
                self.asked_for(&id);
            }
            XfrmEvent::Mapping { sa, address, port } => {
                self.moved(&sa.id, SocketAddr::new(address, port));
            }
            XfrmEvent::PolicySet(policy) => {
                let changed = self
                    .standing
                    .get(&policy.key())
                    .is_some_and(|own| *own != policy);
                if changed {
                    // It is not ours any more by what it says, but it stands in our place.
                    self.reclaim.insert(policy.key());
                    self.undo(policy.key());
                }
            }
            XfrmEvent::PolicyDeleted(key) => self.undo(key),
            XfrmEvent::SasFlushed | XfrmEvent::PoliciesFlushed => {
                self.timers.resync(Instant::now());
            }
            XfrmEvent::SaSet(_) | XfrmEvent::SaDeleted(_) | XfrmEvent::Acquire { .. } => {}
        }
    }

    /// Notifications were lost: all that they may have told is looked up, once.
    pub(crate) fn overran(&mut self) {
        self.count("netlink_overruns");
        self.timers.resync(Instant::now());
    }

    /// Something is due.
    pub(crate) fn attend(&mut self, due: Due) {
        let done = match due {
            Due::FirstInbound(child) => self.look_for_first(child),
            Due::Remove(id) => {
                self.leftovers.forget(&id);
                match self.owners.contains_key(&id) {
                    // Its SPI was given to a new SA.
                    true => Ok(()),
                    false => self.delete_sa(&id),
                }
            }
            Due::Repair => self.repair(),
            Due::Resync => self.resync(),
        };
        if let Err(error) = done {
            self.count("repair_failures");
            tracing::warn!("the kernel's state is not what it should be: {error}");
            self.timers.resync(Instant::now() + TRY_AGAIN);
        }
    }

    fn expired(&mut self, sa: &XfrmSaName, hard: bool) {
        if hard {
            if is_our_reqid(sa.reqid) {
                self.lost(&sa.id);
            }
            return;
        }
        let Some(SaId { child, direction }) = self.owners.get(&sa.id).copied() else {
            return;
        };
        self.softened(SaId { child, direction });
    }

    /// An SA is past its soft limit: an outbound one wants a successor, an inbound one has opened
    /// a packet.
    fn softened(&mut self, SaId { child, direction }: SaId) {
        match direction {
            SaDirection::Outbound => self.events.push(Event::SoftLimit { child }),
            SaDirection::Inbound => {
                if self.timers.forget(child) {
                    self.events.push(Event::FirstInbound { child });
                }
            }
        }
    }

    /// A packet asked for an SA of ours that is not there. The policy must not ask any more, and
    /// the larval SA must go: it would swallow the successor's packets (L117).
    ///
    /// Where the policy named no SPI (CPUs have SAs of their own) nothing says which SA is gone, and
    /// the larval one has no name to remove it by; all is looked through. That one is in nobody's
    /// way: policies block or name an SPI, and the next SA for all CPUs takes its place, or its 30
    /// seconds do.
    fn asked_for(&mut self, id: &XfrmSaId) {
        self.count("acquires");
        if id.spi == 0 {
            self.timers.resync(Instant::now());
            return;
        }
        self.lost(id);
        let larval = |core: &mut Core| -> Result<(), DatapathError> {
            let listed = core.xfrm.sa(id).map_err(|e| missing(&e))?;
            match listed.map(|listed| listed.sa.algorithm) {
                Some(XfrmAlgorithm::None) => core.delete_sa(id),
                _ => Ok(()),
            }
        };
        if let Err(error) = larval(self) {
            tracing::warn!("a larval SA stands: {error}");
        }
    }

    fn moved(&mut self, id: &XfrmSaId, remote: SocketAddr) {
        let Some(SaId { child, .. }) = self.owners.get(id).copied() else {
            return;
        };
        let Some(pair) = self.pairs.get_mut(&child) else {
            return;
        };
        let known =
            matches!(pair.encapsulation, Encapsulation::Udp { remote: now, .. } if now == remote);
        if !known && pair.moved.replace(remote) != Some(remote) {
            self.events.push(Event::PeerMoved { child, remote });
        }
    }

    /// Somebody removed or changed a policy; if it was ours it is put back.
    fn undo(&mut self, key: XfrmPolicyKey) {
        if self.standing.remove(&key).is_some() {
            self.count("policies_restored");
            self.timers.repair(Instant::now());
        }
    }

    fn look_for_first(&mut self, child: testudo_model::ChildId) -> Result<(), DatapathError> {
        let Some(id) = self.pairs.get(&child).and_then(|pair| pair.inbound) else {
            self.timers.forget(child);
            return Ok(());
        };
        let listed = self.xfrm.sa(&id).map_err(|e| missing(&e))?;
        let used = listed.is_some_and(|listed| listed.used.packets > 0);
        if used && self.timers.forget(child) {
            self.events.push(Event::FirstInbound { child });
        }
        Ok(())
    }

    /// Makes the kernel's policies what they should be.
    fn repair(&mut self) -> Result<(), DatapathError> {
        let have = self.xfrm.policies().map_err(|e| missing(&e))?;
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        let want = desired(policy, &self.bindings, self.facts.ipv6);
        let reclaimed = self.reclaim.clone();
        for policy in want.iter().filter(|p| reclaimed.contains(&p.key())) {
            let put = self.xfrm.update_policy(policy);
            put.map_err(|e| refused("put a policy back", &e))?;
            self.reclaim.remove(&policy.key());
        }
        // What is not wanted any more is not put back.
        self.reclaim.clear();
        let have = match reclaimed.is_empty() {
            true => have,
            false => self.xfrm.policies().map_err(|e| missing(&e))?,
        };
        self.standing = have
            .iter()
            .filter(|policy| is_ours(policy))
            .map(|policy| (policy.key(), policy.clone()))
            .collect();
        self.carry_out(changes(&have, &want))
    }

    /// Compares all that is known with the kernel.
    fn resync(&mut self) -> Result<(), DatapathError> {
        self.count("resyncs");
        let stand = self.xfrm.sas(|listed| {
            let grown = !matches!(listed.sa.algorithm, XfrmAlgorithm::None);
            let soft = past_soft_limit(&listed);
            (grown && is_our_sa(listed.sa.reqid)).then_some((listed.sa.id, soft))
        });
        let stand: BTreeMap<XfrmSaId, bool> = stand.map_err(|e| missing(&e))?.into_iter().collect();
        let softened =
            |(id, owner): (&XfrmSaId, &SaId)| (stand.get(id) == Some(&true)).then_some(*owner);
        let softened: Vec<SaId> = self.owners.iter().filter_map(softened).collect();
        for owner in softened {
            self.softened(owner);
        }
        let known: BTreeSet<XfrmSaId> = self.leftovers.ids().copied().collect();
        let unknown = |id: &&XfrmSaId| {
            !self.owners.contains_key(id) && !known.contains(id) && !self.timers.will_remove(id)
        };
        let unknown: Vec<XfrmSaId> = stand.keys().filter(unknown).copied().collect();
        for id in unknown {
            // Its removal failed once.
            self.delete_sa(&id)?;
        }
        let known = self.owners.keys().chain(self.leftovers.ids());
        let gone: Vec<XfrmSaId> = known
            .filter(|id| !stand.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            self.lost(&id);
        }
        self.repair()
    }
}

/// Whether the kernel has told, or will with the next packet, that a soft limit is reached.
fn past_soft_limit(listed: &XfrmListedSa) -> bool {
    let limits = &listed.sa.limits;
    let past = |used: u64, limit: Option<u64>| limit.is_some_and(|limit| used >= limit);
    past(listed.used.packets, limits.soft_packets) || past(listed.used.bytes, limits.soft_bytes)
}

#[cfg(test)]
mod tests {
    use testudo_netlink::XfrmSaUse;

    use super::*;

    #[test]
    fn a_soft_limit_of_packets_or_of_bytes_is_reached_when_it_is_used_up() {
        let listed = |soft_packets, soft_bytes, packets, bytes| {
            let mut sa = crate::probe::sample(true, &[7; 36]);
            sa.limits.soft_packets = soft_packets;
            sa.limits.soft_bytes = soft_bytes;
            let used = XfrmSaUse {
                packets,
                bytes,
                ..XfrmSaUse::default()
            };
            past_soft_limit(&XfrmListedSa { sa, used })
        };
        assert!(!listed(Some(10), Some(1000), 9, 999));
        assert!(listed(Some(10), Some(1000), 10, 999));
        assert!(listed(Some(10), Some(1000), 9, 1000));
        assert!(!listed(None, None, 10, 1000), "none was asked for");
    }
}
