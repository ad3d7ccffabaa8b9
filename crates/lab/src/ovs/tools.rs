//! Programs of Open vSwitch and OVN: where they are, and how a lab runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, enter_on_spawn};
use crate::place::make_directory;
use crate::process::unblock_on_spawn;
use crate::spec::{LabSpec, Overlay};

/// How long a daemon may take until it answers, in a guest that is emulated and not alone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a daemon that starts.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// Where distributions have the programs.
const FOLDERS: [&str; 5] = [
    "usr/sbin",
    "usr/bin",
    "usr/lib/openvswitch-switch",
    "usr/local/sbin",
    "usr/local/bin",
];
/// Where the databases' schemas are.
const SCHEMAS: [&str; 4] = [
    "usr/share/openvswitch",
    "usr/share/ovn",
    "usr/local/share/openvswitch",
    "usr/local/share/ovn",
];
/// Everything of Open vSwitch that a lab needs.
const OVS: [&str; 6] = [
    "ovs-vswitchd",
    "ovsdb-server",
    "ovsdb-tool",
    "ovs-vsctl",
    "ovs-ofctl",
    VSWITCH,
];
/// The same of OVN.
const OVN: [&str; 5] = [
    "ovn-controller",
    "ovn-northd",
    "ovn-nbctl",
    NORTHBOUND,
    SOUTHBOUND,
];
/// What a switch's database holds.
pub(crate) const VSWITCH: &str = "vswitch.ovsschema";
/// What OVN's northbound database holds.
pub(crate) const NORTHBOUND: &str = "ovn-nb.ovsschema";
/// What OVN's southbound database holds.
pub(crate) const SOUTHBOUND: &str = "ovn-sb.ovsschema";

/// Whether all that the lab needs is below its root, or installed; else an error that says what to
/// install.
pub(crate) fn check(spec: &LabSpec) -> Result<()> {
    let root = root(spec);
    let missing = |names: &[&'static str]| names.iter().copied().find(|n| find(root, n).is_none());
    let of_ovn = match spec.overlay {
        Overlay::Ovn => missing(&OVN),
        _ => None,
    };
    if let Some(name) = missing(&OVS) {
        bail!(
            "--switch ovs: {name} of Open vSwitch is not below {}: apt-get install \
             openvswitch-switch, or --ovs-root FOLDER where that package is unpacked",
            root.display()
        );
    }
    if let Some(name) = of_ovn {
        bail!(
            "--overlay ovn: {name} of OVN is not below {}: apt-get install ovn-central ovn-host, or \
             --ovs-root FOLDER where these packages and openvswitch-switch are unpacked",
            root.display()
        );
    }
    Ok(())
}

fn root(spec: &LabSpec) -> &Path {
    spec.ovs_root.as_deref().unwrap_or(Path::new("/"))
}

/// A program or a schema.
fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let folders = match name.ends_with(".ovsschema") {
        true => &SCHEMAS[..],
        false => &FOLDERS[..],
    };
    let mut places = folders.iter().map(|folder| root.join(folder).join(name));
    places.find(|path| path.is_file())
}

/// The libraries that were unpacked beside the programs.
fn libraries(root: &Path) -> Vec<PathBuf> {
    let of = |folder: &str| std::fs::read_dir(root.join(folder)).into_iter().flatten();
    ["usr/lib", "lib"]
        .into_iter()
        .flat_map(of)
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .collect()
}

/// A program in a namespace of the lab that touches nothing but `folder`.
pub(crate) fn command(lab: &Lab, target: &str, folder: &Path, program: &str) -> Result<Command> {
    let root = root(lab.spec());
    let path = find(root, program).with_context(|| format!("{program} is gone"))?;
    let mut command = Command::new(path);
    for whose in ["OVS", "OVN"] {
        for what in ["RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR"] {
            command.env(format!("{whose}_{what}"), folder);
        }
    }
    if root != Path::new("/") {
        let path = std::env::join_paths(libraries(root)).context("the libraries' path")?;
        command.env("LD_LIBRARY_PATH", path);
    }
    enter_on_spawn(&mut command, lab.netns(target)?);
    unblock_on_spawn(&mut command);
    Ok(command)
}

/// A daemon: it says what it does on its standard error, and takes questions at a socket in its
/// folder that is named after it and its process.
pub(crate) fn daemon(lab: &Lab, target: &str, folder: &Path, program: &str) -> Result<Command> {
    let mut command = command(lab, target, folder, program)?;
    command.args(["-vsyslog:off", "-vconsole:info"]);
    Ok(command)
}

/// The server of the database `folder/NAME.db`, at `folder/NAME.sock`; the database is made when
/// there is none.
pub(crate) fn database(
    lab: &Lab,
    target: &str,
    folder: &Path,
    name: &str,
    schema: &str,
) -> Result<Command> {
    make_directory(folder)?;
    let file = folder.join(name).with_extension("db");
    if !file.exists() {
        let schema = find(root(lab.spec()), schema);
        let schema = schema.context("the database's schema is gone")?;
        let mut create = command(lab, target, folder, "ovsdb-tool")?;
        finish(create.arg("create").arg(&file).arg(schema))?;
    }
    let mut server = command(lab, target, folder, "ovsdb-server")?;
    let control = folder.join(name).with_extension("ctl");
    server
        .arg(&file)
        .arg(format!("--remote=punix:{}", socket(folder, name).display()))
        .arg(format!("--unixctl={}", control.display()))
        .args(["-vsyslog:off", "-vconsole:info"]);
    Ok(server)
}

/// Where the database `name` is asked.
pub(crate) fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension("sock")
}

/// Waits until somebody listens there.
pub(crate) fn wait_for(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        ensure!(
            Instant::now() < deadline,
            "{}: nobody listens after {} s",
            socket.display(),
            PATIENCE.as_secs()
        );
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Runs it to its end; an error with what it said unless it succeeds.
pub(crate) fn finish(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {command:?}"))?;
    succeeded(command, output)
}

/// The same of one that has ended.
pub(crate) fn succeeded(command: &Command, output: Output) -> Result<Output> {
    if !output.status.success() {
        let program = Path::new(command.get_program()).file_name();
        bail!(
            "{}: {}: {}",
            program.unwrap_or_default().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_a_remedy() {
        let mut spec = LabSpec::new("a", PathBuf::new());
        let root = tempfile::tempdir().unwrap();
        spec.ovs_root = Some(root.path().to_owned());
        spec.overlay = Overlay::Ovn;
        let said = |spec: &LabSpec| check(spec).unwrap_err().to_string();
        assert!(said(&spec).contains("apt-get install openvswitch-switch"));
        for name in OVS {
            let folder = match name == VSWITCH {
                true => "usr/share/openvswitch",
                false => "usr/bin",
            };
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name), "").unwrap();
        }
        let text = said(&spec);
        assert!(
            text.contains("apt-get install ovn-central ovn-host"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
        spec.overlay = Overlay::Geneve;
        check(&spec).unwrap();
    }
}
