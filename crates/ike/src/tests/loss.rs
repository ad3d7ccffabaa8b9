//! Losing chosen datagrams.

use super::net::{Fate, Net};

impl Net {
    /// Lets so many datagrams through from now on, and no more.
    pub(crate) fn cut_after(&mut self, count: usize) {
        self.lose_those(move |number| number > count);
    }

    /// Loses one datagram; the next that is sent is number 1.
    pub(crate) fn lose(&mut self, number: usize) {
        self.lose_those(move |sent| sent == number);
    }

    fn lose_those(&mut self, lost: impl Fn(usize) -> bool + 'static) {
        let mut sent = 0;
        self.filter = Some(Box::new(move |_, _, _| {
            sent += 1;
            if lost(sent) { Fate::Drop } else { Fate::Pass }
        }));
    }
}
