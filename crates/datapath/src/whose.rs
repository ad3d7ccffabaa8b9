//! Whose a policy of the host is, by the addresses that it names.

use std::collections::BTreeMap;

use ipnet::IpNet;
use testudo_model::{PeerId, TrafficPolicy};

/// The peers' addresses and prefixes.
#[derive(Debug, Default)]
pub struct Whose<'a>(BTreeMap<IpNet, &'a PeerId>);

impl<'a> Whose<'a> {
    /// Of the peers of a policy. What two of them claim is the first's.
    pub fn new(policy: &'a TrafficPolicy) -> Self {
        let mut all = BTreeMap::new();
        for peer in &policy.peers {
            let hosts = peer.addresses.iter().copied().map(IpNet::from);
            for net in hosts.chain(peer.pod_cidrs.iter().map(IpNet::trunc)) {
                all.entry(net).or_insert(&peer.peer);
            }
        }
        Self(all)
    }

    /// The peer that has exactly this address or prefix.
    pub fn peer(&self, net: &IpNet) -> Option<&'a PeerId> {
        self.0.get(net).copied()
    }

    /// How many there are of each.
    pub fn count(peers: impl IntoIterator<Item = &'a PeerId>) -> BTreeMap<PeerId, u32> {
        let mut counted: BTreeMap<&PeerId, u32> = BTreeMap::new();
        for peer in peers {
            *counted.entry(peer).or_default() += 1;
        }
        let named = counted.into_iter();
        named.map(|(peer, number)| (peer.clone(), number)).collect()
    }
}
