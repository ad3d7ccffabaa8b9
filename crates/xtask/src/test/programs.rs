//! The programs of tests, built once, of the whole workspace. A `cargo test` of some packages picks the
//! features of what they depend on anew, and so builds much of it another time: one for each stage.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::run;

/// What cargo is asked for. It builds what is no test, too.
const BUILD: [&str; 4] = ["build", "--workspace", "--all-targets", "--quiet"];

/// A program of tests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Program {
    /// The crate by its folder's name: `datapath-user`.
    pub(super) of: String,
    /// Whether these are tests of the library or of a program, beside its source.
    pub(super) unit: bool,
    /// The target's name.
    pub(super) name: String,
    /// The crate's folder, in which its tests run.
    folder: PathBuf,
    /// The program itself.
    path: PathBuf,
}

impl Program {
    /// For people: `interop peers`, and `ike` for the tests beside its source.
    pub(super) fn title(&self) -> String {
        match self.unit {
            true => self.of.clone(),
            false => format!("{} {}", self.of, self.name),
        }
    }

    /// Runs it as cargo does.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            // Skipped tests say so on the standard output, which the harness hides otherwise.
            .args(["--quiet", "--show-output"])
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// Builds everything; the programs of tests but for those that run in guests, in order.
pub(super) fn build() -> anyhow::Result<Vec<Program>> {
    let start = Instant::now();
    eprintln!("==> build: cargo {}", BUILD.join(" "));
    let built = Command::new("cargo")
        .args(BUILD)
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(run::root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo could not be started")?;
    if !built.status.success() {
        bail!("the build failed ({})", built.status);
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&built.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("cargo build printed no JSON")?;
        programs.extend(of(&message));
    }
    if programs.is_empty() {
        bail!("cargo built no tests");
    }
    programs.sort();
    eprintln!(
        "    build: {:.1} s, {} programs of tests",
        start.elapsed().as_secs_f32(),
        programs.len()
    );
    Ok(programs)
}

/// The program of tests that a message of cargo's tells of.
fn of(message: &Value) -> Option<Program> {
    if message["profile"]["test"] != true {
        return None;
    }
    let path = message["executable"].as_str()?;
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let kinds = message["target"]["kind"].as_array()?;
    Some(Program {
        of: folder.file_name()?.to_str()?.to_owned(),
        unit: !kinds.iter().any(|kind| kind == "test"),
        name: message["target"]["name"].as_str()?.to_owned(),
        folder: folder.to_owned(),
        path: path.into(),
    })
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;

    fn message(kind: &str, test: bool, executable: Value) -> Value {
        json!({
            "reason": "compiler-artifact",
            "manifest_path": "/w/crates/ike/Cargo.toml",
            "target": { "kind": [kind], "name": "testudo_ike" },
            "profile": { "test": test },
            "executable": executable,
        })
    }

    #[test]
    fn only_programs_of_tests_are_taken() {
        let path = json!("/w/target/debug/deps/testudo_ike-1");
        let unit = of(&message("lib", true, path.clone())).unwrap();
        assert_eq!((unit.of.as_str(), unit.unit), ("ike", true));
        assert_eq!(unit.title(), "ike");
        let beside = of(&message("test", true, path.clone())).unwrap();
        assert_eq!(beside.title(), "ike testudo_ike");
        assert_eq!(beside.folder, Path::new("/w/crates/ike"));
        for other in [
            message("bin", false, path),
            message("lib", true, Value::Null),
            json!({ "reason": "build-finished", "success": true }),
        ] {
            assert_eq!(of(&other), None);
        }
    }
}
