//! Other IKE daemons as peers for tests: their packages, their namespaces, their lives.
//!
//! Nothing of them is installed: Debian's packages are unpacked into a folder beside what cargo
//! builds, and a daemon sees that folder laid over `/usr`, in a mount and network namespace of
//! its own. That way strongSwan and libreswan, which exclude each other, stand side by side, and
//! the machine keeps the daemon that it may have.

mod packages;
mod world;

pub use packages::{
    OPEN_VSWITCH, OVN_IPSEC, PROMETHEUS, Peer, Unpacked, ensure, ensure_these, folder, missing,
    own_apt,
};
pub use world::{BEHIND, Cable, Daemon, End, LINK, Place, World, can_run, pretend_xfrm, why_not};
