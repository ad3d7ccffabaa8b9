//! A packet socket whose frames the kernel copies into shared memory when it sees them
//! (TPACKET_V3, Linux's packet(7)).
//!
//! A plain packet socket queues a frame and copies it when it is read, and until then shares its
//! pages with the packet that goes on. A kernel that opens ESP inside UDP does so in place in
//! those pages: a frame that was read late would show in clear what was sealed on the wire.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use testudo_netlink::set_socket_option;

/// A block, bytes: the largest frame fits.
const BLOCK: usize = 128 << 10;
/// Blocks of one ring.
const BLOCKS: usize = 256;
/// A block that is not full is handed over after so many milliseconds. However little is in them, all
/// blocks together hold what comes in five seconds: a busy machine may leave them unread for long.
const RETIRE: u32 = 20;

/// A frame as it was on the link.
pub(super) struct Frame<'a> {
    pub(super) bytes: &'a [u8],
    /// When the kernel saw it: seconds since 1970 and nanoseconds.
    pub(super) at: (u32, u32),
}

/// The socket and its memory.
#[derive(Debug)]
pub(super) struct Ring {
    socket: OwnedFd,
    memory: NonNull<u8>,
    /// The block that comes next.
    next: usize,
    /// Frames that were read.
    read: u64,
    /// Frames that the kernel has put into the ring.
    put: u64,
    /// Frames for which the ring had no room.
    missed: u64,
}

// SAFETY: the memory is the ring's own, and only reached through it.
unsafe impl Send for Ring {}

impl Ring {
    /// Listens on a link; with `incoming_only` not to what leaves there.
    pub(super) fn open(link: u32, incoming_only: bool) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 first: nothing is received before the socket is bound to its link.
        // SAFETY: socket takes integers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set_socket_option(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, version)?;
        if incoming_only {
            set_socket_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        }
        ask_for_memory(&socket)?;
        let memory = map(&socket)?;
        let ring = Self {
            socket,
            memory,
            next: 0,
            read: 0,
            put: 0,
            missed: 0,
        };
        bind(&ring.socket, link)?;
        Ok(ring)
    }

    /// Hands over the frames of the next block. False: it is not there yet.
    pub(super) fn block<E>(
        &mut self,
        mut each: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        // SAFETY: `next` is below BLOCKS.
        let block = unsafe { self.memory.add(self.next * BLOCK) };
        let header = block.cast::<libc::tpacket_block_desc>();
        // SAFETY: a block begins with its description, which the kernel fills; the status is the only
        // part of it that both write, an aligned word.
        let status = unsafe {
            let header = &raw mut (*header.as_ptr()).hdr.bh1.block_status;
            AtomicU32::from_ptr(header)
        };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return Ok(false);
        }
        // SAFETY: the block is ours until its status says otherwise.
        let (count, first) = unsafe {
            let description = (*header.as_ptr()).hdr.bh1;
            (description.num_pkts, description.offset_to_first_pkt)
        };
        let mut at = first as usize;
        let mut result = Ok(());
        for _ in 0..count {
            let Some((frame, next)) = frame(block, at) else {
                break;
            };
            self.read += 1;
            result = each(frame);
            at = next;
            if result.is_err() {
                break;
            }
        }
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % BLOCKS;
        result.map(|()| true)
    }

    /// How many frames the kernel has put into the ring, read or not.
    pub(super) fn put(&mut self) -> u64 {
        // SAFETY: all zeros is a valid tpacket_stats_v3.
        let mut stats: libc::tpacket_stats_v3 = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into a live value of that size.
        let code = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &mut length,
            )
        };
        // Reading them sets them to 0; those that were dropped are among the packets.
        if code == 0 {
            self.missed += u64::from(stats.tp_drops);
            self.put += u64::from(stats.tp_packets.saturating_sub(stats.tp_drops));
        }
        self.put
    }

    /// How many frames were read.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// How many frames did not fit.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped at this address with this size, and nobody refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

