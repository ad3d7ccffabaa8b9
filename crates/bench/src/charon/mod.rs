//! strongSwan's charon against itself: two daemons, a namespace each, N connections between them.
//!
//! Each connection has a P-256 certificate of its own at each end, X25519, AES-256-GCM, and a
//! child. Where the kernel has no ESP, charon keeps it to itself (kernel-libipsec), as in the
//! interoperability tests; routes are left out, and nothing is logged.

mod vici;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use testudo_crypto::SigningKey;
use testudo_interop::{Cable, Daemon, End, LINK, Peer, World, why_not};
use testudo_pki::{chain_to_pem, key_to_pem};

use crate::charon::vici::Vici;
use crate::ends::Authority;
use crate::usage;

/// Key exchanges under way at once.
const WINDOW: u32 = 32;
const LONGEST: Duration = Duration::from_secs(150);

const SETTINGS: &str = "charon-systemd {
  load = random nonce openssl x509 constraints pubkey pkcs1 pkcs8 pem aes gcm hmac kdf drbg sha1 sha2 kernel-libipsec kernel-netlink socket-default vici
  install_routes = no
  dos_protection = no
  ikesa_table_size = 1024
  ikesa_table_segments = 16
  plugins { vici { socket = unix://PLACE/vici } }
  journal { default = -1 }
  syslog { daemon { default = -1 }
    auth { default = -1 } }
}
";

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

/// Why it cannot be measured here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    why_not(Peer::StrongSwan)
}

