//! One queue outwards: packets from the device are sealed and sent, many at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use testudo_datapath::Event;
use testudo_esp::{MAX_HEAD_ROOM, MAX_TAIL_ROOM};
use testudo_model::{Encapsulation, SaMode};
use testudo_wire::ip::{IpHeader, clamp_mss, complete_partial, protocol};

use crate::event::EventSink;
use crate::segment::{Segments, VNET_LEN, Vnet};
use crate::stats::{Count, Stats};
use crate::sys::{Outgoing, QueueSockets, SendBatch, Stop, Tun, wait_readable};
use crate::tables::{Outbound, Shared, Tables, View};

/// Packets are read, sealed and sent from here without being copied; segments of large packets
/// are written behind them.
const ARENA: usize = 1 << 20;
/// Before each packet: room for the ESP header, of which the virtio header takes a part.
const GAP: usize = 32;
const LARGEST_PACKET: usize = 65_535;
/// Sealed packets that are held until they are sent together.
const PENDING: usize = 256;
/// Segments of one UDP GSO send (UDP_MAX_SEGMENTS was 64 before Linux 6.10).
const GSO_SEGMENTS: usize = 64;
/// Bytes of one UDP GSO send.
const GSO_BYTES: usize = 65_000;
/// A kernel that refuses segments this small does not do GSO.
const GSO_SURELY_FITS: u32 = 600;

/// Up to here a packet is read into the arena: there is room for the largest, and behind it for
/// the largest segment of it.
const LAST_READ: usize = ARENA - (GAP + VNET_LEN + LARGEST_PACKET + 15) - SEGMENT_ROOM;
const SEGMENT_ROOM: usize = GAP + LARGEST_PACKET + MAX_TAIL_ROOM;
const _: () = {
    let end = LAST_READ + GAP + VNET_LEN + LARGEST_PACKET;
    assert!(end.next_multiple_of(16) + SEGMENT_ROOM <= ARENA);
    assert!(GAP >= MAX_HEAD_ROOM);
};

/// A sealed packet in the arena.
#[derive(Clone, Copy)]
struct Pending {
    start: usize,
    len: usize,
    sa: u32,
    traffic_class: u8,
}

/// Datagrams for one socket.
#[derive(Default)]
struct Lane {
    items: Vec<Outgoing>,
    /// For each item: which SA, and how many bytes.
    notes: Vec<(u32, usize)>,
}

const RAW4: usize = 0;
const RAW6: usize = 1;
const UDP4: usize = 2;
const UDP6: usize = 3;

/// One queue's outward half.
pub(crate) struct Sealer {
    tun: Arc<Tun>,
    sockets: Arc<QueueSockets>,
    stop: Arc<Stop>,
    view: View,
    stats: Arc<Stats>,
    events: EventSink,
    gso: Arc<AtomicBool>,
    arena: Vec<u8>,
    at: usize,
    pending: Vec<Pending>,
    pieces: Vec<(usize, usize)>,
    lanes: [Lane; 4],
    batch: SendBatch,
}

impl Sealer {
    pub(crate) fn new(
        tun: Arc<Tun>,
        sockets: Arc<QueueSockets>,
        stop: Arc<Stop>,
        shared: Arc<Shared>,
        stats: Arc<Stats>,
        events: EventSink,
        gso: Arc<AtomicBool>,
    ) -> Self {
        Self {
            tun,
            sockets,
            stop,
            view: View::new(shared),
            stats,
            events,
            gso,
            arena: vec![0; ARENA],
            at: 0,
            pending: Vec::with_capacity(PENDING),
            pieces: Vec::with_capacity(PENDING),
            lanes: Default::default(),
            batch: SendBatch::new(),
        }
    }

