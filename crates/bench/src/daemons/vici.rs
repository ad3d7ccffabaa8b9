//! As much of strongSwan's control protocol (vici) as a measurement needs: beginning connections
//! and counting them costs charon next to nothing this way.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

const REQUEST: u8 = 0;
const RESPONSE: u8 = 1;
/// Elements of a message.
const SECTION_START: u8 = 1;
const SECTION_END: u8 = 2;
const KEY_VALUE: u8 = 3;

/// A connection to a charon.
pub(super) struct Vici(UnixStream);

impl Vici {
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(stream))
    }

    /// Begins a child and its IKE SA, without waiting for them.
    pub(super) fn initiate(&mut self, child: &str) -> anyhow::Result<()> {
        let arguments = [("child", child), ("timeout", "-1"), ("init-limits", "no")];
        let answer = self.call("initiate", &arguments)?;
        match value(&answer, &[], "success") {
            Some("yes") => Ok(()),
            _ => bail!("charon does not begin {child}: {answer:?}"),
        }
    }

    /// How many IKE SAs are established.
    pub(super) fn established(&mut self) -> anyhow::Result<u32> {
        let answer = self.call("stats", &[])?;
        let number = |key| -> anyhow::Result<u32> {
            let text = value(&answer, &["ikesas"], key).context("charon's stats")?;
            Ok(text.parse()?)
        };
        Ok(number("total")?.saturating_sub(number("half-open")?))
    }

    fn call(&mut self, name: &str, arguments: &[(&str, &str)]) -> anyhow::Result<Vec<Element>> {
        let mut packet = vec![REQUEST, u8::try_from(name.len())?];
        packet.extend(name.as_bytes());
        for (key, value) in arguments {
            packet.extend([KEY_VALUE, u8::try_from(key.len())?]);
            packet.extend(key.as_bytes());
            packet.extend(u16::try_from(value.len())?.to_be_bytes());
            packet.extend(value.as_bytes());
        }
        self.0
            .write_all(&u32::try_from(packet.len())?.to_be_bytes())?;
        self.0.write_all(&packet)?;
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut answer)?;
        match answer.split_first() {
            Some((&RESPONSE, message)) => elements(message),
            _ => bail!("charon does not know the command {name}"),
        }
    }
}

/// A key of a message with its value and the sections above it.
#[derive(Debug)]
struct Element {
    path: Vec<String>,
    key: String,
    value: String,
}

fn value<'a>(message: &'a [Element], path: &[&str], key: &str) -> Option<&'a str> {
    message
        .iter()
        .find(|e| e.key == key && e.path == path)
        .map(|e| e.value.as_str())
}

/// Lists are left out.
fn elements(mut bytes: &[u8]) -> anyhow::Result<Vec<Element>> {
    let mut out = Vec::new();
    let mut path = Vec::new();
    while let Some((&kind, rest)) = bytes.split_first() {
        bytes = rest;
        match kind {
            SECTION_START => path.push(text(&mut bytes, 1)?),
            SECTION_END => {
                path.pop();
            }
            KEY_VALUE => out.push(Element {
                path: path.clone(),
                key: text(&mut bytes, 1)?,
                value: text(&mut bytes, 2)?,
            }),
            // A list: its name, items, its end.
            4 => {
                text(&mut bytes, 1)?;
            }
            5 => {
                text(&mut bytes, 2)?;
            }
            6 => {}
            other => bail!("an element {other} in charon's answer"),
        }
    }
    Ok(out)
}

/// A text with its length in front, in `width` bytes.
fn text(bytes: &mut &[u8], width: usize) -> anyhow::Result<String> {
    let short = "charon's answer ends early";
    let (length, rest) = bytes.split_at_checked(width).context(short)?;
    let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let (text, rest) = rest.split_at_checked(length).context(short)?;
    *bytes = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}
