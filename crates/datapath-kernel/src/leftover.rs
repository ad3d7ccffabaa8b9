//! SAs that an earlier run of the agent left in the kernel. They go on carrying packets until
//! their successors are used; their keys are never read, and none is ever installed again.

use std::collections::{BTreeMap, BTreeSet};

use testudo_model::Spi;
use testudo_netlink::{XfrmSaId, XfrmTemplate};

/// All of them.
#[derive(Default)]
pub(crate) struct Leftovers {
    sas: BTreeMap<XfrmSaId, Leftover>,
}

/// What an SA is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Inbound,
    /// Seals what any CPU sends.
    Outbound,
    /// Seals what one CPU sends.
    OfCpu,
}

impl Kind {
    fn is_outbound(self) -> bool {
        self != Kind::Inbound
    }
}

#[derive(Clone, Copy)]
struct Leftover {
    reqid: u32,
    kind: Kind,
    /// Its removal is a matter of time.
    leaving: bool,
}

impl Leftovers {
    pub(crate) fn add(&mut self, id: XfrmSaId, reqid: u32, kind: Kind) {
        let leftover = Leftover {
            reqid,
            kind,
            leaving: false,
        };
        self.sas.insert(id, leftover);
    }

    pub(crate) fn len(&self) -> usize {
        self.sas.len()
    }

    /// Whether the SA that an outbound policy's template names is one of them. Where a peer has
    /// two of one SPI they may have one key, and neither is used.
    pub(crate) fn has_outbound(&self, template: &XfrmTemplate) -> bool {
        let mut named = self.sas.iter().filter(|(id, sa)| {
            sa.kind.is_outbound() && id.spi == template.spi && sa.reqid == template.reqid
        });
        match (named.next(), named.next()) {
            (Some((id, _)), None) => id.destination == template.destination,
            _ => false,
        }
    }

    /// The SA with which packets may go on that an outbound policy's template speaks of: the one that
    /// it names; of one that names none, the one for all CPUs.
    pub(crate) fn going_on(&self, template: &XfrmTemplate) -> Option<Spi> {
        if template.spi != 0 {
            return self.has_outbound(template).then_some(Spi(template.spi));
        }
        let mut found = self.sas.iter().filter(|(id, sa)| {
            sa.kind == Kind::Outbound
                && sa.reqid == template.reqid
                && id.destination == template.destination
        });
        match (found.next(), found.next()) {
            (Some((id, _)), None) => self
                .has_outbound(&XfrmTemplate {
                    spi: id.spi,
                    ..*template
                })
                .then_some(Spi(id.spi)),
            _ => None,
        }
    }

    /// All that seal, with their request IDs.
    pub(crate) fn outbound(&self) -> impl Iterator<Item = (XfrmSaId, u32)> {
        let outbound = self.sas.iter().filter(|(_, sa)| sa.kind.is_outbound());
        outbound.map(|(id, sa)| (*id, sa.reqid))
    }

    /// Request IDs of those that are not leaving.
    pub(crate) fn reqids(&self) -> BTreeSet<u32> {
        let staying = self.sas.values().filter(|sa| !sa.leaving);
        staying.map(|sa| sa.reqid).collect()
    }

    /// All of a request ID, which are then forgotten.
    pub(crate) fn take(&mut self, reqid: u32) -> Vec<XfrmSaId> {
        let taken: Vec<XfrmSaId> = self
            .sas
            .iter()
            .filter(|(_, sa)| sa.reqid == reqid)
            .map(|(id, _)| *id)
            .collect();
        for id in &taken {
            self.sas.remove(id);
        }
        taken
    }

    /// A successor of this request ID is in use, and the peer's policies name `named` now. The
    /// outbound ones that none of them names, which are forgotten; and, when no outbound one is
    /// left, the inbound ones, which are leaving from now on. Until then the peer may have more than
    /// one child (one for each family) that it sends on as before.
    pub(crate) fn replaced(
        &mut self,
        reqid: u32,
        named: &[XfrmTemplate],
    ) -> (Vec<XfrmSaId>, Vec<XfrmSaId>) {
        let is_named = |id: &XfrmSaId| {
            let mut names = named.iter();
            names.any(|t| (t.destination, t.spi) == (id.destination, id.spi))
        };
        let unnamed = |id: &XfrmSaId, sa: &mut Leftover| {
            sa.reqid == reqid && sa.kind.is_outbound() && !is_named(id)
        };
        let outbound: Vec<XfrmSaId> = self.sas.extract_if(.., unnamed).map(|(id, _)| id).collect();
        let mut rest: Vec<_> = self
            .sas
            .iter_mut()
            .filter(|(_, sa)| sa.reqid == reqid && !sa.leaving)
            .collect();
        if rest.iter().any(|(_, sa)| sa.kind.is_outbound()) {
            return (outbound, Vec::new());
        }
        let inbound = rest.iter_mut().map(|(id, sa)| {
            sa.leaving = true;
            **id
        });
        (outbound, inbound.collect())
    }

