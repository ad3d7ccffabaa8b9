//! SAs that an earlier run of the agent left in the kernel. They go on carrying packets until
//! their successors are used; their keys are never read, and none is ever installed again.

use std::collections::{BTreeMap, BTreeSet};

use testudo_netlink::{XfrmSaId, XfrmTemplate};

/// All of them.
#[derive(Default)]
pub(crate) struct Leftovers {
    sas: BTreeMap<XfrmSaId, Leftover>,
}

#[derive(Clone, Copy)]
struct Leftover {
    reqid: u32,
    outbound: bool,
    /// Its removal is a matter of time.
    leaving: bool,
}

impl Leftovers {
    pub(crate) fn add(&mut self, id: XfrmSaId, reqid: u32, outbound: bool) {
        let leftover = Leftover {
            reqid,
            outbound,
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
        let mut named = self
            .sas
            .iter()
            .filter(|(id, sa)| sa.outbound && id.spi == template.spi && sa.reqid == template.reqid);
        match (named.next(), named.next()) {
            (Some((id, _)), None) => id.destination == template.destination,
            _ => false,
        }
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

    /// A successor of this request ID is in use: the outbound ones, which are forgotten, and the
    /// inbound ones, which are leaving from now on.
    pub(crate) fn replaced(&mut self, reqid: u32) -> (Vec<XfrmSaId>, Vec<XfrmSaId>) {
        let (mut outbound, mut inbound) = (Vec::new(), Vec::new());
        for (id, sa) in self.sas.iter_mut().filter(|(_, sa)| sa.reqid == reqid) {
            match (sa.outbound, sa.leaving) {
                (true, _) => outbound.push(*id),
                (false, false) => {
                    sa.leaving = true;
                    inbound.push(*id);
                }
                (false, true) => {}
            }
        }
        for id in &outbound {
            self.sas.remove(id);
        }
        (outbound, inbound)
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
    use super::*;

    #[test]
    fn of_two_outbound_sas_of_one_spi_neither_is_used() {
        let id = |destination: &str| XfrmSaId {
            destination: destination.parse().unwrap(),
            spi: 7,
            mark: (0, 0),
        };
        let named = |leftovers: &Leftovers, destination: &str| {
            leftovers.has_outbound(&XfrmTemplate {
                source: "10.0.0.1".parse().unwrap(),
                destination: destination.parse().unwrap(),
                spi: 7,
                mode: testudo_netlink::XfrmMode::Tunnel,
                reqid: 5,
                optional: false,
            })
        };
        let mut leftovers = Leftovers::default();
        leftovers.add(id("10.0.0.2"), 5, true);
        leftovers.add(id("10.0.0.4"), 6, true);
        assert!(named(&leftovers, "10.0.0.2"));
        assert!(!named(&leftovers, "10.0.0.4"), "another peer's");
        leftovers.add(id("10.0.0.3"), 5, true);
        assert!(!named(&leftovers, "10.0.0.2") && !named(&leftovers, "10.0.0.3"));
    }
}
