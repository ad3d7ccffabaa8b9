//! The API server of a real cluster is away for longer than an hour: the bound tokens that agents had end
//! meanwhile, and IKE and child SAs are replaced many times. It takes as long, so nothing runs it but
//! `cargo test -p testudo --test long_outage`, as root; docs/kubernetes.md says when it was seen.
//!
//! It does not wait for other tests, nor they for it: they may run beside it.

mod common;
// The whole story is told by others.
#[allow(dead_code)]
#[path = "real_cluster/mod.rs"]
mod real_cluster;

use std::time::Duration;

use real_cluster::long_outage;

#[test]
fn keys_are_replaced_and_agents_come_back_after_an_hour_without_an_api_server() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root for network namespaces"
    );
    long_outage("long-outage", Duration::from_secs(66 * 60));
}
