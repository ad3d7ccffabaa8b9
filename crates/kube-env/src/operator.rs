//! The CRDs of the Prometheus operator, so that what the chart has for it is judged by an API server.
//!
//! They are files of its Go module, whose version and digest stand in `go/prometheus-operator`; nothing of it is
//! built.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";
/// Where they are in the module.
const FOLDER: &str = "example/prometheus-operator-crd";
const FILES: [&str; 2] = [
    "monitoring.coreos.com_servicemonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
];

/// The files with ServiceMonitor and PrometheusRule. The module is fetched the first time, by `go`, into Go's
/// own cache.
pub fn crds() -> Result<[PathBuf; 2]> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go/prometheus-operator");
    let mut command = Command::new("go");
    command
        .args(["mod", "download", "-json", MODULE])
        .current_dir(module)
        .env("GOWORK", "off")
        .env_remove("GOFLAGS")
        .stdin(Stdio::null());
    let output = command
        .output()
        .context("go could not be started: install Go 1.26 or later and put it on the PATH")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}{errors}");
    let said: Value = serde_json::from_slice(&output.stdout).context("what go said of a module")?;
    let folder = said["Dir"].as_str().context("go names no folder")?;
    let files = FILES.map(|file| Path::new(folder).join(FOLDER).join(file));
    for file in &files {
        ensure!(file.is_file(), "{} is not there", file.display());
    }
    Ok(files)
}
