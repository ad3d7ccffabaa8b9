//! What is known and what stands, behind the lock that the agent's calls and the worker share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use testudo_datapath::{DatapathError, Event};
use testudo_model::{
    ChildId, ClearTraffic, Encapsulation, PeerId, ProtectedFlows, SaDirection, SaId, SaMode, Spi,
    TrafficPolicy, TrafficSelector,
};
use testudo_netlink::{Nft, Xfrm, XfrmPolicy, XfrmPolicyKey, XfrmSaId};

use crate::Options;
use crate::event::Events;
use crate::firewall::Set;
use crate::leftover::{Kind, Leftovers};
use crate::nft;
use crate::plan::{
    Bindings, Change, Conflict, InUse, Plan, changes, desired, desired_for, is_ours,
};
use crate::probe::{Facts, missing};
use crate::sa::{Extras, is_outbound};
use crate::tag::is_our_sa;
use crate::timers::Timers;

/// All of it.
pub(crate) struct Core {
    pub(crate) xfrm: Xfrm,
    pub(crate) facts: Facts,
    pub(crate) options: Options,
    pub(crate) events: Arc<Events>,
    pub(crate) nft: Nft,
    /// It was said that this kernel has no nftables.
    pub(crate) told_no_nft: bool,
    pub(crate) policy: Option<TrafficPolicy>,
    /// The overlay has another port, and the agent has not been told yet that SAs want successors.
    pub(crate) overlay_moved: bool,
    pub(crate) bindings: Bindings,
    /// Peers that have a request ID.
    pub(crate) bound: BTreeSet<PeerId>,
    /// Policies of ours that stand in the kernel.
    pub(crate) standing: BTreeMap<XfrmPolicyKey, XfrmPolicy>,
    /// Policies of ours that others have replaced.
    pub(crate) reclaim: BTreeSet<XfrmPolicyKey>,
    pub(crate) pairs: BTreeMap<ChildId, Pair>,
    /// Whose SA it is.
    pub(crate) owners: BTreeMap<XfrmSaId, SaId>,
    pub(crate) leftovers: Leftovers,
    pub(crate) timers: Timers,
    /// What happened that is no drop.
    pub(crate) notices: BTreeMap<&'static str, u64>,
    /// What SAs dropped that are gone.
    pub(crate) past_drops: BTreeMap<&'static str, u64>,
}

/// A pair of SAs of ours, as far as they are installed.
pub(crate) struct Pair {
    pub(crate) peer: PeerId,
    pub(crate) mode: SaMode,
    pub(crate) encapsulation: Encapsulation,
    pub(crate) inbound: Option<XfrmSaId>,
    pub(crate) outbound: Option<Outbound>,
    /// Told already.
    pub(crate) lost: bool,
    /// Where its packets were last said to come from.
    pub(crate) moved: Option<std::net::SocketAddr>,
}

/// Its outbound half.
pub(crate) struct Outbound {
    pub(crate) id: XfrmSaId,
    /// The CPU that it is for; `None`: all.
    pub(crate) cpu: Option<u32>,
    pub(crate) local: Vec<TrafficSelector>,
    pub(crate) remote: Vec<TrafficSelector>,
}

impl Pair {
    /// As policies name it.
    pub(crate) fn in_use(&self) -> Option<InUse> {
        let outbound = self.outbound.as_ref()?;
        Some(InUse {
            spi: Spi(outbound.id.spi),
            cpu: outbound.cpu,
            mode: self.mode,
            ends: (self.encapsulation.local(), self.encapsulation.remote()),
            local: outbound.local.clone(),
            remote: outbound.remote.clone(),
        })
    }
}

