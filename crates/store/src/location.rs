//! `--store dir:PATH`.

use std::fmt;
use std::path::PathBuf;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory of manifests.
    Directory(PathBuf),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

impl std::str::FromStr for Location {
    type Err = String;
    fn from_str(text: &str) -> Result<Location, String> {
        parse_location(text)
    }
}

/// Reads `dir:PATH`. The path is taken as it is, relative to the working directory.
pub fn parse_location(text: &str) -> Result<Location, String> {
    match text.split_once(':') {
        Some(("dir", path)) if !path.is_empty() => Ok(Location::Directory(PathBuf::from(path))),
        Some(("dir", _)) => Err(format!(
            "\"{text}\": the path is missing; write dir:PATH, as in dir:/var/lib/testudo"
        )),
        _ => Err(format!(
            "\"{text}\" is not a store; write dir:PATH, as in dir:/var/lib/testudo"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_dir_and_a_path() {
        assert_eq!(
            parse_location("dir:/a:b"),
            Ok(Location::Directory("/a:b".into()))
        );
        for bad in ["", "dir:", "/var/lib", "kube:x", "dir"] {
            let error = parse_location(bad).unwrap_err();
            assert!(error.contains("dir:PATH"), "{error}");
        }
    }
}
