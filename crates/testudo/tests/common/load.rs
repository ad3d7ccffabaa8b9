//! Datagrams with sequence numbers between pods, and what became of each.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Lab, wait_until};

/// What each datagram carries besides its number; no ESP packet ever shows it.
pub(crate) const SECRET: &[u8; 24] = b"TESTUDO-CLEAR-TEXT-CHECK";

const PORT: u16 = 9700;
/// Number and time of sending.
const HEADER: usize = 12;
/// A receiver's buffer: a whole second of stalls must fit.
const BUFFER: usize = 8 << 20;
/// What is on its way when the senders stop has so long to arrive.
const LINGER: Duration = Duration::from_secs(4);

/// Where traffic begins and ends: network namespaces by names.
pub(crate) trait Places {
    /// A socket at a place, bound to an address.
    fn socket(&self, place: &str, address: SocketAddr) -> Result<UdpSocket, String>;
}

impl Places for Lab {
    fn socket(&self, place: &str, address: SocketAddr) -> Result<UdpSocket, String> {
        self.inner()
            .inside(place, || Ok(UdpSocket::bind(address)?))
            .map_err(|e| format!("{e:#}"))
    }
}

/// One direction between two places.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// A place: `n1/p1` in a lab.
    pub(crate) from: String,
    /// Another.
    pub(crate) to: String,
    /// The receiver's address.
    pub(crate) address: IpAddr,
}

/// The two moments of a datagram that arrived.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    sent: Duration,
    at: Duration,
}

/// What became of a flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// `n1/p1 > n2/p1`.
    pub(crate) flow: String,
    /// Datagrams sent.
    pub(crate) sent: u32,
    /// The numbers that never arrived, as first and last of each hole.
    pub(crate) holes: Vec<(u32, u32)>,
    /// Datagrams that arrived more than once.
    pub(crate) doubled: u32,
    /// When each was sent and when it arrived, since the start of the load.
    arrivals: BTreeMap<u32, Arrival>,
}

impl Outcome {
    /// How many never arrived.
    pub(crate) fn lost(&self) -> u32 {
        self.holes
            .iter()
            .map(|(first, last)| last - first + 1)
            .sum()
    }

    /// The neighbours of each hole, to see when it was and whether all was late around it: then
    /// a queue has overflowed.
    pub(crate) fn around_holes(&self) -> String {
        let line = |(first, last): &(u32, u32)| {
            let before = self.arrivals.range(..first).next_back();
            let after = self.arrivals.range(last..).next();
            format!("\n  {first}..={last}, between {before:?} and {after:?}")
        };
        self.holes.iter().map(line).collect()
    }

    /// How many arrived.
    pub(crate) fn received(&self) -> u32 {
        self.arrivals.len() as u32
    }

    /// The first arrival at or after a moment, counted from it.
    pub(crate) fn first_after(&self, moment: Duration) -> Option<Duration> {
        let times = self.arrivals.values().map(|arrival| arrival.at);
        Some(times.filter(|at| *at >= moment).min()? - moment)
    }

    /// The longest time without an arrival that overlaps the span `from..to`.
    pub(crate) fn longest_gap(&self, from: Duration, to: Duration) -> Duration {
        let mut times: Vec<Duration> = self.arrivals.values().map(|a| a.at).collect();
        times.push(from);
        times.push(to);
        times.sort();
        times
            .windows(2)
            .filter(|pair| pair[1] > from && pair[0] < to)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
    }
}

struct Shared {
    start: Instant,
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
}

struct Lane {
    flow: Flow,
    sent: Arc<AtomicU32>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<(BTreeMap<u32, Arrival>, u32)>,
}

/// A load that runs until it is stopped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
}

/// From each node's first pod to the next node's.
fn ring(lab: &Lab) -> Vec<Flow> {
    let nodes = &lab.inner().layout().nodes;
    nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let next = &nodes[(index + 1) % nodes.len()];
            Flow {
                from: format!("{}/{}", node.name, node.pods[0].name),
                to: format!("{}/{}", next.name, next.pods[0].name),
                address: next.pods[0].addresses[0],
            }
        })
        .collect()
}

impl Load {
    /// Sends in a ring from each node's first pod to the next node's, `rate` datagrams a second
    /// in all, and returns when each flow has been seen to arrive.
    #[track_caller]
    pub(crate) fn ring(lab: &Lab, rate: u32) -> Self {
        Self::start(lab, ring(lab), rate)
    }

