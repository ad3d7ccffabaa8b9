//! `cargo xtask image`: the container image, made without a daemon.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::{kube, run};

/// What is told on the command line.
struct Wish {
    output: Option<PathBuf>,
    name: String,
    binary: Option<PathBuf>,
}

/// Builds it and says how large it is.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<u8> {
    let wish = parse(arguments)?;
    let program = match wish.binary {
        Some(program) => program,
        None => crate::build("testudo", &[])?,
    };
    let output = match wish.output {
        Some(path) => path,
        None => run::target_directory()?.join("testudo-image.tar"),
    };
    kube::image(&program, &wish.name, &output)?;
    Ok(0)
}

fn parse(arguments: &[&str]) -> anyhow::Result<Wish> {
    let mut wish = Wish {
        output: None,
        name: format!("localhost/testudo:{}", env!("CARGO_PKG_VERSION")),
        binary: None,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value"))
        };
        match *word {
            "--output" => wish.output = Some(std::path::absolute(value()?)?),
            "--name" => wish.name = (*value()?).to_owned(),
            "--binary" => wish.binary = Some(std::path::absolute(value()?)?),
            _ => bail!(
                "unknown: cargo xtask image {word}; there are --output FILE, --name NAME:TAG and \
                 --binary FILE"
            ),
        }
    }
    if !wish.name.contains(':') || wish.name.starts_with('-') {
        bail!("--name {}: write NAME:TAG", wish.name);
    }
    Ok(wish)
}
