//! An image with a shell and what a test needs of programs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::{File, Image};

/// The name of the image that every node has. It is also what holds pods' namespaces.
pub const BUSYBOX: &str = "testudo.dev/busybox:1";

/// Programs of busybox's that pods find under their own names.
const APPLETS: [&str; 16] = [
    "sh", "cat", "echo", "httpd", "ip", "ls", "mkdir", "nc", "ping", "rm", "sleep", "test",
    "touch", "true", "wc", "wget",
];

/// The image [`BUSYBOX`], from the machine's busybox, which is Debian's that needs no library.
pub(crate) fn busybox() -> Result<Image<'static>> {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| is_static(path))
        .context("there is no busybox that needs no library (Debian: busybox-static)")?;
    let mut files = vec![File::new(&program, Path::new("/bin/busybox"))?];
    for applet in APPLETS {
        files.push(File::link("busybox", &Path::new("/bin").join(applet)));
    }
    Ok(Image {
        name: BUSYBOX,
        files,
        entrypoint: Vec::new(),
        command: ["/bin/busybox", "sleep", "2147483647"]
            .map(str::to_owned)
            .to_vec(),
    })
}

/// Whether a program runs without a loader: no program header names one (ELF's PT_INTERP).
fn is_static(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = fs::read(path) else {
        return false;
    };
    let half = |at: usize| {
        let two = bytes.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(u16::from_le_bytes(two)))
    };
    // Of a file for 64 bits: where the headers begin, the size of each, their number.
    let kinds = || {
        let begin = bytes.get(0x20..0x28)?.try_into().ok()?;
        let begin = usize::try_from(u64::from_le_bytes(begin)).ok()?;
        let (size, count) = (half(0x36)?, half(0x38)?);
        (0..count)
            .map(|number| {
                let at = begin.checked_add(number * size)?;
                let kind = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
                Some(u32::from_le_bytes(kind))
            })
            .collect::<Option<Vec<u32>>>()
    };
    bytes.starts_with(b"\x7fELF") && kinds().is_some_and(|kinds| !kinds.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_known() {
        assert!(!is_static(Path::new("/bin/sh")), "no shell is static");
        assert!(!is_static(Path::new("/etc/passwd")));
        assert!(!is_static(Path::new("/nothing")));
    }
}
