//! The chart as it is by default on real nodes whose kernel has ESP: nothing is lost, whatever dies. It needs
//! such a kernel: `cargo xtask guest`, docs/guest.md.

mod common;
// An outage alone is told by another.
#[allow(dead_code)]
#[path = "real_cluster/mod.rs"]
mod real_cluster;

use common::guest::turn_by;
use real_cluster::{Datapath, story};

#[test]
fn a_cluster_lives_through_everything_with_the_kernel_datapath() {
    let _turn = turn_by(
        "cargo xtask guest --memory 4096 --timeout 1500",
        "a_cluster_lives_through_everything_with_the_kernel_datapath",
    );
    story("guest-kube", Datapath::Kernel);
}
