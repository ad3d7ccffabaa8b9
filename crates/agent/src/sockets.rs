//! IKE's sockets on UDP 500, one for each of the node's addresses: what comes in on one is
//! addressed to it, what goes out leaves from it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use testudo_netlink::{Family, bypass_policies};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::keeper;

/// The largest IKE message that is read; the engine refuses larger ones anyway.
const MAX_MESSAGE: usize = 65_535;

/// Datagrams taken in before everything else gets its turn.
const BATCH: usize = 64;

/// The sockets.
pub(crate) struct Sockets {
    sockets: Vec<(SocketAddr, UdpSocket)>,
    buffer: Vec<u8>,
    /// Datagrams that the kernel did not take.
    pub(crate) unsent: u64,
}

/// A datagram that came in.
pub(crate) struct Datagram {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

impl Sockets {
    /// Binds `port` on every address. One that the host does not have yet is bound all the same.
    ///
    /// Where this process may not bind the port, the `keeper` is asked to.
    pub(crate) fn open(addresses: &[IpAddr], port: u16, keeper: Option<&Path>) -> Result<Sockets> {
        let mut sockets = Vec::new();
        for address in addresses {
            let local = SocketAddr::new(*address, port);
            let socket = open(local, keeper).with_context(|| {
                format!(
                    "UDP {local}: cannot be bound; stop another IKE daemon (charon, pluto) and \
                     run the agent, or a keeper with --opens {port}, with CAP_NET_BIND_SERVICE"
                )
            })?;
            sockets.push((local, socket));
        }
        Ok(Sockets {
            sockets,
            buffer: vec![0; MAX_MESSAGE],
            unsent: 0,
        })
    }

    /// Binds what is missing of `addresses`. What was bound before the last change goes; the
    /// addresses of before may still be used by SAs.
    pub(crate) fn follow(
        &mut self,
        addresses: &[IpAddr],
        last: &[IpAddr],
        port: u16,
        keeper: Option<&Path>,
    ) -> Result<()> {
        let bound = |ip: &IpAddr| self.sockets.iter().any(|(local, _)| local.ip() == *ip);
        let missing: Vec<IpAddr> = addresses.iter().filter(|ip| !bound(ip)).copied().collect();
        let more = Sockets::open(&missing, port, keeper)?;
        self.sockets
            .retain(|(local, _)| [addresses, last].concat().contains(&local.ip()));
        self.sockets.extend(more.sockets);
        Ok(())
    }

    /// Sends from `local`. A datagram that the kernel does not take is lost, as on a wire: the
    /// engine sends it again. False: the host has no way there, now.
    pub(crate) fn send(&mut self, local: SocketAddr, remote: SocketAddr, bytes: &[u8]) -> bool {
        let socket = self.sockets.iter().find(|(bound, _)| *bound == local);
        // Not through the runtime: it knows of a new socket's readiness only a round later.
        let sent = socket.map(|(_, socket)| SockRef::from(socket).send_to(bytes, &remote.into()));
        match sent {
            Some(Ok(_)) => true,
            Some(Err(error)) => {
                tracing::debug!(%local, %remote, "IKE datagram not sent: {error}");
                self.unsent += 1;
                let kind = error.kind();
                use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable};
                !matches!(kind, HostUnreachable | NetworkDown | NetworkUnreachable)
            }
            None => {
                self.unsent += 1;
                true
            }
        }
    }

    /// Waits for a datagram, then takes in what is there, up to a bound.
    pub(crate) async fn receive(&mut self) -> Vec<Datagram> {
        std::future::poll_fn(|task| self.poll_receive(task)).await
    }

    fn poll_receive(&mut self, task: &mut TaskContext<'_>) -> Poll<Vec<Datagram>> {
        let mut datagrams = Vec::new();
        let mut drained = true;
        for (local, socket) in &self.sockets {
            // An error (ICMP unreachable as ECONNREFUSED) says nothing about the socket.
            let empty = (0..BATCH).any(|_| {
                let mut buffer = ReadBuf::new(&mut self.buffer);
                match socket.poll_recv_from(task, &mut buffer) {
                    Poll::Ready(Ok(remote)) => datagrams.push(Datagram {
                        local: *local,
                        remote,
                        bytes: buffer.filled().to_vec(),
                    }),
                    Poll::Ready(Err(_)) => {}
                    Poll::Pending => return true,
                }
                false
            });
            drained &= empty;
        }
        if datagrams.is_empty() {
            if !drained {
                task.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        Poll::Ready(datagrams)
    }
}

fn open(local: SocketAddr, keeper: Option<&Path>) -> io::Result<UdpSocket> {
    let socket = match (bound_socket(local), keeper) {
        (Err(error), Some(keeper)) if error.kind() == io::ErrorKind::PermissionDenied => {
            keeper::bind(keeper, local)?.ok_or(error)?
        }
        (bound, _) => bound?,
    };
    bypass(&socket, local);
    UdpSocket::from_std(socket.into())
}

/// A UDP socket at an address, which the host need not have yet.
pub(crate) fn bound_socket(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&local.into())?;
    Ok(socket)
}

/// No IPsec policy of the host's is to catch IKE. Where the kernel has none, or the capability is
/// missing, there is nothing to pass by.
fn bypass(socket: &Socket, local: SocketAddr) {
    let family = Family::of(&local.ip());
    if let Err(error) = bypass_policies(socket.as_fd(), family) {
        tracing::debug!(%local, "IKE is under the host's IPsec policies: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_ends() {
        let one: IpAddr = "127.0.0.1".parse().unwrap();
        let mut a = Sockets::open(&[one], 0, None).unwrap();
        let mut b = Sockets::open(&[one], 0, None).unwrap();
        let port = |s: &Sockets| s.sockets[0].1.local_addr().unwrap();
        let (at_a, at_b) = (port(&a), port(&b));
        a.sockets[0].0 = at_a;
        b.sockets[0].0 = at_b;
        a.send(at_a, at_b, b"hello");
        let got = b.receive().await;
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].local, got[0].remote), (at_b, at_a));
        assert_eq!(got[0].bytes, b"hello");
        a.send(at_b, at_a, b"not our address");
        assert_eq!(a.unsent, 1);
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_what_to_do() {
        let one: IpAddr = "127.0.0.1".parse().unwrap();
        let first = Sockets::open(&[one], 0, None).unwrap();
        let port = first.sockets[0].1.local_addr().unwrap().port();
        let Err(error) = Sockets::open(&[one], port, None) else {
            panic!("bound twice");
        };
        assert!(format!("{error:#}").contains("charon"), "{error:#}");
    }
}
