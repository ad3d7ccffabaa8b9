//! IKE_SA_INIT (RFC 7296, 1.2), both ends.

use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::{KeMethod, KePrivate, KeResponse, sha256};
use testudo_model::{Now, PeerId};
use testudo_wire::ike::{
    CertEncoding, CertificateRequest, ExchangeType, Header, KeyExchange, Message, Notify,
    NotifyType, Payload,
};

use crate::engine::{Dropped, Engine, Path};
use crate::error::{Fault, Refusal, check_of};
use crate::event::{DownReason, IkeId};
use crate::fragments;
use crate::intauth::IntAuth;
use crate::keys::{IkeKeys, Seeds, skeyseed};
use crate::message::{self, Payloads, Request};
use crate::nat::{self, Nat};
use crate::offload::Place;
use crate::ppk;
use crate::proof;
use crate::proposal;
use crate::sa::auth::needs_child;
use crate::sa::intermediate::childless;
use crate::sa::{HalfOpen, IkeSa, InitKey, InitSent, Source, State, Transcript};
use crate::timers::Deadline;
use crate::verify::FailedCheck;
use crate::window::Answered;

/// Bytes of our nonces (RFC 7296, 2.10: at least half the PRF's key).
pub(crate) const NONCE_LEN: usize = 32;
/// Cookies that one attempt answers: a peer changes its secret while it waits, no more.
const COOKIES: u32 = 4;
/// The largest IKE_SA_INIT request that is kept for AUTH.
const LARGEST_INIT: usize = 8192;

impl Engine {
    /// Starts to reach a peer, at its next address.
    pub(crate) fn begin(&mut self, peer_id: &PeerId, now: Now) {
        let Some(peer) = self.peers.get(peer_id) else {
            return;
        };
        let (path, forced) = (self.way_to(peer), peer.forced());
        let Some(&method) = self.suites_of(peer_id).ke_methods.first() else {
            return;
        };
        let born = self.tick();
        let id = IkeId(born);
        let spi_ours = self.ike_spi();
        let nonce = self.random_bytes(NONCE_LEN);
        let ke = Arc::new(KePrivate::generate(method, &mut *self.random));
        let mut sa = IkeSa {
            id,
            initiator: true,
            spi_ours,
            spi_peer: 0,
            local: path.local,
            remote: path.remote,
            nat: Nat {
                forced,
                ..Nat::default()
            },
            peer: Some(peer_id.clone()),
            born,
            begun: now.monotonic,
            init_key: None,
            partial: Vec::new(),
            state: State::InitSent(Box::new(InitSent {
                ke,
                nonce,
                cookie: None,
                cookies: 0,
                tried: vec![method],
                request: Request::new(0, ExchangeType::IKE_SA_INIT, Vec::new()),
                refusal: None,
            })),
        };
        if !self.build_init(&mut sa) {
            return;
        }
        self.counters.attempts += 1;
        self.insert_sa(sa);
        if let Some(peer) = self.peers.get_mut(peer_id) {
            peer.attempt = Some(id);
        }
        self.send_init(id, now);
    }

    /// Writes the request anew, with the cookie and method of now.
    fn build_init(&mut self, sa: &mut IkeSa) -> bool {
        let (spis, local, remote, forced) = ((sa.spi_ours, 0), sa.local, sa.remote, sa.nat.forced);
        let header = sa.request_header(ExchangeType::IKE_SA_INIT, 0);
        let State::InitSent(init) = &mut sa.state else {
            return false;
        };
        let mut payloads = Vec::new();
        if let Some(cookie) = &init.cookie {
            let notify = Notify::new(NotifyType::COOKIE, cookie.clone());
            payloads.push(Payload::Notify(notify));
        }
        let suites = self.suites_for(sa.peer.as_ref());
        let hashes = proof::hashes([suites]);
        payloads.push(Payload::Sa(proposal::ike_offer(suites, None)));
        let additional = !suites.additional_ke.is_empty();
        payloads.push(Payload::KeyExchange(KeyExchange {
            method: init.ke.method().id(),
            data: init.ke.public().to_vec(),
        }));
        payloads.push(Payload::Nonce(init.nonce.clone()));
        payloads.extend(nat::notifies(
            spis,
            local,
            remote,
            forced,
            &mut *self.random,
        ));
        payloads.push(hashes);
        payloads.extend(fragments::supported(&self.config));
        if additional {
            payloads.push(intermediate_supported());
        }
        if sa.peer.as_ref().is_some_and(|peer| self.asks_ppk(peer)) {
            payloads.push(ppk::use_ppk());
        }
        match message::clear(&header, &payloads) {
            Ok(bytes) => {
                init.request = Request::new(0, ExchangeType::IKE_SA_INIT, bytes);
                true
            }
            Err(_) => {
                self.count_drop("bug");
                false
            }
        }
    }

