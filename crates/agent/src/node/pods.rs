//! The prefixes of this node's pods, where they are those that its Node names.

use ipnet::IpNet;
use testudo_model::policy::{Mode, OverlayType};

use super::Node;
use crate::reconcile;

impl Node {
    /// Takes up what the Node says. Where that says nothing, what was known last goes on: a word that is gone
    /// opens nothing that was closed.
    pub(super) fn update_pods(&mut self) {
        if !self.options.pods_from_node {
            return;
        }
        let found = match &self.objects.pods {
            Some(Ok(pods)) => pods.clone(),
            _ => self.pods_known_last(),
        };
        if found != self.options.pod_cidrs {
            tracing::info!(old = ?self.options.pod_cidrs, new = ?found, "the prefixes of this node's pods");
            self.options.pod_cidrs = found;
            let datapath = self.host.kind();
            self.news.spec = reconcile::node_spec(&self.options, &self.identity, datapath);
        }
        let problem = match &self.objects.pods {
            Some(Err(why)) if self.is_routed() => match self.options.pod_cidrs.is_empty() {
                true => format!(
                    "{why}; until then this node acknowledges no step, and its pods' packets are not sealed"
                ),
                false => format!("{why}; the prefixes known before stay"),
            },
            _ => {
                self.problems.remove("pods");
                return;
            }
        };
        if self.problems.get("pods") != Some(&problem) {
            tracing::error!("{problem}");
            self.problems.insert("pods", problem);
        }
    }

    /// What this run knew, else what an earlier one has said of this node.
    fn pods_known_last(&self) -> Vec<IpNet> {
        if !self.options.pod_cidrs.is_empty() {
            return self.options.pod_cidrs.clone();
        }
        let own = self.objects.node(self.identity.name.as_str());
        let own = own.filter(|own| own.spec.uid == self.identity.uid);
        own.map_or_else(Vec::new, |own| own.spec.pod_cidrs.clone())
    }

    /// Whether nothing is known of pods that may well be there. To acknowledge a step then would let the
    /// cluster go where it drops their packets.
    pub(super) fn lacks_pods(&self) -> bool {
        self.options.pods_from_node
            && self.options.pod_cidrs.is_empty()
            && !matches!(self.objects.pods, Some(Ok(_)))
            && self.is_routed()
    }

    /// Whether pods' packets are wanted sealed by their own addresses.
    fn is_routed(&self) -> bool {
        let spec = self.objects.policy.as_ref().map(|policy| &policy.spec);
        spec.is_some_and(|spec| spec.mode == Mode::Full && spec.overlay.kind == OverlayType::Routed)
    }
}
