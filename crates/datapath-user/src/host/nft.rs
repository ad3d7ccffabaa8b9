//! The nft table that drops clear packets of protected flows.

use testudo_datapath::{ClearMatch, DatapathError, FIREWALL_COUNTERS, FIREWALL_TABLE, firewall};
use testudo_model::TrafficPolicy;
use testudo_netlink::{Nft, NftError, counted_packets};

use super::HostOptions;

/// Makes the table say what the policy says.
pub(super) fn apply(options: &HostOptions, policy: &TrafficPolicy) -> Result<(), DatapathError> {
    let nft = Nft::new(&options.nft);
    let clear = ClearMatch::beside_device(&options.device);
    match firewall(policy, &clear) {
        Some(script) => nft.apply(&script).map_err(refused),
        None => remove(options),
    }
}

/// Removes the table, if it is there.
pub(super) fn remove(options: &HostOptions) -> Result<(), DatapathError> {
    let nft = Nft::new(&options.nft);
    nft.remove_table(FIREWALL_TABLE).map_err(refused)
}

/// Packets dropped by the table so far; nothing when it is not there.
pub(super) fn counters() -> Vec<(&'static str, u64)> {
    counted_packets(FIREWALL_TABLE, &FIREWALL_COUNTERS).unwrap_or_default()
}

fn refused(error: NftError) -> DatapathError {
    let missing = |remedy: &str| DatapathError::Missing {
        what: format!("{error}, without which clear packets cannot be dropped"),
        remedy: remedy.into(),
    };
    match &error {
        NftError::NoProgram => missing("install the package nftables"),
        NftError::NoTables(_) => missing("use a kernel with nf_tables and its family inet"),
        NftError::Failed(reason) => DatapathError::Refused {
            operation: "run nft".into(),
            reason: reason.clone(),
        },
    }
}
