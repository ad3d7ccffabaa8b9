//! How the command ends: the exit codes of the contract.

use std::fmt;
use std::process::ExitCode;

use crate::{output, plugin};

/// What every verb returns. `Ok` is exit code 0; an error is 1 unless it holds a [`Usage`] or a
/// [`TimedOut`].
pub(crate) type Outcome = anyhow::Result<()>;

/// The command was called wrongly: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

/// What was waited for did not come in time: exit code 3.
#[derive(Debug)]
pub(crate) struct TimedOut(pub(crate) String);

/// The work was done and its answer is "no": exit code 1, and everything to say has been said.
#[derive(Debug)]
pub(crate) struct CheckFailed;

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the check failed")
    }
}

impl std::error::Error for Usage {}
impl std::error::Error for TimedOut {}
impl std::error::Error for CheckFailed {}

/// Prints the error, if there is one, and gives the exit code.
pub(crate) fn code(outcome: Outcome) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if error.is::<CheckFailed>() {
        return ExitCode::from(1);
    }
    let text = plugin::said(&format!("{error:#}"));
    eprintln!("testudo: {}", output::harmless(&text));
    let code = match &error {
        e if e.is::<Usage>() => 2,
        e if e.is::<TimedOut>() => 3,
        _ => 1,
    };
    ExitCode::from(code)
}
