//! All unsafe code of this crate: ioctls of the TUN, socket options, batched datagrams.
//!
//! The functions here are safe to call: pointers handed to the kernel are made from live borrows
//! right before the call and never kept.

mod batch;
mod socket;
mod tun;
mod wait;

pub(crate) use batch::{Envelope, Outgoing, RECV_BATCH, RecvBatch, SendBatch};
pub(crate) use socket::{QueueSockets, open_queues};
pub(crate) use tun::{Offloads, Tun, open_tun};
pub(crate) use wait::{Stop, wait_readable};
