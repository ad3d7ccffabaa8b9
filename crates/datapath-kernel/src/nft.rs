//! The nft table that drops clear packets of protected flows: the second line, behind the
//! policies that block. It holds where the kernel asks no policy at all, as it did for some of
//! its own tunnel devices (CVE-2020-25645, CVE-2020-1749), and it counts.

use testudo_datapath::{ClearMatch, DatapathError, FIREWALL_COUNTERS, FIREWALL_TABLE, firewall};
use testudo_model::TrafficPolicy;
use testudo_netlink::{Nft, NftError, counted_packets};

/// Makes the table say what the policy says. `Some`: this kernel has no such tables, why, and the
/// policies that block hold alone.
///
/// # Errors
/// The program is missing, or it refused.
pub fn apply(nft: &Nft, policy: &TrafficPolicy) -> Result<Option<String>, DatapathError> {
    let done = match firewall(policy, &ClearMatch::beside_xfrm()) {
        Some(script) => nft.apply(&script),
        None => nft.remove_table(FIREWALL_TABLE),
    };
    match done {
        Ok(()) => Ok(None),
        Err(NftError::NoTables(reason)) => Ok(Some(format!(
            "this kernel has no nftables for IP: XFRM policies alone drop clear packets ({reason})"
        ))),
        Err(error) => Err(refused(&error)),
    }
}

/// Removes the table, if it is there.
///
/// # Errors
/// nft refused.
pub fn remove(nft: &Nft) -> Result<(), DatapathError> {
    nft.remove_table(FIREWALL_TABLE)
        .map_err(|error| refused(&error))
}

/// Clear packets that the table dropped so far, by direction; nothing where there is none.
pub fn drops() -> Vec<(&'static str, u64)> {
    counted_packets(FIREWALL_TABLE, &FIREWALL_COUNTERS).unwrap_or_default()
}

fn refused(error: &NftError) -> DatapathError {
    match error {
        NftError::NoProgram => DatapathError::Missing {
            what: format!("{error}, which drops clear packets behind the kernel's policies"),
            remedy: "install the package nftables".into(),
        },
        NftError::NoTables(reason) | NftError::Failed(reason) => DatapathError::Refused {
            operation: "run nft".into(),
            reason: reason.clone(),
        },
    }
}
