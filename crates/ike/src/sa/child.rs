//! Making children: the offer, the choice, the installation (RFC 7296, 1.3.1, 2.9, 2.17).

use std::net::IpAddr;

use testudo_crypto::{KeMethod, SecretBytes};
use testudo_model::{
    ChildId, Encapsulation, InboundSaSpec, Now, OutboundSaSpec, PeerId, SaMode, Spi,
    TrafficSelector,
};
use testudo_wire::ike::{self as wire, Notify, NotifyType, Payload};

use crate::addke::AdditionalKe;
use crate::engine::{Engine, Path};
use crate::error::{Fault, Refusal, check_of};
use crate::event::{ChildUp, DownReason, Event, IkeId, UseOutbound};
use crate::message::Payloads;
use crate::nat::Hidden;
use crate::proposal::{self, ChildSuite, Chosen};
use crate::sa::{Child, ChildOffer, ChildRequest, ChildState, IkeSa, Phase, Slot, Task, resource};
use crate::suites::Suites;
use crate::timers::Deadline;
use crate::ts;
use crate::verify::FailedCheck;

/// Stands for the name of a child that the peer asked for and that none of ours matches.
pub(crate) const UNMATCHED: &str = "unmatched";

/// What a responder agreed to.
pub(crate) struct Agreement {
    pub(crate) chosen: Chosen<ChildSuite>,
    pub(crate) spi_out: u32,
    pub(crate) slot: Slot,
    pub(crate) mode: SaMode,
    pub(crate) local_ts: Vec<TrafficSelector>,
    pub(crate) remote_ts: Vec<TrafficSelector>,
    /// Both ends have said that there may be more of it (RFC 9611).
    pub(crate) shares: bool,
    /// The addresses that the peer gave where a NAT changes them: ours and its own.
    pub(crate) original: Hidden,
}

/// A child that both ends agreed on.
pub(crate) struct NewChild {
    pub(crate) ike: IkeId,
    pub(crate) slot: Slot,
    pub(crate) mode: SaMode,
    pub(crate) suite: ChildSuite,
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) local_ts: Vec<TrafficSelector>,
    pub(crate) remote_ts: Vec<TrafficSelector>,
    /// Keys towards the responder and towards the initiator of the exchange.
    pub(crate) keys: (SecretBytes, SecretBytes),
    pub(crate) initiator: bool,
    pub(crate) born: u64,
    pub(crate) tie: Vec<u8>,
    pub(crate) replaces: Option<ChildId>,
    pub(crate) shares: Option<bool>,
    pub(crate) original: Hidden,
}

/// What the key exchanges of a child gave: none with IKE_AUTH.
struct Exchanged<'a> {
    method: Option<KeMethod>,
    secrets: &'a [SecretBytes],
    nonces: (&'a [u8], &'a [u8]),
}

impl Engine {
    /// Our offer of a configured child.
    pub(crate) fn offer_child(&mut self, peer_id: &PeerId, slot: &Slot) -> Option<ChildOffer> {
        let spi = self.esp_spi();
        let born = self.tick();
        let child = self.peers.get(peer_id)?.child(&slot.name)?;
        Some(ChildOffer {
            slot: slot.clone(),
            spi,
            mode: child.mode,
            local_ts: child.local_ts.clone(),
            remote_ts: child.remote_ts.clone(),
            born,
            shares: child.resources > 0,
        })
    }

    /// The payloads of an offer, without nonce and key exchange.
    pub(crate) fn offer_payloads(
        &self,
        suites: &Suites,
        offer: &ChildOffer,
        with_ke: bool,
        additional: &[AdditionalKe],
    ) -> Vec<Payload> {
        let mut out = Vec::new();
        if offer.mode == SaMode::Transport {
            out.push(transport_mode());
        }
        if offer.shares {
            out.push(resource::info(offer.slot.resource));
        }
        let proposals = proposal::child_offer(suites, offer.spi, with_ke, additional);
        out.push(Payload::Sa(proposals));
        out.push(Payload::TsInitiator(ts::to_wire(&offer.local_ts)));
        out.push(Payload::TsResponder(ts::to_wire(&offer.remote_ts)));
        out
    }

