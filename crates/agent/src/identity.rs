//! Who this node is: a UID made once, and the boot that runs.

use std::path::Path;

use anyhow::{Context, Result};
use testudo_crypto::Random;
use testudo_model::{BootId, NodeName, NodeUid};
use testudo_pki::NodeIdentity;

use crate::{certificates, files};

const UID_FILE: &str = "uid";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The node as its certificate and its NodeEncryption name it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: NodeName,
    pub(crate) uid: NodeUid,
    pub(crate) boot: BootId,
    /// Name and UID as certificates have them.
    pub(crate) node: NodeIdentity,
}

impl Identity {
    /// Reads the UID from the state directory, or makes it there.
    pub(crate) fn open(
        name: &NodeName,
        state_dir: &Path,
        random: &mut dyn Random,
    ) -> Result<Identity> {
        let path = state_dir.join(UID_FILE);
        let uid = match files::read_optional(&path)? {
            Some(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                NodeUid::new(text.trim()).with_context(|| {
                    format!("{}: remove it to give the node a new UID", path.display())
                })?
            }
            None => {
                let uid = new_uid(random);
                files::write_private(&path, format!("{uid}\n").as_bytes())?;
                uid
            }
        };
        let boot = std::fs::read_to_string(BOOT_ID)
            .with_context(|| format!("reading {BOOT_ID}; is /proc mounted?"))?;
        let boot = BootId::new(boot.trim()).with_context(|| BOOT_ID.to_owned())?;
        let node = NodeIdentity::new(name.as_str(), uid.as_str())?;
        Ok(Identity {
            name: name.clone(),
            uid,
            boot,
            node,
        })
    }
}

/// Takes a UID that was given from outside. A certificate and a request of another one are of no use any more.
pub(crate) fn adopt(state_dir: &Path, uid: &NodeUid) -> Result<()> {
    let path = state_dir.join(UID_FILE);
    let old = files::read_optional(&path)?;
    if old.is_some_and(|old| String::from_utf8_lossy(&old).trim() == uid.as_str()) {
        return Ok(());
    }
    // Before the UID: whoever is ended in between begins here again.
    certificates::forget(state_dir)?;
    files::write_private(&path, format!("{uid}\n").as_bytes())
}

/// A version 4 UUID (RFC 9562 5.4).
fn new_uid(random: &mut dyn Random) -> NodeUid {
    let mut bytes = [0_u8; 16];
    random.fill(&mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = testudo_pki::hex(&bytes);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    NodeUid::new(parts.join("-")).expect("hex digits and dashes are a UID")
}

#[cfg(test)]
mod tests {
    use testudo_crypto::DangerousSeededRandom;

    use super::*;

    #[test]
    fn the_uid_is_made_once_per_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let name = NodeName::new("n1").unwrap();
        let open = |seed| {
            Identity::open(&name, dir.path(), &mut DangerousSeededRandom::new(seed)).unwrap()
        };
        let first = open(1);
        assert_eq!(first.uid.as_str().len(), 36);
        assert_eq!(open(2).uid, first.uid);
    }

    #[test]
    fn a_node_that_was_made_anew_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let certificate = dir.path().join("certificate.json");
        let [one, two] = ["u1", "u2"].map(|uid| NodeUid::new(uid).unwrap());
        let name = NodeName::new("n1").unwrap();
        for (uid, kept) in [(&one, false), (&one, true), (&two, false)] {
            std::fs::write(&certificate, "of before").unwrap();
            adopt(dir.path(), uid).unwrap();
            assert_eq!(certificate.exists(), kept);
            let random = &mut DangerousSeededRandom::new(1);
            assert_eq!(Identity::open(&name, dir.path(), random).unwrap().uid, *uid);
        }
    }

    #[test]
    fn a_broken_uid_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(UID_FILE), "a b").unwrap();
        let name = NodeName::new("n1").unwrap();
        let error =
            Identity::open(&name, dir.path(), &mut DangerousSeededRandom::new(1)).unwrap_err();
        assert!(format!("{error:#}").contains(UID_FILE), "{error:#}");
    }
}
