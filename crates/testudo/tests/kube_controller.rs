//! The controller on a real API server: who leads, who gets a certificate, what happens when a Node, a
//! Secret, the leader or the API server goes.
//!
//! One control plane for all of it: starting one takes longer than most steps. The controllers run as the
//! built program, under a ServiceAccount that may do what docs/kubernetes.md says and no more.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "kube_controller/daemon.rs"]
mod daemon;
#[path = "kube_controller/given.rs"]
mod given;
#[path = "kube_controller/lead.rs"]
mod lead;
#[path = "kube_controller/removal.rs"]
mod removal;
#[path = "kube_controller/requests.rs"]
mod requests;
#[path = "kube_controller/rollout.rs"]
mod rollout;
#[path = "kube_controller/secrets.rs"]
mod secrets;
#[path = "kube_controller/world.rs"]
mod world;

use std::time::Instant;

use common::begin;
use rustix::process::Signal;
use world::World;

#[test]
fn a_controller_on_a_real_api_server() {
    let Some(_turn) = begin("a_controller_on_a_real_api_server") else {
        return;
    };
    let world = World::start();
    let step = |name: &str, work: &dyn Fn()| {
        eprintln!("-- {name}");
        let began = Instant::now();
        work();
        eprintln!("   {:.1} s", began.elapsed().as_secs_f32());
    };
    let first = world.controller("first", &[]);
    step("it leads and makes a CA", &|| lead::begins(&world, &first));
    let second = world.controller("second", &[]);
    step("another stands by", &|| lead::stands_by(&second));
    step("requests", &|| requests::signed_or_denied(&world, &first));
    step("a roll-out and taints", &|| rollout::steps(&world, &first));
    step("a policy that is refused", &|| {
        rollout::refused(&world, &first);
    });
    step("a policy that cannot be read", &|| {
        rollout::unreadable(&world, &first);
    });
    step("a renewal of certificates", &|| {
        rollout::renewal(&world, &first);
    });
    step("a Node is deleted and made anew", &|| {
        removal::revoked(&world, &first);
    });
    step("Secrets", &|| secrets::broken(&world, &first));
    // Nobody leads until all has been asked.
    second.signal(Signal::STOP);
    first.kill();
    let asked = requests::at_once(&world);
    second.signal(Signal::CONT);
    step("the second takes over", &|| {
        lead::takes_over(&world, &second)
    });
    step("several requests with one node's name", &|| {
        requests::each_is_answered(&world, &asked);
    });
    let third = world.controller("third", &[]);
    step("who lost the lead writes nothing", &|| {
        lead::fenced(&world, &second, &third);
    });
    step("the API server is away", &|| {
        lead::outage(&world, &[&second, &third]);
    });
    step("the API server hangs", &|| {
        lead::hang(&world, &[&second, &third]);
    });
    drop((second, third));
    step("a CA is given", &|| given::used(&world));
}
