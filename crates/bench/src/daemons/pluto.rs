//! libreswan's pluto. The kernel's part is left out: its requests to install SAs are answered by
//! the library of the interoperability tests, so no packet passes and no time goes there. All
//! connections of an end share one address; their identities tell them apart.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testudo_interop::{Cable, Daemon, End, Peer, World, pretend_xfrm};
use testudo_pki::NODE_DNS_SUFFIX;

use crate::daemons::{ENDS, Files, LONGEST, Outcome, Used, WINDOW, connection, folder};
use crate::ends::Authority;

/// Until all keys are in its database and all connections are read.
const PREPARING: Duration = Duration::from_secs(140);

/// Imports what lies in the folder, then becomes pluto. NSS takes a key only as PKCS#12; what
/// that is encrypted with is of no account here.
const LINE: &str = "nss=sql:/var/lib/ipsec/nss
mkdir -p /run/pluto /var/lib/ipsec/nss d
certutil -N -d $nss --empty-password
certutil -A -d $nss -n ca -t CT,, -i ca.pem
for key in *.key; do
  name=${key%.key}
  openssl pkcs12 -export -in $name.pem -inkey $key -name $name -passout pass:x -iter 1 -out $name.p12
  pk12util -i $name.p12 -d $nss -W x > import
done
export LD_PRELOAD=LIBRARY
exec /usr/libexec/ipsec/pluto --nofork --stderrlog --rundir /run/pluto --no-dnssec --config $PWD/ipsec.conf --secretsfile $PWD/secrets --ipsecdir $PWD/d";

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
    let library = pretend_xfrm(&world.place)?;
    let line = LINE.replace("LIBRARY", &library.display().to_string());
    let start = |end| world.start_at(end, folder(end), Peer::Libreswan, &line);
    let daemons = [start(ENDS[0])?, start(ENDS[1])?];
    for end in ENDS {
        prepared(&world, end, connections)?;
    }
    let before = Used::by(&daemons)?;
    let start = Instant::now();
    let mut begun = 0;
    loop {
        // The responder has it last but one; the initiator's are what must all stand.
        let [ours, theirs] = [held(&daemons[0])?, held(&daemons[1])?];
        if ours.all(connections) && theirs.all(connections) {
            break;
        }
        let most = connections.min(ours.ikes + WINDOW);
        if begun < most {
            initiate(&daemons[0], begun..most)?;
            begun = most;
        }
        ensure!(
            start.elapsed() < LONGEST,
            "libreswan: {ours:?} and {theirs:?} of {connections} connections after {LONGEST:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let elapsed = start.elapsed();
    Used::by(&daemons)?.since(before, connections, elapsed)
}

fn configure(files: &Files<'_>, connections: u32) -> anyhow::Result<()> {
    files.trusted("ca.pem")?;
    files.write("secrets", b"")?;
    let [local, remote] = files.addresses();
    let mut text = format!(
        "config setup\n plutodebug=none\n\nconn %default\n left={local}\n right={remote}\n \
         authby=ecdsa\n leftsendcert=always\n rightca=%any\n type=tunnel\n ikev2=insist\n \
         ike=aes_gcm256-sha2_256-dh31\n esp=aes_gcm256\n leftupdown=%disabled\n \
         retransmit-timeout=60s\n keyingtries=1\n auto=add\n"
    );
    for number in 0..connections {
        let [us, them] = files.issue(number, |us| format!("{us}.pem"), |us| format!("{us}.key"))?;
        let [local, remote] = files.inner(number);
        write!(
            text,
            "\nconn {}\n leftid=@{us}{NODE_DNS_SUFFIX}\n rightid=@{them}{NODE_DNS_SUFFIX}\n \
             leftcert={us}\n leftsubnet={local}/32\n rightsubnet={remote}/32\n",
            connection(number),
        )?;
    }
    files.write("ipsec.conf", text.as_bytes())
}

/// Waits until a daemon has read all that it is given.
fn prepared(world: &World, end: End, connections: u32) -> anyhow::Result<()> {
    let output = format!("{}/output", folder(end));
    let start = Instant::now();
    loop {
        let log = world.text(&output);
        if log.matches("added IKEv2 connection").count() == connections as usize
            && log.contains("loading secrets")
        {
            return Ok(());
        }
        let said = || log.lines().rev().take(3).collect::<Vec<_>>().join(" / ");
        ensure!(
            start.elapsed() < PREPARING,
            "libreswan has not read {connections} connections after {PREPARING:?}: {}",
            said()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn whack(daemon: &Daemon, script: &str) -> anyhow::Result<String> {
    let whack = "w() { /usr/libexec/ipsec/whack --rundir /run/pluto \"$@\"; }";
    let output = daemon
        .enter()
        .args(["sh", "-c", &format!("{whack}\n{script}")])
        .output()
        .context("whack")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Begins connections, without waiting for them.
fn initiate(daemon: &Daemon, numbers: std::ops::Range<u32>) -> anyhow::Result<()> {
    let line = |n| format!("w --name {} --initiate --asynchronous\n", connection(n));
    let script: String = numbers.map(line).collect();
    whack(daemon, &script).map(drop)
}

/// What a daemon holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    ikes: u32,
    children: u32,
}

impl Held {
    fn all(self, connections: u32) -> bool {
        self.ikes == connections && self.children == connections
    }
}

fn held(daemon: &Daemon) -> anyhow::Result<Held> {
    let text = whack(daemon, "w --globalstatus")?;
    let number = |key: &str| -> anyhow::Result<u32> {
        let line = text.lines().find_map(|l| l.trim().strip_prefix(key));
        let value = line.with_context(|| format!("pluto's status has no {key}: {text}"))?;
        Ok(value.parse()?)
    };
    Ok(Held {
        ikes: number("current.states.enumerate.STATE_V2_ESTABLISHED_IKE_SA=")?,
        children: number("current.states.enumerate.STATE_V2_ESTABLISHED_CHILD_SA=")?,
    })
}
