//! A wish is fulfilled: datapath and sockets opened, the policy in force, peers before and after.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use testudo_model::{Now, TrafficPolicy};

use super::settings::hard_lifetime;
use super::{InForce, Node, OPEN_RETRY, later};
use crate::enforcement::no_laxer;
use crate::reconcile::Wish;
use crate::sockets::Sockets;

/// The host is told its policy again after so long, at the next update: another program may have
/// taken our rules away (`nft flush ruleset`, a restarted firewall).
const RETELL: Duration = Duration::from_secs(5);

impl Node {
    pub(super) fn fulfil(&mut self, wish: Wish, now: Now) {
        let Wish { plan, problems } = wish;
        match problems.is_empty() {
            false => self.problems.insert("policy", problems.join("; ")),
            true => self.problems.remove("policy"),
        };
        let Some(plan) = plan else { return };
        let traffic = self.hold(plan.traffic.clone());
        let held = traffic != plan.traffic;
        let done = match &traffic {
            None => self.disable(now),
            Some(traffic) => {
                // New peers first, then packets; old peers last: what is to be sealed for a peer
                // must not lose its SAs before it is dropped or clear.
                let open = self.ensure_open(now);
                if open && self.has_identity {
                    self.add_peers(&plan.peers, now);
                    // Peers compute while the host is told.
                    self.core.settle(now);
                }
                let applied = self.enforce(traffic, now);
                if open && applied {
                    self.remove_peers(&plan.peers, now);
                }
                if open {
                    self.call_peers(now);
                }
                open && applied
            }
        };
        if done
            && !held
            && !self.lacks_pods()
            && let Some(acknowledge) = plan.acknowledge
            && self.acknowledged != Some(acknowledge)
        {
            tracing::info!(
                phase = %acknowledge.phase,
                rollout = acknowledge.rollout,
                "the phase is in force"
            );
            self.acknowledged = Some(acknowledge);
        }
        self.waiting = plan.waiting;
    }

    /// What an earlier run left may be late news: while it stands in for the store, nothing is opened
    /// that was closed before.
    fn hold(&self, wanted: Option<TrafficPolicy>) -> Option<TrafficPolicy> {
        let Some(before) = self.previous().filter(|_| !self.objects.is_synced()) else {
            return wanted;
        };
        match wanted {
            Some(wanted) => Some(no_laxer(before, &wanted)),
            None => Some(before.clone()),
        }
    }

    /// Nothing of ours stays in the way. Works without a TUN: what an earlier agent left goes.
    fn disable(&mut self, now: Now) -> bool {
        if self.in_force == Some(InForce::Nothing) {
            return true;
        }
        self.open = None;
        self.enforcing = None;
        self.remove_peers(&[], now);
        self.core.settle(now);
        let host = &mut self.host;
        let datapath = &mut self.core.datapath;
        let cleared = self.enforcement.change(None, || {
            if let Some(datapath) = datapath {
                datapath.clear().context("clearing the datapath")?;
            }
            host.clear().context("clearing the host's rules")
        });
        match cleared {
            Ok(()) => {
                self.core.datapath = None;
                self.core.sockets = None;
                self.in_force = Some(InForce::Nothing);
                for part in ["datapath", "sockets", "traffic"] {
                    self.problems.remove(part);
                }
                true
            }
            Err(error) => {
                self.complain("traffic", format!("{error:#}"));
                false
            }
        }
    }

    /// Opens sockets and datapath; what cannot be opened is tried again, later each time, while
    /// the host stays closed.
    fn ensure_open(&mut self, now: Now) -> bool {
        if self.is_open() {
            return true;
        }
        if self.open.is_some_and(|retry| now.monotonic < retry.due) {
            return false;
        }
        if self.core.sockets.is_none() {
            match Sockets::open(
                &self.options.addresses,
                self.options.ports.ike,
                self.options.keeper_socket(),
            ) {
                Ok(sockets) => {
                    self.core.sockets = Some(sockets);
                    self.problems.remove("sockets");
                }
                Err(error) => self.complain("sockets", format!("{error:#}")),
            }
        }
        if self.core.datapath.is_none() {
            match self.host.open(Arc::clone(&self.bell)) {
                Ok(mut datapath) => {
                    if let Some(policy) = &self.objects.policy {
                        let life = policy.spec.esp.lifetime.0;
                        datapath.set_hard_lifetime(hard_lifetime(life));
                    }
                    datapath.kind().clone_into(&mut self.news.spec.datapath);
                    self.core.datapath = Some(datapath);
                    // The rules are told again: they may have a device to point to now.
                    self.in_force = None;
                    self.enforcing = None;
                    self.problems.remove("datapath");
                }
                Err(error) => self.complain("datapath", error.to_string()),
            }
        }
        let open = self.is_open();
        self.open = match open {
            true => None,
            false => Some(later(self.open, OPEN_RETRY, now)),
        };
        open
    }

    pub(super) fn is_open(&self) -> bool {
        self.core.datapath.is_some() && self.core.sockets.is_some()
    }

    /// Has the host and the datapath say what `traffic` says. Whether they do now.
    fn enforce(&mut self, traffic: &TrafficPolicy, now: Now) -> bool {
        let wanted = match self.core.datapath {
            Some(_) => InForce::Full(traffic.clone()),
            None => InForce::Closed(traffic.clone()),
        };
        let stands = self.in_force.as_ref() == Some(&wanted);
        let fresh = now.monotonic.since(self.told) < RETELL;
        match &self.enforcing {
            None if fresh && stands => return true,
            Some(begun) if begun == traffic && !self.rung => return stands,
            _ => self.rung = false,
        }
        let host = &mut self.host;
        let datapath = &mut self.core.datapath;
        let mut goes_on = false;
        let applied = self.enforcement.change(Some(traffic), || match datapath {
            Some(datapath) => {
                let set = datapath.begin_traffic(traffic);
                if let Ok(false) = set {
                    goes_on = true;
                    bail!("the policy is not in force yet");
                }
                // One flow that is not as it should be is no reason to leave all to the rules of a
                // datapath that is not there.
                if let Ok(_) | Err(testudo_datapath::DatapathError::Partly { .. }) = set {
                    host.settled()
                        .context("clearing what another datapath left")?;
                }
                set.map(|_| ()).context("setting the traffic policy")
            }
            None => host.close(traffic).context("closing the host"),
        });
        self.enforcing = goes_on.then(|| traffic.clone());
        if goes_on {
            return stands;
        }
        match applied {
            Ok(()) => {
                self.in_force = Some(wanted);
                self.told = now.monotonic;
                self.problems.remove("traffic");
                true
            }
            Err(error) => {
                self.complain("traffic", format!("{error:#}"));
                false
            }
        }
    }
}