    /// Works until told to stop; an error is the end of the queue.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        loop {
            if self.pending.is_empty() {
                self.at = 0;
            }
            let start = self.at + GAP;
            let end = start + VNET_LEN + LARGEST_PACKET;
            match self.tun.read(&mut self.arena[start..end])? {
                Some(len) => {
                    // After the packet came: an SA in use before it was sent is in the tables.
                    // What is held was sealed with the old ones, and goes with them.
                    if self.view.is_stale() {
                        self.flush();
                        self.view.refresh();
                    }
                    self.take(start, len);
                }
                None => {
                    // Nothing waits: what was gathered goes now.
                    self.flush();
                    if wait_readable(&self.stop, &[self.tun.as_fd()])?.is_none() {
                        return Ok(());
                    }
                }
            }
            if self.pending.len() >= PENDING || self.at > LAST_READ {
                self.flush();
            }
        }
    }

    /// Handles what was read: virtio header and packet.
    fn take(&mut self, start: usize, len: usize) {
        let Some(vnet) = Vnet::parse(&self.arena[start..start + len]) else {
            return self.stats.count(Count::Malformed);
        };
        let (first, end) = (start + VNET_LEN, start + len);
        if vnet.is_joined() {
            return self.split(first, end, &vnet);
        }
        let packet = &mut self.arena[first..end];
        if let Some((from, offset)) = vnet.partial_checksum()
            && !complete_partial(packet, from, offset)
        {
            return self.stats.count(Count::Malformed);
        }
        let Ok(header) = IpHeader::parse(packet) else {
            return self.stats.count(Count::Malformed);
        };
        let Some(sa) = choose(&self.view.tables, &header, packet, &self.stats) else {
            return;
        };
        let len = header.total_len;
        self.lower_mss(sa, &header, first, len);
        self.seal(sa, &header, first, len);
    }

    /// New TCP connections through a tunnel get segments that fit the path.
    fn lower_mss(&mut self, sa: u32, header: &IpHeader, start: usize, len: usize) {
        const SYN: u8 = 0x02;
        let entry = &self.view.tables.outbound[sa as usize];
        let flags = start + header.header_len + 13;
        let opens = header.protocol == protocol::TCP
            && entry.clamp_mtu != 0
            && flags < start + len
            && self.arena[flags] & SYN != 0;
        if opens {
            clamp_mss(
                &mut self.arena[start..start + len],
                header,
                entry.clamp_mtu as usize,
            );
        }
    }

    /// Handles several segments that the kernel left in one packet.
    fn split(&mut self, first: usize, end: usize, vnet: &Vnet) {
        let packet = &self.arena[first..end];
        let Some(mut segments) = Segments::new(packet, vnet) else {
            return self.stats.count(Count::Malformed);
        };
        // All segments have the same ends and ports: one look-up does.
        let header = segments.header;
        let Some(sa) = choose(&self.view.tables, &header, packet, &self.stats) else {
            return;
        };
        let base = end.next_multiple_of(16);
        let room = GAP + segments.largest() + MAX_TAIL_ROOM;
        self.at = base;
        loop {
            if self.at + room > ARENA || self.pending.len() >= PENDING {
                // The large packet stays where it is; its segments start over behind it.
                self.flush();
                self.at = base;
            }
            let (source, out) = self.arena.split_at_mut(base);
            let place = self.at + GAP;
            let Some(len) = segments.write_next(&source[first..end], &mut out[place - base..])
            else {
                return;
            };
            self.seal(sa, &header, place, len);
        }
    }

    /// Seals the packet of `len` bytes at `start`, with room around it, and holds it for sending.
    fn seal(&mut self, sa: u32, header: &IpHeader, start: usize, len: usize) {
        let entry = &self.view.tables.outbound[sa as usize];
        let (from, next_header) = match entry.mode {
            SaMode::Transport => (start + header.header_len, header.protocol),
            SaMode::Tunnel if header.is_v4() => (start, protocol::IPV4),
            SaMode::Tunnel => (start, protocol::IPV6),
        };
        let payload = start + len - from;
        let place = from - entry.sa.head_room();
        let end = place + entry.sa.sealed_len(payload);
        let buffer = &mut self.arena[place..end];
        self.at = end.next_multiple_of(16);
        // The SA counts what it refuses.
        let Ok(sealed) = entry.sa.seal(buffer, payload, next_header) else {
            return;
        };
        if sealed.soft_limit.is_some() {
            self.events.push(Event::SoftLimit { child: entry.child });
        }
        self.pending.push(Pending {
            start: place,
            len: sealed.len,
            sa,
            traffic_class: header.traffic_class,
        });
    }

    /// Sends all that is held.
    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let gso = self.gso.load(Ordering::Relaxed);
        self.pieces.clear();
        for packet in &self.pending {
            let entry = &self.view.tables.outbound[packet.sa as usize];
            let outer = packet.len + overhead(&entry.encapsulation);
            if outer > entry.path_mtu as usize {
                self.stats.count(Count::Fragmented);
            }
            let lane = &mut self.lanes[lane(&entry.encapsulation)];
            let joinable = gso && fits_gso(entry, outer);
            if !(joinable && lane.join(packet, self.pieces.len())) {
                lane.start(packet, entry, self.pieces.len(), joinable);
            }
            self.pieces.push((packet.start, packet.len));
        }
        for index in 0..self.lanes.len() {
            if !self.lanes[index].items.is_empty() {
                self.send_lane(index);
            }
        }
        self.pending.clear();
    }

    fn send_lane(&mut self, index: usize) {
        let mut lane = std::mem::take(&mut self.lanes[index]);
        for item in &mut lane.items {
            if item.parts < 2 {
                item.segment = 0;
            }
        }
        let sockets = Arc::clone(&self.sockets);
        let mut done = 0;
        while let (Some(socket), true) = (socket(&sockets, index), done < lane.items.len()) {
            match self
                .batch
                .send(socket, &self.arena, &self.pieces, &lane.items[done..])
            {
                // A call that sends nothing and says nothing would go on forever.
                Ok(0) => break,
                Ok(sent) => done += sent,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.refused(socket, &lane.items[done], lane.notes[done], &e);
                    done += 1;
                }
            }
        }
        self.stats
            .add(Count::SendFailed, (lane.items.len() - done) as u64);
        lane.items.clear();
        lane.notes.clear();
        self.lanes[index] = lane;
    }

    /// The kernel refused one item: a batch is sent again as single datagrams.
    #[cold]
    fn refused(
        &mut self,
        socket: BorrowedFd<'_>,
        item: &Outgoing,
        (sa, _): (u32, usize),
        error: &io::Error,
    ) {
        if item.segment == 0 {
            return self.count_refusal(error);
        }
        self.stats.count(Count::GsoFallback);
        let entry = &self.view.tables.outbound[sa as usize];
        let outer = u32::from(item.segment) + overhead(&entry.encapsulation) as u32;
        match error.raw_os_error() {
            // This link cannot compute checksums: GSO will never work on it.
            Some(libc::EIO | libc::EOPNOTSUPP) => self.gso_off(error),
            Some(libc::EINVAL | libc::EMSGSIZE) if outer <= GSO_SURELY_FITS => self.gso_off(error),
            // Too large for the path as it is now: smaller ones may go on.
            Some(libc::EINVAL | libc::EMSGSIZE) => {
                entry.gso_limit.fetch_min(outer - 1, Ordering::Relaxed);
            }
            _ => {}
        }
        for part in item.first_part..item.first_part + item.parts {
            let single = Outgoing {
                first_part: part,
                parts: 1,
                segment: 0,
                ..*item
            };
            if let Err(e) = self
                .batch
                .send(socket, &self.arena, &self.pieces, &[single])
            {
                self.count_refusal(&e);
            }
        }
    }

    fn gso_off(&self, error: &io::Error) {
        if self.gso.swap(false, Ordering::Relaxed) {
            tracing::warn!("the kernel refuses UDP segmentation offload ({error}): sending singly");
        }
    }

    fn count_refusal(&self, error: &io::Error) {
        let too_big = error.raw_os_error() == Some(libc::EMSGSIZE);
        self.stats.count(if too_big {
            Count::TooBig
        } else {
            Count::SendFailed
        });
    }
}

