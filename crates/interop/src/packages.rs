//! The peers' packages, and Open vSwitch's, fetched and unpacked but not installed.
//!
//! The daemons of the machine's own Debian are laid over the machine's files. Newer ones come
//! from Debian's next release with everything that they need, down to the C library, so that
//! they run in a root of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// Packages that are unpacked into a folder of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Its folder.
    name: &'static str,
    /// Debian's packages; what they need and the machine lacks comes along. The first is the
    /// daemon.
    packages: &'static [&'static str],
    /// A program that is there when all is.
    program: &'static str,
    /// Whether they are of Debian's next release, with their own C library.
    own_root: bool,
}

/// The switch of `testudo lab up --switch ovs`, and the network of `--overlay ovn`. Installed, they
/// would start a switch and databases of the machine's own.
pub const OPEN_VSWITCH: Unpacked = Unpacked {
    name: "openvswitch",
    packages: &[
        "openvswitch-switch",
        "openvswitch-common",
        "ovn-central",
        "ovn-host",
        "ovn-common",
    ],
    program: "usr/bin/ovn-northd",
    own_root: false,
};

/// OVN's own IPsec, measured beside ours by `cargo xtask bench ovn`: Open vSwitch's IPsec monitor
/// and strongSwan as it was before charon-systemd. No test needs it.
pub const OVN_IPSEC: Unpacked = Unpacked {
    name: "ovn-ipsec",
    packages: &[
        "openvswitch-ipsec",
        "openvswitch-switch",
        "openvswitch-common",
        "strongswan-starter",
        "strongswan-charon",
        "libstrongswan-standard-plugins",
    ],
    program: "usr/share/openvswitch/scripts/ovs-monitor-ipsec",
    own_root: false,
};

/// Prometheus' promtool, which judges the alerts.
pub const PROMETHEUS: Unpacked = Unpacked {
    name: "prometheus",
    packages: &["prometheus"],
    program: "usr/bin/promtool",
    own_root: false,
};

impl Unpacked {
    /// Where it is unpacked under `folder`.
    pub fn root(self, folder: &Path) -> PathBuf {
        folder.join(self.name).join("root")
    }

    /// Whether it is unpacked under `folder`.
    pub fn is_there(self, folder: &Path) -> bool {
        self.root(folder).join(self.program).is_file()
    }
}