impl Core {
    /// Finds what an earlier run left. Nothing is changed.
    pub(crate) fn new(
        mut xfrm: Xfrm,
        facts: Facts,
        options: Options,
    ) -> Result<Self, DatapathError> {
        let mut leftovers = Leftovers::default();
        let mut bindings = Bindings::default();
        let found = xfrm.sas(|listed| {
            let sa = &listed.sa;
            let kind = match (is_outbound(sa), sa.cpu) {
                (false, _) => Kind::Inbound,
                (true, None) => Kind::Outbound,
                (true, Some(_)) => Kind::OfCpu,
            };
            is_our_sa(sa.reqid).then_some((sa.id, sa.reqid, kind))
        });
        for (id, reqid, kind) in found.map_err(|e| missing(&e))? {
            bindings.reserve(reqid);
            leftovers.add(id, reqid, kind);
        }
        Ok(Self {
            xfrm,
            facts,
            nft: Nft::new(&options.nft),
            told_no_nft: false,
            options,
            events: Arc::default(),
            policy: None,
            overlay_moved: false,
            bindings,
            bound: BTreeSet::new(),
            standing: BTreeMap::new(),
            reclaim: BTreeSet::new(),
            pairs: BTreeMap::new(),
            owners: BTreeMap::new(),
            leftovers,
            timers: Timers::default(),
            notices: BTreeMap::new(),
            past_drops: BTreeMap::new(),
        })
    }

    /// What SAs of a peer get.
    pub(crate) fn extras(&mut self, peer: &PeerId) -> Result<Extras, DatapathError> {
        let reqid = self
            .bindings
            .bind(peer)
            .map_err(|e| DatapathError::Refused {
                operation: "install an SA".into(),
                reason: e.to_string(),
            })?;
        self.bound.insert(peer.clone());
        Ok(Extras {
            facts: self.facts,
            reqid,
            overlay: self.policy.as_ref().and_then(overlay),
            output_mark: self.options.output_mark,
            hard_time: self.options.hard_time,
        })
    }

    /// Makes policies and firewall say what `policy` says.
    pub(crate) fn set_traffic(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        let policies = self.set_policies(policy);
        let set = set_firewall(&self.nft, policy, policies);
        self.traffic_set(policy, set)
    }

    /// The first step: the policies.
    pub(crate) fn set_policies(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        let have = self.xfrm.policies().map_err(|e| missing(&e))?;
        self.adopt(&have);
        let moved = self.policy.as_ref().map(overlay);
        let moved = moved.is_some_and(|before| before != overlay(policy));
        self.overlay_moved |= moved;
        self.policy = Some(policy.clone());
        let want = desired(policy, &self.bindings, self.facts.ipv6);
        self.standing = have
            .iter()
            .filter(|policy| is_ours(policy))
            .map(|policy| (policy.key(), policy.clone()))
            .collect();
        self.carry_out(changes(&have, &want))
    }

    /// The last step, with what came of those before: what is not wanted any more goes.
    pub(crate) fn traffic_set(
        &mut self,
        policy: &TrafficPolicy,
        set: Set,
    ) -> Result<(), DatapathError> {
        let notice = set?;
        let told = std::mem::replace(&mut self.told_no_nft, notice.is_some());
        if let Some(notice) = notice.filter(|_| !told) {
            tracing::warn!("{notice}");
        }
        self.drop_strangers(policy)?;
        if std::mem::take(&mut self.overlay_moved) {
            // SAs that stand open packets to the old port alone: they want successors now.
            for child in self.pairs.keys() {
                self.events.push(Event::SoftLimit { child: *child });
            }
        }
        Ok(())
    }

    /// Learns once, after a restart, whose the SAs are that were found. The policy that was kept
    /// says it, and not the new one: where another node has got the address or the prefix of one
    /// that was removed, it must not get its SAs.
    fn adopt(&mut self, have: &[XfrmPolicy]) {
        let Some(kept) = self.options.kept.take() else {
            return;
        };
        let leftovers = &self.leftovers;
        self.bindings
            .adopt(&kept, have, |template| leftovers.going_on(template));
        for (id, reqid) in self.leftovers.outbound() {
            if let Some(peer) = self.bindings.peer(reqid).cloned() {
                self.bindings.stands(&peer, id);
            }
        }
        let adopted = kept.peers.into_iter().map(|peer| peer.peer);
        let adopted = adopted.filter(|peer| self.bindings.reqid(peer).is_some());
        self.bound.extend(adopted);
    }

    /// Makes the policies of one peer what they should be now.
    pub(crate) fn sync_peer(&mut self, peer: &PeerId) -> Result<(), DatapathError> {
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        let want = desired_for(policy, &self.bindings, self.facts.ipv6, peer);
        let have: Vec<XfrmPolicy> = want
            .iter()
            .filter_map(|policy| self.standing.get(&policy.key()).cloned())
            .collect();
        self.carry_out(changes(&have, &want))
    }

