//! Which store a verb works on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::exit::Usage;
use crate::global::Global;

/// Where a node keeps its store when nothing else is said.
pub(crate) const DEFAULT_DIR: &str = "/var/lib/testudo";

/// A store's address as the command line has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A directory of manifests.
    Dir(PathBuf),
}

impl Address {
    /// The directory.
    pub(crate) fn path(&self) -> &std::path::Path {
        match self {
            Self::Dir(path) => path,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("dir:") {
            Some("") => Err("a path is missing after \"dir:\"".into()),
            Some(path) => Ok(Self::Dir(PathBuf::from(path))),
            None => Err(format!("{text:?} is no store; write dir:/var/lib/testudo")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

/// The store to use: the flag or `TESTUDO_STORE`, else that of the lab that runs, else
/// [`DEFAULT_DIR`].
pub(crate) fn resolve(global: &Global) -> anyhow::Result<Address> {
    if let Some(address) = &global.store {
        return Ok(address.clone());
    }
    let mut labs = crate::lab::running();
    match labs.len() {
        0 => Ok(Address::Dir(PathBuf::from(DEFAULT_DIR))),
        1 => Ok(Address::Dir(labs.remove(0).store)),
        _ => {
            let choices: Vec<String> = labs
                .iter()
                .map(|lab| format!("  --store dir:{}   (lab {})", lab.store.display(), lab.name))
                .collect();
            Err(anyhow::Error::new(Usage(format!(
                "{} labs run; say which one is meant:\n{}",
                labs.len(),
                choices.join("\n")
            ))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address: Address = "dir:/x/y".parse().unwrap();
        assert_eq!(address, Address::Dir("/x/y".into()));
        assert_eq!(address.to_string(), "dir:/x/y");
        for wrong in ["", "/x", "dir:", "kube:x"] {
            wrong.parse::<Address>().unwrap_err();
        }
    }
}
