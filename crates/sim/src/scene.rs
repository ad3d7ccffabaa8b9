//! What two engines do at the same time.

use std::time::Duration;

use testudo_crypto::{KeMethod, SecretBytes};
use testudo_ike::{
    AdditionalKe, ChildConfig, Engine, EngineConfig, PeerAddress, PeerAuth, PeerConfig, Suites,
};
use testudo_model::policy::EncapsulationMode;
use testudo_model::{Now, PortRange, SaMode, TrafficSelector};

use crate::node::{address, identity, peer_id};

/// What two engines do at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// Both begin.
    Initiate,
    /// Both rekey the child.
    RekeyChild,
    /// Both rekey the IKE SA.
    RekeyIke,
    /// One rekeys a child that the other deletes.
    RekeyAndDelete,
    /// One rekeys the IKE SA that the other closes.
    RekeyAndClose,
    /// One makes another child while the other rekeys the IKE SA.
    CreateAndRekeyIke,
    /// One rekeys the child, the other the IKE SA.
    RekeyChildAndIke,
    /// Both authenticate anew.
    Reauthenticate,
    /// One begins, and another key exchange goes between IKE_SA_INIT and IKE_AUTH
    /// (IKE_INTERMEDIATE, RFC 9242).
    Intermediate,
    /// Both rekey the child, with another key exchange after it (IKE_FOLLOWUP_KE, RFC 9370).
    FollowUpChild,
    /// The same of the IKE SA.
    FollowUpIke,
}

/// All of them.
pub const SCENES: [Scene; 11] = [
    Scene::Initiate,
    Scene::RekeyChild,
    Scene::RekeyIke,
    Scene::RekeyAndDelete,
    Scene::RekeyAndClose,
    Scene::CreateAndRekeyIke,
    Scene::RekeyChildAndIke,
    Scene::Reauthenticate,
    Scene::Intermediate,
    Scene::FollowUpChild,
    Scene::FollowUpIke,
];

/// What a node is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Its peer, and how many children are wanted with it.
    Configure {
        /// Whether it starts by itself.
        initiate: bool,
        /// How many children.
        children: usize,
    },
    /// Rekey the last child by name.
    RekeyChild,
    /// Rekey the IKE SA.
    RekeyIke,
    /// Authenticate anew.
    Reauthenticate,
    /// Close all SAs with the peer.
    Close,
}

impl Scene {
    /// Whether an IKE SA stands before it begins.
    pub fn stands_before(self) -> bool {
        !matches!(self, Self::Initiate | Self::Intermediate)
    }

    /// Deadlines only where they matter; no key exchange where it changes nothing. An additional
    /// one is by a curve, which the seed decides as it does not ML-KEM: what is sent when is the
    /// same.
    pub fn config(self) -> EngineConfig {
        let hybrid = matches!(
            self,
            Self::Intermediate | Self::FollowUpChild | Self::FollowUpIke
        );
        let additional = AdditionalKe {
            methods: vec![KeMethod::P256],
            required: true,
        };
        EngineConfig {
            child_lifetime: Duration::from_secs(100_000),
            ike_lifetime: Duration::from_secs(800_000),
            liveness: Duration::from_secs(30),
            suites: Suites {
                pfs: hybrid,
                additional_ke: hybrid.then_some(additional).into_iter().collect(),
                ..Suites::default()
            },
            ..EngineConfig::default()
        }
    }

    /// Children that stand before it begins, and whether both ends start by themselves.
    pub fn before(self) -> (usize, bool) {
        match self {
            Self::RekeyAndDelete => (2, false),
            _ => (1, self == Self::Initiate),
        }
    }

    /// What each node is told, in order.
    pub fn commands(self) -> Vec<(usize, Command)> {
        let configure = |initiate, children| Command::Configure { initiate, children };
        match self {
            Self::Initiate | Self::Intermediate => Vec::new(),
            Self::RekeyChild | Self::FollowUpChild => {
                vec![(0, Command::RekeyChild), (1, Command::RekeyChild)]
            }
            Self::RekeyIke | Self::FollowUpIke => {
                vec![(0, Command::RekeyIke), (1, Command::RekeyIke)]
            }
            Self::Reauthenticate => {
                vec![(0, Command::Reauthenticate), (1, Command::Reauthenticate)]
            }
            Self::RekeyAndDelete => vec![(0, Command::RekeyChild), (1, configure(false, 1))],
            Self::RekeyAndClose => vec![(0, Command::RekeyIke), (1, Command::Close)],
            Self::CreateAndRekeyIke => vec![
                (1, Command::RekeyIke),
                (1, configure(false, 2)),
                (0, configure(true, 2)),
            ],
            Self::RekeyChildAndIke => vec![(0, Command::RekeyChild), (1, Command::RekeyIke)],
        }
    }

    /// What they are told at the end, and how many children there must be then.
    pub fn after(self) -> (Option<(usize, Command)>, usize) {
        match self {
            // The other end's configuration follows.
            Self::RekeyAndDelete => {
                let configure = Command::Configure {
                    initiate: true,
                    children: 1,
                };
                (Some((0, configure)), 1)
            }
            Self::CreateAndRekeyIke => (None, 2),
            _ => (None, 1),
        }
    }
}

/// Tells one of two nodes. An error is a bug of the scene.
pub fn tell(engine: &mut Engine, n: usize, command: Command, now: Now) -> Result<(), String> {
    let peer = peer_id(1 - n);
    let done = match command {
        Command::Configure { initiate, children } => {
            engine.set_peer(peer_config(n, 1 - n, initiate, children), now)
        }
        Command::RekeyChild => {
            let status = engine.status();
            let all = status.iter().flat_map(|s| &s.children);
            let last = all.max_by_key(|c| (c.name.clone(), c.child));
            let child = last.ok_or("no child")?.child;
            engine.rekey_child(child, now)
        }
        Command::RekeyIke => engine.rekey_ike(&peer, now),
        Command::Reauthenticate => engine.reauthenticate(&peer, now),
        Command::Close => engine.close(&peer, now),
    };
    done.map_err(|e| e.to_string())
}

/// What `local` is told about `remote`. Pre-shared keys: a signature more or less changes no
/// order of messages, and the time is better spent on orders.
pub fn peer_config(local: usize, remote: usize, initiate: bool, children: usize) -> PeerConfig {
    let child = |n: usize| {
        let port = PortRange::one(4789 + u16::try_from(n).unwrap_or(0));
        ChildConfig {
            name: format!("child{n}"),
            mode: SaMode::Transport,
            local_ts: vec![TrafficSelector::host(address(local)).with(17, port)],
            remote_ts: vec![TrafficSelector::host(address(remote)).with(17, port)],
            resources: 0,
        }
    };
    PeerConfig {
        id: peer_id(remote),
        remote_identity: identity(remote),
        auth: PeerAuth::PreSharedKey(SecretBytes::from(&b"a secret that both know"[..])),
        ppk: None,
        addresses: vec![PeerAddress {
            local: address(local),
            remote: address(remote),
        }],
        initiate,
        encapsulation: EncapsulationMode::Auto,
        suites: None,
        children: (0..children).map(child).collect(),
    }
}
