//! What a daemon shows to Prometheus and to a kubelet: a page of metrics in the OpenMetrics text
//! format, and a small HTTP server for it and for the two questions whether the daemon lives and
//! whether it is ready.
//!
//! A page is made when it is asked for, from numbers that the daemon counts anyway.
#![forbid(unsafe_code)]

mod page;
mod server;

pub use page::{Durations, Family, Page};
pub use server::{Server, Source};