    /// It is gone.
    pub(crate) fn forget(&mut self, id: &XfrmSaId) {
        self.sas.remove(id);
    }

    /// All names.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &XfrmSaId> {
        self.sas.keys()
    }
}

#[cfg(test)]
mod tests {
    use testudo_netlink::XfrmMode;

    use super::*;
    use crate::tag::REQID_BASE;

    const REQID: u32 = REQID_BASE | 1;

    fn id(destination: &str, spi: u32) -> XfrmSaId {
        XfrmSaId {
            destination: destination.parse().unwrap(),
            spi,
            mark: (0, 0),
        }
    }

    fn names(sa: XfrmSaId) -> XfrmTemplate {
        XfrmTemplate {
            source: "10.0.0.1".parse().unwrap(),
            destination: sa.destination,
            spi: sa.spi,
            mode: XfrmMode::Tunnel,
            reqid: REQID,
            optional: false,
        }
    }

    #[test]
    fn one_familys_successor_leaves_the_other_familys_sas() {
        let (out4, out6) = (id("10.0.0.2", 4), id("10.0.0.2", 6));
        let (in4, in6) = (id("10.0.0.1", 14), id("10.0.0.1", 16));
        let other = id("10.0.0.3", 7);
        let mut leftovers = Leftovers::default();
        for sa in [out4, out6] {
            leftovers.add(sa, REQID, Kind::Outbound);
        }
        for sa in [in4, in6] {
            leftovers.add(sa, REQID, Kind::Inbound);
        }
        leftovers.add(other, REQID + 1, Kind::Outbound);
        assert!(leftovers.has_outbound(&names(out6)));
        assert!(!leftovers.has_outbound(&names(in6)));
        let new4 = id("10.0.0.2", 40);
        let first = leftovers.replaced(REQID, &[names(new4), names(out6)]);
        assert_eq!(first, (vec![out4], vec![]));
        assert!(leftovers.has_outbound(&names(out6)));
        let new6 = id("10.0.0.2", 60);
        let second = leftovers.replaced(REQID, &[names(new4), names(new6)]);
        assert_eq!(second, (vec![out6], vec![in4, in6]));
        let third = leftovers.replaced(REQID, &[names(new4), names(new6)]);
        assert_eq!(third, (vec![], vec![]));
        // They are known until they are gone, and another peer's stays.
        assert_eq!(leftovers.len(), 3);
        assert_eq!(leftovers.reqids(), [REQID + 1].into());
    }

    #[test]
    fn of_two_outbound_sas_of_one_spi_neither_is_used() {
        let named = |leftovers: &Leftovers, destination: &str| {
            leftovers.has_outbound(&XfrmTemplate {
                source: "10.0.0.1".parse().unwrap(),
                destination: destination.parse().unwrap(),
                spi: 7,
                mode: XfrmMode::Tunnel,
                reqid: 5,
                optional: false,
            })
        };
        let mut leftovers = Leftovers::default();
        leftovers.add(id("10.0.0.2", 7), 5, Kind::Outbound);
        leftovers.add(id("10.0.0.4", 7), 6, Kind::Outbound);
        assert!(named(&leftovers, "10.0.0.2"));
        assert!(!named(&leftovers, "10.0.0.4"), "another peer's");
        leftovers.add(id("10.0.0.3", 7), 5, Kind::Outbound);
        assert!(!named(&leftovers, "10.0.0.2") && !named(&leftovers, "10.0.0.3"));
    }

    #[test]
    fn a_policy_that_left_the_choice_to_cpus_goes_on_with_the_one_for_all() {
        let mut leftovers = Leftovers::default();
        let (all, of_cpu) = (id("10.0.0.2", 7), id("10.0.0.2", 8));
        leftovers.add(of_cpu, REQID, Kind::OfCpu);
        let any = XfrmTemplate {
            spi: 0,
            ..names(all)
        };
        assert_eq!(leftovers.going_on(&any), None, "other CPUs would have none");
        leftovers.add(all, REQID, Kind::Outbound);
        leftovers.add(id("10.0.0.2", 9), REQID + 1, Kind::Outbound);
        assert_eq!(leftovers.going_on(&any), Some(Spi(7)));
        assert_eq!(leftovers.going_on(&names(all)), Some(Spi(7)));
        assert_eq!(leftovers.outbound().count(), 3);
        leftovers.add(id("10.0.0.2", 10), REQID, Kind::Outbound);
        assert_eq!(
            leftovers.going_on(&any),
            None,
            "which one it was is not known"
        );
        // When nothing names the CPU's it goes.
        let (gone, _) = leftovers.replaced(REQID, &[names(id("10.0.0.2", 70))]);
        assert!(gone.contains(&of_cpu) && gone.contains(&all));
    }
}
