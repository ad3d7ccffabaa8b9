//! Processes that outlive the one that started them, and are known by PID and start time.
//!
//! A process is recorded before it becomes its program: it begins as a shell that waits for a line,
//! and ends if the line never comes. So however `up` ends, `down` knows everything that runs.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::certificates::private_file;
use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The shell's text before it becomes the program: after the line the input is empty.
const GATE: &str = r#"read -r _ && exec "$@" </dev/null"#;

/// How long a process has to end by itself before it is killed, and then to be gone.
const GRACE: Duration = Duration::from_secs(10);

/// A process of ours, as a line of the record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// What it is, for instance `etcd`.
    pub(crate) name: String,
    pid: i32,
    /// Its start in ticks since the machine's.
    start: u64,
    /// The boot in which it was started.
    boot: String,
}

impl Process {
    /// Starts a program with its output appended to `log`, in a session of its own, and writes it
    /// into `record` first.
    pub(crate) fn start(name: &str, words: &[String], log: &Path, record: &Path) -> Result<Self> {
        let log = append(log)?;
        let mut command = Command::new("sh");
        command
            .args(["-c", GATE, name])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("a log's descriptor")?)
            .stderr(log)
            .env_remove("KUBECONFIG")
            // For the Go programs, which all are: memory is there and processors are not, and the signals by
            // which the runtime interrupts itself are dear under user-mode-linux.
            .env("GOGC", "400")
            .env("GODEBUG", "asyncpreemptoff=1")
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let pid = i32::try_from(child.id()).context("a PID")?;
        let process = Self {
            name: name.to_owned(),
            pid,
            start: start_time(pid).context("a process that waits has a start time")?,
            boot: boot()?,
        };
        let mut line = append(record)?;
        writeln!(line, "{pid} {} {} {name}", process.start, process.boot)
            .with_context(|| record.display().to_string())?;
        let mut gate = child.stdin.take().context("the input is a pipe")?;
        gate.write_all(b"go\n").context("a shell that waits")?;
        drop(gate);
        // Whoever starts it may live on, a test for instance, and must not keep its remains.
        std::thread::spawn(move || child.wait());
        Ok(process)
    }

    /// All that were written into a record; none if there is no such file.
    pub(crate) fn recorded(record: &Path) -> Vec<Self> {
        let text = fs::read_to_string(record).unwrap_or_default();
        text.lines().filter_map(Self::parse).collect()
    }

    /// Takes those of one name out of a record.
    pub(crate) fn forget(name: &str, record: &Path) -> Result<()> {
        let mut kept = Self::recorded(record);
        kept.retain(|process| process.name != name);
        let text: String = kept.iter().map(Self::line).collect();
        // Whole at any time: by it `down` knows what runs.
        let partial = record.with_extension("partial");
        private_file(&partial, text.as_bytes())?;
        fs::rename(&partial, record).with_context(|| record.display().to_string())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        Some(Self {
            pid: words.next()?.parse().ok()?,
            start: words.next()?.parse().ok()?,
            boot: words.next()?.to_owned(),
            name: words.next()?.to_owned(),
        })
    }

    /// This process itself.
    pub(crate) fn own(name: &str) -> Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Ok(Self {
            name: name.to_owned(),
            pid,
            start: start_time(pid).context("this process has a start time")?,
            boot: boot()?,
        })
    }

    /// Its line in a record.
    pub(crate) fn line(&self) -> String {
        format!("{} {} {} {}\n", self.pid, self.start, self.boot, self.name)
    }

    /// Whether it runs still, and is no other with the same PID.
    pub(crate) fn is_alive(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot) && start_time(self.pid) == Some(self.start)
    }

    /// Its PID.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Its child, of which it has one: the first process of a node.
    pub(crate) fn only_child(&self) -> Option<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Its resident memory in KiB.
    pub(crate) fn memory(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return;
        };
        // The descriptor names one process for good: checked after it was opened, the signal
        // cannot reach another that has got the PID meanwhile.
        if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_alive()
        {
            let _ = pidfd_send_signal(descriptor, signal);
        }
    }
}

/// Ends processes: asks, waits, kills, waits. Those that are still there afterwards.
pub(crate) fn end(processes: &[Process]) -> Vec<Process> {
    signal_and_wait(processes, &[Signal::TERM, Signal::KILL])
}

/// Ends processes that have nothing to bring to an end first. Those that are still there afterwards.
pub(crate) fn kill(processes: &[Process]) -> Vec<Process> {
    signal_and_wait(processes, &[Signal::KILL])
}

fn signal_and_wait(processes: &[Process], signals: &[Signal]) -> Vec<Process> {
    for signal in signals {
        for process in processes {
            process.signal(*signal);
        }
        let deadline = Instant::now() + GRACE;
        while processes.iter().any(Process::is_alive) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    processes
        .iter()
        .filter(|process| process.is_alive())
        .cloned()
        .collect()
}

/// The last lines of a log, for an error.
pub(crate) fn last_lines(log: &Path, count: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    format!("{}:\n  {}", log.display(), lines[from..].join("\n  "))
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// The start time of a process that is no zombie; the name in parentheses may hold anything.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // The state is field 3, the start time field 22.
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).context(path)?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_recorded_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (log, record) = (folder.path().join("log"), folder.path().join("record"));
        let words = ["sh", "-c", "echo here; exec sleep 60"].map(str::to_owned);
        let process = Process::start("sleeper", &words, &log, &record).unwrap();
        assert_eq!(Process::recorded(&record), std::slice::from_ref(&process));
        assert!(process.is_alive());
        for _ in 0..600 {
            if last_lines(&log, 1).ends_with("here") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(last_lines(&log, 1).ends_with("here"));
        let other = Process {
            start: process.start + 1,
            ..process.clone()
        };
        assert!(!other.is_alive());
        assert_eq!(end(&[other, process.clone()]), []);
        assert!(!process.is_alive());
        Process::forget("another", &record).unwrap();
        assert_eq!(Process::recorded(&record), [process]);
        Process::forget("sleeper", &record).unwrap();
        assert_eq!(Process::recorded(&record), []);
    }

    #[test]
    fn a_gate_that_never_opens_starts_nothing() {
        let output = Command::new("sh")
            .args(["-c", GATE, "gate", "echo", "started"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.stdout.is_empty() && !output.status.success());
    }

    #[test]
    fn another_boot_is_another_process() {
        let mut process = Process::own("test").unwrap();
        assert!(process.is_alive());
        assert_eq!(
            Process::parse(process.line().trim_end()),
            Some(process.clone())
        );
        process.boot = "earlier".into();
        assert!(!process.is_alive());
    }
}
