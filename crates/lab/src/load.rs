//! Sequence-numbered UDP between pods of different nodes, so that a lost packet is seen and laid
//! to the change that lost it.
//!
//! One thread sends for all flows, one receives. [`Load::mark`] begins a named interval; the
//! report says for each interval how many of its packets were sent and how many never came.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::lab::Lab;
use crate::layout::PodLayout;

/// Port that receivers listen on.
const PORT: u16 = 7007;
/// First bytes of every packet.
const MAGIC: [u8; 8] = *b"tstd-ld1";
/// Magic, flow, sequence number.
const HEADER: usize = 20;
/// How often the sender wakes up.
const TICK: Duration = Duration::from_millis(1);
/// After so long without any arrival nothing is under way any more.
const STRAGGLERS: Duration = Duration::from_millis(700);
/// How long stragglers are waited for in all: on a machine that has much else to do, packets wait in
/// queues for seconds, and are not lost.
const LAST_CALL: Duration = Duration::from_secs(10);
/// Receive buffer of each pod, bytes: a second of everything, so that a busy machine loses none.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// What to send.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Packets a second on each flow.
    pub rate: u32,
    /// UDP payload, bytes.
    pub payload: usize,
    /// Flows as `(n1/p1, n2/p1)`; empty: the first pod of each node to that of each other node.
    pub flows: Vec<(String, String)>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            rate: 2000,
            payload: 200,
            flows: Vec::new(),
        }
    }
}

/// What became of the packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// By flow.
    pub flows: Vec<FlowReport>,
    /// By interval, in their order; the first is named `start`.
    pub intervals: Vec<IntervalReport>,
}

/// One flow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FlowReport {
    /// `n1/p1`.
    pub from: String,
    /// `n2/p1`.
    pub to: String,
    /// Packets handed to the kernel.
    pub sent: u64,
    /// Different packets that arrived.
    pub received: u64,
    /// Packets that never arrived.
    pub lost: u64,
    /// Packets that arrived again.
    pub duplicated: u64,
    /// Packets that arrived behind a later one.
    pub reordered: u64,
    /// The longest time between two arrivals, milliseconds.
    pub longest_gap_ms: u64,
}

/// One interval, all flows together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IntervalReport {
    /// The name given to [`Load::mark`].
    pub name: String,
    /// How long it was, milliseconds.
    pub milliseconds: u64,
    /// Packets sent in it.
    pub sent: u64,
    /// Those of them that never arrived.
    pub lost: u64,
    /// The longest silence of a flow that ended in it, milliseconds.
    pub longest_gap_ms: u64,
}

impl LoadReport {
    /// Packets that never arrived, of all flows.
    pub fn lost(&self) -> u64 {
        self.flows.iter().map(|flow| flow.lost).sum()
    }

    /// Packets sent, of all flows.
    pub fn sent(&self) -> u64 {
        self.flows.iter().map(|flow| flow.sent).sum()
    }
}

/// Traffic that runs until it is stopped.
pub struct Load {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
    names: Vec<(String, String)>,
}

struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    book: Mutex<Book>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has been counted.
struct Book {
    flows: Vec<Account>,
    intervals: Vec<Interval>,
    /// When the last packet was sent.
    ended: Option<Instant>,
}

#[derive(Default)]
struct Account {
    sent: u64,
    /// One bit a sequence number.
    seen: Vec<u64>,
    received: u64,
    duplicated: u64,
    reordered: u64,
    highest: Option<u64>,
    last_arrival: Option<Instant>,
    longest_gap: Duration,
}

struct Interval {
    name: String,
    begin: Instant,
    /// The first sequence number of each flow.
    first: Vec<u64>,
    longest_gap: Duration,
}

