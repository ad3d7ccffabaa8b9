//! The store in a Kubernetes API server: the same objects, the same trait.
//!
//! Each kind is a CustomResourceDefinition ([`crd`]), but for certificate requests, which are
//! `CertificateSigningRequest`s of `certificates.k8s.io/v1` (`request`). Specs and status go in by
//! server-side apply under one field manager a writer ([`Writer`], `apply`); changes come by watches
//! that outlive the connection, the API server and its memory of old versions ([`ListWatch`], `follow`).
//!
//! An API server that is away costs nothing but news: calls end after [`PATIENCE`] with an error that
//! names it, watches go on trying, and what was told before stays true until the contrary is told.
#![forbid(unsafe_code)]

mod any;
mod apply;
mod bound;
mod call;
mod convert;
pub mod crd;
mod follow;
mod link;
mod list_watch;
mod node_pods;
mod request;
mod store;
mod verdict;
mod whoami;

pub use any::AnyStore;
pub use bound::{BoundNode, bound_node};
pub use call::{call, calls};
pub use link::{KubeOptions, PATIENCE, Writer, in_cluster};
pub use list_watch::{Heard, ListWatch, pause};
pub use node_pods::{NodePods, POD_CIDRS};
pub use request::{SIGNER, USAGES, name_of, unfit};
pub use store::KubeStore;
