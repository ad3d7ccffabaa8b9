//! The program nft, run with a script: firewall tables change in one transaction.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Why a run did nothing.
#[derive(Debug)]
enum Unrun {
    NoProgram,
    /// It could not be started, or did not end.
    Broken(String),
    /// It ended badly and said this, lines joined by "; ".
    Refused(String),
}

impl From<Unrun> for NftError {
    fn from(unrun: Unrun) -> NftError {
        match unrun {
            Unrun::NoProgram => NftError::NoProgram,
            Unrun::Broken(why) | Unrun::Refused(why) => NftError::Failed(why),
        }
    }
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
            Err(Unrun::Refused(words)) if says_no_tables(&words) => {
                Err(NftError::NoTables(complaint(&words)))
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Applies a script; all of it or nothing.
    ///
    /// # Errors
    /// [`NftError`]. Whether it is the kernel that has no tables is found out by asking for an
    /// empty one.
    pub fn apply(&self, script: &str) -> Result<(), NftError> {
        match self.absent() {
            Some(reason) => Err(NftError::NoTables(reason)),
            None => self.commit(script),
        }
    }

    /// The same, whatever was found out before.
    fn commit(&self, script: &str) -> Result<(), NftError> {
        let words = match self.run(&["-f", "-"], script) {
            Ok(_) => {
                no_tables().remove(&self.program);
                return Ok(());
            }
            Err(Unrun::Refused(words)) => words,
            // It says nothing about the kernel.
            Err(other) => return Err(other.into()),
        };
        match self.check() {
            Err(NftError::NoTables(why)) => {
                no_tables().insert(self.program.clone(), (Instant::now(), why.clone()));
                Err(NftError::NoTables(why))
            }
            _ => Err(NftError::Failed(words)),
        }
    }

    /// Why the kernel has no tables, where that was found out a moment ago (at most a minute).
    pub fn absent(&self) -> Option<String> {
        let all = no_tables();
        let (at, reason) = all.get(&self.program)?;
        (at.elapsed() < ABSENT).then(|| reason.clone())
    }

    /// Removes a table of the family `inet` if it is there. The kernel is asked each time: a table that
    /// stays goes on dropping.
    ///
    /// # Errors
    /// [`NftError::Failed`]. Without the program or the kernel's tables there is none to remove.
    pub fn remove_table(&self, table: &str) -> Result<(), NftError> {
        // To add it first makes the deletion succeed in either case, in one transaction.
        let script = format!("add table inet {table}\ndelete table inet {table}\n");
        match self.commit(&script) {
            Err(NftError::NoProgram | NftError::NoTables(_)) => Ok(()),
            other => other,
        }
    }

    /// Runs nft with a script on its standard input and gives its standard output.
    fn run(&self, arguments: &[&str], script: &str) -> Result<String, Unrun> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| match e.kind() {
                ErrorKind::NotFound => Unrun::NoProgram,
                _ => Unrun::Broken(e.to_string()),
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
        Err(Unrun::Refused(reason.trim().replace('\n', "; ")))
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

/// What nft says on a kernel without tables of this family: EOPNOTSUPP (as glibc and musl put it),
/// EPROTONOSUPPORT, EAFNOSUPPORT.
const NO_TABLES_WORDS: [&str; 4] = [
    "Operation not supported",
    "Not supported",
    "Protocol not supported",
    "Address family not supported by protocol",
];

/// Whether nft's refusal of an empty table says that the kernel has none. Any other may be over in
/// a moment, or be mended: memory or processes that are short, a missing capability, a table that
/// another holds.
fn says_no_tables(words: &str) -> bool {
    NO_TABLES_WORDS.iter().any(|known| words.contains(known))
}

fn no_tables() -> MutexGuard<'static, BTreeMap<PathBuf, (Instant, String)>> {
    NO_TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

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
fn wait(child: &mut Child) -> Result<bool, Unrun> {
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
                return Err(Unrun::Broken(format!("it did not end within {limit} s")));
            }
            Err(e) => return Err(Unrun::Broken(e.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let nft = Nft::new("/nonexistent/nft");
        assert!(matches!(nft.apply(""), Err(NftError::NoProgram)));
        assert!(nft.remove_table("t").is_ok());
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
        let Err(Unrun::Refused(reason)) = shell.run(&["-c", script], "") else {
            panic!("it has succeeded");
        };
        assert_eq!(reason.len() as u64, COMPLAINT, "{}", &reason[..60]);
    }

    /// A program in nft's place.
    fn stand_in(dir: &std::path::Path, name: &str, script: &str) -> Nft {
        let path = dir.join(name);
        // Another process writes it: what a process has open for writing, even one that another
        // test forks just now, cannot be started.
        let mut writer = Command::new("sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("#!/bin/sh\ncat >/dev/null\n{script}\n");
        let mut stdin = writer.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        assert!(writer.wait().unwrap().success());
        Nft::new(path)
    }

    fn says(what: &str) -> String {
        format!("echo '/dev/stdin:1:1-9: Error: Could not process rule: {what}' >&2; exit 1")
    }

    #[test]
    fn a_kernel_without_tables_is_not_asked_again_at_once_but_for_a_removal() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let script = format!(
            "echo >>{}; {}",
            runs.display(),
            says("Operation not supported")
        );
        let nft = stand_in(dir.path(), "none", &script);
        let ran = || std::fs::read_to_string(&runs).map_or(0, |text| text.lines().count());
        let Err(NftError::NoTables(why)) = nft.apply("x") else {
            panic!("there are none");
        };
        assert_eq!(why, "Operation not supported");
        assert_eq!((nft.absent(), ran()), (Some(why), 2));
        assert!(matches!(nft.apply("x"), Err(NftError::NoTables(_))));
        assert_eq!(ran(), 2);
        assert!(nft.remove_table("t").is_ok());
        assert_eq!(ran(), 4, "it was asked");
        // It has them by now: a module was loaded. The next table is made.
        stand_in(dir.path(), "none", &format!("echo >>{}", runs.display()));
        assert!(nft.remove_table("t").is_ok());
        assert_eq!((nft.absent(), ran()), (None, 5));
        assert!(nft.apply("x").is_ok());
        assert_eq!(ran(), 6);
    }

    #[test]
    fn only_words_that_mean_it_mean_that_there_are_no_tables() {
        let dir = tempfile::tempdir().unwrap();
        for (name, words) in [
            ("protocol", "Protocol not supported"),
            ("family", "Address family not supported by protocol"),
            ("musl", "Not supported"),
        ] {
            let nft = stand_in(dir.path(), name, &says(words));
            assert!(
                matches!(nft.apply("x"), Err(NftError::NoTables(_))),
                "{words}"
            );
        }
        let permitted = "Operation not permitted (you must be root)";
        let scripts = [
            ("memory", says("Cannot allocate memory")),
            ("root", says(permitted)),
            ("busy", says("Device or resource busy")),
            ("killed", "kill -9 $$".to_owned()),
            ("mute", "exit 1".to_owned()),
        ];
        for (name, script) in scripts {
            let nft = stand_in(dir.path(), name, &script);
            assert!(matches!(nft.apply("x"), Err(NftError::Failed(_))), "{name}");
            assert_eq!(nft.absent(), None, "{name}");
            // What may still stand is not taken for removed.
            let removed = nft.remove_table("t");
            assert!(matches!(removed, Err(NftError::Failed(_))), "{name}");
        }
        // The words of a table's contents alone are not enough.
        let parts = "if [ $1 = -c ]; then exit 0; fi; ";
        let nft = stand_in(
            dir.path(),
            "parts",
            &format!("{parts}{}", says("Operation not supported")),
        );
        assert!(matches!(nft.apply("x"), Err(NftError::Failed(_))));
    }

    #[test]
    fn a_program_that_cannot_be_started_says_nothing_of_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let nft = stand_in(dir.path(), "nft", "");
        let path = dir.path().join("nft");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(nft.apply("x"), Err(NftError::Failed(_))));
        assert!(matches!(nft.check(), Err(NftError::Failed(_))));
        assert!(matches!(nft.remove_table("t"), Err(NftError::Failed(_))));
        assert_eq!(nft.absent(), None);
    }
}
