//! The tests that need a guest: test targets named `guest_…`, in any crate.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use super::kernel::Kernel;
use super::process::output;
use crate::run;

/// What the names of such targets begin with.
pub(crate) const PREFIX: &str = "guest_";

/// A test target and the kernels that it runs under.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// Its crate's folder, where its tests run as cargo's do.
    pub(crate) folder: PathBuf,
    /// Names of kernels, as on the command line.
    pub(crate) kernels: Vec<String>,
}

/// All of them; an error if one would run without a guest, or in none.
pub(crate) fn all() -> anyhow::Result<Vec<Target>> {
    let text = output(
        Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(run::root()),
    )?;
    of(&serde_json::from_str(&text).context("cargo metadata printed no JSON")?)
}

fn of(metadata: &Value) -> anyhow::Result<Vec<Target>> {
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let crate_name = text(&package["name"]);
        let kernels = package["metadata"]["guest"].as_object();
        let mut unused: Vec<&String> = kernels.map(|k| k.keys().collect()).unwrap_or_default();
        for target in list(&package["targets"]) {
            let name = text(&target["name"]);
            let is_test = list(&target["kind"]).iter().any(|kind| kind == "test");
            if !is_test || !name.starts_with(PREFIX) {
                continue;
            }
            if target["test"] != Value::Bool(false) {
                bail!("{crate_name}: {name} needs `test = false` in [[test]] (docs/guest.md)");
            }
            let of_target = kernels.and_then(|kernels| kernels.get(name));
            let kernels: Vec<String> = list(of_target.unwrap_or(&Value::Null))
                .iter()
                .map(|kernel| text(kernel).to_owned())
                .collect();
            if kernels.is_empty() {
                bail!("{crate_name}: [package.metadata.guest] has no kernels for {name}");
            }
            for kernel in &kernels {
                Kernel::named(kernel).with_context(|| format!("{crate_name}: {name}"))?;
            }
            unused.retain(|unused| *unused != name);
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            found.push(Target {
                name: name.to_owned(),
                folder: manifest.parent().map(PathBuf::from).unwrap_or_default(),
                kernels,
            });
        }
        if let Some(name) = unused.first() {
            bail!("{crate_name}: [package.metadata.guest] names {name}, which is no such test");
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = found.windows(2).find(|pair| pair[0].name == pair[1].name) {
        bail!("two test targets are named {}", twice[0].name);
    }
    Ok(found)
}

/// Clippy on them: `--all-targets` leaves out what a plain `cargo test` does not run.
pub(crate) fn lint() -> anyhow::Result<()> {
    let targets = all()?;
    let mut command = vec![
        "cargo",
        "clippy",
        "--workspace",
        "--quiet",
        "--test",
        "guests",
    ];
    for target in &targets {
        command.extend(["--test", &target.name]);
    }
    command.extend(["--", "-D", "warnings"]);
    run::step("lints of tests in guests", &command)
}

/// Builds them as the rest of the workspace is built; their programs, in the same order.
pub(crate) fn build(targets: &[Target]) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--workspace", "--no-run", "--quiet"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(run::root());
    for target in targets {
        command.args(["--test", &target.name]);
    }
    let messages: Vec<Value> = output(&mut command)?
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let program = |target: &Target| {
        messages
            .iter()
            .filter(|message| message["target"]["name"] == target.name.as_str())
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo built no program of {}", target.name))
    };
    targets.iter().map(program).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(test: bool, kernels: Value) -> Value {
        json!({"packages": [{
            "name": "c",
            "manifest_path": "/w/c/Cargo.toml",
            "metadata": {"guest": kernels},
            "targets": [
                {"name": "guest_a", "kind": ["test"], "test": test},
                {"name": "other", "kind": ["test"], "test": true},
                {"name": "guest_b", "kind": ["bin"], "test": true},
            ],
        }]})
    }

    #[test]
    fn a_target_says_under_which_kernels_it_runs() {
        let found = of(&package(false, json!({"guest_a": ["uml", "6.1"]}))).unwrap();
        assert_eq!(
            found,
            [Target {
                name: "guest_a".into(),
                folder: "/w/c".into(),
                kernels: vec!["uml".into(), "6.1".into()],
            }]
        );
    }

    #[test]
    fn a_target_that_would_run_nowhere_or_without_a_guest_is_refused() {
        for (test, kernels) in [
            (true, json!({"guest_a": ["uml"]})),
            (false, json!({"guest_a": []})),
            (false, json!({"guest_a": ["5.10"]})),
            (false, Value::Null),
            (false, json!({"guest_a": ["uml"], "guest_b": ["uml"]})),
        ] {
            assert!(
                of(&package(test, kernels.clone())).is_err(),
                "{test} {kernels}"
            );
        }
    }
}