    fn send_init(&mut self, id: IkeId, now: Now) {
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        let path = sa.path();
        let Some(bytes) = sa.state.request().map(|r| r.bytes.clone()) else {
            return;
        };
        self.send(path, &bytes);
        self.arm_retransmit(id, 1, now);
    }

    /// An attempt has failed: the next address at once, and when all were tried, after a wait.
    pub(crate) fn attempt_failed(&mut self, id: IkeId, what: (FailedCheck, String), now: Now) {
        let Some(sa) = self.sas.get(&id) else { return };
        let (path, peer_id) = (sa.path(), sa.peer.clone());
        self.remove_sa(id, DownReason::Dead, now);
        self.fail(peer_id.clone(), path, None, what, true);
        let Some(peer_id) = peer_id else { return };
        self.retry_peer(&peer_id, now);
    }

    /// Counts a failed attempt and plans the next.
    pub(crate) fn retry_peer(&mut self, peer_id: &PeerId, now: Now) {
        let Some(peer) = self.peers.get_mut(peer_id) else {
            return;
        };
        peer.address = (peer.address + 1) % peer.config.addresses.len();
        peer.failures = peer.failures.saturating_add(1);
        let wanted = peer.config.initiate || peer.reauth;
        let rounds = peer.failures / u32::try_from(peer.config.addresses.len()).unwrap_or(1);
        let next_address = peer.address != 0;
        let wait = if next_address {
            Duration::from_millis(10)
        } else {
            let doubled = self
                .config
                .retry_initial
                .saturating_mul(1 << rounds.saturating_sub(1).min(16));
            doubled.min(self.config.retry_longest)
        };
        if wanted {
            let at = now.monotonic + wait + self.jitter(wait, 25);
            self.timers.set(Deadline::Start(peer_id.clone()), at);
        }
    }

    /// The answer to our IKE_SA_INIT. Nothing in it is authentic: what does not fit is dropped,
    /// refusals are remembered and the attempt goes on (RFC 7296, 2.21.1).
    pub(crate) fn init_answer(
        &mut self,
        now: Now,
        id: IkeId,
        from: Path,
        bytes: &[u8],
    ) -> Result<(), Dropped> {
        let parsed = Message::parse(bytes).map_err(|e| e.reason())?;
        let header = parsed.header;
        let payloads = Payloads::collect(parsed.payloads).map_err(|f| f.reason())?;
        let mut sa = self.sas.remove(&id).ok_or("unknown_spi")?;
        if header.message_id != 0 || sa.remote.ip() != from.remote.ip() {
            self.sas.insert(id, sa);
            return Err("unexpected_answer");
        }
        let outcome = self.init_answer_for(&mut sa, &payloads, header.responder_spi);
        self.sas.insert(id, sa);
        match outcome? {
            Verdict::Again => {
                self.send_init(id, now);
                Ok(())
            }
            Verdict::Agreed(agreed) => self.greeted(now, id, from, *agreed, bytes, payloads),
        }
    }

