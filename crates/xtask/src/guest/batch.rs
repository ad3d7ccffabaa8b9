//! Several programs in one guest, one after another, each told from the others.
//!
//! A guest's start costs more than many a test. So a script inside runs the programs in turn, and
//! what comes of each stands in files of the shared folder: they are written through, and outlive
//! a kernel that dies. Each program has namespaces of its own for processes and mounts, so that
//! nothing that it leaves runs beside the next. After one that fails the guest ends: what failed
//! may have left the kernel in any state.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::boot::quote;
use super::folder::Folder;

/// The script, in the shared folder.
const SCRIPT: &str = "programs.sh";

/// The exit code of `timeout` when the time was over.
const TIME_OVER: u8 = 124;
/// And when the program had to be killed.
const KILLED: u8 = 137;

/// Namespaces with which everything ends that a program started, mounted or named. The shell is
/// their first process: as such it takes the orphans' exit codes, which a test program would not.
pub(crate) const ALONE: [&str; 9] = [
    "unshare",
    "--pid",
    "--mount-proc",
    "--fork",
    "--kill-child=KILL",
    "sh",
    "-c",
    "mkdir -p /run/netns && mount -t tmpfs netns /run/netns && \"$@\"; exit $?",
    "sh",
];

/// An empty folder to share with a guest. It goes with its holder.
pub(crate) struct Shared(Folder);

impl Shared {
    /// A new one.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Folder::new().map(Self)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// How often to look.
const PAUSE: Duration = Duration::from_millis(50);

/// A program to run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Where it runs.
    pub(crate) folder: PathBuf,
    /// The program and its arguments.
    pub(crate) words: Vec<OsString>,
}

/// How programs are run.
pub(crate) struct Manner {
    /// Words before those of each program: [`ALONE`].
    pub(crate) before: &'static [&'static str],
    /// How long one may take.
    pub(crate) program: Duration,
    /// What a guest may take beyond that to say that the program's time was over.
    pub(crate) grace: Duration,
}

/// What happens to a program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// It was started.
    Begun,
    /// A line on its standard output.
    Line(&'a str),
    /// A line on its standard error.
    ErrorLine(&'a str),
    /// Its end, and the last event of it.
    Ended(Outcome, Duration),
}

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With this code.
    Exited(u8),
    /// Its time was over.
    TimedOut,
    /// The guest ended or hung while it ran; why, as far as is known.
    GuestLost(String),
}

