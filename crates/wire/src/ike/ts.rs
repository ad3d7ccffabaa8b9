//! Traffic selectors (RFC 7296, 3.13).

use core::cmp::{max, min};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::limits;
use crate::error::{Problem, WireError};
use crate::numbers::numbers;
use crate::reader::Reader;

numbers! {
    /// The type of a traffic selector.
    TsType: u8 {
        IPV4_ADDR_RANGE = 7,
        IPV6_ADDR_RANGE = 8,
    }
}

const IPV4_LEN: usize = 16;
const IPV6_LEN: usize = 40;

/// A range of ports, both ends in it. For ICMP the type is the high byte, the code the low one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    start: u16,
    end: u16,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self {
        start: 0,
        end: 65535,
    };
    /// OPAQUE (RFC 7296, 3.13.1): packets whose ports cannot be seen.
    pub const OPAQUE: Self = Self {
        start: 65535,
        end: 0,
    };

    /// A range; None when it is reversed.
    pub fn new(start: u16, end: u16) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// A single port.
    pub const fn single(port: u16) -> Self {
        Self {
            start: port,
            end: port,
        }
    }

    /// The first port.
    pub fn start(self) -> u16 {
        self.start
    }

    /// The last port.
    pub fn end(self) -> u16 {
        self.end
    }

    /// It is [`Self::OPAQUE`].
    pub fn is_opaque(self) -> bool {
        self == Self::OPAQUE
    }

    /// The port lies in the range; OPAQUE has none.
    pub fn contains(self, port: u16) -> bool {
        (self.start..=self.end).contains(&port)
    }

    /// Every port of `other` lies in this range; OPAQUE lies in ANY and in itself.
    pub fn contains_range(self, other: Self) -> bool {
        if other.is_opaque() {
            return self == Self::ANY || self.is_opaque();
        }
        self.start <= other.start && other.end <= self.end
    }

    /// The ports in both.
    pub fn intersect(self, other: Self) -> Option<Self> {
        if self.is_opaque() || other.is_opaque() {
            return (self.contains_range(other) || other.contains_range(self))
                .then_some(Self::OPAQUE);
        }
        Self::new(max(self.start, other.start), min(self.end, other.end))
    }
}

/// A range of addresses of one family, both ends in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressRange {
    /// IPv4.
    V4 {
        /// The first address.
        start: Ipv4Addr,
        /// The last address, not before the first.
        end: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// The first address.
        start: Ipv6Addr,
        /// The last address, not before the first.
        end: Ipv6Addr,
    },
}

impl AddressRange {
    /// Every IPv4 address.
    pub const ANY_V4: Self = Self::V4 {
        start: Ipv4Addr::UNSPECIFIED,
        end: Ipv4Addr::BROADCAST,
    };
    /// Every IPv6 address.
    pub const ANY_V6: Self = Self::V6 {
        start: Ipv6Addr::UNSPECIFIED,
        end: Ipv6Addr::from_bits(u128::MAX),
    };

    /// A range; None when the families differ or it is reversed.
    pub fn new(start: IpAddr, end: IpAddr) -> Option<Self> {
        match (start, end) {
            (IpAddr::V4(start), IpAddr::V4(end)) if start <= end => Some(Self::V4 { start, end }),
            (IpAddr::V6(start), IpAddr::V6(end)) if start <= end => Some(Self::V6 { start, end }),
            _ => None,
        }
    }