    fn init_answer_for(
        &mut self,
        sa: &mut IkeSa,
        payloads: &Payloads,
        spi_r: u64,
    ) -> Result<Verdict, Dropped> {
        let State::InitSent(init) = &mut sa.state else {
            return Err("unexpected_exchange");
        };
        if payloads.sa.is_none() {
            if let Some(cookie) = payloads.notify(NotifyType::COOKIE) {
                let usable = (1..=64).contains(&cookie.data.len()) && init.cookies < COOKIES;
                if !usable || init.cookie.as_ref() == Some(&cookie.data) {
                    return Err("useless_cookie");
                }
                init.cookie = Some(cookie.data.clone());
                init.cookies += 1;
                return self.init_again(sa);
            }
            if let Some(notify) = payloads.notify(NotifyType::INVALID_KE_PAYLOAD) {
                let wanted = notify.data_u16().and_then(KeMethod::from_id);
                // Only what we offered, and each method once in an attempt: a forged notify
                // costs a message, no more. The next attempt begins with the first again.
                let ours = &self.suites_for(sa.peer.as_ref()).ke_methods;
                let usable = wanted.filter(|m| ours.contains(m) && !init.tried.contains(m));
                let Some(method) = usable else {
                    return Err("useless_invalid_ke");
                };
                init.tried.push(method);
                init.ke = Arc::new(KePrivate::generate(method, &mut *self.random));
                return self.init_again(sa);
            }
            if let Some(error) = payloads.error() {
                let text = format!("{} answers {}", sa.remote, error.kind);
                init.refusal = Some((check_of(error.kind), text));
                return Err("unauthenticated_error");
            }
        }
        let (Some(answer), Some(ke), Some(nonce)) = (&payloads.sa, &payloads.ke, &payloads.nonce)
        else {
            return Err("missing_payload");
        };
        let method = init.ke.method();
        if spi_r == 0 || ke.method != method.id() || ke.data.len() != method.response_len() {
            return Err("unexpected_answer");
        }
        let suites = self.suites_for(sa.peer.as_ref());
        let (suite, _) =
            proposal::read_ike_answer(answer, suites, method, has_intermediate(payloads), false)
                .map_err(|f| f.reason())?;
        if let Some(fault) = self.lacks(sa.peer.as_ref(), payloads) {
            init.refusal = Some((fault.check(), fault.text()));
            return Err(fault.reason());
        }
        // A key that is on no curve is not the peer's: the true answer still counts.
        let shared = self.agree(&init.ke, &ke.data).map_err(|f| f.reason())?;
        let seeds = Seeds {
            nonce_i: &init.nonce,
            nonce_r: nonce,
            spi_i: sa.spi_ours,
            spi_r,
        };
        let seed = skeyseed(suite.prf, &seeds, &shared);
        let export = self.config.danger_export_keys;
        let keys = IkeKeys::derive(suite, &seed, &seeds, true, export).map_err(|f| f.reason())?;
        Ok(Verdict::Agreed(Box::new(Agreed { keys, spi_r })))
    }

    /// What we need of this peer and the answer does not have, though it agrees to all else.
    fn lacks(&self, peer: Option<&PeerId>, payloads: &Payloads) -> Option<Fault> {
        let id = peer?;
        let has_child = !self.peers.get(id)?.config.children.is_empty();
        if !has_child && !childless(payloads) {
            return Some(needs_child());
        }
        self.lacks_ppk(id, payloads.notify(NotifyType::USE_PPK).is_some())
    }

    fn init_again(&mut self, sa: &mut IkeSa) -> Result<Verdict, Dropped> {
        if self.build_init(sa) {
            Ok(Verdict::Again)
        } else {
            Err("bug")
        }
    }

    /// A peer's IKE_SA_INIT.
    pub(crate) fn init_request(
        &mut self,
        now: Now,
        from: Path,
        bytes: &[u8],
        header: &Header,
    ) -> Result<(), Dropped> {
        if header.message_id != 0 {
            return Err("message_id");
        }
        if bytes.len() > LARGEST_INIT {
            return Err("oversized");
        }
        // Our own request, sent back to us (lesson L39).
        if self.by_spi.contains_key(&header.initiator_spi) {
            return Err("reflected");
        }
        let key = InitKey {
            remote: from.remote,
            spi_i: header.initiator_spi,
            digest: sha256(&[bytes]),
        };
        if let Some(id) = self.inits.get(&key) {
            return self.repeat_init_answer(*id, from);
        }
        self.at_place(Place::Init(key.clone()), header.message_id)?;
        let answer = Header::new(
            header.initiator_spi,
            0,
            ExchangeType::IKE_SA_INIT,
            false,
            true,
            0,
        );
        match self.init_request_new(now, from, bytes, key) {
            Ok(()) => Ok(()),
            Err(Refused::Drop(reason)) => Err(reason),
            Err(Refused::Cookie(cookie)) => {
                self.counters.cookies_sent += 1;
                self.refuse_init(from, &answer, Notify::new(NotifyType::COOKIE, cookie));
                Ok(())
            }
            Err(Refused::Fault(fault)) => {
                self.refuse_init(from, &answer, fault.notify());
                Err(fault.reason())
            }
        }
    }

    fn refuse_init(&mut self, to: Path, header: &Header, notify: Notify) {
        if let Ok(bytes) = message::clear(header, &[Payload::Notify(notify)]) {
            self.transmit(to, bytes);
        }
    }