    /// Judges a peer's offer. A rekey keeps to what the old child has (lesson L51).
    pub(crate) fn agree_child(
        &self,
        ike: IkeId,
        peer_id: &PeerId,
        payloads: &Payloads,
        rekeyed: Option<ChildId>,
        in_auth: bool,
        now: Now,
    ) -> Result<Agreement, Fault> {
        let (Some(offer), Some(ts_i), Some(ts_r)) = (&payloads.sa, &payloads.ts_i, &payloads.ts_r)
        else {
            return Err(Fault::Misbehaved("missing_payload"));
        };
        let held = self
            .sas
            .get(&ike)
            .and_then(IkeSa::established)
            .map_or(0, |e| e.children.len());
        // A successor takes the place of one that is counted: for a while both stand.
        let limit = self.config.limits.children_per_ike_sa;
        let most = match rekeyed {
            Some(_) => limit.saturating_mul(2),
            None => limit,
        };
        if held >= most {
            return Err(Fault::Incompatible(Refusal::NoAdditionalSas));
        }
        let sent = payloads.ke.as_ref().map(|ke| ke.method);
        let (chosen, spi_out) =
            proposal::choose_child(offer, self.suites_of(peer_id), sent, in_auth)?;
        let asked = if payloads.notify(NotifyType::USE_TRANSPORT_MODE).is_some() {
            SaMode::Transport
        } else {
            SaMode::Tunnel
        };
        let peer = self.peers.get(peer_id).ok_or(Fault::Bug("no such peer"))?;
        let hidden = self.hidden(ike, asked);
        let seen = |list: &wire::TrafficSelectors, policy: &[TrafficSelector], by| match by {
            Some(by) => ts::substitute(list, policy, by),
            None => list.clone(),
        };
        let narrowed = |mode: SaMode, local: &[TrafficSelector], remote: &[TrafficSelector]| {
            let ts_r = seen(ts_r, local, hidden.local);
            let ts_i = seen(ts_i, remote, hidden.remote);
            let local_ts = ts::narrow(&ts_r, local);
            let remote_ts = ts::narrow(&ts_i, remote);
            let whole = ts::is_whole(&ts_r, &local_ts) && ts::is_whole(&ts_i, &remote_ts);
            (mode == asked && !local_ts.is_empty() && !remote_ts.is_empty())
                .then_some((local_ts, remote_ts, whole))
        };
        let found = match rekeyed.and_then(|id| self.children.get(&id)) {
            Some(old) => narrowed(old.mode, &old.local_ts, &old.remote_ts)
                .map(|(local, remote, _)| (old.slot.clone(), local, remote)),
            None => {
                let fitting: Vec<_> = peer
                    .config
                    .children
                    .iter()
                    .filter_map(|c| {
                        narrowed(c.mode, &c.local_ts, &c.remote_ts).map(|both| (c, both))
                    })
                    .collect();
                // The child that covers the whole offer, else the first that covers a part.
                let whole = fitting.iter().position(|(_, (_, _, whole))| *whole);
                fitting
                    .into_iter()
                    .nth(whole.unwrap_or(0))
                    .map(|(c, (local, remote, _))| {
                        let slot = self.requested_slot(ike, c, payloads)?;
                        Ok((slot, local, remote))
                    })
                    .transpose()?
            }
        };
        let (slot, local_ts, remote_ts) =
            found.ok_or(Fault::Incompatible(Refusal::TsUnacceptable))?;
        if self.refused_until(peer_id, &slot, now).is_some() {
            return Err(Fault::Incompatible(Refusal::TemporaryFailure));
        }
        let more = peer.child(&slot.name).is_some_and(|c| c.resources > 0);
        Ok(Agreement {
            chosen,
            spi_out,
            shares: resource::says_info(payloads) && (more || slot.resource > 0),
            slot,
            mode: asked,
            local_ts,
            remote_ts,
            original: Hidden {
                local: hidden.local.and_then(|seen| ts::only_host(ts_r, seen)),
                remote: hidden.remote.and_then(|seen| ts::only_host(ts_i, seen)),
            },
        })
    }

    /// What a NAT hides of a child in this mode: packets in a tunnel keep their addresses.
    fn hidden(&self, ike: IkeId, mode: SaMode) -> Hidden {
        self.sas
            .get(&ike)
            .filter(|_| mode == SaMode::Transport)
            .map(|sa| sa.nat.hides(sa.local, sa.remote))
            .unwrap_or_default()
    }

    /// The payloads of our answer, without nonce and key exchange.
    pub(crate) fn agreement_payloads(&self, agreement: &Agreement, spi_in: u32) -> Vec<Payload> {
        let mut out = Vec::new();
        if agreement.mode == SaMode::Transport {
            out.push(transport_mode());
        }
        if agreement.shares {
            out.push(resource::info(agreement.slot.resource));
        }
        let proposals = proposal::child_answer(&agreement.chosen, spi_in);
        out.push(Payload::Sa(proposals));
        let original = agreement.original;
        let ts_i = ts::restore(&agreement.remote_ts, original.remote);
        let ts_r = ts::restore(&agreement.local_ts, original.local);
        out.push(Payload::TsInitiator(ts_i));
        out.push(Payload::TsResponder(ts_r));
        out
    }

