//! Messages that come in fragments (RFC 7383, 2.6): what is held of them, and for how long.
//!
//! A fragment is stored only when it is authentic, so a stranger holds nothing here. Who has done
//! a key exchange and has not proven itself yet may: such messages are the first to go when the
//! bound for all of them is reached, the oldest of them first.
//!
//! How much a path takes is not probed (RFC 7383, 2.5.2 leaves it open): the default size passes
//! nearly everywhere, and an operator who knows better can say so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use testudo_model::Now;
use testudo_wire::ike::{Header, Notify, NotifyType, Payload, PayloadType};

use crate::config::EngineConfig;
use crate::engine::{Dropped, Engine, Path};
use crate::event::IkeId;
use crate::message::{Payloads, Plain};
use crate::sa::State;
use crate::timers::Deadline;

/// How long the parts of a message are kept after its first one. The peer sends all of them
/// again until it is answered.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a stored part costs besides its bytes, about.
const PART_COST: usize = 64;
const UDP_LEN: usize = 8;
/// The non-ESP marker, which is before every message on port 4500 (RFC 3948, 2.2).
const MARKER_LEN: usize = 4;
/// No fragments are made for messages smaller than this, in bytes.
const SMALLEST: usize = 160;

/// Which message of an IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    response: bool,
    message_id: u32,
}

/// The parts that have come of one message.
pub(crate) struct Assembly {
    name: Name,
    total: u16,
    first: PayloadType,
    parts: BTreeMap<u16, Vec<u8>>,
    /// What it costs, by [`PART_COST`].
    cost: usize,
    rank: Rank,
}

/// The order in which incomplete messages go when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    authenticated: bool,
    born: u64,
}

impl Assembly {
    /// The whole message, when every part is there.
    fn join(&self) -> Option<Plain> {
        (self.parts.len() == usize::from(self.total)).then(|| {
            let all: Vec<&[u8]> = self.parts.values().map(Vec::as_slice).collect();
            Plain::joined(self.first, all.concat())
        })
    }
}

/// All incomplete messages of an engine.
#[derive(Default)]
pub(crate) struct Incomplete {
    order: BTreeSet<(Rank, IkeId)>,
    /// What they cost together, in bytes.
    pub(crate) cost: usize,
}

/// IKEV2_FRAGMENTATION_SUPPORTED, if we take and make fragments (RFC 7383, 2.3).
pub(crate) fn supported(config: &EngineConfig) -> Option<Payload> {
    let kind = NotifyType::IKEV2_FRAGMENTATION_SUPPORTED;
    (config.fragment_size > 0).then(|| Payload::Notify(Notify::new(kind, [])))
}

/// The largest message that goes by `path` in one datagram, when both ends said that they take
/// fragments.
pub(crate) fn largest(config: &EngineConfig, payloads: &Payloads, path: Path) -> Option<usize> {
    payloads.notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)?;
    (config.fragment_size > 0).then(|| room(config, path))
}

/// What an IP packet of the size that is wanted leaves to a message (RFC 7383, 2.5.1). It is counted
/// to the byte: an ML-KEM-768 key in IKE_INTERMEDIATE makes 1249, which is one datagram on port 500
/// of IPv4, and two behind a marker or IPv6's larger header.
pub(crate) fn room(config: &EngineConfig, path: Path) -> usize {
    let ip_len = match path.remote.ip().to_canonical() {
        std::net::IpAddr::V4(_) => 20,
        std::net::IpAddr::V6(_) => 40,
    };
    let marker_len = match path.local.port() == config.nat_port {
        true => MARKER_LEN,
        false => 0,
    };
    let taken = ip_len + UDP_LEN + marker_len;
    usize::from(config.fragment_size)
        .saturating_sub(taken)
        .max(SMALLEST)
}

impl Engine {
    /// Takes in an authentic message or fragment that is in the window; gives the message when it
    /// is whole.
    pub(crate) fn assemble(
        &mut self,
        now: Now,
        id: IkeId,
        header: &Header,
        plain: Plain,
    ) -> Result<Option<Plain>, Dropped> {
        if let Some(whole) = self.assembled_before() {
            return Ok(Some(whole));
        }
        let name = Name {
            response: header.flags.response,
            message_id: header.message_id,
        };
        let Some(fragment) = plain.fragment else {
            // The peer has sent it whole after all.
            self.discard_message(id, name, "fragments_abandoned");
            return Ok(Some(plain));
        };
        if usize::from(fragment.total) > self.config.limits.fragments {
            return Err("too_many_fragments");
        }
        let text = plain.inner().map_err(|f| f.reason())?.to_vec();
        let held = self.partial(id, name).map(|a| a.total);
        match held {
            // The peer has found that its path takes less, and begins anew (RFC 7383, 2.6).
            Some(total) if fragment.total > total => {
                self.discard_message(id, name, "fragments_abandoned");
                self.begin_assembly(now, id, name, fragment.total);
            }
            // One from before that (lesson L20).
            Some(total) if fragment.total < total => return Err("fragment_total"),
            Some(_) => {}
            None => self.begin_assembly(now, id, name, fragment.total),
        }
        self.store(id, name, fragment.number, plain.first, text)?;
        let whole = self.partial(id, name).and_then(|a| a.join());
        if let Some(whole) = &whole {
            self.forget_messages(id, |a| a.name == name);
            self.assembled(whole);
        }
        Ok(whole)
    }