    fn repeat_init_answer(&mut self, id: IkeId, from: Path) -> Result<(), Dropped> {
        match self.sas.get(&id).map(|sa| &sa.state) {
            Some(State::HalfOpen(half)) => {
                let answer = half.transcript.response.clone();
                self.counters.answers_repeated += 1;
                self.transmit(from, answer);
                Ok(())
            }
            _ => Err("late_init"),
        }
    }

    fn init_request_new(
        &mut self,
        now: Now,
        from: Path,
        bytes: &[u8],
        key: InitKey,
    ) -> Result<(), Refused> {
        let parsed = Message::parse(bytes).map_err(Fault::Malformed)?;
        if parsed.encrypted.is_some() {
            return Err(Refused::Drop("unexpected_encryption"));
        }
        let payloads = Payloads::collect(parsed.payloads)?;
        let (Some(offer), Some(ke), Some(nonce)) = (&payloads.sa, &payloads.ke, &payloads.nonce)
        else {
            return Err(Fault::Misbehaved("missing_payload").into());
        };
        let source = match self.let_in_before() {
            Some(source) => source,
            None => self.let_in_from(now, from, key.spi_i, nonce, &payloads)?,
        };
        self.let_in(source);
        let address = from.remote.ip();
        let candidates = self.suites_at(address);
        let intermediate = has_intermediate(&payloads);
        let chosen = proposal::choose_first_ike(offer, candidates, ke.method, intermediate)?;
        let method = chosen.suite.ke;
        if ke.data.len() != method.public_len() {
            return Err(Fault::Misbehaved("bad_public_key").into());
        }
        let KeResponse { public, secret } = self.respond(method, &ke.data)?;
        let spi_ours = self.ike_spi();
        let nonce_r = self.random_bytes(NONCE_LEN);
        let seeds = Seeds {
            nonce_i: nonce,
            nonce_r: &nonce_r,
            spi_i: key.spi_i,
            spi_r: spi_ours,
        };
        let seed = skeyseed(chosen.suite.prf, &seeds, &secret);
        let export = self.config.danger_export_keys;
        let mut keys = IkeKeys::derive(chosen.suite, &seed, &seeds, false, export)?;
        keys.largest = fragments::largest(&self.config, &payloads, from);
        let spis = (key.spi_i, spi_ours);
        let use_ppk = self.answers_ppk(&payloads);
        let mut also = Vec::new();
        if keys.largest.is_some() {
            also.extend(fragments::supported(&self.config));
        }
        if use_ppk {
            also.push(ppk::use_ppk());
        }
        let response = self.build_init_answer(from, spis, &chosen, public, &nonce_r, also)?;
        let born = self.tick();
        let forced = self.wants_encapsulation(from);
        let sa = IkeSa {
            id: IkeId(born),
            initiator: false,
            spi_ours,
            spi_peer: key.spi_i,
            local: from.local,
            remote: from.remote,
            nat: Nat::detect(&payloads, (key.spi_i, 0), from.local, from.remote, forced),
            peer: None,
            born,
            begun: now.monotonic,
            init_key: Some(key),
            partial: Vec::new(),
            state: State::HalfOpen(Box::new(HalfOpen {
                keys,
                transcript: Transcript {
                    request: bytes.to_vec(),
                    response: response.clone(),
                    nonce_i: nonce.clone(),
                    nonce_r,
                },
                peer_hashes: peer_hashes(&payloads),
                use_ppk,
                source,
                int_auth: IntAuth::default(),
                prior: None,
                answered: Answered::from(1),
                refused: None,
            })),
        };
        let deadline = Deadline::HalfOpen(sa.id);
        let until = now.monotonic + self.config.half_open_timeout;
        self.timers.set(deadline, until);
        self.count_half_open(source);
        self.insert_sa(sa);
        self.transmit(from, response);
        Ok(())
    }

    /// Whether another half-open SA may be, and as what it is counted.
    fn let_in_from(
        &mut self,
        now: Now,
        from: Path,
        spi_i: u64,
        nonce: &[u8],
        payloads: &Payloads,
    ) -> Result<Source, Refused> {
        let limits = self.config.limits;
        let address = from.remote.ip();
        let held = |proven| {
            let source = Source { address, proven };
            self.half_open.get(&source).copied().unwrap_or(0)
        };
        let (unproven, proven) = (held(false), held(true));
        let most = limits.half_open_per_address;
        let busy = self.half_open_total >= limits.cookie_threshold || unproven >= most;
        if busy {
            self.demand_cookie(now, from, spi_i, nonce, payloads)?;
        }
        if self.half_open_total >= limits.half_open {
            return Err(Refused::Drop("half_open_limit"));
        }
        if busy && proven >= most {
            return Err(Refused::Drop("half_open_limit_of_address"));
        }
        Ok(Source {
            address,
            proven: busy,
        })
    }

