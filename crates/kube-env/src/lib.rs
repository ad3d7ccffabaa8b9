//! A real Kubernetes on one machine, for tests and by hand: its programs, built once from source;
//! its control plane, in a network namespace; its nodes, each with a kubelet in another.
//!
//! Nothing of it is imitated: what a test meets is the API server, the controllers and the kubelet
//! that clusters run. `docs/kubernetes-lab.md` tells how it is used and what it costs.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use testudo_kube_env::{Cluster, Options};
//! let cluster = Cluster::up(&Options::named("test-crds"), &|line| eprintln!("{line}"))?;
//! println!("KUBECONFIG={}", cluster.kubeconfig().display());
//! println!("{}", cluster.kubectl(&["get", "nodes"])?);
//! // Everything ends where `cluster` does.
//! # Ok(())
//! # }
//! ```

mod certificates;
pub mod chart;
mod cluster;
mod control_plane;
pub mod image;
mod lock;
mod network;
mod nodes;
pub mod operator;
mod place;
mod process;
pub mod programs;
mod wait;

pub use cluster::{Cluster, Options, State};
pub use control_plane::Component;
pub use network::Between;
pub use nodes::NewNode;
pub use place::{down, names, sweep};
