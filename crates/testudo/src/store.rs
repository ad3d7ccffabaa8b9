//! Which store a verb works on.

use std::path::{Path, PathBuf};

use testudo_store::{DirStore, Kubernetes, Location};
use testudo_store_kube::{AnyStore, Writer};

use crate::exit::Usage;
use crate::global::Global;
use crate::plugin;

/// Where a node keeps its store when nothing else is said.
pub(crate) const DEFAULT_DIR: &str = "/var/lib/testudo";

/// What is known of the place that a command runs in.
struct Surroundings {
    /// It runs in a pod with a service account.
    in_cluster: bool,
    /// There is a kubeconfig where kubectl would look for one.
    kubeconfig: bool,
    /// It was called as a plugin of kubectl.
    plugin: bool,
}

/// The store to use: `--store` or `TESTUDO_STORE`, `--kubeconfig` or `--context`, else the cluster that
/// this runs in, else the kubeconfig's, else that of the lab that runs, else [`DEFAULT_DIR`]. A plugin of
/// kubectl takes what kubectl would, whatever lab runs.
pub(crate) fn resolve(global: &Global) -> anyhow::Result<Location> {
    let surroundings = Surroundings {
        in_cluster: testudo_store_kube::in_cluster(),
        kubeconfig: has_kubeconfig(),
        plugin: plugin::is_plugin(),
    };
    if let Some(location) = said(global, &surroundings)? {
        return Ok(location);
    }
    let mut labs = crate::lab::running();
    match labs.len() {
        0 => Ok(Location::Directory(PathBuf::from(DEFAULT_DIR))),
        1 => Ok(labs.remove(0).location),
        _ => {
            let choices: Vec<String> = labs
                .iter()
                .map(|lab| {
                    format!(
                        "  {}   (lab {})",
                        crate::lab::flags(&lab.location),
                        lab.name
                    )
                })
                .collect();
            Err(anyhow::Error::new(Usage(format!(
                "{} labs run; say which one is meant:\n{}",
                labs.len(),
                choices.join("\n")
            ))))
        }
    }
}

fn said(global: &Global, surroundings: &Surroundings) -> anyhow::Result<Option<Location>> {
    let named = Kubernetes {
        kubeconfig: global.kubeconfig.clone(),
        context: global.context.clone(),
    };
    let is_named = named != Kubernetes::default();
    match &global.store {
        // A flag of the command says more than a variable of its shell; of two flags none does.
        Some(Location::Directory(_)) if is_named => Err(anyhow::Error::new(Usage(
            "a directory and an API server are both named: leave out --store and TESTUDO_STORE, or \
             --kubeconfig and --context"
                .to_owned(),
        ))),
        Some(Location::Directory(root)) => Ok(Some(Location::Directory(root.clone()))),
        Some(Location::Kubernetes(_)) => Ok(Some(Location::Kubernetes(named))),
        None if is_named
            || surroundings.in_cluster
            || surroundings.kubeconfig
            || surroundings.plugin =>
        {
            Ok(Some(Location::Kubernetes(named)))
        }
        None => Ok(None),
    }
}

fn has_kubeconfig() -> bool {
    if let Some(files) = std::env::var_os("KUBECONFIG").filter(|files| !files.is_empty()) {
        return std::env::split_paths(&files).any(|file| file.is_file());
    }
    let home = std::env::var_os("HOME").unwrap_or_default();
    !home.is_empty() && Path::new(&home).join(".kube/config").is_file()
}

/// Opens the store for reading; a directory must be there.
pub(crate) fn open_to_read(global: &Global) -> anyhow::Result<AnyStore> {
    Ok(AnyStore::open_read_only(&resolve(global)?, Writer::Cli)?)
}

/// Opens the store for writing; a directory is made if it is not there.
pub(crate) fn open_to_write(global: &Global) -> anyhow::Result<AnyStore> {
    Ok(AnyStore::open(&resolve(global)?, Writer::Cli)?)
}

/// Opens it for what has to be, whoever keeps the fields.
pub(crate) fn open_to_take_over(global: &Global) -> anyhow::Result<AnyStore> {
    Ok(AnyStore::open(&resolve(global)?, Writer::CliTakingOver)?)
}

/// Opens a store that must be a directory, for what an API server does in another way.
pub(crate) fn open_dir(global: &Global, instead: &str) -> anyhow::Result<DirStore> {
    match resolve(global)? {
        Location::Directory(root) => Ok(DirStore::open(root)?),
        Location::Kubernetes(_) => Err(anyhow::Error::new(Usage(instead.to_owned()))),
    }
}

/// The lab whose store this is.
pub(crate) fn lab_of(store: &AnyStore) -> Option<testudo_lab::Lab> {
    crate::lab::of_location(&store.location())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
    }

    fn of(flags: &[&str], in_cluster: bool, kubeconfig: bool) -> anyhow::Result<Option<Location>> {
        let line = Line::parse_from(std::iter::once("testudo").chain(flags.iter().copied()));
        let surroundings = Surroundings {
            in_cluster,
            kubeconfig,
            plugin: false,
        };
        said(&line.global, &surroundings)
    }

    #[test]
    fn flags_come_before_the_surroundings() {
        let dir = Some(Location::Directory("/x".into()));
        assert_eq!(of(&["--store", "dir:/x"], true, true).unwrap(), dir);
        let plain = Some(Location::Kubernetes(Kubernetes::default()));
        assert_eq!(of(&["--store", "kube"], false, false).unwrap(), plain);
        for (in_cluster, kubeconfig) in [(true, false), (false, true)] {
            assert_eq!(of(&[], in_cluster, kubeconfig).unwrap(), plain);
        }
        assert_eq!(of(&[], false, false).unwrap(), None);
        let named = Kubernetes {
            kubeconfig: Some("/k".into()),
            context: Some("c".to_owned()),
        };
        let flags = ["--kubeconfig", "/k", "--context", "c"];
        let found = of(&flags, false, false).unwrap();
        assert_eq!(found, Some(Location::Kubernetes(named)));
        of(&["--store", "dir:/x", "--context", "c"], false, false).unwrap_err();
    }
}