impl Lane {
    /// Adds a packet to the last item, if it belongs there.
    fn join(&mut self, packet: &Pending, piece: usize) -> bool {
        let (Some(last), Some((sa, bytes))) = (self.items.last_mut(), self.notes.last_mut()) else {
            return false;
        };
        let segment = usize::from(last.segment);
        // Only the last segment may be shorter: once one is, the sum of the bytes tells.
        let fits = *sa == packet.sa
            && last.traffic_class == packet.traffic_class
            && last.first_part + last.parts == piece
            && *bytes == segment * last.parts
            && packet.len <= segment
            && last.parts < GSO_SEGMENTS
            && *bytes + packet.len <= GSO_BYTES;
        if fits {
            last.parts += 1;
            *bytes += packet.len;
        }
        fits
    }

    fn start(&mut self, packet: &Pending, entry: &Outbound, piece: usize, joinable: bool) {
        let (local, remote) = match entry.encapsulation {
            Encapsulation::None { local, remote } => (local, (remote, 0).into()),
            Encapsulation::Udp { local, remote } => (local.ip(), remote),
        };
        self.items.push(Outgoing {
            first_part: piece,
            parts: 1,
            remote,
            local,
            traffic_class: packet.traffic_class,
            segment: if joinable { packet.len as u16 } else { 0 },
        });
        self.notes.push((packet.sa, packet.len));
    }
}

