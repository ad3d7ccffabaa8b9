//! The programs of Kubernetes: built once from their Go modules, kept outside of the tree.
//!
//! Each is built alone and appears in the cache whole or not at all, so that a build that was ended
//! goes on where it stopped. The versions stand in `go/MODULE/go.mod`, the digests of everything
//! that is linked in beside them in `go.sum`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lock::Lock;

/// A folder whose etcd, kube-apiserver and kubectl are taken in the place of ours, as the test
/// environments of other projects have it.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Raised when the way of building changes, so that what was built the old way is not taken.
const RECIPE: u32 = 1;

/// How often a long build says that it is still there.
const STILL: Duration = Duration::from_secs(60);

/// A Go module of ours that names programs and pins what they are built from.
#[derive(Debug)]
struct Module {
    /// Its folder below `go/`.
    folder: &'static str,
    /// The module that is built.
    path: &'static str,
    /// Its `go.mod`, for the version.
    text: &'static str,
    tags: &'static str,
    /// Variables that hold the version in the program, each with what comes before the version.
    stamps: &'static [&'static str],
}

static ETCD: Module = Module {
    folder: "etcd",
    path: "go.etcd.io/etcd/server/v3",
    text: include_str!("../go/etcd/go.mod"),
    tags: "",
    stamps: &[],
};

static KUBERNETES: Module = Module {
    folder: "kubernetes",
    path: "k8s.io/kubernetes",
    text: include_str!("../go/kubernetes/go.mod"),
    tags: "",
    stamps: &["k8s.io/component-base/version.gitVersion"],
};

static CONTAINERD_MODULE: Module = Module {
    folder: "containerd",
    path: "github.com/containerd/containerd/v2",
    text: include_str!("../go/containerd/go.mod"),
    // Storage that no test has, and whose libraries would be needed.
    tags: "no_btrfs no_devmapper no_zfs",
    stamps: &["github.com/containerd/containerd/v2/version.Version"],
};

static CNI: Module = Module {
    folder: "cni",
    path: "github.com/containernetworking/plugins",
    text: include_str!("../go/cni/go.mod"),
    tags: "",
    stamps: &["github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion"],
};

static HELM: Module = Module {
    folder: "helm",
    path: "helm.sh/helm/v4",
    text: include_str!("../go/helm/go.mod"),
    tags: "",
    stamps: &["helm.sh/helm/v4/internal/version.version"],
};

impl Module {
    /// The version that its `go.mod` requires.
    fn version(&self) -> Result<&'static str> {
        let mut words = self.text.lines().map(str::split_whitespace);
        words
            .find_map(|mut line| {
                let first = line.next()?;
                let path = if first == "require" {
                    line.next()?
                } else {
                    first
                };
                (path == self.path).then(|| line.next())?
            })
            .with_context(|| format!("go/{}/go.mod does not require {}", self.folder, self.path))
    }

    fn ldflags(&self) -> Result<String> {
        let version = self.version()?;
        let mut flags = "-s -w".to_owned();
        for stamp in self.stamps {
            flags.push_str(&format!(" -X {stamp}={version}"));
        }
        if self.folder == "kubernetes" {
            // Clients compare these two numbers, which the version alone does not set.
            let mut numbers = version.trim_start_matches('v').split('.');
            for name in ["gitMajor", "gitMinor"] {
                let number = numbers.next().context("a version has two numbers")?;
                flags.push_str(&format!(
                    " -X k8s.io/component-base/version.{name}={number}"
                ));
            }
        }
        Ok(flags)
    }
}

/// A program that Kubernetes is made of.
#[derive(Debug)]
pub struct Program {
    /// The name of its file.
    pub name: &'static str,
    module: &'static Module,
    package: &'static str,
    /// Seconds that it took on an idle machine with two processors, after those before it.
    usual: u64,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $module:ident, $package:literal, $usual:literal;)*) => {
        $($(#[$doc])* pub static $constant: Program = Program {
            name: $name,
            module: &$module,
            package: $package,
            usual: $usual,
        };)*
    };
}

programs! {
    /// The database of the API server.
    ETCD_SERVER = "etcd", ETCD, "go.etcd.io/etcd/server/v3", 66;
    /// The API server.
    API_SERVER = "kube-apiserver", KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver", 380;
    /// The controllers: service accounts, nodes' pod networks, Deployments, DaemonSets.
    CONTROLLER_MANAGER = "kube-controller-manager", KUBERNETES, "k8s.io/kubernetes/cmd/kube-controller-manager", 90;
    /// The command line.
    KUBECTL = "kubectl", KUBERNETES, "k8s.io/kubernetes/cmd/kubectl", 66;
    /// What gives pods to nodes.
    SCHEDULER = "kube-scheduler", KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler", 12;
    /// The agent of a node.
    KUBELET = "kubelet", KUBERNETES, "k8s.io/kubernetes/cmd/kubelet", 36;
    /// What runs a node's containers.
    CONTAINERD = "containerd", CONTAINERD_MODULE, "github.com/containerd/containerd/v2/cmd/containerd", 90;
    /// What stays with each pod of it.
    SHIM = "containerd-shim-runc-v2", CONTAINERD_MODULE, "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", 12;
    /// Its command line, which loads images.
    CTR = "ctr", CONTAINERD_MODULE, "github.com/containerd/containerd/v2/cmd/ctr", 6;
    /// The network plugin that puts pods on a bridge.
    BRIDGE = "bridge", CNI, "github.com/containernetworking/plugins/plugins/main/bridge", 5;
    /// The network plugin for pods' loopback.
    LOOPBACK = "loopback", CNI, "github.com/containernetworking/plugins/plugins/main/loopback", 1;
    /// The network plugin that gives pods addresses.
    HOST_LOCAL = "host-local", CNI, "github.com/containernetworking/plugins/plugins/ipam/host-local", 1;
    /// The installer of charts.
    HELM_CLIENT = "helm", HELM, "helm.sh/helm/v4/cmd/helm", 350;
}