impl Load {
    /// Opens the sockets in the pods and begins to send.
    pub fn start(lab: &Lab, options: &LoadOptions) -> Result<Self> {
        ensure!(options.rate > 0, "a load of 0 packets a second is no load");
        ensure!(
            (HEADER..=1300).contains(&options.payload),
            "a payload has {HEADER} to 1300 bytes"
        );
        let names = if options.flows.is_empty() {
            every_pair(lab)
        } else {
            options.flows.clone()
        };
        ensure!(!names.is_empty(), "a load needs pods on two nodes");
        let mut receivers = BTreeMap::new();
        let mut senders = Vec::new();
        for (from, to) in &names {
            let (source, target) = addresses(lab, from, to)?;
            if !receivers.contains_key(to) {
                receivers.insert(to.clone(), receiver(lab, to, target)?);
            }
            senders.push(sender(lab, from, source, target)?);
        }
        let begin = Instant::now();
        let shared = Arc::new(Shared {
            stop_sending: AtomicBool::new(false),
            stop_receiving: AtomicBool::new(false),
            book: Mutex::new(Book {
                flows: names.iter().map(|_| Account::default()).collect(),
                intervals: vec![Interval {
                    name: "start".to_owned(),
                    begin,
                    first: vec![0; names.len()],
                    longest_gap: Duration::ZERO,
                }],
                ended: None,
            }),
        });
        let receivers: Vec<_> = receivers.into_values().collect();
        let receiver = {
            let shared = Arc::clone(&shared);
            spawn("load-receive", move || receive(&shared, &receivers))?
        };
        let sender = {
            let shared = Arc::clone(&shared);
            let (rate, payload) = (options.rate, options.payload);
            spawn("load-send", move || send(&shared, &senders, rate, payload))?
        };
        Ok(Self {
            shared,
            sender: Some(sender),
            receiver: Some(receiver),
            names,
        })
    }

    /// Begins an interval; the one before it ends here.
    pub fn mark(&self, name: &str) {
        let mut book = self.shared.book();
        let first = book.flows.iter().map(|flow| flow.sent).collect();
        book.intervals.push(Interval {
            name: name.to_owned(),
            begin: Instant::now(),
            first,
            longest_gap: Duration::ZERO,
        });
    }

    /// How long each flow has been silent by now, the longest of them.
    pub fn silence(&self) -> Duration {
        let book = self.shared.book();
        let begin = book.intervals[0].begin;
        let silent = |flow: &Account| flow.last_arrival.unwrap_or(begin).elapsed();
        book.flows.iter().map(silent).max().unwrap_or_default()
    }

    /// Ends the sending, waits for what is under way, and says what became of everything.
    pub fn stop(mut self) -> LoadReport {
        self.end();
        report(&self.shared.book(), &self.names)
    }

    fn end(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.sender.take() {
            let _ = thread.join();
            let ended = Instant::now();
            self.shared.book().ended = Some(ended);
            while !self.shared.book().is_complete(ended, Instant::now()) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        if let Some(thread) = self.receiver.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .with_context(|| format!("start the thread {name}"))
}

fn every_pair(lab: &Lab) -> Vec<(String, String)> {
    let mut first: Vec<String> = Vec::new();
    for node in &lab.layout().nodes {
        first.extend(
            node.pods
                .first()
                .map(|pod| format!("{}/{}", node.name, pod.name)),
        );
    }
    let mut pairs = Vec::new();
    for from in &first {
        pairs.extend(
            first
                .iter()
                .filter(|to| *to != from)
                .map(|to| (from.clone(), to.clone())),
        );
    }
    pairs
}

/// Addresses of one family for both ends; pods have the same families all over a lab.
fn addresses(lab: &Lab, from: &str, to: &str) -> Result<(IpAddr, IpAddr)> {
    let address = |word: &str| -> Result<IpAddr> {
        let pod = find_pod(lab, word)?;
        let first = pod.addresses.first();
        first
            .copied()
            .with_context(|| format!("{word} has no address"))
    };
    Ok((address(from)?, address(to)?))
}

/// The pod that `n1/p1` names.
pub(crate) fn find_pod<'a>(lab: &'a Lab, word: &str) -> Result<&'a PodLayout> {
    word.split_once('/')
        .and_then(|(node, pod)| lab.layout().node(node)?.pod(pod))
        .with_context(|| format!("{word:?} is no pod of lab {}: write n1/p1", lab.name()))
}

