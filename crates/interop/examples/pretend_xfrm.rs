//! Lets a daemon believe that the kernel has installed its SAs, where the kernel has no ESP.
//!
//! Loaded with LD_PRELOAD into pluto or a charon without kernel-libipsec. Both send one request
//! on their XFRM socket and read one answer; requests about SAs never reach the kernel but are
//! answered here, each with success. Policies do reach it. No packet passes such SAs.

use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use libc::{sockaddr, socklen_t, ssize_t};

const NETLINK_XFRM: c_int = 6;
const NEW_SA: u16 = 0x10;
const DELETE_SA: u16 = 0x11;
const GET_SA: u16 = 0x12;
const ALLOCATE_SPI: u16 = 0x16;
const UPDATE_SA: u16 = 0x1a;
const ERROR: u16 = 2;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct xfrm_usersa_info`, and where the SPI is in it.
const SA_INFO: usize = 224;
const SPI_AT: usize = 72;

/// The daemon's XFRM socket: the first that it opens. The second one only listens.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static NEXT_SPI: AtomicU32 = AtomicU32::new(0xc100_0001);
static ANSWER: Mutex<Option<Answer>> = Mutex::new(None);

struct Answer {
    message: Vec<u8>,
    /// A message of the kernel's stands in for it on the socket, and is to be thrown away.
    stands_in: bool,
}

fn keep(message: Vec<u8>, stands_in: bool) {
    let mut waiting = ANSWER.lock().unwrap_or_else(PoisonError::into_inner);
    *waiting = Some(Answer { message, stands_in });
}

fn taken(fd: c_int) -> Option<Answer> {
    if fd < 0 || fd != SOCKET.load(Relaxed) {
        return None;
    }
    ANSWER.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The answer to a request, or `None` for one that the kernel is to see.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    let header = request.get(..HEADER)?;
    let mut body = Vec::new();
    let kind = match u16::from_ne_bytes([header[4], header[5]]) {
        NEW_SA | UPDATE_SA | DELETE_SA => {
            body.extend([0; 4]);
            body.extend(header);
            ERROR
        }
        GET_SA => {
            body.resize(SA_INFO, 0);
            NEW_SA
        }
        ALLOCATE_SPI => {
            body.resize(SA_INFO, 0);
            let spi = NEXT_SPI.fetch_add(1, Relaxed).to_be_bytes();
            body[SPI_AT..SPI_AT + 4].copy_from_slice(&spi);
            NEW_SA
        }
        _ => return None,
    };
    let mut message = Vec::new();
    message.extend(u32::try_from(HEADER + body.len()).ok()?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend([0; 2]);
    // Sequence number and port, as asked.
    message.extend(&header[8..HEADER]);
    message.extend(body);
    Some(message)
}

/// socket(2), which remembers the XFRM socket.
#[unsafe(no_mangle)]
pub extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the system call takes three integers.
    let fd = unsafe { libc::syscall(libc::SYS_socket, domain, kind, protocol) };
    let fd = fd as c_int;
    if fd >= 0 && domain == libc::AF_NETLINK && protocol == NETLINK_XFRM {
        let _ = SOCKET.compare_exchange(-1, fd, Relaxed, Relaxed);
    }
    fd
}

/// write(2), which keeps requests about SAs from the kernel.
///
/// # Safety
/// As for write(2): `data` is readable for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, data: *const c_void, len: usize) -> ssize_t {
    if fd >= 0 && fd == SOCKET.load(Relaxed) && !data.is_null() {
        // SAFETY: the caller promises that it is readable.
        let request = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
        if let Some(message) = answer(request) {
            keep(message, false);
            return len as ssize_t;
        }
    }
    // SAFETY: the caller's arguments, passed through.
    unsafe { libc::syscall(libc::SYS_write, fd, data, len) as ssize_t }
}

/// sendto(2), which does the same for charon. charon waits for the answer with select(2): the
/// kernel is asked to acknowledge nothing at all (NLMSG_NOOP), so that something comes.
///
/// # Safety
/// As for sendto(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    data: *const c_void,
    len: usize,
    flags: c_int,
    to: *const sockaddr,
    to_len: socklen_t,
) -> ssize_t {
    let mut noop = [0_u8; HEADER];
    let (mut sent, mut sent_len) = (data, len);
    if fd >= 0 && fd == SOCKET.load(Relaxed) && !data.is_null() {
        // SAFETY: the caller promises that it is readable.
        let request = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
        if let Some(message) = answer(request) {
            keep(message, true);
            noop.copy_from_slice(&request[..HEADER]);
            noop[..4].copy_from_slice(&16_u32.to_ne_bytes());
            noop[4..6].copy_from_slice(&1_u16.to_ne_bytes());
            // NLM_F_REQUEST and NLM_F_ACK.
            noop[6..8].copy_from_slice(&5_u16.to_ne_bytes());
            (sent, sent_len) = (noop.as_ptr().cast(), HEADER);
        }
    }
    // SAFETY: the caller's arguments, or a message of ours that lives on the stack.
    let done = unsafe { libc::syscall(libc::SYS_sendto, fd, sent, sent_len, flags, to, to_len) };
    if done == sent_len as c_long {
        return len as ssize_t;
    }
    done as ssize_t
}

/// recv(2), which gives our answer if one waits.
///
/// # Safety
/// As for recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, len: usize, flags: c_int) -> ssize_t {
    // SAFETY: the caller's arguments, passed on; nobody asks for the address.
    unsafe {
        let nobody = std::ptr::null_mut();
        recvfrom(fd, buffer, len, flags, nobody, std::ptr::null_mut())
    }
}

/// recvfrom(2), which gives our answer if one waits.
///
/// # Safety
/// As for recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
    from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> ssize_t {
    if let Some(Answer { message, stands_in }) = taken(fd) {
        let given = message.len().min(len);
        // SAFETY: the caller promises room for `len` bytes, and for the address as long as
        // it says; an all-zero sockaddr_nl with its family is the kernel's.
        unsafe {
            if stands_in {
                let nobody = std::ptr::null_mut::<c_void>();
                libc::syscall(libc::SYS_recvfrom, fd, buffer, len, 0, nobody, nobody);
            }
            std::ptr::copy_nonoverlapping(message.as_ptr(), buffer.cast::<u8>(), given);
            let size = size_of::<libc::sockaddr_nl>();
            if !from.is_null() && !from_len.is_null() && *from_len as usize >= size {
                let mut kernel: libc::sockaddr_nl = std::mem::zeroed();
                kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
                std::ptr::copy_nonoverlapping(&kernel, from.cast(), 1);
                *from_len = size as socklen_t;
            }
        }
        return given as ssize_t;
    }
    // SAFETY: the caller's arguments, passed through.
    unsafe {
        let done: c_long =
            libc::syscall(libc::SYS_recvfrom, fd, buffer, len, flags, from, from_len);
        done as ssize_t
    }
}
