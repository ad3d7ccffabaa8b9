//! From the packet threads to the agent.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use testudo_datapath::{Event, Waker};

use crate::stats::{Count, Stats};

/// Events that wait at most; an agent that does not poll loses the rest and nothing stands still.
const ROOM: usize = 4096;
/// IKE messages have a room of their own: anyone can send them, and a flood of them must not
/// push out what the packet threads have to say.
const IKE_ROOM: usize = 1024;

/// The threads' end.
#[derive(Clone)]
pub(crate) struct EventSink {
    own: SyncSender<Event>,
    ike: SyncSender<Event>,
    waker: Arc<Mutex<Option<Waker>>>,
    stats: Arc<Stats>,
}

/// The agent's end.
pub(crate) struct Events {
    own: Receiver<Event>,
    ike: Receiver<Event>,
}

impl Events {
    /// The next event, if one waits.
    pub(crate) fn next(&self) -> Option<Event> {
        self.own.try_recv().or_else(|_| self.ike.try_recv()).ok()
    }
}

impl EventSink {
    pub(crate) fn new(stats: Arc<Stats>) -> (Self, Events) {
        let (own, own_end) = sync_channel(ROOM);
        let (ike, ike_end) = sync_channel(IKE_ROOM);
        let sink = Self {
            own,
            ike,
            waker: Arc::default(),
            stats,
        };
        (
            sink,
            Events {
                own: own_end,
                ike: ike_end,
            },
        )
    }

    /// Tells an event; never blocks. Called per event, not per packet.
    pub(crate) fn push(&self, event: Event) {
        let sender = match event {
            Event::Ike { .. } => &self.ike,
            _ => &self.own,
        };
        if let Err(TrySendError::Full(_)) = sender.try_send(event) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use testudo_model::ChildId;

    #[test]
    fn a_flood_of_ike_does_not_push_out_other_events_and_wakes() {
        let (sink, events) = EventSink::new(Arc::default());
        let woken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&woken);
        sink.set_waker(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let end = "192.0.2.1:4500".parse().unwrap();
        for _ in 0..5000 {
            sink.push(Event::Ike {
                local: end,
                remote: end,
                message: Vec::new(),
            });
        }
        let first = Event::FirstInbound { child: ChildId(7) };
        sink.push(first.clone());
        assert_eq!(woken.load(Ordering::Relaxed), 5001);
        assert_eq!(events.next(), Some(first));
        assert_eq!(std::iter::from_fn(|| events.next()).count(), IKE_ROOM);
    }
}
