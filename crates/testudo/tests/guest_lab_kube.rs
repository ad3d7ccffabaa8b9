//! A lab whose nodes are nodes of a real API server, with the kernel's ESP: what comes and goes in the cluster,
//! agents that are killed and an API server that is away lose no packet at all. It needs a kernel with ESP:
//! `cargo xtask guest`.

mod common;
#[path = "lab_kube/story.rs"]
mod story;

use common::begin;
use story::Story;

#[test]
fn with_the_kernels_esp_nothing_is_lost() {
    assert!(
        std::env::var_os("TESTUDO_GUEST").is_some(),
        "this test needs a kernel with ESP: cargo xtask guest -- THIS-PROGRAM"
    );
    let _turn = begin("with_the_kernels_esp_nothing_is_lost").expect("guests run as root");
    story::tell(&Story {
        datapath: "kernel",
        rate: 200,
    });
}
