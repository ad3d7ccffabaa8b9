//! Testudo's own image: the program, `nft` and `modprobe` with the libraries that these are linked with, and
//! nothing else: no shell, no package manager.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::closure::closure;
use super::layout::Image;

/// The name that the chart has by default, without its tag.
pub const NAME: &str = "localhost/testudo";

/// What the program runs beside itself, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 2] = [("nft", "nftables"), ("modprobe", "kmod")];

/// The image of a build of `testudo`. Its symbols are left out, in a copy at `stripped`, which must stay until
/// the image has been written. The same files make the same image, bit for bit.
pub fn testudo<'a>(program: &Path, stripped: &Path, name: &'a str) -> Result<Image<'a>> {
    let status = Command::new("strip")
        .arg("-o")
        .args([stripped, program])
        .status()
        .context("strip could not be started (Debian: binutils)")?;
    ensure!(status.success(), "{}: no program", program.display());
    let mut files = closure(stripped, Path::new("/usr/bin/testudo"))?;
    for (program, package) in PROGRAMS {
        let path =
            find(program).with_context(|| format!("there is no {program} (Debian: {package})"))?;
        files.extend(closure(&path, &Path::new("/usr/sbin").join(program))?);
    }
    files.sort();
    files.dedup();
    Ok(Image {
        name,
        files,
        entrypoint: vec!["/usr/bin/testudo".to_owned()],
        command: Vec::new(),
    })
}

/// On the path, or where root's programs are.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    let mut places = folders.map(|folder| Path::new(folder).join(program));
    places.find(|place| place.is_file())
}
