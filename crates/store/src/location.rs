//! Where a store is: `--store dir:PATH`, or a Kubernetes API server.

use std::fmt;
use std::path::PathBuf;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory of manifests.
    Directory(PathBuf),
    /// A Kubernetes API server.
    Kubernetes(Kubernetes),
}

/// Which API server, and as whom. With neither field set: the cluster that the process runs in, else
/// what `KUBECONFIG` or `~/.kube/config` say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it; its current one if absent.
    pub context: Option<String>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => write!(f, "dir:{}", path.display()),
            Location::Kubernetes(Kubernetes {
                kubeconfig,
                context,
            }) => {
                f.write_str("kube")?;
                if let Some(file) = kubeconfig {
                    write!(f, " of {}", file.display())?;
                }
                if let Some(context) = context {
                    write!(f, " (context {context})")?;
                }
                Ok(())
            }
        }
    }
}

impl std::str::FromStr for Location {
    type Err = String;
    fn from_str(text: &str) -> Result<Location, String> {
        parse_location(text)
    }
}

/// Reads `dir:PATH` or `kube`. The path is taken as it is, relative to the working directory.
pub fn parse_location(text: &str) -> Result<Location, String> {
    match text.split_once(':') {
        Some(("dir", path)) if !path.is_empty() => Ok(Location::Directory(PathBuf::from(path))),
        Some(("dir", _)) => Err(format!(
            "\"{text}\": the path is missing; write dir:PATH, as in dir:/var/lib/testudo"
        )),
        None if text == "kube" => Ok(Location::Kubernetes(Kubernetes::default())),
        _ => Err(format!(
            "\"{text}\" is not a store; write dir:PATH, as in dir:/var/lib/testudo, or kube"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_dir_and_a_path_or_kube() {
        assert_eq!(
            parse_location("dir:/a:b"),
            Ok(Location::Directory("/a:b".into()))
        );
        let kube = Location::Kubernetes(Kubernetes::default());
        assert_eq!(parse_location("kube"), Ok(kube));
        for bad in ["", "dir:", "/var/lib", "kube:x", "dir"] {
            let error = parse_location(bad).unwrap_err();
            assert!(error.contains("dir:PATH"), "{error}");
        }
    }
}
