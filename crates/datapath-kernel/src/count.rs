//! Counters: of SAs from one listing of the kernel's, of drops from SAs, firewall and kernel.

use std::collections::BTreeMap;

use testudo_datapath::{Counters, DatapathError, Whose};
use testudo_model::{ClearTraffic, PeerId, SaId};
use testudo_netlink::XfrmDirection;

use crate::core::{Core, refused};
use crate::pairs::{counters, drops};
use crate::plan::is_ours;

/// The kernel's counters of XFRM in this namespace, by their names here. Empty where the kernel
/// keeps none (CONFIG_XFRM_STATISTICS).
pub(crate) fn kernel_counters() -> BTreeMap<String, u64> {
    std::fs::read_to_string("/proc/thread-self/net/xfrm_stat")
        .map(|text| parse(&text))
        .unwrap_or_default()
}

fn parse(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        Some((snake_case(name), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// `XfrmInNoStates` as `xfrm_in_no_states`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// What is counted for each SA too.
const TWICE: [&str; 2] = ["xfrm_in_state_proto_error", "xfrm_in_state_seq_error"];

impl Core {
    /// Counters of all SAs and every reason for a drop. `before` is what the kernel's own
    /// counters were at the beginning.
    pub(crate) fn counters(&mut self, before: &BTreeMap<String, u64>) -> Counters {
        let mut all = Counters::default();
        for (reason, number) in &self.past_drops {
            add(&mut all.drops, reason, *number);
        }
        let owners = &self.owners;
        let listed = self.xfrm.sas(|listed| {
            let id = *owners.get(&listed.sa.id)?;
            let SaId { direction, .. } = id;
            Some((id, counters(&listed, direction), drops(&listed)))
        });
        match listed {
            Ok(listed) => {
                for (id, counters, drops) in listed {
                    all.sas.insert(id, counters);
                    for (reason, number) in drops {
                        add(&mut all.drops, reason, number);
                    }
                }
            }
            Err(error) => tracing::warn!("SAs are not counted: {error}"),
        }
        for (reason, now) in kernel_counters() {
            let number = now.saturating_sub(before.get(&reason).copied().unwrap_or(0));
            let to = match TWICE.contains(&reason.as_str()) {
                true => &mut all.notices,
                false => &mut all.drops,
            };
            add(to, &reason, number);
        }
        for (notice, number) in &self.notices {
            add(&mut all.notices, notice, *number);
        }
        add(&mut all.drops, "event_lost", self.events.lost());
        all
    }

    /// Policies of ours that the kernel has for each peer, from one listing.
    pub(crate) fn policies_of_peers(&mut self) -> Result<BTreeMap<PeerId, u32>, DatapathError> {
        let Some(policy) = &self.policy else {
            return Ok(BTreeMap::new());
        };
        let listed = self.xfrm.policies();
        let listed = listed.map_err(|e| refused("list policies", &e))?;
        let bound = self.bound.iter();
        let by_reqid: BTreeMap<u32, &PeerId> = bound
            .filter_map(|peer| Some((self.bindings.reqid(peer)?, peer)))
            .collect();
        let whose = Whose::new(policy);
        let peers = listed.iter().filter(|p| is_ours(p)).filter_map(|listed| {
            let by_reqid = by_reqid.get(&listed.templates.first()?.reqid);
            // One that blocks has no peer's request ID.
            let there = match listed.direction {
                XfrmDirection::Out => &listed.selector.destination,
                XfrmDirection::In | XfrmDirection::Forward => &listed.selector.source,
            };
            by_reqid.copied().or_else(|| whose.peer(there))
        });
        Ok(Whose::count(peers))
    }

    /// Whether there is a firewall whose counters count.
    pub(crate) fn firewall_counts(&self) -> bool {
        let drops_clear = self.policy.as_ref().is_some_and(|policy| {
            policy.clear_inbound == ClearTraffic::Drop
                || policy.clear_outbound == ClearTraffic::Drop
        });
        drops_clear && !self.told_no_nft
    }
}

pub(crate) fn add(to: &mut BTreeMap<String, u64>, reason: &str, number: u64) {
    if number != 0 {
        *to.entry(reason.to_owned()).or_default() += number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_names_become_ours() {
        let text = "XfrmInNoStates          \t5\nXfrmOutPolBlock\t0\nnonsense\n";
        let read: Vec<(String, u64)> = parse(text).into_iter().collect();
        let wanted = [("xfrm_in_no_states", 5), ("xfrm_out_pol_block", 0)];
        assert_eq!(read, wanted.map(|(name, n)| (name.to_owned(), n)));
    }
}
