//! `cargo deny`: which crates may be depended on, by whom, under which licence, from where.

use std::process::Command;

use crate::run;

const VERSION: &str = "^0.20";

/// Checks `deny.toml`; installs cargo-deny first where it is missing.
pub(crate) fn check() -> anyhow::Result<()> {
    let present = Command::new("cargo")
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !present {
        install()?;
    }
    // Advisories need a network that CI does not have; the rest reads the lock file.
    run::step(
        "deny",
        &["cargo", "deny", "check", "bans", "licenses", "sources"],
    )
}

fn install() -> anyhow::Result<()> {
    let command = [
        "cargo",
        "install",
        "cargo-deny",
        "--locked",
        "--version",
        VERSION,
    ];
    let mut last = Ok(());
    for _ in 0..3 {
        last = run::step("install cargo-deny", &command);
        if last.is_ok() {
            break;
        }
    }
    last
}
