//! Opened packets on their way into the device, neighbours of one flow joined to one write.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use testudo_wire::ip::{IpHeader, OuterHeader, protocol, pseudo_header};

use crate::segment::{VNET_LEN, Vnet};
use crate::stats::{Count, Stats};
use crate::sys::Tun;

/// IP header without options, either family.
const HEADER: usize = 40;
/// Headers that are written anew: virtio, IP and TCP with options.
const FRONT: usize = VNET_LEN + HEADER + 60;
/// Packets of one write.
const JOINED: usize = 48;
/// Bytes of one write.
const JOINED_BYTES: usize = 64_000;

/// An opened packet in the receive buffer.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    start: usize,
    len: usize,
    /// The IP header that stands before it; none in tunnel mode, where it is in the packet.
    header: [u8; HEADER],
    header_len: usize,
    /// Where the transport header begins, from `start`; its protocol.
    transport: usize,
    protocol: u8,
    /// It may be joined with its neighbours.
    plain: bool,
}

impl Opened {
    /// A whole packet that was in a tunnel. Padding behind it is left out.
    pub(crate) fn whole(start: usize, header: &IpHeader) -> Self {
        let fixed = if header.is_v4() { 20 } else { 40 };
        Self {
            start,
            len: header.total_len,
            header: [0; HEADER],
            header_len: 0,
            transport: header.header_len,
            protocol: header.protocol,
            plain: header.fragment.is_none() && header.header_len == fixed,
        }
    }

    /// A payload whose IP header is made anew.
    pub(crate) fn rebuilt(payload: Range<usize>, outer: &OuterHeader) -> Option<Self> {
        let mut header = [0; HEADER];
        let header_len = outer.write(&mut header, payload.len()).ok()?;
        Some(Self {
            start: payload.start,
            len: payload.len(),
            header,
            header_len,
            transport: 0,
            protocol: outer.protocol,
            plain: true,
        })
    }

    /// The IP header, wherever it is.
    fn ip<'a>(&'a self, bytes: &'a [u8]) -> &'a [u8] {
        if self.header_len > 0 {
            &self.header[..self.header_len]
        } else {
            &bytes[self.start..self.start + self.transport]
        }
    }

    /// The transport header and its data.
    fn body<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start + self.transport..self.start + self.len]
    }
}

/// Writes one thread's opened packets to the device.
pub(crate) struct Writer {
    tun: Arc<Tun>,
    stats: Arc<Stats>,
    queue: Vec<Opened>,
    /// The kernel takes joined packets.
    join: bool,
    /// Joined packets that it refused, one after the other.
    refused: u32,
}

/// A kernel that refuses so many joined packets in a row takes none.
const REFUSALS: u32 = 4;

/// Most packets of one receive batch: 32 buffers of 64 segments would be more, but then the queue
/// grows once and stays.
const QUEUE: usize = 512;

impl Writer {
    pub(crate) fn new(tun: Arc<Tun>, stats: Arc<Stats>, join: bool) -> Self {
        Self {
            tun,
            stats,
            queue: Vec::with_capacity(QUEUE),
            join,
            refused: 0,
        }
    }

    pub(crate) fn queue(&mut self, packet: Opened) {
        self.queue.push(packet);
    }

    /// Writes all that is queued; `bytes` is the buffer that the packets lie in.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < self.queue.len() {
            let run = if self.join {
                run_length(&self.queue[at..], bytes)
            } else {
                1
            };
            let packets = &self.queue[at..at + run];
            if run > 1 {
                match write_joined(&self.tun, packets, bytes) {
                    Ok(()) => {
                        at += run;
                        self.refused = 0;
                        continue;
                    }
                    Err(e) => {
                        // Some kernels refuse large packets from a TUN: single ones always work.
                        self.refused += 1;
                        self.join = self.refused < REFUSALS;
                        tracing::debug!("the device refuses joined packets ({e}): writing singly");
                        self.stats.count(Count::GsoFallback);
                    }
                }
            }
            for packet in &self.queue[at..at + run] {
                if write_single(&self.tun, packet, bytes).is_err() {
                    self.stats.count(Count::DeviceWriteFailed);
                }
            }
            at += run;
        }
        self.queue.clear();
    }
}

