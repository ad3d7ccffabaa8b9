//! Named network namespaces: made, opened, deleted, and their settings under `/proc/sys/net`.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};
use rustix::thread::UnshareFlags;
use testudo_netlink::{Netlink, open_netns, run_in_netns};

/// Where `ip netns` looks.
pub(crate) const NAMED: &str = "/run/netns";
/// A namespace's file is mounted once; more layers than this mean that something else is wrong.
const MOUNT_LAYERS: usize = 16;

/// A directory of named network namespaces.
#[derive(Debug, Clone)]
pub struct Namespaces {
    directory: PathBuf,
}

impl Namespaces {
    /// Namespaces in a directory: `/run/netns` as root, else one of the lab's own.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The file of a namespace.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Opens a namespace.
    pub fn open(&self, name: &str) -> Result<OwnedFd> {
        let path = self.path(name);
        open_netns(&path)
            .with_context(|| format!("namespace {name}: is the lab up? (testudo lab status)"))
    }

    /// Makes a namespace with its loopback up. One of that name must not be there.
    pub fn create(&self, name: &str) -> Result<OwnedFd> {
        self.prepare()?;
        let path = self.path(name);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .with_context(|| format!("make namespace {}", path.display()))?;
        // A thread of its own, since the new namespace is entered by the thread that makes it.
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<()> {
                    // SAFETY: a new network namespace changes no file descriptor and no memory;
                    // the thread ends right after.
                    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                        .context("unshare: a new network namespace needs CAP_SYS_ADMIN")?;
                    mount_bind("/proc/thread-self/ns/net", &path)
                        .with_context(|| format!("mount {}", path.display()))?;
                    let mut netlink = Netlink::open()?;
                    let loopback = netlink.link_index("lo")?;
                    netlink.set_up(loopback)?;
                    Ok(())
                })
                .join()
                .unwrap_or_else(|_| bail!("the thread that makes a namespace failed"))
        });
        if let Err(error) = made {
            let _ = self.delete(name);
            return Err(error.context(format!("make namespace {name}")));
        }
        self.open(name)
    }

    /// Deletes a namespace; one that is not there is no error.
    pub fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        for _ in 0..MOUNT_LAYERS {
            if unmount(&path, UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("delete namespace {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The names there are.
    pub fn list(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Makes the directory, and in the place where `ip netns` looks a shared mount of it, so that
    /// a namespace deleted here is gone in every mount namespace.
    fn prepare(&self) -> Result<()> {
        let directory = &self.directory;
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        if directory != Path::new(NAMED) {
            return Ok(());
        }
        // As iproute2 does: one at a time, or two would mount it over each other.
        let lock = fs::File::open(directory).with_context(|| format!("open {NAMED}"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).context("lock /run/netns")?;
        let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        if mount_change(directory, shared).is_err() {
            mount_bind_recursive(directory, directory)
                .with_context(|| format!("mount {NAMED} on itself (needs CAP_SYS_ADMIN)"))?;
            mount_change(directory, shared).with_context(|| format!("share {NAMED}"))?;
        }
        Ok(())
    }
}

/// Runs `run` on a thread inside a namespace, errors of both kinds in one.
pub(crate) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    run: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    run_in_netns(netns, run)?
}

/// Writes settings below `/proc/sys/net` of a namespace. A setting that the kernel does not have
/// is skipped.
pub(crate) fn set_sysctls(netns: &OwnedFd, settings: &[(&str, &str)]) -> Result<()> {
    inside(netns.as_fd(), || {
        for (key, value) in settings {
            let path = Path::new("/proc/sys/net").join(key);
            match fs::write(&path, value) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other.with_context(|| format!("write {value} to {}", path.display()))?,
            }
        }
        Ok(())
    })
}

/// Device and inode of a namespace's file, by which `/proc/PID/ns/net` is compared.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
