//! The last traffic policy, kept on disk so that a node that starts closes itself first.
//!
//! The file is never weaker than what is in force: what tightens is written before it is
//! applied, what loosens after. A crash at any point leaves the stricter of the two.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testudo_model::{ClearTraffic, Outbound, PeerId, PeerTraffic, ProtectedFlows, TrafficPolicy};

use crate::files;

const FILE: &str = "traffic.json";

/// Where a policy is kept. A test counts and breaks the steps.
pub(crate) trait Keep {
    /// Keeps `policy` instead of the one before.
    fn write(&mut self, policy: &TrafficPolicy) -> Result<()>;
    /// Forgets it.
    fn remove(&mut self) -> Result<()>;
}

/// The policy file of a state directory.
pub(crate) struct PolicyFile {
    path: PathBuf,
}

impl PolicyFile {
    pub(crate) fn new(state_dir: &Path) -> PolicyFile {
        PolicyFile {
            path: state_dir.join(FILE),
        }
    }

    /// The policy that was in force when the agent last ran; none if traffic was not touched.
    pub(crate) fn load(&self) -> Result<Option<TrafficPolicy>> {
        let Some(bytes) = files::read_optional(&self.path)? else {
            return Ok(None);
        };
        let policy = serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: it is not a traffic policy", self.path.display()))?;
        Ok(Some(policy))
    }
}

impl Keep for PolicyFile {
    fn write(&mut self, policy: &TrafficPolicy) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(policy).context("writing the traffic policy")?;
        files::write_private(&self.path, &bytes)
    }

    fn remove(&mut self) -> Result<()> {
        files::remove(&self.path)
    }
}

/// Keeps the file and the host in step. `kept` is what the file says.
pub(crate) struct Enforcement<K> {
    keep: K,
    kept: Option<TrafficPolicy>,
    known: bool,
}

impl<K: Keep> Enforcement<K> {
    pub(crate) fn new(keep: K, kept: Option<TrafficPolicy>) -> Enforcement<K> {
        Enforcement {
            keep,
            kept,
            known: true,
        }
    }

    /// The file is there and cannot be read: what is in force is known again with the first change.
    pub(crate) fn of_unknown(keep: K) -> Enforcement<K> {
        Enforcement {
            keep,
            kept: None,
            known: false,
        }
    }

    /// Whether it is known what is in force.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// What the file says.
    pub(crate) fn kept(&self) -> Option<&TrafficPolicy> {
        self.kept.as_ref()
    }

    /// Moves to `new`; `apply` changes the host. None: nothing of ours stands in the way.
    pub(crate) fn change(
        &mut self,
        new: Option<&TrafficPolicy>,
        apply: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if let Some(new) = new {
            let both = match &self.kept {
                Some(old) => strictest(old, new),
                None => new.clone(),
            };
            self.write(both)?;
        }
        apply()?;
        self.known = true;
        match new {
            Some(new) => self.write(new.clone()),
            None => {
                self.keep.remove()?;
                self.kept = None;
                Ok(())
            }
        }
    }

    fn write(&mut self, policy: TrafficPolicy) -> Result<()> {
        if self.kept.as_ref() != Some(&policy) {
            self.keep.write(&policy)?;
            self.kept = Some(policy);
        }
        Ok(())
    }
}

/// A policy that lets pass only what both let pass. Two policies about different flows cannot be
/// joined: the one that drops wins, the new one between equals.
fn strictest(old: &TrafficPolicy, new: &TrafficPolicy) -> TrafficPolicy {
    joined(old, new).unwrap_or_else(|| match drops(old) && !drops(new) {
        true => old.clone(),
        false => new.clone(),
    })
}

/// What holds for one who knows `new` to be late news maybe: nothing passes that `old`, which was in
/// force, stops.
pub(crate) fn no_laxer(old: &TrafficPolicy, new: &TrafficPolicy) -> TrafficPolicy {
    joined(old, new).unwrap_or_else(|| old.clone())
}

