//! What nodes show of their certificates: some were given out before there was a register, others were followed
//! up long ago.

use std::collections::BTreeMap;

use testudo_model::{NodeEncryption, node};
use testudo_pki::{Ca, CertificateFacts};
use testudo_store::Store;
use tracing::{info, warn};

use crate::register::{Given, Holder, Register, ca_of, serial_bytes};
use crate::run::{Controller, seconds};
use crate::safe::Safe;

impl<S: Store, K: Safe> Controller<S, K> {
    /// Takes certificates into the register that were given out by an earlier build: those that nodes
    /// show, each by one node, and of CAs that can take them back.
    pub(super) fn adopt(&self, register: &mut Register) {
        let mut shown: BTreeMap<(String, String), Vec<(Holder, u64)>> = BTreeMap::new();
        let (known, keyed) = (register.known(), self.authority.keyed());
        for node in self.world.nodes.objects.values() {
            let Some((certificate, ca, serial)) = shown_by(node, &keyed) else {
                continue;
            };
            let well_formed = serial_bytes(&serial).is_some();
            if !well_formed || known.contains(&(ca_of(ca), serial.as_str())) {
                continue;
            }
            let holder = holder_of(node);
            let end = u64::try_from(certificate.not_after.0).unwrap_or(0);
            let end = end.min(ca.times.not_after);
            let key = (ca_of(ca).to_owned(), serial);
            shown.entry(key).or_default().push((holder, end));
        }
        for ((ca, serial), mut holders) in shown {
            // What two nodes claim may be either's.
            let (Some((holder, not_after)), true) = (holders.pop(), holders.is_empty()) else {
                continue;
            };
            let given = Given {
                ca,
                serial,
                not_after,
                revoked: None,
            };
            if let Err(full) = register.give(holder, given) {
                warn!("a certificate of before is not written down: {full}");
            }
        }
    }

    /// Takes back what nodes that show a later certificate were given long before it.
    pub(super) fn supersede(&self, register: &mut Register) {
        let keyed = self.authority.keyed();
        for node in self.world.nodes.objects.values() {
            let Some((_, ca, serial)) = shown_by(node, &keyed) else {
                continue;
            };
            let holder = holder_of(node);
            let count = register.supersede(&holder, ca_of(ca), &serial, seconds());
            if count > 0 {
                info!(
                    node = holder.name,
                    count, "certificates of before are revoked: the node has asked for many"
                );
            }
        }
    }
}

/// The certificate that a node shows, the one of these CAs that signed it, and its serial number as the register
/// has it.
fn shown_by<'a>(
    node: &'a NodeEncryption,
    cas: &[&'a Ca],
) -> Option<(&'a node::CertificateFacts, &'a CertificateFacts, String)> {
    let shown = node.status.certificate.as_ref()?;
    let mut cas = cas.iter().map(|ca| ca.facts());
    let ca = cas.find(|facts| facts.subject == shown.issuer)?;
    Some((shown, ca, shown.serial.to_ascii_lowercase()))
}

fn holder_of(node: &NodeEncryption) -> Holder {
    Holder {
        name: node.name().to_owned(),
        uid: node.spec.uid.to_string(),
    }
}
