//! The keeper: a process that holds the agent's UDP sockets and does nothing else.
//!
//! With the kernel datapath the kernel opens ESP inside UDP while a socket on port 4500 asks it to. The
//! agent's would be gone with the agent, and all traffic inside UDP with it. So another process holds
//! descriptors of the same sockets; it never reads from them and knows no key. What comes in for IKE
//! meanwhile waits in the sockets' buffers, which are bounded.
//!
//! The agent starts one when the first SA inside UDP is installed, hands its sockets over through a UNIX
//! socket (`SCM_RIGHTS`), and starts another should it end. The next agent takes the sockets from there.
//! Where processes end together with the agent's (a container, a systemd unit), one is run beside it
//! ([`keep`] with [`Manner::Standing`]), which takes over from any that the agent has started.
//!
//! Ports below 1024 take a capability (NET_BIND_SERVICE) that an agent need not have. A keeper that was told
//! to binds UDP 500 for it, and does not hold that socket.
//!
//! It lets go when it is told to, or when no agent has come for as long as SAs live without one.

mod client;
mod frame;
mod server;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) use client::{Client, bind};
pub use server::{Manner, confine, keep};

/// How an agent finds a keeper, and starts one.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// The keeper's UNIX socket.
    pub socket: PathBuf,
    /// The program that is a keeper, with its arguments.
    pub program: Vec<OsString>,
}

/// Whether the process at the other end of a UNIX socket is of our own user.
fn is_ours(stream: impl std::os::fd::AsFd) -> bool {
    let own = rustix::process::geteuid().as_raw();
    testudo_netlink::peer(stream).is_ok_and(|peer| peer.uid == own)
}
