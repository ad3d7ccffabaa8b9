//! Helm's chart from `charts/testudo`, with what a build of the program adds to it: the CRDs, the alerts and
//! the version. Plain manifests come out of the same chart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::programs::{self, HELM_CLIENT};

/// The namespace that plain manifests and documents name.
pub const NAMESPACE: &str = "testudo-system";

/// Plain manifests begin with it: agents have the host's network and paths.
const NAMESPACE_OBJECT: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: testudo-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

/// A chart that was packaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    /// The chart's folder.
    pub folder: PathBuf,
    /// The same as a `.tgz`.
    pub archive: PathBuf,
    /// Plain manifests.
    pub manifests: PathBuf,
}

/// Helm's client, with nothing of the machine's own settings. It is built where it is not there; `say` hears
/// of that.
pub fn helm(say: &dyn Fn(&str)) -> Result<Command> {
    programs::ensure(&[&HELM_CLIENT], say)?;
    let mut command = Command::new(HELM_CLIENT.path()?);
    for name in ["KUBECONFIG", "HELM_NAMESPACE", "HELM_KUBECONTEXT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    Ok(command)
}

/// Packages the chart into `output` with the CRDs that `testudo`, a built program, prints.
pub fn package(testudo: &Path, output: &Path, say: &dyn Fn(&str)) -> Result<Chart> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let version = env!("CARGO_PKG_VERSION");
    let folder = output.join("testudo");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    copy(&root.join("charts/testudo"), &folder)?;
    let about = folder.join("Chart.yaml");
    let text = fs::read_to_string(&about).with_context(|| about.display().to_string())?;
    let stamped = text.replace("ersion: 0.0.0\n", &format!("ersion: {version}\n"));
    ensure!(stamped != text, "{} has a version already", about.display());
    fs::write(&about, stamped)?;
    let files = folder.join("files");
    fs::create_dir_all(&files)?;
    let crds = run(Command::new(testudo).arg("crds").stdin(Stdio::null()))?;
    fs::write(files.join("crds.yaml"), crds)?;
    let alerts = root.join("deploy/prometheus/alerts.yaml");
    fs::copy(&alerts, files.join("alerts.yaml")).with_context(|| alerts.display().to_string())?;

    let mut command = helm(say)?;
    run(command
        .args(["package", "--destination"])
        .args([output, &folder]))?;
    let archive = output.join(format!("testudo-{version}.tgz"));
    let mut command = helm(say)?;
    // What runs before and after an installation is Helm's.
    run(command
        .args([
            "template",
            "testudo",
            "--no-hooks",
            "--namespace",
            NAMESPACE,
        ])
        .args(["--set", "uninstall.stop=false"])
        .arg(&archive))
    .and_then(|text| {
        let manifests = output.join("testudo.yaml");
        fs::write(&manifests, format!("{NAMESPACE_OBJECT}{text}"))
            .with_context(|| manifests.display().to_string())?;
        Ok(Chart {
            folder,
            archive,
            manifests,
        })
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), &target)?),
        }
    }
    Ok(())
}

/// Runs a command; what it printed, or an error with what it said.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no text"))
}