    /// A single address.
    pub fn single(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => Self::V4 { start: a, end: a },
            IpAddr::V6(a) => Self::V6 { start: a, end: a },
        }
    }

    /// The addresses of a prefix, whatever its host bits; None when the prefix is too long.
    pub fn prefix(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let length = u32::from(prefix_len);
        match address {
            IpAddr::V4(a) if length <= 32 => {
                let host = u32::MAX.checked_shr(length).unwrap_or(0);
                Some(Self::V4 {
                    start: Ipv4Addr::from_bits(a.to_bits() & !host),
                    end: Ipv4Addr::from_bits(a.to_bits() | host),
                })
            }
            IpAddr::V6(a) if length <= 128 => {
                let host = u128::MAX.checked_shr(length).unwrap_or(0);
                Some(Self::V6 {
                    start: Ipv6Addr::from_bits(a.to_bits() & !host),
                    end: Ipv6Addr::from_bits(a.to_bits() | host),
                })
            }
            _ => None,
        }
    }

    /// Address and length when the range is exactly one prefix.
    pub fn as_prefix(&self) -> Option<(IpAddr, u8)> {
        let (start, end, width) = match self {
            Self::V4 { start, end } => (u128::from(start.to_bits()), u128::from(end.to_bits()), 32),
            Self::V6 { start, end } => (start.to_bits(), end.to_bits(), 128),
        };
        let host = start ^ end;
        let is_prefix = host & host.wrapping_add(1) == 0 && start & host == 0;
        // `host` has as many ones at its low end as the prefix has host bits.
        is_prefix.then_some((self.start(), (width - host.count_ones()) as u8))
    }

    /// The first address.
    pub fn start(&self) -> IpAddr {
        match *self {
            Self::V4 { start, .. } => IpAddr::V4(start),
            Self::V6 { start, .. } => IpAddr::V6(start),
        }
    }

    /// The last address.
    pub fn end(&self) -> IpAddr {
        match *self {
            Self::V4 { end, .. } => IpAddr::V4(end),
            Self::V6 { end, .. } => IpAddr::V6(end),
        }
    }

    /// The range is of IPv4 addresses.
    pub fn is_v4(&self) -> bool {
        matches!(self, Self::V4 { .. })
    }

    /// It holds one address alone.
    pub fn is_single(&self) -> bool {
        self.start() == self.end()
    }

    /// The address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (*self, address) {
            (Self::V4 { start, end }, IpAddr::V4(a)) => start <= a && a <= end,
            (Self::V6 { start, end }, IpAddr::V6(a)) => start <= a && a <= end,
            _ => false,
        }
    }

    /// All of `other` lies in the range.
    pub fn contains_range(&self, other: &Self) -> bool {
        self.contains(other.start()) && self.contains(other.end())
    }

    /// The addresses in both.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.is_v4() != other.is_v4() {
            return None;
        }
        Self::new(
            max(self.start(), other.start()),
            min(self.end(), other.end()),
        )
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_prefix() {
            Some((address, length)) => write!(f, "{address}/{length}"),
            None => write!(f, "{}-{}", self.start(), self.end()),
        }
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One traffic selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficSelector {
    /// The IP protocol; 0 means any.
    pub protocol: u8,
    /// The ports.
    pub ports: PortRange,
    /// The addresses.
    pub addresses: AddressRange,
}

impl TrafficSelector {
    /// Any protocol and port between these addresses.
    pub fn addresses(addresses: AddressRange) -> Self {
        Self {
            protocol: 0,
            ports: PortRange::ANY,
            addresses,
        }
    }

    /// Any protocol and port of one address.
    pub fn single(address: IpAddr) -> Self {
        Self::addresses(AddressRange::single(address))
    }

    /// Any protocol and port of a prefix; None when the prefix is too long.
    pub fn prefix(address: IpAddr, prefix_len: u8) -> Option<Self> {
        AddressRange::prefix(address, prefix_len).map(Self::addresses)
    }

    /// A packet with these values is covered. `port` is None when it has none, or none that can
    /// be seen: then only ANY and OPAQUE cover it.
    pub fn covers(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let port_fits = match port {
            Some(port) => self.ports.contains(port),
            None => self.ports == PortRange::ANY || self.ports.is_opaque(),
        };
        (self.protocol == 0 || self.protocol == protocol)
            && port_fits
            && self.addresses.contains(address)
    }

    /// Everything that `other` covers is covered by this one.
    pub fn contains(&self, other: &Self) -> bool {
        (self.protocol == 0 || self.protocol == other.protocol)
            && self.ports.contains_range(other.ports)
            && self.addresses.contains_range(&other.addresses)
    }

    /// What both cover.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (p, q) if p == q => p,
            _ => return None,
        };
        Some(Self {
            protocol,
            ports: self.ports.intersect(other.ports)?,
            addresses: self.addresses.intersect(&other.addresses)?,
        })
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addresses)?;
        if self.protocol != 0 || self.ports != PortRange::ANY {
            write!(f, "[{}", self.protocol)?;
            match self.ports {
                PortRange::ANY => {}
                PortRange::OPAQUE => f.write_str("/opaque")?,
                PortRange { start, end } if start == end => write!(f, "/{start}")?,
                PortRange { start, end } => write!(f, "/{start}-{end}")?,
            }
            f.write_str("]")?;
        }
        Ok(())
    }
}

/// The content of a TSi or TSr payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficSelectors {
    /// The selectors of address ranges.
    pub selectors: Vec<TrafficSelector>,
    /// How many selectors of other types were there; they cover nothing. Never encoded.
    pub unknown: usize,
}

