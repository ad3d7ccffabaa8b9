//! What this kernel can do, found out by trying.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use testudo_datapath::DatapathError;
use testudo_netlink::{
    Error, Xfrm, XfrmAlgorithm, XfrmDirection, XfrmKey, XfrmLimits, XfrmMode, XfrmReplay, XfrmSa,
    XfrmSaId,
};

use crate::tag::REQID_PROBE;

/// How long the SA that is tried stands should nobody be left to remove it.
const STAY: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// SAs have directions (XFRMA_SA_DIR, Linux 6.10 and later).
    pub directions: bool,
    /// The host has IPv6.
    pub ipv6: bool,
    /// The kernel gives an SA's key back. In lockdown (confidentiality) it does not, and an SA
    /// cannot be made anew at a peer's other address.
    pub keys_readable: bool,
    /// CPUs that may have outbound SAs of their own (XFRMA_SA_PCPU, Linux 6.13 and later), those
    /// numbered from 0; 0: the kernel has no such SAs.
    pub cpus: u32,
}

/// Opens a socket to the kernel's XFRM and tries it with one SA, which is removed again.
pub(crate) fn probe() -> Result<(Xfrm, Facts), DatapathError> {
    let mut xfrm = Xfrm::open().map_err(|e| missing(&e))?;
    let found = match attempt(&mut xfrm, true) {
        // Older kernels refuse a window of 0 with ESN.
        Err(e) if e.errno() == Some(libc::EINVAL) => attempt(&mut xfrm, false),
        other => other,
    };
    let facts = Facts {
        ipv6: std::path::Path::new("/proc/sys/net/ipv6").exists(),
        ..found.map_err(|e| missing(&e))?
    };
    Ok((xfrm, facts))
}

/// Installs, reads back and removes an SA; whether the kernel keeps its direction, and gives its
/// key back.
fn attempt(xfrm: &mut Xfrm, directions: bool) -> Result<Facts, Error> {
    // Nothing is sealed with the key, and it is gone at once. It is random all the same.
    let key: [u8; 36] = random();
    let sa = sample(directions, &key);
    xfrm.add_sa(&sa)?;
    let read = xfrm.sa(&sa.id);
    match xfrm.delete_sa(&sa.id) {
        // Somebody has flushed it, or its time was over.
        Err(e) if !e.is_not_found() => return Err(e),
        _ => {}
    }
    Ok(read?.map_or_else(Facts::default, |read| Facts {
        directions: read.sa.direction.is_some(),
        keys_readable: same_key(&read.sa.algorithm, &key),
        // Kernels that do not know the attribute take no notice of it.
        cpus: read.sa.cpu.map_or(0, |_| cpus()),
        ..Facts::default()
    }))
}

/// The CPUs that may run, up to the last one that does. SAs are bound to numbers below that of all
/// that may ever be there.
fn cpus() -> u32 {
    let list = |name| std::fs::read_to_string(format!("/sys/devices/system/cpu/{name}"));
    let read = |name| list(name).ok().and_then(|text| last_and_count(&text));
    match (read("online"), read("possible")) {
        (Some((last, _)), Some((_, possible))) => (last + 1).min(possible),
        _ => 1,
    }
}

/// Of a list of CPUs as the kernel writes them, `0-3,8`: the last, and how many there are.
fn last_and_count(list: &str) -> Option<(u32, u32)> {
    let mut all = (0, 0);
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        all = (last, all.1 + last.checked_sub(first)? + 1);
    }
    Some(all)
}

fn same_key(read: &XfrmAlgorithm, given: &[u8]) -> bool {
    matches!(read, XfrmAlgorithm::Aead { key, .. } if key.as_bytes() == given)
}

/// An SA that carries nothing.
pub(crate) fn sample(directions: bool, key: &[u8]) -> XfrmSa {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    // The SPI is random too: an agent and a doctor may try at the same moment. Those below 256 are
    // reserved (RFC 4303 2.1).
    let spi = u32::from_ne_bytes(random()) | 0x100;
    XfrmSa {
        id: XfrmSaId {
            destination: loopback,
            spi,
            mark: (0, 0),
        },
        source: loopback,
        reqid: REQID_PROBE,
        mode: XfrmMode::Transport,
        selector: None,
        algorithm: XfrmAlgorithm::Aead {
            name: "rfc4106(gcm(aes))".into(),
            key: XfrmKey::new(key),
            icv_bits: 128,
        },
        encapsulation: None,
        replay: XfrmReplay {
            window: u32::from(!directions),
            esn: true,
            ..XfrmReplay::default()
        },
        direction: directions.then_some(XfrmDirection::Out),
        limits: XfrmLimits {
            hard_time: Some(STAY),
            ..XfrmLimits::default()
        },
        output_mark: None,
        if_id: 0,
        cpu: Some(0),
        mapping_interval: None,
    }
}

fn random<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    // SAFETY: the buffer is live and of the length that is given.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    bytes
}

/// What the kernel lacks, by how it refuses.
pub(crate) fn missing(error: &Error) -> DatapathError {
    let lacks = |what: &str, remedy: &str| DatapathError::Missing {
        what: format!("{what} ({error})"),
        remedy: remedy.into(),
    };
    if lacks_xfrm(error) {
        return lacks(
            "the kernel has no XFRM",
            "load the module xfrm_user, or use the userspace datapath",
        );
    }
    if error.is_not_permitted() {
        return lacks(
            "the capability CAP_NET_ADMIN is missing",
            "run as root, or give the process CAP_NET_ADMIN",
        );
    }
    match error.errno() {
        Some(libc::EPROTONOSUPPORT) => lacks(
            "the kernel has no ESP",
            "load the modules esp4 and esp6, or use the userspace datapath",
        ),
        Some(libc::ENOSYS | libc::ENOENT) => lacks(
            "the kernel lacks an algorithm of ESP",
            "load the modules of AES-GCM (gcm, aes, ghash), or use the userspace datapath",
        ),
        _ => DatapathError::Refused {
            operation: "try the kernel's IPsec".into(),
            reason: error.to_string(),
        },
    }
}

/// No socket to XFRM can be had: the kernel is built without it.
pub(crate) fn lacks_xfrm(error: &Error) -> bool {
    match error {
        Error::Socket { source, .. } => source.raw_os_error() == Some(libc::EPROTONOSUPPORT),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tag::is_our_sa;

    #[test]
    fn probes_at_the_same_moment_are_different_sas_that_nobody_takes_for_a_peers() {
        let (one, other) = (sample(true, &[7; 36]), sample(true, &[7; 36]));
        assert_ne!(one.id, other.id);
        assert!(one.id.spi >= 0x100 && other.id.spi >= 0x100);
        assert!(!is_our_sa(one.reqid));
        assert_eq!(one.limits.hard_time, Some(STAY));
    }

    #[test]
    fn cpus_are_read_as_the_kernel_lists_them() {
        assert_eq!(last_and_count("0\n"), Some((0, 1)));
        assert_eq!(last_and_count("0-3"), Some((3, 4)));
        assert_eq!(last_and_count("0,2-3,8\n"), Some((8, 4)));
        for strange in ["", "\n", "a", "3-1", "0-", "0,"] {
            assert_eq!(last_and_count(strange), None, "{strange:?}");
        }
        assert!(cpus() >= 1);
    }
}
