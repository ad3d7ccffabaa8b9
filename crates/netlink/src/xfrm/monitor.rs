//! Notifications from the kernel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use zeroize::{Zeroize, Zeroizing};

use super::abi;
use super::event::XfrmNotice;
use super::socket::PROTOCOL;
use crate::message::Messages;
use crate::transport::open_socket;
use crate::{Error, Result};

/// The receive buffer that is asked for, bytes: some ten thousand notifications. Memory is taken
/// only while they wait.
const RECEIVE_BUFFER: usize = 16 << 20;
/// One notification is far shorter.
const BUFFER: usize = 32 * 1024;

/// A socket that hears of SAs and policies.
pub struct XfrmMonitor {
    socket: OwnedFd,
    buffer: Zeroizing<Vec<u8>>,
}

/// What one read of a monitor brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XfrmHeard {
    /// Notifications, in their order; none where they were about other things.
    Notices(Vec<XfrmNotice>),
    /// Some were lost because the buffer was full: what they told must be looked up.
    Overrun,
    /// None waits.
    Nothing,
}

impl std::fmt::Debug for XfrmMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XfrmMonitor").finish_non_exhaustive()
    }
}

impl XfrmMonitor {
    /// Listens in the network namespace of the calling thread, with a large buffer.
    pub fn open() -> Result<Self> {
        Self::with_buffer(RECEIVE_BUFFER)
    }

    /// Listens with a receive buffer of `bytes`; of fewer where the system allows no more.
    pub fn with_buffer(bytes: usize) -> Result<Self> {
        use rustix::net::sockopt;
        let groups = abi::GROUP_ACQUIRE
            | abi::GROUP_EXPIRE
            | abi::GROUP_SA
            | abi::GROUP_POLICY
            | abi::GROUP_MAPPING;
        let socket = open_socket(Some(PROTOCOL), groups)?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
            // Without CAP_NET_ADMIN in the first user namespace: what net.core.rmem_max allows.
            let _ = sockopt::set_socket_recv_buffer_size(&socket, bytes);
        }
        Ok(Self {
            socket,
            buffer: Zeroizing::new(vec![0; BUFFER]),
        })
    }

    /// Reads what waits, up to one datagram. Never blocks; the descriptor says when it is worth
    /// while ([`AsFd`]).
    pub fn read(&mut self) -> Result<XfrmHeard> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut self.buffer[..], flags)
        });
        let (len, real) = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(XfrmHeard::Nothing),
            Err(Errno::NOBUFS) => return Ok(XfrmHeard::Overrun),
            Err(e) => {
                return Err(Error::Socket {
                    operation: "read notifications".into(),
                    source: e.into(),
                });
            }
        };
        let heard = match real > len {
            true => XfrmHeard::Overrun,
            false => XfrmHeard::Notices(notices(&self.buffer[..len])),
        };
        self.buffer[..len].zeroize();
        Ok(heard)
    }
}

/// What a datagram tells; what is malformed or of no interest is left out.
pub(super) fn notices(datagram: &[u8]) -> Vec<XfrmNotice> {
    Messages(datagram)
        .map_while(|message| message)
        .filter_map(|message| XfrmNotice::parse(&message))
        .collect()
}

impl AsFd for XfrmMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