/// The SA for a packet; counts why there is none.
fn choose(tables: &Tables, header: &IpHeader, packet: &[u8], stats: &Stats) -> Option<u32> {
    let chosen = tables.select(header, header.ports(packet));
    if chosen.is_none() {
        let local = match header.destination {
            std::net::IpAddr::V4(a) => a.is_multicast() || a.is_link_local() || a.is_broadcast(),
            std::net::IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
        };
        stats.count(if local {
            Count::NotProtected
        } else {
            Count::NoOutboundSa
        });
    }
    chosen
}

fn overhead(encapsulation: &Encapsulation) -> usize {
    match (encapsulation, encapsulation.remote().is_ipv4()) {
        (Encapsulation::None { .. }, true) => 20,
        (Encapsulation::None { .. }, false) => 40,
        (Encapsulation::Udp { .. }, true) => 28,
        (Encapsulation::Udp { .. }, false) => 48,
    }
}

fn lane(encapsulation: &Encapsulation) -> usize {
    match (encapsulation, encapsulation.remote().is_ipv4()) {
        (Encapsulation::None { .. }, true) => RAW4,
        (Encapsulation::None { .. }, false) => RAW6,
        (Encapsulation::Udp { .. }, true) => UDP4,
        (Encapsulation::Udp { .. }, false) => UDP6,
    }
}

fn socket(sockets: &QueueSockets, lane: usize) -> Option<BorrowedFd<'_>> {
    match lane {
        RAW4 => Some(sockets.raw4.as_fd()),
        RAW6 => sockets.raw6.as_ref().map(|s| s.as_fd()),
        UDP4 => Some(sockets.udp4.as_fd()),
        _ => sockets.udp6.as_ref().map(|s| s.as_fd()),
    }
}

/// Whether packets of this size may be sent with GSO over this SA's path: the kernel splits into
/// datagrams, but never into fragments.
fn fits_gso(entry: &Outbound, outer: usize) -> bool {
    let limit = entry.gso_limit.load(Ordering::Relaxed).min(entry.path_mtu);
    matches!(entry.encapsulation, Encapsulation::Udp { .. }) && outer <= limit as usize
}
