//! A whole cluster in network namespaces on one machine.
//!
//! [`up`] makes the namespaces of a [`LabSpec`] and a supervisor that keeps a controller and one
//! agent a node running; [`down`] removes all of it, also after a crash. As root the namespaces
//! are named ones that `ip netns exec` knows; a user gets them inside a user namespace.

mod build;
mod cluster;
mod keeper;
mod kube;
mod lab;
pub mod layout;
mod lifecycle;
mod load;
mod members;
mod namespaces;
mod ovs;
pub mod packet;
mod place;
mod process;
pub mod secret;
mod sizes;
pub mod spec;
mod status;
mod supervisor;
mod tap;
mod userns;
pub mod verify;

pub use cluster::{Cluster, NodeView};
pub use lab::{Daemon, Lab, Manifest, State};
pub use layout::{Layout, NodeLayout, PodLayout};
pub use lifecycle::{Progress, default_name, down, down_all, up};
pub use load::{FlowReport, IntervalReport, Load, LoadOptions, LoadReport};
pub use namespaces::Namespaces;
pub use place::Place;
pub use process::{MARK, Process, marked};
pub use spec::{Datapath, Family, Keying, KubeSpec, LabSpec, Overlay, Switch};
pub use status::{LabStatus, NodeStatus, PodStatus};
pub use supervisor::supervise;
pub use tap::{Links, Recorder, Seen, Tap};
