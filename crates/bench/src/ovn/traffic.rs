//! Numbered datagrams between two pods, both ways, and when each was sent.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use testudo_lab::Lab;

/// The receivers' port.
const PORT: u16 = 7008;
/// Datagrams of each direction, a second.
pub(super) const RATE: u32 = 100;
/// Bytes of a datagram: its number and what fills it.
const SIZE: usize = 200;
/// How often a receiver looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Traffic that runs until it is dropped.
pub(super) struct Traffic {
    flows: Vec<Arc<Flow>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One direction. A datagram's number is its place.
#[derive(Default)]
struct Flow {
    datagrams: Mutex<Vec<Datagram>>,
}

#[derive(Clone, Copy)]
struct Datagram {
    sent: Instant,
    arrived: Option<Instant>,
}

/// What was sent in a span of time and never arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// How many.
    pub(super) packets: u64,
    /// When the last of them was sent.
    pub(super) last: Option<Instant>,
}

/// One direction in a span of time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OneWay {
    /// What was sent in it and never arrived.
    pub(super) lost: u64,
    /// When the first arrived of what was sent in it.
    pub(super) first: Option<Instant>,
}

impl Traffic {
    /// Begins, between the first pods of the nodes `n1` and `n2`.
    pub(super) fn start(lab: &Lab) -> anyhow::Result<Self> {
        let mut traffic = Self {
            flows: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for (from, to) in [("n1", "n2"), ("n2", "n1")] {
            let flow = Arc::new(Flow::default());
            let target = SocketAddr::new(address(lab, to)?, PORT);
            let receiver = lab.inside(&format!("{to}/p1"), || bound(target))?;
            receiver.set_read_timeout(Some(LOOK))?;
            let source = SocketAddr::new(address(lab, from)?, 0);
            let sender = lab.inside(&format!("{from}/p1"), || bound(source))?;
            sender.connect(target)?;
            sender.set_nonblocking(true)?;
            let (in_receiver, in_sender) = (Arc::clone(&flow), Arc::clone(&flow));
            let (stop, other) = (Arc::clone(&traffic.stop), Arc::clone(&traffic.stop));
            traffic.threads.push(std::thread::spawn(move || {
                receive(&in_receiver, &receiver, &stop);
            }));
            traffic.threads.push(std::thread::spawn(move || {
                send(&in_sender, &sender, &other);
            }));
            traffic.flows.push(flow);
        }
        Ok(traffic)
    }

    /// Of the datagrams sent between two moments, those that have not arrived by now.
    pub(super) fn lost(&self, from: Instant, to: Instant) -> Lost {
        let mut lost = Lost::default();
        for flow in &self.flows {
            let datagrams = flow.datagrams();
            let missing = within(&datagrams, from, to).filter(|d| d.arrived.is_none());
            for datagram in missing {
                lost.packets += 1;
                lost.last = lost.last.max(Some(datagram.sent));
            }
        }
        lost
    }

    /// The same of each direction: what `n1` sends, then what it is sent.
    pub(super) fn ways(&self, from: Instant, to: Instant) -> Vec<OneWay> {
        let flows = self.flows.iter().map(|flow| {
            let datagrams = flow.datagrams();
            let sent = || within(&datagrams, from, to);
            OneWay {
                lost: sent().filter(|d| d.arrived.is_none()).count() as u64,
                first: sent().filter_map(|d| d.arrived).min(),
            }
        });
        flows.collect()
    }
}

/// Those sent between two moments.
fn within(
    datagrams: &[Datagram],
    from: Instant,
    to: Instant,
) -> impl Iterator<Item = &Datagram> + use<'_> {
    let first = datagrams.partition_point(|datagram| datagram.sent < from);
    datagrams[first..].iter().take_while(move |d| d.sent <= to)
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Flow {
    /// What a thread that panicked has left is good: each datagram is written whole.
    fn datagrams(&self) -> MutexGuard<'_, Vec<Datagram>> {
        self.datagrams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(lab: &Lab, node: &str) -> anyhow::Result<std::net::IpAddr> {
    let node = lab.layout().node(node);
    let address = node.and_then(|node| node.pods.first()?.addresses.first().copied());
    address.context("a node without a pod")
}

fn bound(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    UdpSocket::bind(address).with_context(|| format!("a socket on {address}"))
}

/// At an even pace; what a stall has left out is not sent later.
fn send(flow: &Flow, socket: &UdpSocket, stop: &AtomicBool) {
    let interval = Duration::from_secs(1) / RATE;
    let mut payload = [0x54_u8; SIZE];
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = {
            // In the list first: it may arrive before the call is back.
            let mut datagrams = flow.datagrams();
            datagrams.push(Datagram {
                sent: Instant::now(),
                arrived: None,
            });
            (datagrams.len() - 1) as u64
        };
        payload[..8].copy_from_slice(&number.to_be_bytes());
        // What the pod's own node refuses is lost like any other.
        let _ = socket.send(&payload);
        next += interval;
        match next.checked_duration_since(Instant::now()) {
            Some(wait) => std::thread::sleep(wait),
            None => next = Instant::now(),
        }
    }
}

fn receive(flow: &Flow, socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2 * SIZE];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let Some((number, _)) = buffer[..length].split_first_chunk::<8>() else {
            continue;
        };
        let number = usize::try_from(u64::from_be_bytes(*number)).unwrap_or(usize::MAX);
        if let Some(datagram) = flow.datagrams().get_mut(number) {
            datagram.arrived = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_are_those_of_the_span_that_never_arrived() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let flow = Flow::default();
        flow.datagrams().extend((0..10).map(|n| Datagram {
            sent: at(n * 10),
            arrived: (n % 3 != 0).then(|| at(n * 10 + 4)),
        }));
        let traffic = Traffic {
            flows: vec![Arc::new(flow)],
            stop: Arc::default(),
            threads: Vec::new(),
        };
        // Of 0, 3, 6, 9 that are missing, 3 and 6 lie in the span.
        let lost = traffic.lost(at(5), at(65));
        assert_eq!((lost.packets, lost.last), (2, Some(at(60))));
        assert_eq!(traffic.lost(at(61), at(89)), Lost::default());
        let way = OneWay {
            lost: 2,
            first: Some(at(14)),
        };
        assert_eq!(traffic.ways(at(5), at(65)), [way]);
    }
}