    /// Takes the steps of a plan, up to the first that fails; then says what stood in the way, as
    /// [`DatapathError::Partly`].
    pub(crate) fn carry_out(&mut self, plan: Plan) -> Result<(), DatapathError> {
        for change in plan.changes {
            match &change {
                Change::Add(policy) => self.add_policy(policy)?,
                Change::Replace(policy) => self.xfrm.update_policy(policy).map_err(|e| set(&e))?,
                Change::Remove(key) => match self.xfrm.delete_policy(key) {
                    Err(e) if !e.is_not_found() => return Err(set(&e)),
                    _ => {}
                },
            }
            match change {
                Change::Add(policy) | Change::Replace(policy) => {
                    self.standing.insert(policy.key(), policy);
                }
                Change::Remove(key) => {
                    self.standing.remove(&key);
                }
            }
        }
        match plan.conflicts.as_slice() {
            [] => Ok(()),
            [conflict] => Err(partly(SET, conflict.to_string())),
            [conflict, more @ ..] => {
                Err(partly(SET, format!("{conflict}, and {} more", more.len())))
            }
        }
    }

    /// Adds a policy. One that stands there unknown to us is named; if it is ours after all, it
    /// is replaced.
    fn add_policy(&mut self, policy: &XfrmPolicy) -> Result<(), DatapathError> {
        match self.xfrm.add_policy(policy) {
            Err(e) if e.is_exists() => match self.xfrm.policy(&policy.key()) {
                Ok(Some(foreign)) if !is_ours(&foreign) => Err(DatapathError::Refused {
                    operation: SET.into(),
                    reason: Conflict { foreign }.to_string(),
                }),
                Ok(Some(_)) => self.xfrm.update_policy(policy).map_err(|e| set(&e)),
                _ => Err(set(&e)),
            },
            other => other.map_err(|e| set(&e)),
        }
    }

    /// Removes what an earlier run left of peers that are not wanted any more, and forgets those
    /// that have no SAs.
    pub(crate) fn drop_strangers(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        let peers: BTreeSet<&PeerId> = policy.peers.iter().map(|p| &p.peer).collect();
        let wanted = |peer: &PeerId| peers.contains(peer);
        for reqid in self.leftovers.reqids() {
            let owner = self.bindings.peer(reqid);
            if !owner.is_some_and(wanted) {
                for id in self.leftovers.take(reqid) {
                    self.delete_sa(&id)?;
                }
                self.bindings.release(reqid);
            }
        }
        let with_sas: BTreeSet<&PeerId> = self.pairs.values().map(|pair| &pair.peer).collect();
        let bindings = &mut self.bindings;
        self.bound.retain(|peer| {
            let stays = peers.contains(peer) || with_sas.contains(peer);
            if !stays {
                bindings.forget(peer);
            }
            stays
        });
        Ok(())
    }

    /// Removes all of ours: policies, SAs, the firewall's table.
    pub(crate) fn clear(&mut self) -> Result<(), DatapathError> {
        nft::remove(&self.nft)?;
        self.clear_xfrm()
    }

    /// The same, less the firewall's table.
    pub(crate) fn clear_xfrm(&mut self) -> Result<(), DatapathError> {
        self.policy = None;
        let have = self.xfrm.policies().map_err(|e| missing(&e))?;
        self.carry_out(changes(&have, &[]))?;
        self.standing.clear();
        let ours = self.xfrm.sas(|listed| {
            let reqid = listed.sa.reqid;
            is_our_sa(reqid).then_some(listed.sa.id)
        });
        for id in ours.map_err(|e| missing(&e))? {
            self.delete_sa(&id)?;
        }
        self.pairs.clear();
        self.owners.clear();
        self.bindings = Bindings::default();
        self.bound.clear();
        self.leftovers = Leftovers::default();
        self.timers = Timers::default();
        Ok(())
    }

    /// Removes an SA; one that is not there is no error.
    pub(crate) fn delete_sa(&mut self, id: &XfrmSaId) -> Result<(), DatapathError> {
        self.owners.remove(id);
        match self.xfrm.delete_sa(id) {
            Err(e) if !e.is_not_found() => Err(refused("remove an SA", &e)),
            _ => {
                self.gone(id);
                Ok(())
            }
        }
    }

