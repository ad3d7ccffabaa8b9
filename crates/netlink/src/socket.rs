//! The rtnetlink socket, and network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::message::{Message, Request};
use crate::transport::Transport;
use crate::{Error, Result};

/// A connection to the kernel's routing subsystem in one network namespace.
pub struct Netlink {
    transport: Transport,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let transport = Transport::open(None)?;
        Ok(Self { transport })
    }

    /// Opens a socket in another network namespace; the calling thread stays where it is.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        run_in_netns(netns, Self::open)?
    }

    /// Sends a request that changes something and waits for its acknowledgement.
    pub(crate) fn execute(&mut self, request: Request) -> Result<()> {
        self.transport.execute(request)
    }

    /// Sends a request for one object and hands each answering message to `each`.
    pub(crate) fn get(
        &mut self,
        request: Request,
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<()> {
        self.transport.get(request, each)
    }

    /// Sends a request for all objects. `make` builds it, since a disturbed dump starts again.
    pub(crate) fn dump<T>(
        &mut self,
        make: impl Fn() -> Request,
        parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.transport.dump(make, parse)
    }
}

/// Opens a network namespace by path, for example `/run/netns/NAME` or `/proc/PID/ns/net`.
pub fn open_netns(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| Error::Netns {
            what: path.display().to_string(),
            source,
        })
}

/// Moves the calling thread into a network namespace. Only threads that end there should call it.
pub fn enter_netns(netns: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: setns takes two integers and touches no memory of ours. It changes the namespace of
    // the calling thread alone, which nothing in safe Rust relies on.
    let code = unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) };
    if code == 0 {
        return Ok(());
    }
    Err(Error::Netns {
        what: "enter".into(),
        source: io::Error::last_os_error(),
    })
}

/// Runs a closure on a thread of its own inside a network namespace and returns its result.
///
/// Sockets that it opens stay in that namespace.
pub fn run_in_netns<T: Send>(netns: BorrowedFd<'_>, run: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || enter_netns(netns).map(|()| run()))
            .map_err(|source| Error::Netns {
                what: "start a thread".into(),
                source,
            })?;
        match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
