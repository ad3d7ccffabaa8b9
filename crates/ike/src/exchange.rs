//! Requests and answers on established IKE SAs: the window, retransmission, the queue of tasks.

use testudo_model::Now;
use testudo_wire::ike::{Delete, ExchangeType, Header, Message, Payload};

use crate::engine::{Dropped, Engine, Path};
use crate::error::Fault;
use crate::event::{DownReason, IkeId};
use crate::message::{self, Payloads, Plain, Request};
use crate::sa::create::peer_value;
use crate::sa::{Established, IkeSa, Pending, Phase, State, Task};
use crate::timers::Deadline;
use crate::verify::FailedCheck;
use crate::window::{self, Asked, Freshness};

/// What a request's handler wants done.
pub(crate) struct Reply {
    pub(crate) payloads: Vec<Payload>,
    /// The peer deleted the IKE SA: it goes with the answer.
    pub(crate) gone: Option<DownReason>,
}

impl Reply {
    pub(crate) fn of(payloads: Vec<Payload>) -> Self {
        Self {
            payloads,
            gone: None,
        }
    }
}

fn header(sa: &IkeSa, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
    let (spi_i, spi_r) = sa.spis();
    Header::new(spi_i, spi_r, exchange, sa.initiator, response, message_id)
}

impl IkeSa {
    /// Our request header.
    pub(crate) fn request_header(&self, exchange: ExchangeType, message_id: u32) -> Header {
        header(self, exchange, false, message_id)
    }

    /// Our answer's header.
    pub(crate) fn answer_header(&self, exchange: ExchangeType, message_id: u32) -> Header {
        header(self, exchange, true, message_id)
    }

    pub(crate) fn path(&self) -> Path {
        Path {
            local: self.local,
            remote: self.remote,
        }
    }
}

impl Engine {
    /// A request on an established SA.
    pub(crate) fn request(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let est = self.est(id)?;
        let window = window::window(&self.config);
        let freshness = est.answered.freshness(header.message_id, window);
        if freshness == Freshness::Outside {
            return Err("message_id");
        }
        let plain = message::unprotect(&est.keys, bytes, &parsed)?;
        if freshness == Freshness::Repeated {
            if !plain.asks_again() {
                return Err("fragment_repeated");
            }
            // Without the answer nobody enters an SA that we have left for another: its children
            // may be gone while those of the other stand.
            if header.exchange == ExchangeType::IKE_AUTH && self.has_left(id) {
                return Err("left_for_another");
            }
            // To where it came from: a NAT may have forgotten the old mapping.
            let answer = self.est(id)?.answered.answer_to(header.message_id);
            if let Some(answer) = answer.cloned() {
                self.counters.answers_repeated += 1;
                self.send(from, &answer);
            }
            return Ok(());
        }
        if header.exchange == ExchangeType::IKE_AUTH || est.phase == Phase::Gone {
            return Err("unexpected_exchange");
        }
        let made = est.unconfirmed.clone();
        let Some(plain) = self.assemble(now, id, header, plain)? else {
            return Ok(());
        };
        let asked = Asked {
            header: *header,
            from,
            plain,
            made,
        };
        let newest = self.is_newest(id, header.message_id);
        if freshness == Freshness::Early {
            self.hold(id, asked)?;
            self.heard_at(now, id, from, newest);
            return Ok(());
        }
        self.heard_at(now, id, from, newest);
        let outcome = self.take_request(now, id, asked);
        if !self.is_suspended() {
            // What comes next is another message, which has no datagram to wait with.
            self.never_suspend();
            self.take_held(now, id);
        }
        outcome
    }

    /// A request whose turn has come.
    pub(crate) fn take_request(
        &mut self,
        now: Now,
        id: IkeId,
        asked: Asked,
    ) -> Result<(), Dropped> {
        let Asked {
            header,
            from,
            plain,
            made,
        } = asked;
        let outcome = plain.payloads().and_then(|payloads| {
            self.note_window(id, &payloads);
            // All but its deletion says that the peer has settled on this SA.
            if !payloads.deletes.contains(&Delete::Ike) {
                self.peer_uses(id, now);
            }
            if header.exchange == ExchangeType::INFORMATIONAL {
                return self.informational_request(now, id, payloads);
            }
            // Before a new child is made: none may be sent on while an older one is sure.
            self.confirm_ike(id, made.clone(), now);
            if header.exchange == ExchangeType::IKE_FOLLOWUP_KE {
                self.follow_request(now, id, &payloads)
            } else {
                self.create_request(now, id, payloads)
            }
        });
        if matches!(outcome, Err(Fault::Suspended)) {
            return Err(Fault::Suspended.reason());
        }
        if !matches!(outcome, Ok(Reply { gone: Some(_), .. })) {
            self.confirm_ike(id, made, now);
        }
        self.reply(now, id, from, &header, outcome)
    }

