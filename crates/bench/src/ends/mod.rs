//! Two ends of many connections, each end a process of its own.
//!
//! ```text
//!   hub: one engine, N peers  <-- socket pair -->  spokes: N engines, one peer each
//! ```
//! Every engine has a certificate of its own. Of the N connections the hub begins every other
//! one, the spokes the rest, so that both roles are measured at both ends.

mod driver;
mod hub;
mod link;
mod pool;
mod spokes;
mod trust;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::ends::link::Link;
pub(crate) use crate::ends::trust::Authority;

/// Handshakes under way at once, unless said otherwise.
const WINDOW: u32 = 64;

/// The key exchange of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// X25519 alone.
    X25519,
    /// X25519, then ML-KEM-768 (RFC 9370).
    Hybrid,
}

impl Exchange {
    fn name(self) -> &'static str {
        match self {
            Self::X25519 => "x25519",
            Self::Hybrid => "hybrid",
        }
    }

    fn read(word: &str) -> Option<Self> {
        [Self::X25519, Self::Hybrid]
            .into_iter()
            .find(|e| e.name() == word)
    }
}

/// What one measurement makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Connections, each an IKE SA with its first child.
    pub(crate) connections: u32,
    /// Handshakes under way at once.
    pub(crate) window: u32,
    pub(crate) exchange: Exchange,
    /// Threads of each end that do its asymmetric work; 0: the engine does it itself.
    pub(crate) threads: u32,
}

impl Load {
    /// So many connections with X25519, all computed in place.
    pub(crate) fn of(connections: u32) -> Self {
        Self {
            connections,
            window: WINDOW,
            exchange: Exchange::X25519,
            threads: 0,
        }
    }
}

/// Which end a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Hub,
    Spokes,
}

/// What an end is asked to do, as on its command line.
pub(crate) struct Task {
    role: Role,
    load: Load,
}

impl Task {
    /// `hub|spokes CONNECTIONS WINDOW EXCHANGE THREADS`
    pub(crate) fn read(words: &[&str]) -> Option<Self> {
        let [role, connections, window, exchange, threads] = words else {
            return None;
        };
        Some(Self {
            role: match *role {
                "hub" => Role::Hub,
                "spokes" => Role::Spokes,
                _ => return None,
            },
            load: Load {
                connections: connections.parse().ok()?,
                window: window.parse().ok()?,
                exchange: Exchange::read(exchange)?,
                threads: threads.parse().ok()?,
            },
        })
    }

    fn words(&self) -> [String; 6] {
        let role = match self.role {
            Role::Hub => "hub",
            Role::Spokes => "spokes",
        };
        let Load {
            connections,
            window,
            exchange,
            threads,
        } = self.load;
        [
            "end".into(),
            role.into(),
            connections.to_string(),
            window.to_string(),
            exchange.name().into(),
            threads.to_string(),
        ]
    }
}

/// What an end has seen, from the first handshake's start to the last one's end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Seen {
    cpu: Duration,
    elapsed: Duration,
    /// Growth of resident memory in KiB.
    grown: i64,
    /// Jobs that its threads did.
    jobs: u64,
}

/// What both ends together have seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    load: Load,
    hub: Seen,
    spokes: Seen,
}

impl Outcome {
    /// CPU of both ends, a handshake and side, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> f64 {
        let both = (self.hub.cpu + self.spokes.cpu).as_secs_f64() * 1e3;
        both / f64::from(self.load.connections) / 2.0
    }

    /// The same of the hub alone, the end whose tables are long.
    pub(crate) fn hub_cpu_ms(&self) -> f64 {
        self.hub.cpu.as_secs_f64() * 1e3 / f64::from(self.load.connections)
    }

    /// Threads of each end for asymmetric work.
    pub(crate) fn threads(&self) -> u32 {
        self.load.threads
    }

    /// Jobs that the threads of both ends did.
    pub(crate) fn jobs(&self) -> u64 {
        self.hub.jobs + self.spokes.jobs
    }

    /// Growth of the hub's resident memory for each connection, in KiB.
    pub(crate) fn kib(&self) -> f64 {
        self.hub.grown as f64 / f64::from(self.load.connections)
    }

    /// Connections established in a second, both ends on this machine.
    pub(crate) fn rate(&self) -> f64 {
        let elapsed = self.hub.elapsed.max(self.spokes.elapsed);
        f64::from(self.load.connections) / elapsed.as_secs_f64()
    }
}

/// Runs both ends to their end.
pub(crate) fn measure(load: Load) -> anyhow::Result<Outcome> {
    let (a, b) = link::pair()?;
    let start = |role, socket: std::os::fd::OwnedFd| {
        // Not by its name: the file may have been built anew meanwhile.
        Command::new("/proc/self/exe")
            .args(Task { role, load }.words())
            .stdin(Stdio::from(socket))
            .stdout(Stdio::piped())
            .spawn()
            .context("an end of the measurement")
    };
    let hub = start(Role::Hub, a)?;
    let spokes = start(Role::Spokes, b)?;
    // Both are waited for before one's failure is told: neither is left behind.
    let (hub, spokes) = (seen(hub), seen(spokes));
    Ok(Outcome {
        load,
        hub: hub?,
        spokes: spokes?,
    })
}

fn seen(end: Child) -> anyhow::Result<Seen> {
    let output = end.wait_with_output()?;
    if !output.status.success() {
        bail!("an end of the measurement failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("an end of the measurement said nothing")
}

/// Is one end; the socket to the other is its standard input.
pub(crate) fn run(task: &Task) -> anyhow::Result<()> {
    let link = Link::stdin()?;
    let seen = match task.role {
        Role::Hub => hub::run(link, task.load)?,
        Role::Spokes => spokes::run(link, task.load)?,
    };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends in threads of one process.
    fn run_here(load: Load) -> (Seen, Seen) {
        let (a, b) = link::pair().unwrap();
        let hub = std::thread::spawn(move || hub::run(Link::over(a), load).unwrap());
        let spokes = spokes::run(Link::over(b), load).unwrap();
        (hub.join().unwrap(), spokes)
    }

    #[test]
    fn handshakes_are_made_in_place() {
        let (hub, spokes) = run_here(Load::of(5));
        assert_eq!((hub.jobs, spokes.jobs), (0, 0));
    }

    /// Nothing asymmetric is left to the engine: each end of a connection judges the other, signs,
    /// and ends the key exchange. The initiator's own key is made with its first message.
    #[test]
    fn asymmetric_work_goes_to_the_threads_of_a_pool() {
        let load = Load {
            threads: 3,
            ..Load::of(10)
        };
        let (hub, spokes) = run_here(load);
        assert_eq!((hub.jobs, spokes.jobs), (30, 30));
    }

    #[test]
    fn the_command_line_says_all_of_a_task() {
        let load = Load {
            threads: 3,
            window: 7,
            exchange: Exchange::Hybrid,
            ..Load::of(10)
        };
        let role = Role::Spokes;
        let words = Task { role, load }.words();
        let [end, rest @ ..] = &words;
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let task = Task::read(&rest).unwrap();
        assert_eq!((end.as_str(), task.role), ("end", role));
        assert_eq!(task.load, load);
    }
}
