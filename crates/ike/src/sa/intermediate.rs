//! Between IKE_SA_INIT and IKE_AUTH: additional key exchanges, one an IKE_INTERMEDIATE exchange
//! (RFC 9242; RFC 9370, 2.2.2), both ends.

use std::sync::Arc;

use testudo_crypto::KePrivate;
use testudo_model::Now;
use testudo_wire::ike::{ExchangeType, Header, KeyExchange, Message, NotifyType, Payload};

use crate::engine::{Dropped, Engine, Path};
use crate::error::{Fault, check_of};
use crate::event::IkeId;
use crate::fragments;
use crate::intauth::IntAuth;
use crate::keys::{IkeKeys, Seeds};
use crate::message::{self, Datagrams, Payloads, Plain, Request};
use crate::nat::Nat;
use crate::sa::create::peer_value;
use crate::sa::init::{Agreed, peer_hashes};
use crate::sa::{Greeting, HalfOpen, IntermediateSent, State, Transcript};
use crate::window::Freshness;

/// What the responder of an additional key exchange gets out of it.
struct Mixed {
    keys: IkeKeys,
    int_auth: IntAuth,
    answer: Datagrams,
}

impl Transcript {
    fn seeds(&self, (spi_i, spi_r): (u64, u64)) -> Seeds<'_> {
        Seeds {
            nonce_i: &self.nonce_i,
            nonce_r: &self.nonce_r,
            spi_i,
            spi_r,
        }
    }
}

impl Engine {
    /// IKE_SA_INIT is good: what the initiator does next.
    pub(crate) fn greeted(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        agreed: Agreed,
        response: &[u8],
        payloads: Payloads,
    ) -> Result<(), Dropped> {
        let nat_port = self.config.nat_port;
        let port = self.config.port;
        let sa = self.sas.get_mut(&id).ok_or("unknown_spi")?;
        let State::InitSent(init) = &sa.state else {
            return Err("unexpected_exchange");
        };
        let transcript = Transcript {
            request: init.request.bytes.whole().to_vec(),
            response: response.to_vec(),
            nonce_i: init.nonce.clone(),
            nonce_r: payloads.nonce.clone().unwrap_or_default(),
        };
        let greeting = Greeting {
            transcript,
            peer_hashes: peer_hashes(&payloads),
            childless: childless(&payloads),
            use_ppk: payloads.notify(NotifyType::USE_PPK).is_some(),
        };
        let before = (sa.spi_peer, sa.nat, sa.local, sa.remote);
        sa.spi_peer = agreed.spi_r;
        let forced = sa.nat.forced;
        sa.nat = Nat::detect(&payloads, sa.spis(), sa.local, from.remote, forced);
        if sa.nat.encapsulate() {
            sa.local.set_port(nat_port);
            if sa.remote.port() == port {
                sa.remote.set_port(nat_port);
            }
        }
        let mut keys = agreed.keys;
        keys.largest = fragments::largest(&self.config, &payloads, sa.path());
        let done = self.proceed(now, id, keys, IntAuth::default(), Arc::new(greeting));
        if self.is_suspended()
            && let Some(sa) = self.sas.get_mut(&id)
        {
            (sa.spi_peer, sa.nat, sa.local, sa.remote) = before;
        }
        done
    }

    /// After IKE_SA_INIT and after each additional key exchange: the next one, else IKE_AUTH.
    fn proceed(
        &mut self,
        now: Now,
        id: IkeId,
        keys: IkeKeys,
        int_auth: IntAuth,
        greeting: Arc<Greeting>,
    ) -> Result<(), Dropped> {
        let sent = match keys.suite.additional.after(int_auth.done) {
            Some(method) => {
                let ke = Arc::new(KePrivate::generate(method, &mut *self.random));
                self.send_intermediate(id, keys, int_auth, greeting, ke)
            }
            None => self.send_auth(id, keys, int_auth, greeting),
        };
        match sent {
            Ok(()) => {
                self.arm_retransmit(id, 1, now);
                Ok(())
            }
            Err(Fault::Suspended) => Err(Fault::Suspended.reason()),
            Err(fault) => {
                self.attempt_failed(id, (fault.check(), fault.text()), now);
                Err(fault.reason())
            }
        }
    }

    fn send_intermediate(
        &mut self,
        id: IkeId,
        mut keys: IkeKeys,
        mut int_auth: IntAuth,
        greeting: Arc<Greeting>,
        ke: Arc<KePrivate>,
    ) -> Result<(), Fault> {
        let sa = self.sas.get_mut(&id).ok_or(Fault::Bug("no such SA"))?;
        let (exchange, message_id) = (ExchangeType::IKE_INTERMEDIATE, int_auth.auth_message_id());
        let header = sa.request_header(exchange, message_id);
        let chain = message::inner(&[Payload::KeyExchange(KeyExchange {
            method: ke.method().id(),
            data: ke.public().to_vec(),
        })])?;
        let bytes = message::protect_chain(&mut keys, &header, &chain)?;
        int_auth.add_ours(&keys, &header, &chain);
        let path = sa.path();
        sa.state = State::IntermediateSent(Box::new(IntermediateSent {
            keys,
            int_auth,
            greeting,
            ke,
            request: Request::new(message_id, exchange, bytes.clone()),
        }));
        self.send(path, &bytes);
        Ok(())
    }