    fn est(&self, id: IkeId) -> Result<&Established, Dropped> {
        self.sas
            .get(&id)
            .and_then(IkeSa::established)
            .ok_or("unknown_spi")
    }

    /// Answers a request, and ends the SA if the request or its fault asks for it.
    fn reply(
        &mut self,
        now: Now,
        id: IkeId,
        to: Path,
        header: &Header,
        outcome: Result<Reply, Fault>,
    ) -> Result<(), Dropped> {
        let (reply, fault) = match outcome {
            Ok(reply) => (reply, None),
            Err(fault) => {
                let notify = Payload::Notify(fault.notify());
                (Reply::of(vec![notify]), Some(fault))
            }
        };
        self.send_answer(id, to, header, &reply.payloads)?;
        if let Some(reason) = reply.gone {
            self.gone(id, reason, now);
        } else {
            self.pump(id, now);
        }
        match fault {
            None => Ok(()),
            Some(fault) => {
                if fault.is_fatal() {
                    let peer = self.sas.get(&id).and_then(|sa| sa.peer.clone());
                    self.fault(peer, to, None, &fault, true);
                    self.gone(id, DownReason::Error, now);
                }
                Err(fault.reason())
            }
        }
    }

    fn send_answer(
        &mut self,
        id: IkeId,
        to: Path,
        header: &Header,
        payloads: &[Payload],
    ) -> Result<(), Dropped> {
        let window = window::window(&self.config);
        let sa = self.sas.get_mut(&id).ok_or("unknown_spi")?;
        let answer = sa.answer_header(header.exchange, header.message_id);
        let est = sa.established_mut().ok_or("unknown_spi")?;
        let bytes = message::protect(&mut est.keys, &answer, payloads).map_err(|f| f.reason())?;
        if !est.settled {
            // The window is one until the initial exchanges are over: the peer has our answer.
            est.settled = true;
            est.answered.forget();
        }
        est.answered.answered(bytes.clone(), window);
        self.send(to, &bytes);
        Ok(())
    }

