//! XFRM, the kernel's IPsec: policies and SAs as values, the sockets to ask for them and to hear
//! of them.
//!
//! Numbers and their meanings are those of `linux/xfrm.h`. A policy says which packets want which
//! transformation (RFC 4301 4.4.1, the SPD), a state is an SA (4.4.2, the SAD); a policy's template
//! finds its SA by addresses, protocol, mode, `reqid` and, where one is given, the SPI.

mod abi;
mod algorithm;
mod bypass;
mod event;
mod key;
mod monitor;
mod policy;
mod sa;
mod sa_codec;
mod selector;
mod socket;

pub use algorithm::XfrmAlgorithm;
pub use bypass::bypass_policies;
pub use event::{XfrmEvent, XfrmNotice, XfrmSaName};
pub use key::XfrmKey;
pub use monitor::{XfrmHeard, XfrmMonitor};
pub use policy::{XfrmAction, XfrmPolicy, XfrmPolicyKey, XfrmTemplate};
pub use sa::{
    XfrmEncapsulation, XfrmLimits, XfrmListedSa, XfrmReplay, XfrmSa, XfrmSaId, XfrmSaUse,
};
pub use selector::{PortMatch, XfrmDirection, XfrmMode, XfrmSelector};
pub use socket::Xfrm;

/// Reads an `xfrm_mark`: value and mask.
fn mark(value: &[u8]) -> Option<(u32, u32)> {
    use crate::message::read_u32;
    Some((read_u32(value, 0)?, read_u32(value, 4)?))
}

#[cfg(test)]
mod tests;
