//! Traffic selectors: sets of packets, and what narrowing makes of them.

use core::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::super::*;
use super::samples::{port_range, selector};

fn v4(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str, length: u8) -> TrafficSelector {
    TrafficSelector::prefix(v4(text), length).unwrap()
}

#[test]
fn prefixes_become_ranges_and_come_back() {
    let range = AddressRange::prefix(v4("10.244.3.7"), 16).unwrap();
    assert_eq!(range.to_string(), "10.244.0.0/16");
    assert_eq!(range.end(), v4("10.244.255.255"));
    for length in 0..=32 {
        let range = AddressRange::prefix(v4("192.0.2.129"), length).unwrap();
        assert_eq!(range.as_prefix(), Some((range.start(), length)));
        assert!(range.contains(v4("192.0.2.129")));
    }
    for length in 0..=128 {
        let range = AddressRange::prefix(v4("fd00::1:8001"), length).unwrap();
        assert_eq!(range.as_prefix(), Some((range.start(), length)));
    }
    assert_eq!(
        AddressRange::prefix(v4("10.0.0.0"), 0),
        Some(AddressRange::ANY_V4)
    );
    assert_eq!(
        AddressRange::prefix(v4("::"), 0),
        Some(AddressRange::ANY_V6)
    );
    assert_eq!(AddressRange::prefix(v4("10.0.0.0"), 33), None);
    assert_eq!(AddressRange::prefix(v4("::"), 129), None);
    let odd = AddressRange::new(v4("10.0.0.1"), v4("10.0.0.2")).unwrap();
    assert_eq!(
        (odd.as_prefix(), odd.to_string().as_str()),
        (None, "10.0.0.1-10.0.0.2")
    );
    assert_eq!(AddressRange::new(v4("10.0.0.2"), v4("10.0.0.1")), None);
    assert_eq!(AddressRange::new(v4("10.0.0.2"), v4("::1")), None);
}

#[test]
fn narrowing_gives_what_both_want() {
    let offer = TrafficSelectors::new([prefix("10.0.0.0", 8), prefix("fd00::", 16)]);
    let policy = [
        prefix("10.244.1.0", 24),
        prefix("10.244.0.0", 16),
        prefix("192.168.0.0", 16),
    ];
    assert_eq!(offer.narrow(&policy), [prefix("10.244.0.0", 16)]);
    assert_eq!(offer.narrow(&[prefix("172.16.0.0", 12)]), []);
    let vxlan = TrafficSelector {
        protocol: 17,
        ports: PortRange::single(4789),
        ..prefix("10.0.0.1", 32)
    };
    assert_eq!(
        TrafficSelectors::new([prefix("10.0.0.1", 32)]).narrow(&[vxlan]),
        [vxlan]
    );
    assert_eq!(vxlan.to_string(), "10.0.0.1/32[17/4789]");
    assert!(vxlan.covers(v4("10.0.0.1"), 17, Some(4789)));
    assert!(!vxlan.covers(v4("10.0.0.1"), 17, Some(4790)));
    assert!(!vxlan.covers(v4("10.0.0.1"), 6, Some(4789)));
    assert!(!vxlan.covers(v4("10.0.0.1"), 17, None));
    assert!(TrafficSelectors::new([vxlan]).is_subset_of(&[prefix("10.0.0.0", 8)]));
    // An answer with a selector of a type that was never offered is no subset.
    let odd = TrafficSelectors {
        unknown: 1,
        ..TrafficSelectors::new([vxlan])
    };
    assert!(!odd.is_subset_of(&[prefix("10.0.0.0", 8)]));
    assert!(!TrafficSelectors::new([]).is_subset_of(&[prefix("10.0.0.0", 8)]));
}

#[test]
fn opaque_ports_are_no_ports() {
    assert!(PortRange::OPAQUE.is_opaque() && !PortRange::OPAQUE.contains(0));
    assert_eq!(
        PortRange::ANY.intersect(PortRange::OPAQUE),
        Some(PortRange::OPAQUE)
    );
    assert_eq!(PortRange::single(1).intersect(PortRange::OPAQUE), None);
    assert!(!PortRange::OPAQUE.contains_range(PortRange::single(1)));
    let opaque = TrafficSelector {
        ports: PortRange::OPAQUE,
        ..TrafficSelector::single(v4("10.0.0.1"))
    };
    assert!(opaque.covers(v4("10.0.0.1"), 17, None));
}

#[test]
fn narrowing_is_bounded() {
    let single = |i: u32| TrafficSelector::single(IpAddr::V4(Ipv4Addr::from_bits(i * 2)));
    let policy: Vec<TrafficSelector> = (0..1000).map(single).collect();
    let offer = TrafficSelectors::new([TrafficSelector::addresses(AddressRange::ANY_V4)]);
    assert_eq!(offer.narrow(&policy).len(), limits::TRAFFIC_SELECTORS);
}

proptest! {
    #[test]
    fn intersection_covers_what_both_cover(
        a in selector(), b in selector(), protocol in any::<u8>(), port in any::<Option<u16>>(), seed in any::<u32>(),
    ) {
        prop_assert_eq!(a.intersect(&b), b.intersect(&a));
        prop_assert!(a.contains(&a));
        let both = a.intersect(&b);
        let mut probes = vec![IpAddr::V4(Ipv4Addr::from_bits(seed))];
        for s in [Some(a), Some(b), both].into_iter().flatten() {
            prop_assert_eq!(a.contains(&s) && b.contains(&s), both.is_some_and(|i| i.contains(&s)));
            probes.extend([s.addresses.start(), s.addresses.end()]);
        }
        for address in probes {
            // OPAQUE is a value of its own: it is kept out of the set comparison of plain ports.
            if a.ports.is_opaque() || b.ports.is_opaque() || port.is_none() { continue; }
            let expected = a.covers(address, protocol, port) && b.covers(address, protocol, port);
            prop_assert_eq!(both.is_some_and(|i| i.covers(address, protocol, port)), expected);
        }
    }

    #[test]
    fn port_ranges_are_sets(a in port_range(), b in port_range(), port in any::<u16>()) {
        let both = a.intersect(b);
        prop_assert_eq!(both, b.intersect(a));
        prop_assert_eq!(both.is_some_and(|r| r.contains(port)), a.contains(port) && b.contains(port));
    }

    #[test]
    fn narrowed_selectors_lie_in_offer_and_policy(
        offer in proptest::collection::vec(selector(), 1..5), policy in proptest::collection::vec(selector(), 0..5),
    ) {
        let offer = TrafficSelectors::new(offer);
        let narrowed = TrafficSelectors::new(offer.narrow(&policy));
        if !narrowed.selectors.is_empty() {
            prop_assert!(narrowed.is_subset_of(&policy));
            prop_assert!(narrowed.is_subset_of(&offer.selectors));
        }
        for (i, s) in narrowed.selectors.iter().enumerate() {
            for (j, other) in narrowed.selectors.iter().enumerate() {
                prop_assert!(i == j || !s.contains(other));
            }
        }
    }
}
