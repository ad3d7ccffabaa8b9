//! What a lab shall be: the options of `testudo lab up`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The name used when none is given and no lab runs.
pub const DEFAULT_NAME: &str = "lab";
/// Most nodes that a lab may have: the last byte of a node's addresses is its number.
pub const MAX_NODES: u16 = 200;
/// Most pods that a node may have.
pub const MAX_PODS: u16 = 100;
/// Longest name of a lab, in bytes: sockets below its directory must fit in 107 bytes.
const MAX_NAME: usize = 32;

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// The word on the command line.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = anyhow::Error;
            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => bail!(
                        "unknown {} {other:?}: choose one of {}",
                        stringify!($name).to_lowercase(),
                        [$($text),+].join(", ")
                    ),
                }
            }
        }
    };
}

named_enum! {
    /// How pods of different nodes reach each other.
    Overlay {
        /// A VXLAN device on each node, UDP port 4789.
        Vxlan = "vxlan",
        /// A Geneve device on each node for each other node, UDP port 6081.
        Geneve = "geneve",
        /// OVN: logical switches and a router over Geneve, UDP port 6081.
        Ovn = "ovn",
        /// Plain routes between pod CIDRs, no encapsulation.
        Routed = "routed",
    }
}

named_enum! {
    /// What a node's pods and tunnels are plugged into.
    #[derive(Default)]
    Switch {
        /// The kernel's bridge, and its devices for the overlay.
        #[default]
        Linux = "linux",
        /// Open vSwitch: one bridge with the pods and a tunnel to each other node.
        Ovs = "ovs",
    }
}

named_enum! {
    /// The address families of the underlay.
    Family {
        /// IPv4 only.
        V4 = "v4",
        /// IPv6 only.
        V6 = "v6",
        /// Both; the overlay's tunnels use IPv4.
        Dual = "dual",
    }
}

named_enum! {
    /// Which datapath the agents shall use.
    Datapath {
        /// The agent's own choice.
        Auto = "auto",
        /// ESP in userspace.
        User = "user",
        /// ESP in the kernel.
        Kernel = "kernel",
    }
}

named_enum! {
    /// Where the keys come from.
    Keying {
        /// IKEv2 with certificates.
        Certificate = "certificate",
        /// One pre-shared key for the cluster.
        Psk = "psk",
    }
}

impl Family {
    /// Whether the underlay has IPv4.
    pub fn has_v4(self) -> bool {
        self != Self::V6
    }

    /// Whether the underlay has IPv6.
    pub fn has_v6(self) -> bool {
        self != Self::V4
    }
}

/// The API server whose nodes a lab's nodes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeSpec {
    /// The kubeconfig that names it; none: what kubectl would take.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it; none: its current one.
    pub context: Option<String>,
    /// Its URL, which [`crate::up`] fills in.
    #[serde(default)]
    pub server: String,
}

/// The options of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSpec {
    /// Its name, unique on the machine (per user when unprivileged).
    pub name: String,
    /// How many nodes.
    pub nodes: u16,
    /// How many pods on each node.
    pub pods: u16,
    /// How pods of different nodes reach each other.
    pub overlay: Overlay,
    /// What pods and tunnels are plugged into.
    #[serde(default)]
    pub switch: Switch,
    /// Where Open vSwitch's packages are unpacked; none: they are installed.
    #[serde(default)]
    pub ovs_root: Option<PathBuf>,
    /// Which datapath the agents use.
    pub datapath: Datapath,
    /// Nodes that differ from it.
    #[serde(default)]
    pub datapath_of: Vec<(String, Datapath)>,
    /// Where the keys come from.
    pub keying: Keying,
    /// The underlay's address families.
    pub family: Family,
    /// The objects are in an API server; none: in a directory of the lab's own.
    #[serde(default)]
    pub kube: Option<KubeSpec>,
    /// Whether a controller and agents run. Without them the lab is its namespaces only.
    pub daemons: bool,
    /// Whether agents write their keys in Wireshark's formats into the lab's directory.
    pub danger_export_keys: bool,
    /// The `testudo` binary that the supervisor and the daemons run.
    pub binary: PathBuf,
}