/// Makes `connections` and gives what that took. The thread moves into a namespace: call it in
/// one of its own.
pub(crate) fn measure(connections: u32) -> anyhow::Result<Outcome> {
    let world = World::new(Cable::Direct)?;
    let authority = Authority::new()?;
    let ends = [End::Ours, End::Theirs];
    for end in ends {
        configure(&world, &authority, end, connections)?;
    }
    for end in ends {
        inner_addresses(&world, end, connections)?;
    }
    let daemons = [start(&world, ends[0])?, start(&world, ends[1])?];
    for (end, daemon) in ends.iter().zip(&daemons) {
        load(&world, daemon, *end)?;
    }
    let [mut ours, mut theirs] = [vici(&world, ends[0])?, vici(&world, ends[1])?];
    let before = used(&daemons)?;
    let start = Instant::now();
    let mut begun = 0;
    loop {
        // The responder has it last but one; the initiator's are what must all stand.
        let (up, responder) = (ours.established()?, theirs.established()?);
        if up == connections && responder == connections {
            break;
        }
        while begun < connections && begun < up + WINDOW {
            ours.initiate(&child(begun))?;
            begun += 1;
        }
        ensure!(
            start.elapsed() < LONGEST,
            "charon: {up} of {connections} connections after {LONGEST:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let elapsed = start.elapsed();
    let after = used(&daemons)?;
    installed(&world, &daemons[0], connections)?;
    Ok(Outcome {
        connections,
        cpu: after.0 - before.0,
        elapsed,
        grown: i64::try_from(after.1)? - i64::try_from(before.1)?,
    })
}

/// CPU and resident KiB of both daemons.
fn used(daemons: &[Daemon]) -> anyhow::Result<(Duration, u64)> {
    let (mut cpu, mut resident) = (Duration::ZERO, 0);
    for daemon in daemons {
        cpu += usage::cpu_of(daemon.pid())?;
        resident += usage::resident(&daemon.pid().to_string())?;
    }
    Ok((cpu, resident))
}

/// The folder of an end's files.
fn folder(end: End) -> &'static str {
    match end {
        End::Ours => "ours",
        End::Theirs => "theirs",
    }
}

fn child(number: u32) -> String {
    format!("c{number}")
}

fn node(end: End, number: u32) -> String {
    let side = match end {
        End::Ours => 'i',
        End::Theirs => 'r',
    };
    format!("{side}{number}")
}

fn configure(
    world: &World,
    authority: &Authority,
    end: End,
    connections: u32,
) -> anyhow::Result<()> {
    let other = match end {
        End::Ours => End::Theirs,
        End::Theirs => End::Ours,
    };
    let folder = folder(end);
    let place = world.place.path().join(folder);
    let settings = SETTINGS.replace("PLACE", &place.display().to_string());
    let write =
        |name: &str, content: &[u8]| world.place.write(&format!("{folder}/{name}"), content);
    write("strongswan.conf", settings.as_bytes())?;
    let ca = chain_to_pem(&[authority.certificate()]);
    write("x509ca/ca.pem", ca.as_bytes())?;
    let mut text = String::from("connections {\n");
    for number in 0..connections {
        let (us, them) = (node(end, number), node(other, number));
        let (certificate, key): (Vec<u8>, SigningKey) = authority.issue(&us)?;
        let pem = chain_to_pem(&[&certificate]);
        write(&format!("x509/{us}.pem"), pem.as_bytes())?;
        write(&format!("pkcs8/{us}.pem"), key_to_pem(&key)?.as_bytes())?;
        text += &connection(end, number, &us, &them);
    }
    text += "}\n";
    write("swanctl.conf", text.as_bytes())
}

/// The inner address of an end.
fn inner(end: End, number: u32) -> String {
    let side = match end {
        End::Ours => 1,
        End::Theirs => 2,
    };
    format!("10.{side}.{}.{}", number / 250 + 1, number % 250 + 1)
}

/// Gives an end its inner addresses: charon's own ESP installs no child without one of its own.
fn inner_addresses(world: &World, end: End, connections: u32) -> anyhow::Result<()> {
    let script: Vec<String> = (0..connections)
        .map(|n| format!("ip address add {}/32 dev lo", inner(end, n)))
        .collect();
    let mut enter = match end {
        End::Ours => Command::new("env"),
        End::Theirs => world.enter(),
    };
    let done = enter.args(["sh", "-ec", &script.join("\n")]).output()?;
    ensure!(
        done.status.success(),
        "inner addresses: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

fn connection(end: End, number: u32, us: &str, them: &str) -> String {
    let [v4, ..] = LINK;
    let (local, remote, other) = match end {
        End::Ours => (v4[0], v4[1], End::Theirs),
        End::Theirs => (v4[1], v4[0], End::Ours),
    };
    let suffix = testudo_pki::NODE_DNS_SUFFIX;
    let name = child(number);
    format!(
        " {name} {{\n version = 2\n local_addrs = {local}\n remote_addrs = {remote}\n \
         proposals = aes256gcm16-prfsha256-x25519\n dpd_delay = 0s\n encap = yes\n mobike = no\n \
         unique = no\n local {{\n auth = pubkey\n certs = {us}.pem\n id = {us}{suffix}\n }}\n \
         remote {{\n auth = pubkey\n id = {them}{suffix}\n }}\n children {{ {name} {{\n \
         local_ts = {local_ts}/32\n remote_ts = {remote_ts}/32\n \
         mode = tunnel\n esp_proposals = aes256gcm16-noesn\n }} }} }}\n",
        local_ts = inner(end, number),
        remote_ts = inner(other, number),
    )
}

fn start(world: &World, end: End) -> anyhow::Result<Daemon> {
    let place = world.place.path().join(folder(end));
    let line = format!(
        "export STRONGSWAN_CONF={0}/strongswan.conf SWANCTL_DIR={0}\nexec charon-systemd",
        place.display()
    );
    let daemon = world.start_at(end, folder(end), Peer::StrongSwan, &line)?;
    let until = Instant::now() + Duration::from_secs(15);
    while !place.join("vici").exists() {
        if Instant::now() > until {
            let output = format!("{}/output", folder(end));
            bail!("charon does not start: {}", world.text(&output));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(daemon)
}

fn swanctl(world: &World, daemon: &Daemon, end: End, words: &[&str]) -> anyhow::Result<String> {
    let place = world.place.path().join(folder(end));
    let output = daemon
        .enter()
        .env("SWANCTL_DIR", &place)
        .env("STRONGSWAN_CONF", place.join("strongswan.conf"))
        .arg("swanctl")
        .args(words)
        .args(["--uri", &format!("unix://{}/vici", place.display())])
        .output()
        .context("swanctl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "swanctl {words:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

fn load(world: &World, daemon: &Daemon, end: End) -> anyhow::Result<()> {
    swanctl(world, daemon, end, &["--load-all", "--noprompt"]).map(|_| ())
}

fn vici(world: &World, end: End) -> anyhow::Result<Vici> {
    Vici::connect(&world.place.path().join(folder(end)).join("vici"))
}

/// Makes sure that what was counted as established has its child.
fn installed(world: &World, daemon: &Daemon, connections: u32) -> anyhow::Result<()> {
    let text = swanctl(world, daemon, End::Ours, &["--list-sas"])?;
    let up = text.matches("INSTALLED").count();
    ensure!(
        up == connections as usize,
        "charon has {up} children of {connections}: {}",
        text.chars().take(600).collect::<String>()
    );
    Ok(())
}
