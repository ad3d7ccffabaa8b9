//! Numbered traffic, and what of it is on the link.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testudo_netlink::set_socket_option;

use super::{Node, PORT};

/// What a node sent onto the link so far, counted by packet sockets that see outgoing frames as
/// they leave the device.
#[derive(Default, Debug)]
pub struct Seen {
    /// IP protocol 50.
    pub esp: AtomicU64,
    /// UDP to or from port 4500 with something else than IKE in it.
    pub esp_in_udp: AtomicU64,
    /// UDP to the overlay's port.
    pub clear: AtomicU64,
    /// Other IP packets, neighbour discovery left out.
    pub other: AtomicU64,
}

impl Seen {
    pub fn numbers(&self) -> (u64, u64, u64) {
        let read = |n: &AtomicU64| n.load(Ordering::SeqCst);
        (read(&self.esp), read(&self.esp_in_udp), read(&self.clear))
    }
}

/// A packet socket on a node's eth0.
pub struct Capture {
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Capture {
    pub fn start(node: &Node) -> Self {
        // The link between the nodes alone, not those to pods.
        let socket = node.run(|| packet_socket(c"eth0"));
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (counted, end) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || count(&socket, &counted, &end));
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    /// What has left so far, when all that is on its way has been counted.
    pub fn settled(&self) -> (u64, u64, u64) {
        std::thread::sleep(Duration::from_millis(100));
        self.seen.numbers()
    }

    /// Ends it; nothing may have escaped it.
    pub fn finish(mut self) -> Arc<Seen> {
        std::thread::sleep(Duration::from_millis(50));
        self.stop.store(true, Ordering::SeqCst);
        let dropped = self.thread.take().unwrap().join().unwrap();
        assert_eq!(dropped, 0, "the packet socket lost frames");
        Arc::clone(&self.seen)
    }
}

/// A packet socket on a link of the calling thread's namespace, with room for a busy machine.
pub fn packet_socket(link: &CStr) -> OwnedFd {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: plain system calls on a descriptor that is owned at once, and on live local variables.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, i32::from(all));
        assert!(fd >= 0, "AF_PACKET: {}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = libc::if_nametoindex(link.as_ptr()) as i32;
        let bound = libc::bind(
            fd,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
        set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20).unwrap();
        socket
    }
}

/// Frames that a packet socket had no room for, since it was last asked.
pub fn lost_frames(socket: &OwnedFd) -> u32 {
    let mut stats = [0u32; 2];
    let mut len = 8;
    // SAFETY: the kernel writes at most the 8 bytes that are given.
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    stats[1]
}

fn count(socket: &OwnedFd, seen: &Seen, stop: &AtomicBool) -> u32 {
    let mut buffer = vec![0u8; 65_536];
    loop {
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd; a live buffer of the given length; an address of its type.
        let (len, kind) = unsafe {
            if libc::poll(&raw mut poll, 1, 20) <= 0 {
                // What has been taken from the wire is counted before the end.
                match stop.load(Ordering::SeqCst) {
                    true => break,
                    false => continue,
                }
            }
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut from_len = size_of::<libc::sockaddr_ll>() as u32;
            let len = libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_len,
            );
            (len, from.sll_pkttype)
        };
        if len > 0 && kind == libc::PACKET_OUTGOING {
            classify(&buffer[..len as usize], seen);
        }
    }
    lost_frames(socket)
}

fn classify(packet: &[u8], seen: &Seen) {
    let (protocol, payload) = match packet.first().map(|b| b >> 4) {
        Some(4) => (packet[9], &packet[usize::from(packet[0] & 15) * 4..]),
        Some(6) => (packet[6], &packet[40..]),
        _ => return,
    };
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    let counter = match protocol {
        50 => &seen.esp,
        17 if port(2) == PORT => &seen.clear,
        17 if port(2) == 4500 && payload.len() > 12 && payload[8..12] != [0; 4] => &seen.esp_in_udp,
        // Neighbour discovery and multicast reports.
        58 | 0 => return,
        _ => &seen.other,
    };
    counter.fetch_add(1, Ordering::SeqCst);
}

/// A receiver of numbered packets on the overlay's port of a node.
pub struct Sink {
    got: Arc<AtomicU64>,
    twice: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<bool>>>,
}

