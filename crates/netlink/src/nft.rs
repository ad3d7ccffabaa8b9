//! The program nft, run with a script: firewall tables change in one transaction.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// nft commits in milliseconds, but at its end the kernel makes it wait until the transaction's
/// leftovers are freed, an RCU grace period later: on an overloaded machine this takes many
/// seconds. A hang must still not stop its caller for ever.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What is read of the program's complaints, bytes.
const COMPLAINT: u64 = 2000;
/// A kernel that had no tables is not asked again for so long. Each try starts programs, nft and
/// those that look for a module, and takes seconds on a busy machine.
const ABSENT: Duration = Duration::from_secs(60);

/// Kernels have tables or not, whoever asks: when a program said that there are none, and why.
static NO_TABLES: Mutex<BTreeMap<PathBuf, (Instant, String)>> = Mutex::new(BTreeMap::new());

/// What went wrong with nft.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not there.
    #[error("the program nft is missing")]
    NoProgram,
    /// The kernel has no tables of the family `inet`.
    #[error("the kernel has no nftables for IP ({0})")]
    NoTables(String),
    /// It ran and failed, or could not be run.
    #[error("run nft: {0}")]
    Failed(String),
}

/// Runs nft in the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

impl Nft {
    /// `program` is a name that is looked for in PATH, or a path.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
        }
    }

    /// Whether tables of the family `inet` can be made; makes none.
    ///
    /// # Errors
    /// [`NftError::NoProgram`], [`NftError::NoTables`]; [`NftError::Failed`] where this process
    /// may not.
    pub fn check(&self) -> Result<(), NftError> {
        match self.run(&["-c", "-f", "-"], PROBE) {
            Ok(_) => Ok(()),
            Err(NftError::Failed(why)) if !why.contains("not permitted") => {
                Err(NftError::NoTables(complaint(&why)))
            }
            Err(other) => Err(other),
        }
    }

    /// Applies a script; all of it or nothing.
    ///
    /// # Errors
    /// [`NftError`]. Whether it is the kernel that has no tables is found out by asking for an
    /// empty one.
    pub fn apply(&self, script: &str) -> Result<(), NftError> {
        if let Some(reason) = self.absent() {
            return Err(NftError::NoTables(reason));
        }
        match self.run(&["-f", "-"], script) {
            Ok(_) => Ok(()),
            Err(NftError::Failed(reason)) => match self.check() {
                Err(NftError::NoTables(why)) => {
                    let found = (Instant::now(), why.clone());
                    let mut all = NO_TABLES.lock().unwrap_or_else(PoisonError::into_inner);
                    all.insert(self.program.clone(), found);
                    Err(NftError::NoTables(why))
                }
                _ => Err(NftError::Failed(reason)),
            },
            Err(other) => Err(other),
        }
    }

    /// Why the kernel has no tables, where that was found out a moment ago (at most a minute).
    pub fn absent(&self) -> Option<String> {
        let all = NO_TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, reason) = all.get(&self.program)?;
        (at.elapsed() < ABSENT).then(|| reason.clone())
    }

    /// Removes a table of the family `inet` if it is there.
    ///
    /// # Errors
    /// [`NftError::Failed`]. Without the program or the kernel's tables there is none to remove.
    pub fn remove_table(&self, table: &str) -> Result<(), NftError> {
        // To add it first makes the deletion succeed in either case, in one transaction.
        let script = format!("add table inet {table}\ndelete table inet {table}\n");
        match self.apply(&script) {
            Err(NftError::NoProgram | NftError::NoTables(_)) => Ok(()),
            other => other,
        }
    }

    /// Packets counted so far by these named counters of a table of the family `inet`; what is
    /// not there is left out.
    pub fn packets(&self, table: &str, counters: &[&'static str]) -> Vec<(&'static str, u64)> {
        let Ok(text) = self.run(&["-j", "list", "counters", "table", "inet", table], "") else {
            return Vec::new();
        };
        packets(&text, counters)
    }

    /// Runs nft with a script on its standard input and gives its standard output.
    fn run(&self, arguments: &[&str], script: &str) -> Result<String, NftError> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| match e.kind() {
                ErrorKind::NotFound => NftError::NoProgram,
                _ => NftError::Failed(e.to_string()),
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ended early says why on its standard error.
            let _ = stdin.write_all(script.as_bytes());
        }
        // Both are read while it runs: it stands still when one of them is full.
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let out = std::thread::spawn(move || read(out, u64::MAX));
        let err = std::thread::spawn(move || read(err, COMPLAINT));
        let good = wait(&mut child)?;
        let text = out.join().unwrap_or_default();
        let reason = err.join().unwrap_or_default();
        if good {
            return Ok(text);
        }
        Err(NftError::Failed(reason.trim().replace('\n', "; ")))
    }
}

