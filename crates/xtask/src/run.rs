//! Running a step and saying how long it took.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

/// The workspace's root, wherever `cargo xtask` was called.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let directory = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target_directory")?;
    Ok(PathBuf::from(directory))
}

/// This program, also when cargo has meanwhile built it anew and it runs from a deleted file.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("the running program's path")?;
    let shown = path.to_string_lossy();
    Ok(shown
        .strip_suffix(" (deleted)")
        .map_or_else(|| path.clone(), PathBuf::from))
}

/// Runs a command in the workspace's root, its output passed through.
pub(crate) fn step(name: &str, command: &[&str]) -> anyhow::Result<()> {
    let start = Instant::now();
    eprintln!("==> {name}: {}", command.join(" "));
    let (program, arguments) = command.split_first().context("an empty command")?;
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status()
        .with_context(|| format!("{program} could not be started"))?;
    if !status.success() {
        bail!("{name} failed ({status}): {}", command.join(" "));
    }
    eprintln!("    {name}: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Whether a program is to be found on the path or in the places of root's programs.
pub(crate) fn installed(program: &str) -> bool {
    find(program).is_some()
}

/// Where it is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    let mut places = folders.map(|folder| PathBuf::from(folder).join(program));
    places.find(|place| place.is_file())
}
