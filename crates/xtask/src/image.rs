//! `cargo xtask image`: the container image, made without a daemon.
//!
//! It holds the program, `nft` and `modprobe` with the libraries that these are linked with, and
//! nothing else: no shell, no package manager. The same files make the same image, bit for bit.

mod closure;
mod layout;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::closure::{Entry, closure};
use self::layout::{Image, write};
use crate::{packages, run};

/// Where `nft` and `modprobe` come from.
const PROGRAMS: [(&str, &str); 2] = [("nft", "nftables"), ("modprobe", "kmod")];

/// What is told on the command line.
struct Wish {
    output: Option<PathBuf>,
    name: String,
}

/// Builds it and says how large it is.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<u8> {
    let wish = parse(arguments)?;
    packages::ensure_these(&PROGRAMS)?;
    let program = crate::build("testudo", &[])?;
    let stripped = program.with_extension("stripped");
    let (from, to) = (
        program.display().to_string(),
        stripped.display().to_string(),
    );
    run::step("strip", &["strip", "-o", &to, &from])?;
    let output = match wish.output {
        Some(path) => path,
        None => run::target_directory()?.join("testudo-image.tar"),
    };
    let mut entries = closure(&stripped, Path::new("/usr/bin/testudo"))?;
    for (program, _) in PROGRAMS {
        let path = run::find(program).with_context(|| format!("{program} is not on the path"))?;
        let place = Path::new("/usr/sbin").join(program);
        entries.extend(closure(&path, &place)?);
    }
    entries.sort();
    entries.dedup();
    let image = Image {
        name: &wish.name,
        entrypoint: "/usr/bin/testudo",
        entries: &entries,
    };
    let size = write(&image, &output)?;
    for Entry { place, size, .. } in &entries {
        eprintln!("    {:>8.1} KiB {}", *size as f64 / 1024.0, place.display());
    }
    println!(
        "{}: {}, {:.1} MiB, {} files",
        output.display(),
        wish.name,
        size as f64 / f64::from(1 << 20),
        entries.len()
    );
    Ok(0)
}

fn parse(arguments: &[&str]) -> anyhow::Result<Wish> {
    let mut wish = Wish {
        output: None,
        name: format!("localhost/testudo:{}", env!("CARGO_PKG_VERSION")),
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value"))
        };
        match *word {
            "--output" => wish.output = Some(PathBuf::from(value()?)),
            "--name" => wish.name = (*value()?).to_owned(),
            _ => bail!(
                "unknown: cargo xtask image {word}; there are --output FILE and --name NAME:TAG"
            ),
        }
    }
    if !wish.name.contains(':') || wish.name.starts_with('-') {
        bail!("--name {}: write NAME:TAG", wish.name);
    }
    Ok(wish)
}
