//! The peers' packages, fetched and unpacked but not installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// A daemon to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// strongSwan's charon-systemd, steered by swanctl.
    StrongSwan,
    /// libreswan's pluto, steered by whack.
    Libreswan,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 2] = [Peer::StrongSwan, Peer::Libreswan];

    /// Its folder.
    fn name(self) -> &'static str {
        match self {
            Peer::StrongSwan => "strongswan",
            Peer::Libreswan => "libreswan",
        }
    }

    /// Debian's packages; what they need and the machine lacks comes along.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Peer::StrongSwan => &[
                "charon-systemd",
                "strongswan-swanctl",
                "libcharon-extra-plugins",
                "libstrongswan-standard-plugins",
            ],
            Peer::Libreswan => &["libreswan"],
        }
    }

    /// A program that is there when all is.
    fn program(self) -> &'static str {
        match self {
            Peer::StrongSwan => "usr/sbin/charon-systemd",
            Peer::Libreswan => "usr/libexec/ipsec/pluto",
        }
    }

    /// Where it is unpacked under `folder`.
    pub fn root(self, folder: &Path) -> PathBuf {
        folder.join(self.name()).join("root")
    }

    /// Whether it is unpacked under `folder`.
    pub fn is_there(self, folder: &Path) -> bool {
        self.root(folder).join(self.program()).is_file()
    }
}

/// Where peers are unpacked: `interop` in the folder that cargo builds into, which is above the
/// running program.
pub fn folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("the running program's path")?;
    program
        .ancestors()
        .find(|folder| folder.join(".rustc_info.json").is_file())
        .map(|folder| folder.join("interop"))
        .with_context(|| format!("{} is not in a target folder", program.display()))
}

/// The peers that are not unpacked yet.
pub fn missing(folder: &Path) -> Vec<Peer> {
    let there = |peer: &Peer| !peer.is_there(folder);
    Peer::ALL.into_iter().filter(there).collect()
}

/// Fetches and unpacks what is missing. Needs root, for apt's locks; its own lists must be fresh.
pub fn ensure(folder: &Path) -> anyhow::Result<()> {
    for peer in missing(folder) {
        // A mirror that is busy for a moment should not fail a whole run.
        for attempt in 1..=3 {
            match fetch(folder, peer) {
                Ok(()) => break,
                Err(error) if attempt == 3 => return Err(error),
                Err(error) => {
                    eprintln!("    packages: attempt {attempt} of 3: {error:#}");
                    std::thread::sleep(Duration::from_secs(5 * attempt));
                }
            }
        }
    }
    Ok(())
}

fn fetch(folder: &Path, peer: Peer) -> anyhow::Result<()> {
    let place = folder.join(peer.name());
    // An aborted attempt leaves nothing behind that the next one would take for whole.
    if place.exists() {
        std::fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    }
    let (archives, fresh) = (place.join("archives"), place.join("new"));
    std::fs::create_dir_all(archives.join("partial"))
        .with_context(|| place.display().to_string())?;
    let cache = format!("Dir::Cache::archives={}", archives.display());
    let mut arguments = vec!["-y", "-q", "--no-install-recommends", "--download-only"];
    arguments.extend(["-o", &cache, "install"]);
    arguments.extend(peer.packages());
    eprintln!("==> packages: apt-get {}", arguments.join(" "));
    run(Command::new("apt-get")
        .args(&arguments)
        .env("DEBIAN_FRONTEND", "noninteractive"))?;
    for entry in std::fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&path).arg(&fresh))?;
        }
    }
    std::fs::remove_dir_all(&archives).context("the fetched archives")?;
    std::fs::rename(&fresh, peer.root(folder)).context("the unpacked packages")?;
    if !peer.is_there(folder) {
        bail!(
            "{} has no {}: the machine has the package installed already, or Debian moved it",
            peer.root(folder).display(),
            peer.program()
        );
    }
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}: made for Debian and its kin"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, text.trim());
    }
    Ok(())
}
