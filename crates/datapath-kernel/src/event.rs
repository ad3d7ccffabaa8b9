//! From the worker thread to the agent.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use testudo_datapath::{Event, Waker};

/// Events that wait at most; of an agent that does not poll the rest is lost and counted.
const ROOM: usize = 16_384;
/// IKE messages have a room of their own: anyone can send them.
const IKE_ROOM: usize = 1024;

/// Events that wait for the agent.
#[derive(Default)]
pub(crate) struct Events {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    own: VecDeque<Event>,
    ike: VecDeque<Event>,
    lost: u64,
    waker: Option<Waker>,
}

impl Events {
    /// Tells an event; never blocks.
    pub(crate) fn push(&self, event: Event) {
        let waker = {
            let mut inner = self.lock();
            let (queue, room) = match event {
                Event::Ike { .. } => (&mut inner.ike, IKE_ROOM),
                _ => (&mut inner.own, ROOM),
            };
            match queue.len() < room {
                true => queue.push_back(event),
                false => inner.lost += 1,
            }
            inner.waker.clone()
        };
        if let Some(wake) = waker {
            wake();
        }
    }

    /// The next one; what the kernel tells goes before IKE messages.
    pub(crate) fn next(&self) -> Option<Event> {
        let mut inner = self.lock();
        inner.own.pop_front().or_else(|| inner.ike.pop_front())
    }

    /// How many were lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost
    }

    pub(crate) fn set_waker(&self, waker: Waker) {
        self.lock().waker = Some(waker);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use testudo_model::ChildId;

    use super::*;

    #[test]
    fn a_flood_of_ike_pushes_out_nothing_else_and_is_bounded() {
        let events = Events::default();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        events.set_waker(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let end = "192.0.2.1:4500".parse().unwrap();
        for _ in 0..IKE_ROOM + 7 {
            events.push(Event::Ike {
                local: end,
                remote: end,
                message: Vec::new(),
            });
        }
        let soft = Event::SoftLimit { child: ChildId(1) };
        events.push(soft.clone());
        assert_eq!((events.lost(), events.next()), (7, Some(soft)));
        assert_eq!(std::iter::from_fn(|| events.next()).count(), IKE_ROOM);
        assert_eq!(woken.load(Ordering::Relaxed), IKE_ROOM + 8);
    }
}
