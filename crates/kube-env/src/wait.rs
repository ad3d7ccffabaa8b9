//! Bounded waiting, with the words that a person needs when it was in vain.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{Process, last_lines};

/// Between two looks: as long as a look takes, within these bounds.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How many lines of a log an error shows.
const SHOWN: usize = 15;

/// Waits until `check` has something; it says what it is waiting for by its error. Ends early when
/// a process of `needed` does; the error shows the last lines of all their logs.
pub(crate) fn until<T>(
    what: &str,
    patience: Duration,
    needed: &[Process],
    logs: &Path,
    mut check: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let why = loop {
        let asked = Instant::now();
        let last = match check() {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if let Some(dead) = needed.iter().find(|process| !process.is_alive()) {
            break format!("{} has ended", dead.name);
        }
        if start.elapsed() > patience {
            break format!("{last:#} (waited {} s)", patience.as_secs());
        }
        // A machine where asking takes long is slowed down by being asked.
        std::thread::sleep(asked.elapsed().clamp(PAUSE, LONGEST_PAUSE));
    };
    let mut text = format!("{what}: {why}");
    for log in of(needed, logs) {
        text.push('\n');
        text.push_str(&last_lines(&log, SHOWN));
    }
    bail!(text)
}

/// The logs of processes: a node has several, whose names begin with its own.
fn of(processes: &[Process], logs: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            let owner = file.strip_suffix(".log").unwrap_or(&file);
            processes.iter().any(|process| {
                let rest = owner.strip_prefix(process.name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}
