//! Listens on the underlay's links with packet sockets of its own, and writes pcap files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;
use testudo_netlink::{Netlink, set_socket_option};

use crate::lab::Lab;
use crate::packet::{Carries, Classifier};

/// Receive buffer of a socket, bytes: seconds of what two cores can send.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;
/// The largest frame that is taken whole.
const LARGEST: usize = 65_600;
/// Strings looked for at once, at most.
const NEEDLES: usize = 64;
/// Frames read from one socket before the next has its turn.
const TURN: usize = 512;
/// How long frames gather before they are read: to be woken for each costs more than to read it.
const GATHER: Duration = Duration::from_millis(2);

/// Which frames a tap takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links<'a> {
    /// Each frame once, on the link of the node that sent it.
    All,
    /// One node's link, both directions.
    Node(&'a str),
}

/// What a tap has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// All frames.
    pub frames: u64,
    /// ESP, alone or in UDP.
    pub esp_packets: u64,
    /// Those of them that were in UDP.
    pub esp_in_udp_packets: u64,
    /// IKE messages and keepalives.
    pub ike_packets: u64,
    /// Packets of protected flows in clear.
    pub clear_protected_packets: u64,
    /// Other IP packets.
    pub other_packets: u64,
    /// Frames that the kernel could not hand over: the numbers above are too low by these.
    pub missed: u64,
    /// ESP packets by source and destination.
    #[serde(skip)]
    pub esp_between: BTreeMap<(IpAddr, IpAddr), u64>,
}

/// A capture that runs until it is stopped.
#[derive(Debug)]
pub struct Tap {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    settled: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    seen: Seen,
    needles: Vec<(Vec<u8>, u64)>,
}

