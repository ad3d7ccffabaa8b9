//! What the policy, the trust bundle and the host ask of engine and datapath.

use std::collections::BTreeMap;
use std::time::Duration;

use testudo_model::{Now, PeerId};
use testudo_pki::{NodeIdentity, TrustBundle};

use super::Node;
use crate::reconcile;
use crate::verifier::Trust;

impl Node {
    /// Which datapath is wanted may change at any time. The peers' packets wait while their SAs are
    /// made anew; the host stays closed.
    pub(super) fn update_datapath(&mut self, now: Now) {
        let Some(policy) = &self.objects.policy else {
            return;
        };
        let choice = self.options.datapath.unwrap_or(policy.spec.datapath);
        let standing = self.core.datapath.as_ref().map(|datapath| datapath.kind());
        self.host.choose(choice, standing, now);
        match self.host.problem() {
            Some(problem) => self.problems.insert("datapath choice", problem.to_owned()),
            None => self.problems.remove("datapath choice"),
        };
        let kind = self.host.kind();
        kind.clone_into(&mut self.news.spec.datapath);
        if let Some(from) = standing.filter(|standing| *standing != kind) {
            tracing::info!(from, to = kind, "the datapath changes");
            self.remove_peers(&[], now);
            self.core.settle(now);
            self.core.datapath = None;
            self.open = None;
        }
    }

    /// Whose kernels carry packets on while their agents are away.
    pub(super) fn update_kernels(&mut self) {
        let nodes = self.objects.nodes.iter();
        let kernels = nodes.filter(|node| node.spec.datapath == "kernel");
        let names = kernels.filter_map(|node| PeerId::new(node.name()).ok());
        self.core.linger.set_kernels(names.collect());
    }

    pub(super) fn update_trust(&mut self, now: Now) {
        let bundle = match &self.objects.bundle {
            Some(bundle) => match TrustBundle::from_pem(&bundle.spec.certificates) {
                Ok(mut trusted) => {
                    let lists = &bundle.spec.revocation_lists;
                    let refused = trusted.add_revocation_lists_from_pem(lists);
                    match refused.first() {
                        Some(error) => {
                            trusted.keep_revocation_lists(&self.trust.bundle);
                            let text = format!(
                                "{error}; it is left out, and earlier lists go on counting"
                            );
                            self.problems.insert("trust", text);
                        }
                        None => {
                            self.problems.remove("trust");
                        }
                    }
                    trusted
                }
                Err(error) => {
                    self.problems
                        .insert("trust", format!("the trust bundle cannot be read: {error}"));
                    return;
                }
            },
            None => TrustBundle::new(),
        };
        let mut trust = Trust {
            bundle,
            nodes: BTreeMap::new(),
        };
        for node in &self.objects.nodes {
            let identity = NodeIdentity::new(node.name(), node.spec.uid.as_str());
            if let (Ok(peer), Ok(identity)) = (PeerId::new(node.name()), identity) {
                trust.nodes.insert(peer, identity);
            }
        }
        if trust != self.trust {
            self.core.engine.set_verifier(trust.verifier());
            self.core.engine.recheck_peers(now);
            self.core.settle(now);
            let shown = self.core.tunnels.last_issuers();
            let issuers: BTreeMap<PeerId, String> = shown
                .map(|(peer, issuer)| (peer.clone(), issuer.to_owned()))
                .collect();
            self.core.distrust(|peer| {
                let issuer = issuers.get(peer).map(String::as_str);
                trust.judges_anew(peer, issuer, &self.trust)
            });
            self.trust = trust;
        }
    }

    /// The host's addresses may change under it. The peers read ours in the store, and SAs are made
    /// between the new ones before the old ones go.
    pub(super) fn update_addresses(&mut self) {
        if !self.options.follow_addresses {
            return;
        }
        let found = self.host.addresses();
        if found.is_empty() || found == self.options.addresses {
            return;
        }
        if let Some(sockets) = &mut self.core.sockets {
            let port = self.options.ports.ike;
            if let Err(error) = sockets.follow(
                &found,
                &self.options.addresses,
                port,
                self.options.keeper_socket(),
            ) {
                return self.complain("sockets", format!("{error:#}"));
            }
            self.problems.remove("sockets");
        }
        tracing::info!(old = ?self.options.addresses, new = ?found, "this node's addresses are others");
        self.options.addresses = found;
        let datapath = self.host.kind();
        self.news.spec = reconcile::node_spec(&self.options, &self.identity, datapath);
    }

    pub(super) fn update_lifetimes(&mut self) {
        if let Some(policy) = &self.objects.policy {
            let spec = &policy.spec;
            self.core.engine.set_lifetimes(
                spec.ike.lifetime.0,
                spec.esp.lifetime.0,
                reconcile::limits(spec),
            );
            if let Some(datapath) = &mut self.core.datapath {
                datapath.set_hard_lifetime(hard_lifetime(spec.esp.lifetime.0));
            }
        }
    }
}

/// When an SA ends by itself: well after its agent would have replaced it.
pub(super) fn hard_lifetime(life: Duration) -> Duration {
    life + life / 2 + Duration::from_secs(60)
}
