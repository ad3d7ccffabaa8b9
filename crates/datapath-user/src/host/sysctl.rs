//! Reverse path filters.
//!
//! While packets to a peer are steered into our device, the way back to it leads there too: a
//! strict filter on the underlay's link would drop the clear packets of a peer that is still to
//! switch. The value is loosened, the earlier one kept in a file until it is put back, so that a
//! crash does not lose it.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use testudo_datapath::DatapathError;
use testudo_netlink::{Link, LinkChange, Netlink};

use super::{HostOptions, refused};

const FILE: &str = "rp_filter";
const STRICT: u32 = 1;
/// RFC 3704's "loose": a packet's source needs some way back, over any link.
pub(crate) const LOOSE: u32 = 2;

pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").exists()
}

/// Whether IPv6, which the kernel has, is switched off on a link.
pub(super) fn ipv6_is_off(link: &str) -> bool {
    let path = Path::new("/proc/sys/net/ipv6/conf")
        .join(link)
        .join("disable_ipv6");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

/// Loosens the filters of our device and of the links that have node addresses.
pub(super) fn loosen(
    netlink: &mut Netlink,
    options: &HostOptions,
    addresses: &[IpAddr],
) -> Result<(), DatapathError> {
    let links = netlink.links().map_err(refused)?;
    let mut kept = read_kept(options)?;
    let all = read_filter("all").unwrap_or(0);
    for own in netlink.addresses().map_err(refused)? {
        if !own.address.addr().is_ipv4() || !addresses.contains(&own.address.addr()) {
            continue;
        }
        let Some(link) = links.iter().find(|link| link.index == own.link) else {
            continue;
        };
        let Some(value) = read_filter(&link.name) else {
            continue;
        };
        if all.max(value) != STRICT {
            continue;
        }
        if !kept.iter().any(|(name, _)| *name == link.name) {
            kept.push((link.name.clone(), value));
            // On disk before it is changed: a crash in between restores what stands anyway.
            write_kept(options, &kept)?;
        }
        write_filter(netlink, link, LOOSE)?;
    }
    if let Some(device) = links.iter().find(|link| link.name == options.device) {
        write_filter(netlink, device, LOOSE)?;
    }
    Ok(())
}

/// Puts earlier values back, where ours still stand.
pub(super) fn restore(netlink: &mut Netlink, options: &HostOptions) -> Result<(), DatapathError> {
    let kept = read_kept(options)?;
    for (name, value) in &kept {
        if read_filter(name) != Some(LOOSE) {
            continue;
        }
        if let Some(link) = netlink.link(name).map_err(refused)? {
            write_filter(netlink, &link, *value)?;
        }
    }
    match fs::remove_file(path(options)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", &path(options), &e)),
        _ => Ok(()),
    }
}

fn filter_path(link: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf")
        .join(link)
        .join("rp_filter")
}

fn read_filter(link: &str) -> Option<u32> {
    fs::read_to_string(filter_path(link))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Through netlink: a container sees /proc/sys read-only. What stands already is not written again.
fn write_filter(netlink: &mut Netlink, link: &Link, value: u32) -> Result<(), DatapathError> {
    if read_filter(&link.name) == Some(value) {
        return Ok(());
    }
    let change = LinkChange {
        reverse_path_filter: Some(value),
        ..LinkChange::default()
    };
    netlink.change_link(link.index, &change).map_err(refused)
}

fn path(options: &HostOptions) -> PathBuf {
    options.state_dir.join(FILE)
}

/// Lines of a link's name and its earlier value.
fn read_kept(options: &HostOptions) -> Result<Vec<(String, u32)>, DatapathError> {
    let text = match fs::read_to_string(path(options)) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed("read", &path(options), &e)),
    };
    let lines = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(lines.collect())
}

fn write_kept(options: &HostOptions, kept: &[(String, u32)]) -> Result<(), DatapathError> {
    fs::create_dir_all(&options.state_dir).map_err(|e| failed("make", &options.state_dir, &e))?;
    let text: String = kept
        .iter()
        .map(|(name, value)| format!("{name} {value}\n"))
        .collect();
    let temporary = options.state_dir.join(format!(".{FILE}.new"));
    fs::write(&temporary, text).map_err(|e| failed("write", &temporary, &e))?;
    fs::rename(&temporary, path(options)).map_err(|e| failed("write", &path(options), &e))
}

fn failed(verb: &str, path: &Path, error: &std::io::Error) -> DatapathError {
    DatapathError::Refused {
        operation: format!("{verb} {}", path.display()),
        reason: error.to_string(),
    }
}