fn write_single(tun: &Tun, packet: &Opened, bytes: &[u8]) -> io::Result<()> {
    let mut front = [0; VNET_LEN + HEADER];
    front[..VNET_LEN].copy_from_slice(&Vnet::default().bytes());
    front[VNET_LEN..VNET_LEN + packet.header_len]
        .copy_from_slice(&packet.header[..packet.header_len]);
    tun.write(&[
        IoSlice::new(&front[..VNET_LEN + packet.header_len]),
        IoSlice::new(&bytes[packet.start..packet.start + packet.len]),
    ])
}

/// How many packets from the first on can go as one; at least 1.
fn run_length(packets: &[Opened], bytes: &[u8]) -> usize {
    let first = &packets[0];
    let head = match (first.plain, first.protocol) {
        (true, protocol::UDP) => 8,
        (true, protocol::TCP) => match tcp_head(first.body(bytes)) {
            Some(head) => head,
            None => return 1,
        },
        _ => return 1,
    };
    let size = first.body(bytes).len().saturating_sub(head);
    let flags_end = ends_run(first, bytes);
    if size == 0 || flags_end {
        return 1;
    }
    let mut total = first.ip(bytes).len() + head + size;
    let mut count = 1;
    for packet in packets[1..].iter().take(JOINED - 1) {
        let data = packet.body(bytes).len().saturating_sub(head);
        if data == 0 || data > size || total + data > JOINED_BYTES {
            break;
        }
        if !same_flow(first, packet, bytes, head, count * size) {
            break;
        }
        total += data;
        count += 1;
        // A shorter one, or one that pushes, is the last.
        if data < size || ends_run(packet, bytes) {
            break;
        }
    }
    count
}

/// The length of the TCP header, where the segment is plain data: ACK, perhaps PSH, no more.
fn tcp_head(body: &[u8]) -> Option<usize> {
    // The peer's bytes: they may end between the two.
    let (offset, flags) = (*body.get(12)?, *body.get(13)?);
    let head = usize::from(offset >> 4) * 4;
    let plain = flags & !0x08 == 0x10;
    (plain && (20..=body.len()).contains(&head)).then_some(head)
}

fn ends_run(packet: &Opened, bytes: &[u8]) -> bool {
    packet.protocol == protocol::TCP && packet.body(bytes).get(13).is_none_or(|f| f & 0x08 != 0)
}

/// Whether `next` carries on `first` after `offset` bytes of data.
fn same_flow(first: &Opened, next: &Opened, bytes: &[u8], head: usize, offset: usize) -> bool {
    if !next.plain || next.protocol != first.protocol || next.header_len != first.header_len {
        return false;
    }
    let (a, b) = (first.ip(bytes), next.ip(bytes));
    if a.len() != b.len() || !same_ip(a, b) {
        return false;
    }
    let (a, b) = (first.body(bytes), next.body(bytes));
    if b.len() < head || a[..4] != b[..4] {
        return false;
    }
    if first.protocol == protocol::UDP {
        // A datagram whose own length is wrong stays alone.
        let whole = |body: &[u8]| usize::from(u16::from_be_bytes([body[4], body[5]])) == body.len();
        return whole(a) && whole(b);
    }
    let word = |body: &[u8], at: usize| {
        u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
    };
    tcp_head(b) == Some(head)
        && word(b, 4) == word(a, 4).wrapping_add(offset as u32)
        && a[8..13] == b[8..13]
        && a[14..16] == b[14..16]
        && a[20..head] == b[20..head]
}

/// Equal but for length, identification and checksum.
fn same_ip(a: &[u8], b: &[u8]) -> bool {
    if a[0] >> 4 == 4 {
        a[..2] == b[..2] && a[6..10] == b[6..10] && a[12..] == b[12..]
    } else {
        a[..4] == b[..4] && a[6..] == b[6..]
    }
}