    /// The answer to our IKE_INTERMEDIATE.
    pub(crate) fn intermediate_answer(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let Some((parsed, plain)) = self.open_answer(now, id, bytes, header)? else {
            return Ok(());
        };
        let outcome = plain.payloads().and_then(|payloads| {
            if let Some(error) = payloads.error() {
                return Ok(Err(error.kind));
            }
            self.take_intermediate(id, &payloads, (bytes, &parsed), &plain)
                .map(Ok)
        });
        match outcome {
            Ok(Ok((keys, int_auth, greeting))) => self.proceed(now, id, keys, int_auth, greeting),
            Err(Fault::Suspended) => Err(Fault::Suspended.reason()),
            Ok(Err(error)) => {
                let text = format!("{} answers {error}", from.remote);
                self.attempt_failed(id, (check_of(error), text), now);
                Ok(())
            }
            Err(fault) => {
                self.attempt_failed(id, (fault.check(), fault.text()), now);
                Err(fault.reason())
            }
        }
    }

    /// The initiator's half: the keys after the exchange, and what AUTH will cover.
    fn take_intermediate(
        &mut self,
        id: IkeId,
        payloads: &Payloads,
        message: (&[u8], &Message<'_>),
        plain: &Plain,
    ) -> Result<(IkeKeys, IntAuth, Arc<Greeting>), Fault> {
        let bad = Fault::Misbehaved("bad_public_key");
        let ke = self.intermediate_sent(id)?.0.ke.clone();
        let value = peer_value(&ke, payloads).ok_or(bad)?;
        let shared = self.agree(&ke, value)?;
        let (sent, spis) = self.intermediate_sent(id)?;
        let seeds = sent.greeting.transcript.seeds(spis);
        let mixed = sent.keys.mix(shared, &seeds, true)?;
        let mut int_auth = sent.int_auth.clone();
        int_auth.add_theirs(&sent.keys, message, plain.first, plain.inner()?);
        Ok((mixed, int_auth, sent.greeting.clone()))
    }

    fn intermediate_sent(&self, id: IkeId) -> Result<(&IntermediateSent, (u64, u64)), Fault> {
        let sa = self.sas.get(&id).ok_or(Fault::Bug("no such SA"))?;
        match &sa.state {
            State::IntermediateSent(sent) => Ok((sent, sa.spis())),
            _ => Err(Fault::Bug("not waiting for IKE_INTERMEDIATE")),
        }
    }

    /// The peer's IKE_INTERMEDIATE.
    pub(crate) fn intermediate_request(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let sa = self.sas.get_mut(&id).ok_or("unknown_spi")?;
        let State::HalfOpen(half) = &sa.state else {
            return Err("unexpected_exchange");
        };
        match half.answered.freshness(header.message_id, 1) {
            Freshness::Outside | Freshness::Early => return Err("message_id"),
            // Under the keys from before our answer.
            Freshness::Repeated => {
                let prior = half.prior.as_ref().ok_or("message_id")?;
                let plain = message::unprotect(prior, bytes, &parsed)?;
                if !plain.asks_again() {
                    return Err("fragment_repeated");
                }
                let answer = half
                    .answered
                    .answer_to(header.message_id)
                    .cloned()
                    .ok_or("message_id")?;
                self.counters.answers_repeated += 1;
                self.send(from, &answer);
                return Ok(());
            }
            // Not agreed on at all.
            Freshness::New if half.keys.suite.additional.is_empty() => {
                return Err("unexpected_exchange");
            }
            Freshness::New => {}
        }
        let Some(plain) = self.open_half_open(now, id, from, (bytes, &parsed))? else {
            return Ok(());
        };
        match self.mix(id, &plain, (bytes, &parsed)) {
            Ok(mixed) => {
                self.mixed(id, from, mixed);
                Ok(())
            }
            Err(Fault::Suspended) => Err(Fault::Suspended.reason()),
            Err(fault) => {
                self.fault(None, from, None, &fault, false);
                self.refuse_half_open(id, from, header, &fault)
            }
        }
    }

    /// The responder's half of an additional key exchange.
    fn mix(
        &mut self,
        id: IkeId,
        plain: &Plain,
        message: (&[u8], &Message<'_>),
    ) -> Result<Mixed, Fault> {
        let half = self.half_open(id)?;
        let method = half
            .keys
            .suite
            .additional
            .after(half.int_auth.done)
            .ok_or(Fault::Misbehaved("intermediate_without_purpose"))?;
        let payloads = plain.payloads()?;
        let (public, shared) = self.answer_ke(method, &payloads)?;
        let chain = message::inner(&[public])?;
        let sa = self.sas.get_mut(&id).ok_or(Fault::Bug("no such SA"))?;
        let header = sa.answer_header(message.1.header.exchange, message.1.header.message_id);
        let spis = sa.spis();
        let State::HalfOpen(half) = &mut sa.state else {
            return Err(Fault::Bug("not half open"));
        };
        let mut int_auth = half.int_auth.clone();
        int_auth.add_theirs(&half.keys, message, plain.first, plain.inner()?);
        int_auth.add_ours(&half.keys, &header, &chain);
        let answer = message::protect_chain(&mut half.keys, &header, &chain)?;
        let keys = half.keys.mix(shared, &half.transcript.seeds(spis), false)?;
        Ok(Mixed {
            keys,
            int_auth,
            answer,
        })
    }

    /// The new keys are used from the next message on.
    fn mixed(&mut self, id: IkeId, to: Path, mixed: Mixed) {
        let state = self.sas.get_mut(&id).map(|sa| &mut sa.state);
        let Some(State::HalfOpen(half)) = state else {
            return;
        };
        half.prior = Some(std::mem::replace(&mut half.keys, mixed.keys));
        half.int_auth = mixed.int_auth;
        half.answered.answered(mixed.answer.clone(), 1);
        self.send(to, &mixed.answer);
    }

    pub(crate) fn half_open(&self, id: IkeId) -> Result<&HalfOpen, Fault> {
        match self.sas.get(&id).map(|sa| &sa.state) {
            Some(State::HalfOpen(half)) => Ok(half),
            _ => Err(Fault::Bug("not half open")),
        }
    }

    /// Opens a new request on a half-open SA: it is authentic, and whole. `None`: it is answered
    /// already, or parts of it are still to come.
    pub(crate) fn open_half_open(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        (bytes, parsed): (&[u8], &Message<'_>),
    ) -> Result<Option<Plain>, Dropped> {
        let half = self.half_open(id).map_err(|_| "unexpected_exchange")?;
        let plain = message::unprotect(&half.keys, bytes, parsed)?;
        if self.repeat_refusal(id, from, &plain)? {
            return Ok(None);
        }
        let whole = self.assemble(now, id, &parsed.header, plain)?;
        if whole.is_some() {
            self.half_open_path(id, from);
        }
        Ok(whole)
    }

    /// Says again why the last request was refused, if it was.
    fn repeat_refusal(&mut self, id: IkeId, to: Path, request: &Plain) -> Result<bool, Dropped> {
        let refused = self.half_open(id).ok().and_then(|h| h.refused.clone());
        let Some(answer) = refused else {
            return Ok(false);
        };
        if !request.asks_again() {
            return Err("fragment_repeated");
        }
        self.counters.answers_repeated += 1;
        self.send(to, &answer);
        Ok(true)
    }

    /// The peer moves to port 4500 here, and through a NAT from anywhere.
    pub(crate) fn half_open_path(&mut self, id: IkeId, from: Path) {
        let room = fragments::room(&self.config, from);
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        if sa.nat.encapsulate() || sa.remote.ip() == from.remote.ip() {
            sa.local = from.local;
            sa.remote = from.remote;
            if let State::HalfOpen(half) = &mut sa.state {
                half.keys.largest = half.keys.largest.map(|_| room);
            }
        }
    }

    /// An error notify under the keys; the half-open SA stays to repeat it.
    pub(crate) fn refuse_half_open(
        &mut self,
        id: IkeId,
        to: Path,
        header: &Header,
        fault: &Fault,
    ) -> Result<(), Dropped> {
        if let Some(sa) = self.sas.get_mut(&id) {
            let header = sa.answer_header(header.exchange, header.message_id);
            if let State::HalfOpen(half) = &mut sa.state {
                let notify = Payload::Notify(fault.notify());
                if let Ok(bytes) = message::protect(&mut half.keys, &header, &[notify]) {
                    half.refused = Some(bytes.clone());
                    self.send(to, &bytes);
                }
            }
        }
        Err(fault.reason())
    }
}

/// Whether the peer takes an IKE_AUTH without a child (RFC 6023).
pub(crate) fn childless(payloads: &Payloads) -> bool {
    let kind = NotifyType::CHILDLESS_IKEV2_SUPPORTED;
    payloads.notify(kind).is_some()
}

/// Whether every additional key exchange that was agreed on has taken place.
pub(crate) fn is_complete(half: &HalfOpen) -> bool {
    half.keys
        .suite
        .additional
        .after(half.int_auth.done)
        .is_none()
}
