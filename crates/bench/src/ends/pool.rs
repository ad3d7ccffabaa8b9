//! Threads that do an engine's asymmetric work, as a node with many cores would have them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};
use testudo_ike::{Done, Job};

/// Which of several engines a job is of.
type Engine = u32;

/// The threads; they end when it is dropped.
pub(crate) struct Pool {
    jobs: Sender<(Engine, Job)>,
    done: Receiver<(Engine, Done)>,
    /// Readable when something is done.
    bell: Arc<OwnedFd>,
    /// Jobs given so far.
    given: u64,
}

impl Pool {
    /// Starts so many threads; `None` of none.
    pub(crate) fn start(threads: u32) -> anyhow::Result<Option<Self>> {
        if threads == 0 {
            return Ok(None);
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = Arc::new(eventfd(0, flags).context("an eventfd")?);
        let (jobs, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let (finished, done) = channel();
        for number in 0..threads {
            let (waiting, finished, bell) = (waiting.clone(), finished.clone(), bell.clone());
            std::thread::Builder::new()
                .name(format!("pool-{number}"))
                .spawn(move || work(&waiting, &finished, &bell))
                .context("a thread")?;
        }
        Ok(Some(Self {
            jobs,
            done,
            bell,
            given: 0,
        }))
    }

    /// Gives a job to whichever thread is free first.
    pub(crate) fn give(&mut self, engine: Engine, job: Job) -> anyhow::Result<()> {
        self.given += 1;
        self.jobs.send((engine, job)).ok().context("no thread left")
    }

    /// What has been done, in the order in which it was.
    pub(crate) fn done(&self) -> Option<(Engine, Done)> {
        // Silenced before it is looked, so that nothing comes in unheard.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        self.done.try_recv().ok()
    }

    pub(crate) fn given(&self) -> u64 {
        self.given
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

fn work(
    waiting: &Mutex<Receiver<(Engine, Job)>>,
    finished: &Sender<(Engine, Done)>,
    bell: &OwnedFd,
) {
    loop {
        let next = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok((engine, job)) = next else { return };
        if finished.send((engine, job.run())).is_err() {
            return;
        }
        // Full or not, it rings.
        let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
    }
}
