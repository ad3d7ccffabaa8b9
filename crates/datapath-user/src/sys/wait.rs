//! Waiting for descriptors, and the signal that ends the waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// Ends every thread that waits with it. Once set it stays set.
#[derive(Debug)]
pub(crate) struct Stop(OwnedFd);

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    pub(crate) fn set(&self) {
        // It can fail only by overflow, when it is set already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// The most descriptors that one thread waits for.
const MAX: usize = 8;

/// Waits until one of `fds` can be read. Bit n of the result stands for `fds[n]`; `None` means
/// stop.
pub(crate) fn wait_readable(stop: &Stop, fds: &[BorrowedFd<'_>]) -> io::Result<Option<u32>> {
    let mut polled: [PollFd<'_>; MAX] =
        std::array::from_fn(|_| PollFd::from_borrowed_fd(stop.0.as_fd(), PollFlags::IN));
    let count = 1 + fds.len().min(MAX - 1);
    for (slot, fd) in polled[1..].iter_mut().zip(fds) {
        *slot = PollFd::from_borrowed_fd(*fd, PollFlags::IN);
    }
    loop {
        match poll(&mut polled[..count], None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
    }
    if !polled[0].revents().is_empty() {
        return Ok(None);
    }
    let mut ready = 0;
    for (bit, fd) in polled[1..count].iter().enumerate() {
        // Errors count as readable: the read then says what is wrong.
        if !fd.revents().is_empty() {
            ready |= 1 << bit;
        }
    }
    Ok(Some(ready))
}