impl TrafficSelectors {
    /// Of these selectors.
    pub fn new(selectors: impl Into<Vec<TrafficSelector>>) -> Self {
        Self {
            selectors: selectors.into(),
            unknown: 0,
        }
    }

    /// What the policy allows of what is offered (RFC 7296, 2.9), in the order of the offer,
    /// without a selector that another one contains. Empty means TS_UNACCEPTABLE. At most
    /// [`limits::TRAFFIC_SELECTORS`] are kept, which narrows further and is safe.
    pub fn narrow(&self, policy: &[TrafficSelector]) -> Vec<TrafficSelector> {
        let mut out: Vec<TrafficSelector> = Vec::new();
        for both in self
            .selectors
            .iter()
            .flat_map(|s| policy.iter().filter_map(|p| s.intersect(p)))
        {
            if out.iter().any(|o| o.contains(&both)) {
                continue;
            }
            out.retain(|o| !both.contains(o));
            if out.len() < limits::TRAFFIC_SELECTORS {
                out.push(both);
            }
        }
        out
    }

    /// Every selector here lies in one selector of `policy`: an initiator checks the answer so.
    pub fn is_subset_of(&self, policy: &[TrafficSelector]) -> bool {
        !self.selectors.is_empty()
            && self.unknown == 0
            && self
                .selectors
                .iter()
                .all(|s| policy.iter().any(|p| p.contains(s)))
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let count = r.u8()?;
        r.take(3)?;
        if count == 0 {
            return Err(r.error(Problem::BadValue(0)));
        }
        let mut out = Self::default();
        for _ in 0..count {
            match decode_selector(r)? {
                Some(selector) => out.selectors.push(selector),
                None => out.unknown += 1,
            }
        }
        r.finish()?;
        Ok(out)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.selectors.len() as u8, 0, 0, 0]);
        for selector in &self.selectors {
            let (kind, length) = match selector.addresses {
                AddressRange::V4 { .. } => (TsType::IPV4_ADDR_RANGE, IPV4_LEN),
                AddressRange::V6 { .. } => (TsType::IPV6_ADDR_RANGE, IPV6_LEN),
            };
            out.extend([kind.0, selector.protocol]);
            out.extend((length as u16).to_be_bytes());
            out.extend(selector.ports.start.to_be_bytes());
            out.extend(selector.ports.end.to_be_bytes());
            match selector.addresses {
                AddressRange::V4 { start, end } => {
                    out.extend(start.octets());
                    out.extend(end.octets());
                }
                AddressRange::V6 { start, end } => {
                    out.extend(start.octets());
                    out.extend(end.octets());
                }
            }
        }
    }
}

/// One selector, or None when its type is unknown.
fn decode_selector(r: &mut Reader<'_>) -> Result<Option<TrafficSelector>, WireError> {
    let start = r.clone();
    let kind = TsType(r.u8()?);
    let protocol = r.u8()?;
    let said = usize::from(r.u16()?);
    let (min, max) = match kind {
        TsType::IPV4_ADDR_RANGE => (IPV4_LEN, IPV4_LEN),
        TsType::IPV6_ADDR_RANGE => (IPV6_LEN, IPV6_LEN),
        _ => (4, start.left()),
    };
    if said < min || said > max {
        let problem = Problem::BadLength { said, min, max };
        return Err(WireError::new(
            "traffic selector",
            start.offset() + 2,
            problem,
        ));
    }
    let mut body = r.sub(said - 4, "traffic selector")?;
    if kind.name().is_none() {
        return Ok(None);
    }
    let reversed = WireError::new("traffic selector", start.offset(), Problem::Reversed);
    let (first, last) = (body.u16()?, body.u16()?);
    let ports = match (first, last) {
        (65535, 0) => PortRange::OPAQUE,
        _ => PortRange::new(first, last).ok_or(reversed)?,
    };
    let (from, to) = if kind == TsType::IPV4_ADDR_RANGE {
        (
            IpAddr::from(body.array::<4>()?),
            IpAddr::from(body.array::<4>()?),
        )
    } else {
        (
            IpAddr::from(body.array::<16>()?),
            IpAddr::from(body.array::<16>()?),
        )
    };
    let addresses = AddressRange::new(from, to).ok_or(reversed)?;
    Ok(Some(TrafficSelector {
        protocol,
        ports,
        addresses,
    }))
}
