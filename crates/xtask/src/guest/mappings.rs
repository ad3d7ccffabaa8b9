//! How many mappings a process of this machine may have.
//!
//! user-mode-linux maps each page of a guest's process by itself, as far as pages are not neighbours in the
//! guest's memory too. A process that meets the machine's limit (65,530 where nobody has raised it: 256 MiB in the
//! worst case) faults for ever on the next page, and its signals wait for it.

use std::fs;

use anyhow::{Context, bail};

const LIMIT: &str = "/proc/sys/vm/max_map_count";
/// MiB up to which a guest has no process that large.
const SMALL: u32 = 2048;
/// What distributions set that have raised it.
const ENOUGH: u32 = 1_048_576;

/// Sees to it that a guest of so many MiB may have as many mappings as it has pages. The limit is the whole
/// machine's, and stays raised until it is started again: guests may share it.
pub(super) fn ensure(memory: u32) -> anyhow::Result<()> {
    let text = fs::read_to_string(LIMIT).context(LIMIT)?;
    let limit = text
        .trim()
        .parse()
        .with_context(|| format!("{LIMIT}: {text}"))?;
    let Some(wanted) = lacking(memory, limit) else {
        return Ok(());
    };
    if fs::write(LIMIT, wanted.to_string()).is_err() {
        bail!(
            "a process of a guest with {memory} MiB may need more mappings than the {limit} that this machine \
             gives; as root: sysctl -w vm.max_map_count={wanted}"
        );
    }
    eprintln!("==> guest: vm.max_map_count of this machine is {wanted} now; it was {limit}");
    Ok(())
}

/// What the limit has to be where it is too low.
fn lacking(memory: u32, limit: u32) -> Option<u32> {
    let pages = memory.saturating_mul(256);
    let wanted = pages.max(ENOUGH);
    (memory > SMALL && limit < pages).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_guest_needs_more_than_there_is() {
        assert_eq!(lacking(1024, 65_530), None);
        assert_eq!(lacking(2048, 65_530), None);
        assert_eq!(lacking(4096, 65_530), Some(1_048_576));
        assert_eq!(lacking(4096, 1_048_576), None);
        assert_eq!(lacking(8192, 1_048_576), Some(2_097_152));
        assert_eq!(lacking(u32::MAX, 65_530), Some(u32::MAX));
    }
}
