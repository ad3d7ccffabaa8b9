//! The processes of a lab, found by what they carry and not by their number alone.
//!
//! Every process of a lab has `TESTUDO_LAB_ID=<random>` in its environment. A pid in a state file
//! may belong to someone else by now (a crash, a reboot with `/run` on disk); the mark may not.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The variable that marks a lab's processes.
pub const MARK: &str = "TESTUDO_LAB_ID";

/// A process: its number and when it started, which together are never used twice in one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its start in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// The process of this number, if it runs (a zombie does not).
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start })
    }

    /// This process.
    pub fn current() -> Option<Self> {
        Self::find(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Sends a signal to just this process: the descriptor is taken before the check, so that a
    /// reused number is never hit.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return false;
        };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        self.is_alive() && pidfd_send_signal(fd, signal).is_ok()
    }
}

/// The processes that carry the mark of lab `id`, without this one and its parents.
pub fn marked(id: &str) -> Vec<Process> {
    let wanted = format!("{MARK}={id}");
    let own = own_line();
    every_pid()
        .filter(|pid| !own.contains(pid))
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|var| var == wanted.as_bytes())
            })
        })
        .filter_map(Process::find)
        .collect()
}

/// The processes in the network namespace of this device and inode.
pub(crate) fn in_namespace(netns: (u64, u64)) -> Vec<Process> {
    every_pid()
        .filter(|pid| {
            crate::namespaces::identity(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(netns)
        })
        .filter_map(Process::find)
        .collect()
}

/// A process's command line for people.
pub(crate) fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    words.join(" ")
}

/// Waits until none of the lab's processes is left. False: time ran out.
pub(crate) fn wait_gone(id: &str, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if marked(id).is_empty() {
            // A process that is just becoming its program shows no environment for a moment.
            std::thread::sleep(Duration::from_millis(5));
            if marked(id).is_empty() {
                return true;
            }
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn every_pid() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// This process and its parents: `lab exec n1 -- testudo lab down` must not end itself half-way.
fn own_line() -> Vec<i32> {
    let mut line = Vec::new();
    let mut pid = rustix::process::getpid().as_raw_nonzero().get();
    while pid > 1 && line.len() < 64 {
        line.push(pid);
        let parent = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| {
                stat.rsplit_once(')')?
                    .1
                    .split_whitespace()
                    .nth(1)?
                    .parse()
                    .ok()
            });
        match parent {
            Some(parent) => pid = parent,
            None => break,
        }
    }
    line
}

/// A blocked signal stays blocked over fork and exec: the daemon would never hear SIGTERM.
pub(crate) fn unblock_on_spawn(command: &mut Command) {
    // SAFETY: sigemptyset initialises the set before it is read, and both calls are allowed
    // between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) {
                0 => Ok(()),
                error => Err(std::io::Error::from_raw_os_error(error)),
            }
        });
    }
}

/// State and start time. The name in parentheses may hold anything, also parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name_is_read() {
        let mut fields = vec!["1 (a) b) R"; 1];
        fields.extend(["0"; 18]);
        fields.push("777");
        assert_eq!(parse_stat(&fields.join(" ")), Some(('R', 777)));
        assert_eq!(parse_stat("1 (a"), None);
    }

    #[test]
    fn a_marked_child_is_found_and_another_start_time_is_not_signalled() {
        let id = format!("test-{}", std::process::id());
        let mut child = Command::new("sleep")
            .arg("30")
            .env(MARK, &id)
            .spawn()
            .unwrap();
        // A process that is just becoming its program shows no environment for a moment.
        std::thread::sleep(Duration::from_millis(100));
        let found = marked(&id);
        let process = Process::find(child.id().try_into().unwrap()).unwrap();
        assert_eq!(found, [process]);
        let other = Process {
            start: process.start + 1,
            ..process
        };
        assert!(!other.signal(Signal::KILL));
        assert!(process.is_alive());
        assert!(process.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(marked(&id).is_empty());
    }
}
