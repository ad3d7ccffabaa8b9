//! The built program, run as a person or another program would.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_testudo");

/// No command may take longer.
const LONGEST: Duration = Duration::from_secs(60);
/// The same where the processor is emulated.
const LONGEST_EMULATED: Duration = Duration::from_secs(400);

/// What a command said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The command, for messages.
    pub(crate) line: String,
    /// Its exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// How it ended, for messages: with which code, or by which signal.
    ended: String,
    /// Its standard output.
    pub(crate) out: String,
    /// Its standard error.
    pub(crate) err: String,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Answer {
    /// Fails unless it ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code of {self}");
        self
    }

    /// Fails unless it was done.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.expect(0)
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|e| panic!("the output is not JSON ({e}): {self}"))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ({}, {:.1} s)\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.ended,
            self.took.as_secs_f32(),
            self.out,
            self.err
        )
    }
}

/// Runs `testudo` with these arguments.
#[track_caller]
pub(crate) fn testudo<S: AsRef<str>>(arguments: &[S]) -> Answer {
    let mut command = Command::new(BINARY);
    command.args(arguments.iter().map(AsRef::as_ref));
    run(command)
}

/// Runs any command to its end and takes down what it says.
#[track_caller]
pub(crate) fn run(mut command: Command) -> Answer {
    let line = describe(&command);
    let start = Instant::now();
    match std::env::var_os("TESTUDO_TEST_LOG") {
        Some(level) => command.env("TESTUDO_LOG", level),
        None => command.env_remove("TESTUDO_LOG"),
    };
    let mut child = command
        .env_remove("TESTUDO_STORE")
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{line}: {e}"));
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let longest = match std::env::var("TESTUDO_GUEST") {
        Ok(kernel) if kernel != "uml" => LONGEST_EMULATED,
        _ => LONGEST,
    };
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break Some(status),
            None if start.elapsed() > longest => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_none() {
        end(&mut child);
    }
    let collect = |r: std::thread::JoinHandle<String>| r.join().unwrap_or_default();
    let answer = Answer {
        line,
        code: status.and_then(|s| s.code()),
        ended: status.map_or_else(|| "not ended".to_owned(), |s| s.to_string()),
        out: collect(out),
        err: collect(err),
        took: start.elapsed(),
    };
    assert!(
        status.is_some(),
        "it did not end within {} s: {answer}",
        longest.as_secs()
    );
    answer
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