/// All that comes through a pipe to its end; what is more than `most` bytes is thrown away.
fn read(pipe: Option<impl std::io::Read>, most: u64) -> String {
    let Some(mut pipe) = pipe else {
        return String::new();
    };
    let mut bytes = Vec::new();
    let _ = pipe.by_ref().take(most).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asked for only to be checked, never made.
const PROBE: &str = "add table inet testudo_probe\n";

/// What nft says of its script, without the place and the script itself.
fn complaint(text: &str) -> String {
    let line = text.split("; ").next().unwrap_or_default();
    let (_, what) = line.split_once("Error: ").unwrap_or(("", line));
    let what = what
        .strip_prefix("Could not process rule: ")
        .unwrap_or(what);
    what.to_owned()
}

/// Whether it ended well. One that does not end is killed.
fn wait(child: &mut Child) -> Result<bool, NftError> {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if started.elapsed() < TIMEOUT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                let limit = TIMEOUT.as_secs();
                return Err(NftError::Failed(format!("it did not end within {limit} s")));
            }
            Err(e) => return Err(NftError::Failed(e.to_string())),
        }
    }
}

fn packets(json: &str, counters: &[&'static str]) -> Vec<(&'static str, u64)> {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(json) else {
        return Vec::new();
    };
    let items = json["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let count = |name: &'static str| {
        let mut all = items.iter().map(|item| &item["counter"]);
        let found = all.find(|counter| counter["name"] == name)?;
        Some((name, found["packets"].as_u64()?))
    };
    counters.iter().copied().filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "inet", "name": "b", "packets": 7, "bytes": 700}},
            {"counter": {"family": "inet", "name": "a", "packets": 0, "bytes": 0}}]}"#;
        assert_eq!(packets(json, &["a", "b", "c"]), [("a", 0), ("b", 7)]);
        assert_eq!(packets("no such table", &["a"]), []);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let nft = Nft::new("/nonexistent/nft");
        assert!(matches!(nft.apply(""), Err(NftError::NoProgram)));
        assert!(nft.remove_table("t").is_ok() && nft.packets("t", &["a"]).is_empty());
    }

    #[test]
    fn complaints_are_short() {
        let long = "/dev/stdin:1:1-29: Error: Could not process rule: Operation not supported; \
                    add table inet testudo_probe; ^^^^^";
        assert_eq!(complaint(long), "Operation not supported");
        assert_eq!(complaint("netlink: Error: cache"), "cache");
        assert_eq!(complaint("something else"), "something else");
    }

    #[test]
    fn a_program_that_complains_at_length_does_not_stand_still() {
        let script = "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1";
        let shell = Nft::new("sh");
        let Err(NftError::Failed(reason)) = shell.run(&["-c", script], "") else {
            panic!("it has succeeded");
        };
        assert_eq!(reason.len() as u64, COMPLAINT, "{}", &reason[..60]);
    }

    #[test]
    fn what_a_program_complains_of_is_told() {
        // Fails at whatever it is asked, as nft does on a kernel without tables.
        let nft = Nft::new("false");
        assert!(matches!(nft.apply("x"), Err(NftError::NoTables(_))));
        assert!(matches!(nft.run(&[], ""), Err(NftError::Failed(reason)) if reason.is_empty()));
    }
}
