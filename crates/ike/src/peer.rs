//! What the engine remembers of a configured peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use testudo_model::policy::EncapsulationMode;
use testudo_model::{ChildId, Monotonic};

use crate::addke;
use crate::config::{ChildConfig, EngineConfig, Identity, PeerAddress, PeerAuth, PeerConfig};
use crate::error::Misuse;
use crate::event::IkeId;
use crate::ppk::PPK_MIN;
use crate::sa::Slot;
use crate::suites::Suites;
use crate::ts;

/// Most bytes of a PPK's name.
const PPK_ID_MAX: usize = 1024;

/// A peer's failed tries to make one of its children.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildRetry {
    pub(crate) failures: u32,
    pub(crate) not_before: Monotonic,
}

pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    /// Established IKE SAs, also those about to be deleted.
    pub(crate) sas: BTreeSet<IkeId>,
    /// Our attempt under way.
    pub(crate) attempt: Option<IkeId>,
    /// A new IKE SA is wanted although one may stand.
    pub(crate) reauth: bool,
    /// It is wanted since addresses changed.
    pub(crate) moving: bool,
    /// The sequence number of the last change of addresses.
    pub(crate) changed: u64,
    /// Which of the addresses the next attempt goes to.
    pub(crate) address: usize,
    /// Failed attempts in a row.
    pub(crate) failures: u32,
    /// The children that may still be up or lingering, by slot.
    pub(crate) children: BTreeMap<Slot, BTreeSet<ChildId>>,
    /// The child of each slot that packets are sent on.
    pub(crate) sending: BTreeMap<Slot, ChildId>,
    /// Failed tries to make children.
    pub(crate) retries: BTreeMap<Slot, ChildRetry>,
    /// Children that our datapath did not take.
    pub(crate) refusals: BTreeMap<Slot, ChildRetry>,
}

