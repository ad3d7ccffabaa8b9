//! An OCI image in a tar file, as `ctr image import`, `podman load` and `docker load` take it: one
//! layer, not compressed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Folders that are there and empty: where the machine's are mounted, or volumes.
const FOLDERS: [&str; 8] = [
    "/dev",
    "/etc",
    "/lib/modules",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var/lib",
];

/// A file of an image. Ordered by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct File {
    /// Its path in the image.
    pub place: PathBuf,
    /// Bytes; of a link 0.
    pub size: u64,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A copy of this file of the machine's.
    Copy(PathBuf),
    /// A symbolic link to this.
    Link(PathBuf),
}

impl File {
    /// A copy of `source`, and where that is a link, of what it leads to.
    ///
    /// # Errors
    /// It is not there.
    pub fn new(source: &Path, place: &Path) -> Result<Self> {
        let real = fs::canonicalize(source).with_context(|| source.display().to_string())?;
        let metadata = fs::metadata(&real).with_context(|| real.display().to_string())?;
        Ok(Self {
            place: place.to_owned(),
            size: metadata.len(),
            what: What::Copy(real),
        })
    }

    /// A symbolic link.
    pub fn link(target: impl Into<PathBuf>, place: &Path) -> Self {
        Self {
            place: place.to_owned(),
            size: 0,
            what: What::Link(target.into()),
        }
    }
}

/// What goes into an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// `NAME:TAG`.
    pub name: &'a str,
    /// Its files.
    pub files: Vec<File>,
    /// What every container of it runs, with the command behind it; empty: the command alone.
    pub entrypoint: Vec<String>,
    /// What runs where a pod names nothing.
    pub command: Vec<String>,
}

/// Content with its digest.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let mut digest = String::new();
        for byte in Sha256::digest(&bytes) {
            digest += &format!("{byte:02x}");
        }
        Self { digest, bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": kind,
            "digest": format!("sha256:{}", self.digest),
            "size": self.bytes.len(),
        })
    }
}

impl Image<'_> {
    /// Writes the archive; its size in bytes. A file that was there is replaced when all is written. The same
    /// files make the same archive, bit for bit.
    ///
    /// # Errors
    /// A file of it cannot be read, or the archive not be written.
    pub fn write(&self, output: &Path) -> Result<u64> {
        write(self, output)
    }
}

fn write(image: &Image<'_>, output: &Path) -> Result<u64> {
    let layer = Blob::new(layer(&image.files)?);
    let config = Blob::json(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
    }));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
    }));
    let mut named = manifest.descriptor(MANIFEST);
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    named["annotations"] = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]});
    // Docker's own form, over the same blobs.
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [image.name],
        "Layers": [layer.path()],
    }]);
    let beside = output.with_extension("new");
    let file = fs::File::create(&beside).with_context(|| beside.display().to_string())?;
    let mut archive = Builder::new(BufWriter::new(file));
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    add(&mut archive, "oci-layout", layout.as_bytes())?;
    add(&mut archive, "index.json", index.to_string().as_bytes())?;
    add(&mut archive, "manifest.json", docker.to_string().as_bytes())?;
    for blob in [&layer, &config, &manifest] {
        add(&mut archive, &blob.path(), &blob.bytes)?;
    }
    let mut writer = archive.into_inner()?;
    writer.flush()?;
    drop(writer);
    fs::rename(&beside, output).with_context(|| output.display().to_string())?;
    Ok(fs::metadata(output)?.len())
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The layer: folders first, all of root, no times.
fn layer(files: &[File]) -> Result<Vec<u8>> {
    let mut folders: BTreeSet<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    for place in files.iter().map(|file| &file.place) {
        folders.extend(place.ancestors().skip(1).map(Path::to_owned));
    }
    folders.extend(
        FOLDERS
            .iter()
            .flat_map(|f| Path::new(f).ancestors().map(Path::to_owned)),
    );
    folders.remove(Path::new("/"));
    let mut archive = Builder::new(Vec::new());
    for folder in &folders {
        let mode = if folder == Path::new("/tmp") {
            0o1777
        } else {
            0o755
        };
        let mut header = header(0, mode);
        header.set_entry_type(EntryType::Directory);
        archive.append_data(&mut header, relative(folder), std::io::empty())?;
    }
    for file in files {
        let place = relative(&file.place);
        match &file.what {
            What::Copy(source) => {
                let content = fs::File::open(source);
                let content = content.with_context(|| source.display().to_string())?;
                let mode = content.metadata()?.permissions().mode() & 0o111 | 0o644;
                archive
                    .append_data(&mut header(file.size, mode), place, content)
                    .with_context(|| source.display().to_string())?;
            }
            What::Link(target) => {
                let mut header = header(0, 0o777);
                header.set_entry_type(EntryType::Symlink);
                archive.append_link(&mut header, place, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

fn add<W: Write>(archive: &mut Builder<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(bytes.len() as u64, 0o644);
    archive.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn header(size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn read(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, content)
        });
        entries.collect()
    }

    #[test]
    fn every_digest_is_that_of_its_blob_and_leads_to_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("program");
        fs::write(&source, "hello").unwrap();
        let image = Image {
            name: "localhost/testudo:1",
            files: vec![
                File::new(&source, Path::new("/usr/bin/testudo")).unwrap(),
                File::link("testudo", Path::new("/usr/bin/other")),
            ],
            entrypoint: vec!["/usr/bin/testudo".to_owned()],
            command: Vec::new(),
        };
        let output = folder.path().join("image.tar");
        image.write(&output).unwrap();
        let first = fs::read(&output).unwrap();
        image.write(&output).unwrap();
        assert!(first == fs::read(&output).unwrap(), "not reproducible");

        let files = read(&first);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&digest.replace("sha256:", "blobs/sha256/")];
            assert_eq!(
                format!("sha256:{}", Blob::new(bytes.clone()).digest),
                digest
            );
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = json(&files["index.json"]);
        let named = &index["manifests"][0];
        assert_eq!(named["annotations"]["io.containerd.image.name"], image.name);
        let manifest = json(blob(named));
        let config = json(blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/testudo");
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        let inside = read(layer);
        assert_eq!(inside["usr/bin/testudo"], b"hello");
        assert!(inside.contains_key("usr/bin/other"));
        for folder in ["run", "tmp", "var/lib", "usr/bin"] {
            assert!(
                inside
                    .keys()
                    .any(|name| name.trim_end_matches('/') == folder),
                "{folder}"
            );
        }
    }
}