    /// An SA does not stand any more: where it was what kept packets from the SAs of single CPUs,
    /// they go there again.
    pub(crate) fn gone(&mut self, id: &XfrmSaId) {
        if let Some(peer) = self.bindings.gone(id) {
            self.block_or_try_again(&peer);
        }
    }

    /// An SA of ours is gone and nobody of ours removed it: what it carried is blocked from here
    /// on, and the agent is told once.
    pub(crate) fn lost(&mut self, id: &XfrmSaId) {
        self.leftovers.forget(id);
        let Some(SaId { child, direction }) = self.owners.remove(id) else {
            self.leftover_lost(id);
            self.gone(id);
            return;
        };
        self.count("sas_lost");
        let Some(pair) = self.pairs.get_mut(&child) else {
            return;
        };
        let told = std::mem::replace(&mut pair.lost, true);
        let peer = pair.peer.clone();
        if direction == SaDirection::Outbound {
            self.bindings.stop_using(&peer, Spi(id.spi));
            self.bindings.gone(id);
            self.block_or_try_again(&peer);
        }
        if !told {
            self.events.push(Event::SaLost { child });
        }
    }

    /// An SA that an earlier run left is gone.
    fn leftover_lost(&mut self, id: &XfrmSaId) {
        let names_it = |policy: &XfrmPolicy| {
            policy
                .templates
                .iter()
                .any(|t| t.spi == id.spi && t.destination == id.destination)
        };
        let reqid = self
            .standing
            .values()
            .find(|policy| names_it(policy))
            .and_then(|policy| policy.templates.first())
            .map(|template| template.reqid);
        let owner = reqid.and_then(|reqid| self.bindings.peer(reqid).cloned());
        if let Some(peer) = owner {
            self.bindings.stop_using(&peer, Spi(id.spi));
            self.block_or_try_again(&peer);
        }
    }

    pub(crate) fn block_or_try_again(&mut self, peer: &PeerId) {
        if let Err(error) = self.sync_peer(peer) {
            tracing::warn!(%peer, "policies are not what they should be: {error}");
            self.timers.repair(Instant::now());
        }
    }

    pub(crate) fn count(&mut self, notice: &'static str) {
        *self.notices.entry(notice).or_default() += 1;
    }
}

/// The step between, which runs a program and needs no lock: the firewall, by what came of the
/// policies. `Some`: the kernel has none, and why.
pub(crate) fn set_firewall(
    nft: &Nft,
    policy: &TrafficPolicy,
    policies: Result<(), DatapathError>,
) -> Set {
    match wants_firewall(policy, &policies) {
        true => firewall_set(policies, nft::apply(nft, policy)),
        false => policies.map(|()| None),
    }
}

/// Where policies could not be set, the firewall closes all the same; it does not open.
pub(crate) fn wants_firewall(policy: &TrafficPolicy, policies: &Result<(), DatapathError>) -> bool {
    let closes = [policy.clear_inbound, policy.clear_outbound] == [ClearTraffic::Drop; 2];
    policies.is_ok() || closes
}

/// What came of both.
pub(crate) fn firewall_set(policies: Result<(), DatapathError>, firewall: Set) -> Set {
    policies.and(firewall.map_err(|error| partly("set the firewall", error.to_string())))
}

/// The overlay's port, where an overlay is protected.
fn overlay(policy: &TrafficPolicy) -> Option<u16> {
    match policy.flows {
        ProtectedFlows::Overlay { port } => Some(port),
        ProtectedFlows::Routed { .. } => None,
    }
}

const SET: &str = "set policies";

fn set(error: &testudo_netlink::Error) -> DatapathError {
    refused(SET, error)
}

fn partly(operation: &str, reason: String) -> DatapathError {
    DatapathError::Partly {
        operation: operation.into(),
        reason,
    }
}

/// An error of the kernel's in the words of the datapath.
pub(crate) fn refused(operation: &str, error: &testudo_netlink::Error) -> DatapathError {
    if error.is_not_permitted() || error.errno() == Some(libc::EPROTONOSUPPORT) {
        return missing(error);
    }
    DatapathError::Refused {
        operation: operation.into(),
        reason: error.to_string(),
    }
}
