//! One netlink socket of any family: the exchange of requests and answers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::SocketAddrNetlink,
};
use zeroize::{Zeroize, Zeroizing};

use crate::abi;
use crate::message::{Attributes, Message, Messages, Request, read_string, read_u32};
use crate::{Error, Result, set_socket_option};

/// The kernel answers at once; a longer silence is an error and never a hang.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The kernel fills dump datagrams up to the reader's buffer, at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// A dump that is disturbed by changes is asked for again, this often at most.
const DUMP_TRIES: usize = 8;

/// One netlink socket: requests go out, their answers are read to the end.
///
/// Buffers are wiped after use: what goes through them may be keys.
pub(crate) struct Transport {
    socket: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Zeroizing<Vec<u8>>,
}

/// Opens a netlink socket in the network namespace of the calling thread, bound to a port that
/// the kernel chooses. No protocol: NETLINK_ROUTE.
pub(crate) fn open_socket(protocol: Option<Protocol>, groups: u32) -> Result<OwnedFd> {
    let failed = |source: rustix::io::Errno| Error::Socket {
        operation: "open".into(),
        source: source.into(),
    };
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )
    .map_err(failed)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(failed)?;
    Ok(socket)
}

impl Transport {
    /// A socket for requests in the network namespace of the calling thread.
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Self> {
        let failed = |source: rustix::io::Errno| Error::Socket {
            operation: "open".into(),
            source: source.into(),
        };
        let socket = open_socket(protocol, 0)?;
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
        let port = rustix::net::getsockname(&socket)
            .and_then(SocketAddrNetlink::try_from)
            .map_err(failed)?
            .pid();
        Ok(Self {
            socket,
            port,
            sequence: 0,
            buffer: Zeroizing::new(vec![0; BUFFER]),
        })
    }

    /// The socket's own number, as notifications name who caused them.
    pub(crate) fn port(&self) -> u32 {
        self.port
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
        let (mut bytes, operation) = request.finish(sequence, self.port);
        let all = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags;
        bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        self.send(&bytes, &operation)?;
        let mut undisturbed = true;
        loop {
            let len = self.receive(&operation)?;
            let answer = Wiped(&mut self.buffer[..len]);
            for message in Messages(answer.0) {
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

/// Bytes that are overwritten when they have been read, whichever way the reader leaves.
struct Wiped<'a>(&'a mut [u8]);

impl Drop for Wiped<'_> {
    fn drop(&mut self) {
        self.0.zeroize();
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
    let _ = set_socket_option(socket, abi::SOL_NETLINK, option, 1);
}
