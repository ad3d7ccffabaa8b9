//! What the checks look at, and how it is found out.

use std::fs;
use std::path::Path;
use std::process::Command;

use testudo_datapath::DatapathError;
use testudo_netlink::{Nft, NftError, Xfrm, XfrmPolicy};

/// Other IPsec daemons, by the names of their processes.
const DAEMONS: [&str; 7] = [
    "charon",
    "charon-systemd",
    "pluto",
    "racoon",
    "iked",
    "isakmpd",
    "ovs-monitor-ips",
];

/// Something is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl From<DatapathError> for Lack {
    fn from(error: DatapathError) -> Self {
        match error {
            DatapathError::Missing { what, remedy } => Self { what, remedy },
            other => Self {
                what: other.to_string(),
                remedy: String::new(),
            },
        }
    }
}

/// A program that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The name of its process.
    pub name: String,
    /// Its number.
    pub process: u32,
}

/// What there is to know of a host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release (`uname -r`).
    pub release: String,
    /// Its version (`uname -v`), in which Debian names the release it is made of.
    pub version: String,
    /// Whether an ESP SA can be made.
    pub usable: Result<(), Lack>,
    /// Whether the kernel gives an SA's key back; unknown where no SA can be made.
    pub keys_readable: Option<bool>,
    /// Whether nftables of the family inet can be made.
    pub firewall: Result<(), Lack>,
    /// The kernel counts what IPsec drops.
    pub statistics: bool,
    /// All IPsec policies of the namespace, whoever made them.
    pub policies: Vec<XfrmPolicy>,
    /// Other IPsec daemons.
    pub daemons: Vec<Daemon>,
    /// Settings of links that switch IPsec off, as `NAME=VALUE`.
    pub switched_off: Vec<String>,
    /// nftables flowtables, as `FAMILY TABLE NAME`.
    pub flowtables: Vec<String>,
    /// `net.core.xfrm_acq_expires`.
    pub acquire_seconds: Option<u32>,
}

/// A kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// 6 of 6.12.87.
    pub major: u32,
    /// 12 of 6.12.87.
    pub minor: u32,
    /// 87 of 6.12.87; unknown where a vendor's number stands in its place.
    pub patch: Option<u32>,
}

impl Release {
    /// From `uname -r` and `-v`.
    pub fn read(release: &str, version: &str) -> Option<Self> {
        let whole = release.split(['-', '+']).next().unwrap_or_default();
        let (major, minor, patch) = numbers(whole)?;
        // 6.1.0-50-amd64, 6.8.0-45-generic: these vendors count for themselves behind the dash.
        let vendor = patch == Some(0) && release.contains('-');
        let named = version.split([' ', '-']).filter_map(numbers);
        let made_of = named
            .filter(|(a, b, c)| (*a, *b) == (major, minor) && c.is_some())
            .map(|(_, _, patch)| patch)
            .next();
        let patch = match made_of {
            Some(patch) => patch,
            None if vendor => None,
            None => Some(patch.unwrap_or(0)),
        };
        Some(Self {
            major,
            minor,
            patch,
        })
    }
}

fn numbers(text: &str) -> Option<(u32, u32, Option<u32>)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    match parts.next() {
        None => Some((major, minor, None)),
        Some(patch) => Some((major, minor, Some(patch?))),
    }
}

/// Finds it out, in the network namespace of the calling thread. Makes an SA and removes it again;
/// changes nothing else.
pub fn gather() -> Facts {
    let kernel = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(name));
        text.unwrap_or_default().trim().to_owned()
    };
    let acquire = fs::read_to_string("/proc/sys/net/core/xfrm_acq_expires");
    let tried = crate::probe::probe().map(|(_, facts)| facts);
    let tried = tried.map_err(Lack::from);
    Facts {
        release: kernel("osrelease"),
        version: kernel("version"),
        keys_readable: tried.as_ref().ok().map(|facts| facts.keys_readable),
        usable: tried.map(drop),
        firewall: firewall(),
        // The file of the thread's own namespace.
        statistics: Path::new("/proc/thread-self/net/xfrm_stat").exists(),
        policies: Xfrm::open()
            .and_then(|mut xfrm| xfrm.policies())
            .unwrap_or_default(),
        daemons: daemons(),
        switched_off: switched_off(Path::new("/proc/sys/net")),
        flowtables: flowtables(),
        acquire_seconds: acquire.ok().and_then(|text| text.trim().parse().ok()),
    }
}