    /// The responder's part of the child that comes with IKE_AUTH: payloads for the answer.
    /// A child that fails does not fail the IKE SA (RFC 7296, 1.2).
    pub(crate) fn auth_child(
        &mut self,
        ike: IkeId,
        peer_id: &PeerId,
        from: Path,
        payloads: &Payloads,
        nonces: &(Vec<u8>, Vec<u8>),
        now: Now,
    ) -> Vec<Payload> {
        if payloads.sa.is_none() && payloads.ts_i.is_none() && payloads.ts_r.is_none() {
            return Vec::new();
        }
        let agreement = match self.agree_child(ike, peer_id, payloads, None, true, now) {
            Ok(agreement) => agreement,
            Err(fault) => {
                self.fault(
                    Some(peer_id.clone()),
                    from,
                    Some(UNMATCHED.into()),
                    &fault,
                    true,
                );
                return vec![Payload::Notify(fault.notify())];
            }
        };
        let spi_in = self.esp_spi();
        let says_info = resource::says_info(payloads);
        let answer = self.agreement_payloads(&agreement, spi_in);
        let born = self.tick();
        let cipher = agreement.chosen.suite.cipher;
        let Some(keys) = self
            .sas
            .get(&ike)
            .and_then(IkeSa::established)
            .map(|e| e.keys.child_keymat(cipher, &[], &nonces.0, &nonces.1))
        else {
            return Vec::new();
        };
        let new = NewChild {
            ike,
            slot: agreement.slot,
            mode: agreement.mode,
            suite: agreement.chosen.suite,
            spi_in,
            spi_out: agreement.spi_out,
            local_ts: agreement.local_ts,
            remote_ts: agreement.remote_ts,
            keys,
            initiator: false,
            born,
            tie: nonces.0.clone().min(nonces.1.clone()),
            replaces: None,
            shares: says_info.then_some(agreement.shares),
            original: agreement.original,
        };
        self.install(new, now);
        answer
    }

    /// The initiator's part of the child that comes with IKE_AUTH.
    pub(crate) fn child_of_auth(
        &mut self,
        ike: IkeId,
        from: Path,
        offer: ChildOffer,
        payloads: &Payloads,
        nonces: (&[u8], &[u8]),
        now: Now,
    ) {
        let peer = self.sas.get(&ike).and_then(|sa| sa.peer.clone());
        let Some(peer) = peer else { return };
        let slot = offer.slot.clone();
        let outcome = match payloads.error() {
            Some(error) => Err((
                check_of(error.kind),
                format!("the peer answers {}", error.kind),
            )),
            None => {
                let exchanged = Exchanged {
                    method: None,
                    secrets: &[],
                    nonces,
                };
                self.take_child(ike, offer, payloads, exchanged, None, now)
                    .map_err(|fault| (fault.check(), fault.text()))
            }
        };
        if let Err(what) = outcome {
            self.child_failed(&peer, from, &slot, what, now);
        }
    }

    /// The same of a child that we asked for with CREATE_CHILD_SA: `secrets` are those of its key
    /// exchanges, of which the first was by `method`.
    pub(crate) fn accept_child(
        &mut self,
        ike: IkeId,
        request: ChildRequest,
        answer: &Payloads,
        method: Option<KeMethod>,
        secrets: &[SecretBytes],
        now: Now,
    ) -> Result<(), Fault> {
        let nonce_r = answer
            .nonce
            .as_ref()
            .ok_or(Fault::Misbehaved("missing_payload"))?;
        let exchanged = Exchanged {
            method,
            secrets,
            nonces: (&request.nonce, nonce_r),
        };
        self.take_child(ike, request.offer, answer, exchanged, request.rekeys, now)
    }

