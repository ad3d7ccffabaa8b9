//! One queue inwards: datagrams from the sockets are opened and handed to the device.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use testudo_datapath::Event;
use testudo_model::{Encapsulation, SaMode, Spi};
use testudo_wire::ip::{
    IpHeader, OuterHeader, Ports, decapsulate_ecn, protocol, set_traffic_class,
};
use testudo_wire::udp::{Encapsulated, classify};

use crate::deliver::{Opened, Writer};
use crate::event::EventSink;
use crate::stats::{Count, Stats};
use crate::sys::{QueueSockets, RecvBatch, Stop, Tun, wait_readable};
use crate::tables::{Inbound, Shared, Tables, View};

/// Room for the largest datagram.
const BUFFER: usize = 65_536 + 64;
/// Batches from one socket before the others get their turn.
const ROUNDS: usize = 8;
/// A socket that fails must not make its thread spin.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Raw4,
    Raw6,
    Udp,
}

/// What the outer headers said.
#[derive(Clone, Copy)]
struct Outer {
    remote: SocketAddr,
    traffic_class: u8,
    udp: bool,
}

/// Limits the events about unknown SPIs to one a second; shared by all threads.
pub(crate) struct UnknownSpis {
    started: Instant,
    /// Seconds since the start, plus one, of the last event.
    told: AtomicU64,
}

impl UnknownSpis {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            told: AtomicU64::new(0),
        }
    }

    fn may_tell(&self) -> bool {
        let now = self.started.elapsed().as_secs() + 1;
        self.told.swap(now, Relaxed) != now
    }
}

/// One queue's inward half.
pub(crate) struct Opener {
    sockets: Arc<QueueSockets>,
    stop: Arc<Stop>,
    view: View,
    stats: Arc<Stats>,
    events: EventSink,
    unknown: Arc<UnknownSpis>,
    writer: Writer,
    port: u16,
}

impl Opener {
    #[allow(clippy::too_many_arguments)] // Each is one shared part, handed over once.
    pub(crate) fn new(
        tun: Arc<Tun>,
        sockets: Arc<QueueSockets>,
        stop: Arc<Stop>,
        shared: Arc<Shared>,
        stats: Arc<Stats>,
        events: EventSink,
        unknown: Arc<UnknownSpis>,
        port: u16,
        join: bool,
    ) -> Self {
        let writer = Writer::new(tun, Arc::clone(&stats), join);
        Self {
            sockets,
            stop,
            view: View::new(shared),
            stats,
            events,
            unknown,
            writer,
            port,
        }
    }

