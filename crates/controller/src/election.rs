//! Who leads, by a Lease (`coordination.k8s.io/v1`): the decision, without an API server and a clock.
//!
//! As client-go has it. Whoever holds the Lease renews it; others watch it change, by their own clocks, and
//! take it when it has stood still for its whole duration. A leader that could not renew for
//! [`Settings::renew`] stops, which is well before anybody else may begin: clocks need not agree, they need
//! only go at about the same speed.

use std::time::Duration;

/// The times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// For so long a Lease stands without being renewed before others take it.
    pub(crate) lease: Duration,
    /// For so long a leader leads on without having renewed.
    pub(crate) renew: Duration,
    /// How often it is tried.
    pub(crate) retry: Duration,
}

/// Those of client-go.
impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Who holds it; empty: nobody.
    pub(crate) holder: String,
    /// How long it stands, by whoever holds it.
    pub(crate) lease: Duration,
    /// Its version in the API.
    pub(crate) version: String,
    /// How often it has changed hands.
    pub(crate) transitions: i64,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the Lease ours, in place of the record that was read last.
    Write {
        /// How often it will have changed hands.
        transitions: i64,
    },
    /// Look again after this time.
    Wait(Duration),
    /// We do not lead any more.
    Lost(String),
}

/// One who would lead. Times are since any moment, by a clock that only goes forward.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    me: String,
    settings: Settings,
    /// What was read last, and when it was first read so.
    seen: Option<(Option<Record>, Duration)>,
    /// When we began to write what stands there of us.
    held: Option<Duration>,
    tried: Option<Duration>,
}

impl Election {
    pub(crate) fn new(me: impl Into<String>, settings: Settings) -> Self {
        Self {
            me: me.into(),
            settings,
            seen: None,
            held: None,
            tried: None,
        }
    }

