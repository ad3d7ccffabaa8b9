//! A lab whose nodes are nodes of a real API server, from its making to its end: what comes and goes in
//! the cluster, what dies, and the API server itself. Numbered traffic all the time, and a witness on every
//! link of the underlay. The datapath is the userspace's.

mod common;
#[path = "lab_kube/story.rs"]
mod story;

use common::begin;
use story::Story;

#[test]
fn a_lab_on_an_api_server_lives_through_everything() {
    let Some(_turn) = begin("a_lab_on_an_api_server_lives_through_everything") else {
        return;
    };
    story::tell(&Story {
        datapath: "user",
        rate: 1500,
    });
}
