//! How much the engine holds: for tests that look for what is left behind.

use crate::engine::Engine;
use crate::sa::IkeSa;

impl Engine {
    /// The sizes of all its tables, by name. For tests: what is done and over must leave
    /// nothing.
    #[doc(hidden)]
    pub fn held(&self) -> Vec<(&'static str, usize)> {
        let established = || self.sas.values().filter_map(IkeSa::established);
        let peers = || self.peers.values();
        vec![
            ("sas", self.sas.len()),
            ("spis", self.by_spi.len()),
            ("inits", self.inits.len()),
            ("children", self.children.len()),
            ("child_spis", self.by_spi_in.len()),
            ("half_open", self.half_open_total),
            ("half_open_sources", self.half_open.len()),
            ("timers", self.timers.len()),
            ("events", self.events.len()),
            ("transmits", self.transmits.len()),
            ("peer_sas", peers().map(|p| p.sas.len()).sum()),
            ("attempts", peers().filter(|p| p.attempt.is_some()).count()),
            (
                "peer_children",
                peers()
                    .flat_map(|p| p.children.values())
                    .map(|c| c.len())
                    .sum(),
            ),
            ("sending", peers().map(|p| p.sending.len()).sum()),
            ("retries", peers().map(|p| p.retries.len()).sum()),
            ("tasks", established().map(|e| e.tasks.len()).sum()),
            (
                "requests",
                established().filter(|e| e.outstanding.is_some()).count(),
            ),
            (
                "successors",
                established().map(|e| e.successors.len()).sum(),
            ),
            ("followers", established().map(|e| e.followers.len()).sum()),
            ("held_requests", established().map(|e| e.held.len()).sum()),
            ("fragment_bytes", self.incomplete.cost),
            ("jobs", self.waiting_jobs()),
            (
                "deleted_spis",
                established().map(|e| e.deleted_spis.len()).sum(),
            ),
        ]
    }
}
