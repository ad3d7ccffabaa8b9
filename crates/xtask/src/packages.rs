//! The Debian packages that building, the labs and the tests need.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::run::{installed, target_directory};

/// A program and the package that has it.
const NEEDED: [(&str, &str); 8] = [
    ("cc", "gcc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("unshare", "util-linux"),
];

/// Installs what is missing, or says what to type.
pub(crate) fn ensure() -> anyhow::Result<()> {
    ensure_these(&NEEDED)
}

/// The same for programs that not every part needs, each with its package.
pub(crate) fn ensure_these(needed: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| !installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!(
        "apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    if !am_root() {
        bail!("missing packages; run this, then try again:\n  sudo {line}");
    }
    eprintln!("==> packages: {line}");
    // A mirror that is busy for a moment should not fail a whole run.
    for attempt in 1..=3 {
        if apt(&["update", "-q"])?
            && apt(&[
                &["install", "-y", "-q", "--no-install-recommends"],
                missing.as_slice(),
            ]
            .concat())?
        {
            return Ok(());
        }
        eprintln!("    packages: attempt {attempt} of 3 failed");
        std::thread::sleep(std::time::Duration::from_secs(5 * attempt));
    }
    bail!("the packages could not be installed; run this and see why:\n  {line}")
}

/// Those, and the daemons that the interop tests talk to, and Open vSwitch: unpacked, not
/// installed.
pub(crate) fn ensure_all() -> anyhow::Result<()> {
    ensure()?;
    let folder = target_directory()?.join("interop");
    if testudo_interop::missing(&folder).is_empty() {
        return Ok(());
    }
    if !am_root() {
        bail!(
            "missing daemons for the tests; run this, then try again:\n  \
             sudo --preserve-env=PATH,CARGO_HOME,RUSTUP_HOME,CARGO_TARGET_DIR cargo xtask packages"
        );
    }
    apt(&["update", "-q"])?;
    testudo_interop::ensure(&folder)
}

/// Where OVN, and OVN's own IPsec, are unpacked; what is missing is fetched.
pub(crate) fn ensure_ovn() -> anyhow::Result<[PathBuf; 2]> {
    let wanted = [testudo_interop::OPEN_VSWITCH, testudo_interop::OVN_IPSEC];
    let folder = target_directory()?.join("interop");
    if wanted.iter().any(|each| !each.is_there(&folder)) {
        if !am_root() || !apt(&["update", "-q"])? {
            bail!("OVN's packages are missing; run this as root");
        }
        testudo_interop::ensure_these(&folder, &wanted)?;
    }
    Ok(wanted.map(|each| each.root(&folder)))
}

/// An apt of its own for another release of Debian; the path of its settings.
pub(crate) fn own_apt(place: &Path, release: &str) -> anyhow::Result<PathBuf> {
    testudo_interop::own_apt(place, release).or_else(|error| {
        // A machine whose lists were never fetched does not know its mirror.
        if !am_root() || !apt(&["update", "-q"])? {
            return Err(error);
        }
        testudo_interop::own_apt(place, release)
    })
}

fn apt(arguments: &[&str]) -> anyhow::Result<bool> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status()
        .context("apt-get could not be started: this is made for Debian and its kin; install the packages by hand")?;
    Ok(status.success())
}

/// Whether this process may do what root may.
pub(crate) fn am_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1).map(|id| id == "0"))
            .unwrap_or(false)
    })
}
