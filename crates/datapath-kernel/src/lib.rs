//! The kernel datapath: the kernel's own ESP carries the packets (XFRM).
//!
//! All that is put into the kernel carries a tag, so that it is found again after a restart and
//! nothing else is ever touched: request IDs of SAs and templates begin with [`REQID_BASE`],
//! policies have priorities of our own.

pub mod nft;
pub mod plan;
mod tag;

pub use tag::{
    PRIORITY_ALLOW, PRIORITY_BLOCK, PRIORITY_PEER, REQID_BASE, REQID_BLOCK, is_our_priority,
    is_our_reqid,
};
