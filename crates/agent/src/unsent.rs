//! IKE datagrams that the host has no way for. An agent may run before its node's network does, as after
//! a reboot: what could not leave is tried again soon, and not only when the engine repeats itself,
//! later each time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use testudo_model::Monotonic;

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one is tried: the engine has repeated it by then.
const TRIED: Duration = Duration::from_secs(8);

/// The last one for each peer's end.
#[derive(Default)]
pub(crate) struct Unsent {
    waiting: BTreeMap<SocketAddr, Waiting>,
    due: Option<Monotonic>,
}

struct Waiting {
    local: SocketAddr,
    bytes: Vec<u8>,
    until: Monotonic,
}

impl Unsent {
    /// There was no way for this one.
    pub(crate) fn keep(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        bytes: Vec<u8>,
        now: Monotonic,
    ) {
        let until = now + TRIED;
        let waiting = Waiting {
            local,
            bytes,
            until,
        };
        self.waiting.insert(remote, waiting);
        self.due.get_or_insert(now + AGAIN);
    }

    /// Another one went to the same end: what waits is out of date.
    pub(crate) fn forget(&mut self, remote: SocketAddr) {
        self.waiting.remove(&remote);
    }

    /// Tries all whose time has come; `send` says whether there was a way.
    pub(crate) fn again(
        &mut self,
        now: Monotonic,
        mut send: impl FnMut(SocketAddr, SocketAddr, &[u8]) -> bool,
    ) {
        if self.due.is_none_or(|at| now < at) {
            return;
        }
        self.waiting.retain(|remote, waiting| {
            now < waiting.until && !send(waiting.local, *remote, &waiting.bytes)
        });
        self.due = (!self.waiting.is_empty()).then(|| now + AGAIN);
    }

    /// The next try.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(Duration::from_millis(ms))
    }

    #[test]
    fn the_last_one_is_tried_again_soon_until_there_is_a_way_or_its_time_is_over() {
        let end = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut unsent = Unsent::default();
        unsent.keep(end(1), end(2), vec![1], at(0));
        unsent.keep(end(1), end(2), vec![2], at(100));
        unsent.keep(end(1), end(3), vec![3], at(100));
        let mut tried = Vec::new();
        unsent.again(at(199), |_, _, _| panic!("too soon"));
        assert_eq!(unsent.deadline(), Some(at(200)));
        unsent.again(at(200), |_, remote, bytes| {
            tried.push((remote, bytes.to_vec()));
            remote == end(3)
        });
        assert_eq!(tried, [(end(2), vec![2]), (end(3), vec![3])]);
        assert_eq!(unsent.deadline(), Some(at(400)));
        unsent.again(at(8100), |_, _, _| panic!("its time is over"));
        assert_eq!(unsent.deadline(), None);
        unsent.keep(end(1), end(2), vec![4], at(9000));
        unsent.forget(end(2));
        unsent.again(at(9200), |_, _, _| panic!("out of date"));
        assert_eq!(unsent.deadline(), None);
    }
}
