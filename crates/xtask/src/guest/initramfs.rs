//! The RAM disk that a guest starts from: busybox, some modules, and the first script.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The commands of busybox that `init.sh` uses.
const APPLETS: [&str; 8] = [
    "sh",
    "cat",
    "cp",
    "insmod",
    "mkdir",
    "mount",
    "poweroff",
    "switch_root",
];

/// The folders that things are mounted on.
const FOLDERS: [&str; 8] = [
    "bin", "dev", "layer", "machine", "modules", "proc", "root", "sys",
];

/// Writes it. The modules are loaded in the order given.
pub(super) fn write(file: &Path, busybox: &Path, modules: &[PathBuf]) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &read(busybox)?);
    for applet in APPLETS {
        archive.add(&format!("bin/{applet}"), 0o120_777, b"busybox");
    }
    let mut order = String::new();
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        let inside = format!("modules/{}", name.to_string_lossy());
        archive.add(&inside, 0o100_644, &read(module)?);
        order += &format!("/{inside}\n");
    }
    archive.add("modules.order", 0o100_644, order.as_bytes());
    archive.add("init", 0o100_755, include_bytes!("init.sh"));
    std::fs::write(file, archive.finish()).with_context(|| file.display().to_string())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// A cpio archive in the form "newc", which is what the kernel reads
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        self.entry(self.files, mode, name, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry(0, 0, "TRAILER!!!", &[]);
        self.bytes
    }

    fn entry(&mut self, inode: u32, mode: u32, name: &str, content: &[u8]) {
        // inode, mode, uid, gid, links, time, size, device, special device, name, checksum
        let header = [
            inode as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.add("a", 0o100_644, b"12345");
        archive.add("bc", 0o100_644, b"");
        let bytes = archive.finish();
        // 110 bytes of header, the name with its zero, padding; 5 bytes, padding.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..117], b"12345");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
