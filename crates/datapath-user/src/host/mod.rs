//! The host's rules: which packets go to our device, and which are dropped.
//!
//! It needs neither the device nor sockets, so that a node can be closed at boot before anything
//! else is tried. While the device is not there, steered packets fall into a blackhole.
//!
//! What is ours, and the only things touched: routing rules of priority 3899 to 3901 made by
//! protocol 150; routes of protocol 150 in table 50050; the nft table `inet testudo`; `rp_filter`
//! of links that carry node addresses, whose earlier values are kept in the state directory.

mod nft;
mod rules;
mod sysctl;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use testudo_datapath::{DatapathError, Whose};
use testudo_model::{PeerId, ProtectedFlows, TrafficPolicy};
use testudo_netlink::{Family, Netlink, Route, RouteFilter, RouteKind, Rule, RuleAction};

pub(crate) use sysctl::LOOSE;

/// Routing table of steered packets.
pub const TABLE: u32 = 50050;
/// The main table.
const MAIN: u32 = 254;
/// The mark of our rules and routes (rtproto).
pub const PROTOCOL: u8 = 150;
/// Rules that exempt the node's own pods.
pub const PRIORITY_EXEMPT: u32 = 3899;
/// Rules that steer packets to one peer.
pub const PRIORITY_PEER: u32 = 3900;
/// Rules that steer packets to anyone, peer or not.
pub const PRIORITY_ALL: u32 = 3901;

/// The way into the device is preferred to the blackhole.
const METRIC_DEVICE: u32 = 100;
const METRIC_BLACKHOLE: u32 = 4096;

/// Where the host's rules keep what they must remember, and which device they steer to.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The name of the TUN device.
    pub device: String,
    /// A directory that survives restarts of the agent.
    pub state_dir: PathBuf,
    /// The program nft: a name that is looked for in PATH, or a path.
    pub nft: PathBuf,
}

impl HostOptions {
    /// The usual device `testudo0` and nft from PATH.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            device: "testudo0".into(),
            state_dir: state_dir.into(),
            nft: "nft".into(),
        }
    }
}

/// The host's rules of the network namespace of the calling thread.
#[derive(Debug)]
pub struct HostRules {
    options: HostOptions,
}

impl HostRules {
    /// Rules that steer to `options.device`. Touches nothing yet.
    pub fn new(options: HostOptions) -> Self {
        Self { options }
    }

    /// Makes the kernel give the local table a trie of its own, as the first routing rule of a
    /// namespace does: while it happens, IPv4 packets to local addresses may find no route.
    /// It happens once, and should not when steering begins under traffic.
    pub fn split_tables(&self) -> Result<(), DatapathError> {
        let mut netlink = Netlink::open().map_err(refused)?;
        if !our_rules(&mut netlink)?.is_empty() {
            return Ok(());
        }
        // Changes no route: it sends packets to nowhere into the table they are looked up in.
        let nowhere: IpAddr = std::net::Ipv4Addr::UNSPECIFIED.into();
        let rule = Rule {
            to: Some(IpNet::from(nowhere)),
            protocol: PROTOCOL,
            ..Rule::new(Family::V4, PRIORITY_EXEMPT, RuleAction::Table(MAIN))
        };
        match netlink.add_rule(&rule) {
            Err(e) if !e.is_exists() => return Err(refused(e)),
            _ => {}
        }
        gone(netlink.delete_rule(&rule))
    }

    /// Makes the host's rules say what `policy` says.
    ///
    /// Idempotent. New steering stands before drops do, and drops go before old steering does, so
    /// that no change of phase loses a packet. When a step fails the later ones are not done: the
    /// stricter of the old and the new rules holds.
    pub fn apply(&mut self, policy: &TrafficPolicy) -> Result<(), DatapathError> {
        let mut netlink = Netlink::open().map_err(refused)?;
        let wanted = rules::steering(policy);
        if !wanted.is_empty() {
            self.set_routes(&mut netlink, policy)?;
            sysctl::loosen(&mut netlink, &self.options, &policy.addresses)?;
        }
        let standing = our_rules(&mut netlink)?;
        let (have, want): (HashSet<_>, HashSet<_>) =
            (standing.iter().collect(), wanted.iter().collect());
        for rule in wanted.iter().filter(|rule| !have.contains(rule)) {
            match netlink.add_rule(rule) {
                Ok(()) => {}
                Err(e) if e.is_exists() => {}
                Err(e) => return Err(refused(e)),
            }
        }
        nft::apply(&self.options, policy)?;
        for rule in standing.iter().filter(|rule| !want.contains(rule)) {
            gone(netlink.delete_rule(rule))?;
        }
        if wanted.is_empty() {
            delete_routes(&mut netlink)?;
            sysctl::restore(&mut netlink, &self.options)?;
        }
        Ok(())
    }

    /// Removes everything of ours, and nothing else.
    pub fn clear(&mut self) -> Result<(), DatapathError> {
        nft::remove(&self.options)?;
        self.clear_steering()
    }

    /// The same, less the nft table: it is another datapath's by now.
    pub fn clear_steering(&mut self) -> Result<(), DatapathError> {
        let mut netlink = Netlink::open().map_err(refused)?;
        for rule in our_rules(&mut netlink)? {
            gone(netlink.delete_rule(&rule))?;
        }
        delete_routes(&mut netlink)?;
        sysctl::restore(&mut netlink, &self.options)
    }

