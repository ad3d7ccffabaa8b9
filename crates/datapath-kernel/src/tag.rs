//! How what is ours is told from what is others'.

use std::ops::RangeInclusive;

/// The first of the 65,536 request IDs of this program. SAs and templates have the 65,535 above
/// it.
pub const REQID_BASE: u32 = 0x7e57_0000;
/// The request ID in the template of a policy that blocks. The kernel never looks at such a
/// template; it is there to mark the policy.
pub const REQID_BLOCK: u32 = REQID_BASE;
/// The request ID of the SA by which is found out what the kernel can do: that of no peer.
pub(crate) const REQID_PROBE: u32 = REQID_BASE;

/// Policies that let local pods speak to each other. Of policies that match, the kernel obeys the
/// one with the lowest number; those of charon begin at 366,911, those of libreswan at 1.7
/// million.
pub const PRIORITY_ALLOW: u32 = 58_736;
/// Policies for one peer.
pub const PRIORITY_PEER: u32 = 58_740;
/// Policies that block what no peer's policy takes.
pub const PRIORITY_BLOCK: u32 = 58_750;

/// All priorities of ours; some are left free.
const PRIORITIES: RangeInclusive<u32> = 58_736..=58_751;

/// Whether a policy of this priority may be ours.
pub fn is_our_priority(priority: u32) -> bool {
    PRIORITIES.contains(&priority)
}

/// Whether a request ID is ours: that of an SA, a template, or a blocking policy's mark.
pub fn is_our_reqid(reqid: u32) -> bool {
    reqid & 0xffff_0000 == REQID_BASE
}

/// Whether an SA with this request ID is one with a peer of ours. One that is tried is not, whoever
/// tries it.
pub(crate) fn is_our_sa(reqid: u32) -> bool {
    is_our_reqid(reqid) && reqid != REQID_PROBE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_end_where_sixteen_bits_end() {
        assert!(is_our_reqid(REQID_BASE) && is_our_reqid(0x7e57_ffff));
        assert!(!is_our_reqid(0x7e56_ffff) && !is_our_reqid(0x7e58_0000) && !is_our_reqid(1));
        assert!(is_our_sa(0x7e57_0001) && !is_our_sa(REQID_PROBE) && !is_our_sa(1));
    }

    #[test]
    fn priorities_are_before_those_of_other_daemons() {
        for ours in [PRIORITY_ALLOW, PRIORITY_PEER, PRIORITY_BLOCK] {
            assert!(is_our_priority(ours) && ours < 366_911);
        }
        assert!(!is_our_priority(366_911) && !is_our_priority(0));
    }
}
