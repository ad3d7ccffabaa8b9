//! Those who let something wait that all nodes are to do: how long nothing has gone on, and how it is told.

use std::time::{Duration, Instant};

/// Who lets a step wait for longer, while nobody else has done it either, is a straggler. In a large cluster
/// agents take up to a minute to say that they have taken one, so that not all write in the same second.
pub(crate) const STRAGGLES: Duration = match cfg!(test) {
    true => Duration::from_millis(500),
    false => Duration::from_secs(120),
};
/// Of stragglers so many are named.
const NAMED: usize = 8;

/// How long a step has been waited for without anybody more who has done it. It runs out once.
#[derive(Debug)]
pub(crate) struct Patience<K> {
    step: Option<K>,
    /// The fewest that it waited for.
    least: usize,
    since: Option<Instant>,
    told: bool,
}

impl<K> Default for Patience<K> {
    fn default() -> Self {
        Self {
            step: None,
            least: 0,
            since: None,
            told: false,
        }
    }
}

impl<K: PartialEq> Patience<K> {
    /// Takes in which step goes on and for how many it waits. Fewer than ever before is progress; a node that
    /// comes and goes is none.
    pub(crate) fn take(&mut self, step: K, waiting: usize, now: Instant) {
        if self.step.as_ref() != Some(&step) || waiting < self.least {
            *self = Self {
                step: Some(step),
                least: waiting,
                since: Some(now),
                told: false,
            };
        }
    }

    /// When those who are waited for begin to be stragglers.
    pub(crate) fn until(&self) -> Option<Instant> {
        Some(self.since? + STRAGGLES)
    }

    /// Whether it is to be told now; once a step, and again when somebody has done it meanwhile.
    pub(crate) fn runs_out(&mut self, now: Instant) -> bool {
        let out = self.until().is_some_and(|until| until <= now);
        let news = out && !self.told;
        self.told |= out;
        news
    }
}

/// `3 nodes: n1 (why), n2, n3`; of many the first. `all` is how many there are, `some` names as many of them
/// as are known, each with why if that is known.
pub(crate) fn nodes<'a>(
    all: usize,
    some: impl Iterator<Item = (&'a str, Option<String>)>,
) -> String {
    let named = some.take(NAMED).map(|(name, why)| match why {
        Some(why) => format!("{name} ({why})"),
        None => name.to_owned(),
    });
    let named: Vec<String> = named.collect();
    let more = match all.saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let nodes = if all == 1 { "node" } else { "nodes" };
    format!("{all} {nodes}: {}{more}", named.join(", "))
}

/// Those at the head of a list, and how many more there are.
pub(crate) fn first(names: &[String]) -> String {
    let text = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_runs_out_once_a_step_and_anew_where_somebody_got_on() {
        let start = Instant::now();
        // In tenths of the time.
        let at = |tenths| start + STRAGGLES / 10 * tenths;
        let mut patience = Patience::default();
        assert!(!patience.runs_out(at(100)));
        patience.take(1, 3, start);
        assert!(!patience.runs_out(at(9)));
        assert!(patience.runs_out(at(10)));
        assert!(!patience.runs_out(at(11)));
        // One comes and goes.
        patience.take(1, 4, at(12));
        patience.take(1, 3, at(13));
        assert!(!patience.runs_out(at(40)));
        patience.take(1, 2, at(40));
        assert!(!patience.runs_out(at(49)));
        assert!(patience.runs_out(at(50)));
        patience.take(2, 2, at(60));
        assert_eq!(patience.until(), Some(at(70)));
        assert!(patience.runs_out(at(70)));
    }

    #[test]
    fn the_first_are_named_with_what_is_known_of_them() {
        let named = |n: usize| {
            let names: Vec<String> = (0..n).map(|i| format!("n{i}")).collect();
            let why = |i: usize| (i == 1).then(|| "no key".to_owned());
            nodes(
                n,
                names.iter().enumerate().map(|(i, name)| (&**name, why(i))),
            )
        };
        assert_eq!(named(1), "1 node: n0");
        assert_eq!(named(2), "2 nodes: n0, n1 (no key)");
        assert!(named(30).ends_with("n6, n7 and 22 more"), "{}", named(30));
    }
}
