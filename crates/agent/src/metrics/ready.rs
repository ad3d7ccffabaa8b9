//! Whether the node is ready: pods may start on it, and a roll-out of agents may go on to the next.

use std::time::Duration;

use testudo_model::{Monotonic, Now, Phase};

use crate::node::Node;

/// A node that comes up waits for its tunnels this long; then those that lack are the peers' fault,
/// and the node is not held for them.
const TUNNELS: Duration = Duration::from_secs(60);

/// What it remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// All tunnels have stood at once, or have been waited for long enough.
    was_up: bool,
    /// When the store had been read.
    read_at: Option<Monotonic>,
}

/// What it looks at.
#[derive(Clone, Copy, Debug)]
struct Seen<'a> {
    synced: bool,
    /// Its certificate was taken back.
    removed: bool,
    /// What is wrong with rules, datapath or sockets.
    problem: Option<&'a str>,
    /// The phase in force; none before the first.
    phase: Option<Phase>,
    /// Tunnels up and expected.
    tunnels: (u32, u32),
}

impl Readiness {
    fn judge(&mut self, seen: &Seen<'_>, now: Monotonic) -> Result<(), String> {
        if !seen.synced {
            return Err("the store has not been read yet".to_owned());
        }
        if seen.removed {
            return Err("this node was removed from the cluster".to_owned());
        }
        let read_at = *self.read_at.get_or_insert(now);
        if let Some(problem) = seen.problem {
            return Err(problem.to_owned());
        }
        // No phase: no policy has ever been written, and nothing is asked of the node.
        if seen.phase.unwrap_or_default() == Phase::Disabled {
            return Ok(());
        }
        let (up, expected) = seen.tunnels;
        self.was_up |= up >= expected || now.since(read_at) >= TUNNELS;
        match self.was_up {
            true => Ok(()),
            false => Err(format!("{up} of {expected} tunnels stand")),
        }
    }
}

impl Node {
    /// Whether the node is ready, and why not.
    pub(crate) fn ready(&mut self, now: Now) -> Result<(), String> {
        let parts = ["datapath", "sockets", "traffic", "key"];
        let mut problems = parts.iter().filter_map(|part| self.problems.get(part));
        let seen = Seen {
            synced: self.objects.is_known(),
            removed: self.news.removed,
            problem: problems.next().map(String::as_str),
            phase: self.acknowledged.map(|acknowledged| acknowledged.phase),
            tunnels: self.core.tunnels.count(),
        };
        self.readiness.judge(&seen, now.monotonic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Seen<'_> = Seen {
        synced: true,
        removed: false,
        problem: None,
        phase: Some(Phase::Strict),
        tunnels: (2, 2),
    };

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    #[test]
    fn each_reason_is_said() {
        for (seen, reason) in [
            (GOOD, None),
            (
                Seen {
                    synced: false,
                    ..GOOD
                },
                Some("store"),
            ),
            (
                Seen {
                    removed: true,
                    ..GOOD
                },
                Some("removed"),
            ),
            (
                Seen {
                    problem: Some("no TUN"),
                    ..GOOD
                },
                Some("no TUN"),
            ),
            (
                Seen {
                    tunnels: (1, 2),
                    ..GOOD
                },
                Some("1 of 2 tunnels"),
            ),
            (
                Seen {
                    tunnels: (0, 2),
                    phase: Some(Phase::Disabled),
                    ..GOOD
                },
                None,
            ),
            (
                Seen {
                    tunnels: (0, 0),
                    phase: None,
                    ..GOOD
                },
                None,
            ),
        ] {
            let judged = Readiness::default().judge(&seen, at(5));
            match (judged, reason) {
                (Ok(()), None) => {}
                (Err(text), Some(part)) if text.contains(part) => {}
                (judged, _) => panic!("{seen:?}: {judged:?}"),
            }
        }
    }

    #[test]
    fn a_node_that_was_ready_is_not_held_for_a_peer_that_died() {
        let mut readiness = Readiness::default();
        assert!(readiness.judge(&GOOD, at(1)).is_ok());
        let dead = Seen {
            tunnels: (1, 2),
            ..GOOD
        };
        assert!(readiness.judge(&dead, at(2)).is_ok());
    }

    #[test]
    fn a_node_that_comes_up_waits_for_its_tunnels_but_not_for_ever() {
        let mut readiness = Readiness::default();
        let lacking = Seen {
            tunnels: (1, 2),
            ..GOOD
        };
        assert!(readiness.judge(&lacking, at(100)).is_err());
        assert!(readiness.judge(&lacking, at(159)).is_err());
        assert!(readiness.judge(&lacking, at(160)).is_ok());
    }

    #[test]
    fn a_datapath_that_fails_makes_it_unready_again() {
        let mut readiness = Readiness::default();
        assert!(readiness.judge(&GOOD, at(1)).is_ok());
        let broken = Seen {
            problem: Some("the TUN is gone"),
            ..GOOD
        };
        assert!(readiness.judge(&broken, at(2)).is_err());
        assert!(readiness.judge(&GOOD, at(3)).is_ok());
    }
}