/// A policy that lets pass only what both let pass; none where they are about different flows.
fn joined(old: &TrafficPolicy, new: &TrafficPolicy) -> Option<TrafficPolicy> {
    let flows = match (&old.flows, &new.flows) {
        (ProtectedFlows::Overlay { port: a }, ProtectedFlows::Overlay { port: b }) if a == b => {
            new.flows.clone()
        }
        (
            ProtectedFlows::Routed { cluster: a, .. },
            ProtectedFlows::Routed { local, cluster: b },
        ) => ProtectedFlows::Routed {
            // Local prefixes are the exemption: only the new ones hold.
            local: local.clone(),
            cluster: union(a, b),
        },
        _ => return None,
    };
    Some(TrafficPolicy {
        addresses: union(&old.addresses, &new.addresses),
        flows,
        clear_inbound: stricter(old.clear_inbound, new.clear_inbound),
        clear_outbound: stricter(old.clear_outbound, new.clear_outbound),
        peers: join_peers(&old.peers, &new.peers),
    })
}

fn drops(policy: &TrafficPolicy) -> bool {
    policy.clear_outbound == ClearTraffic::Drop || policy.clear_inbound == ClearTraffic::Drop
}

fn stricter(a: ClearTraffic, b: ClearTraffic) -> ClearTraffic {
    if a == ClearTraffic::Drop || b == ClearTraffic::Drop {
        ClearTraffic::Drop
    } else {
        ClearTraffic::Pass
    }
}

fn join_peers(old: &[PeerTraffic], new: &[PeerTraffic]) -> Vec<PeerTraffic> {
    let named = |peer: &PeerTraffic| (peer.peer.clone(), peer.clone());
    let mut all: BTreeMap<PeerId, PeerTraffic> = new.iter().map(named).collect();
    for before in old {
        match all.get_mut(&before.peer) {
            Some(peer) => {
                peer.addresses = union(&before.addresses, &peer.addresses);
                peer.pod_cidrs = union(&before.pod_cidrs, &peer.pod_cidrs);
                if before.outbound == Outbound::Encrypt {
                    peer.outbound = Outbound::Encrypt;
                }
            }
            None => {
                all.insert(before.peer.clone(), before.clone());
            }
        }
    }
    all.into_values().collect()
}

