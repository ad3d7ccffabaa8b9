//! How fast the controller goes: the more nodes there are, the more each round and each write costs, and the
//! more changes go together in one.

use std::time::Duration;

/// A round looks at every node. From the beginning of one to that of the next passes so much for each, so
/// that a thousand nodes that change at once are a few rounds over all of them, and not a thousand.
const ROUND_EACH: Duration = Duration::from_micros(500);
/// And at most so much.
const ROUND_MOST: Duration = Duration::from_secs(1);

/// Progress of a step that goes on is written this often at most: with each node that acknowledges, the
/// policy would be written once for each node, and read by each.
const PROGRESS_LEAST: Duration = Duration::from_secs(1);
/// In a large cluster so much for each node: what is written names those who are waited for, and goes to all.
const PROGRESS_EACH: Duration = Duration::from_millis(5);
/// And at most so much.
const PROGRESS_MOST: Duration = Duration::from_secs(20);

/// How far apart rounds begin in a cluster of so many nodes.
pub(crate) fn round(nodes: usize) -> Duration {
    times(ROUND_EACH, nodes).min(ROUND_MOST)
}

/// How far apart mere progress is written.
pub(crate) fn progress(nodes: usize) -> Duration {
    times(PROGRESS_EACH, nodes).clamp(PROGRESS_LEAST, PROGRESS_MOST)
}

fn times(each: Duration, nodes: usize) -> Duration {
    each.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_waits_for_nothing_and_a_large_one_for_seconds() {
        let ms = Duration::from_millis;
        assert_eq!(
            [0, 2, 200, 1000].map(round),
            [ms(0), ms(1), ms(100), ms(500)]
        );
        assert_eq!([1_000_000, usize::MAX].map(round), [ROUND_MOST; 2]);
        assert_eq!([0, 200, 1000].map(progress), [ms(1000), ms(1000), ms(5000)]);
        assert_eq!(progress(usize::MAX), PROGRESS_MOST);
    }
}
