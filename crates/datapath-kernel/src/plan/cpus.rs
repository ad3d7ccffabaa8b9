//! Outbound SAs for single CPUs (RFC 9611), beside the one for all.
//!
//! A template that names no SPI leaves it to the kernel which of the SAs of a request ID and
//! destination a packet gets: one of the CPU that sends it, else one for all CPUs; of several the
//! newest, or the one that it remembers. So SPIs are left out only while it has no choice: every
//! such SA that stands is in use and may carry the flow, one of them is for all CPUs, and no CPU
//! has two. From before an SA is installed until it is used, and from when it is not used any more
//! until it is gone, policies name the SA for all CPUs, which carries everything meanwhile.
//!
//! Which SA a packet leaves on is thus said by policies alone, as without such SAs, and each change
//! is the replacement of a policy, with which the kernel forgets what it remembers.

use std::collections::BTreeSet;

use testudo_model::PeerId;
use testudo_netlink::{XfrmSaId, XfrmSelector};

use super::bindings::{Bindings, InUse};

impl Bindings {
    /// An outbound SA of the peer stands, or is about to, and is not in use yet.
    ///
    /// The peer must have been bound; one that is in use stays so.
    pub fn stands(&mut self, peer: &PeerId, id: XfrmSaId) {
        if let Some(binding) = self.peers.get_mut(peer)
            && !binding.in_use.iter().any(|child| child.id() == id)
        {
            binding.idle.insert(id);
        }
    }

    /// An SA does not stand any more. `Some`: the peer that had it idle, whose policies may name no
    /// SPI from now on.
    pub fn gone(&mut self, id: &XfrmSaId) -> Option<PeerId> {
        let mut all = self.peers.iter_mut();
        let (peer, binding) = all.find(|(_, binding)| binding.idle.contains(id))?;
        binding.idle.remove(id);
        let waited = binding.in_use.iter().any(|child| child.cpu.is_some());
        waited.then(|| peer.clone())
    }

    /// Whether a peer has SAs for single CPUs in use.
    pub fn has_cpus(&self, peer: &PeerId) -> bool {
        let binding = self.peers.get(peer);
        binding.is_some_and(|binding| binding.in_use.iter().any(|child| child.cpu.is_some()))
    }