/// Runs the programs in one guest, in their order, until one fails; how many were begun.
///
/// `guest` is the command that starts the guest, to which the words to run in it are added;
/// `shared` is an empty folder, which the guest finds at `$TESTUDO_GUEST_SHARED`.
pub(crate) fn run(
    mut guest: Command,
    shared: &Path,
    programs: &[Program],
    manner: &Manner,
    tell: &mut dyn FnMut(usize, Event<'_>),
) -> anyhow::Result<usize> {
    let text = script(programs, manner);
    std::fs::write(shared.join(SCRIPT), text).context("the guest's script")?;
    let mut child = guest
        .args(["sh", "-c"])
        .arg(format!(". \"$TESTUDO_GUEST_SHARED/{SCRIPT}\""))
        .stdin(Stdio::null())
        .spawn()
        .context("the guest could not be started")?;
    let mut ended = 0;
    let mut running: Option<Running> = None;
    loop {
        // Asked before the files are read: what was written before the end is not missed.
        let gone = child.try_wait().context("waiting for the guest")?;
        while ended < programs.len() {
            if running.is_none() && shared.join(format!("{ended}.begun")).exists() {
                tell(ended, Event::Begun);
                running = Some(Running::new(shared, ended));
            }
            let Some(program) = &mut running else { break };
            // Asked before its output is read, for the same reason.
            let code = program.code();
            program.copy(&mut |event| tell(ended, event))?;
            let took = program.since.elapsed();
            let outcome = match (code, gone) {
                (Some(code), _) => outcome(code, took, manner.program),
                (None, Some(status)) => Outcome::GuestLost(format!("it ended with {status}")),
                (None, None) if took > manner.program + manner.grace => {
                    child.kill().context("ending the guest")?;
                    child.wait().context("waiting for the guest")?;
                    Outcome::GuestLost(format!("it hung for {:.0} s", manner.grace.as_secs_f32()))
                }
                (None, None) => break,
            };
            let lost = matches!(outcome, Outcome::GuestLost(_));
            program.rest(&mut |event| tell(ended, event));
            tell(ended, Event::Ended(outcome, took));
            running = None;
            ended += 1;
            if lost {
                return Ok(ended);
            }
        }
        if gone.is_some() {
            return Ok(ended);
        }
        std::thread::sleep(PAUSE);
    }
}

fn outcome(code: u8, took: Duration, limit: Duration) -> Outcome {
    match code {
        TIME_OVER => Outcome::TimedOut,
        KILLED if took >= limit => Outcome::TimedOut,
        code => Outcome::Exited(code),
    }
}

/// What runs in the guest.
fn script(programs: &[Program], manner: &Manner) -> Vec<u8> {
    let mut script = format!(
        r#"run() {{
    n=$TESTUDO_GUEST_SHARED/$1
    cd "$2" || exit 1
    shift 2
    : > "$n.output"
    : > "$n.errors"
    : > "$n.begun"
    timeout -k 10 {} "$@" > "$n.output" 2> "$n.errors"
    code=$?
    echo $code > "$n.new"
    mv "$n.new" "$n.code"
    [ $code = 0 ] || exit 0
}}
"#,
        manner.program.as_secs_f32()
    )
    .into_bytes();
    for (n, program) in programs.iter().enumerate() {
        script.extend_from_slice(format!("run {n} ").as_bytes());
        quote(program.folder.as_os_str().as_bytes(), &mut script);
        for word in manner.before {
            script.push(b' ');
            quote(word.as_bytes(), &mut script);
        }
        for word in &program.words {
            script.push(b' ');
            quote(word.as_bytes(), &mut script);
        }
        script.push(b'\n');
    }
    script
}

/// A program that was begun.
struct Running {
    since: Instant,
    code: PathBuf,
    output: Lines,
    errors: Lines,
}

impl Running {
    fn new(shared: &Path, n: usize) -> Self {
        Self {
            since: Instant::now(),
            code: shared.join(format!("{n}.code")),
            output: Lines::of(shared.join(format!("{n}.output"))),
            errors: Lines::of(shared.join(format!("{n}.errors"))),
        }
    }

    /// What it exited with, as soon as it has.
    fn code(&self) -> Option<u8> {
        // What no shell would write is no success either.
        let text = std::fs::read_to_string(&self.code).ok()?;
        Some(text.trim().parse().unwrap_or(u8::MAX))
    }

