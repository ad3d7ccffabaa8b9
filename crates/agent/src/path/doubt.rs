//! The doubt about one child: packets leave on it, and none comes in. Pure.
//!
//! The peer is asked for its counts until they settle the matter. What is compared are sequence
//! numbers, in the order that the messages themselves give: packets that left before one answer
//! came, and that are still missing when the peer answers the next question, were lost although
//! UDP passed both before and after them. Answers that take long prove nothing of the time between:
//! the network itself may have been away. They begin the comparison anew.

use std::time::Duration;

use testudo_ike::EspCounts;
use testudo_model::Monotonic;

/// So many of the last packets of one direction must be missing.
pub(crate) const ENOUGH: u64 = 3;
/// Between an answer and the next question while something new is missing.
pub(crate) const STEP: Duration = Duration::from_millis(500);
/// The same where ESP was filtered before.
pub(crate) const EAGER_STEP: Duration = Duration::from_millis(150);
/// The longest such wait while nothing new is sent.
const LONGEST_STEP: Duration = Duration::from_secs(4);
/// Answers in a row without anything new, after which it is left alone until packets leave again.
const MOST_IDLE: u32 = 6;
/// After packets were seen to arrive, traffic that goes one way is not doubted for so long.
pub(crate) const REST: Duration = Duration::from_millis(1500);
/// A slower answer says nothing about the time since the last. Counted from when the question was put,
/// not from when it left: what it waited for may have been an outage, in which packets were lost that
/// left before it and are missing at a prompt answer.
pub(crate) const PROMPT: Duration = Duration::from_secs(2);
/// No answer comes any more: the peer may not know the question.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Which packets do not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Ours, at the peer.
    Out,
    /// The peer's, here.
    In,
}

/// The peer's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// Of the question.
    pub(crate) number: u32,
    /// Our counts when it came.
    pub(crate) own: EspCounts,
    /// The peer's when it answered.
    pub(crate) theirs: EspCounts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Packets come in, or none leave.
    #[default]
    Calm,
    /// The peer is asked; `since` the question.
    Asking { since: Monotonic },
    /// The answer did not settle it: asked again then.
    Pausing { until: Monotonic },
    /// Packets arrive.
    Resting { until: Monotonic },
}

/// How far both ends had sent at one answer, in sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    ours: u64,
    theirs: u64,
}

/// From where on packets are counted as missing: what left before UDP passed proves nothing.
#[derive(Clone, Copy, Debug)]
struct Base {
    ours: u64,
    /// `None` at the first answer: it may have been under way for long, and what the peer sent since
    /// it told may be lost for the same reason.
    theirs: Option<u64>,
}

/// Prompt answers in a row.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// At the beginning, or when packets were last seen to arrive since.
    base: Base,
    /// At the last answer.
    last: Sent,
    /// How many of the last ones brought nothing new.
    idle: u32,
    wait: Duration,
}

/// What is known and asked of one child.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doubt {
    state: State,
    row: Option<Row>,
    /// How far we had sent before it began.
    mark: u64,
    /// Of the last question. An answer to an earlier one is out of date.
    number: u32,
}

impl Doubt {
    /// Looks at the child: `unheard` when packets have left since the last look, at which we had
    /// sent as far as `sent`, and none has come in. The number of the question, if the peer is to be
    /// asked.
    pub(crate) fn look(&mut self, unheard: bool, sent: u64, now: Monotonic) -> Option<u32> {
        match self.state {
            State::Asking { since } if now.since(since) >= GIVE_UP => {
                self.state = State::Calm;
                None
            }
            State::Calm if unheard => {
                self.mark = sent;
                self.row = None;
                Some(self.ask(now))
            }
            _ => None,
        }
    }

    /// Does what is due. The number of the question, if the peer is to be asked.
    pub(crate) fn due(&mut self, now: Monotonic) -> Option<u32> {
        match self.state {
            State::Pausing { until } if until <= now => Some(self.ask(now)),
            State::Resting { until } if until <= now => {
                self.state = State::Calm;
                None
            }
            _ => None,
        }
    }

    fn ask(&mut self, now: Monotonic) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.state = State::Asking { since: now };
        self.number
    }

    /// Packets arrive, as the last answer says.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Resting { .. })
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        match self.state {
            State::Pausing { until } | State::Resting { until } => Some(until),
            State::Calm | State::Asking { .. } => None,
        }
    }

    /// The peer has answered. Says which packets are lost on the way, if that is certain now. `step`
    /// is the wait until the next question.
    pub(crate) fn told(&mut self, told: Told, step: Duration, now: Monotonic) -> Option<Way> {
        let State::Asking { since } = self.state else {
            return None;
        };
        if told.number != self.number {
            return None;
        }
        let (own, peer) = (told.own, told.theirs);
        let sent = Sent {
            ours: own.sent,
            theirs: peer.sent,
        };
        let prompt = now.since(since) <= PROMPT;
        let Some(row) = self.row.filter(|_| prompt) else {
            let settled = peer.received > self.mark && peer.sent <= own.received;
            self.row = Some(Row {
                base: Base {
                    ours: sent.ours,
                    theirs: None,
                },
                last: sent,
                idle: 0,
                wait: step,
            });
            self.state = match settled {
                true => State::Resting { until: now + REST },
                false => State::Pausing { until: now + step },
            };
            return None;
        };
        let out = judge(Some(row.base.ours), row.last.ours, peer.received);
        let inward = judge(row.base.theirs, row.last.theirs, own.received);
        match (out, inward) {
            (Passage::Closed, _) => return Some(self.over(Way::Out)),
            (_, Passage::Closed) => return Some(self.over(Way::In)),
            (Passage::Open, Passage::Open) => {
                self.state = State::Resting { until: now + REST };
                return None;
            }
            _ => {}
        }
        let news = sent != row.last;
        let row = Row {
            base: Base {
                ours: match out {
                    Passage::Open => sent.ours,
                    _ => row.base.ours,
                },
                theirs: row
                    .base
                    .theirs
                    .filter(|_| inward != Passage::Open)
                    .or(Some(sent.theirs)),
            },
            last: sent,
            idle: if news { 0 } else { row.idle + 1 },
            wait: if news {
                step
            } else {
                (row.wait * 2).min(LONGEST_STEP)
            },
        };
        self.row = Some(row);
        self.state = match row.idle < MOST_IDLE {
            true => State::Pausing {
                until: now + row.wait,
            },
            false => State::Calm,
        };
        None
    }

    fn over(&mut self, way: Way) -> Way {
        self.state = State::Calm;
        way
    }
}

/// Whether packets of one direction arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Open,
    Closed,
    Unknown,
}

/// Packets up to `base` had left at one answer and up to `last` at a later one; now those up to
/// `received` have come.
fn judge(base: Option<u64>, last: u64, received: u64) -> Passage {
    match base {
        _ if received >= last => Passage::Open,
        Some(base) if received > base => Passage::Open,
        Some(base) if last > base && last - received >= ENOUGH => Passage::Closed,
        _ => Passage::Unknown,
    }
}

#[cfg(test)]
mod tests;
