//! Which CAs this node trusts, shows and relies on, as it says to the controller that leads a rotation
//! of the CA.

use testudo_model::{Authorities, PeerId};

use crate::node::Node;

impl Node {
    /// What stands now.
    pub(crate) fn authorities(&self) -> Authorities {
        Authorities {
            trusted: self.trust.names(),
            presented: self.presented.clone(),
            showing: self.showing.iter().cloned().collect(),
            peers: self.core.tunnels.issuers(),
            asking: self.certificates.is_asking(),
        }
    }

    /// Connected peers that say that all have seen their certificate of the CA that signs, while the
    /// one that they showed us last is of another. As a rule there is none: an exchange that a peer had
    /// begun with the old certificate ended when it had the new one.
    pub(crate) fn late_certificates(&self) -> Vec<PeerId> {
        let Some(signer) = self.trust.signer() else {
            return Vec::new();
        };
        let shown = self.core.tunnels.last_issuers();
        let late = shown.filter(|(peer, issuer)| {
            let says = || {
                let node = self.objects.node(peer.as_str())?;
                node.status.authorities.presented.as_ref()
            };
            *issuer != signer && says() == Some(&signer) && self.core.tunnels.connected(peer)
        });
        late.map(|(peer, _)| peer.clone()).collect()
    }
}
