//! Which traffic is sealed, which is not, and which never leaves its node: as a capture on every link of the
//! underlay has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::world::World;
use crate::common::pcap::{self, Packet};
use crate::common::{Places, Recording};

/// The filter for what is in clear of pods' traffic between nodes.
pub(super) const OVERLAY: &str = "udp port 4789";

/// How a flow's packets are to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// As ESP, and in no other form.
    Sealed,
    /// As they are.
    Clear,
    /// Not at all.
    Local,
}

/// An overlay's flows, with the encryption of hosts' own traffic switched off, as it is by default. `node1` is
/// what a pod with the host's network is as well.
pub(super) const ALL: [(&str, &str, Expected); 7] = [
    ("pod1", "pod2", Expected::Sealed),
    ("pod2", "pod1", Expected::Sealed),
    ("node1", "pod2", Expected::Sealed),
    ("pod1", "node2", Expected::Clear),
    ("node1", "node2", Expected::Clear),
    ("pod1", "other1", Expected::Local),
    ("node1", "pod1", Expected::Local),
];

/// Datagrams a flow.
const COUNT: usize = 5;
/// The first flow's datagrams have so many bytes, and each other one's so many more: an ESP packet's
/// length says whose it is.
const FIRST: usize = 300;
const MORE: usize = 100;
/// What VXLAN and ESP in transport mode add to a datagram's bytes, less and more than which no suite does.
const ADDED: std::ops::Range<usize> = 80..120;
/// A datagram's way takes so long at most.
const ARRIVES: Duration = Duration::from_secs(30);
/// The first port; every flow has its own.
const PORT: u16 = 9500;

/// What was seen of a flow.
#[derive(Debug, Default)]
struct Seen {
    arrived: usize,
    bare: usize,
    sealed: usize,
}

/// Sends some datagrams on each of these flows and fails unless all of them are seen as is expected.
#[track_caller]
pub(super) fn observe(world: &World, flows: &[(&str, &str, Expected)]) {
    let underlay = world.cluster.underlay();
    let mut recordings = Vec::new();
    for node in world.cluster.nodes() {
        let link = format!("node{node}");
        let file = world.dir.path().join(format!("{link}.pcap"));
        recordings.push(Recording::start_in(&underlay, &link, &file));
    }
    let mut seen = Vec::new();
    for (number, (from, to, _)) in flows.iter().enumerate() {
        seen.push(Seen {
            arrived: send(world, from, to, number),
            ..Seen::default()
        });
    }
    let files = recordings.into_iter().map(Recording::stop);
    let packets: Vec<Packet> = files.flat_map(|file| pcap::read(&file)).collect();
    for (number, ((from, to, expected), seen)) in flows.iter().zip(&mut seen).enumerate() {
        let mark = mark(number);
        let bytes = size(number) + ADDED.start..size(number) + ADDED.end;
        for packet in &packets {
            let bare = packet.payload.windows(mark.len()).any(|part| part == mark);
            seen.bare += usize::from(bare);
            seen.sealed += usize::from(bytes.contains(&esp_bytes(packet)));
        }
        eprintln!("   {from} > {to}: {expected:?}, {seen:?}");
        let good = match expected {
            // On the ports of both nodes.
            Expected::Sealed => seen.bare == 0 && seen.sealed >= 2 * COUNT,
            Expected::Clear => seen.bare >= 2 * COUNT && seen.sealed == 0,
            Expected::Local => seen.bare == 0 && seen.sealed == 0,
        };
        assert!(
            good && seen.arrived == COUNT,
            "{from} > {to}: {expected:?} was expected of {COUNT} datagrams, {seen:?}\n{}",
            world.state()
        );
    }
}

/// The bytes of a packet's ESP, by itself or in UDP; 0: it is none.
fn esp_bytes(packet: &Packet) -> usize {
    match packet.udp() {
        Some((4500, _, data) | (_, 4500, data)) => data.len(),
        _ if packet.protocol == 50 => packet.payload.len(),
        _ => 0,
    }
}

fn size(number: usize) -> usize {
    FIRST + number * MORE
}

fn mark(number: usize) -> Vec<u8> {
    format!("TESTUDO-FLOW-TABLE-{number:04}-MARK").into_bytes()
}

/// Sends the flow's datagrams, each when the one before it has arrived; how many did.
fn send(world: &World, from: &str, to: &str, number: usize) -> usize {
    let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    let port = {
        let mut used = world.ports.borrow_mut();
        *used += 1;
        PORT + *used
    };
    let open = |place: &str, port: u16| -> UdpSocket {
        let socket = world.socket(place, SocketAddr::new(any, port));
        socket.unwrap_or_else(|e| panic!("a socket in {place}: {e}"))
    };
    let (receiver, sender) = (open(to, port), open(from, 0));
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a time above zero");
    let mut payload = mark(number);
    payload.resize(size(number), b'.');
    let address = SocketAddr::new(world.place(to).address, port);
    let mut arrived = 0;
    for _ in 0..COUNT {
        sender.send_to(&payload, address).expect("a way there");
        let sent = Instant::now();
        let mut buffer = [0; 2048];
        while sent.elapsed() < ARRIVES {
            if receiver
                .recv(&mut buffer)
                .is_ok_and(|n| buffer[..n] == payload)
            {
                arrived += 1;
                break;
            }
        }
    }
    arrived
}
