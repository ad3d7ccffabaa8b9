//! The node's certificate: when another is asked for, and how it comes into use.

use testudo_model::Now;
use testudo_model::policy::{Mode, rotation_of};
use testudo_plan::renewal;

use super::Node;

impl Node {
    pub(super) fn update_certificate(&mut self, now: Now) {
        self.certificate_due = None;
        let Some(policy) = &self.objects.policy else {
            return;
        };
        let signer = self.trust.signer();
        if policy.spec.mode == Mode::Disabled && !self.certificates.is_open(signer.as_deref()) {
            return;
        }
        let rotation = rotation_of(policy, self.options.node.as_str());
        let wanted = (rotation, signer.clone());
        if self
            .rotation_seen
            .as_ref()
            .is_none_or(|(seen, _)| *seen != wanted)
        {
            self.rotation_seen = Some((wanted, now.wall));
        }
        let turn = renewal::turn(
            &renewal::Known {
                certificates: &policy.spec.certificates,
                own: &self.own(),
                nodes: &self.objects.nodes,
                rotation_of: &|name| rotation_of(policy, name),
                certificate: self.certificates.facts_by_age().as_ref(),
                certificate_rotation: self.certificates.current().map_or(0, |c| c.rotation),
                signer: signer.as_deref(),
                rotation_seen: self.rotation_seen.as_ref().map_or(now.wall, |(_, at)| *at),
            },
            now.wall,
        );
        let stored = self.objects.request.as_ref().map(|r| (&r.spec, &r.status));
        let outcome =
            self.certificates
                .consider(&turn, rotation, &self.trust.bundle, stored, now.wall);
        self.certificate_due = outcome.again;
        if outcome.ask.is_some() {
            self.news.request = outcome.ask;
        }
        // One that has its answer is wanted no more: whoever cleans up old requests (kube-controller-manager
        // does it after an hour) must not find it made anew, and signed anew.
        if !self.certificates.is_asking() || self.certificates.is_denied() {
            self.news.request = None;
        }
        if outcome.renewed {
            self.has_identity = false;
        }
    }

    /// Gives the engine the certificate in use. Standing SAs are authenticated anew, one after
    /// the other made before the old one goes.
    pub(super) fn update_identity(&mut self, now: Now) {
        if self.has_identity {
            return;
        }
        match self.certificates.local_identity() {
            Ok(Some(identity)) => {
                self.core.engine.set_identity(identity);
                self.has_identity = true;
                if let Some(current) = self.certificates.current() {
                    self.showing.insert(current.facts.issuer.clone());
                }
                self.problems.remove("key");
                let tunnels = &self.core.tunnels;
                let connected = self.peers.keys().filter(|peer| tunnels.connected(peer));
                self.rotation.start(now.monotonic, connected.cloned());
            }
            Ok(None) => {}
            Err(error) => {
                self.problems.insert("key", format!("{error:#}"));
            }
        }
    }

    pub(super) fn update_rotation(&mut self, now: Now) {
        let tunnels = &self.core.tunnels;
        self.rotation.strike(
            |peer| tunnels.authenticated(peer),
            |peer| tunnels.connected(peer),
        );
        let late = self.late_certificates();
        self.rotation.ask(now.monotonic, late);
        for peer in self.rotation.begin(now.monotonic) {
            if let Err(error) = self.core.engine.reauthenticate(&peer, now) {
                tracing::debug!(%peer, "not reauthenticated: {error}");
            }
        }
        if let Some(current) = self.certificates.current()
            && self.has_identity
            && self.rotation.is_done()
        {
            self.rotation_done = current.rotation;
            self.presented = Some(current.facts.issuer.clone());
            self.showing.clear();
        }
    }
}
