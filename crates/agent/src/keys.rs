//! Keys in Wireshark's formats, for `--danger-export-keys` alone: whoever has these files and a
//! capture reads the traffic.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testudo_ike::{ChildUp, IkeUp};
use testudo_model::{Cipher, Encapsulation, Spi};
use testudo_pki::hex;
use zeroize::Zeroizing;

const IKE_FILE: &str = "ikev2_decryption_table";
const ESP_FILE: &str = "esp_sa";

/// Appends each new SA's keys to two files that only their owner reads. Copied into Wireshark's
/// profile directory they decode a capture.
pub(crate) struct KeyExport {
    directory: PathBuf,
}

impl KeyExport {
    pub(crate) fn new(directory: &Path) -> Result<KeyExport> {
        crate::files::make_private_dir(directory)?;
        tracing::warn!(
            directory = %directory.display(),
            "all keys are written to disk (--danger-export-keys): captures can be read by whoever reads them"
        );
        Ok(KeyExport {
            directory: directory.to_owned(),
        })
    }

    pub(crate) fn ike(&self, up: &IkeUp) -> Result<()> {
        match ike_line(up) {
            Some(line) => self.append(IKE_FILE, &line),
            None => Ok(()),
        }
    }

    pub(crate) fn child(&self, up: &ChildUp) -> Result<()> {
        let inbound = &up.inbound;
        let outbound = &up.outbound;
        let to_us = esp_line(
            &inbound.encapsulation,
            true,
            inbound.spi,
            inbound.keymat.as_bytes(),
        );
        let to_peer = esp_line(
            &outbound.encapsulation,
            false,
            outbound.spi,
            outbound.keymat.as_bytes(),
        );
        self.append(ESP_FILE, &to_us)?;
        self.append(ESP_FILE, &to_peer)
    }

    fn append(&self, name: &str, line: &str) -> Result<()> {
        let path = self.directory.join(name);
        let context = || format!("{}: writing keys", path.display());
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(context)?;
        file.write_all(line.as_bytes()).with_context(context)
    }
}

/// SPIs, SK_ei, SK_er (with their salts), cipher, no integrity keys: the cipher authenticates.
fn ike_line(up: &IkeUp) -> Option<Zeroizing<String>> {
    let keys = up.danger_keys.as_ref()?;
    let cipher = match keys.cipher {
        Cipher::AES_128_GCM => "AES-GCM-128 with 16 octet ICV [RFC5282]",
        Cipher::AES_256_GCM => "AES-GCM-256 with 16 octet ICV [RFC5282]",
        // Nodes have no other.
        Cipher::Cbc(_) => return None,
    };
    let [ei, er] = [&keys.sk_ei, &keys.sk_er].map(|k| Zeroizing::new(hex(k.as_bytes())));
    Some(Zeroizing::new(format!(
        "{},{},{},{},\"{cipher}\",,,\"NONE [RFC4306]\"\n",
        hex(&up.spis.0),
        hex(&up.spis.1),
        *ei,
        *er,
    )))
}

/// The eight fields that every Wireshark since 2.0 reads. Newer ones add the width of sequence
/// numbers: without it they decrypt all the same and only cannot check the ICV.
fn esp_line(path: &Encapsulation, inbound: bool, spi: Spi, keymat: &[u8]) -> Zeroizing<String> {
    let (source, destination) = match inbound {
        true => (path.remote(), path.local()),
        false => (path.local(), path.remote()),
    };
    let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
    let key = Zeroizing::new(hex(keymat));
    Zeroizing::new(format!(
        "\"{family}\",\"{source}\",\"{destination}\",\"{spi}\",\
         \"AES-GCM with 16 octet ICV [RFC4106]\",\"0x{}\",\"NULL\",\"\"\n",
        *key
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_esp_line_is_what_wireshark_reads() {
        let path = Encapsulation::None {
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.0.0.2".parse().unwrap(),
        };
        assert_eq!(
            *esp_line(&path, true, Spi(0xabc), &[1, 2]),
            "\"IPv4\",\"10.0.0.2\",\"10.0.0.1\",\"0x00000abc\",\"AES-GCM with 16 octet ICV [RFC4106]\",\"0x0102\",\
             \"NULL\",\"\"\n"
        );
    }
}
