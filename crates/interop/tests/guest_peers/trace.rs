//! What a node sends to the other, each packet with its time.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use testudo_netlink::set_socket_option;

use crate::nodes::wire::{lost_frames, packet_socket};
use crate::nodes::{Node, PORT};

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Esp {
        spi: u32,
    },
    EspInUdp {
        spi: u32,
    },
    Ike {
        exchange: u8,
        answer: bool,
    },
    /// UDP to the overlay's port.
    Clear,
    /// Other IP packets, neighbour discovery left out.
    Other,
}

impl Kind {
    pub fn spi(self) -> Option<u32> {
        match self {
            Self::Esp { spi } | Self::EspInUdp { spi } => Some(spi),
            _ => None,
        }
    }
}

/// A packet that left.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// By the kernel's clock, since 1970.
    pub at: Duration,
    pub kind: Kind,
}

/// A packet socket on a node's device towards the other.
pub struct Trace {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Frame>, u32)>,
}

impl Trace {
    pub fn start(node: &Node) -> Self {
        let socket = node.run(|| open(node));
        let stop = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&stop);
        let thread = std::thread::spawn(move || gather(&socket, &end));
        Self { stop, thread }
    }

    /// Ends it: all that has left. Nothing may have escaped.
    pub fn finish(self) -> Vec<Frame> {
        std::thread::sleep(Duration::from_millis(50));
        self.stop.store(true, Ordering::SeqCst);
        let (frames, dropped) = self.thread.join().unwrap();
        assert_eq!(dropped, 0, "the packet socket lost frames");
        frames
    }
}

/// Its frames come with the time at which the kernel had them.
fn open(node: &Node) -> OwnedFd {
    let socket = packet_socket(node.device());
    set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1).unwrap();
    socket
}

fn gather(socket: &OwnedFd, stop: &AtomicBool) -> (Vec<Frame>, u32) {
    let mut frames = Vec::new();
    loop {
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, 20) } > 0 {
            frames.extend(next(socket));
        } else if stop.load(Ordering::SeqCst) {
            // What has been taken from the wire is read before the end.
            break;
        }
    }
    (frames, lost_frames(socket))
}

/// The next packet, if it goes out and is of interest.
fn next(socket: &OwnedFd) -> Option<Frame> {
    let mut buffer = [0u8; 2048];
    // Aligned as control messages are.
    let mut control = [0u64; 16];
    // SAFETY: zeroes are valid for these structures of the kernel's. Its pointers are to live
    // local variables of the given lengths, and what it says is in them is read no further.
    let (len, kind, at) = unsafe {
        let mut from: libc::sockaddr_ll = std::mem::zeroed();
        let mut piece = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let len = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!first.is_null(), "no time with a frame");
        assert_eq!((*first).cmsg_type, libc::SO_TIMESTAMPNS);
        let time: libc::timespec = libc::CMSG_DATA(first)
            .cast::<libc::timespec>()
            .read_unaligned();
        let at = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        (len, from.sll_pkttype, at)
    };
    let packet = buffer.get(..usize::try_from(len).ok()?)?;
    let kind = (kind == libc::PACKET_OUTGOING).then(|| classify(packet))??;
    Some(Frame { at, kind })
}

fn classify(packet: &[u8]) -> Option<Kind> {
    let (protocol, payload) = match packet.first()? >> 4 {
        4 => (packet[9], &packet[usize::from(packet[0] & 15) * 4..]),
        6 => (packet[6], &packet[40..]),
        _ => return None,
    };
    let word = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let to = || u16::from_be_bytes([payload[2], payload[3]]);
    let ike = |message: &[u8]| Kind::Ike {
        exchange: message[18],
        answer: message[19] & 0x20 != 0,
    };
    Some(match protocol {
        50 => Kind::Esp { spi: word(payload) },
        17 if to() == PORT => Kind::Clear,
        17 if to() == 500 => ike(&payload[8..]),
        17 if to() == 4500 && payload.len() > 12 => match word(&payload[8..]) {
            0 => ike(&payload[12..]),
            spi => Kind::EspInUdp { spi },
        },
        // Neighbour discovery and multicast reports.
        58 | 0 => return None,
        _ => Kind::Other,
    })
}
