//! How full the register of certificates and the revocation lists are. A deleted node stays in both until its
//! certificates end, or until the CA that signed them is replaced: that is done before there is no room.

use testudo_store::Store;

use crate::authority::MOST_IN_A_LIST;
use crate::register::ca_of;
use crate::run::{Controller, seconds};
use crate::safe::Safe;
use crate::steady::Steady;

/// The share of the room at which the CA is replaced: what is left is for the certificates of the next one,
/// which all nodes need while those of before are still known.
const CROWDED: f64 = 0.7;
/// So much of the register's room must become free by it: of nodes that are there nobody can forget anything.
const WORTH: f64 = 0.1;

/// Shares of the room, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fill {
    /// Of the register.
    pub(crate) register: f64,
    /// Of the fullest revocation list, with what finds no room in it.
    pub(crate) list: f64,
    /// Of the list of the CA that signs.
    pub(crate) signer: f64,
    /// What of the register the next CA would free.
    pub(crate) freed: f64,
}

impl Fill {
    /// Why the CA is to be replaced, if it is for want of room.
    fn reason(&self) -> Option<String> {
        let percent = |share: f64| (share * 100.0).floor();
        if self.signer >= CROWDED {
            let text = format!(
                "{} % of the revocation list of the CA that signs is taken",
                percent(self.signer)
            );
            return Some(text);
        }
        (self.register >= CROWDED && self.freed >= WORTH).then(|| {
            format!(
                "{} % of the register of certificates is taken, and {} % would be free \
                 without the CA that signs",
                percent(self.register),
                percent(self.freed)
            )
        })
    }
}

impl<S: Store, K: Safe> Controller<S, K> {
    /// How full it is.
    pub(crate) fn fill(&self) -> Fill {
        let register = &self.kept.register;
        let now = self.steady_now();
        let listed = |ca: &testudo_pki::Ca| {
            let taken = register.revoked_by(ca_of(ca.facts()), now).len();
            taken as f64 / MOST_IN_A_LIST as f64
        };
        let keyed = self.authority.keyed().into_iter();
        Fill {
            register: register.fill(),
            list: keyed.map(listed).fold(0.0, f64::max),
            signer: listed(&self.authority.ca),
            freed: register.freed_without(ca_of(self.authority.ca.facts())),
        }
    }

    /// Why the CA that signs is to be replaced for want of room; `None`: there is enough.
    pub(crate) fn crowded(&self) -> Option<String> {
        self.fill().reason()
    }

    fn steady_now(&self) -> Option<u64> {
        let sure = Steady::is_sure(&self.steady, std::time::Instant::now());
        sure.then(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_of_nodes_that_are_there_is_no_reason_for_another_ca() {
        let fill = |register, freed, signer| Fill {
            register,
            freed,
            signer,
            list: signer,
        };
        for (fill, reason) in [
            (fill(0.69, 0.6, 0.69), None),
            (fill(0.95, 0.05, 0.1), None),
            (fill(0.75, 0.3, 0.1), Some("75 % of the register")),
            (fill(0.3, 0.0, 0.71), Some("71 % of the revocation list")),
        ] {
            let told = fill.reason();
            match reason {
                None => assert_eq!(told, None),
                Some(part) => assert!(told.as_ref().unwrap().contains(part), "{told:?}"),
            }
        }
    }
}