    /// Packets that the host's rules dropped so far, by reason.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        nft::counters()
    }

    /// Routing rules of ours that stand now.
    pub fn installed(&self) -> Result<usize, DatapathError> {
        let mut netlink = Netlink::open().map_err(refused)?;
        Ok(our_rules(&mut netlink)?.len())
    }

    /// Routing rules of ours that stand now for each peer of `policy`.
    pub fn rules_of_peers(
        &self,
        policy: &TrafficPolicy,
    ) -> Result<BTreeMap<PeerId, u32>, DatapathError> {
        let mut netlink = Netlink::open().map_err(refused)?;
        let whose = Whose::new(policy);
        let rules = our_rules(&mut netlink)?;
        let peers = rules.iter().filter_map(|rule| whose.peer(&rule.to?));
        Ok(Whose::count(peers))
    }

    fn set_routes(
        &self,
        netlink: &mut Netlink,
        policy: &TrafficPolicy,
    ) -> Result<(), DatapathError> {
        let device = netlink
            .link(&self.options.device)
            .map_err(refused)?
            .map(|link| link.index);
        let underlay = Underlay::find(netlink, policy)?;
        let standing = our_routes(netlink)?;
        for family in families() {
            let base = Route {
                table: TABLE,
                protocol: PROTOCOL,
                ..Route::new(Route::default_destination(family))
            };
            let hole_stands = standing.iter().any(|route| {
                route.kind == RouteKind::Blackhole
                    && Family::of(&route.destination.addr()) == family
            });
            if !hole_stands {
                let metric = Some(METRIC_BLACKHOLE);
                let hole = Route {
                    kind: RouteKind::Blackhole,
                    metric,
                    ..base.clone()
                };
                netlink.replace_route(&hole).map_err(refused)?;
            }
            let Some(link) = device else { continue };
            if family == Family::V6 && sysctl::ipv6_is_off(&self.options.device) {
                // The kernel takes no way into the device then; the blackhole stands.
                continue;
            }
            let way = Route {
                link: Some(link),
                metric: Some(METRIC_DEVICE),
                source: underlay.source(family),
                mtu: underlay.mtu,
                ..base
            };
            if !standing.contains(&way) {
                netlink.replace_route(&way).map_err(refused)?;
            }
        }
        Ok(())
    }
}

/// What is known of the links below: under which addresses this node sends into the device, best
/// first, and the MTU of the links with the node's own.
struct Underlay {
    sources: Vec<IpAddr>,
    mtu: Option<u32>,
}

impl Underlay {
    fn find(netlink: &mut Netlink, policy: &TrafficPolicy) -> Result<Self, DatapathError> {
        // Where pods are routed, a host speaks to them under its address among its own pods: an
        // answer to one of the node's addresses would be host traffic, and come back in clear.
        let pods: &[IpNet] = match &policy.flows {
            ProtectedFlows::Routed { local, .. } => local,
            ProtectedFlows::Overlay { .. } => &[],
        };
        let addresses = &policy.addresses;
        let links = netlink.links().map_err(refused)?;
        let mut found = Self {
            sources: Vec::new(),
            mtu: None,
        };
        for own in netlink.addresses().map_err(refused)? {
            if pods.iter().any(|net| net.contains(&own.address.addr())) {
                found.sources.push(own.address.addr());
                continue;
            }
            if !addresses.contains(&own.address.addr()) {
                continue;
            }
            found.sources.push(own.address.addr());
            let mtu = links
                .iter()
                .find(|link| link.index == own.link)
                .map(|link| link.mtu);
            found.mtu = found.mtu.max(mtu);
        }
        // The order of the policy is the order of preference; what it does not name comes first
        // (`None` is the least): an address among the pods.
        let order = |address: &IpAddr| addresses.iter().position(|other| other == address);
        found.sources.sort_by_key(order);
        Ok(found)
    }

    fn source(&self, family: Family) -> Option<IpAddr> {
        self.sources
            .iter()
            .copied()
            .find(|address| Family::of(address) == family)
    }
}

/// The families that this kernel has.
fn families() -> impl Iterator<Item = Family> {
    Family::BOTH
        .into_iter()
        .filter(|family| *family == Family::V4 || sysctl::has_ipv6())
}

fn our_rules(netlink: &mut Netlink) -> Result<Vec<Rule>, DatapathError> {
    let mut found = Vec::new();
    for family in families() {
        found.extend(
            netlink
                .rules(family)
                .map_err(refused)?
                .into_iter()
                .filter(|rule| {
                    rule.protocol == PROTOCOL
                        && (PRIORITY_EXEMPT..=PRIORITY_ALL).contains(&rule.priority)
                }),
        );
    }
    Ok(found)
}

fn our_routes(netlink: &mut Netlink) -> Result<Vec<Route>, DatapathError> {
    let filter = RouteFilter {
        family: None,
        table: Some(TABLE),
        protocol: Some(PROTOCOL),
    };
    netlink.routes(filter).map_err(refused)
}

fn delete_routes(netlink: &mut Netlink) -> Result<(), DatapathError> {
    for route in our_routes(netlink)? {
        // A blackhole is listed with a link in IPv6 but cannot be deleted by it.
        let link = route.link.filter(|_| route.kind == RouteKind::Unicast);
        gone(netlink.delete_route(&Route {
            link,
            mtu: None,
            ..route
        }))?;
    }
    Ok(())
}

fn gone(result: testudo_netlink::Result<()>) -> Result<(), DatapathError> {
    match result {
        Err(e) if !e.is_not_found() => Err(refused(e)),
        _ => Ok(()),
    }
}

pub(crate) fn refused(error: testudo_netlink::Error) -> DatapathError {
    if error.is_not_permitted() {
        return DatapathError::Missing {
            what: format!("the capability CAP_NET_ADMIN is missing ({error})"),
            remedy: "run as root, or give the process CAP_NET_ADMIN".into(),
        };
    }
    DatapathError::Refused {
        operation: "set the host's rules".into(),
        reason: error.to_string(),
    }
}
