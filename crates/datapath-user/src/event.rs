//! From the packet threads to the agent.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use testudo_datapath::{Event, Waker};

use crate::stats::{Count, Stats};

/// Events that wait at most; an agent that does not poll loses the rest and nothing stands still.
const ROOM: usize = 4096;

/// The threads' end.
#[derive(Clone)]
pub(crate) struct EventSink {
    sender: SyncSender<Event>,
    waker: Arc<Mutex<Option<Waker>>>,
    stats: Arc<Stats>,
}

impl EventSink {
    pub(crate) fn new(stats: Arc<Stats>) -> (Self, Receiver<Event>) {
        let (sender, receiver) = sync_channel(ROOM);
        (
            Self {
                sender,
                waker: Arc::default(),
                stats,
            },
            receiver,
        )
    }

    /// Tells an event; never blocks. Called per event, not per packet.
    pub(crate) fn push(&self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(event) {
            self.stats.count(Count::EventLost);
        }
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(wake) = waker {
            wake();
        }
    }

    pub(crate) fn set_waker(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }
}
