//! Where objects live: the [`Store`] trait, and the store in a directory.
//!
//! A store keeps objects of [`testudo_model`], tells about changes, and refuses what it cannot
//! understand while the last good state goes on. [`DirStore`] keeps them as manifests,
//! `DIR/<plural>/<name>.yaml`, so that a cluster can be run with a text editor and without
//! Kubernetes. Secrets never stand in objects; [`files`] and [`tokens`] keep them apart.
#![forbid(unsafe_code)]

mod check;
pub mod conformance;
mod dir;
mod document;
mod dumps;
mod error;
pub mod files;
mod kinds;
mod location;
pub mod manifest;
pub mod removed;
mod requester;
mod scan;
mod store;
pub mod tokens;
mod watch;

pub use check::{check_name, check_object};
pub use dir::{DirOptions, DirStore};
pub use dumps::no_core_dumps;
pub use error::{Problem, StoreError};
pub use kinds::{AnyObject, KindName};
pub use location::{Kubernetes, Location, parse_location};
pub use requester::{Authenticated, Requester};
pub use store::{Applied, Change, Listing, Store, change_status};
pub use watch::{Event, Watch};
