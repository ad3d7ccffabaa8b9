//! Traffic selectors between configuration and wire, and their narrowing (RFC 7296, 2.9).

use std::net::IpAddr;

use testudo_model::{PortRange, TrafficSelector};
use testudo_wire::ike as wire;

fn to_wire_one(ts: &TrafficSelector) -> Option<wire::TrafficSelector> {
    Some(wire::TrafficSelector {
        protocol: ts.protocol,
        ports: wire::PortRange::new(ts.ports.first, ts.ports.last)?,
        addresses: wire::AddressRange::new(ts.first, ts.last)?,
    })
}

fn from_wire_one(ts: &wire::TrafficSelector) -> Option<TrafficSelector> {
    // OPAQUE has no place in a policy of ours: what has no ports is covered by all ports alone.
    if ts.ports.is_opaque() {
        return None;
    }
    Some(TrafficSelector {
        first: ts.addresses.start(),
        last: ts.addresses.end(),
        protocol: ts.protocol,
        ports: PortRange {
            first: ts.ports.start(),
            last: ts.ports.end(),
        },
    })
}

/// For a TSi or TSr payload.
pub(crate) fn to_wire(list: &[TrafficSelector]) -> wire::TrafficSelectors {
    wire::TrafficSelectors::new(list.iter().filter_map(to_wire_one).collect::<Vec<_>>())
}

/// Whether the list can be sent: one to 255 selectors, none reversed or of two families.
pub(crate) fn is_valid(list: &[TrafficSelector]) -> bool {
    (1..=wire::limits::TRAFFIC_SELECTORS).contains(&list.len())
        && list.iter().all(|ts| to_wire_one(ts).is_some())
}

/// What `policy` allows of an offer; empty: TS_UNACCEPTABLE.
pub(crate) fn narrow(
    offer: &wire::TrafficSelectors,
    policy: &[TrafficSelector],
) -> Vec<TrafficSelector> {
    let policy: Vec<_> = policy.iter().filter_map(to_wire_one).collect();
    offer
        .narrow(&policy)
        .iter()
        .filter_map(from_wire_one)
        .collect()
}

/// The answer to our offer, if it lies within it.
pub(crate) fn accept(
    answer: &wire::TrafficSelectors,
    offer: &[TrafficSelector],
) -> Option<Vec<TrafficSelector>> {
    let offer: Vec<_> = offer.iter().filter_map(to_wire_one).collect();
    if !answer.is_subset_of(&offer) {
        return None;
    }
    let list: Vec<_> = answer.selectors.iter().filter_map(from_wire_one).collect();
    (!list.is_empty()).then_some(list)
}

/// Whether each selector of `inner` lies in one of `outer`.
pub(crate) fn covers(outer: &[TrafficSelector], inner: &[TrafficSelector]) -> bool {
    let outer: Vec<_> = outer.iter().filter_map(to_wire_one).collect();
    to_wire(inner).is_subset_of(&outer)
}

/// Whether nothing of an offer was narrowed away.
pub(crate) fn is_whole(offer: &wire::TrafficSelectors, narrowed: &[TrafficSelector]) -> bool {
    let narrowed: Vec<_> = narrowed.iter().filter_map(to_wire_one).collect();
    offer.is_subset_of(&narrowed)
}

/// The selectors of a transport child as the policy knows them, when a NAT changes the address
/// that they name (RFC 7296, 2.23.1). An entry for one address of the family of `seen` gets the
/// policy's own address, where that is one; else `seen`, the address that the IKE SA has.
///
/// That the policy's address goes before `seen` lets a child live on when the NAT gives its host
/// another address; who the host is, its authentication has shown.
pub(crate) fn substitute(
    list: &wire::TrafficSelectors,
    policy: &[TrafficSelector],
    seen: IpAddr,
) -> wire::TrafficSelectors {
    let seen = seen.to_canonical();
    let hosts: Vec<IpAddr> = policy
        .iter()
        .filter(|ts| ts.first == ts.last && ts.first.is_ipv4() == seen.is_ipv4())
        .map(|ts| ts.first)
        .collect();
    let address = hosts.first().copied().unwrap_or(seen);
    with_address(
        list,
        |old| old.is_ipv4() == seen.is_ipv4() && !hosts.contains(&old),
        address,
    )
}

/// The selectors with `address` in every entry for one address that `matches`.
fn with_address(
    list: &wire::TrafficSelectors,
    matches: impl Fn(IpAddr) -> bool,
    address: IpAddr,
) -> wire::TrafficSelectors {
    let change = |ts: &wire::TrafficSelector| match host(ts).filter(|old| matches(*old)) {
        Some(_) => wire::TrafficSelector {
            addresses: wire::AddressRange::single(address),
            ..*ts
        },
        None => *ts,
    };
    wire::TrafficSelectors {
        selectors: list.selectors.iter().map(change).collect(),
        unknown: list.unknown,
    }
}

fn host(ts: &wire::TrafficSelector) -> Option<IpAddr> {
    let (first, last) = (ts.addresses.start(), ts.addresses.end());
    (first == last).then_some(first)
}

/// The one address that a list names in the family of `seen`.
pub(crate) fn only_host(list: &wire::TrafficSelectors, seen: IpAddr) -> Option<IpAddr> {
    let v4 = seen.to_canonical().is_ipv4();
    let mut hosts = list.selectors.iter().filter_map(host);
    hosts.find(|ip| ip.is_ipv4() == v4)
}

/// For the answer: the addresses that the other end gave (RFC 7296, 2.23.1).
pub(crate) fn restore(
    list: &[TrafficSelector],
    original: Option<IpAddr>,
) -> wire::TrafficSelectors {
    let list = to_wire(list);
    match original {
        Some(original) => {
            let same = |old: IpAddr| old.is_ipv4() == original.is_ipv4();
            with_address(&list, same, original)
        }
        None => list,
    }
}
