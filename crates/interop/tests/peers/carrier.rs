//! What carries our packets: ESP opened and sealed here, in UDP or as such, or a datapath.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use testudo_datapath::Waker;
use testudo_esp::{InboundParameters, InboundSa, OutboundParameters, OutboundSa};
use testudo_model::{InboundSaSpec, OutboundSaSpec, SaMode};

use crate::packet;

/// A pair of SAs that are opened and sealed here.
pub struct Pair {
    pub inbound: InboundSa,
    outbound: OutboundSa,
}

impl Pair {
    pub fn new(i: &InboundSaSpec, o: &OutboundSaSpec) -> Self {
        Self {
            inbound: InboundSa::new(&InboundParameters {
                spi: i.spi.0,
                cipher: i.cipher,
                keymat: i.keymat.as_bytes(),
                esn: i.esn,
                replay_window: i.replay_window,
            })
            .unwrap(),
            outbound: OutboundSa::new(&OutboundParameters {
                spi: o.spi.0,
                cipher: o.cipher,
                keymat: o.keymat.as_bytes(),
                esn: o.esn,
                limits: testudo_esp::SoftLimits::NONE,
            })
            .unwrap(),
        }
    }

    /// Seals an IP packet: all of it, or in transport mode what is behind its header.
    pub fn seal(&mut self, mode: SaMode, packet: &[u8]) -> Vec<u8> {
        let v4 = packet[0] >> 4 == 4;
        let (inner, next) = match mode {
            SaMode::Tunnel => (packet, if v4 { 4 } else { 41 }),
            SaMode::Transport => {
                let (at, number) = packet::behind_header(v4);
                (&packet[at..], number)
            }
        };
        let mut buffer = vec![0; self.outbound.head_room()];
        buffer.extend(inner);
        buffer.extend([0; testudo_esp::MAX_TAIL_ROOM]);
        let sealed = self.outbound.seal(&mut buffer, inner.len(), next).unwrap();
        buffer.truncate(sealed.len);
        buffer
    }
}

/// A socket for ESP without UDP, IP protocol 50.
pub struct Raw {
    socket: UdpSocket,
    v4: bool,
}

impl Raw {
    /// `None` where the process may not have one.
    pub fn open(v4: bool) -> Option<Self> {
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes integers; the descriptor that it gives is owned by nobody else.
        let socket = unsafe {
            let fd = libc::socket(family, kind, libc::IPPROTO_ESP);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))?
        };
        // It sends and receives as a UDP socket does, apart from ports.
        let socket = UdpSocket::from(socket);
        Some(Self { socket, v4 })
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub fn send(&self, to: IpAddr, esp: &[u8]) -> io::Result<usize> {
        self.socket.send_to(esp, SocketAddr::new(to, 0))
    }

    /// The next ESP packet that waits. IPv4's come with their IP header.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).ok()?;
        let header = match self.v4 {
            true => usize::from(buffer[0] & 15) * 4,
            false => 0,
        };
        buffer.get(header..len).map(<[u8]>::to_vec)
    }
}

/// What a datapath rings when it has something to tell, waited for beside sockets.
pub struct Bell {
    rope: Arc<UnixDatagram>,
    bell: UnixDatagram,
}

impl Bell {
    pub fn new() -> Self {
        let (rope, bell) = UnixDatagram::pair().unwrap();
        rope.set_nonblocking(true).unwrap();
        bell.set_nonblocking(true).unwrap();
        let rope = Arc::new(rope);
        Self { rope, bell }
    }

    pub fn waker(&self) -> Waker {
        let rope = Arc::clone(&self.rope);
        // One that cannot be rung any more has been rung.
        Arc::new(move || drop(rope.send(&[0])))
    }

    /// Waits until it was rung or one of the sockets has something.
    pub fn wait<'s>(&self, sockets: impl Iterator<Item = &'s UdpSocket>, longest: Duration) {
        let all = sockets
            .map(AsRawFd::as_raw_fd)
            .chain([self.bell.as_raw_fd()]);
        let mut all: Vec<libc::pollfd> = all
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let milliseconds = i32::try_from(longest.as_millis()).unwrap();
        // SAFETY: as many live pollfds as are named.
        unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, milliseconds) };
        while self.bell.recv(&mut [0]).is_ok() {}
    }
}
