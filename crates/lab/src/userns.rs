//! User namespaces: how a lab runs without root, and how later commands get inside.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::place::INSIDE;
use crate::process::Process;

/// What to do when the kernel or the distribution forbids user namespaces.
pub(crate) const REMEDY: &str = "run as root, or allow user namespaces: user.max_user_namespaces above 0, \
    and where they exist kernel.unprivileged_userns_clone=1, \
    kernel.apparmor_restrict_unprivileged_userns=0";

/// Makes `command` run as root of a new user namespace with mounts of its own.
pub(crate) fn in_new_namespace(command: &mut Command, base: &Path) {
    command.env(INSIDE, base);
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // Made before the fork: after it nothing may allocate.
    let uid_map = format!("0 {uid} 1");
    let gid_map = format!("0 {gid} 1");
    let set_up = move || -> io::Result<()> {
        // SAFETY: unshare takes one integer.
        check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) })?;
        // A group may be mapped by its owner only after setgroups has been given up.
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", uid_map.as_bytes())?;
        write_file(c"/proc/self/gid_map", gid_map.as_bytes())?;
        // SAFETY: all pointers are null or constant C strings.
        check(unsafe {
            libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            )
        })
    };
    // SAFETY: the closure makes system calls alone, which are allowed between fork and exec.
    unsafe { command.pre_exec(set_up) };
}

/// Makes `command` run inside the namespaces of the lab that `supervisor` holds.
pub(crate) fn in_namespace_of(
    command: &mut Command,
    supervisor: Process,
    base: &Path,
) -> Result<()> {
    let open = |kind: &str| -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/{kind}", supervisor.pid);
        File::open(&path)
            .map(OwnedFd::from)
            .with_context(|| format!("open {path}: is it your lab?"))
    };
    let user = open("user")?;
    let mounts = open("mnt")?;
    let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let directory = CString::new(directory.as_os_str().as_bytes()).context("current directory")?;
    command.env(INSIDE, base);
    let enter = move || -> io::Result<()> {
        // SAFETY: setns takes two integers; the descriptors are owned by this closure.
        check(unsafe { libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER) })?;
        // SAFETY: as above.
        check(unsafe { libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) })?;
        // Entering a mount namespace moves the process to its root.
        // SAFETY: the string lives in the closure and ends with a zero byte.
        check(unsafe { libc::chdir(directory.as_ptr()) })
    };
    // SAFETY: the closure makes system calls alone, which are allowed between fork and exec.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `std::fs::write` may allocate; this may not.
fn write_file(path: &std::ffi::CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and the buffer is as long as said.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    let error = io::Error::last_os_error();
    // SAFETY: the descriptor is ours and is not used again.
    unsafe { libc::close(fd) };
    if written == bytes.len() as isize {
        Ok(())
    } else {
        Err(error)
    }
}