/// A daemon to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// strongSwan's charon-systemd, steered by swanctl.
    StrongSwan,
    /// libreswan's pluto, steered by whack.
    Libreswan,
    /// strongSwan 6 or later: it has ML-KEM.
    NextStrongSwan,
    /// libreswan 5 or later.
    NextLibreswan,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 4] = [
        Peer::StrongSwan,
        Peer::Libreswan,
        Peer::NextStrongSwan,
        Peer::NextLibreswan,
    ];

    /// Its folder.
    fn name(self) -> &'static str {
        match self {
            Peer::StrongSwan => "strongswan",
            Peer::Libreswan => "libreswan",
            Peer::NextStrongSwan => "strongswan-next",
            Peer::NextLibreswan => "libreswan-next",
        }
    }

    /// Debian's packages; what they need and the machine lacks comes along. The first is the
    /// daemon.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Peer::StrongSwan => &[
                "charon-systemd",
                "strongswan-swanctl",
                "libcharon-extra-plugins",
                "libstrongswan-standard-plugins",
            ],
            Peer::Libreswan => &["libreswan"],
            Peer::NextStrongSwan => &[
                "charon-systemd",
                "strongswan-swanctl",
                "libcharon-extra-plugins",
                "libstrongswan-standard-plugins",
                "coreutils",
                "dash",
            ],
            Peer::NextLibreswan => &["libreswan", "libnss3-tools", "openssl", "coreutils", "dash"],
        }
    }

    /// A program that is there when all is.
    fn program(self) -> &'static str {
        match self {
            Peer::StrongSwan | Peer::NextStrongSwan => "usr/sbin/charon-systemd",
            Peer::Libreswan | Peer::NextLibreswan => "usr/libexec/ipsec/pluto",
        }
    }

    /// Whether it runs in a root of its own, with its own C library.
    pub(crate) fn has_own_root(self) -> bool {
        matches!(self, Peer::NextStrongSwan | Peer::NextLibreswan)
    }

    fn unpacked(self) -> Unpacked {
        Unpacked {
            name: self.name(),
            packages: self.packages(),
            program: self.program(),
            own_root: self.has_own_root(),
        }
    }

    /// Where it is unpacked under `folder`.
    pub fn root(self, folder: &Path) -> PathBuf {
        self.unpacked().root(folder)
    }

    /// Whether it is unpacked under `folder`.
    pub fn is_there(self, folder: &Path) -> bool {
        self.unpacked().is_there(folder)
    }

    /// The version that was unpacked.
    pub fn version(self, folder: &Path) -> String {
        let text = std::fs::read_to_string(folder.join(self.name()).join("version"));
        text.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
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

/// What the tests need and is not unpacked yet.
pub fn missing(folder: &Path) -> Vec<Unpacked> {
    let peers = Peer::ALL.into_iter().map(Peer::unpacked);
    let all = peers.chain([OPEN_VSWITCH, PROMETHEUS]);
    all.filter(|each| !each.is_there(folder)).collect()
}

/// Fetches and unpacks what is missing. Needs root, for apt's locks; the machine's own lists
/// must be fresh.
pub fn ensure(folder: &Path) -> anyhow::Result<()> {
    ensure_these(folder, &missing(folder))
}

/// The same for `wanted`; what is there already stays.
pub fn ensure_these(folder: &Path, wanted: &[Unpacked]) -> anyhow::Result<()> {
    for wanted in wanted.iter().filter(|each| !each.is_there(folder)) {
        let wanted = *wanted;
        // A mirror that is busy for a moment should not fail a whole run.
        for attempt in 1..=3 {
            match fetch(folder, wanted) {
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

fn fetch(folder: &Path, wanted: Unpacked) -> anyhow::Result<()> {
    let place = folder.join(wanted.name);
    // An aborted attempt leaves nothing behind that the next one would take for whole.
    if place.exists() {
        std::fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    }
    let (archives, fresh) = (place.join("archives"), place.join("new"));
    std::fs::create_dir_all(archives.join("partial"))
        .with_context(|| place.display().to_string())?;
    let own_apt = match wanted.own_root {
        true => Some(own_apt(&folder.join("apt"), "testing")?),
        false => None,
    };
    let cache = format!("Dir::Cache::archives={}", archives.display());
    let mut arguments = vec!["-y", "-q", "--no-install-recommends", "--download-only"];
    arguments.extend(["-o", &cache, "install"]);
    arguments.extend(wanted.packages);
    eprintln!("==> packages: apt-get {}", arguments.join(" "));
    run(&mut apt(own_apt.as_deref(), &arguments))?;
    for entry in std::fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&path).arg(&fresh))?;
            note_version(&place, wanted, &path)?;
        }
    }
    std::fs::remove_dir_all(&archives).context("the fetched archives")?;
    std::fs::rename(&fresh, wanted.root(folder)).context("the unpacked packages")?;
    if !wanted.is_there(folder) {
        bail!(
            "{} has no {}: the machine has the package installed already, or Debian moved it",
            wanted.root(folder).display(),
            wanted.program
        );
    }
    Ok(())
}

fn note_version(place: &Path, wanted: Unpacked, archive: &Path) -> anyhow::Result<()> {
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = name.split('_');
    if parts.next() != wanted.packages.first().copied() {
        return Ok(());
    }
    let version = parts.next().unwrap_or("unknown").replace("%3a", ":");
    std::fs::write(place.join("version"), version).context("the version")
}

fn apt(settings: Option<&Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    if let Some(path) = settings {
        command.env("APT_CONFIG", path);
    }
    command
}

/// An apt of its own, with fresh lists of another release of Debian and nothing installed: it
/// gives a package with all that it needs. The machine's apt is not touched; its mirror is used.
/// The path of its settings, for `APT_CONFIG`.
pub fn own_apt(place: &Path, release: &str) -> anyhow::Result<PathBuf> {
    for folder in ["lists/partial", "cache", "empty"] {
        std::fs::create_dir_all(place.join(folder)).with_context(|| place.display().to_string())?;
    }
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let signed = match Path::new(keys).exists() {
        true => format!("[signed-by={keys}] "),
        false => String::new(),
    };
    let source = format!("deb {signed}{} {release} main\n", mirror()?);
    std::fs::write(place.join("sources.list"), source)?;
    std::fs::write(place.join("status"), "")?;
    let here = place.display();
    let settings = format!(
        "Dir::Etc::sourcelist \"{here}/sources.list\";\n\
         Dir::Etc::sourceparts \"{here}/empty\";\n\
         Dir::Etc::preferencesparts \"{here}/empty\";\n\
         Dir::State::lists \"{here}/lists\";\n\
         Dir::State::status \"{here}/status\";\n\
         Dir::Cache \"{here}/cache\";\n\
         Acquire::Languages \"none\";\n"
    );
    let path = place.join("apt.conf");
    std::fs::write(&path, settings)?;
    run(&mut apt(Some(&path), &["update", "-q"]))?;
    Ok(path)
}

/// The address of the mirror that the machine takes Debian from.
fn mirror() -> anyhow::Result<String> {
    let format = "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(COMPONENT)";
    let output = run(&mut apt(
        None,
        &["indextargets", "--format", format, "Created-By: Packages"],
    ))?;
    let mirrors = output.lines().filter_map(|line| {
        let mut parts = line.split('|');
        let address = parts.next()?;
        parts
            .eq(["Debian", "Debian", "main"])
            .then(|| address.to_owned())
    });
    mirrors
        .into_iter()
        .next()
        .context("apt knows no mirror of Debian; run apt-get update")
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}: made for Debian and its kin"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
