//! What two engines of this kind tell each other of ESP that comes in: how an end whose packets get
//! no answer learns that ESP is filtered on the path (`docs/ike.md`). The engine carries the words;
//! counters and conclusions are the caller's.
//!
//! All are status notifies of the private range in an INFORMATIONAL request, which any peer answers
//! with an empty message (RFC 7296, 3.10.1). They are sent when the caller says so, and to no other
//! peer than it names.

use testudo_model::{ChildId, Now};
use testudo_wire::ike::{ExchangeType, Notify, NotifyType, Payload, ProtocolId};

use crate::engine::Engine;
use crate::error::Misuse;
use crate::event::{EspCounts, Event, IkeId, Receipt};
use crate::message::Payloads;
use crate::sa::{Child, IkeSa, Pending, Phase, Task};

/// Words that are sent in one message, and read of one.
const MOST: usize = 16;

/// A word that waits for the message window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Asks for the peer's counts of a child, with the question's number.
    Ask(ChildId, u32),
    /// Our counts of a child, with the number of the question.
    Counts(ChildId, u32, EspCounts),
    /// ESP is filtered between us.
    Filtered,
}

impl Engine {
    /// Asks the peer of `child` for its counts of that child: a peer that is a Testudo too answers
    /// with [`Receipt::Counts`], in a request of its own that bears the `number` of the question: it
    /// may be late.
    pub fn ask_esp(&mut self, child: ChildId, number: u32, now: Now) -> Result<(), Misuse> {
        self.say_of(child, Word::Ask(child, number), now)
    }

    /// Tells the peer of `child` our counts of it, in answer to the [`Receipt::Asked`] of that
    /// `number`.
    pub fn tell_esp(
        &mut self,
        child: ChildId,
        number: u32,
        counts: EspCounts,
        now: Now,
    ) -> Result<(), Misuse> {
        self.say_of(child, Word::Counts(child, number, counts), now)
    }

    /// Tells the peer of an IKE SA that ESP is filtered on the path, which is why UDP
    /// encapsulation was asked for: the peer takes us no longer for one behind a NAT, so that no
    /// more than our port may change.
    pub fn tell_filtered(&mut self, ike: IkeId, now: Now) -> Result<(), Misuse> {
        let stays = self.sas.get(&ike).filter(|sa| stays(sa));
        let peer = stays.and_then(|sa| sa.peer.clone());
        let peer = peer.ok_or(Misuse::UnknownIke(ike))?;
        self.command(ike, &peer, Task::Say(Word::Filtered), now)
    }

    fn say_of(&mut self, child: ChildId, word: Word, now: Now) -> Result<(), Misuse> {
        let known = self.children.get(&child).filter(|c| c.is_up());
        let known = known.ok_or(Misuse::UnknownChild(child))?;
        let (ike, peer) = (known.ike, known.peer.clone());
        if let Some(est) = self.sas.get_mut(&ike).and_then(IkeSa::established_mut) {
            // What is newer takes the place of what still waits.
            est.tasks
                .retain(|task| !matches!(task, Task::Say(old) if old.is_of(&word)));
        }
        self.command(ike, &peer, Task::Say(word), now)
    }

    /// Says it, with all that waits to be said as well: a peer with a child for each CPU is asked about
    /// them in few exchanges, and not in one each.
    pub(crate) fn start_say(&mut self, id: IkeId, word: Word, now: Now) {
        let mut words = vec![word];
        if let Some(est) = self.sas.get_mut(&id).and_then(IkeSa::established_mut) {
            est.tasks.retain(|task| match task {
                Task::Say(other) if words.len() < MOST => {
                    words.push(*other);
                    false
                }
                _ => true,
            });
        }
        let notifies = words
            .into_iter()
            .filter_map(|word| self.notify_of(id, word));
        let payloads: Vec<Payload> = notifies.map(Payload::Notify).collect();
        if payloads.is_empty() {
            return;
        }
        let exchange = ExchangeType::INFORMATIONAL;
        // The answer is a sign of life, and no more.
        self.send_request(now, id, exchange, &payloads, Pending::Probe);
    }