impl LabSpec {
    /// The default lab: three nodes with two pods each over VXLAN on IPv4.
    pub fn new(name: &str, binary: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 3,
            pods: 2,
            overlay: Overlay::Vxlan,
            switch: Switch::Linux,
            ovs_root: None,
            datapath: Datapath::Auto,
            datapath_of: Vec::new(),
            keying: Keying::Certificate,
            family: Family::V4,
            kube: None,
            daemons: true,
            danger_export_keys: false,
            binary,
        }
    }

    /// What pods and tunnels are plugged into: OVN's is Open vSwitch, whatever was asked for.
    pub fn switch(&self) -> Switch {
        match self.overlay {
            Overlay::Ovn => Switch::Ovs,
            _ => self.switch,
        }
    }

    /// Which datapath a node's agent shall use.
    pub fn datapath_of(&self, node: &str) -> Datapath {
        let own = self.datapath_of.iter().find(|(name, _)| name == node);
        own.map_or(self.datapath, |(_, datapath)| *datapath)
    }

    /// Refuses what cannot be built, with every bound named.
    pub fn validate(&self) -> Result<()> {
        check_name(&self.name)?;
        ensure!(
            (1..=MAX_NODES).contains(&self.nodes),
            "--nodes {}: a lab has 1 to {MAX_NODES} nodes",
            self.nodes
        );
        ensure!(
            (1..=MAX_PODS).contains(&self.pods),
            "--pods {}: a node has 1 to {MAX_PODS} pods",
            self.pods
        );
        for (node, _) in &self.datapath_of {
            let known = (1..=self.nodes).any(|index| *node == format!("n{index}"));
            ensure!(
                known,
                "--datapath-of {node}: the nodes are n1 to n{}",
                self.nodes
            );
        }
        ensure!(
            self.switch == Switch::Linux || self.overlay != Overlay::Routed,
            "--switch ovs is for tunnels: use --overlay geneve, vxlan or ovn"
        );
        ensure!(
            self.ovs_root.is_none() || self.switch() == Switch::Ovs,
            "--ovs-root is of --switch ovs and --overlay ovn only"
        );
        ensure!(
            self.keying != Keying::Psk,
            "--keying psk is not built yet: use certificate"
        );
        Ok(())
    }
}

/// Refuses a name that could not be a directory, part of a namespace's name, or a DNS label.
pub fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(
        good,
        "lab name {name:?}: use 1 to {MAX_NAME} of a-z, 0-9 and -, not first or last"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> LabSpec {
        LabSpec::new("lab", PathBuf::from("/bin/true"))
    }

    #[test]
    fn defaults_are_valid() {
        spec().validate().unwrap();
    }

    #[test]
    fn bad_names_and_numbers_are_refused() {
        for name in ["", "-a", "a-", "A", "a/b", "..", "a b", &"x".repeat(33)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for (nodes, pods) in [(0, 1), (201, 1), (1, 0), (1, 101)] {
            assert!(
                LabSpec {
                    nodes,
                    pods,
                    ..spec()
                }
                .validate()
                .is_err()
            );
        }
    }

    #[test]
    fn open_vswitch_is_for_tunnels() {
        let ovs = |overlay| LabSpec {
            switch: Switch::Ovs,
            overlay,
            ..spec()
        };
        ovs(Overlay::Geneve).validate().unwrap();
        let error = ovs(Overlay::Routed).validate().unwrap_err().to_string();
        assert!(error.contains("--overlay geneve"), "{error}");
        let mut elsewhere = spec();
        elsewhere.ovs_root = Some(PathBuf::from("/x"));
        assert!(elsewhere.validate().is_err());
        elsewhere.overlay = Overlay::Ovn;
        elsewhere.validate().unwrap();
        assert_eq!(elsewhere.switch(), Switch::Ovs);
    }

    #[test]
    fn words_round_trip() {
        for word in ["vxlan", "geneve", "ovn", "routed"] {
            assert_eq!(word.parse::<Overlay>().unwrap().as_str(), word);
        }
        assert!(
            "gre"
                .parse::<Overlay>()
                .unwrap_err()
                .to_string()
                .contains("vxlan")
        );
    }
}
