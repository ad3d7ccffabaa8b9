//! The socket, the exchange of requests and answers, and network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
};

use crate::abi;
use crate::message::{Attributes, Message, Messages, Request, read_string, read_u32};
use crate::{Error, Result};

/// The kernel answers at once; a longer silence is an error and never a hang.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The kernel fills dump datagrams up to the reader's buffer, at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// A dump that is disturbed by changes is asked for again, this often at most.
const DUMP_TRIES: usize = 8;

/// A connection to the kernel's routing subsystem in one network namespace.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let failed = |source: rustix::io::Errno| Error::Socket {
            operation: "open".into(),
            source: source.into(),
        };
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Protocol 0 is NETLINK_ROUTE.
            None,
        )
        .map_err(failed)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(TIMEOUT),
        )
        .map_err(failed)?;
        // Old kernels lack some of these: answers are then longer or less explained, no more.
        for option in [
            abi::NETLINK_CAP_ACK,
            abi::NETLINK_EXT_ACK,
            abi::NETLINK_GET_STRICT_CHK,
        ] {
            set_netlink_option(socket.as_fd(), option);
        }
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Opens a socket in another network namespace; the calling thread stays where it is.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        run_in_netns(netns, Self::open)?
    }

    /// Sends a request that changes something and waits for its acknowledgement.
    pub(crate) fn execute(&mut self, request: Request) -> Result<()> {
        self.exchange(request, abi::NLM_F_ACK, &mut |_| {})
            .map(|_| ())
    }

    /// Sends a request for one object and hands each answering message to `each`.
    pub(crate) fn get(
        &mut self,
        request: Request,
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<()> {
        self.exchange(request, abi::NLM_F_ACK, each).map(|_| ())
    }

    /// Sends a request for all objects. `make` builds it, since a disturbed dump starts again.
    pub(crate) fn dump<T>(
        &mut self,
        make: impl Fn() -> Request,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let whole = self.exchange(make(), abi::NLM_F_DUMP, &mut |message| {
                found.extend(parse(message));
            })?;
            if whole {
                return Ok(found);
            }
        }
        Err(Error::Malformed {
            operation: make().operation,
            what: "the dump was interrupted by changes each time; try again",
        })
    }

    /// One request and its answer. False: a dump that changes disturbed.
    fn exchange(
        &mut self,
        request: Request,
        flags: u16,
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let (mut bytes, operation) = request.finish(sequence);
        let all = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags;
        bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        self.send(&bytes, &operation)?;
        let mut undisturbed = true;
        loop {
            let len = self.receive(&operation)?;
            for message in Messages(&self.buffer[..len]) {
                let Some(message) = message else {
                    return Err(Error::Malformed {
                        operation,
                        what: "message length",
                    });
                };
                if message.sequence != sequence {
                    // The rest of an answer to an earlier request that failed half-way.
                    continue;
                }
                undisturbed &= message.flags & abi::NLM_F_DUMP_INTR == 0;
                match message.kind {
                    abi::NLMSG_DONE => {
                        let code = read_u32(message.body, 0).map_or(0, |c| c as i32);
                        return refused(code, None, operation).map(|()| undisturbed);
                    }
                    abi::NLMSG_ERROR => {
                        return acknowledged(&message, operation).map(|()| undisturbed);
                    }
                    abi::NLMSG_OVERRUN => {
                        return Err(Error::Malformed {
                            operation,
                            what: "the answer overran",
                        });
                    }
                    abi::NLMSG_NOOP => {}
                    _ => each(&message),
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8], operation: &str) -> Result<()> {
        rustix::io::retry_on_intr(|| {
            rustix::net::sendto(
                &self.socket,
                bytes,
                SendFlags::empty(),
                &SocketAddrNetlink::new(0, 0),
            )
        })
        .map(|_| ())
        .map_err(|e| Error::Socket {
            operation: operation.into(),
            source: e.into(),
        })
    }

    fn receive(&mut self, operation: &str) -> Result<usize> {
        let (len, real) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC)
        })
        .map_err(|e| {
            let source = if e == rustix::io::Errno::AGAIN {
                io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer in 5 s")
            } else {
                e.into()
            };
            Error::Socket {
                operation: operation.into(),
                source,
            }
        })?;
        if real > self.buffer.len() {
            return Err(Error::Malformed {
                operation: operation.into(),
                what: "truncated",
            });
        }
        Ok(len)
    }
}

fn acknowledged(message: &Message<'_>, operation: String) -> Result<()> {
    let Some(code) = read_u32(message.body, 0).map(|c| c as i32) else {
        return Err(Error::Malformed {
            operation,
            what: "acknowledgement",
        });
    };
    let mut reason = None;
    if message.flags & abi::NLM_F_ACK_TLVS != 0 {
        let echoed = if message.flags & abi::NLM_F_CAPPED != 0 {
            crate::message::HEADER_LEN
        } else {
            read_u32(message.body, 4).map_or(0, |l| (l as usize).next_multiple_of(4))
        };
        let rest = message.body.get(4 + echoed..).unwrap_or(&[]);
        reason = Attributes(rest)
            .find(|(kind, _)| *kind == abi::NLMSGERR_ATTR_MSG)
            .map(|(_, text)| read_string(text));
    }
    refused(code, reason, operation)
}

fn refused(code: i32, reason: Option<String>, operation: String) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    Err(Error::Refused {
        operation,
        errno: code.wrapping_neg(),
        reason,
    })
}

/// Turns a boolean option of the netlink socket on; failure means an old kernel.
fn set_netlink_option(socket: BorrowedFd<'_>, option: i32) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the length of the call, and the kernel reads exactly
    // `size_of::<c_int>()` bytes from a live local variable.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            abi::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
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
