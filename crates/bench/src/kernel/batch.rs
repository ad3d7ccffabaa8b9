//! iproute2's `ip -batch` doing the same.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{PORT, address, inbound_spi, outbound_spi, own};

/// Packets of history against replays.
pub(super) const WINDOW: u32 = 4096;
/// 256 bits of AES and 32 of salt.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223";

/// Times of one measurement.
pub(super) struct Times {
    pub(super) install: Duration,
    pub(super) list: Duration,
    pub(super) remove: Duration,
}

pub(super) fn measure(peers: u32) -> anyhow::Result<Times> {
    let (mut install, mut remove) = (String::new(), String::new());
    for n in 0..peers {
        let (ours, theirs, reqid) = (own(), address(n), n + 1);
        let aead = format!("aead rfc4106(gcm(aes)) {KEY} 128");
        for (from, to, spi, dir) in [
            (theirs, ours, inbound_spi(n), "in"),
            (ours, theirs, outbound_spi(n), "out"),
        ] {
            let flow = format!("src {from}/32 dst {to}/32 proto udp dport {PORT}");
            let sa = format!("src {from} dst {to} proto esp spi {spi:#x}");
            writeln!(
                install,
                "xfrm state add {sa} reqid {reqid} mode transport {aead} flag esn \
                 replay-window {WINDOW}\n\
                 xfrm policy add {flow} dir {dir} priority 58740 \
                 tmpl src {from} dst {to} proto esp reqid {reqid} mode transport"
            )?;
            writeln!(
                remove,
                "xfrm state delete {sa}\nxfrm policy delete {flow} dir {dir}"
            )?;
        }
    }
    let times = Times {
        install: batch(&install)?,
        list: {
            let begin = Instant::now();
            let states = list("state")?;
            ensure!(states == 2 * peers as usize, "ip lists {states} SAs");
            list("policy")?;
            begin.elapsed()
        },
        remove: batch(&remove)?,
    };
    let left = list("state")?;
    ensure!(left == 0, "ip leaves {left} SAs");
    Ok(times)
}

fn batch(script: &str) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("iproute2 is missing")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    ensure!(child.wait()?.success(), "ip -batch failed");
    Ok(begin.elapsed())
}

/// Lists them as `ip` does; how many.
fn list(what: &str) -> anyhow::Result<usize> {
    let output = Command::new("ip").args(["xfrm", what, "list"]).output()?;
    ensure!(output.status.success(), "ip xfrm {what} list failed");
    let begins = |line: &&[u8]| line.starts_with(b"src ");
    Ok(output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(begins)
        .count())
}
