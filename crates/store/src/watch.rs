//! A watch: the stream of what happens to the objects of one kind.

use testudo_model::{Kind, Object};
use tokio::sync::mpsc;

use crate::error::Problem;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K: Kind> {
    /// An object is there that was not there before.
    Added(Object<K>),
    /// An object has changed: its spec, status or metadata.
    Modified(Object<K>),
    /// An object is gone; this was its last version.
    Deleted(Object<K>),
    /// Something stands there that cannot be read. Of an object that was told before the last
    /// good version goes on.
    Problem(Problem),
    /// The problem that was told with this file is no more. What the file now holds, if anything
    /// new, follows as an event of its own.
    Solved(Problem),
    /// All that stood at the watch's beginning has been told. Comes once.
    Synced,
}

/// Receives the events of one kind. Dropping it ends the watch.
pub struct Watch<K: Kind> {
    events: mpsc::Receiver<Event<K>>,
}

impl<K: Kind> Watch<K> {
    /// How many events wait for a slow reader before the watch stops looking; what happens
    /// meanwhile is told as one change afterwards.
    pub const CAPACITY: usize = 64;

    /// A watch and the end that feeds it, for those who write a store.
    pub fn channel() -> (mpsc::Sender<Event<K>>, Watch<K>) {
        let (sender, events) = mpsc::channel(Self::CAPACITY);
        (sender, Watch { events })
    }

    /// The next event; `None` when the store has ended the watch, which only its end does.
    /// Safe to use in `select!`: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Event<K>> {
        self.events.recv().await
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<Event<K>> {
        self.events.try_recv().ok()
    }
}