    /// `None`: it is about a child that has gone, or hangs on another IKE SA.
    fn notify_of(&self, id: IkeId, word: Word) -> Option<Notify> {
        let (kind, child, data) = match word {
            Word::Ask(child, number) => {
                let data = number.to_be_bytes().to_vec();
                (NotifyType::TESTUDO_ESP_ASKED, Some(child), data)
            }
            Word::Counts(child, number, counts) => {
                let mut data = number.to_be_bytes().to_vec();
                data.extend(counts.received.to_be_bytes());
                data.extend(counts.sent.to_be_bytes());
                (NotifyType::TESTUDO_ESP_COUNTS, Some(child), data)
            }
            Word::Filtered => (NotifyType::TESTUDO_ESP_FILTERED, None, Vec::new()),
        };
        let Some(child) = child else {
            return Some(Notify::new(kind, data));
        };
        let known = self.children.get(&child);
        let known = known.filter(|c| c.is_up() && c.ike == id)?;
        Some(Notify {
            data,
            ..Notify::about_esp(kind, known.spi_in)
        })
    }

    /// What the peer says of ESP in an authentic request.
    pub(crate) fn hear_words(&mut self, id: IkeId, payloads: &Payloads) {
        let mut heard: Vec<Receipt> = Vec::new();
        let words = payloads.notifies.iter();
        for word in words
            .filter_map(|notify| self.heard_word(id, notify))
            .take(MOST)
        {
            // Each costs the caller something.
            if !heard.contains(&word) {
                heard.push(word);
            }
        }
        let filtered = heard.iter().any(|h| matches!(h, Receipt::Filtered { .. }));
        if let Some(sa) = self.sas.get_mut(&id).filter(|_| filtered) {
            // What looked like a NAT before the peer is a wish of its.
            sa.nat.forced |= sa.nat.remote;
        }
        self.events.extend(heard.into_iter().map(Event::Receipt));
    }

    /// Whether it speaks of a child that has gone since the peer spoke: by the rest of the same message,
    /// or because that message showed that another child stands at its end. There is nothing to answer.
    pub(crate) fn is_past(&self, event: &Event) -> bool {
        let Event::Receipt(Receipt::Asked { child, .. } | Receipt::Counts { child, .. }) = event
        else {
            return false;
        };
        !self.children.get(child).is_some_and(Child::is_up)
    }

    fn heard_word(&self, id: IkeId, notify: &Notify) -> Option<Receipt> {
        let sa = self.sas.get(&id).filter(|sa| stays(sa))?;
        let (peer, est) = (sa.peer.clone()?, sa.established()?);
        // An ESP SA is named by the SPI that the sender receives with.
        let child = || {
            let spi = notify.spi_u32();
            let spi = spi.filter(|_| notify.protocol == ProtocolId::ESP)?;
            let mut children = est.children.iter().filter_map(|c| self.children.get(c));
            children
                .find(|c| c.is_up() && c.spi_out == spi)
                .map(|c| c.id)
        };
        match notify.kind {
            NotifyType::TESTUDO_ESP_ASKED => {
                let child = child()?;
                let number = u32::from_be_bytes(notify.data.as_slice().try_into().ok()?);
                Some(Receipt::Asked {
                    child,
                    peer,
                    number,
                })
            }
            NotifyType::TESTUDO_ESP_COUNTS => {
                let child = child()?;
                let (number, counts) = notify.data.split_first_chunk()?;
                let ([received, sent], []) = counts.as_chunks::<8>() else {
                    return None;
                };
                let counts = EspCounts {
                    received: u64::from_be_bytes(*received),
                    sent: u64::from_be_bytes(*sent),
                };
                Some(Receipt::Counts {
                    child,
                    peer,
                    number: u32::from_be_bytes(*number),
                    counts,
                })
            }
            NotifyType::TESTUDO_ESP_FILTERED => Some(Receipt::Filtered { peer }),
            _ => None,
        }
    }
}

/// Established, and not on its way out.
fn stays(sa: &IkeSa) -> bool {
    sa.established()
        .is_some_and(|est| matches!(est.phase, Phase::Open | Phase::Waiting | Phase::Rekeyed))
}

impl Word {
    /// Whether both are the same question or answer about the same child.
    fn is_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ask(a, _), Self::Ask(b, _)) => a == b,
            (Self::Counts(a, ..), Self::Counts(b, ..)) => a == b,
            (Self::Filtered, Self::Filtered) => true,
            _ => false,
        }
    }
}
