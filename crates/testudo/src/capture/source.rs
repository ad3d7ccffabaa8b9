//! Where a capture's packets come from, as a stream in pcap format: tcpdump, sockets of our own where there
//! is none, or the same verb in an agent's pod.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use testudo_lab::Recorder;

use crate::pods;

/// How long tcpdump may take to begin.
const START: Duration = Duration::from_secs(10);

/// How long it may take where an API server and a kubelet are on the way.
pub(super) const START_FAR: Duration = Duration::from_secs(30);

/// Lines that are kept of what a program says before it begins.
const SAID: usize = 20;

/// A capture that runs; it ends with this value.
pub(super) struct Source {
    output: Option<Output>,
    process: Option<Child>,
    recorder: Option<Own>,
}

/// Sockets of our own.
struct Own {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

enum Output {
    Process(ChildStdout),
    Recorder(PipeReader),
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Process(output) => output.read(buffer),
            Self::Recorder(output) => output.read(buffer),
        }
    }
}

impl Source {
    /// tcpdump, with all but the filter said. `None`: it is not installed.
    pub(super) fn tcpdump(mut command: Command) -> anyhow::Result<Option<Self>> {
        match piped(&mut command).spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            spawned => {
                let child = spawned.context("tcpdump cannot be started")?;
                Self::of(child, "tcpdump", START).map(Some)
            }
        }
    }

    /// The verb in an agent's pod.
    pub(super) fn pod(mut command: Command) -> anyhow::Result<Self> {
        let child = pods::start(piped(&mut command))?;
        Self::of(child, "the capture in the agent's pod", START_FAR)
    }

    /// Sockets of our own on a link of this namespace, of each frame that is wanted `cut` bytes at most.
    pub(super) fn own(
        link: &str,
        cut: usize,
        wanted: impl FnMut(u32, &[u8]) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        let recorder = Recorder::open(link)?;
        let (reader, writer) = std::io::pipe().context("a pipe")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || recorder.run(cut, wanted, writer, &stopped))?;
        Ok(Self {
            output: Some(Output::Recorder(reader)),
            process: None,
            recorder: Some(Own { stop, thread }),
        })
    }

    fn of(child: Child, name: &str, patience: Duration) -> anyhow::Result<Self> {
        let mut source = Self {
            output: None,
            process: Some(child),
            recorder: None,
        };
        let Some(child) = &mut source.process else {
            bail!("no process");
        };
        let output = child.stdout.take().context("a process without output")?;
        source.output = Some(Output::Process(output));
        let errors = child.stderr.take().context("a process without errors")?;
        wait_until_listening(errors, name, patience)?;
        Ok(source)
    }

    /// The stream; to be taken once.
    pub(super) fn output(
        &mut self,
        copy: Option<Copy>,
    ) -> anyhow::Result<impl Read + Send + use<>> {
        let input = self.output.take().context("its output is taken")?;
        Ok(Tee { input, copy })
    }

    /// Ends it. Frames that could not be taken are told of.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.process.take() {
            // What is to be said about a process that is gone already has been said.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(own) = self.recorder.take() {
            own.stop.store(true, Ordering::Relaxed);
            let done = own.thread.join();
            let missed = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            if missed > 0 {
                eprintln!("{missed} frames came faster than they could be taken");
            }
        }
        Ok(())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = self.stop();
    }
}

fn piped(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
}

/// Packets are seen from the moment on at which the program says that it listens.
fn wait_until_listening(
    errors: impl Read + Send + 'static,
    name: &str,
    patience: Duration,
) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            // After the wait nobody listens, but the program must not block on a full pipe.
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + patience;
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            // Ours may name what it does in an error too.
            Ok(line) if line.contains("listening on") && !line.starts_with("testudo:") => {
                return Ok(());
            }
            Ok(line) if said.len() < SAID => said.push(line),
            Ok(_) => {}
            Err(_) if said.is_empty() => bail!("{name} did not begin, and said nothing"),
            Err(_) => bail!(
                "{name} did not begin: {}",
                pods::last_line(said.join("\n").as_bytes())
            ),
        }
    }
}

/// Where a copy of the stream goes.
pub(super) enum Copy {
    File(File),
    Stdout,
}

/// Passes a stream on, and keeps a copy.
struct Tee {
    input: Output,
    copy: Option<Copy>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        match &mut self.copy {
            Some(Copy::File(file)) => file.write_all(&buffer[..n])?,
            Some(Copy::Stdout) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&buffer[..n])?;
                out.flush()?;
            }
            None => {}
        }
        Ok(n)
    }
}
