//! A lab whose nodes are nodes of a real API server, with the kernel's ESP: what comes and goes in the cluster,
//! agents that are killed and an API server that is away lose no packet at all. It needs a kernel with ESP:
//! `cargo xtask guest`.

mod common;
#[path = "lab_kube/story.rs"]
mod story;

use common::guest::turn_by;
use story::Story;

#[test]
fn with_the_kernels_esp_nothing_is_lost() {
    let _turn = turn_by(
        "cargo xtask guest --memory 4096 --timeout 1500",
        "with_the_kernels_esp_nothing_is_lost",
    );
    story::tell(&Story {
        datapath: "kernel",
        rate: 200,
    });
}
