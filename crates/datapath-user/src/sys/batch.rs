//! Many datagrams with one call: sendmmsg and recvmmsg with their control messages.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

/// Datagrams in one call, at most.
pub(crate) const SEND_BATCH: usize = 64;
/// Pieces in one datagram, at most: segments of a GSO send.
const MAX_PARTS: usize = 1024;
/// Room for the control messages of one datagram: in_pktinfo or in6_pktinfo, class, segment size.
const CONTROL: usize = 96;

/// Control messages must be aligned as cmsghdr is.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// A datagram to be sent; its bytes lie in an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    /// The first piece, an index into the list of pieces.
    pub(crate) first_part: usize,
    /// So many pieces.
    pub(crate) parts: usize,
    /// Where it goes.
    pub(crate) remote: SocketAddr,
    /// Where it comes from.
    pub(crate) local: IpAddr,
    /// DSCP and ECN of the outer packet.
    pub(crate) traffic_class: u8,
    /// Bytes of a segment where the kernel shall split it (UDP GSO); 0: one datagram.
    pub(crate) segment: u16,
}

/// Buffers for sending. Lives in one thread.
pub(crate) struct SendBatch {
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl SendBatch {
    pub(crate) fn new() -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let name: libc::sockaddr_storage = unsafe { zeroed() };
        Self {
            names: vec![name; SEND_BATCH],
            controls: vec![Control([0; CONTROL]); SEND_BATCH],
            parts: Vec::with_capacity(MAX_PARTS),
            headers: Vec::with_capacity(SEND_BATCH),
        }
    }

    /// Sends the first of `items` with one call; gives how many went. An error concerns the first.
    /// Pieces are ranges (start, length) of `arena`.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        arena: &[u8],
        pieces: &[(usize, usize)],
        items: &[Outgoing],
    ) -> io::Result<usize> {
        self.parts.clear();
        self.headers.clear();
        let mut counts = [0usize; SEND_BATCH];
        let mut count = 0;
        for item in items.iter().take(SEND_BATCH) {
            // The list must not grow: the headers will point into it.
            if count > 0 && self.parts.len() + item.parts > MAX_PARTS {
                break;
            }
            for (start, len) in &pieces[item.first_part..item.first_part + item.parts] {
                let piece = &arena[*start..*start + *len];
                self.parts.push(libc::iovec {
                    iov_base: piece.as_ptr().cast_mut().cast(),
                    iov_len: piece.len(),
                });
            }
            counts[count] = item.parts;
            count += 1;
        }
        let mut first = 0;
        for (index, item) in items[..count].iter().enumerate() {
            // SAFETY: all-zero bytes are a valid mmsghdr.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_name = (&raw mut self.names[index]).cast();
            header.msg_hdr.msg_namelen = write_name(&mut self.names[index], item.remote);
            header.msg_hdr.msg_iov = self.parts[first..].as_mut_ptr();
            header.msg_hdr.msg_iovlen = counts[index] as _;
            header.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = write_control(&mut self.controls[index], item) as _;
            first += counts[index];
            self.headers.push(header);
        }
        // SAFETY: each header points to an address, pieces and control bytes that live in `self`
        // or in `arena`, are not moved until the call returns, and are as long as they say. The
        // kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_NOSIGNAL,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(sent as usize)
        }
    }
}

fn write_name(name: &mut libc::sockaddr_storage, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than sockaddr_in and aligned for it.
            unsafe { (&raw mut *name).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>() as _
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: sockaddr_storage is larger than sockaddr_in6 and aligned for it.
            unsafe { (&raw mut *name).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>() as _
        }
    }
}

const CMSG_HEADER: usize = size_of::<libc::cmsghdr>();

/// Writes control messages one behind the other; gives their length.
fn write_control(control: &mut Control, item: &Outgoing) -> usize {
    let mut at = 0;
    let class = i32::from(item.traffic_class).to_ne_bytes();
    match item.local {
        IpAddr::V4(local) => {
            // struct in_pktinfo: interface, source, header destination.
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&local.octets());
            put(control, &mut at, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            if item.traffic_class != 0 {
                put(control, &mut at, libc::IPPROTO_IP, libc::IP_TOS, &class);
            }
        }
        IpAddr::V6(local) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&local.octets());
            put(
                control,
                &mut at,
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                &info,
            );
            if item.traffic_class != 0 {
                put(
                    control,
                    &mut at,
                    libc::IPPROTO_IPV6,
                    libc::IPV6_TCLASS,
                    &class,
                );
            }
        }
    }
    if item.segment != 0 {
        put(
            control,
            &mut at,
            SOL_UDP,
            UDP_SEGMENT,
            &item.segment.to_ne_bytes(),
        );
    }
    at
}

