//! The register in lines: a node by name and UID, then by CA (what its fingerprint begins with) serial number
//! and end of each certificate, and since when it is taken back, all in hex.
//!
//! ```text
//! testudo-register 1
//! node n1 3f0c1f8e-7a1d-4c8c-9a57-2f4f9c1d0a01 seen
//! ca 8c7f3a2b11d0e4f5 5a1f…-74565a80 61b0…-74565b02!6b0276f8
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, bail, ensure};

use super::{Given, Holder, Register, serial_bytes};

/// The first line.
pub(super) const HEAD: &str = "testudo-register 1";

impl Register {
    /// The document's text.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{HEAD}\n");
        for (holder, entry) in &self.entries {
            let seen = if entry.seen { " seen" } else { "" };
            let _ = writeln!(text, "node {} {}{seen}", holder.name, holder.uid);
            let cas: BTreeSet<&str> = entry.given.iter().map(|given| given.ca.as_str()).collect();
            for ca in cas {
                let _ = write!(text, "ca {ca}");
                for given in entry.given.iter().filter(|given| given.ca == ca) {
                    let _ = write!(text, " {}-{:x}", given.serial, given.not_after);
                    if let Some(at) = given.revoked {
                        let _ = write!(text, "!{at:x}");
                    }
                }
                text.push('\n');
            }
        }
        text
    }

    /// Of a text that [`Self::to_text`] gave.
    pub(super) fn from_text(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().enumerate();
        ensure!(
            lines.next().is_some_and(|(_, line)| line == HEAD),
            "it does not begin with \"{HEAD}\""
        );
        let mut register = Self::default();
        let mut holder = None;
        for (at, line) in lines {
            let read = register.read_line(line, &mut holder);
            read.with_context(|| format!("line {}", at + 1))?;
        }
        register.measure();
        Ok(register)
    }

    fn read_line(&mut self, line: &str, holder: &mut Option<Holder>) -> anyhow::Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["node", name, uid, ref rest @ ..] => {
                let seen = match rest {
                    [] => false,
                    ["seen"] => true,
                    _ => bail!("{rest:?} is not known"),
                };
                let found = Holder {
                    name: name.to_owned(),
                    uid: uid.to_owned(),
                };
                self.entries.entry(found.clone()).or_default().seen = seen;
                *holder = Some(found);
            }
            ["ca", ca, ref certificates @ ..] => {
                let holder = holder.as_ref().context("certificates of no node")?;
                for text in certificates {
                    let given = Given::read(ca, text);
                    let given = given.with_context(|| format!("{text:?} is no certificate"))?;
                    let entry = self.entries.entry(holder.clone()).or_default();
                    entry.given.push(given);
                }
            }
            _ => bail!("it is neither a node nor a CA"),
        }
        Ok(())
    }
}

impl Given {
    fn read(ca: &str, text: &str) -> Option<Self> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let (serial, times) = text.split_once('-')?;
        serial_bytes(serial)?;
        let (not_after, revoked) = match times.split_once('!') {
            Some((end, at)) => (number(end)?, Some(number(at)?)),
            None => (number(times)?, None),
        };
        Some(Self {
            ca: ca.to_owned(),
            serial: serial.to_owned(),
            not_after,
            revoked,
        })
    }
}
