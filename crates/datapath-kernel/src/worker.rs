//! The thread that hears the kernel and the UDP socket, and does what is due.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use testudo_datapath::{DatapathError, Event};
use testudo_netlink::{XfrmHeard, XfrmMonitor};

use crate::core::Core;
use crate::event::Events;
use crate::udp::{LONGEST, UdpSockets};

/// Datagrams that are read from a UDP socket before the kernel is heard again.
const BURST: usize = 64;

/// The thread, as its owner knows it. It ends when this is dropped.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    core: Arc<Mutex<Core>>,
    events: Arc<Events>,
    udp: Arc<UdpSockets>,
    wake: OwnedFd,
    stop: AtomicBool,
}

impl Worker {
    /// Starts it in the network namespace of the calling thread.
    pub(crate) fn start(
        core: Arc<Mutex<Core>>,
        events: Arc<Events>,
        udp: Arc<UdpSockets>,
        monitor: XfrmMonitor,
    ) -> Result<Self, DatapathError> {
        let failed = |reason: String| DatapathError::Refused {
            operation: "start the datapath's thread".into(),
            reason,
        };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags).map_err(|e| failed(e.to_string()))?;
        let shared = Arc::new(Shared {
            core,
            events,
            udp,
            wake,
            stop: AtomicBool::new(false),
        });
        let inner = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("xfrm".into())
            .spawn(move || {
                let mut end = End {
                    events: &inner.events,
                    reason: Some("the datapath's thread panicked".into()),
                };
                end.reason = inner.run(monitor).err();
            })
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Makes it look at its deadlines again.
    pub(crate) fn wake(&self) {
        // Full is as good as written.
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, mut monitor: XfrmMonitor) -> Result<(), String> {
        let mut buffer = vec![0; LONGEST];
        while !self.stop.load(Ordering::Acquire) {
            let next = lock(&self.core).timers.next();
            let ready = self.wait(monitor.as_fd(), next)?;
            if ready.kernel {
                self.hear(&mut monitor)?;
            }
            for (socket, local_port) in self.udp.all() {
                for _ in 0..BURST {
                    let Some(datagram) = self.udp.receive(socket, local_port, &mut buffer) else {
                        break;
                    };
                    // What is no IKE message counts too: a flood of it must not keep us here.
                    let Some(datagram) = datagram else { continue };
                    self.events.push(Event::Ike {
                        local: datagram.local,
                        remote: datagram.remote,
                        message: datagram.message,
                    });
                }
            }
            let mut core = lock(&self.core);
            for due in core.timers.due(Instant::now()) {
                core.attend(due);
            }
        }
        Ok(())
    }

    /// Reads all that waits; a loss is one event, however much follows it.
    fn hear(&self, monitor: &mut XfrmMonitor) -> Result<(), String> {
        loop {
            let heard = monitor.read().map_err(|e| e.to_string())?;
            let mut core = lock(&self.core);
            match heard {
                XfrmHeard::Notices(notices) => {
                    for notice in notices {
                        core.hear(notice);
                    }
                }
                XfrmHeard::Overrun => core.overran(),
                XfrmHeard::Nothing => return Ok(()),
            }
        }
    }

    fn wait(&self, kernel: BorrowedFd<'_>, next: Option<Instant>) -> Result<Ready, String> {
        let timeout = next.map(|at| {
            // A nanosecond more than is left, not one less: no turn is made for nothing.
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut fds = vec![
            PollFd::from_borrowed_fd(kernel, PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        for (socket, _) in self.udp.all() {
            fds.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("wait for the kernel: {e}")),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        Ok(Ready {
            kernel: !fds[0].revents().is_empty(),
        })
    }
}

/// Tells that the thread has ended, however it ended; no reason: it was asked to.
struct End<'a> {
    events: &'a Events,
    reason: Option<String>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            self.events.push(Event::Failed { reason });
        }
    }
}

struct Ready {
    kernel: bool,
}

/// The lock; a panic of another holder is that thread's.
pub(crate) fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_told_of_and_one_that_ends_is_not() {
        let events = Events::default();
        let ended = |panics: bool| {
            std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    let mut end = End {
                        events: &events,
                        reason: Some("panicked".into()),
                    };
                    assert!(!panics, "on purpose");
                    end.reason = None;
                });
                thread.join().is_ok()
            })
        };
        assert!(ended(false));
        assert_eq!(events.next(), None);
        assert!(!ended(true));
        assert!(matches!(events.next(), Some(Event::Failed { .. })));
    }
}