    /// Opens an answer, in any state: it is to the request that waits, authentic, and whole.
    /// `None`: parts of it are still to come.
    pub(crate) fn open_answer<'m>(
        &mut self,
        now: Now,
        id: IkeId,
        bytes: &'m [u8],
        header: &Header,
    ) -> Result<Option<(Message<'m>, Plain)>, Dropped> {
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let sa = self.sas.get(&id).ok_or("unknown_spi")?;
        let (keys, request) = sa.state.awaits().ok_or("unexpected_answer")?;
        if (request.message_id, request.exchange) != (header.message_id, header.exchange) {
            return Err("unexpected_answer");
        }
        let plain = message::unprotect(keys, bytes, &parsed)?;
        let whole = self.assemble(now, id, header, plain)?;
        Ok(whole.map(|plain| (parsed, plain)))
    }

    /// An answer on an established SA.
    pub(crate) fn answer(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let Some((_, plain)) = self.open_answer(now, id, bytes, header)? else {
            return Ok(());
        };
        let est = self.est(id)?;
        let unsure = (!est.confirmed).then(|| est.unconfirmed.clone());
        self.compute_answer(id, &plain).map_err(|f| f.reason())?;
        self.heard(now, id);
        self.follow(id, from.remote);
        self.timers.cancel(&Deadline::Retransmit(id));
        if let Some(made) = unsure {
            // It was the responder of IKE_AUTH and had not heard since: the initiator answers
            // only when it has established the SA, with the child. What this queues waits until
            // the answer is done with, which may go on with another request.
            self.confirm_ike(id, made, now);
        }
        let taken = self
            .sas
            .get_mut(&id)
            .and_then(IkeSa::established_mut)
            .and_then(|est| est.outstanding.take());
        let Some((_, pending)) = taken else {
            return Err("unexpected_answer");
        };
        match plain.payloads() {
            Ok(payloads) => self.answered(now, id, from, pending, payloads),
            // Whatever it says to our DELETE: the peer has had it, and no more will come.
            Err(fault) if matches!(pending, Pending::DeleteIke) => {
                self.count_drop(fault.reason());
                self.remove_sa(id, DownReason::Error, now);
            }
            Err(fault) => self.broken_answer(now, id, from, &fault),
        }
        self.pump(id, now);
        Ok(())
    }

    /// The key exchange that an answer ends, before the request is taken for answered.
    fn compute_answer(&mut self, id: IkeId, plain: &Plain) -> Result<(), Fault> {
        if !self.config.offload {
            return Ok(());
        }
        let est = self.sas.get(&id).and_then(IkeSa::established);
        let outstanding = est.and_then(|est| est.outstanding.as_ref());
        let private = outstanding
            .and_then(|(_, pending)| pending.private())
            .cloned();
        let (Some(private), Ok(payloads)) = (private, plain.payloads()) else {
            return Ok(());
        };
        match peer_value(&private, &payloads) {
            Some(value) => self.agree_ahead(&private, value),
            None => Ok(()),
        }
    }

    fn answered(&mut self, now: Now, id: IkeId, from: Path, pending: Pending, payloads: Payloads) {
        self.note_window(id, &payloads);
        match pending {
            Pending::Probe => {}
            // The SA was closed while we waited: what the peer made goes with it.
            Pending::CreateChild(_) if self.is_shut(id) => {}
            Pending::CreateChild(request) => {
                self.create_answer(now, id, from, *request, payloads);
                let est = self.sas.get_mut(&id).and_then(IkeSa::established_mut);
                if let Some(est) = est.filter(|est| !est.awaits_child()) {
                    est.deleted_spis.clear();
                }
            }
            Pending::RekeyIke(request) => self.rekey_answer(now, id, from, *request, payloads),
            Pending::DeleteChild(child) => self.retire_child(child, DownReason::Closed, now),
            Pending::DeleteSpi => {}
            Pending::DeleteIke => self.remove_sa(id, DownReason::Replaced, now),
        }
    }

    /// An answer under the SA's keys that cannot be read: the two ends no longer agree on what
    /// stands, so the SA is given up.
    pub(crate) fn broken_answer(&mut self, now: Now, id: IkeId, from: Path, fault: &Fault) {
        self.count_drop(fault.reason());
        let peer = self.sas.get(&id).and_then(|sa| sa.peer.clone());
        self.fault(peer, from, None, fault, true);
        self.shut(id, DownReason::Error, now);
    }

    /// A message of the peer's was new and authentic.
    pub(crate) fn heard(&mut self, now: Now, id: IkeId) {
        let liveness = self.config.liveness;
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let Some(est) = sa.established_mut() else {
            return;
        };
        est.last_in = now.monotonic;
        if est.phase == Phase::Open && !liveness.is_zero() {
            self.timers
                .set(Deadline::Liveness(id), now.monotonic + liveness);
        }
    }

    /// The same of a request. One that was overtaken says nothing new of where the peer is.
    fn heard_at(&mut self, now: Now, id: IkeId, from: Path, newest: bool) {
        self.heard(now, id);
        if newest {
            self.follow(id, from.remote);
        }
    }

    /// Sends a request on an established SA; the window must be free.
    pub(crate) fn send_request(
        &mut self,
        now: Now,
        id: IkeId,
        exchange: ExchangeType,
        payloads: &[Payload],
        pending: Pending,
    ) {
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let path = sa.path();
        let Some(message_id) = sa.established().map(|e| e.next_request) else {
            return;
        };
        let header = sa.request_header(exchange, message_id);
        let Some(est) = sa.established_mut() else {
            return;
        };
        let sealed = message::protect(&mut est.keys, &header, payloads);
        let (Ok(bytes), Some(next)) = (sealed, message_id.checked_add(1)) else {
            // Neither a message that does not fit nor the end of the message IDs heals.
            self.count_drop("bug");
            self.remove_sa(id, DownReason::Error, now);
            return;
        };
        debug_assert!(est.outstanding.is_none(), "the window is not free");
        est.next_request = next;
        est.outstanding = Some((Request::new(message_id, exchange, bytes.clone()), pending));
        self.send(path, &bytes);
        self.arm_retransmit(id, 1, now);
    }

    /// Waits for an answer after the `sent`th transmission.
    pub(crate) fn arm_retransmit(&mut self, id: IkeId, sent: u32, now: Now) {
        let timing = self.config.retransmission;
        let doubled = timing.initial.saturating_mul(1 << (sent.clamp(1, 17) - 1));
        let wait = doubled.min(timing.longest);
        let at = now.monotonic + wait + self.jitter(wait, 25);
        self.timers.set(Deadline::Retransmit(id), at);
    }

    /// No answer came in time.
    pub(crate) fn retransmit(&mut self, id: IkeId, now: Now) {
        let tries = self.config.retransmission.tries;
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let path = sa.path();
        let Some(request) = sa.state.request() else {
            return;
        };
        if request.sent >= tries {
            self.no_answer(id, now);
            return;
        }
        request.sent += 1;
        let (sent, bytes) = (request.sent, request.bytes.clone());
        self.counters.retransmits += 1;
        self.send(path, &bytes);
        self.arm_retransmit(id, sent, now);
    }

    fn no_answer(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let (path, peer) = (sa.path(), sa.peer.clone());
        let silent = (
            FailedCheck::NoAnswer,
            format!("no answer from {}", path.remote),
        );
        match &sa.state {
            State::InitSent(init) => {
                let what = init.refusal.clone().unwrap_or(silent);
                self.attempt_failed(id, what, now);
            }
            State::IntermediateSent(_) | State::AuthSent(_) => self.attempt_failed(id, silent, now),
            State::Refusing(_) | State::HalfOpen(_) | State::Gap => {
                self.remove_sa(id, DownReason::Dead, now)
            }
            State::Established(est) => match est.phase {
                Phase::Leaving(reason) => self.remove_sa(id, reason, now),
                Phase::Shut | Phase::Gone => self.remove_sa(id, DownReason::Dead, now),
                Phase::Rekeyed => self.remove_rekeyed(id, now),
                Phase::Open | Phase::Waiting => {
                    // A successor that the peer made may live on without this one.
                    self.settle_deleted(id, now);
                    self.fail(peer, path, None, silent, true);
                    self.remove_sa(id, DownReason::Dead, now);
                }
            },
        }
    }

    /// Queues a task on an IKE SA, unless it is queued or under way already.
    pub(crate) fn push_task(&mut self, id: IkeId, task: Task, now: Now) {
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return;
        };
        if est.has_task(&task) {
            return;
        }
        est.tasks.push_back(task);
        self.pump(id, now);
    }

    /// Starts the next task if the window is free.
    pub(crate) fn pump(&mut self, id: IkeId, now: Now) {
        loop {
            let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
                return;
            };
            if est.outstanding.is_some() || est.phase == Phase::Gone {
                return;
            }
            // A rekeyed SA has one thing left to say.
            let wanted = |task: &Task| {
                est.phase == Phase::Open && !est.yields(task) || *task == Task::DeleteIke
            };
            let Some(index) = est.tasks.iter().position(wanted) else {
                return;
            };
            let Some(task) = est.tasks.remove(index) else {
                return;
            };
            self.start_task(id, task, now);
        }
    }

    fn start_task(&mut self, id: IkeId, task: Task, now: Now) {
        match task {
            Task::Probe => {
                self.send_request(now, id, ExchangeType::INFORMATIONAL, &[], Pending::Probe);
            }
            Task::CreateChild(slot) => self.start_create(id, &slot, now),
            Task::RekeyChild(child) => self.start_rekey_child(id, child, now),
            Task::DeleteChild(child) => self.start_delete_child(id, child, now),
            Task::DeleteSpi(spi) => self.send_delete_spi(id, spi, Pending::DeleteSpi, now),
            Task::RekeyIke => self.start_rekey_ike(id, now),
            Task::DeleteIke => self.start_delete_ike(id, now),
            Task::Say(word) => self.start_say(id, word, now),
        }
    }
}