    /// The same, without waiting for anything to arrive.
    #[track_caller]
    pub(crate) fn ring_unseen(lab: &Lab, rate: u32) -> Self {
        Self::start_unseen(lab, ring(lab), rate)
    }

    /// Starts these flows, with `rate` datagrams a second in all.
    #[track_caller]
    pub(crate) fn start(places: &impl Places, flows: Vec<Flow>, rate: u32) -> Self {
        let load = Self::start_unseen(places, flows, rate);
        wait_until(
            "traffic on every flow",
            Duration::from_secs(10),
            || match load.lanes.iter().find(|lane| lane.arrived() == 0) {
                None => Ok(()),
                Some(lane) => Err(format!("nothing yet on {}", lane.name())),
            },
        );
        load
    }

    /// Starts these flows without waiting for anything to arrive.
    #[track_caller]
    pub(crate) fn start_unseen(places: &impl Places, flows: Vec<Flow>, rate: u32) -> Self {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            stop_sending: AtomicBool::new(false),
            stop_receiving: AtomicBool::new(false),
        });
        let each = (rate / flows.len() as u32).max(1);
        let lanes = flows
            .into_iter()
            .enumerate()
            .map(|(index, flow)| {
                let port = PORT + index as u16;
                Lane::start(places, flow, port, each, &shared)
            })
            .collect();
        Self { shared, lanes }
    }

    /// Time since the start: what [`Outcome`]'s moments count in.
    pub(crate) fn now(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// Datagrams sent so far, on all flows.
    pub(crate) fn sent(&self) -> u32 {
        let sent = |lane: &Lane| lane.sent.load(Ordering::Relaxed);
        self.lanes.iter().map(sent).sum()
    }

    /// Lets it run on for a while.
    pub(crate) fn run_for(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Waits until every flow arrives again, from now on.
    #[track_caller]
    pub(crate) fn wait_all_arrive(&self, patience: Duration) {
        let before: Vec<u64> = self.lanes.iter().map(Lane::arrived).collect();
        wait_until("every flow to arrive", patience, || {
            // A few, so that what was on its way already does not count.
            let lanes = self.lanes.iter().zip(&before);
            match lanes.clone().find(|(lane, was)| lane.arrived() < *was + 20) {
                None => Ok(()),
                Some((lane, _)) => Err(format!("nothing on {}", lane.name())),
            }
        });
    }

    /// Stops it, waits for what is on its way, and tells what became of every datagram.
    pub(crate) fn stop(self) -> Vec<Outcome> {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        let lanes: Vec<_> = self
            .lanes
            .into_iter()
            .map(|lane| {
                lane.sender.join().expect("a sender does not panic");
                (lane.flow, lane.sent, lane.received, lane.receiver)
            })
            .collect();
        let deadline = Instant::now() + LINGER;
        while Instant::now() < deadline {
            let missing = lanes.iter().any(|(_, sent, received, _)| {
                received.load(Ordering::Relaxed) < u64::from(sent.load(Ordering::Relaxed))
            });
            if !missing {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.shared.stop_receiving.store(true, Ordering::Relaxed);
        lanes
            .into_iter()
            .map(|(flow, sent, _, receiver)| {
                let (arrivals, doubled) = receiver.join().expect("a receiver does not panic");
                let sent = sent.load(Ordering::Relaxed);
                Outcome {
                    flow: format!("{} > {}", flow.from, flow.to),
                    sent,
                    holes: holes(sent, &arrivals),
                    doubled,
                    arrivals,
                }
            })
            .collect()
    }

    /// Stops it and fails if a datagram was lost or doubled.
    #[track_caller]
    pub(crate) fn stop_without_loss(self) -> u32 {
        let outcomes = self.stop();
        for outcome in &outcomes {
            println!(
                "{}: {} sent, {} lost, {} doubled",
                outcome.flow,
                outcome.sent,
                outcome.lost(),
                outcome.doubled
            );
        }
        for outcome in &outcomes {
            assert!(
                outcome.holes.is_empty() && outcome.doubled == 0,
                "{}: of {} sent {} were lost and {} doubled{}",
                outcome.flow,
                outcome.sent,
                outcome.lost(),
                outcome.doubled,
                outcome.around_holes()
            );
        }
        outcomes.iter().map(|outcome| outcome.sent).sum()
    }
}

impl Lane {
    fn start(places: &impl Places, flow: Flow, port: u16, rate: u32, shared: &Arc<Shared>) -> Self {
        let any: IpAddr = match flow.address {
            IpAddr::V4(_) => [0_u8; 4].into(),
            IpAddr::V6(_) => [0_u16; 8].into(),
        };
        let to = SocketAddr::new(flow.address, port);
        let inside = |place: &str, port: u16| {
            let socket = places.socket(place, SocketAddr::new(any, port));
            prepared(socket.unwrap_or_else(|e| panic!("a socket in {place}: {e}")))
        };
        let receiving = inside(&flow.to, port);
        let sending = inside(&flow.from, 0);
        let sent = Arc::new(AtomicU32::new(0));
        let received = Arc::new(AtomicU64::new(0));
        let sender = {
            let (shared, sent) = (Arc::clone(shared), Arc::clone(&sent));
            std::thread::spawn(move || {
                go_first();
                send(&sending, to, rate, &shared, &sent);
            })
        };
        let receiver = {
            let (shared, received) = (Arc::clone(shared), Arc::clone(&received));
            std::thread::spawn(move || {
                go_first();
                receive(&receiving, &shared, &received)
            })
        };
        Self {
            flow,
            sent,
            received,
            sender,
            receiver,
        }
    }

    fn arrived(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn name(&self) -> String {
        format!("{} > {}", self.flow.from, self.flow.to)
    }
}

fn prepared(socket: UdpSocket) -> UdpSocket {
    // Beyond what rmem_max allows: only root may, and only root runs labs here.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
        .expect("root sets any size");
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a time above zero");
    socket
}

/// What watches must not wait for what is watched: on a busy machine a receiver that has to wait
/// loses what its socket cannot hold.
fn go_first() {
    // Who may not have it does without.
    let _ = rustix::process::nice(-10);
}

/// Sends at an even pace; after a stall it does not try to catch up all at once.
fn send(socket: &UdpSocket, to: SocketAddr, rate: u32, shared: &Shared, sent: &AtomicU32) {
    let interval = Duration::from_secs(1) / rate;
    let mut payload = [0_u8; HEADER + SECRET.len()];
    payload[HEADER..].copy_from_slice(SECRET);
    let mut next = Instant::now();
    while !shared.stop_sending.load(Ordering::Relaxed) {
        let number = sent.load(Ordering::Relaxed);
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let micros = shared.start.elapsed().as_micros() as u64;
        payload[4..HEADER].copy_from_slice(&micros.to_be_bytes());
        // A pod whose packet the node refuses may be told so; the packet counts as sent.
        let _ = socket.send_to(&payload, to);
        sent.store(number + 1, Ordering::Relaxed);
        next += interval;
        let now = Instant::now();
        match next.checked_duration_since(now) {
            // Short sleeps are inexact; a pair of datagrams at once is no burst.
            Some(wait) if wait > Duration::from_micros(200) => std::thread::sleep(wait),
            Some(_) => {}
            None if now.duration_since(next) > Duration::from_millis(20) => next = now,
            None => {}
        }
    }
}

fn receive(
    socket: &UdpSocket,
    shared: &Shared,
    received: &AtomicU64,
) -> (BTreeMap<u32, Arrival>, u32) {
    let mut arrivals = BTreeMap::new();
    let mut doubled = 0;
    let mut buffer = [0_u8; 2048];
    while !shared.stop_receiving.load(Ordering::Relaxed) {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some((header, secret)) = buffer[..length].split_first_chunk::<HEADER>() else {
            continue;
        };
        assert_eq!(secret, SECRET, "a datagram arrived damaged");
        let [n0, n1, n2, n3, micros @ ..] = *header;
        let arrival = Arrival {
            sent: Duration::from_micros(u64::from_be_bytes(micros)),
            at: shared.start.elapsed(),
        };
        let number = u32::from_be_bytes([n0, n1, n2, n3]);
        if arrivals.insert(number, arrival).is_some() {
            doubled += 1;
        } else {
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
    (arrivals, doubled)
}

fn holes(sent: u32, arrivals: &BTreeMap<u32, Arrival>) -> Vec<(u32, u32)> {
    let mut holes = Vec::new();
    let mut next = 0;
    for number in arrivals.keys() {
        if *number > next {
            holes.push((next, number - 1));
        }
        next = number + 1;
    }
    if sent > next {
        holes.push((next, sent - 1));
    }
    holes
}
