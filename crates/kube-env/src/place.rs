//! Where clusters are kept while they run, and how all of one goes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::certificates::private_folder;
use crate::lock::Lock;
use crate::network::{self, Network};
use crate::nodes;
use crate::process::{self, Process};

/// The place, where another than `/var/lib/testudo/kube` is wanted.
const PLACE: &str = "TESTUDO_KUBE_DIR";
/// What the names of our network namespaces begin with.
const PREFIX: &str = "testudo-kube-";
/// The record of processes in a cluster's directory.
pub(crate) const RECORD: &str = "processes";
/// The process with which a cluster ends, if there is one.
pub(crate) const OWNER: &str = "owner";
/// The number of its addresses, in a cluster's directory.
pub(crate) const SLOT: &str = "slot";
/// A directory of logs, in a cluster's directory.
pub(crate) const LOGS: &str = "logs";

/// The directory of all clusters.
pub(crate) fn base() -> PathBuf {
    std::env::var_os(PLACE)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| "/var/lib/testudo/kube".into())
}

/// A cluster's directory.
pub(crate) fn directory(name: &str) -> PathBuf {
    base().join(name)
}

/// The network namespace of a cluster's control plane; those of its nodes begin with it and a dot.
pub(crate) fn namespace(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// A name is part of file names, of namespaces and of cgroups.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(
        !name.is_empty() && name.len() <= 40 && name.bytes().all(good) && !name.starts_with('-'),
        "{name:?}: a cluster's name has 1 to 40 small letters, digits and hyphens"
    );
    Ok(())
}

/// Takes a cluster's lock: one process at a time makes it or removes it.
pub(crate) fn lock(name: &str, say: &dyn Fn(&str)) -> Result<Lock> {
    if !rustix::process::geteuid().is_root() {
        bail!("a cluster lives in namespaces, which root alone may make: run this as root");
    }
    private_folder(&base())?;
    Lock::take(&base().join(format!("{name}.lock")), || {
        say(&format!(
            "another process works on cluster {name}; waiting for it"
        ));
    })
}

/// The names of the clusters of which anything is there, in order.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(base()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| check_name(name).is_ok())
        .collect();
    names.sort();
    names
}

/// Ends a cluster: its processes, its namespaces, its directory. Whether anything was there.
///
/// It ends what was recorded, whatever state `up` was in when it ended, and is content to find
/// nothing.
pub fn down(name: &str, say: &dyn Fn(&str)) -> Result<bool> {
    check_name(name)?;
    let lock = lock(name, say)?;
    let was = remove(name)?;
    lock.remove();
    // Fails while there are others, and is then left.
    let _ = fs::remove_dir(base());
    Ok(was)
}

/// Ends the clusters of processes that run no more: tests that were killed. Their names.
pub fn sweep(say: &dyn Fn(&str)) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for name in names() {
        if is_orphan(&name) {
            let lock = lock(&name, say)?;
            // It may have been made anew while the lock was waited for.
            if is_orphan(&name) {
                remove(&name)?;
                lock.remove();
                swept.push(name);
            }
        }
    }
    Ok(swept)
}

fn is_orphan(name: &str) -> bool {
    let owners = Process::recorded(&directory(name).join(OWNER));
    !owners.is_empty() && !owners.iter().any(Process::is_alive)
}

/// As [`down`], for who holds the lock.
pub(crate) fn remove(name: &str) -> Result<bool> {
    let directory = directory(name);
    let mut was = directory.exists();
    let left = process::kill(&Process::recorded(&directory.join(RECORD)));
    if let Some(process) = left.first() {
        bail!("{} (PID {}) does not end", process.name, process.pid());
    }
    let own = namespace(name);
    // The kernel would remove it with the namespace, at a time of its own. Without the namespace the
    // slot may long be another cluster's.
    if network::path(&own).exists()
        && let Ok(slot) = fs::read_to_string(directory.join(SLOT))
    {
        Network::parse(&slot)?.remove_link()?;
    }
    for namespace in network::namespaces(&own) {
        let rest = namespace.strip_prefix(&own);
        // `test` is not to take `test-two` with it.
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            network::remove_namespace(&namespace)?;
            was = true;
        }
    }
    nodes::remove_control_groups(name);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| directory.display().to_string())
        }
        _ => Ok(was),
    }
}

/// Keeps the logs of a cluster that failed: where they are now.
pub(crate) fn keep_logs(name: &str) -> Option<PathBuf> {
    let (from, to) = (
        directory(name).join(LOGS),
        base().join(format!("{name}.logs")),
    );
    let _ = fs::remove_dir_all(&to);
    fs::rename(from, &to).ok().map(|()| to)
}

/// Whether something is of the cluster of that name: for tests that nothing is left.
pub(crate) fn is_there(name: &str) -> bool {
    let own = namespace(name);
    Path::new(&directory(name)).exists() || !network::namespaces(&own).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["dev", "test-1", "0"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "A", "a/b", "a.b", "..", &"a".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
