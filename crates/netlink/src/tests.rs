use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::message::{Attributes, Messages};

/// A network namespace of this test alone; it goes with the last descriptor.
pub(crate) fn private_netns() -> Option<OwnedFd> {
    let made = std::thread::spawn(|| {
        // SAFETY: unshare takes an integer; the thread ends right after.
        let code = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        (code == 0).then(|| open_netns("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap();
    if made.is_none() {
        eprintln!("SKIPPED: this test makes a network namespace and needs root (CAP_SYS_ADMIN)");
    }
    made
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn broken_answers_end_and_never_panic() {
    let mut seed = 7u32;
    for len in 0..200 {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Small values make plausible lengths.
                (seed >> 24) as u8 & if seed & 0x100 == 0 { 0x1f } else { 0xff }
            })
            .collect();
        assert!(Messages(&bytes).count() <= 200);
        assert!(Attributes(&bytes).count() <= 200);
    }
}

#[test]
fn links_are_made_changed_moved_and_deleted() {
    let (Some(one), Some(two)) = (private_netns(), private_netns()) else {
        return;
    };
    let mut nl = Netlink::open_in(one.as_fd()).unwrap();
    let mut other = Netlink::open_in(two.as_fd()).unwrap();
    nl.create_bridge("br0").unwrap();
    let br0 = nl.link_index("br0").unwrap();
    nl.create_veth("v0", "v1", Some(two.as_fd())).unwrap();
    let v0 = nl.link_index("v0").unwrap();
    assert!(nl.link("v1").unwrap().is_none());
    let v1 = other.link_index("v1").unwrap();
    nl.set_master(v0, Some(br0)).unwrap();
    nl.set_mtu(v0, 1400).unwrap();
    nl.set_up(v0).unwrap();
    other.rename(v1, "eth0").unwrap();
    let link = nl.link("v0").unwrap().unwrap();
    assert_eq!((link.master, link.mtu, link.up), (Some(br0), 1400, true));
    assert_eq!(link.kind, "veth");
    assert_eq!(other.link("eth0").unwrap().unwrap().index, v1);
    nl.create_veth("d0", "d1", None).unwrap();
    let d0 = nl.link_index("d0").unwrap();
    nl.set_netns(d0, two.as_fd()).unwrap();
    assert!(nl.link("d0").unwrap().is_none());
    assert!(other.link("d0").unwrap().is_some());
    nl.delete_link(v0).unwrap();
    assert!(other.link("eth0").unwrap().is_none());
    assert!(
        nl.links()
            .unwrap()
            .iter()
            .any(|l| l.name == "br0" && l.kind == "bridge")
    );
    let error = nl.create_bridge("br0").unwrap_err();
    assert!(error.is_exists());
    assert!(error.to_string().contains("create link \"br0\""), "{error}");
    assert!(nl.link_index("nosuch").unwrap_err().is_not_found());
    assert!(nl.create_bridge("a name too long for it").is_err());
}

/// Kernels with Geneve stand in the guests: there the labs over Geneve make such links.
#[test]
fn geneve_links_to_several_ends_share_a_port_or_the_kernel_says_it_has_none() {
    let Some(one) = private_netns() else { return };
    let mut nl = Netlink::open_in(one.as_fd()).unwrap();
    for (name, remote) in [
        ("gnv-a", "192.0.2.2"),
        ("gnv-b", "192.0.2.3"),
        ("gnv-c", "2001:db8::2"),
    ] {
        let made = nl.create_link(&NewLink {
            name,
            kind: LinkKind::Geneve(Geneve {
                id: 7,
                remote: ip(remote),
                port: 6081,
            }),
            mtu: Some(1400),
            address: None,
            netns: None,
        });
        match made {
            Ok(()) => {
                let link = nl.link(name).unwrap().unwrap();
                assert_eq!((link.kind.as_str(), link.mtu), ("geneve", 1400));
                nl.set_up(link.index).unwrap();
            }
            Err(error) => {
                assert!(error.is_unsupported(), "{error}");
                assert!(nl.link(name).unwrap().is_none(), "nothing is left");
            }
        }
    }
}

#[test]
fn vxlan_addresses_neighbours_and_forwarding() {
    let Some(one) = private_netns() else { return };
    let mut nl = Netlink::open_in(one.as_fd()).unwrap();
    // A bridge stands in for a dummy, which small kernels lack.
    nl.create_bridge("d0").unwrap();
    let d0 = nl.link_index("d0").unwrap();
    nl.add_address(d0, net("192.0.2.1/24")).unwrap();
    nl.add_address(d0, net("2001:db8::1/64")).unwrap();
    nl.ensure_address(d0, net("192.0.2.1/24")).unwrap();
    nl.set_up(d0).unwrap();
    let addresses = nl.addresses().unwrap();
    assert!(addresses.contains(&Address {
        link: d0,
        address: net("192.0.2.1/24")
    }));
    assert!(addresses.contains(&Address {
        link: d0,
        address: net("2001:db8::1/64")
    }));
    for (name, local, remotes) in [
        ("vx4", "192.0.2.1", ["192.0.2.2", "192.0.2.3"]),
        ("vx6", "2001:db8::1", ["2001:db8::2", "2001:db8::3"]),
    ] {
        let id = if name == "vx4" { 42 } else { 43 };
        let vxlan = Vxlan {
            id,
            port: 4789,
            local: Some(ip(local)),
            device: None,
            learning: false,
        };
        nl.create_vxlan(name, vxlan).unwrap();
        let vx = nl.link_index(name).unwrap();
        for remote in remotes {
            nl.add_fdb(FdbEntry {
                link: vx,
                mac: MacAddress::ZERO,
                remote: ip(remote),
            })
            .unwrap();
        }
        let flooded: Vec<_> = nl
            .fdb()
            .unwrap()
            .into_iter()
            .filter(|e| e.link == vx)
            .collect();
        assert_eq!(flooded.len(), 2);
        nl.delete_fdb(flooded[0]).unwrap();
        assert_eq!(nl.fdb().unwrap().iter().filter(|e| e.link == vx).count(), 1);
        nl.set_up(vx).unwrap();
    }
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    for address in ["192.0.2.9", "2001:db8::9"] {
        nl.set_neighbour(d0, ip(address), mac).unwrap();
        let listed = nl.neighbours().unwrap();
        let found = listed.iter().find(|n| n.address == ip(address)).unwrap();
        assert_eq!((found.mac, found.permanent), (Some(mac), true));
        nl.delete_neighbour(d0, ip(address)).unwrap();
    }
    nl.delete_address(d0, net("192.0.2.1/24")).unwrap();
    assert!(
        nl.delete_address(d0, net("192.0.2.1/24"))
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn routes_and_rules_come_back_as_they_were_written() {
    let Some(one) = private_netns() else { return };
    let mut nl = Netlink::open_in(one.as_fd()).unwrap();
    // A bridge stands in for a dummy, which small kernels lack.
    nl.create_bridge("d0").unwrap();
    let d0 = nl.link_index("d0").unwrap();
    nl.add_address(d0, net("192.0.2.1/24")).unwrap();
    nl.add_address(d0, net("2001:db8::1/64")).unwrap();
    nl.set_up(d0).unwrap();
    let table = RouteFilter {
        table: Some(50050),
        ..RouteFilter::default()
    };
    let base = |family| Route {
        table: 50050,
        protocol: 150,
        ..Route::new(Route::default_destination(family))
    };
    for family in Family::BOTH {
        let tun = Route {
            link: Some(d0),
            metric: Some(10),
            mtu: Some(1400),
            ..base(family)
        };
        let hole = Route {
            kind: RouteKind::Blackhole,
            metric: Some(1000),
            ..base(family)
        };
        nl.add_route(&hole).unwrap();
        nl.replace_route(&tun).unwrap();
        nl.replace_route(&tun).unwrap();
        let found = nl
            .routes(RouteFilter {
                family: Some(family),
                ..table
            })
            .unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&tun));
        assert!(
            found
                .iter()
                .any(|r| r.kind == RouteKind::Blackhole && r.metric == Some(1000))
        );
        nl.delete_route(&Route {
            protocol: 151,
            ..hole.clone()
        })
        .unwrap_err();
        nl.delete_route(&hole).unwrap();
        nl.delete_route(&tun).unwrap();
    }
    assert!(nl.routes(table).unwrap().is_empty());
    nl.add_route(&Route::via(net("198.51.100.0/24"), ip("192.0.2.2")))
        .unwrap();
    nl.add_route(&Route::via(net("2001:db8:1::/64"), ip("2001:db8::2")))
        .unwrap();

    for (family, to, from) in [
        (Family::V4, "192.0.2.0/24", "198.51.100.7/32"),
        (Family::V6, "2001:db8::/64", "2001:db8:1::7/128"),
    ] {
        let mut rule = Rule::new(family, 3900, RuleAction::Table(50050));
        rule.to = Some(net(to));
        rule.from = Some(net(from));
        rule.ip_protocol = Some(17);
        rule.destination_ports = Some((4789, 4789));
        rule.iif = Some("lo".into());
        rule.mark = Some((0xe0, 0xff));
        rule.protocol = 150;
        nl.add_rule(&rule).unwrap();
        assert!(nl.add_rule(&rule).unwrap_err().is_exists());
        assert!(nl.rules(family).unwrap().contains(&rule));
        let drop = Rule {
            protocol: 150,
            ..Rule::new(family, 3901, RuleAction::Blackhole)
        };
        nl.add_rule(&drop).unwrap();
        assert!(nl.rules(family).unwrap().contains(&drop));
        nl.delete_rule(&drop).unwrap();
        nl.delete_rule(&rule).unwrap();
        assert!(nl.delete_rule(&rule).unwrap_err().is_not_found());
    }
}
