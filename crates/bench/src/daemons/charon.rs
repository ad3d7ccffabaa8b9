//! strongSwan's charon. It keeps its ESP to itself (kernel-libipsec), as in the interoperability
//! tests where the kernel has none; routes are left out, and nothing is logged.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use testudo_interop::{Cable, Daemon, End, Peer, World};

use crate::daemons::vici::Vici;
use crate::daemons::{ENDS, Files, LONGEST, Outcome, Used, WINDOW, connection, folder, inner};
use crate::ends::Authority;

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

pub(super) fn measure(connections: u32) -> anyhow::Result<Outcome> {
    let world = World::new(Cable::Direct)?;
    let authority = Authority::new()?;
    for end in ENDS {
        let files = Files {
            world: &world,
            authority: &authority,
            end,
        };
        configure(&files, connections)?;
    }
    for end in ENDS {
        inner_addresses(&world, end, connections)?;
    }
    let daemons = [start(&world, ENDS[0])?, start(&world, ENDS[1])?];
    for (end, daemon) in ENDS.iter().zip(&daemons) {
        load(&world, daemon, *end)?;
    }
    let [mut ours, mut theirs] = [vici(&world, ENDS[0])?, vici(&world, ENDS[1])?];
    let before = Used::by(&daemons)?;
    let start = Instant::now();
    let mut begun = 0;
    loop {
        // The responder has it last but one; the initiator's are what must all stand.
        let (up, responder) = (ours.established()?, theirs.established()?);
        if up == connections && responder == connections {
            break;
        }
        while begun < connections && begun < up + WINDOW {
            ours.initiate(&connection(begun))?;
            begun += 1;
        }
        ensure!(
            start.elapsed() < LONGEST,
            "charon: {up} of {connections} connections after {LONGEST:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let elapsed = start.elapsed();
    let after = Used::by(&daemons)?;
    installed(&world, &daemons[0], connections)?;
    after.since(before, connections, elapsed)
}

fn configure(files: &Files<'_>, connections: u32) -> anyhow::Result<()> {
    let place = files.world.place.path().join(folder(files.end));
    let settings = SETTINGS.replace("PLACE", &place.display().to_string());
    files.write("strongswan.conf", settings.as_bytes())?;
    files.trusted("x509ca/ca.pem")?;
    let mut text = String::from("connections {\n");
    for number in 0..connections {
        let nodes = files.issue(
            number,
            |us| format!("x509/{us}.pem"),
            |us| format!("pkcs8/{us}.pem"),
        )?;
        text += &section(files, number, &nodes);
    }
    text += "}\n";
    files.write("swanctl.conf", text.as_bytes())
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

fn section(files: &Files<'_>, number: u32, [us, them]: &[String; 2]) -> String {
    let [local, remote] = files.addresses();
    let [local_ts, remote_ts] = files.inner(number);
    let suffix = testudo_pki::NODE_DNS_SUFFIX;
    let name = connection(number);
    format!(
        " {name} {{\n version = 2\n local_addrs = {local}\n remote_addrs = {remote}\n \
         proposals = aes256gcm16-prfsha256-x25519\n dpd_delay = 0s\n encap = yes\n mobike = no\n \
         unique = no\n local {{\n auth = pubkey\n certs = {us}.pem\n id = {us}{suffix}\n }}\n \
         remote {{\n auth = pubkey\n id = {them}{suffix}\n }}\n children {{ {name} {{\n \
         local_ts = {local_ts}/32\n remote_ts = {remote_ts}/32\n \
         mode = tunnel\n esp_proposals = aes256gcm16-noesn\n }} }} }}\n"
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
