//! Listens on the underlay's links with packet sockets of its own, and writes pcap files.

mod record;
mod ring;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use testudo_netlink::Netlink;

pub use self::record::Recorder;
use self::ring::{Frame, Ring};
use crate::lab::Lab;
use crate::packet::{Carries, Classifier};

/// Strings looked for at once, at most.
const NEEDLES: usize = 64;
/// Blocks read from one ring before the next has its turn.
const TURN: usize = 8;
/// How long frames gather before they are looked for: to be woken for each costs more than to read it.
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
        let rings = lab.inside("underlay", || open_rings(lab, links))?;
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
                .spawn(move || listen(&shared, rings, &classifier, writer))
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

/// What must be read before those who ask are answered.
struct Goal {
    /// The last of them.
    asked: u64,
    /// Frames of each ring.
    read: Vec<u64>,
}

impl Goal {
    fn is_reached(&self, rings: &[Ring]) -> bool {
        let mut all = rings.iter().zip(&self.read);
        all.all(|(ring, wanted)| ring.read() >= *wanted)
    }
}

fn listen(
    shared: &Shared,
    mut rings: Vec<Ring>,
    classifier: &Classifier,
    mut writer: Option<PcapWriter<File>>,
) -> Result<()> {
    let mut goal: Option<Goal> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        if goal.is_none() {
            // Whoever has asked by now has its frames in the rings already.
            let asked = shared.asked.load(Ordering::SeqCst);
            let waits = shared.settled.load(Ordering::SeqCst) < asked;
            goal = waits.then(|| Goal {
                asked,
                read: rings.iter_mut().map(Ring::put).collect(),
            });
        }
        let mut full = false;
        for ring in &mut rings {
            let mut taken = 0;
            while taken < TURN
                && ring.block(|frame| take(shared, classifier, &mut writer, &frame))?
            {
                taken += 1;
            }
            full |= taken == TURN;
        }
        if let Some(reached) = goal.take_if(|goal| goal.is_reached(&rings)) {
            shared.settled.fetch_max(reached.asked, Ordering::SeqCst);
        }
        if !full {
            std::thread::sleep(GATHER);
        }
    }
    for ring in &mut rings {
        ring.put();
    }
    shared.lock().seen.missed = rings.iter().map(Ring::missed).sum();
    writer.map_or(Ok(()), PcapWriter::finish)
}

fn take(
    shared: &Shared,
    classifier: &Classifier,
    writer: &mut Option<PcapWriter<File>>,
    frame: &Frame<'_>,
) -> Result<()> {
    shared.lock().count(classifier, frame.bytes);
    match writer {
        Some(writer) => writer.frame(frame, usize::MAX),
        None => Ok(()),
    }
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

fn open_rings(lab: &Lab, links: Links<'_>) -> Result<Vec<Ring>> {
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
            Ring::open(index, links == Links::All).with_context(|| format!("listen on {name}"))
        })
        .collect()
}

/// Writes the classic pcap format, microseconds.
#[derive(Debug)]
struct PcapWriter<W: Write> {
    out: BufWriter<W>,
}

impl PcapWriter<File> {
    /// A file of Ethernet frames.
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        Self::new(file, 1)
    }
}

impl<W: Write> PcapWriter<W> {
    fn new(out: W, link_type: u32) -> Result<Self> {
        let mut writer = Self {
            out: BufWriter::new(out),
        };
        writer.words([0xa1b2_c3d4, 0x0004_0002, 0, 0, 0x0004_0000, link_type])?;
        Ok(writer)
    }

    /// Of a frame the first `cut` bytes.
    fn frame(&mut self, frame: &Frame<'_>, cut: usize) -> Result<()> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let kept = &frame.bytes[..frame.bytes.len().min(cut)];
        let (seconds, nanoseconds) = frame.at;
        self.words([
            seconds,
            nanoseconds / 1000,
            length(kept),
            length(frame.bytes),
        ])?;
        self.out.write_all(kept).context("write the capture")
    }

    fn words<const N: usize>(&mut self, words: [u32; N]) -> Result<()> {
        for word in words {
            let bytes = word.to_ne_bytes();
            self.out.write_all(&bytes).context("write the capture")?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().context("write the capture")
    }

    fn finish(mut self) -> Result<()> {
        self.flush()
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
        for bytes in [&b"one"[..], b"", b"three"] {
            let frame = Frame {
                bytes,
                at: (1, 2000),
            };
            writer.frame(&frame, usize::MAX).unwrap();
        }
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 3 * 16 + 8);
        assert_eq!(bytes[32..40], 3_u32.to_ne_bytes().repeat(2));
        assert!(bytes.ends_with(b"three"));
    }
}