    /// Forgets all incomplete messages of an SA.
    pub(crate) fn forget_fragments(&mut self, id: IkeId) {
        self.forget_messages(id, |_| true);
    }

    /// The parts of a message have waited long enough for the others.
    pub(crate) fn fragments_over(&mut self, id: IkeId) {
        for _ in 0..self.forget_messages(id, |_| true) {
            self.count_drop("fragments_incomplete");
        }
    }

    fn partial(&mut self, id: IkeId, name: Name) -> Option<&mut Assembly> {
        let sa = self.sas.get_mut(&id)?;
        sa.partial.iter_mut().find(|a| a.name == name)
    }

    fn begin_assembly(&mut self, now: Now, id: IkeId, name: Name, total: u16) {
        let born = self.tick();
        let window = usize::try_from(crate::window::window(&self.config)).unwrap_or(1);
        let Some(sa) = self.sas.get_mut(&id) else {
            return;
        };
        // As many requests of the peer's as are in the window, and one answer.
        let most = if name.response { 1 } else { window };
        let mut same: Vec<Name> = sa
            .partial
            .iter()
            .map(|a| a.name)
            .filter(|other| other.response == name.response)
            .collect();
        same.sort_unstable();
        let many = (same.len() + 1).saturating_sub(most);
        let rank = Rank {
            // The initiator has not seen a proof yet, but it chose whom to ask.
            authenticated: !matches!(sa.state, State::HalfOpen(_)),
            born,
        };
        sa.partial.push(Assembly {
            name,
            total,
            first: PayloadType::NONE,
            parts: BTreeMap::new(),
            cost: 0,
            rank,
        });
        self.incomplete.order.insert((rank, id));
        let until = now.monotonic + PATIENCE;
        self.timers.set(Deadline::Reassembly(id), until);
        // The oldest of more was given up by the peer.
        for other in &same[..many] {
            self.discard_message(id, *other, "fragments_abandoned");
        }
    }

    fn store(
        &mut self,
        id: IkeId,
        name: Name,
        number: u16,
        first: PayloadType,
        text: Vec<u8>,
    ) -> Result<(), Dropped> {
        let cost = PART_COST + text.len();
        let largest = self.config.limits.fragmented_message;
        let Some(assembly) = self.partial(id, name) else {
            return Err("unknown_spi");
        };
        if assembly.parts.contains_key(&number) {
            return Err("fragment_repeated");
        }
        if assembly.cost + cost > largest {
            self.discard_message(id, name, "fragments_abandoned");
            return Err("fragments_oversized");
        }
        assembly.cost += cost;
        if number == 1 {
            // The others do not say it (RFC 7383, 2.5).
            assembly.first = first;
        }
        assembly.parts.insert(number, text);
        self.incomplete.cost += cost;
        while self.incomplete.cost > self.config.limits.fragment_bytes {
            let Some((rank, oldest)) = self.incomplete.order.first().copied() else {
                break;
            };
            self.forget_messages(oldest, |a| a.rank == rank);
            self.count_drop("fragment_limit");
        }
        Ok(())
    }

    fn discard_message(&mut self, id: IkeId, name: Name, reason: Dropped) {
        if self.forget_messages(id, |a| a.name == name) > 0 {
            self.count_drop(reason);
        }
    }

    /// Forgets incomplete messages of an SA; gives how many there were.
    fn forget_messages(&mut self, id: IkeId, doomed: impl Fn(&Assembly) -> bool) -> usize {
        let Some(sa) = self.sas.get_mut(&id) else {
            return 0;
        };
        let mut count = 0;
        sa.partial.retain(|assembly| {
            if !doomed(assembly) {
                return true;
            }
            count += 1;
            self.incomplete.cost -= assembly.cost;
            self.incomplete.order.remove(&(assembly.rank, id));
            false
        });
        if count > 0 && sa.partial.is_empty() {
            sa.partial = Vec::new();
            self.timers.cancel(&Deadline::Reassembly(id));
        }
        count
    }
}