impl Tap {
    /// Begins to listen. With `file` every frame is also written there as pcap.
    pub fn start(lab: &Lab, links: Links<'_>, file: Option<&Path>) -> Result<Self> {
        let writer = file.map(PcapWriter::create).transpose()?;
        let sockets = lab.inside("underlay", || open_sockets(lab, links))?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            inner: Mutex::default(),
        });
        let classifier = Classifier::new(lab.layout());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("tap".into())
                .spawn(move || listen(&shared, &sockets, &classifier, writer))
                .context("start the capture")?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Waits until every frame that was on a link before this call has been counted.
    pub fn settle(&self) {
        let wanted = self.shared.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.shared.settled.load(Ordering::SeqCst) < wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.shared.lock().seen.clone()
    }

    /// Looks for a string in every frame from now on.
    pub fn look_for(&self, needle: &[u8]) {
        let mut inner = self.shared.lock();
        if inner.needles.len() >= NEEDLES {
            inner.needles.remove(0);
        }
        inner.needles.push((needle.to_vec(), 0));
    }

    /// How many frames held the string, and stops looking for it.
    pub fn found(&self, needle: &[u8]) -> u64 {
        let mut inner = self.shared.lock();
        let at = inner.needles.iter().position(|(each, _)| each == needle);
        at.map_or(0, |at| inner.needles.swap_remove(at).1)
    }

    /// Ends the capture; the file is complete when this returns.
    pub fn stop(mut self) -> Result<Seen> {
        self.settle();
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(self.seen())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A panic while it was held leaves counters that are still good.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(
    shared: &Shared,
    sockets: &[OwnedFd],
    classifier: &Classifier,
    mut writer: Option<PcapWriter>,
) -> Result<()> {
    let mut buffer = vec![0; LARGEST];
    while !shared.stop.load(Ordering::SeqCst) {
        // Whoever asks before this pass begins has its frames in the sockets already.
        let asked = shared.asked.load(Ordering::SeqCst);
        let mut full = false;
        for socket in sockets {
            let mut taken = 0;
            while taken < TURN {
                let Some(length) = receive(socket, &mut buffer)? else {
                    break;
                };
                taken += 1;
                shared.lock().count(classifier, &buffer[..length]);
                if let Some(writer) = &mut writer {
                    writer.frame(&buffer[..length])?;
                }
            }
            full |= taken == TURN;
        }
        if full {
            continue;
        }
        shared.settled.fetch_max(asked, Ordering::SeqCst);
        if shared.asked.load(Ordering::SeqCst) == asked {
            std::thread::sleep(GATHER);
        }
    }
    shared.lock().seen.missed = sockets.iter().map(missed).sum();
    writer.map_or(Ok(()), PcapWriter::finish)
}

impl Inner {
    fn count(&mut self, classifier: &Classifier, frame: &[u8]) {
        let what = classifier.frame(frame);
        let seen = &mut self.seen;
        seen.frames += 1;
        match what.carries {
            Carries::Esp | Carries::EspInUdp => {
                seen.esp_packets += 1;
                seen.esp_in_udp_packets += u64::from(what.carries == Carries::EspInUdp);
                if let (Some(source), Some(destination)) = (what.source, what.destination) {
                    *seen.esp_between.entry((source, destination)).or_default() += 1;
                }
            }
            Carries::Ike => seen.ike_packets += 1,
            Carries::ClearProtected => seen.clear_protected_packets += 1,
            Carries::Other => seen.other_packets += 1,
            Carries::Link => {}
        }
        for (needle, count) in &mut self.needles {
            *count += u64::from(contains(frame, needle));
        }
    }
}

/// Whether `needle` stands in `bytes`.
fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else {
        return true;
    };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

fn open_sockets(lab: &Lab, links: Links<'_>) -> Result<Vec<OwnedFd>> {
    let mut netlink = Netlink::open()?;
    let names: Vec<&str> = match links {
        Links::All => lab
            .layout()
            .nodes
            .iter()
            .map(|node| node.name.as_str())
            .collect(),
        Links::Node(name) => {
            let node = lab
                .layout()
                .node(name)
                .with_context(|| format!("node {name:?} is not in lab {}", lab.name()))?;
            vec![node.name.as_str()]
        }
    };
    names
        .into_iter()
        .map(|name| {
            let index = netlink.link_index(name)?;
            // A port of the bridge receives what its node sends: taken so, each frame is seen
            // once, and by its sender.
            open_socket(index, links == Links::All).with_context(|| format!("listen on {name}"))
        })
        .collect()
}

fn open_socket(link: u32, incoming_only: bool) -> io::Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0 first: nothing is received before the socket is bound to its link.
    // SAFETY: socket takes integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if set_socket_option(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        RECEIVE_BUFFER,
    )
    .is_err()
    {
        set_socket_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
    }
    if incoming_only {
        set_socket_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    }
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = link.cast_signed();
    // SAFETY: the address lives through the call and its size is said.
    let code = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if code == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// One frame; none if there is no more now, or the link is gone.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    // SAFETY: the buffer is as long as said.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    if let Ok(length) = usize::try_from(got) {
        return Ok(Some(length));
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        error if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
        error => Err(error).context("read from the link"),
    }
}

/// Frames that did not fit into the socket's buffer.
fn missed(socket: &OwnedFd) -> u64 {
    // struct tpacket_stats: packets, drops.
    let mut stats = [0_u32; 2];
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into a live array of that size.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if code == 0 { stats[1].into() } else { 0 }
}

/// Writes the classic pcap format, microseconds, Ethernet.
#[derive(Debug)]
struct PcapWriter {
    file: BufWriter<File>,
}

impl PcapWriter {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 0x0004_0000, 1] {
            file.write_all(&word.to_ne_bytes())
                .context("write the capture")?;
        }
        Ok(Self { file })
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        for word in [seconds, now.subsec_micros(), length, length] {
            self.file
                .write_all(&word.to_ne_bytes())
                .context("write the capture")?;
        }
        self.file.write_all(bytes).context("write the capture")
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().context("write the capture")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_found_wherever_they_stand() {
        assert!(contains(b"xxabab", b"abab"));
        assert!(contains(b"aab", b"ab"));
        assert!(!contains(b"aba", b"abab"));
        assert!(contains(b"", b""));
    }

    #[test]
    fn a_file_has_a_header_and_a_header_a_frame() {
        let path = std::env::temp_dir().join(format!("testudo-tap-{}.pcap", std::process::id()));
        let mut writer = PcapWriter::create(&path).unwrap();
        for frame in [&b"one"[..], b"", b"three"] {
            writer.frame(frame).unwrap();
        }
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 3 * 16 + 8);
        assert_eq!(bytes[32..40], 3_u32.to_ne_bytes().repeat(2));
        assert!(bytes.ends_with(b"three"));
    }
}
