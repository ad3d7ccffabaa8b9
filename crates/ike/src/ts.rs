//! Traffic selectors between configuration and wire, and their narrowing (RFC 7296, 2.9).

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