    /// The Lease was read; `None`: there is none.
    pub(crate) fn read(&mut self, record: Option<Record>, now: Duration) {
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record, now));
        }
    }

    /// We have written it: begun at `began`, and this is what stands there.
    pub(crate) fn wrote(&mut self, record: Record, began: Duration) {
        self.seen = Some((Some(record), began));
        self.held = Some(began);
        self.tried = Some(began);
    }

    /// A try has failed: the Lease is to be read again.
    pub(crate) fn failed(&mut self, began: Duration) {
        self.tried = Some(began);
    }

    /// Whether we may write: we renewed lately enough.
    pub(crate) fn is_held(&self, now: Duration) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Until when we lead without renewing.
    pub(crate) fn until(&self) -> Option<Duration> {
        Some(self.held? + self.settings.renew)
    }

    /// Who holds the Lease, as far as we know.
    pub(crate) fn holder(&self) -> Option<&str> {
        let (record, _) = self.seen.as_ref()?;
        record.as_ref().map(|record| record.holder.as_str())
    }

    /// What to do.
    pub(crate) fn next(&self, now: Duration) -> Action {
        let Some((record, since)) = &self.seen else {
            return Action::Wait(Duration::ZERO);
        };
        let ours = record.as_ref().is_some_and(|r| r.holder == self.me);
        if let Some(held) = self.held {
            if !self.is_held(now) {
                let seconds = (now - held).as_secs();
                return Action::Lost(format!("it could not be renewed for {seconds} s"));
            }
            if let Some(record) = record.as_ref().filter(|r| !ours && !r.holder.is_empty()) {
                return Action::Lost(format!("{} has taken it", record.holder));
            }
        }
        let next = self
            .tried
            .map_or(Duration::ZERO, |at| at + self.settings.retry);
        if now < next {
            return Action::Wait(next - now);
        }
        let transitions = record.as_ref().map_or(0, |record| record.transitions);
        match record {
            _ if self.held.is_some() => Action::Write { transitions },
            None => Action::Write { transitions },
            Some(record) => {
                let free = *since + record.lease;
                match record.holder.is_empty() || free <= now {
                    true => Action::Write {
                        transitions: transitions.saturating_add(1),
                    },
                    false => Action::Wait(self.settings.retry.min(free - now)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn record(holder: &str, version: u64) -> Record {
        Record {
            holder: holder.to_owned(),
            lease: at(15),
            version: version.to_string(),
            transitions: 3,
        }
    }

    fn candidate() -> Election {
        Election::new("a", Settings::default())
    }

    #[test]
    fn a_candidate_takes_what_is_free_and_waits_for_what_is_not() {
        for (read, read_at, now, expected) in [
            (None, at(0), at(0), Action::Write { transitions: 0 }),
            (
                Some(record("", 1)),
                at(0),
                at(0),
                Action::Write { transitions: 4 },
            ),
            (Some(record("b", 1)), at(0), at(0), Action::Wait(at(2))),
            (Some(record("b", 1)), at(5), at(19), Action::Wait(at(1))),
            (
                Some(record("b", 1)),
                at(5),
                at(20),
                Action::Write { transitions: 4 },
            ),
            // Of an earlier life under our name: it is not ours.
            (Some(record("a", 1)), at(5), at(6), Action::Wait(at(2))),
        ] {
            let mut election = candidate();
            assert_eq!(election.next(now), Action::Wait(at(0)), "nothing was read");
            election.read(read.clone(), read_at);
            assert_eq!(election.next(now), expected, "{read:?} at {read_at:?}");
            assert!(!election.is_held(now));
        }
        // What changes is alive.
        let mut election = candidate();
        election.read(Some(record("b", 1)), at(0));
        election.read(Some(record("b", 1)), at(10));
        assert_eq!(election.next(at(15)), Action::Write { transitions: 4 });
        election.read(Some(record("b", 2)), at(14));
        assert_eq!(election.next(at(15)), Action::Wait(at(2)));
        assert_eq!(election.holder(), Some("b"));
    }

    #[test]
    fn a_leader_renews_and_stops_before_anybody_else_begins() {
        let mut election = candidate();
        election.read(None, at(0));
        election.wrote(record("a", 1), at(0));
        assert_eq!(election.next(at(1)), Action::Wait(at(1)));
        assert_eq!(election.next(at(2)), Action::Write { transitions: 3 });
        election.wrote(record("a", 2), at(2));
        // The API server is away.
        election.failed(at(4));
        assert_eq!(election.next(at(5)), Action::Wait(at(1)));
        assert_eq!(election.next(at(6)), Action::Write { transitions: 3 });
        assert!(election.is_held(at(11)));
        assert!(!election.is_held(at(12)));
        let Action::Lost(why) = election.next(at(12)) else {
            panic!("it leads on");
        };
        assert!(why.contains("10 s"), "{why}");
        // Somebody else has it, whatever our clock says.
        let mut election = candidate();
        election.read(None, at(0));
        election.wrote(record("a", 1), at(0));
        election.read(Some(record("b", 2)), at(1));
        assert_eq!(
            election.next(at(1)),
            Action::Lost("b has taken it".to_owned())
        );
    }

    /// Three candidates, an API server that loses every third call and answers late, crashes: nobody
    /// leads while another does, and there is a leader most of the time.
    #[test]
    fn there_is_never_more_than_one_leader() {
        let mut state: u64 = 1;
        let mut below = move |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % n
        };
        let settings = Settings::default();
        let fresh = |n: u64| Election::new(format!("c{n}"), settings);
        let mut candidates: Vec<Election> = (0..3).map(fresh).collect();
        let mut lease: Option<Record> = None;
        let (mut led, mut changes, mut born) = (0u64, 0u64, 3u64);
        let tick = Duration::from_millis(250);
        let mut last = None;
        for step in 0..200_000u64 {
            let now = tick * u32::try_from(step).unwrap();
            for one in &mut candidates {
                // Answers come late by up to a second: what was begun then is what counts.
                let began = now.saturating_sub(tick * u32::try_from(below(4)).unwrap());
                if below(3) > 0 {
                    one.read(lease.clone(), now);
                }
                match one.next(now) {
                    Action::Write { transitions } if below(3) > 0 => {
                        let (read, _) = one.seen.clone().unwrap();
                        if read != lease {
                            one.failed(now);
                            continue;
                        }
                        let mut record = record(&one.me, step);
                        record.transitions = transitions;
                        lease = Some(record.clone());
                        if below(4) > 0 {
                            one.wrote(record, began);
                        } else {
                            // It was done, and nobody told us.
                            one.failed(now);
                        }
                    }
                    Action::Write { .. } => one.failed(now),
                    Action::Lost(_) => {
                        *one = fresh(born);
                        born += 1;
                    }
                    Action::Wait(_) => {}
                }
                if below(20_000) == 0 {
                    *one = fresh(born);
                    born += 1;
                }
            }
            let leaders: Vec<&str> = candidates
                .iter()
                .filter(|one| one.is_held(now))
                .map(|one| one.me.as_str())
                .collect();
            assert!(leaders.len() <= 1, "{leaders:?} at {now:?}");
            led += leaders.len() as u64;
            let leader = leaders.first().map(|name| (*name).to_owned());
            changes += u64::from(leader.is_some() && leader != last);
            last = leader.or(last);
        }
        println!("led {led} of 200000 steps, {changes} leaders of {born} candidates");
        assert!(led > 140_000, "{led}");
        assert!(changes > 3, "{changes}");
    }
}
