//! A program and all the libraries that the loader will want.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::layout::File;

/// The program at `place`, and its libraries where its loader looks for them.
pub(super) fn closure(program: &Path, place: &Path) -> anyhow::Result<Vec<File>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("ldd could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() && !text.contains("not a dynamic executable") {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("ldd {}: {}", program.display(), errors.trim());
    }
    let mut files = vec![File::new(program, place)?];
    for library in libraries(&text)? {
        files.push(File::new(&library, &library)?);
    }
    Ok(files)
}

/// The paths that ldd names.
fn libraries(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        if line.contains("=> not found") {
            bail!("a library is missing: {}", line.trim());
        }
        let named = line.split_once("=>").map_or(line, |(_, path)| path);
        let path = named.split_whitespace().next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_named() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f50)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f50)\n";
        assert_eq!(
            libraries(text).unwrap(),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libmnl.so.0"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_no_image() {
        let error = libraries("\tlibx.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so.1"), "{error}");
    }

    #[test]
    fn a_real_program_brings_its_loader() {
        let program = std::env::current_exe().unwrap();
        let files = closure(&program, Path::new("/usr/bin/x")).unwrap();
        assert_eq!(files[0].place, Path::new("/usr/bin/x"));
        assert!(
            files
                .iter()
                .any(|e| e.place.to_string_lossy().contains("/ld-linux"))
        );
    }
}