    /// Whether a peer at that address is configured for forced encapsulation. Who it is, is
    /// known too late for the NAT detection.
    fn wants_encapsulation(&self, from: Path) -> bool {
        let ip = from.remote.ip().to_canonical();
        self.at_address.get(&ip).is_some_and(|s| s.forced > 0)
    }

    fn demand_cookie(
        &mut self,
        now: Now,
        from: Path,
        spi_i: u64,
        nonce: &[u8],
        payloads: &Payloads,
    ) -> Result<(), Refused> {
        let given = payloads.notify(NotifyType::COOKIE);
        let good = given.is_some_and(|n| self.cookies.check(from.remote, spi_i, nonce, &n.data));
        if good {
            return Ok(());
        }
        let random = &mut *self.random;
        let cookie = self
            .cookies
            .make(now.monotonic, random, from.remote, spi_i, nonce);
        Err(Refused::Cookie(cookie))
    }

    fn build_init_answer(
        &mut self,
        from: Path,
        spis: (u64, u64),
        chosen: &proposal::Chosen<crate::keys::Suite>,
        public: Vec<u8>,
        nonce: &[u8],
        also: Vec<Payload>,
    ) -> Result<Vec<u8>, Fault> {
        let forced = self.wants_encapsulation(from);
        let mut payloads = vec![
            Payload::Sa(proposal::ike_answer(chosen, None)),
            Payload::KeyExchange(KeyExchange {
                method: chosen.suite.ke.id(),
                data: public,
            }),
            Payload::Nonce(nonce.to_vec()),
        ];
        let random = &mut *self.random;
        payloads.extend(nat::notifies(spis, from.local, from.remote, forced, random));
        payloads.extend(self.certificate_request());
        // An RSA key signs with the first hash that is announced: none but what those take that
        // are known to be there.
        let (there, default) = self.suites_at(from.remote.ip());
        let elsewhere = there.is_empty().then_some(default);
        payloads.push(proof::hashes(there.into_iter().chain(elsewhere)));
        if !chosen.suite.additional.is_empty() {
            payloads.push(intermediate_supported());
        }
        payloads.push(Payload::Notify(Notify::new(
            NotifyType::CHILDLESS_IKEV2_SUPPORTED,
            [],
        )));
        payloads.extend(also);
        let header = Header::new(spis.0, spis.1, ExchangeType::IKE_SA_INIT, false, true, 0);
        message::clear(&header, &payloads)
    }

    /// CERTREQ with the CAs that our verifier trusts.
    pub(crate) fn certificate_request(&self) -> Option<Payload> {
        let authorities = self.verifier.as_ref()?.authorities();
        if authorities.is_empty() {
            return None;
        }
        Some(Payload::CertificateRequest(CertificateRequest {
            encoding: CertEncoding::X509_SIGNATURE,
            authorities: authorities.concat(),
        }))
    }
}

/// The hashes that a peer takes in signatures.
pub(crate) fn peer_hashes(payloads: &Payloads) -> Vec<u16> {
    payloads
        .notify(NotifyType::SIGNATURE_HASH_ALGORITHMS)
        .map(|n| n.data_u16s().take(32).collect())
        .unwrap_or_default()
}

/// The sender has IKE_INTERMEDIATE (RFC 9242, 3.1).
fn intermediate_supported() -> Payload {
    let kind = NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED;
    Payload::Notify(Notify::new(kind, []))
}

fn has_intermediate(payloads: &Payloads) -> bool {
    let kind = NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED;
    payloads.notify(kind).is_some()
}

/// What became of an answer to IKE_SA_INIT.
enum Verdict {
    /// The request goes out again, changed.
    Again,
    /// Keys are there.
    Agreed(Box<Agreed>),
}

/// What IKE_SA_INIT gave the initiator.
pub(crate) struct Agreed {
    pub(crate) keys: IkeKeys,
    pub(crate) spi_r: u64,
}

/// Why no half-open SA was made.
enum Refused {
    Drop(Dropped),
    Cookie(Vec<u8>),
    Fault(Fault),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Bug(reason) => Self::Drop(reason),
            Fault::Suspended => Self::Drop(fault.reason()),
            Fault::Incompatible(Refusal::TemporaryFailure) => Self::Drop("temporary_failure"),
            other => Self::Fault(other),
        }
    }
}