/// The frame at an offset of a block, and where the next one begins; none where the kernel's words
/// do not fit into the block.
fn frame<'a>(block: NonNull<u8>, at: usize) -> Option<(Frame<'a>, usize)> {
    if at.checked_add(size_of::<libc::tpacket3_hdr>())? > BLOCK {
        return None;
    }
    // SAFETY: the header lies in the block, which is ours now; it may be read wherever it stands.
    let header = unsafe { block.add(at).cast::<libc::tpacket3_hdr>().read_unaligned() };
    let begin = at.checked_add(usize::from(header.tp_mac))?;
    let length = header.tp_snaplen as usize;
    if begin.checked_add(length)? > BLOCK {
        return None;
    }
    // SAFETY: these bytes lie in the block.
    let bytes = unsafe { std::slice::from_raw_parts(block.add(begin).as_ptr(), length) };
    let frame = Frame {
        bytes,
        at: (header.tp_sec, header.tp_nsec),
    };
    Some((frame, at.checked_add(header.tp_next_offset as usize)?))
}

fn ask_for_memory(socket: &OwnedFd) -> io::Result<()> {
    // What frames would be of fixed size; the kernel checks it and uses it no further.
    const FRAME: usize = 2048;
    let wish = libc::tpacket_req3 {
        tp_block_size: BLOCK as u32,
        tp_block_nr: BLOCKS as u32,
        tp_frame_size: FRAME as u32,
        tp_frame_nr: (BLOCK * BLOCKS / FRAME) as u32,
        tp_retire_blk_tov: RETIRE,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    // SAFETY: the wish lives through the call and its size is said.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_RX_RING,
            (&raw const wish).cast(),
            size_of_val(&wish) as libc::socklen_t,
        )
    };
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn map(socket: &OwnedFd) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            BLOCK * BLOCKS,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            socket.as_raw_fd(),
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

fn bind(socket: &OwnedFd, link: u32) -> io::Result<()> {
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = link.cast_signed();
    // SAFETY: the address lives through the call and its size is said.
    let code = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};
    use testudo_netlink::Netlink;

    /// A namespace of this thread alone, with its loopback up.
    fn alone(test: &str) -> bool {
        // SAFETY: unshare takes an integer; a test has a thread of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("SKIPPED {test}: needs root for a network namespace");
            return false;
        }
        Netlink::open().unwrap().set_up(1).unwrap();
        true
    }

    /// Reads until all that the kernel has put there was read; the frames' payloads.
    fn read(ring: &mut Ring, prefix: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let begin = Instant::now();
        while ring.read() < ring.put() {
            assert!(begin.elapsed() < Duration::from_secs(10), "a frame is lost");
            let taken = ring.block(|frame| {
                // Ethernet, IPv4 and UDP before it.
                let payload = frame.bytes.get(42..).unwrap_or_default();
                if payload.starts_with(prefix) {
                    found.push(payload.to_vec());
                }
                assert!(frame.at.0 > 1_000_000_000, "{}", frame.at.0);
                Ok::<(), ()>(())
            });
            if !taken.unwrap() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        found
    }

    #[test]
    fn every_frame_is_read_once_and_whole() {
        if !alone("every_frame_is_read_once_and_whole") {
            return;
        }
        let mut ring = Ring::open(1, true).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let mut sent = Vec::new();
        // More than the ring's blocks, over its end and around, of every size.
        for round in 0..40_usize {
            for length in [8_usize, 100, 1400, 9000, 60_000] {
                let mut payload = b"tapped".to_vec();
                payload.extend((0..length).map(|n| (n + round) as u8));
                sender.send_to(&payload, to).unwrap();
                sent.push(payload);
            }
            if round % 8 == 7 {
                assert_eq!(read(&mut ring, b"tapped"), std::mem::take(&mut sent));
            }
        }
        assert_eq!(ring.missed(), 0);
    }

    #[test]
    fn what_did_not_fit_is_counted() {
        if !alone("what_did_not_fit_is_counted") {
            return;
        }
        let mut ring = Ring::open(1, true).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let number = 2 * BLOCK * BLOCKS / 60_000;
        for _ in 0..number {
            sender.send_to(&[7; 60_000], to).unwrap();
        }
        let got = read(&mut ring, &[7]).len();
        assert!(got > 0 && got < number, "{got} of {number}");
        assert_eq!(got as u64 + ring.missed(), number as u64);
    }
}