/// All of `new` in its order, then what only `old` has.
fn union<T: Clone + PartialEq>(old: &[T], new: &[T]) -> Vec<T> {
    let mut all = new.to_vec();
    all.extend(old.iter().filter(|x| !new.contains(x)).cloned());
    all
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use anyhow::bail;

    /// A disk and a host that stop working after a number of steps, as a crash does.
    #[derive(Default)]
    struct World {
        file: Option<TrafficPolicy>,
        host: Option<TrafficPolicy>,
        steps_left: usize,
        trace: Vec<(Option<TrafficPolicy>, Option<TrafficPolicy>)>,
    }

    impl World {
        fn step(&mut self, change: impl FnOnce(&mut World)) -> Result<()> {
            if self.steps_left == 0 {
                bail!("the power is gone");
            }
            self.steps_left -= 1;
            change(self);
            let now = (self.file.clone(), self.host.clone());
            self.trace.push(now);
            Ok(())
        }
    }

    #[derive(Clone)]
    struct Disk(Rc<RefCell<World>>);

    impl Keep for Disk {
        fn write(&mut self, policy: &TrafficPolicy) -> Result<()> {
            self.0.borrow_mut().step(|w| w.file = Some(policy.clone()))
        }
        fn remove(&mut self) -> Result<()> {
            self.0.borrow_mut().step(|w| w.file = None)
        }
    }

    fn policy(clear: ClearTraffic, peers: &[(&str, Outbound)]) -> TrafficPolicy {
        TrafficPolicy {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            flows: ProtectedFlows::Overlay { port: 4789 },
            clear_inbound: clear,
            clear_outbound: clear,
            peers: peers
                .iter()
                .map(|(name, outbound)| PeerTraffic {
                    peer: PeerId::new(*name).unwrap(),
                    addresses: vec!["10.0.0.2".parse().unwrap()],
                    pod_cidrs: Vec::new(),
                    outbound: *outbound,
                })
                .collect(),
        }
    }

    /// Whether `a` lets nothing pass that `b` stops.
    fn covers(a: Option<&TrafficPolicy>, b: Option<&TrafficPolicy>) -> bool {
        let Some(b) = b else { return true };
        let Some(a) = a else { return false };
        stricter(a.clear_inbound, b.clear_inbound) == a.clear_inbound
            && stricter(a.clear_outbound, b.clear_outbound) == a.clear_outbound
            && b.peers.iter().all(|p| {
                p.outbound == Outbound::Clear
                    || a.peers
                        .iter()
                        .any(|q| q.peer == p.peer && q.outbound == Outbound::Encrypt)
            })
    }

    fn states() -> Vec<Option<TrafficPolicy>> {
        let e = Outbound::Encrypt;
        let c = Outbound::Clear;
        vec![
            None,
            Some(policy(ClearTraffic::Pass, &[("n2", c), ("n3", c)])),
            Some(policy(ClearTraffic::Pass, &[("n2", e), ("n3", c)])),
            Some(policy(ClearTraffic::Pass, &[("n2", c), ("n3", e)])),
            Some(policy(ClearTraffic::Drop, &[("n2", e), ("n3", e)])),
            Some(policy(ClearTraffic::Drop, &[("n2", e)])),
        ]
    }

    #[test]
    fn a_crash_at_any_point_leaves_a_file_as_strict_as_the_host() {
        for before in states() {
            for after in states() {
                for steps in 0..5 {
                    let world = Rc::new(RefCell::new(World {
                        file: before.clone(),
                        host: before.clone(),
                        steps_left: steps,
                        trace: Vec::new(),
                    }));
                    let mut enforcement = Enforcement::new(Disk(Rc::clone(&world)), before.clone());
                    let host = Rc::clone(&world);
                    let result = enforcement.change(after.as_ref(), || {
                        host.borrow_mut().step(|w| w.host = after.clone())
                    });
                    let world = world.borrow();
                    for (file, host) in &world.trace {
                        assert!(
                            covers(file.as_ref(), host.as_ref()),
                            "{before:?} -> {after:?}: {file:?} is weaker than {host:?}"
                        );
                    }
                    if result.is_ok() {
                        assert_eq!((&world.file, &world.host), (&after, &after));
                    }
                    if steps >= 3 {
                        assert!(result.is_ok());
                    }
                }
            }
        }
    }

    #[test]
    fn a_policy_survives_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = PolicyFile::new(dir.path());
        assert_eq!(file.load().unwrap(), None);
        let strict = policy(ClearTraffic::Drop, &[("n2", Outbound::Encrypt)]);
        file.write(&strict).unwrap();
        assert_eq!(file.load().unwrap(), Some(strict));
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.load().unwrap(), None);
    }

    /// A node goes from build to build and back: what the first release wrote is read by every later
    /// one, and what a later one adds is passed over.
    #[test]
    fn a_policy_of_an_older_build_and_one_of_a_newer_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = PolicyFile::new(dir.path());
        let text = r#"{
            "addresses": ["10.0.0.1"],
            "flows": { "overlay": { "port": 4789 } },
            "clearInbound": "Drop",
            "clearOutbound": "Drop",
            "peers": [
                { "peer": "n2", "addresses": ["10.0.0.2"], "podCIDRs": [], "outbound": "Encrypt" }
            ]
        }"#;
        let newer = text.replacen('{', r#"{ "sinceThen": { "colour": "blue" }, "#, 1);
        for text in [text, &newer] {
            files::write_private(&dir.path().join(FILE), text.as_bytes()).unwrap();
            let read = file.load().unwrap();
            let strict = policy(ClearTraffic::Drop, &[("n2", Outbound::Encrypt)]);
            assert_eq!(read, Some(strict), "{text}");
        }
    }

    #[test]
    fn late_news_open_nothing() {
        let all = states();
        let some = || all.iter().flatten();
        for (old, new) in some().flat_map(|old| some().map(move |new| (old, new))) {
            let held = no_laxer(old, new);
            assert!(covers(Some(&held), Some(old)), "{old:?} {new:?}: {held:?}");
            let mut elsewhere = new.clone();
            elsewhere.flows = ProtectedFlows::Overlay { port: 6081 };
            assert_eq!(no_laxer(old, &elsewhere), *old);
        }
    }

    #[test]
    fn a_change_of_port_keeps_the_side_that_drops() {
        let strict = policy(ClearTraffic::Drop, &[]);
        let mut open = policy(ClearTraffic::Pass, &[]);
        open.flows = ProtectedFlows::Overlay { port: 6081 };
        assert_eq!(strictest(&strict, &open), strict);
        assert_eq!(strictest(&open, &strict), strict);
    }
}
