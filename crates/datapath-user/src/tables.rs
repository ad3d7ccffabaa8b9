//! Which SA a packet belongs to. Readers keep a snapshot; a change makes a new one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use testudo_esp::{InboundSa, OutboundSa};
use testudo_model::{ChildId, Encapsulation, SaMode, TrafficSelector};
use testudo_wire::ip::{IpHeader, Ports};

/// An outbound SA and what the packet threads need to use it.
#[derive(Clone)]
pub(crate) struct Outbound {
    pub(crate) child: ChildId,
    pub(crate) sa: Arc<OutboundSa>,
    pub(crate) mode: SaMode,
    pub(crate) encapsulation: Encapsulation,
    pub(crate) local: Vec<TrafficSelector>,
    pub(crate) remote: Vec<TrafficSelector>,
    /// MTU of the link below, bytes.
    pub(crate) path_mtu: u32,
    /// The largest inner packet for which new TCP connections are made to fit; 0: left alone.
    pub(crate) clamp_mtu: u32,
    /// Outer packets above this size are not sent with GSO, since the kernel refused one.
    pub(crate) gso_limit: Arc<AtomicU32>,
}

/// An inbound SA and what the packet threads need to use it.
#[derive(Clone)]
pub(crate) struct Inbound {
    pub(crate) child: ChildId,
    pub(crate) sa: Arc<InboundSa>,
    pub(crate) mode: SaMode,
    pub(crate) encapsulation: Encapsulation,
    pub(crate) local: Vec<TrafficSelector>,
    pub(crate) remote: Vec<TrafficSelector>,
    /// The end that was last told as moved to.
    pub(crate) moved: Arc<Mutex<Option<SocketAddr>>>,
}

/// One remote range of one outbound SA.
struct Range {
    first: u128,
    last: u128,
    /// The highest `last` of this and all earlier ranges: where a search may stop.
    highest: u128,
    sa: u32,
}

/// SPIs are random and ours: the number itself is hash enough.
#[derive(Default)]
pub(crate) struct SpiHasher(u64);

impl Hasher for SpiHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type SpiMap = HashMap<u32, Arc<Inbound>, BuildHasherDefault<SpiHasher>>;

/// Everything the packet threads look up.
#[derive(Default)]
pub(crate) struct Tables {
    /// In use, the newest first: of several that fit, the first is taken.
    pub(crate) outbound: Vec<Arc<Outbound>>,
    v4: Vec<Range>,
    v6: Vec<Range>,
    inbound: SpiMap,
    /// In transport mode only UDP to this port is accepted, where it is known.
    pub(crate) overlay_port: Option<u16>,
}