fn put(control: &mut Control, at: &mut usize, level: i32, kind: i32, value: &[u8]) {
    let len = CMSG_HEADER + value.len();
    let place = &mut control.0[*at..];
    place[..8].copy_from_slice(&(len as u64).to_ne_bytes()[..8]);
    place[8..12].copy_from_slice(&level.to_ne_bytes());
    place[12..16].copy_from_slice(&kind.to_ne_bytes());
    place[CMSG_HEADER..len].copy_from_slice(value);
    *at += len.next_multiple_of(8);
}

// The control messages are written and read by hand for 64-bit Linux.
const _: () = assert!(CMSG_HEADER == 16 && size_of::<usize>() == 8);

/// A received datagram's envelope; its bytes are `RecvBatch::bytes`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    /// Where its bytes begin in the batch's buffer.
    pub(crate) start: usize,
    /// So many bytes.
    pub(crate) len: usize,
    /// Who sent it.
    pub(crate) remote: SocketAddr,
    /// To which of our addresses, where the kernel said so.
    pub(crate) local: Option<IpAddr>,
    /// DSCP and ECN of the outer packet.
    pub(crate) traffic_class: u8,
    /// Bytes of a segment, where the kernel joined several datagrams (UDP GRO); else `len`.
    pub(crate) segment: usize,
    /// It was longer than the buffer.
    pub(crate) truncated: bool,
}

/// Buffers for receiving. Lives in one thread.
pub(crate) struct RecvBatch {
    bytes: Vec<u8>,
    size: usize,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
}

/// Datagrams in one call, at most.
pub(crate) const RECV_BATCH: usize = 32;

impl RecvBatch {
    /// Buffers of `size` bytes each.
    pub(crate) fn new(size: usize) -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let name: libc::sockaddr_storage = unsafe { zeroed() };
        Self {
            bytes: vec![0; size * RECV_BATCH],
            size,
            names: vec![name; RECV_BATCH],
            controls: vec![Control([0; CONTROL]); RECV_BATCH],
        }
    }

    /// The buffer that envelopes point into.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Receives what waits, without blocking; `envelopes` is replaced.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        envelopes: &mut Vec<Envelope>,
    ) -> io::Result<()> {
        envelopes.clear();
        let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; RECV_BATCH];
        // SAFETY: all-zero bytes are a valid mmsghdr, also in an array.
        let mut headers: [libc::mmsghdr; RECV_BATCH] = unsafe { zeroed() };
        let buffers = self.bytes.chunks_exact_mut(self.size);
        for (index, (buffer, header)) in buffers.zip(&mut headers).enumerate() {
            parts[index].write(libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            });
            header.msg_hdr.msg_name = (&raw mut self.names[index]).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            header.msg_hdr.msg_iov = parts[index].as_mut_ptr();
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: each header points to a name, a piece and control bytes that live in `self` or
        // on this stack, overlap with no other, and are as long as they say.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                RECV_BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for (index, header) in headers.iter().take(count as usize).enumerate() {
            let Some(remote) = read_name(&self.names[index]) else {
                continue;
            };
            let mut envelope = Envelope {
                start: index * self.size,
                len: (header.msg_len as usize).min(self.size),
                remote,
                local: None,
                traffic_class: 0,
                segment: header.msg_len as usize,
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
            let len = header.msg_hdr.msg_controllen.min(CONTROL);
            read_control(&self.controls[index].0[..len], &mut envelope);
            envelopes.push(envelope);
        }
        Ok(())
    }
}

fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel says it is a sockaddr_in, for which the storage is large enough
            // and aligned; any bytes are valid in it.
            let raw = unsafe { (&raw const *name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some((ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let raw = unsafe { (&raw const *name).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some((ip, u16::from_be(raw.sin6_port)).into())
        }
        _ => None,
    }
}

fn read_control(mut rest: &[u8], envelope: &mut Envelope) {
    while rest.len() >= CMSG_HEADER {
        let word =
            |at: usize| i32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let len = word(0).max(0) as usize;
        if len < CMSG_HEADER || len > rest.len() {
            return;
        }
        let (level, kind, value) = (word(8), word(12), &rest[CMSG_HEADER..len]);
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // struct in_pktinfo: interface, local address, header destination.
                envelope.local = value
                    .get(8..12)
                    .and_then(|v| <[u8; 4]>::try_from(v).ok())
                    .map(|v| IpAddr::V4(Ipv4Addr::from(v)));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                envelope.local = value
                    .first_chunk::<16>()
                    .map(|v| IpAddr::V6(Ipv6Addr::from(*v)));
            }
            // IP_TOS comes as one byte, IPV6_TCLASS as an int.
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                envelope.traffic_class = value.first().copied().unwrap_or(0);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let int = value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v));
                envelope.traffic_class = int.unwrap_or(0) as u8;
            }
            (SOL_UDP, UDP_GRO) => {
                let int = value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v));
                if let Some(size) = int.filter(|size| *size > 0) {
                    envelope.segment = size as usize;
                }
            }
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
}
