//! Other IKE daemons, each measured against itself: two of them, a namespace each, N connections
//! between them.
//!
//! Each connection has a P-256 certificate of its own at each end, X25519, AES-256-GCM, and a
//! child, as ours have.

mod charon;
mod pluto;
mod vici;

use std::time::Duration;

use testudo_interop::{Daemon, End, LINK, Peer, World, why_not};
use testudo_pki::{chain_to_pem, key_to_pem};

use crate::ends::Authority;
use crate::usage;

/// Key exchanges under way at once.
const WINDOW: u32 = 32;
/// Handshakes that take longer have failed.
const LONGEST: Duration = Duration::from_secs(150);

const ENDS: [End; 2] = [End::Ours, End::Theirs];

/// A daemon that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Other {
    /// strongSwan's.
    Charon,
    /// libreswan's pluto.
    Libreswan,
}

impl Other {
    pub(crate) const ALL: [Self; 2] = [Self::Charon, Self::Libreswan];

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Charon => "charon",
            Self::Libreswan => "libreswan",
        }
    }

    /// Connections of its larger measurement: as many as it makes, configured and all, in a
    /// minute or two.
    pub(crate) fn large(self) -> u32 {
        match self {
            Self::Charon => 500,
            Self::Libreswan => 300,
        }
    }

    fn peer(self) -> Peer {
        match self {
            Self::Charon => Peer::StrongSwan,
            Self::Libreswan => Peer::Libreswan,
        }
    }

    /// Its version, where it is unpacked.
    pub(crate) fn version(self) -> String {
        testudo_interop::folder().map_or_else(|_| "unknown".into(), |f| self.peer().version(&f))
    }

    /// Why it cannot be measured here, if it cannot.
    pub(crate) fn missing(self) -> Option<String> {
        why_not(self.peer())
    }

    /// Why it cannot be measured with ML-KEM.
    pub(crate) fn lacks_ml_kem(self) -> String {
        format!("{} {} has no ML-KEM", self.name(), self.version())
    }

    /// Makes `connections` and gives what that took. The thread moves into a namespace: call it
    /// in one of its own.
    pub(crate) fn measure(self, connections: u32) -> anyhow::Result<Outcome> {
        match self {
            Self::Charon => charon::measure(connections),
            Self::Libreswan => pluto::measure(connections),
        }
    }
}

/// What was seen of the two daemons.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    connections: u32,
    /// Of both.
    cpu: Duration,
    elapsed: Duration,
    /// Growth of both, in KiB.
    grown: i64,
}

impl Outcome {
    /// How many there were.
    pub(crate) fn connections(&self) -> u32 {
        self.connections
    }

    /// CPU a handshake and side, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / f64::from(self.connections) / 2.0
    }

    /// Growth of resident memory for each connection and side, in KiB.
    pub(crate) fn kib(&self) -> f64 {
        self.grown as f64 / f64::from(self.connections) / 2.0
    }

    /// Connections established in a second.
    pub(crate) fn rate(&self) -> f64 {
        f64::from(self.connections) / self.elapsed.as_secs_f64()
    }
}

/// CPU and resident KiB of both daemons.
#[derive(Debug, Clone, Copy)]
struct Used {
    cpu: Duration,
    resident: u64,
}

impl Used {
    fn by(daemons: &[Daemon]) -> anyhow::Result<Self> {
        let (mut cpu, mut resident) = (Duration::ZERO, 0);
        for daemon in daemons {
            cpu += usage::cpu_of(daemon.pid())?;
            resident += usage::resident(&daemon.pid().to_string())?;
        }
        Ok(Self { cpu, resident })
    }

    fn since(self, before: Self, connections: u32, elapsed: Duration) -> anyhow::Result<Outcome> {
        Ok(Outcome {
            connections,
            cpu: self.cpu - before.cpu,
            elapsed,
            grown: i64::try_from(self.resident)? - i64::try_from(before.resident)?,
        })
    }
}

/// What an end is configured with.
struct Files<'m> {
    world: &'m World,
    authority: &'m Authority,
    end: End,
}

impl Files<'_> {
    fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let name = format!("{}/{name}", folder(self.end));
        self.world.place.write(&name, content)
    }

    /// The certificate of the CA that both ends trust.
    fn trusted(&self, name: &str) -> anyhow::Result<()> {
        let pem = chain_to_pem(&[self.authority.certificate()]);
        self.write(name, pem.as_bytes())
    }

    /// A certificate and a key for this end of a connection, under names made of the node's; the
    /// names of both nodes.
    fn issue(
        &self,
        number: u32,
        certificate: impl Fn(&str) -> String,
        key: impl Fn(&str) -> String,
    ) -> anyhow::Result<[String; 2]> {
        let [us, them] = [self.end, other(self.end)].map(|end| node(end, number));
        let (issued, secret) = self.authority.issue(&us)?;
        self.write(&certificate(&us), chain_to_pem(&[&issued]).as_bytes())?;
        self.write(&key(&us), key_to_pem(&secret)?.as_bytes())?;
        Ok([us, them])
    }

    /// Outer addresses: this end's and the other's.
    fn addresses(&self) -> [&'static str; 2] {
        let [[ours, theirs], ..] = LINK;
        match self.end {
            End::Ours => [ours, theirs],
            End::Theirs => [theirs, ours],
        }
    }

    /// Inner addresses of a connection, in the same order.
    fn inner(&self, number: u32) -> [String; 2] {
        [self.end, other(self.end)].map(|end| inner(end, number))
    }
}

/// The folder of an end's files.
fn folder(end: End) -> &'static str {
    match end {
        End::Ours => "ours",
        End::Theirs => "theirs",
    }
}

fn other(end: End) -> End {
    match end {
        End::Ours => End::Theirs,
        End::Theirs => End::Ours,
    }
}

/// The name of a connection.
fn connection(number: u32) -> String {
    format!("c{number}")
}

/// The node at an end of a connection.
fn node(end: End, number: u32) -> String {
    let side = match end {
        End::Ours => 'i',
        End::Theirs => 'r',
    };
    format!("{side}{number}")
}

/// The inner address of an end.
fn inner(end: End, number: u32) -> String {
    let side = match end {
        End::Ours => 1,
        End::Theirs => 2,
    };
    format!("10.{side}.{}.{}", number / 250 + 1, number % 250 + 1)
}