/// What a control plane runs, in the order in which it is built.
pub static CONTROL_PLANE: [&Program; 4] =
    [&ETCD_SERVER, &API_SERVER, &CONTROLLER_MANAGER, &KUBECTL];

/// What nodes need beyond that, in the order in which it is built.
pub static NODES: [&Program; 8] = [
    &KUBELET,
    &SCHEDULER,
    &CONTAINERD,
    &SHIM,
    &CTR,
    &BRIDGE,
    &LOOPBACK,
    &HOST_LOCAL,
];

impl Program {
    /// The version that would be built.
    pub fn version(&self) -> Result<&'static str> {
        self.module.version()
    }

    /// Where it is, or would be: in the folder that [`ASSETS`] names, else in the cache.
    pub fn path(&self) -> Result<PathBuf> {
        if let Some(folder) = std::env::var_os(ASSETS) {
            let given = Path::new(&folder).join(self.name);
            if given.is_file() {
                return Ok(given);
            }
        }
        Ok(self.folder()?.join(self.name))
    }

    /// The folder of what is built from its module, in the cache.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let folder = format!("{}-{}-{RECIPE}", self.module.folder, self.version()?);
        Ok(cache()?.join("programs").join(folder))
    }
}

/// Where everything of Kubernetes is kept between runs: `$XDG_CACHE_HOME/testudo/kube`.
pub fn cache() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep the programs")?;
    Ok(cache.join("testudo/kube"))
}

/// Builds those that are not there. `say` hears what is built, how long it took, and once a minute
/// that it goes on.
pub fn ensure(wanted: &[&Program], say: &dyn Fn(&str)) -> Result<()> {
    if missing(wanted)?.is_empty() {
        return Ok(());
    }
    let folder = cache()?;
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let _lock = Lock::take(&folder.join("lock"), || {
        say("another run builds Kubernetes' programs; waiting for it");
    })?;
    // The other run may have built what this one wants.
    let missing = missing(wanted)?;
    for (number, program) in missing.iter().enumerate() {
        let version = program.version()?;
        say(&format!(
            "building {} {version} ({} of {}, about {} on two idle processors)",
            program.name,
            number + 1,
            missing.len(),
            minutes(program.usual),
        ));
        let start = Instant::now();
        build(program, say)?;
        let took = minutes(start.elapsed().as_secs());
        say(&format!("{} {version} built in {took}", program.name));
    }
    Ok(())
}

fn missing<'a>(wanted: &[&'a Program]) -> Result<Vec<&'a Program>> {
    let mut missing = Vec::new();
    for program in wanted {
        if !program.path()?.is_file() {
            missing.push(*program);
        }
    }
    Ok(missing)
}

fn build(program: &Program, say: &dyn Fn(&str)) -> Result<()> {
    let path = program.path()?;
    let folder = path.parent().context("a program is in a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let partial = folder.join(format!(".{}.partial", program.name));
    let module = program.module;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("go")
        .join(module.folder);
    let ldflags = module.ldflags()?;
    let mut command = Command::new("go");
    command
        .args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath"])
        .args(["-tags", module.tags, "-ldflags", &ldflags, "-o"])
        .arg(&partial)
        .arg(program.package)
        .current_dir(sources)
        // Programs without a library run in a container's root and on every node alike.
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env_remove("GOFLAGS")
        .stdin(Stdio::null());
    let mut child = command.spawn().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            anyhow::anyhow!(
                "Kubernetes is built from source and there is no `go`: install Go 1.26 or later \
                 (https://go.dev/dl) and put it on the PATH"
            )
        } else {
            anyhow::Error::new(error).context("go could not be started")
        }
    })?;
    let start = Instant::now();
    let mut said = 0;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for go")? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(200));
        let minute = start.elapsed().as_secs() / STILL.as_secs();
        if minute > said {
            said = minute;
            say(&format!("still building {}, {minute} min", program.name));
        }
    };
    if !status.success() {
        bail!(
            "{} could not be built ({status}): {command:?}",
            program.name
        );
    }
    fs::rename(&partial, &path).with_context(|| path.display().to_string())
}

fn minutes(seconds: u64) -> String {
    if seconds < 90 {
        format!("{seconds} s")
    } else {
        format!("{:.1} min", seconds as f64 / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_requires_what_is_built() {
        for module in [&ETCD, &KUBERNETES, &CONTAINERD_MODULE, &CNI, &HELM] {
            assert!(module.version().unwrap().starts_with('v'), "{module:?}");
        }
        let flags = KUBERNETES.ldflags().unwrap();
        assert!(
            flags.contains("gitMajor=1 ") && flags.contains("gitVersion=v1."),
            "{flags}"
        );
    }

    #[test]
    fn every_package_stands_in_its_module() {
        for program in CONTROL_PLANE.iter().chain(&NODES).chain([&&HELM_CLIENT]) {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
            let tools = folder.join(program.module.folder).join("tools.go");
            let text = fs::read_to_string(tools).unwrap();
            assert!(
                text.contains(&format!("\"{}\"", program.package)),
                "{}",
                program.name
            );
        }
    }
}
