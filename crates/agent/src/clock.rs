//! The one place where clocks are read.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use testudo_model::{Monotonic, Now, UnixTime};

/// Both clocks; the monotonic one counts from the agent's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock {
            origin: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        Now {
            monotonic: Monotonic(self.origin.elapsed()),
            wall: UnixTime(wall),
        }
    }

    /// When a deadline of the engine or of ours comes, for a timer of the runtime. Far deadlines
    /// are cut to an hour: waking once too often costs nothing.
    pub(crate) fn instant(&self, at: Monotonic) -> Instant {
        let left = at.0.saturating_sub(self.origin.elapsed());
        Instant::now() + left.min(Duration::from_secs(3600))
    }
}

/// Seconds since 1970 as the certificates' crate counts them.
pub(crate) fn seconds(time: UnixTime) -> u64 {
    u64::try_from(time.0).unwrap_or(0)
}

/// The other way round.
pub(crate) fn unix(seconds: u64) -> UnixTime {
    UnixTime(i64::try_from(seconds).unwrap_or(i64::MAX))
}