fn receiver(lab: &Lab, target: &str, address: IpAddr) -> Result<UdpSocket> {
    lab.inside(target, || {
        let local = SocketAddr::new(address, PORT);
        let socket =
            UdpSocket::bind(local).with_context(|| format!("listen on {local} in {target}"))?;
        enlarge_buffer(&socket);
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

fn sender(lab: &Lab, from: &str, source: IpAddr, target: IpAddr) -> Result<UdpSocket> {
    lab.inside(from, || {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))
            .with_context(|| format!("a socket on {source} in {from}"))?;
        socket.connect(SocketAddr::new(target, PORT))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

/// Asks for a large receive buffer, past the system's limit where that is allowed.
#[expect(unsafe_code, reason = "SO_RCVBUFFORCE has no safe wrapper here")]
fn enlarge_buffer(socket: &UdpSocket) {
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: the descriptor is open, the value is a C int that lives through the call.
        let refused = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(&RECEIVE_BUFFER).cast(),
                size_of_val(&RECEIVE_BUFFER) as libc::socklen_t,
            )
        };
        if refused == 0 {
            return;
        }
    }
}

/// Sends what is due at each tick. Falling behind is caught up with over the next ticks, a little
/// at a time, so that a busy moment does not become a burst that overruns a queue.
fn send(shared: &Shared, senders: &[UdpSocket], rate: u32, payload: usize) {
    let begin = Instant::now();
    let most = u64::from(rate / 250).max(4);
    let mut packet = vec![0x54; payload];
    packet[..8].copy_from_slice(&MAGIC);
    let mut sent = vec![0_u64; senders.len()];
    let mut behind = 0_u64;
    while !shared.stop_sending.load(Ordering::Relaxed) {
        let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let target = (sent[0] + most).min(due.saturating_sub(behind));
        for (index, socket) in senders.iter().enumerate() {
            packet[8..12].copy_from_slice(&(index as u32).to_be_bytes());
            while sent[index] < target {
                packet[12..20].copy_from_slice(&sent[index].to_be_bytes());
                match socket.send(&packet) {
                    // The pod's own queue is full: nothing was sent, so nothing can be lost.
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    _ => sent[index] += 1,
                }
            }
        }
        {
            let mut book = shared.book();
            for (account, sent) in book.flows.iter_mut().zip(&sent) {
                account.sent = *sent;
            }
        }
        // Half a second late is too late to catch up with: that time is left out.
        let late = due.saturating_sub(behind + sent[0]);
        if late > u64::from(rate / 2) {
            behind += late;
        }
        std::thread::sleep(TICK);
    }
}

fn receive(shared: &Shared, sockets: &[UdpSocket]) {
    let mut buffer = [0_u8; 2048];
    let patience = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    while !shared.stop_receiving.load(Ordering::Relaxed) {
        let mut ready: Vec<_> = sockets
            .iter()
            .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        if poll(&mut ready, Some(&patience)).is_err() {
            continue;
        }
        for socket in sockets {
            let now = Instant::now();
            while let Ok(length) = socket.recv(&mut buffer) {
                if let Some((flow, sequence)) = parse(&buffer[..length]) {
                    shared.book().arrived(flow, sequence, now);
                }
            }
        }
    }
}

fn parse(packet: &[u8]) -> Option<(usize, u64)> {
    let rest = packet.strip_prefix(&MAGIC)?;
    let flow = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
    let sequence = u64::from_be_bytes(rest.get(4..12)?.try_into().ok()?);
    Some((flow as usize, sequence))
}

impl Book {
    /// Whether nothing is to be waited for: all has arrived, or nothing comes any more.
    fn is_complete(&self, ended: Instant, now: Instant) -> bool {
        if self.flows.iter().all(|flow| flow.received == flow.sent) {
            return true;
        }
        let last = self.flows.iter().filter_map(|flow| flow.last_arrival).max();
        let silent = now.saturating_duration_since(last.unwrap_or(ended).max(ended));
        silent >= STRAGGLERS || now.saturating_duration_since(ended) >= LAST_CALL
    }

    fn arrived(&mut self, flow: usize, sequence: u64, now: Instant) {
        let Some(account) = self.flows.get_mut(flow) else {
            return;
        };
        let (word, bit) = ((sequence / 64) as usize, 1_u64 << (sequence % 64));
        // An hour at a million packets a second is far beyond any use of this.
        if word > 1 << 26 {
            return;
        }
        if account.seen.len() <= word {
            account.seen.resize(word + 1, 0);
        }
        if account.seen[word] & bit != 0 {
            account.duplicated += 1;
            return;
        }
        account.seen[word] |= bit;
        account.received += 1;
        if account.highest.is_some_and(|highest| sequence < highest) {
            account.reordered += 1;
        } else {
            account.highest = Some(sequence);
        }
        if let Some(last) = account.last_arrival {
            let gap = now.saturating_duration_since(last);
            account.longest_gap = account.longest_gap.max(gap);
            if let Some(interval) = self.intervals.last_mut() {
                interval.longest_gap = interval.longest_gap.max(gap);
            }
        }
        account.last_arrival = Some(now);
    }
}

impl Account {
    /// Packets of a range of sequence numbers that never came.
    fn lost(&self, range: std::ops::Range<u64>) -> u64 {
        range
            .filter(|sequence| {
                let word = self.seen.get((sequence / 64) as usize).copied();
                word.unwrap_or(0) & (1 << (sequence % 64)) == 0
            })
            .count() as u64
    }
}

fn report(book: &Book, names: &[(String, String)]) -> LoadReport {
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let flows = book
        .flows
        .iter()
        .zip(names)
        .map(|(account, (from, to))| FlowReport {
            from: from.clone(),
            to: to.clone(),
            sent: account.sent,
            received: account.received,
            lost: account.lost(0..account.sent),
            duplicated: account.duplicated,
            reordered: account.reordered,
            longest_gap_ms: milliseconds(account.longest_gap),
        });
    let intervals = book.intervals.iter().enumerate().map(|(index, interval)| {
        let next = book.intervals.get(index + 1);
        let end = next.map(|next| next.begin).or(book.ended);
        let (mut sent, mut lost) = (0, 0);
        for (flow, account) in book.flows.iter().enumerate() {
            let last = next.map_or(account.sent, |next| next.first[flow]);
            sent += last - interval.first[flow];
            lost += account.lost(interval.first[flow]..last);
        }
        IntervalReport {
            name: interval.name.clone(),
            milliseconds: milliseconds(end.unwrap_or_else(Instant::now) - interval.begin),
            sent,
            lost,
            longest_gap_ms: milliseconds(interval.longest_gap),
        }
    });
    LoadReport {
        intervals: intervals.collect(),
        flows: flows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> Book {
        Book {
            flows: vec![Account::default()],
            intervals: vec![Interval {
                name: "start".to_owned(),
                begin: Instant::now(),
                first: vec![0],
                longest_gap: Duration::ZERO,
            }],
            ended: None,
        }
    }

    #[test]
    fn a_loss_is_laid_to_its_interval() {
        let mut book = book();
        let now = Instant::now();
        for sequence in [0, 1, 2, 3, 5, 4, 4, 7] {
            book.arrived(0, sequence, now);
        }
        book.flows[0].sent = 8;
        book.intervals.push(Interval {
            name: "change".to_owned(),
            begin: now,
            first: vec![6],
            longest_gap: Duration::ZERO,
        });
        let report = report(&book, &[("n1/p1".into(), "n2/p1".into())]);
        assert_eq!(report.lost(), 1);
        let lost: Vec<_> = report.intervals.iter().map(|i| (i.sent, i.lost)).collect();
        assert_eq!(lost, [(6, 0), (2, 1)]);
        assert_eq!(
            (report.flows[0].duplicated, report.flows[0].reordered),
            (1, 1)
        );
    }

    #[test]
    fn stragglers_are_waited_for_while_any_come() {
        let mut book = book();
        let ended = Instant::now();
        let after = |milliseconds| ended + Duration::from_millis(milliseconds);
        book.flows[0].sent = 3;
        assert!(!book.is_complete(ended, after(600)));
        assert!(book.is_complete(ended, after(700)), "nothing ever came");
        book.arrived(0, 1, after(500));
        assert!(!book.is_complete(ended, after(1100)));
        assert!(book.is_complete(ended, after(1200)), "silence");
        book.arrived(0, 2, after(9900));
        assert!(!book.is_complete(ended, after(9999)));
        assert!(book.is_complete(ended, after(10_000)), "the last call");
        book.arrived(0, 0, after(600));
        assert!(book.is_complete(ended, after(600)), "all are there");
    }

    #[test]
    fn foreign_packets_are_not_counted() {
        assert_eq!(parse(b"tstd-ld1"), None);
        assert_eq!(parse(b"something else entirely"), None);
        let mut book = book();
        book.arrived(7, 0, Instant::now());
        book.arrived(0, u64::MAX, Instant::now());
        assert_eq!(book.flows[0].received, 0);
    }
}