    /// Whether the flow that `all` carries for all CPUs may be left to the SAs of the CPUs that have
    /// one.
    pub(super) fn is_spread(&self, peer: &PeerId, all: &InUse, flow: &XfrmSelector) -> bool {
        let Some(binding) = self.peers.get(peer) else {
            return false;
        };
        let idle = |id: &XfrmSaId| id.destination == all.ends.1;
        if binding.idle.iter().any(idle) {
            return false;
        }
        let mut cpus = BTreeSet::new();
        let mut found = binding
            .in_use
            .iter()
            .filter(|child| child.mode == all.mode && child.ends == all.ends);
        found.all(|child| child.covers(flow) && cpus.insert(child.cpu)) && cpus.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use testudo_model::{
        ClearTraffic, Outbound, PeerTraffic, PortRange, ProtectedFlows, SaMode, Spi, TrafficPolicy,
        TrafficSelector,
    };
    use testudo_netlink::{XfrmAction, XfrmDirection, XfrmTemplate};

    use super::super::desired;
    use super::*;

    fn name() -> PeerId {
        PeerId::new("n2").unwrap()
    }

    fn in_use(spi: u32, cpu: Option<u32>, v6: bool) -> InUse {
        let ends = match v6 {
            false => ("10.0.0.1", "10.0.0.2"),
            true => ("fd00::1", "fd00::2"),
        };
        let ends = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
        let udp = |ip| TrafficSelector::host(ip).with(17, PortRange::ANY);
        InUse {
            spi: Spi(spi),
            cpu,
            mode: SaMode::Transport,
            ends,
            local: vec![udp(ends.0)],
            remote: vec![udp(ends.1)],
        }
    }

    fn policy() -> TrafficPolicy {
        let ips = |texts: [&str; 2]| texts.map(|ip| ip.parse().unwrap()).to_vec();
        TrafficPolicy {
            addresses: ips(["10.0.0.1", "fd00::1"]),
            flows: ProtectedFlows::Overlay { port: 6081 },
            clear_inbound: ClearTraffic::Drop,
            clear_outbound: ClearTraffic::Drop,
            peers: vec![PeerTraffic {
                peer: name(),
                addresses: ips(["10.0.0.2", "fd00::2"]),
                pod_cidrs: Vec::new(),
                outbound: Outbound::Encrypt,
            }],
        }
    }

    /// What the peer's outbound policy says of the SPI: `None` where it blocks, 0: none is named.
    fn named(bindings: &Bindings, v6: bool) -> Option<u32> {
        let all = desired(&policy(), bindings, true);
        let mut out = all.into_iter().filter(|p| {
            p.direction == XfrmDirection::Out
                && p.selector.destination.prefix_len() > 0
                && p.selector.destination.addr().is_ipv6() == v6
                && p.selector.destination.addr() == in_use(1, None, v6).ends.1
        });
        let found = out.next().unwrap();
        (found.action == XfrmAction::Allow).then(|| found.templates[0].spi)
    }

    fn bound() -> Bindings {
        let mut bindings = Bindings::default();
        bindings.bind(&name()).unwrap();
        bindings
    }

    fn used(bindings: &mut Bindings, child: InUse) {
        bindings.stands(&name(), child.id());
        bindings.use_outbound(&name(), child);
    }

    #[test]
    fn an_spi_is_named_while_one_that_stands_is_not_in_use() {
        let mut bindings = bound();
        used(&mut bindings, in_use(1, None, false));
        assert_eq!(
            named(&bindings, false),
            Some(1),
            "there is nothing to choose"
        );
        let first = in_use(10, Some(0), false);
        bindings.stands(&name(), first.id());
        assert_eq!(named(&bindings, false), Some(1));
        bindings.use_outbound(&name(), first.clone());
        assert_eq!(named(&bindings, false), Some(0));
        used(&mut bindings, in_use(11, Some(1), false));
        assert_eq!(named(&bindings, false), Some(0));
        // A successor, as long as the one before stands, in use or not.
        used(&mut bindings, in_use(20, Some(0), false));
        assert_eq!(named(&bindings, false), Some(1), "a CPU has two");
        bindings.stop_using(&name(), Spi(10));
        assert_eq!(named(&bindings, false), Some(1), "the old one stands");
        assert_eq!(bindings.gone(&first.id()), Some(name()));
        assert_eq!(bindings.gone(&first.id()), None);
        assert_eq!(named(&bindings, false), Some(0));
    }

    #[test]
    fn the_one_for_all_cpus_is_replaced_as_others_are() {
        let mut bindings = bound();
        used(&mut bindings, in_use(1, None, false));
        used(&mut bindings, in_use(10, Some(0), false));
        used(&mut bindings, in_use(2, None, false));
        assert_eq!(named(&bindings, false), Some(2), "the newer of two");
        bindings.stop_using(&name(), Spi(1));
        bindings.gone(&in_use(1, None, false).id());
        assert_eq!(named(&bindings, false), Some(0));
        // Without one there is nothing for the other CPUs, and nobody may ask the kernel for one.
        bindings.stop_using(&name(), Spi(2));
        assert_eq!(named(&bindings, false), None);
        bindings.gone(&in_use(2, None, false).id());
        assert_eq!(named(&bindings, false), None);
    }

    #[test]
    fn families_and_ends_are_apart() {
        let mut bindings = bound();
        for v6 in [false, true] {
            used(&mut bindings, in_use(1, None, v6));
            used(&mut bindings, in_use(10, Some(0), v6));
        }
        // The SPIs are those of two peers' kernels: the same number may come twice.
        bindings.stands(&name(), in_use(30, None, true).id());
        assert_eq!(named(&bindings, true), Some(1));
    }

    #[test]
    fn an_sa_that_may_not_carry_the_flow_keeps_spis_named() {
        let mut bindings = bound();
        used(&mut bindings, in_use(1, None, false));
        let mut narrow = in_use(10, Some(0), false);
        narrow.remote[0].ports = PortRange { first: 1, last: 2 };
        used(&mut bindings, narrow);
        assert_eq!(named(&bindings, false), Some(1));
    }

    #[test]
    fn after_a_restart_the_one_for_all_cpus_goes_on_alone() {
        let mut before = bound();
        used(&mut before, in_use(1, None, false));
        used(&mut before, in_use(10, Some(0), false));
        let have = desired(&policy(), &before, true);
        let mut bindings = Bindings::default();
        let found = |t: &XfrmTemplate| (t.spi == 0 && t.destination.is_ipv4()).then_some(Spi(1));
        bindings.adopt(&policy(), &have, found);
        bindings.stands(&name(), in_use(1, None, false).id());
        bindings.stands(&name(), in_use(10, Some(0), false).id());
        assert_eq!(named(&bindings, false), Some(1));
        assert_eq!(bindings.reqid(&name()), before.reqid(&name()));
    }
}
