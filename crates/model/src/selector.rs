//! Traffic selectors (RFC 7296 3.13): a range of addresses, a protocol, a range of ports.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// An inclusive range of ports. For a protocol without ports it is [`PortRange::ANY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// All ports.
    pub const ANY: PortRange = PortRange {
        first: 0,
        last: u16::MAX,
    };

    /// One port.
    pub const fn one(port: u16) -> PortRange {
        PortRange {
            first: port,
            last: port,
        }
    }

    /// Whether `port` is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// One end's part of a policy: which addresses, protocol and ports it speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficSelector {
    /// The first address.
    pub first: IpAddr,
    /// The last address, of the same family.
    pub last: IpAddr,
    /// IP protocol number; 0 is any.
    pub protocol: u8,
    /// Ports.
    pub ports: PortRange,
}

impl TrafficSelector {
    /// All protocols and ports of one address.
    pub const fn host(address: IpAddr) -> TrafficSelector {
        TrafficSelector {
            first: address,
            last: address,
            protocol: 0,
            ports: PortRange::ANY,
        }
    }

    /// All protocols and ports of a prefix, from its first to its last address.
    pub fn prefix(net: IpNet) -> TrafficSelector {
        TrafficSelector {
            first: net.network(),
            last: net.broadcast(),
            protocol: 0,
            ports: PortRange::ANY,
        }
    }

    /// The same addresses, one protocol and range of ports.
    pub const fn with(self, protocol: u8, ports: PortRange) -> TrafficSelector {
        TrafficSelector {
            protocol,
            ports,
            ..self
        }
    }

    /// Whether a packet's end falls under it. `port` is 0 for protocols without ports and for
    /// later fragments, which only a selector of all ports covers.
    pub fn matches(&self, address: IpAddr, protocol: u8, port: u16) -> bool {
        self.covers_address(address)
            && (self.protocol == 0 || self.protocol == protocol)
            && self.ports.contains(port)
    }

    /// Whether the address is in the range.
    pub fn covers_address(&self, address: IpAddr) -> bool {
        match (self.first, self.last, address) {
            (IpAddr::V4(first), IpAddr::V4(last), IpAddr::V4(a)) => first <= a && a <= last,
            (IpAddr::V6(first), IpAddr::V6(last), IpAddr::V6(a)) => first <= a && a <= last,
            _ => false,
        }
    }

    /// What both cover, if anything (narrowing, RFC 7296 2.9).
    pub fn intersect(&self, other: &TrafficSelector) -> Option<TrafficSelector> {
        if self.first.is_ipv4() != other.first.is_ipv4() {
            return None;
        }
        let protocol = match (self.protocol, other.protocol) {
            (a, b) if a == b => a,
            (0, b) => b,
            (a, 0) => a,
            _ => return None,
        };
        let both = TrafficSelector {
            first: self.first.max(other.first),
            last: self.last.min(other.last),
            protocol,
            ports: PortRange {
                first: self.ports.first.max(other.ports.first),
                last: self.ports.last.min(other.ports.last),
            },
        };
        (both.first <= both.last && both.ports.first <= both.ports.last).then_some(both)
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)?;
        } else {
            write!(f, "{}-{}", self.first, self.last)?;
        }
        match self.protocol {
            0 => {}
            6 => f.write_str("[tcp")?,
            17 => f.write_str("[udp")?,
            other => write!(f, "[{other}")?,
        }
        if self.protocol != 0 {
            match self.ports {
                PortRange::ANY => f.write_str("]"),
                PortRange { first, last } if first == last => write!(f, "/{first}]"),
                PortRange { first, last } => write!(f, "/{first}-{last}]"),
            }
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> TrafficSelector {
        TrafficSelector::prefix(text.parse().unwrap())
    }

    #[test]
    fn intersection_takes_the_smaller_of_everything() {
        let wide = net("10.0.0.0/8");
        let narrow = net("10.1.0.0/16").with(17, PortRange::one(4789));
        assert_eq!(wide.intersect(&narrow), Some(narrow));
        assert_eq!(narrow.intersect(&wide), Some(narrow));
        assert_eq!(wide.intersect(&net("192.168.0.0/16")), None);
        assert_eq!(wide.intersect(&net("fd00::/8")), None);
        assert_eq!(narrow.intersect(&wide.with(6, PortRange::ANY)), None);
    }

    #[test]
    fn a_selector_with_ports_does_not_cover_portless_packets() {
        let s = net("10.0.0.0/8").with(17, PortRange::one(4789));
        assert!(s.matches("10.2.3.4".parse().unwrap(), 17, 4789));
        assert!(!s.matches("10.2.3.4".parse().unwrap(), 17, 0));
        assert!(!s.matches("10.2.3.4".parse().unwrap(), 6, 4789));
        assert!(!s.matches("fd00::1".parse().unwrap(), 17, 4789));
    }
}
