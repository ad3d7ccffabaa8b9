//! The store against a real API server: what it must do as any store, what only this one can.
//!
//! One control plane for all of it: starting one takes longer than the tests. It needs root, as
//! everything that makes network namespaces does.

#![allow(clippy::unwrap_used)]

mod external;
mod owners;
mod pods;
mod refusals;
mod requests;
mod skew;
mod watches;
mod world;

use std::pin::Pin;

use testudo_store::conformance;
use testudo_store_kube::Writer;

use world::World;

#[tokio::test]
async fn the_store_holds_against_a_real_api_server() {
    let world = World::start().await;
    step("every field is kept", refusals::every_field_is_kept(&world)).await;
    step(
        "what ours refuses is refused",
        refusals::both_refuse(&world),
    )
    .await;
    step(
        "connections to hosts outside",
        external::both_refuse(&world),
    )
    .await;
    step("defaults are filled in", refusals::defaults(&world)).await;
    step("kubectl tells the story", refusals::columns(&world)).await;
    step("a Node's pods", pods::prefixes_of_a_node(&world)).await;
    for writer in [Writer::Controller, Writer::Cli, world::agent("n1")] {
        step("it conforms", async {
            let done = conformance::run(world.store(writer)).await;
            assert_eq!(done, Ok(()));
        })
        .await;
    }
    step("fields have owners", owners::fields_have_owners(&world)).await;
    step("what is ours is taken back", owners::taken_back(&world)).await;
    step("a newer build's objects", skew::newer_objects(&world)).await;
    step("an older build's CRDs", skew::older_crds(&world)).await;
    step("connections of other builds", external::skew(&world)).await;
    step("requests", requests::asked_and_answered(&world)).await;
    step("strangers", requests::strangers_are_told_apart(&world)).await;
    step("a taken name", requests::a_name_that_is_taken(&world)).await;
    step("an approval by hand", requests::approved_by_hand(&world)).await;
    step("a lost connection", watches::lost_connection(&world)).await;
    step("a forgotten version", watches::forgotten_version(&world)).await;
}

/// One after the other, each named before it begins: the name is the last line before a failure. In boxes, for
/// all steps in one would not fit on a test's stack.
fn step<'a>(
    name: &'static str,
    work: impl Future<Output = ()> + 'a,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(async move {
        eprintln!("-- {name}");
        work.await;
    })
}
