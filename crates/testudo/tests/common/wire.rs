//! The underlay as tcpdump sees it: a witness that shares no code with us.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Lab;

/// A tcpdump on the underlay.
struct Dump {
    child: Child,
    said: Option<JoinHandle<Vec<String>>>,
}

impl Dump {
    /// `netns` is the name of the underlay's namespace.
    fn start(netns: &str, arguments: &[&str]) -> (Self, ChildStdout) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", netns, "tcpdump", "-n", "-U"])
            .args(["--immediate-mode", "-B", "16384"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip netns exec runs tcpdump");
        let out = child.stdout.take().expect("a pipe");
        let mut err = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut first = Vec::new();
        listening(&mut err, &mut first);
        let said = std::thread::spawn(move || {
            first.extend(err.lines().map_while(Result::ok));
            first
        });
        let dump = Self {
            child,
            said: Some(said),
        };
        (dump, out)
    }

    /// Ends it and returns what it said.
    fn stop(&mut self) -> Vec<String> {
        // What was put on the wire a moment ago is still on its way to it.
        std::thread::sleep(Duration::from_millis(200));
        // `ip netns exec` becomes tcpdump, so the number is tcpdump's.
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::INT);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let said = self.said.take().map(JoinHandle::join);
        said.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until tcpdump says that it listens: nothing is missed from here on.
fn listening(err: &mut BufReader<ChildStderr>, said: &mut Vec<String>) {
    loop {
        let mut line = String::new();
        let read = err.read_line(&mut line).expect("tcpdump's words are text");
        assert!(read > 0, "tcpdump ended: {said:?}");
        let ready = line.contains("listening on");
        said.push(line.trim().to_owned());
        if ready {
            return;
        }
    }
}

/// Counts packets on every link of the underlay that match a filter.
pub(crate) struct Watch {
    dump: Dump,
    lines: JoinHandle<Vec<String>>,
}

impl Watch {
    /// Packets of protected flows that are in clear: the overlay's port, or a pod's address on
    /// the outside.
    pub(crate) fn clear(lab: &Lab) -> Self {
        let layout = lab.inner().layout();
        let filter = match layout.overlay_port {
            Some(port) => format!("udp port {port}"),
            None => {
                let nets: Vec<String> = layout
                    .cluster_cidrs
                    .iter()
                    .map(|cidr| format!("net {cidr}"))
                    .collect();
                nets.join(" or ")
            }
        };
        Self::start(lab, &filter)
    }

    /// Packets that match a filter.
    pub(crate) fn start(lab: &Lab, filter: &str) -> Self {
        Self::start_in(&lab.inner().layout().underlay_netns, filter)
    }

    /// The same in a namespace of this name, on every link there, those that come later too.
    pub(crate) fn start_in(netns: &str, filter: &str) -> Self {
        let (dump, out) = Dump::start(netns, &["-i", "any", "-q", "-l", filter]);
        let lines = std::thread::spawn(move || {
            // Enough to count small numbers exactly and to show what was seen.
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            let mut kept = Vec::new();
            for line in lines {
                // It ends with an empty line when it is interrupted.
                if !line.is_empty() && kept.len() < 100_000 {
                    kept.push(line);
                }
            }
            kept
        });
        Self { dump, lines }
    }

    /// The packets seen, a line each. Of many, a busy machine may miss some; of none it cannot.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Vec<String> {
        let said = self.dump.stop();
        let lines = self.lines.join().expect("tcpdump's lines are read");
        assert!(
            said.iter()
                .any(|line| line.contains("packets captured") || line.contains("packet captured")),
            "tcpdump did not end by itself: {said:?}"
        );
        lines
    }

    /// Fails if there was one.
    #[track_caller]
    pub(crate) fn stop_with_none(self) {
        let lines = self.stop();
        assert!(
            lines.is_empty(),
            "{} packets of protected flows in clear, the first:\n{}",
            lines.len(),
            lines[..lines.len().min(5)].join("\n")
        );
    }
}

/// Writes all that crosses one node's link into a file.
pub(crate) struct Recording {
    dump: Dump,
    file: PathBuf,
}

impl Recording {
    /// Begins; `node`'s port on the underlay's bridge is what is recorded.
    pub(crate) fn start(lab: &Lab, node: &str, file: &Path) -> Self {
        Self::start_in(&lab.inner().layout().underlay_netns, node, file)
    }

    /// The same of a link in a namespace of this name.
    pub(crate) fn start_in(netns: &str, link: &str, file: &Path) -> Self {
        let path = file.to_str().expect("the path is text");
        // -Z: tcpdump would give up root before it opens the file.
        let (dump, _) = Dump::start(netns, &["-i", link, "-s", "0", "-Z", "root", "-w", path]);
        Self {
            dump,
            file: file.to_owned(),
        }
    }

    /// Ends; the file is whole.
    pub(crate) fn stop(mut self) -> PathBuf {
        self.dump.stop();
        self.file.clone()
    }
}