    /// Reads the peer's answer to an offer and installs the child.
    fn take_child(
        &mut self,
        ike: IkeId,
        offer: ChildOffer,
        payloads: &Payloads,
        exchanged: Exchanged<'_>,
        replaces: Option<ChildId>,
        now: Now,
    ) -> Result<(), Fault> {
        let Exchanged {
            method,
            secrets,
            nonces,
        } = exchanged;
        let (Some(answer), Some(ts_i), Some(ts_r)) = (&payloads.sa, &payloads.ts_i, &payloads.ts_r)
        else {
            return Err(Fault::Misbehaved("missing_payload"));
        };
        let (suites, additional) = (self.suites_on(ike), self.additional_on(ike));
        let (suite, spi_out) = proposal::read_child_answer(answer, suites, method, additional)?;
        let est = self
            .sas
            .get_mut(&ike)
            .and_then(IkeSa::established_mut)
            .ok_or(Fault::Bug("no such IKE SA"))?;
        if est.deleted_spis.contains(&spi_out) {
            // The peer has deleted it already; that overtook this answer (lesson L44).
            return Err(Fault::Incompatible(Refusal::ChildNotFound(spi_out)));
        }
        let transport = payloads.notify(NotifyType::USE_TRANSPORT_MODE).is_some();
        let hidden = self.hidden(ike, offer.mode);
        let local_ts = accept(ts_i, &offer.local_ts, hidden.local);
        let remote_ts = accept(ts_r, &offer.remote_ts, hidden.remote);
        let original = Hidden {
            local: hidden.local.and_then(|seen| ts::only_host(ts_i, seen)),
            remote: hidden.remote.and_then(|seen| ts::only_host(ts_r, seen)),
        };
        let mode_fits = transport == (offer.mode == SaMode::Transport);
        let old = replaces.and_then(|id| self.children.get(&id));
        let (Some(local_ts), Some(remote_ts), true) = (local_ts, remote_ts, mode_fits) else {
            self.push_task(ike, Task::DeleteSpi(offer.spi), now);
            return Err(Fault::Incompatible(Refusal::TsUnacceptable));
        };
        // A rekey must not lose traffic that the old child carries (RFC 7296, 2.9.2).
        let shrunk = old.is_some_and(|old| {
            !ts::covers(&local_ts, &old.local_ts) || !ts::covers(&remote_ts, &old.remote_ts)
        });
        if shrunk {
            self.push_task(ike, Task::DeleteSpi(offer.spi), now);
            return Err(Fault::Incompatible(Refusal::TsUnacceptable));
        }
        let shares = resource::says_info(payloads);
        if offer.slot.resource > 0 && !shares && replaces.is_none() {
            // It does not know what it has made: to it this takes the fallback's place.
            self.push_task(ike, Task::DeleteSpi(offer.spi), now);
            return Err(Fault::Incompatible(Refusal::TsMaxQueue));
        }
        let keys = self
            .sas
            .get(&ike)
            .and_then(IkeSa::established)
            .map(|e| {
                e.keys
                    .child_keymat(suite.cipher, secrets, nonces.0, nonces.1)
            })
            .ok_or(Fault::Bug("no such IKE SA"))?;
        let new = NewChild {
            ike,
            slot: offer.slot,
            mode: offer.mode,
            suite,
            spi_in: offer.spi,
            spi_out,
            local_ts,
            remote_ts,
            keys,
            initiator: true,
            born: offer.born,
            tie: nonces.0.min(nonces.1).to_vec(),
            replaces,
            shares: offer.shares.then_some(shares),
            original,
        };
        if let Some(old) = replaces {
            self.forget_lost_followers(ike, old, &new.tie);
        }
        let (spi, wish) = (offer.spi, (offer.mode, offer.local_ts, offer.remote_ts));
        self.install(new, now);
        self.check_wish(spi, wish, replaces, now);
        Ok(())
    }

