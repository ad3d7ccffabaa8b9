//! Container images of a few files, made without a daemon: an archive as the OCI's image layout has
//! it, with one layer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::certificates::private_folder;

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A program of the machine's. It needs no library that is not in the image.
    Program(PathBuf),
    /// A symbolic link to this.
    Link(String),
}

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Its name with a tag, for instance `testudo.dev/busybox:1`.
    pub name: &'a str,
    /// Its files: paths without a leading slash.
    pub files: Vec<(String, Entry)>,
    /// The command that runs where a pod names none.
    pub command: Vec<String>,
}

/// The name of the image that every node has: a shell and what a test needs of programs. It is also
/// what holds pods' namespaces.
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
    let mut files = vec![("bin/busybox".to_owned(), Entry::Program(program))];
    for applet in APPLETS {
        files.push((format!("bin/{applet}"), Entry::Link("busybox".into())));
    }
    Ok(Image {
        name: BUSYBOX,
        files,
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

impl Image<'_> {
    /// Writes the archive. `work` is a folder that is used meanwhile and removed.
    pub fn write(&self, archive: &Path, work: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(work);
        let (root, layout) = (work.join("root"), work.join("layout"));
        private_folder(&layout.join("blobs/sha256"))?;
        self.lay_out(&root)?;
        let layer = work.join("layer.tar");
        tar(&root, &layer)?;
        let (layer, layer_size) = blob(&layout, &layer)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Cmd": self.command, "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"] },
            // Not compressed, so that its two digests are one.
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        });
        let (config, config_size) = json_blob(&layout, work, &config)?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config}"),
                "size": config_size,
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer}"),
                "size": layer_size,
            }],
        });
        let (manifest, manifest_size) = json_blob(&layout, work, &manifest)?;
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{manifest}"),
                "size": manifest_size,
                "annotations": {
                    "io.containerd.image.name": self.name,
                    "org.opencontainers.image.ref.name": self.name,
                },
            }],
        });
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        tar(&layout, archive)?;
        fs::remove_dir_all(work).with_context(|| work.display().to_string())
    }

    fn lay_out(&self, root: &Path) -> Result<()> {
        for (path, entry) in &self.files {
            let to = root.join(path);
            let folder = to.parent().context("a file is in a folder")?;
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            match entry {
                Entry::Program(from) => fs::copy(from, &to).map(drop),
                Entry::Link(target) => std::os::unix::fs::symlink(target, &to),
            }
            .with_context(|| format!("{path} of image {}", self.name))?;
        }
        // Where the machine's are mounted.
        for folder in ["dev", "etc", "proc", "run", "sys", "tmp", "var"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(())
    }
}

/// An archive that is the same whenever it is made.
fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command
        .args([
            "--create",
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ])
        .args(["--mode=u+rwX,go+rX,go-w", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    run(&mut command).map(drop)
}

fn json_blob(layout: &Path, work: &Path, value: &serde_json::Value) -> Result<(String, u64)> {
    let file = work.join("blob");
    fs::write(&file, value.to_string()).with_context(|| file.display().to_string())?;
    blob(layout, &file)
}

/// Moves a file to its place in the layout; its digest and its size.
fn blob(layout: &Path, file: &Path) -> Result<(String, u64)> {
    let size = File::open(file)?.metadata()?.len();
    let printed = run(Command::new("sha256sum").arg(file))?;
    let digest = printed
        .split_whitespace()
        .next()
        .context("sha256sum printed nothing")?;
    fs::rename(file, layout.join("blobs/sha256").join(digest))?;
    Ok((digest.to_owned(), size))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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

    #[test]
    fn an_image_is_the_same_whenever_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "a program").unwrap();
        let image = Image {
            name: "testudo.dev/test:1",
            files: vec![
                ("bin/program".into(), Entry::Program(program)),
                ("bin/other".into(), Entry::Link("program".into())),
            ],
            command: vec!["/bin/other".into()],
        };
        let archives = ["one.tar", "two.tar"].map(|name| folder.path().join(name));
        let work = folder.path().join("work");
        for archive in &archives {
            image.write(archive, &work).unwrap();
        }
        assert!(!work.exists());
        assert!(fs::read(&archives[0]).unwrap() == fs::read(&archives[1]).unwrap());
        let listed = run(Command::new("tar").arg("-tf").arg(&archives[0])).unwrap();
        assert!(listed.contains("./index.json") && listed.contains("./blobs/sha256/"));
        // Each blob is named by what it is.
        run(Command::new("tar")
            .arg("-C")
            .arg(folder.path())
            .arg("-xf")
            .arg(&archives[0]))
        .unwrap();
        for entry in fs::read_dir(folder.path().join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let sum = run(Command::new("sha256sum").arg(&path)).unwrap();
            assert!(sum.starts_with(path.file_name().unwrap().to_str().unwrap()));
        }
    }
}