fn firewall() -> Result<(), Lack> {
    let lack = |what: String, remedy: &str| Lack {
        what,
        remedy: remedy.into(),
    };
    Nft::new("nft").check().map_err(|error| match error {
        NftError::NoProgram => lack(error.to_string(), "install the package nftables"),
        NftError::NoTables(_) => {
            let remedy = "use a kernel with nf_tables and its family inet";
            lack(error.to_string(), remedy)
        }
        NftError::Failed(_) => lack(error.to_string(), ""),
    })
}

fn daemons() -> Vec<Daemon> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let daemon = |process: u32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
        let name = name.trim().to_owned();
        DAEMONS
            .contains(&name.as_str())
            .then_some(Daemon { name, process })
    };
    let mut found: Vec<Daemon> = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(daemon)
        .collect();
    found.sort_by_key(|daemon| daemon.process);
    found
}

/// `net` is /proc/sys/net. The loopback device is beside IPsec by default, and devices that are
/// tunnels of IPsec themselves are meant to be.
fn switched_off(net: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (family, settings) in [
        ("ipv4", &["disable_policy", "disable_xfrm"][..]),
        ("ipv6", &["disable_policy"][..]),
    ] {
        let Ok(links) = fs::read_dir(net.join(family).join("conf")) else {
            continue;
        };
        for link in links.flatten() {
            let name = link.file_name().to_string_lossy().into_owned();
            let tunnel = ["vti", "ip_vti", "ip6_vti", "ipsec", "xfrm"];
            let meant = tunnel.iter().any(|prefix| name.starts_with(prefix));
            if name == "lo" || name == "default" || meant {
                continue;
            }
            for setting in settings {
                let value = fs::read_to_string(link.path().join(setting));
                if value.is_ok_and(|value| value.trim() != "0") {
                    found.push(format!("net.{family}.conf.{name}.{setting}=1"));
                }
            }
        }
    }
    found.sort();
    found
}

fn flowtables() -> Vec<String> {
    let Ok(output) = Command::new("nft").args(["list", "flowtables"]).output() else {
        return Vec::new();
    };
    named_flowtables(&String::from_utf8_lossy(&output.stdout))
}

/// Of what nft lists: `table FAMILY NAME {`, and in it `flowtable NAME {`.
pub(super) fn named_flowtables(text: &str) -> Vec<String> {
    let (mut found, mut table) = (Vec::new(), "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches([' ', '{']);
        } else if let Some(name) = line.strip_prefix("flowtable ") {
            found.push(format!("{table} {}", name.trim_end_matches([' ', '{'])));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_with_ipsec_switched_off_are_found() {
        let net = tempfile::tempdir().unwrap();
        for (link, setting, value) in [
            ("ipv4/conf/eth0", "disable_xfrm", "1"),
            ("ipv4/conf/eth0", "disable_policy", "0"),
            ("ipv6/conf/all", "disable_policy", "1"),
            ("ipv4/conf/lo", "disable_xfrm", "1"),
            ("ipv4/conf/vti7", "disable_policy", "1"),
        ] {
            let folder = net.path().join(link);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(setting), format!("{value}\n")).unwrap();
        }
        let expected = [
            "net.ipv4.conf.eth0.disable_xfrm=1",
            "net.ipv6.conf.all.disable_policy=1",
        ];
        assert_eq!(switched_off(net.path()), expected);
    }
}
