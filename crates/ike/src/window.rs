//! The message windows of an IKE SA (RFC 7296, 2.3).
//!
//! Of our own requests one waits for its answer at a time, however large the peer's window: no
//! exchange of ours is so frequent that a round trip each would matter, and what 2.8 and 2.25 say
//! of exchanges that cross is said of one on either side.
//!
//! The peer may have several on their way to us. One that overtakes another is held and processed
//! in its turn, for the same reason: its sender cannot know what the one before it will change.
//! The answers to the last ones are kept, each to be repeated.

use std::collections::VecDeque;

use testudo_model::{ChildId, Now};
use testudo_wire::ike::{Header, Notify, NotifyType, Payload};

use crate::config::EngineConfig;
use crate::engine::{Dropped, Engine, Path};
use crate::event::IkeId;
use crate::message::{Datagrams, Payloads, Plain};
use crate::sa::{IkeSa, Phase};

/// No window is larger.
const LARGEST: u32 = 64;

/// What the peer asked last, and our answers, kept for when it asks again.
#[derive(Default)]
pub(crate) struct Answered {
    /// The message ID of the next request.
    pub(crate) next: u32,
    /// The answers to the requests before it, the newest last.
    kept: VecDeque<Datagrams>,
}

/// How an incoming request's message ID stands to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Never seen, and next in turn.
    New,
    /// In the window, and another comes before it.
    Early,
    /// One of the last again.
    Repeated,
    /// Outside the window.
    Outside,
}

impl Answered {
    /// No request so far; the first will have this message ID.
    pub(crate) fn from(next: u32) -> Self {
        let kept = VecDeque::new();
        Self { next, kept }
    }

    /// With a window of `window` messages.
    pub(crate) fn freshness(&self, message_id: u32, window: u32) -> Freshness {
        match message_id.checked_sub(self.next) {
            Some(0) => Freshness::New,
            Some(ahead) if ahead < window => Freshness::Early,
            Some(_) => Freshness::Outside,
            None if self.answer_to(message_id).is_some() => Freshness::Repeated,
            None => Freshness::Outside,
        }
    }

    /// What was answered to one of the last requests.
    pub(crate) fn answer_to(&self, message_id: u32) -> Option<&Datagrams> {
        let back = usize::try_from(self.next.checked_sub(message_id)?).ok()?;
        self.kept.get(self.kept.len().checked_sub(back)?)
    }

    /// The next request is answered; as many answers as the peer can have requests under way are
    /// kept.
    pub(crate) fn answered(&mut self, bytes: Datagrams, window: u32) {
        self.next = self.next.saturating_add(1);
        let before = usize::try_from(window).unwrap_or(usize::MAX) - 1;
        while self.kept.len() > before {
            self.kept.pop_front();
        }
        // Most peers ask one thing and then nothing for an hour.
        self.kept.reserve_exact(1);
        self.kept.push_back(bytes.fitted());
    }

    /// The peer has the answers so far.
    pub(crate) fn forget(&mut self) {
        self.kept = VecDeque::new();
    }
}

/// An authentic request of the peer's.
pub(crate) struct Asked {
    pub(crate) header: Header,
    pub(crate) from: Path,
    pub(crate) plain: Plain,
    /// Children that the peer made with requests that were answered when this one came: it may
    /// have them installed by now.
    pub(crate) made: Vec<ChildId>,
}

/// How many requests of one peer we take at a time.
pub(crate) fn window(config: &EngineConfig) -> u32 {
    config.window.clamp(1, LARGEST)
}

/// SET_WINDOW_SIZE, if it is more than what every peer may do unasked.
pub(crate) fn announcement(config: &EngineConfig) -> Option<Payload> {
    let size = window(config);
    let notify = || Notify::new(NotifyType::SET_WINDOW_SIZE, size.to_be_bytes());
    (size > 1).then(|| Payload::Notify(notify()))
}

impl Engine {
    /// Keeps a request for its turn.
    pub(crate) fn hold(&mut self, id: IkeId, asked: Asked) -> Result<(), Dropped> {
        let most = self.config.limits.fragmented_message;
        let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
            return Err("unknown_spi");
        };
        let message_id = asked.header.message_id;
        if est.held.iter().any(|h| h.header.message_id == message_id) {
            return Err("early_repeated");
        }
        let bytes: usize = est.held.iter().map(|h| h.plain.len()).sum();
        if bytes + asked.plain.len() > most {
            return Err("early_oversized");
        }
        est.held.push(asked);
        Ok(())
    }

    /// Whether no request after this one has come.
    pub(crate) fn is_newest(&self, id: IkeId, message_id: u32) -> bool {
        let est = self.sas.get(&id).and_then(IkeSa::established);
        est.is_some_and(|est| est.held.iter().all(|h| h.header.message_id < message_id))
    }

    /// Processes the requests whose turn has come.
    pub(crate) fn take_held(&mut self, now: Now, id: IkeId) {
        loop {
            let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) else {
                return;
            };
            if est.phase == Phase::Gone {
                est.held = Vec::new();
            }
            let next = est.answered.next;
            let turn = |h: &Asked| h.header.message_id == next;
            let Some(index) = est.held.iter().position(turn) else {
                return;
            };
            let asked = est.held.remove(index);
            if est.held.is_empty() {
                est.held = Vec::new();
            }
            if let Err(reason) = self.take_request(now, id, asked) {
                self.count_drop(reason);
            }
        }
    }

    /// What a peer says of its window. A window never shrinks (RFC 7296, 2.3).
    pub(crate) fn note_window(&mut self, id: IkeId, payloads: &Payloads) {
        let Some(notify) = payloads.notify(NotifyType::SET_WINDOW_SIZE) else {
            return;
        };
        let said: Option<[u8; 4]> = notify.data.as_slice().try_into().ok();
        let Some(size) = said.map(u32::from_be_bytes).filter(|size| *size > 0) else {
            self.count_drop("bad_window_size");
            return;
        };
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            est.peer_window = est.peer_window.max(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_moves_with_the_answers() {
        let mut answered = Answered::from(2);
        let of = |a: &Answered| (0..9).map(|id| a.freshness(id, 3)).collect::<Vec<_>>();
        use Freshness::{Early, New, Outside, Repeated};
        let o = Outside;
        assert_eq!(of(&answered), [o, o, New, Early, Early, o, o, o, o]);
        for byte in 2..6 {
            answered.answered(vec![byte].into(), 3);
        }
        let r = Repeated;
        assert_eq!(of(&answered), [o, o, o, r, r, r, New, Early, Early]);
        for id in 3..6u8 {
            let answer = answered.answer_to(id.into()).unwrap();
            assert_eq!(answer.whole(), [id]);
        }
        answered.forget();
        assert_eq!(of(&answered), [o, o, o, o, o, o, New, Early, Early]);
        let last = Answered::from(u32::MAX);
        assert_eq!(last.freshness(u32::MAX, 3), New);
        assert_eq!(last.freshness(0, 3), o);
    }
}