impl Tables {
    pub(crate) fn new(
        outbound: Vec<Arc<Outbound>>,
        inbound: impl Iterator<Item = Arc<Inbound>>,
        overlay_port: Option<u16>,
    ) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (index, entry) in outbound.iter().enumerate() {
            for selector in &entry.remote {
                let ranges = if selector.first.is_ipv4() {
                    &mut v4
                } else {
                    &mut v6
                };
                let (first, last) = (number(selector.first), number(selector.last));
                ranges.push(Range {
                    first,
                    last,
                    highest: 0,
                    sa: index as u32,
                });
            }
        }
        for ranges in [&mut v4, &mut v6] {
            ranges.sort_by_key(|range| range.first);
            let mut highest = 0;
            for range in ranges.iter_mut() {
                highest = range.last.max(highest);
                range.highest = highest;
            }
        }
        let inbound = inbound.map(|entry| (entry.sa.spi(), entry)).collect();
        Self {
            outbound,
            v4,
            v6,
            inbound,
            overlay_port,
        }
    }

    pub(crate) fn inbound(&self, spi: u32) -> Option<&Arc<Inbound>> {
        self.inbound.get(&spi)
    }

    /// The outbound SA for a packet; the newest in use of those whose selectors fit.
    pub(crate) fn select(&self, header: &IpHeader, ports: Option<Ports>) -> Option<u32> {
        let to = number(header.destination);
        let ranges = if header.is_v4() { &self.v4 } else { &self.v6 };
        let end = ranges.partition_point(|range| range.first <= to);
        let mut best: Option<u32> = None;
        for range in ranges[..end].iter().rev() {
            if range.highest < to {
                break;
            }
            let better = best.is_none_or(|best| range.sa < best);
            if range.last >= to && better && self.outbound[range.sa as usize].fits(header, ports) {
                best = Some(range.sa);
            }
        }
        best
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

impl Outbound {
    /// Whether this SA may carry the packet (RFC 4301 5.1).
    fn fits(&self, header: &IpHeader, ports: Option<Ports>) -> bool {
        if self.mode == SaMode::Transport {
            // The ends of the packet are those of the SA, or they would be lost on the way.
            let ends = match self.encapsulation {
                Encapsulation::None { local, remote } => {
                    header.source == local && header.destination == remote
                }
                Encapsulation::Udp { .. } => true,
            };
            if !ends || header.fragment.is_some() {
                return false;
            }
        }
        let (source, destination) = ports.map_or((0, 0), |p| (p.source, p.destination));
        let protocol = header.protocol;
        self.local
            .iter()
            .any(|s| s.matches(header.source, protocol, source))
            && self
                .remote
                .iter()
                .any(|s| s.matches(header.destination, protocol, destination))
    }
}

impl Inbound {
    /// Whether the peer may send such a packet (RFC 4301 5.2).
    pub(crate) fn allows(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        ports: Option<Ports>,
    ) -> bool {
        let (from, to) = ports.map_or((0, 0), |p| (p.source, p.destination));
        self.remote
            .iter()
            .any(|s| s.matches(source, protocol, from))
            && self
                .local
                .iter()
                .any(|s| s.matches(destination, protocol, to))
    }

    /// The ends of packets in transport mode: those of the outer packet, unless a NAT may change
    /// these (RFC 7296 2.23.1); then those that the selectors name.
    pub(crate) fn inner_ends(&self) -> (IpAddr, IpAddr) {
        let (local, remote) = (self.encapsulation.local(), self.encapsulation.remote());
        let named = |list: &[TrafficSelector], seen: IpAddr| {
            let mut hosts = list.iter().filter(|s| s.first == s.last);
            hosts
                .find(|s| s.first.is_ipv4() == seen.is_ipv4())
                .map_or(seen, |s| s.first)
        };
        match self.encapsulation {
            Encapsulation::None { .. } => (local, remote),
            Encapsulation::Udp { .. } => (named(&self.local, local), named(&self.remote, remote)),
        }
    }

    /// True once for each new end that packets come from.
    pub(crate) fn note_end(&self, from: SocketAddr) -> bool {
        let Encapsulation::Udp { remote, .. } = self.encapsulation else {
            return false;
        };
        if remote == from {
            return false;
        }
        let mut told = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        told.replace(from) != Some(from)
    }
}

/// The current tables, for many readers and one writer.
#[derive(Default)]
pub(crate) struct Shared {
    current: Mutex<Arc<Tables>>,
    generation: AtomicU64,
}

impl Shared {
    pub(crate) fn replace(&self, tables: Tables) {
        *self.lock() = Arc::new(tables);
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Tables>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's view: looks at one number, and takes the lock only after a change.
pub(crate) struct View {
    shared: Arc<Shared>,
    generation: u64,
    pub(crate) tables: Arc<Tables>,
}

impl View {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        // The number before the tables: at worst they are fetched once more.
        let generation = shared.generation.load(Ordering::Acquire);
        let tables = Arc::clone(&shared.lock());
        Self {
            shared,
            generation,
            tables,
        }
    }

    /// Whether the tables have changed since the last look.
    #[inline]
    pub(crate) fn is_stale(&self) -> bool {
        self.shared.generation.load(Ordering::Acquire) != self.generation
    }

    #[inline]
    pub(crate) fn refresh(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.tables = Arc::clone(&self.shared.lock());
            self.generation = generation;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_crypto::Cipher;
    use testudo_esp::{OutboundParameters, SoftLimits};
    use testudo_model::PortRange;
    use testudo_wire::ip::{OuterHeader, protocol};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn entry(
        child: u64,
        mode: SaMode,
        local: &[TrafficSelector],
        remote: &[TrafficSelector],
    ) -> Arc<Outbound> {
        let parameters = OutboundParameters {
            spi: 0x1000 + child as u32,
            cipher: Cipher::AES_256_GCM,
            keymat: &[7; 36],
            esn: true,
            limits: SoftLimits::NONE,
        };
        let encapsulation = Encapsulation::None {
            local: ip("192.0.2.1"),
            remote: ip("192.0.2.2"),
        };
        Arc::new(Outbound {
            child: ChildId(child),
            sa: Arc::new(OutboundSa::new(&parameters).unwrap()),
            mode,
            encapsulation,
            local: local.to_vec(),
            remote: remote.to_vec(),
            path_mtu: 1500,
            clamp_mtu: 0,
            gso_limit: Arc::new(AtomicU32::new(u32::MAX)),
        })
    }

    fn net(text: &str) -> TrafficSelector {
        TrafficSelector::prefix(text.parse().unwrap())
    }

    fn header(from: &str, to: &str) -> IpHeader {
        let outer = OuterHeader::new(ip(from), ip(to), protocol::UDP);
        let mut packet = vec![0; outer.len() + 8];
        outer.write(&mut packet, 8).unwrap();
        IpHeader::parse(&packet).unwrap()
    }

    fn ports(destination: u16) -> Option<Ports> {
        Some(Ports {
            source: 50_000,
            destination,
        })
    }

    #[test]
    fn the_newest_that_fits_is_chosen_also_among_overlapping_ranges() {
        let any = [net("0.0.0.0/0"), net("::/0")];
        let tunnel = |child, remote: &[&str]| {
            let remote: Vec<_> = remote.iter().map(|r| net(r)).collect();
            entry(child, SaMode::Tunnel, &any, &remote)
        };
        let tables = Tables::new(
            vec![
                tunnel(5, &["10.2.0.0/16"]),
                tunnel(4, &["10.3.0.0/16", "fd00:3::/32"]),
                tunnel(3, &["10.2.0.0/16", "10.9.0.0/24"]),
                tunnel(2, &["10.0.0.0/8"]),
                tunnel(1, &["10.3.0.0/24"]),
            ],
            std::iter::empty(),
            None,
        );
        let chosen = |to: &str| {
            let from = if to.contains(':') {
                "fd00::1"
            } else {
                "10.1.0.1"
            };
            tables
                .select(&header(from, to), ports(80))
                .map(|index| tables.outbound[index as usize].child.0)
        };
        assert_eq!(chosen("10.2.3.4"), Some(5));
        assert_eq!(chosen("10.3.0.4"), Some(4));
        assert_eq!(chosen("10.9.0.4"), Some(3));
        assert_eq!(chosen("10.9.1.4"), Some(2));
        assert_eq!(chosen("10.255.255.255"), Some(2));
        assert_eq!(chosen("11.0.0.0"), None);
        assert_eq!(chosen("9.255.255.255"), None);
        assert_eq!(chosen("fd00:3::9"), Some(4));
        assert_eq!(chosen("fd00:4::9"), None);
    }

    #[test]
    fn transport_mode_carries_only_its_own_ends_and_port() {
        let udp = |text| TrafficSelector::host(ip(text)).with(protocol::UDP, PortRange::one(4789));
        let local = TrafficSelector::host(ip("192.0.2.1")).with(protocol::UDP, PortRange::ANY);
        let wide = net("192.0.2.0/24");
        let tables = Tables::new(
            vec![entry(
                1,
                SaMode::Transport,
                &[local],
                &[udp("192.0.2.2"), wide],
            )],
            std::iter::empty(),
            None,
        );
        assert_eq!(
            tables.select(&header("192.0.2.1", "192.0.2.2"), ports(4789)),
            Some(0)
        );
        assert_eq!(
            tables.select(&header("192.0.2.9", "192.0.2.2"), ports(4789)),
            None
        );
        assert_eq!(
            tables.select(&header("192.0.2.1", "192.0.2.3"), ports(4789)),
            None
        );
    }

    #[test]
    fn a_view_sees_a_change_at_its_next_look() {
        let shared = Arc::new(Shared::default());
        let mut view = View::new(Arc::clone(&shared));
        shared.replace(Tables::new(Vec::new(), std::iter::empty(), Some(4789)));
        assert_eq!(view.tables.overlay_port, None);
        assert!(view.is_stale());
        view.refresh();
        assert!(!view.is_stale());
        assert_eq!(view.tables.overlay_port, Some(4789));
    }
}