    /// Passes on the whole lines that are new.
    fn copy(&mut self, tell: &mut dyn FnMut(Event<'_>)) -> anyhow::Result<()> {
        for line in self.output.new_ones()? {
            tell(Event::Line(&line));
        }
        for line in self.errors.new_ones()? {
            tell(Event::ErrorLine(&line));
        }
        Ok(())
    }

    /// Passes on what was left of a line that never ended.
    fn rest(&mut self, tell: &mut dyn FnMut(Event<'_>)) {
        if !self.output.partial.is_empty() {
            tell(Event::Line(&self.output.rest()));
        }
        if !self.errors.partial.is_empty() {
            tell(Event::ErrorLine(&self.errors.rest()));
        }
    }
}

/// The lines of a file that grows.
struct Lines {
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Lines {
    fn of(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            partial: Vec::new(),
        }
    }

    fn new_ones(&mut self) -> anyhow::Result<Vec<String>> {
        if self.file.is_none() {
            self.file =
                Some(File::open(&self.path).with_context(|| self.path.display().to_string())?);
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.partial)
                .with_context(|| self.path.display().to_string())?;
        }
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        let text = String::from_utf8_lossy(&whole);
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn rest(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNER: Manner = Manner {
        before: &[],
        program: Duration::from_secs(60),
        grace: Duration::from_secs(60),
    };

    /// A shell of this machine in place of a guest.
    fn on_this_machine(scripts: &[&str], manner: &Manner) -> Vec<String> {
        let shared = tempfile::tempdir().unwrap();
        let programs: Vec<Program> = scripts
            .iter()
            .map(|script| Program {
                folder: "/".into(),
                words: ["sh", "-c", script].map(OsString::from).to_vec(),
            })
            .collect();
        let mut guest = Command::new("env");
        guest.arg(format!("TESTUDO_GUEST_SHARED={}", shared.path().display()));
        let mut told = Vec::new();
        let begun = run(guest, shared.path(), &programs, manner, &mut |n, event| {
            told.push(match event {
                Event::Ended(outcome, _) => format!("{n} {outcome:?}"),
                Event::Begun => format!("{n} begun"),
                Event::Line(line) => format!("{n} {line}"),
                Event::ErrorLine(line) => format!("{n} error {line}"),
            });
        });
        told.push(format!("{} begun", begun.unwrap()));
        told
    }

    #[test]
    fn what_programs_say_and_exit_with_is_told_apart() {
        let told = on_this_machine(
            &["echo a; echo b >&2; echo c", "pwd; printf 'no end'; exit 7"],
            &MANNER,
        );
        let expected = [
            "0 begun",
            "0 a",
            "0 c",
            "0 error b",
            "0 Exited(0)",
            "1 begun",
            "1 /",
            "1 no end",
            "1 Exited(7)",
            "2 begun",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn after_a_failure_nothing_else_runs_in_that_guest() {
        let told = on_this_machine(&["exit 101", "echo never"], &MANNER);
        assert_eq!(told, ["0 begun", "0 Exited(101)", "1 begun"]);
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_and_named() {
        let manner = Manner {
            program: Duration::from_millis(300),
            ..MANNER
        };
        let told = on_this_machine(&["echo a; sleep 100", "echo never"], &manner);
        assert_eq!(told, ["0 begun", "0 a", "0 TimedOut", "1 begun"]);
    }

    #[test]
    fn a_guest_that_dies_names_the_program_that_ran() {
        // The shell that stands for the guest is the parent of `timeout`, the program's parent.
        let kill = "echo a; kill -9 $(cut -d' ' -f4 /proc/$PPID/stat); sleep 1";
        let told = on_this_machine(&["true", kill, "echo never"], &MANNER);
        assert_eq!(
            told[..5],
            ["0 begun", "0 Exited(0)", "1 begun", "1 a", told[4].as_str()]
        );
        assert!(
            told[4].starts_with("1 GuestLost(\"it ended with signal: 9"),
            "{told:?}"
        );
        assert_eq!(told[5..], ["2 begun"]);
    }

    #[test]
    fn a_guest_that_hangs_names_the_program_that_ran() {
        // Stopped, the guest cannot say that its program has ended.
        let stop = "kill -STOP $(cut -d' ' -f4 /proc/$PPID/stat)";
        let manner = Manner {
            program: Duration::from_millis(300),
            grace: Duration::from_millis(500),
            ..MANNER
        };
        let told = on_this_machine(&[stop, "echo never"], &manner);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[1].starts_with("0 GuestLost(\"it hung"), "{told:?}");
    }

    #[test]
    fn a_guest_that_never_starts_begins_nothing() {
        let shared = tempfile::tempdir().unwrap();
        let programs = [Program {
            folder: "/".into(),
            words: vec!["true".into()],
        }];
        let begun = run(
            Command::new("false"),
            shared.path(),
            &programs,
            &MANNER,
            &mut |_, event| panic!("{event:?}"),
        );
        assert_eq!(begun.unwrap(), 0);
    }

    #[test]
    fn words_reach_a_program_as_they_are() {
        let told = on_this_machine(&["echo 'a  b' \"$HOME's\" | sed s/.*s/x/"], &MANNER);
        assert_eq!(told[1], "0 x");
    }
}