/// Writes packets of one flow as one large packet that the kernel takes apart.
fn write_joined(tun: &Tun, packets: &[Opened], bytes: &[u8]) -> io::Result<()> {
    let (first, last) = (&packets[0], &packets[packets.len() - 1]);
    let (ip, body) = (first.ip(bytes), first.body(bytes));
    let v4 = ip[0] >> 4 == 4;
    let tcp = first.protocol == protocol::TCP;
    let head = if tcp {
        usize::from(body[12] >> 4) * 4
    } else {
        8
    };
    let size = body.len() - head;
    let data: usize = packets.iter().map(|p| p.body(bytes).len() - head).sum();
    let vnet = match tcp {
        true => Vnet::joined_tcp(v4, ip.len(), head, size),
        false => Vnet::joined_udp(ip.len(), size),
    };
    let mut front = [0u8; FRONT];
    front[..VNET_LEN].copy_from_slice(&vnet.bytes());
    let at = VNET_LEN + ip.len();
    front[VNET_LEN..at].copy_from_slice(ip);
    front[at..at + head].copy_from_slice(&body[..head]);
    set_lengths(&mut front[VNET_LEN..at + head], ip.len(), data + head, v4);
    if tcp {
        front[at + 13] |= last.body(bytes)[13] & 0x08;
    } else {
        front[at + 4..at + 6].copy_from_slice(&((data + head) as u16).to_be_bytes());
    }
    let (source, destination) =
        addresses(&front[VNET_LEN..at]).ok_or(io::ErrorKind::InvalidData)?;
    let place = at + if tcp { 16 } else { 6 };
    let partial = pseudo_header(source, destination, first.protocol, data + head).partial();
    front[place..place + 2].copy_from_slice(&partial.to_be_bytes());

    let mut parts = [IoSlice::new(&[]); JOINED + 1];
    parts[0] = IoSlice::new(&front[..at + head]);
    for (part, packet) in parts[1..].iter_mut().zip(packets) {
        *part = IoSlice::new(&packet.body(bytes)[head..]);
    }
    tun.write(&parts[..packets.len() + 1])
}

/// The addresses of a header whose packet lies elsewhere.
fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    if bytes[0] >> 4 == 4 {
        let four = |at: usize| <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok();
        return Some((four(12)?.into(), four(16)?.into()));
    }
    let sixteen = |at: usize| <[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok();
    Some((sixteen(8)?.into(), sixteen(24)?.into()))
}

fn set_lengths(front: &mut [u8], ip_len: usize, payload: usize, v4: bool) {
    if !v4 {
        front[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        return;
    }
    front[2..4].copy_from_slice(&((ip_len + payload) as u16).to_be_bytes());
    front[10..12].fill(0);
    let mut sum = testudo_wire::ip::Checksum::new();
    sum.add(&front[..ip_len]);
    let sum = sum.finish();
    front[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_wire::ip::OuterHeader;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A tunnelled packet whose transport part is `len` bytes of `fill`.
    fn packet(v4: bool, protocol: u8, len: usize, fill: u8) -> Vec<u8> {
        let (source, destination) = match v4 {
            true => (ip("10.0.0.1"), ip("10.0.0.2")),
            false => (ip("fd00::1"), ip("fd00::2")),
        };
        let outer = OuterHeader::new(source, destination, protocol);
        let mut bytes = vec![0; outer.len()];
        outer.write(&mut bytes, len).unwrap();
        bytes.resize(bytes.len() + len, fill);
        bytes
    }

    // A pod may send any bytes under TCP's and UDP's numbers, and our peer seals them.
    #[test]
    fn transport_headers_of_any_length_are_looked_at_without_a_panic() {
        for v4 in [true, false] {
            for protocol in [protocol::TCP, protocol::UDP, 0, 255] {
                for len in 0..80 {
                    for fill in [0x00, 0x10, 0x50, 0x5f, 0xff] {
                        let one = packet(v4, protocol, len, fill);
                        let Ok(header) = IpHeader::parse(&one) else {
                            continue;
                        };
                        let bytes = [&one[..], &one[..]].concat();
                        let both = [0, one.len()].map(|at| Opened::whole(at, &header));
                        assert!((1..=2).contains(&run_length(&both, &bytes)));
                    }
                }
            }
        }
    }
}