    /// Works until told to stop; an error is the end of the queue.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let sockets = Arc::clone(&self.sockets);
        let mut lanes = vec![
            (Kind::Raw4, sockets.raw4.as_fd()),
            (Kind::Udp, sockets.udp4.as_fd()),
        ];
        lanes.extend(sockets.raw6.as_ref().map(|s| (Kind::Raw6, s.as_fd())));
        lanes.extend(sockets.udp6.as_ref().map(|s| (Kind::Udp, s.as_fd())));
        let fds: Vec<_> = lanes.iter().map(|(_, fd)| *fd).collect();
        let mut batch = RecvBatch::new(BUFFER);
        let mut envelopes = Vec::with_capacity(crate::sys::RECV_BATCH);
        while let Some(ready) = wait_readable(&self.stop, &fds)? {
            for (bit, (kind, fd)) in lanes.iter().enumerate() {
                if ready & (1 << bit) == 0 {
                    continue;
                }
                for _ in 0..ROUNDS {
                    match batch.receive(*fd, &mut envelopes) {
                        Ok(()) => self.handle(*kind, &mut batch, &envelopes),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => {
                            tracing::debug!("receive: {e}");
                            std::thread::sleep(PAUSE);
                            break;
                        }
                    }
                    if envelopes.len() < crate::sys::RECV_BATCH {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, kind: Kind, batch: &mut RecvBatch, envelopes: &[crate::sys::Envelope]) {
        // After the packets came: an SA installed before they were sent is in it.
        self.view.refresh();
        let bytes = batch.bytes();
        for envelope in envelopes {
            if envelope.truncated {
                self.stats.count(Count::TooBig);
                continue;
            }
            let whole = envelope.start..envelope.start + envelope.len;
            let mut outer = Outer {
                remote: envelope.remote,
                traffic_class: envelope.traffic_class,
                udp: kind == Kind::Udp,
            };
            match kind {
                Kind::Raw6 => self.open(bytes, whole, outer),
                Kind::Raw4 => match IpHeader::parse(&bytes[whole.clone()]) {
                    Ok(header) => {
                        outer.traffic_class = header.traffic_class;
                        let payload = header.payload();
                        let range = whole.start + payload.start..whole.start + payload.end;
                        self.open(bytes, range, outer);
                    }
                    Err(_) => self.stats.count(Count::Malformed),
                },
                Kind::Udp => {
                    let mut start = whole.start;
                    while start < whole.end {
                        let end = whole.end.min(start + envelope.segment.max(1));
                        self.datagram(bytes, start..end, outer, envelope.local);
                        start = end;
                    }
                }
            }
        }
        self.writer.deliver(bytes);
    }

    fn datagram(
        &mut self,
        bytes: &mut [u8],
        range: Range<usize>,
        outer: Outer,
        local: Option<IpAddr>,
    ) {
        match classify(&bytes[range.clone()]) {
            Encapsulated::Esp(_) => self.open(bytes, range, outer),
            Encapsulated::Ike(message) => {
                let any: IpAddr = match outer.remote {
                    SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                self.events.push(Event::Ike {
                    local: (local.unwrap_or(any), self.port).into(),
                    remote: outer.remote,
                    message: message.to_vec(),
                });
            }
            Encapsulated::Keepalive => self.stats.count(Count::Keepalive),
            Encapsulated::Short => self.stats.count(Count::TooShort),
        }
    }

    /// Opens an ESP packet and queues what was in it for the device.
    fn open(&mut self, bytes: &mut [u8], range: Range<usize>, outer: Outer) {
        let Some(spi) = testudo_esp::spi_of(&bytes[range.clone()]) else {
            return self.stats.count(Count::TooShort);
        };
        let tables = Arc::clone(&self.view.tables);
        let Some(entry) = tables.inbound(spi) else {
            return self.unknown_spi(spi, outer);
        };
        let start = range.start;
        // The SA counts what it refuses.
        let Ok(opened) = entry.sa.open(&mut bytes[range]) else {
            return;
        };
        let payload = start + opened.payload.start..start + opened.payload.end;
        if opened.first {
            self.events.push(Event::FirstInbound { child: entry.child });
        }
        // A packet that was overtaken speaks of the past (RFC 7296 2.23).
        let newest = opened.sequence >= entry.sa.newest();
        if outer.udp && newest && entry.note_end(outer.remote) {
            self.events.push(Event::PeerMoved {
                child: entry.child,
                remote: outer.remote,
            });
        }
        let checked = match entry.mode {
            SaMode::Tunnel => tunnel(entry, bytes, payload, opened.next_header, outer),
            SaMode::Transport => {
                transport(&tables, entry, bytes, payload, opened.next_header, outer)
            }
        };
        match checked {
            Ok(packet) => self.writer.queue(packet),
            Err(reason) => self.stats.count(reason),
        }
    }

    #[cold]
    fn unknown_spi(&self, spi: u32, outer: Outer) {
        self.stats.count(Count::UnknownSpi);
        if self.unknown.may_tell() {
            self.events.push(Event::UnknownSpi {
                spi: Spi(spi),
                remote: outer.remote.ip(),
            });
        }
    }
}

/// What was opened in tunnel mode: a packet between ends that the SA speaks for.
fn tunnel(
    entry: &Inbound,
    bytes: &mut [u8],
    payload: Range<usize>,
    next_header: u8,
    outer: Outer,
) -> Result<Opened, Count> {
    let packet = &mut bytes[payload.clone()];
    let mut header = IpHeader::parse(packet).map_err(|_| Count::Malformed)?;
    let family = if header.is_v4() {
        protocol::IPV4
    } else {
        protocol::IPV6
    };
    let ports = header.ports(packet);
    let allowed = next_header == family
        && entry.allows(header.source, header.destination, header.protocol, ports);
    if !allowed {
        return Err(Count::WrongInner);
    }
    let class =
        decapsulate_ecn(header.traffic_class, outer.traffic_class).ok_or(Count::Congested)?;
    if class != header.traffic_class {
        set_traffic_class(packet, &mut header, class);
    }
    Ok(Opened::whole(payload.start, &header))
}

/// What was opened in transport mode: the payload of a packet between the SA's own ends, to the
/// overlay's port.
fn transport(
    tables: &Tables,
    entry: &Inbound,
    bytes: &mut [u8],
    payload: Range<usize>,
    next_header: u8,
    outer: Outer,
) -> Result<Opened, Count> {
    let (local, remote) = entry.inner_ends();
    let straight = matches!(entry.encapsulation, Encapsulation::None { .. });
    let data = &mut bytes[payload.clone()];
    let ports = match (next_header, data.first_chunk::<4>()) {
        (protocol::UDP | protocol::TCP, Some([a, b, c, d])) => Some(Ports {
            source: u16::from_be_bytes([*a, *b]),
            destination: u16::from_be_bytes([*c, *d]),
        }),
        _ => None,
    };
    let overlay = tables.overlay_port.is_none_or(|port| {
        next_header == protocol::UDP
            && data.len() >= 8
            && ports.is_some_and(|ports| ports.destination == port)
    });
    let from_peer = !straight || outer.remote.ip() == remote;
    if !overlay || !from_peer || !entry.allows(remote, local, next_header, ports) {
        return Err(Count::WrongInner);
    }
    if outer.udp && next_header == protocol::UDP && remote.is_ipv4() && data.len() >= 8 {
        // A NAT may have changed the addresses that the checksum covers; the ICV has vouched for
        // the bytes (RFC 3948 3.1.2).
        data[6..8].fill(0);
    }
    let header = OuterHeader {
        traffic_class: outer.traffic_class,
        ..OuterHeader::new(remote, local, next_header)
    };
    Opened::rebuilt(payload, &header).ok_or(Count::TooBig)
}