/// What a change of a peer's configuration asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Standing SAs no longer mean what they did: close them.
    pub(crate) restart: bool,
    /// A new IKE SA is needed, made before the old one is closed.
    pub(crate) reauth: bool,
    /// Addresses changed.
    pub(crate) addresses: bool,
    /// Ours among them.
    pub(crate) own_addresses: bool,
    /// Children that are gone.
    pub(crate) closed: Vec<String>,
    /// Children that are others now.
    pub(crate) changed: Vec<String>,
    /// How many of a child there are may have changed.
    pub(crate) resources: bool,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig) -> Self {
        Self {
            config,
            sas: BTreeSet::new(),
            attempt: None,
            reauth: false,
            moving: false,
            changed: 0,
            address: 0,
            failures: 0,
            children: BTreeMap::new(),
            sending: BTreeMap::new(),
            retries: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// Where the next attempt goes.
    pub(crate) fn next_address(&self) -> PeerAddress {
        // Checked to be at least one when the peer was set.
        self.config.addresses[self.address % self.config.addresses.len()]
    }

    pub(crate) fn child(&self, name: &str) -> Option<&ChildConfig> {
        self.config.children.iter().find(|c| c.name == name)
    }

    pub(crate) fn forced(&self) -> bool {
        self.config.encapsulation == EncapsulationMode::Always
    }

    /// Whether the remote end is one of the configured addresses.
    pub(crate) fn knows(&self, remote: SocketAddr) -> bool {
        let ip = remote.ip().to_canonical();
        self.config.addresses.iter().any(|a| a.remote == ip)
    }

    /// Whether the local end is one of our configured addresses towards it.
    pub(crate) fn has(&self, local: SocketAddr) -> bool {
        let ip = local.ip().to_canonical();
        self.config.addresses.iter().any(|a| a.local == ip)
    }

    /// What `new` changes.
    pub(crate) fn compare(&self, new: &PeerConfig) -> Change {
        let old = &self.config;
        Change {
            restart: old.remote_identity.normal() != new.remote_identity.normal()
                || !same_auth(&old.auth, &new.auth)
                || old.ppk != new.ppk,
            reauth: old.encapsulation != new.encapsulation || old.suites != new.suites,
            addresses: old.addresses != new.addresses,
            own_addresses: locals(old) != locals(new),
            closed: old
                .children
                .iter()
                .filter(|c| !new.children.iter().any(|n| n.name == c.name))
                .map(|c| c.name.clone())
                .collect(),
            changed: old
                .children
                .iter()
                .filter(|c| new.children.iter().any(|n| is_changed(c, n)))
                .map(|c| c.name.clone())
                .collect(),
            resources: old.children != new.children,
        }
    }
}

fn locals(config: &PeerConfig) -> BTreeSet<IpAddr> {
    config.addresses.iter().map(|a| a.local).collect()
}

/// Of one name, and different in more than how many there are.
fn is_changed(a: &ChildConfig, b: &ChildConfig) -> bool {
    let same = a.mode == b.mode && a.local_ts == b.local_ts && a.remote_ts == b.remote_ts;
    a.name == b.name && !same
}

fn same_auth(a: &PeerAuth, b: &PeerAuth) -> bool {
    match (a, b) {
        (PeerAuth::Certificate, PeerAuth::Certificate) => true,
        (PeerAuth::PreSharedKey(a), PeerAuth::PreSharedKey(b)) => a == b,
        _ => false,
    }
}

/// Refuses a configuration that could never work.
pub(crate) fn validate(config: &PeerConfig, engine: &EngineConfig) -> Result<(), Misuse> {
    let bad = |text: String| {
        Err(Misuse::BadConfig {
            peer: config.id.clone(),
            text,
        })
    };
    if config.addresses.is_empty() {
        return bad("it has no addresses; give at least one pair".into());
    }
    if let Some(a) = config
        .addresses
        .iter()
        .find(|a| a.local.is_ipv4() != a.remote.is_ipv4())
    {
        return bad(format!(
            "{} and {} are of two address families",
            a.local, a.remote
        ));
    }
    if matches!(&config.auth, PeerAuth::PreSharedKey(key) if key.is_empty()) {
        return bad("its pre-shared key is empty".into());
    }
    if let Some(ppk) = &config.ppk {
        let len = ppk.secret.as_bytes().len();
        if len < PPK_MIN {
            return bad(format!(
                "its PPK has {len} bytes; at least {PPK_MIN} are needed"
            ));
        }
        if !(1..=PPK_ID_MAX).contains(&ppk.id.len()) {
            return bad(format!(
                "the name of its PPK must have 1 to {PPK_ID_MAX} bytes"
            ));
        }
    }
    if Identity::from_wire(&config.remote_identity.to_wire()).is_none() {
        return bad(format!("\"{}\" is no identity", config.remote_identity));
    }
    if let Some(kind) = config.suites.as_ref().and_then(Suites::missing) {
        return bad(format!("its suites have no {kind}"));
    }
    let additional = config.suites.as_ref().map(|s| &s.additional_ke[..]);
    if let Some(what) = additional.and_then(addke::fault) {
        return bad(format!("its suites have {what}"));
    }
    let wanted = config
        .children
        .iter()
        .map(|c| 1 + u64::from(c.resources))
        .sum::<u64>();
    if wanted > engine.limits.children_per_ike_sa as u64 {
        return bad(format!(
            "it has {wanted} children; at most {} are allowed",
            engine.limits.children_per_ike_sa
        ));
    }
    let mut names = BTreeSet::new();
    for child in &config.children {
        if !names.insert(&child.name) {
            return bad(format!("it has two children named {}", child.name));
        }
        if !ts::is_valid(&child.local_ts) || !ts::is_valid(&child.remote_ts) {
            return bad(format!(
                "child {} has no, too many or reversed traffic selectors",
                child.name
            ));
        }
    }
    Ok(())
}
