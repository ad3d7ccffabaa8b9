//! The chart on real nodes whose kernel need have no ESP: agents have the userspace datapath.

mod common;
// An outage alone is told by another.
#[allow(dead_code)]
#[path = "real_cluster/mod.rs"]
mod real_cluster;

use common::begin;
use real_cluster::{Datapath, story};

#[test]
fn a_cluster_lives_through_everything_with_the_userspace_datapath() {
    let Some(_turn) = begin("a_cluster_lives_through_everything_with_the_userspace_datapath")
    else {
        return;
    };
    story("kube-install", Datapath::User);
}