/// A socket with a large buffer, bound in a node's namespace.
pub fn socket(node: &Node, address: SocketAddr) -> UdpSocket {
    node.run(|| {
        let socket = UdpSocket::bind(address).unwrap();
        let size: libc::c_int = 16 << 20;
        // SAFETY: the kernel reads one int of a live local variable.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        socket
    })
}

impl Sink {
    pub fn start(node: &Node, address: IpAddr) -> Self {
        let socket = socket(node, SocketAddr::new(address, PORT));
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let (got, twice) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (count, again, end) = (Arc::clone(&got), Arc::clone(&twice), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut buffer = [0; 2048];
            while !end.load(Ordering::SeqCst) {
                let Ok(len) = socket.recv(&mut buffer) else {
                    continue;
                };
                let number = u64::from_be_bytes(buffer[..8].try_into().unwrap()) as usize;
                assert!(len >= 8);
                if seen.len() <= number {
                    seen.resize(number + 1, false);
                }
                match std::mem::replace(&mut seen[number], true) {
                    false => count.fetch_add(1, Ordering::SeqCst),
                    true => again.fetch_add(1, Ordering::SeqCst),
                };
            }
            seen
        });
        Self {
            got,
            twice,
            stop,
            thread: Some(thread),
        }
    }

    /// Different packets so far.
    pub fn got(&self) -> u64 {
        self.got.load(Ordering::SeqCst)
    }

    /// Waits until as many have come, 3 seconds at most.
    pub fn wait(&self, wanted: u64) -> u64 {
        let end = Instant::now() + Duration::from_secs(3);
        while self.got() < wanted && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.got()
    }

    /// Ends it; which numbers have come.
    pub fn finish(mut self) -> Vec<bool> {
        self.stop.store(true, Ordering::SeqCst);
        let seen = self.thread.take().unwrap().join().unwrap();
        assert_eq!(self.twice.load(Ordering::SeqCst), 0, "packets came twice");
        seen
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A sender of numbered packets from a node to the overlay's port of an address.
pub struct Source {
    socket: UdpSocket,
    to: SocketAddr,
    next: u64,
    step: u64,
    sent: u64,
    /// What the kernel said when it refused.
    pub refused: Vec<std::io::Error>,
}

impl Source {
    pub fn new(node: &Node, from: IpAddr, to: IpAddr) -> Self {
        Self {
            socket: socket(node, SocketAddr::new(from, 0)),
            to: SocketAddr::new(to, PORT),
            next: 0,
            step: 1,
            sent: 0,
            refused: Vec::new(),
        }
    }

    /// The one of this number, counted from 0, of several that send to one sink.
    pub fn among(mut self, number: u64, of: u64) -> Self {
        (self.next, self.step) = (number, of);
        self
    }

    /// The same from one CPU alone.
    pub fn send_from(&mut self, cpu: u32, count: u64) {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                pin(cpu);
                self.send(count);
            });
            sender.join().unwrap();
        });
    }

    /// Sends some, one after the other.
    pub fn send(&mut self, count: u64) {
        for _ in 0..count {
            let mut packet = [0u8; 100];
            packet[..8].copy_from_slice(&self.next.to_be_bytes());
            if let Err(error) = self.socket.send_to(&packet, self.to) {
                self.refused.push(error);
            }
            self.next += self.step;
            self.sent += 1;
        }
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }
}

/// A source that sends at a steady rate, as far as the machine keeps up, in a thread of its own.
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Source>,
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: u32) {
    // SAFETY: an all-zero set is valid, and the kernel reads the one that lives here.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        let done = libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        assert_eq!(done, 0, "CPU {cpu}: {}", std::io::Error::last_os_error());
    }
}

impl Stream {
    pub fn start(source: Source, per_second: u32) -> Self {
        Self::start_on(None, source, per_second)
    }

    /// From one CPU alone.
    pub fn start_on(cpu: Option<u32>, mut source: Source, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            let mut last = Instant::now();
            let mut due = 0.0;
            while !end.load(Ordering::SeqCst) {
                let now = Instant::now();
                due += (now - last).as_secs_f64() * f64::from(per_second);
                last = now;
                // A machine that is too slow for the rate is given no arrears to work off.
                due = f64::min(due, 100.0);
                source.send(due as u64);
                due = due.fract();
                std::thread::sleep(Duration::from_micros(500));
            }
            source
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Source {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