    /// Both ends agree: the child stands at ours, and the agent is told.
    pub(crate) fn install(&mut self, new: NewChild, now: Now) {
        let installed = self.tick();
        let id = ChildId(installed);
        let nat_port = self.config.nat_port;
        let Some(sa) = self.sas.get_mut(&new.ike) else {
            return;
        };
        let encapsulation = sa.encapsulation(nat_port);
        let Some(peer_id) = sa.peer.clone() else {
            return;
        };
        let Some(est) = sa.established_mut() else {
            return;
        };
        est.children.insert(id);
        if !new.initiator {
            est.unconfirmed.push(id);
        }
        let leaving = matches!(est.phase, Phase::Leaving(_));
        let state = self.first_state(&peer_id, &new.slot, leaving);
        let old = new.replaces.and_then(|old| self.children.get(&old));
        let rekeys = old.map_or(0, |old| old.rekeys + 1);
        self.children.insert(
            id,
            Child {
                id,
                ike: new.ike,
                peer: peer_id.clone(),
                slot: new.slot.clone(),
                spi_in: new.spi_in,
                spi_out: new.spi_out,
                mode: new.mode,
                local_ts: new.local_ts.clone(),
                remote_ts: new.remote_ts.clone(),
                cipher: new.suite.cipher,
                ke: new.suite.ke,
                initiator: new.initiator,
                confirmed: new.initiator,
                announced: false,
                state,
                replaces: new.replaces,
                shares: new.shares,
                born: new.born,
                installed,
                tie: new.tie.clone(),
                since: now.wall,
                rekeys,
                failures: 0,
                stale: false,
            },
        );
        self.by_spi_in.insert(new.spi_in, id);
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            let set = peer.children.entry(new.slot.clone()).or_default();
            set.insert(id);
            peer.retries.remove(&new.slot);
        }
        self.arm_child(id, new.initiator, now);
        self.counters.children_made += 1;
        if new.replaces.is_some() {
            self.counters.child_rekeys += 1;
        }
        let sending = self.choose_sending(&peer_id, &new.slot, Some(id));
        let use_outbound = if sending == Some(id) {
            UseOutbound::Now
        } else {
            UseOutbound::Wait
        };
        let ike = new.ike;
        let up = self.child_up(id, peer_id, new, encapsulation, use_outbound);
        self.events.push_back(Event::ChildUp(Box::new(up)));
        if state == ChildState::Deleting(DownReason::Closed) {
            self.push_task(ike, Task::DeleteChild(id), now);
        }
    }

    /// What was asked for and has come too late only receives, until it is deleted: its IKE SA is
    /// being left, or nobody wants it any longer.
    fn first_state(&self, peer: &PeerId, slot: &Slot, leaving: bool) -> ChildState {
        let wanted = self
            .peers
            .get(peer)
            .is_some_and(|p| p.child(&slot.name).is_some());
        if leaving {
            ChildState::Deleting(DownReason::Replaced)
        } else if wanted {
            ChildState::Up
        } else {
            ChildState::Deleting(DownReason::Closed)
        }
    }

    /// What the agent is told of a new child.
    fn child_up(
        &self,
        id: ChildId,
        peer: PeerId,
        new: NewChild,
        encapsulation: Encapsulation,
        use_outbound: UseOutbound,
    ) -> ChildUp {
        let (to_responder, to_initiator) = new.keys;
        let (key_out, key_in) = if new.initiator {
            (to_responder, to_initiator)
        } else {
            (to_initiator, to_responder)
        };
        let inbound = InboundSaSpec {
            child: id,
            peer: peer.clone(),
            spi: Spi(new.spi_in),
            cipher: new.suite.cipher,
            keymat: key_in,
            esn: new.suite.esn,
            replay_window: self.config.replay_window,
            mode: new.mode,
            encapsulation,
            local: new.local_ts.clone(),
            remote: new.remote_ts.clone(),
        };
        let outbound = OutboundSaSpec {
            child: id,
            peer: peer.clone(),
            spi: Spi(new.spi_out),
            cipher: new.suite.cipher,
            keymat: key_out,
            esn: new.suite.esn,
            mode: new.mode,
            encapsulation,
            local: new.local_ts,
            remote: new.remote_ts,
            limits: self.config.soft_limits,
        };
        ChildUp {
            child: id,
            ike: new.ike,
            peer,
            name: new.slot.name,
            resource: new.slot.resource,
            inbound,
            outbound,
            use_outbound,
            replaces: new.replaces,
            initiator: new.initiator,
            original_local: new.original.local,
            original_remote: new.original.remote,
        }
    }

    /// Soft and hard lifetime.
    fn arm_child(&mut self, id: ChildId, initiator: bool, now: Now) {
        let life = self.config.child_lifetime;
        let soft = self.soft_lifetime(life, initiator);
        self.timers
            .set(Deadline::RekeyChild(id), now.monotonic + soft);
        self.timers
            .set(Deadline::ExpireChild(id), now.monotonic + life + life / 4);
    }

    /// A child could not be made: tell, and try again later.
    pub(crate) fn child_failed(
        &mut self,
        peer: &PeerId,
        path: Path,
        slot: &Slot,
        what: (FailedCheck, String),
        now: Now,
    ) {
        let name = Some(slot.name.clone());
        self.fail(Some(peer.clone()), path, name, what, true);
        self.retry_child(peer, slot, now);
    }
}

/// The answer to our selectors, also where it names the address that a NAT made.
fn accept(
    answer: &wire::TrafficSelectors,
    offer: &[TrafficSelector],
    hidden: Option<IpAddr>,
) -> Option<Vec<TrafficSelector>> {
    let seen = || Some(ts::substitute(answer, offer, hidden?));
    ts::accept(answer, offer).or_else(|| ts::accept(&seen()?, offer))
}

fn transport_mode() -> Payload {
    Payload::Notify(Notify::new(NotifyType::USE_TRANSPORT_MODE, []))
}
