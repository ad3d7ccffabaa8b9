//! Other IKE daemons with a real kernel's ESP: run with `cargo xtask guest`, docs/guest.md. What
//! the daemons are told and what our end does is that of `tests/peers`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod accounts;
#[path = "../peers/alike/mod.rs"]
mod alike;
#[path = "../peers/carrier.rs"]
mod carrier;
#[path = "../peers/certificates.rs"]
mod certificates;
#[path = "../peers/charon.rs"]
mod charon;
mod kernel;
mod nodes;
#[path = "../peers/ours.rs"]
mod ours;
#[path = "../peers/packet.rs"]
mod packet;
#[path = "../peers/pluto.rs"]
mod pluto;
mod trace;
mod user_space;
#[path = "../peers/wanted.rs"]
mod wanted;

/// Runs a test in a thread of its own, as the namespace that it enters is its alone. It is never
/// skipped: without such a kernel, or without the daemon, it fails.
pub fn in_guest(peer: testudo_interop::Peer, body: impl FnOnce() + Send + 'static) {
    assert!(
        std::env::var_os("TESTUDO_GUEST").is_some(),
        "this test needs a kernel with ESP: build it and run it with `cargo xtask guest -- PROGRAM` \
         (docs/guest.md)"
    );
    let folder = testudo_interop::folder().unwrap();
    assert!(
        peer.is_there(&folder),
        "{peer:?} is not unpacked; run: sudo cargo xtask packages"
    );
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// An old child that has a successor goes soon: the engine keeps it for what is still on its way.
pub fn soon_over(config: &mut testudo_ike::EngineConfig) {
    config.linger = std::time::Duration::from_millis(300);
}
