//! INFORMATIONAL exchanges: DELETE, probes, late refusals (RFC 7296, 1.4).

use testudo_model::{ChildId, Now};
use testudo_wire::ike::{Delete, ExchangeType, Header, Message, NotifyType, Payload, ProtocolId};

use crate::engine::{Dropped, Engine, Path};
use crate::error::Fault;
use crate::event::{DownReason, IkeId};
use crate::exchange::Reply;
use crate::message::{self, Payloads};
use crate::sa::{ChildState, Pending, State};
use crate::verify::FailedCheck;

/// SPIs that are remembered when a DELETE overtakes an answer.
const EARLY_DELETES: usize = 16;

impl Engine {
    /// An authentic INFORMATIONAL request.
    pub(crate) fn informational_request(
        &mut self,
        now: Now,
        id: IkeId,
        payloads: Payloads,
    ) -> Result<Reply, Fault> {
        if payloads.notify(NotifyType::AUTHENTICATION_FAILED).is_some() {
            return Ok(self.refused_by_initiator(id));
        }
        if payloads.deletes.contains(&Delete::Ike) {
            let reason = self.delete_ike_request(now, id);
            return Ok(Reply {
                payloads: Vec::new(),
                gone: Some(reason),
            });
        }
        self.hear_words(id, &payloads);
        let mut ours = Vec::new();
        for delete in &payloads.deletes {
            if let Delete::Child { protocol, spis } = delete
                && *protocol == ProtocolId::ESP
            {
                for spi in spis {
                    ours.extend(self.delete_child_request(now, id, *spi));
                }
            }
        }
        ours.dedup();
        if ours.is_empty() {
            return Ok(Reply::of(Vec::new()));
        }
        let answer = Delete::Child {
            protocol: ProtocolId::ESP,
            spis: ours,
        };
        Ok(Reply::of(vec![Payload::Delete(answer)]))
    }

    /// The initiator tells, after IKE_AUTH, that we did not prove ourselves (RFC 7296, 2.21.2).
    fn refused_by_initiator(&mut self, id: IkeId) -> Reply {
        if let Some(sa) = self.sas.get(&id) {
            let (peer, path) = (sa.peer.clone(), sa.path());
            let text = "the peer does not accept our authentication".to_owned();
            self.fail(peer, path, None, (FailedCheck::RefusedByPeer, text), true);
        }
        Reply {
            payloads: Vec::new(),
            gone: Some(DownReason::Error),
        }
    }

    fn delete_ike_request(&mut self, now: Now, id: IkeId) -> DownReason {
        // Whatever we asked to replace it with is forgotten (RFC 7296, 2.25.2); what the peer
        // asked for takes its place.
        self.settle_deleted(id, now);
        let Some(sa) = self.sas.get(&id) else {
            return DownReason::PeerDeleted;
        };
        let replaced = sa
            .peer
            .as_ref()
            .is_some_and(|peer| self.open_sas(peer).iter().any(|other| *other != id));
        if replaced {
            DownReason::Replaced
        } else {
            DownReason::PeerDeleted
        }
    }

    /// The peer deletes the child on which it receives with `spi`; gives our SPI of it, unless
    /// we have deleted it ourselves (RFC 7296, 1.4.1).
    fn delete_child_request(&mut self, now: Now, ike: IkeId, spi: u32) -> Option<u32> {
        let est = self.sas.get_mut(&ike)?.established_mut()?;
        let found = est
            .children
            .iter()
            .filter_map(|id| self.children.get(id))
            .find(|c| c.spi_out == spi)
            .map(|c| (c.id, c.spi_in, c.peer.clone()));
        let Some((child, spi_in, peer)) = found else {
            if est.awaits_child() && est.deleted_spis.len() < EARLY_DELETES {
                est.deleted_spis.push(spi);
            }
            return None;
        };
        let deleting_too =
            matches!(&est.outstanding, Some((_, Pending::DeleteChild(c))) if *c == child);
        self.retire_child(child, DownReason::PeerDeleted, now);
        self.ensure_children_later(&peer, now);
        (!deleting_too).then_some(spi_in)
    }

    pub(crate) fn start_delete_child(&mut self, ike: IkeId, child: ChildId, now: Now) {
        let Some(known) = self.children.get_mut(&child) else {
            return;
        };
        if matches!(known.state, ChildState::Lingering(_)) || known.ike != ike {
            return;
        }
        let spi = known.spi_in;
        self.mark_deleting(child, DownReason::Closed, now);
        self.send_delete_spi(ike, spi, Pending::DeleteChild(child), now);
    }

    pub(crate) fn send_delete_spi(&mut self, ike: IkeId, spi: u32, pending: Pending, now: Now) {
        let delete = Payload::Delete(Delete::Child {
            protocol: ProtocolId::ESP,
            spis: vec![spi],
        });
        self.send_request(now, ike, ExchangeType::INFORMATIONAL, &[delete], pending);
    }

    pub(crate) fn start_delete_ike(&mut self, ike: IkeId, now: Now) {
        let delete = Payload::Delete(Delete::Ike);
        self.send_request(
            now,
            ike,
            ExchangeType::INFORMATIONAL,
            &[delete],
            Pending::DeleteIke,
        );
    }

    /// A request of the responder's before we have its IKE_AUTH answer. All but its DELETE of the
    /// IKE SA wait until we can take them, and are sent again. With the DELETE the attempt has
    /// failed: to enter what the peer has left would be to send where nobody receives. Whoever
    /// holds the keys has not proven yet who it is, but can end the attempt by silence too.
    pub(crate) fn early_delete(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        const EARLY: Dropped = "unexpected_exchange";
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let sa = self.sas.get_mut(&id).ok_or("unknown_spi")?;
        let answer = sa.answer_header(header.exchange, header.message_id);
        let State::AuthSent(sent) = &mut sa.state else {
            return Err(EARLY);
        };
        let plain = message::unprotect(&sent.keys, bytes, &parsed)?;
        // A DELETE is never so long that it goes in parts.
        if plain.fragment.is_some() {
            return Err(EARLY);
        }
        let payloads = plain.payloads().map_err(|f| f.reason())?;
        if !payloads.deletes.contains(&Delete::Ike) {
            return Err(EARLY);
        }
        let bytes = message::protect(&mut sent.keys, &answer, &[]).map_err(|f| f.reason())?;
        self.send(from, &bytes);
        let text = format!("{} has given the IKE SA up before we had it", from.remote);
        self.attempt_failed(id, (FailedCheck::NoAnswer, text), now);
        Ok(())
    }

    /// The responder's answer to our AUTHENTICATION_FAILED.
    pub(crate) fn refusing_answer(
        &mut self,
        now: Now,
        id: IkeId,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let sa = self.sas.get(&id).ok_or("unknown_spi")?;
        let State::Refusing(refusing) = &sa.state else {
            return Err("unexpected_exchange");
        };
        if header.message_id != refusing.request.message_id {
            return Err("unexpected_answer");
        }
        // A part of it says enough.
        message::unprotect(&refusing.keys, bytes, &parsed)?;
        self.remove_sa(id, DownReason::Error, now);
        Ok(())
    }
}
