//! An OCI image in a tar file, as `ctr image import`, `podman load` and `docker load` take it: one
//! layer, not compressed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::closure::Entry;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Folders that are there and empty: what the program writes lies in volumes over them.
const FOLDERS: [&str; 4] = ["/proc", "/run", "/tmp", "/var/lib"];

/// What goes into an image.
pub(super) struct Image<'a> {
    /// `NAME:TAG`.
    pub(super) name: &'a str,
    pub(super) entrypoint: &'a str,
    pub(super) entries: &'a [Entry],
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

/// Writes the image; the file's size in bytes. A file that was there is replaced when all is
/// written.
pub(super) fn write(image: &Image<'_>, output: &Path) -> anyhow::Result<u64> {
    let layer = Blob::new(layer(image.entries)?);
    let config = Blob::json(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": [image.entrypoint],
            "Env": ["PATH=/usr/sbin:/usr/bin"],
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
    let file = File::create(&beside).with_context(|| beside.display().to_string())?;
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
    std::fs::rename(&beside, output).with_context(|| output.display().to_string())?;
    Ok(std::fs::metadata(output)?.len())
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
fn layer(entries: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut folders: BTreeSet<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    for place in entries.iter().map(|entry| &entry.place) {
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
    for entry in entries {
        let file = File::open(&entry.source).with_context(|| entry.source.display().to_string())?;
        let mode = file.metadata()?.permissions().mode() & 0o111 | 0o644;
        let mut header = header(entry.size, mode);
        archive
            .append_data(&mut header, relative(&entry.place), file)
            .with_context(|| entry.source.display().to_string())?;
    }
    Ok(archive.into_inner()?)
}

fn add<W: Write>(archive: &mut Builder<W>, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
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
        std::fs::write(&source, "hello").unwrap();
        let entries = [Entry {
            place: "/usr/bin/testudo".into(),
            source,
            size: 5,
        }];
        let image = Image {
            name: "localhost/testudo:1",
            entrypoint: "/usr/bin/testudo",
            entries: &entries,
        };
        let output = folder.path().join("image.tar");
        write(&image, &output).unwrap();
        let first = std::fs::read(&output).unwrap();
        write(&image, &output).unwrap();
        assert_eq!(first, std::fs::read(&output).unwrap(), "not reproducible");

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
