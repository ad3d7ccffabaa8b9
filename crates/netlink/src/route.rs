//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::abi;
use crate::message::{Attributes, Message, Request, attributes, read_ip, read_u32};
use crate::{Family, Netlink, Result};

const FIXED: usize = 12;
/// The main table.
const TABLE_MAIN: u32 = 254;

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Send it on.
    Unicast,
    /// Drop it in silence.
    Blackhole,
    /// Drop it and say "unreachable".
    Unreachable,
    /// Drop it and say "prohibited".
    Prohibit,
    /// Go on with the next rule.
    Throw,
    /// Another kind (local, broadcast, …), by its number; only read, never written.
    Other(u8),
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination; a prefix of length 0 is the default route of its family.
    pub destination: IpNet,
    /// What it does.
    pub kind: RouteKind,
    /// The table.
    pub table: u32,
    /// The index of the outgoing link.
    pub link: Option<u32>,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The metric; `None`: the kernel's choice (0 for IPv4, 1024 for IPv6).
    pub metric: Option<u32>,
    /// The MTU along it, in bytes.
    pub mtu: Option<u32>,
    /// Who made it (rtproto).
    pub protocol: u8,
    /// The next hop is on the link although no prefix says so.
    pub onlink: bool,
}

impl Route {
    /// A unicast route in the main table, made by "static" (4).
    pub fn new(destination: IpNet) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            table: TABLE_MAIN,
            link: None,
            via: None,
            source: None,
            metric: None,
            mtu: None,
            protocol: 4,
            onlink: false,
        }
    }

    /// The same, out of a link.
    pub fn dev(destination: IpNet, link: u32) -> Self {
        Self {
            link: Some(link),
            ..Self::new(destination)
        }
    }

    /// The same, by a next hop.
    pub fn via(destination: IpNet, next_hop: IpAddr) -> Self {
        Self {
            via: Some(next_hop),
            ..Self::new(destination)
        }
    }

    /// The default destination of a family.
    pub fn default_destination(family: Family) -> IpNet {
        match family {
            Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }
}

/// Which routes are listed; `None` is any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of that family.
    pub family: Option<Family>,
    /// In that table.
    pub table: Option<u32>,
    /// Made by that protocol.
    pub protocol: Option<u8>,
}

impl Netlink {
    /// Adds a route; one with the same destination, table and metric is an error.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let flags = abi::NLM_F_CREATE | abi::NLM_F_EXCL;
        self.execute(request(abi::RTM_NEWROUTE, flags, route, "add"))
    }

    /// Adds a route, or replaces the one with the same destination, table and metric.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        let flags = abi::NLM_F_CREATE | abi::NLM_F_REPLACE;
        self.execute(request(abi::RTM_NEWROUTE, flags, route, "replace"))
    }

    /// Deletes a route. Its protocol is part of the match: a route that another made stays.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.execute(request(abi::RTM_DELROUTE, 0, route, "delete"))
    }

    /// The routes that match a filter.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            if filter.family.is_some_and(|f| f != family) {
                continue;
            }
            found.extend(self.dump(
                || {
                    let mut fixed = [0; FIXED];
                    fixed[0] = family.raw();
                    Request::new(abi::RTM_GETROUTE, 0, &fixed, "list routes".into())
                },
                parse,
            )?);
        }
        found.retain(|route| {
            filter.table.is_none_or(|t| t == route.table)
                && filter.protocol.is_none_or(|p| p == route.protocol)
        });
        Ok(found)
    }
}

fn request(kind: u16, flags: u16, route: &Route, verb: &str) -> Request {
    let operation = format!(
        "{verb} route {} in table {}",
        route.destination, route.table
    );
    let delete = kind == abi::RTM_DELROUTE;
    let mut fixed = [0; FIXED];
    fixed[0] = Family::of(&route.destination.addr()).raw();
    fixed[1] = route.destination.prefix_len();
    // Tables above 255 are said in the attribute; 0 here means "see there".
    fixed[4] = u8::try_from(route.table).unwrap_or(0);
    fixed[5] = route.protocol;
    fixed[6] = match (delete, route.kind, route.via) {
        (true, ..) => abi::RT_SCOPE_NOWHERE,
        (false, RouteKind::Unicast, None) => abi::RT_SCOPE_LINK,
        _ => abi::RT_SCOPE_UNIVERSE,
    };
    fixed[7] = raw_kind(route.kind);
    if route.onlink {
        fixed[8..12].copy_from_slice(&abi::RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut request = Request::new(kind, flags, &fixed, operation);
    if route.destination.prefix_len() > 0 {
        request.ip(abi::RTA_DST, route.destination.network());
    }
    request.u32(abi::RTA_TABLE, route.table);
    if let Some(via) = route.via {
        request.ip(abi::RTA_GATEWAY, via);
    }
    if let Some(link) = route.link {
        request.u32(abi::RTA_OIF, link);
    }
    if let Some(source) = route.source {
        request.ip(abi::RTA_PREFSRC, source);
    }
    if let Some(metric) = route.metric {
        request.u32(abi::RTA_PRIORITY, metric);
    }
    if let Some(mtu) = route.mtu {
        request.nested(abi::RTA_METRICS, |metrics| {
            metrics.u32(abi::RTAX_MTU, mtu);
        });
    }
    request
}

fn raw_kind(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Unicast => abi::RTN_UNICAST,
        RouteKind::Blackhole => abi::RTN_BLACKHOLE,
        RouteKind::Unreachable => abi::RTN_UNREACHABLE,
        RouteKind::Prohibit => abi::RTN_PROHIBIT,
        RouteKind::Throw => abi::RTN_THROW,
        RouteKind::Other(raw) => raw,
    }
}

fn parse(message: &Message<'_>) -> Option<Route> {
    if message.kind != abi::RTM_NEWROUTE || message.body.len() < FIXED {
        return None;
    }
    let body = message.body;
    let family = Family::from_raw(body[0])?;
    let flags = read_u32(body, 8)?;
    let kind = match body[7] {
        abi::RTN_UNICAST => RouteKind::Unicast,
        abi::RTN_BLACKHOLE => RouteKind::Blackhole,
        abi::RTN_UNREACHABLE => RouteKind::Unreachable,
        abi::RTN_PROHIBIT => RouteKind::Prohibit,
        abi::RTN_THROW => RouteKind::Throw,
        other => RouteKind::Other(other),
    };
    let any = Route::default_destination(family).addr();
    let mut route = Route {
        destination: IpNet::new(any, body[1]).ok()?,
        kind,
        table: u32::from(body[4]),
        protocol: body[5],
        onlink: flags & abi::RTNH_F_ONLINK != 0,
        ..Route::new(Route::default_destination(family))
    };
    for (kind, value) in attributes(body, FIXED) {
        match kind {
            abi::RTA_DST => route.destination = IpNet::new(read_ip(value)?, body[1]).ok()?,
            abi::RTA_TABLE => route.table = read_u32(value, 0)?,
            abi::RTA_OIF => route.link = read_u32(value, 0),
            abi::RTA_GATEWAY => route.via = read_ip(value),
            abi::RTA_PREFSRC => route.source = read_ip(value),
            abi::RTA_PRIORITY => route.metric = read_u32(value, 0),
            abi::RTA_METRICS => {
                route.mtu = Attributes(value)
                    .find(|(k, _)| *k == abi::RTAX_MTU)
                    .and_then(|(_, v)| read_u32(v, 0));
            }
            _ => {}
        }
    }
    Some(route)
}
