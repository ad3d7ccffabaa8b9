//! Both ends as places for numbered traffic, and for the sockets that see what leaves.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use testudo_netlink::{open_netns, run_in_netns};

#[path = "../../../datapath-kernel/tests/common/wire.rs"]
pub mod wire;

/// The overlay's port.
pub const PORT: u16 = 6081;

/// One end.
pub struct Node {
    netns: OwnedFd,
    device: &'static CStr,
}

impl Node {
    /// Ours: that of the calling thread.
    pub fn us() -> Self {
        Self {
            netns: open_netns("/proc/thread-self/ns/net").unwrap(),
            device: c"ti0",
        }
    }

    /// The daemon's.
    pub fn of(daemon: &testudo_interop::Daemon) -> Self {
        Self {
            netns: open_netns(format!("/proc/{}/ns/net", daemon.pid())).unwrap(),
            device: c"ti1",
        }
    }

    /// Runs in its namespace.
    pub fn run<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        run_in_netns(self.netns.as_fd(), run).unwrap()
    }

    /// The device towards the other node.
    pub fn device(&self) -> &'static CStr {
        self.device
    }
}
