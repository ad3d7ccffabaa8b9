//! `cargo xtask kube`: builds the program that keeps clusters and gives it its arguments.
//!
//! A program of its own, since it makes certificates: `cargo xtask` is to be built in seconds.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{packages, run};

/// What nodes take from Debian: the program that starts containers, and what is in the first image.
const FOR_NODES: [(&str, &str); 2] = [("runc", "runc"), ("busybox", "busybox-static")];
/// What the container image takes from Debian, and what makes it small.
const FOR_IMAGE: [(&str, &str); 3] = [
    ("nft", "nftables"),
    ("modprobe", "kmod"),
    ("strip", "binutils"),
];

/// Runs it; its exit code.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<u8> {
    // `env` is for a shell to evaluate, again and again: it builds nothing else.
    let also: &[&str] = match arguments.first() {
        Some(&"up") => {
            packages::ensure()?;
            packages::ensure_these(&FOR_NODES)?;
            &["--bin", "testudo"]
        }
        _ => &[],
    };
    let status = Command::new(program(also)?).args(arguments).status()?;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Builds what clusters in tests need, where it is not there: minutes, and once.
pub(crate) fn ensure() -> anyhow::Result<()> {
    packages::ensure_these(&FOR_NODES)?;
    packages::ensure_these(&FOR_IMAGE)?;
    let program = program(&[])?;
    let program = program.display().to_string();
    run::step("kube programs", &[&program, "build", "--all"])
}

/// `cargo xtask chart`: packages the Helm chart and plain manifests.
pub(crate) fn chart() -> anyhow::Result<u8> {
    let program = program(&["--bin", "testudo"])?;
    let testudo = program.with_file_name("testudo").display().to_string();
    let folder = run::target_directory()?.join("chart").display().to_string();
    let program = program.display().to_string();
    run::step("chart", &[&program, "chart", &testudo, &folder])?;
    Ok(0)
}

/// Makes the container image of a built program.
pub(crate) fn image(testudo: &Path, name: &str, output: &Path) -> anyhow::Result<()> {
    packages::ensure_these(&FOR_IMAGE)?;
    let program = program(&[])?.display().to_string();
    let (testudo, output) = (testudo.display().to_string(), output.display().to_string());
    run::step("image", &[&program, "image", &testudo, name, &output])
}

/// The program, with what else is to stand beside it.
fn program(also: &[&str]) -> anyhow::Result<PathBuf> {
    const PROGRAM: &str = "testudo-kube";
    // Of the whole workspace: a package alone picks other features of what it depends on.
    let build = ["build", "--quiet", "--workspace", "--bin", PROGRAM];
    let status = Command::new("cargo")
        .args(build)
        .args(also)
        .current_dir(run::root())
        .status()?;
    anyhow::ensure!(status.success(), "{PROGRAM} could not be built");
    Ok(run::target_directory()?.join("debug").join(PROGRAM))
}
