//! Whether the wall clock can be believed: a machine that starts with a wrong clock, or whose clock is set
//! by mistake, must not make the cluster change its CA.

use std::time::{Duration, Instant};

/// The clock must have gone evenly for so long before anything is done because of it.
pub(crate) const HOLD: Duration = match cfg!(test) {
    true => Duration::from_millis(100),
    false => Duration::from_secs(300),
};

/// A difference of the two clocks in seconds that is a jump.
const JUMP: u64 = 30;

/// The wall clock beside the monotonic one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steady {
    since: Instant,
    /// Seconds since 1970 at that moment.
    wall: u64,
}

impl Steady {
    /// From now on.
    pub(crate) fn new(now: Instant, wall: u64) -> Self {
        Self { since: now, wall }
    }

    /// Looks at both clocks: how long it is until the wall clock is believed, if it has gone evenly
    /// since the last look. After a jump it begins anew.
    pub(crate) fn look(&mut self, now: Instant, wall: u64) -> Duration {
        let gone = now.saturating_duration_since(self.since);
        let expected = self.wall.saturating_add(gone.as_secs());
        if expected.abs_diff(wall) > JUMP {
            *self = Self::new(now, wall);
            return HOLD;
        }
        HOLD.saturating_sub(gone)
    }

    /// Whether the wall clock had gone evenly for long enough when it was looked at last.
    pub(crate) fn is_sure(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= HOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_when_it_has_gone_evenly_for_a_while() {
        let start = Instant::now();
        let mut steady = Steady::new(start, 1000);
        assert_eq!(steady.look(start, 1000), HOLD);
        assert_eq!(steady.look(start + HOLD, 1000), Duration::ZERO);
        let later = start + Duration::from_secs(500);
        assert_eq!(steady.look(later, 1520), Duration::ZERO);
        // It jumps, forth and back, seen by nobody until then.
        for wall in [90_000, 1500] {
            assert_eq!(steady.look(later, wall), HOLD);
            assert_eq!(steady.look(later + HOLD / 2, wall), HOLD / 2);
        }
        assert_eq!(steady.look(later + HOLD, 1500), Duration::ZERO);
    }
}
