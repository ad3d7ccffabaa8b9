//! `up` and `down`: a lab is made whole or not at all, and leaves nothing.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::Access;
use rustix::process::Signal;

use crate::lab::{Lab, Manifest, VERSION};
use crate::layout::{Layout, NodeLayout, is_namespace_of};
use crate::namespaces::{Namespaces, identity};
use crate::ovs;
use crate::place::{Place, make_directory};
use crate::process::{MARK, Process, command_line, in_namespace, marked, wait_gone};
use crate::spec::{Datapath, LabSpec, Switch, check_name};
use crate::userns;

/// Time to build, without what the number of namespaces adds; an emulated processor that is shared takes it.
const BUILD: Duration = Duration::from_secs(60);
/// What each namespace may add.
const BUILD_EACH: Duration = Duration::from_millis(100);
/// What the Open vSwitch of each node may add, in a guest that is emulated and not alone.
const BUILD_OVS: Duration = Duration::from_secs(60);
/// What OVN may add.
const BUILD_OVN: Duration = Duration::from_secs(300);
/// How long processes have to end by themselves, then by SIGTERM, then by SIGKILL.
const GRACE: Duration = Duration::from_millis(3000);
const TERM: Duration = Duration::from_millis(1000);
const KILL: Duration = Duration::from_millis(3000);
/// How much of the supervisor's log an error shows.
const LOG_TAIL: u64 = 2000;

/// Where progress is told, a line at a time.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// Makes a lab and starts its processes. Leftovers of an earlier lab of the same name are removed
/// first when no process of it lives. When this fails nothing is left.
pub fn up(mut spec: LabSpec, progress: Progress<'_>) -> Result<Lab> {
    spec.validate()?;
    if spec.switch() == Switch::Ovs {
        ovs::check(&spec)?;
    }
    let place = Place::current()?;
    ensure!(
        !matches!(place, Place::Inside { .. }),
        "a lab cannot be made from inside of another"
    );
    let admin = match &mut spec.kube {
        Some(kube) => {
            crate::kube::check(&place)?;
            let (server, kubeconfig) = crate::kube::choose(kube)?;
            kube.server = server;
            Some(kubeconfig)
        }
        None => None,
    };
    let layout = Layout::new(&spec);
    let needs_tun = |node: &NodeLayout| spec.datapath_of(&node.name) != Datapath::Kernel;
    if spec.daemons && layout.nodes.iter().any(needs_tun) {
        check_tun()?;
    }
    let lock = place.lock()?;
    clear_leftovers(&place, &spec.name, progress)?;
    let manifest = Manifest {
        version: VERSION,
        id: random_hex(16)?,
        spec,
        layout,
    };
    let lab = Lab::from_parts(place, manifest);
    let prepared = prepare(&lab, admin.as_deref(), progress);
    let spawned = prepared.and_then(|()| spawn_supervisor(&lab));
    // From here on the supervisor's mark keeps others away.
    drop(lock);
    let made = spawned.and_then(|child| wait_ready(&lab, child, progress));
    if let Err(error) = made {
        let name = lab.name().to_owned();
        if let Err(second) = down(&name, &mut |_| {}) {
            return Err(error.context(format!("and it could not be removed: {second:#}")));
        }
        return Err(error.context(format!("lab {name} is not up")));
    }
    Ok(lab)
}

/// The lab that is meant when none is named: the only one there is, else `lab`.
pub fn default_name() -> Result<String> {
    crate::lab::default_name(&Place::current()?)
}

/// Ends a lab and removes all of it: processes, namespaces, links, directories. True: there was
/// something to remove. Works without its supervisor, and without its state.
pub fn down(name: &str, progress: Progress<'_>) -> Result<bool> {
    check_name(name)?;
    let place = Place::current()?;
    ensure!(
        !matches!(place, Place::Inside { .. }),
        "a lab cannot be removed from inside"
    );
    // A manifest that cannot be read any more must not keep a lab alive: what can be found by
    // its names is removed all the same.
    let lab = Lab::read(place.clone(), name).unwrap_or_else(|error| {
        progress(&format!("{error:#}: removing what is found by name"));
        None
    });
    let mut found = false;
    let mut elsewhere = Ok(false);
    if let Some(lab) = &lab {
        found |= end_processes(lab, progress)?;
        elsewhere = crate::kube::remove(lab, progress);
    }
    let lock = place.lock()?;
    found |= remove(&place, name, progress)?;
    drop(lock);
    place.remove_empty();
    // Nothing is left here, whatever is left there.
    found |= elsewhere?;
    Ok(found)
}

/// Ends all labs of this caller. Returns their names.
pub fn down_all(progress: Progress<'_>) -> Result<Vec<String>> {
    let place = Place::current()?;
    let mut names = place.names();
    if place == Place::Machine {
        // A lab whose directory is gone may have left namespaces.
        for netns in Namespaces::new(crate::namespaces::NAMED).list() {
            if let Some(name) = netns
                .strip_prefix("testudo-")
                .and_then(|rest| rest.strip_suffix("-underlay"))
                && is_namespace_of(name, &netns)
                && check_name(name).is_ok()
                && !names.iter().any(|known| known == name)
            {
                names.push(name.to_owned());
            }
        }
    }
    for name in &names {
        progress(&format!("lab {name}"));
        down(name, progress)?;
    }
    Ok(names)
}

fn check_tun() -> Result<()> {
    let tun = Path::new("/dev/net/tun");
    ensure!(
        tun.exists(),
        "/dev/net/tun is missing: modprobe tun; or mkdir -p /dev/net && mknod /dev/net/tun c 10 200"
    );
    let uid = rustix::process::geteuid();
    ensure!(
        rustix::fs::access(tun, Access::READ_OK | Access::WRITE_OK).is_ok(),
        "/dev/net/tun: uid {} may not open it: run as root, or once as root: chmod 0666 /dev/net/tun \
         (what udev does by default; making a TUN still needs rights over a network namespace)",
        uid.as_raw()
    );
    Ok(())
}

/// Removes what a lab of this name left when all its processes are gone.
fn clear_leftovers(place: &Place, name: &str, progress: Progress<'_>) -> Result<()> {
    let lab = Lab::read(place.clone(), name).ok().flatten();
    if let Some(lab) = &lab {
        let alive = marked(lab.id());
        if !alive.is_empty() {
            let supervised = lab.supervisor_process().is_some();
            bail!(
                "lab {name} runs already ({} processes{}): use another --name, or testudo lab down --name {name}",
                alive.len(),
                if supervised {
                    ""
                } else {
                    ", its supervisor is gone"
                }
            );
        }
    }
    let namespaces = place.namespaces(name);
    let stray: Vec<_> = namespaces
        .list()
        .into_iter()
        .filter(|netns| is_namespace_of(name, netns))
        .collect();
    for netns in &stray {
        let living = identity(&namespaces.path(netns))
            .map(in_namespace)
            .unwrap_or_default();
        if let Some(process) = living.first() {
            bail!(
                "namespace {netns} is left from an earlier lab and process {} ({}) is still in it: end it first",
                process.pid,
                command_line(process.pid)
            );
        }
    }
    if remove(place, name, &mut |_| {})? {
        progress(&format!("removed what an earlier lab {name} had left"));
    }
    Ok(())
}

/// The directory, the manifest and what lets nodes in: join tokens, or all that is in the API server, for
/// which `admin` is the kubeconfig.
fn prepare(lab: &Lab, admin: Option<&[u8]>, progress: Progress<'_>) -> Result<()> {
    make_directory(lab.directory())?;
    make_directory(&lab.directory().join("logs"))?;
    for node in &lab.layout().nodes {
        make_directory(&lab.node_dir(&node.name))?;
    }
    let Some(admin) = admin else {
        make_directory(&lab.store_dir())?;
        lab.fill_store()?;
        return lab.write();
    };
    // Whatever happens from here on, `down` finds what is to be removed there.
    crate::kube::keep(lab, admin)?;
    lab.write()?;
    crate::kube::install(lab, progress)
}

fn spawn_supervisor(lab: &Lab) -> Result<Child> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(lab.log_path("supervisor"))
        .context("open the supervisor's log")?;
    let mut command = Command::new(&lab.spec().binary);
    command
        .args(["lab", "supervise", "--name", lab.name()])
        .env(MARK, lab.id())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("open the log twice")?)
        .stderr(log)
        .current_dir("/");
    // SAFETY: setsid is one system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into));
    }
    let user = match lab.place() {
        Place::User { base } => {
            userns::in_new_namespace(&mut command, base);
            true
        }
        _ => false,
    };
    command.spawn().with_context(|| {
        let remedy = if user {
            format!("\n{}", userns::REMEDY)
        } else {
            String::new()
        };
        format!(
            "start the supervisor {}{remedy}",
            lab.spec().binary.display()
        )
    })
}

fn wait_ready(lab: &Lab, mut supervisor: Child, progress: Progress<'_>) -> Result<()> {
    let namespaces = lab.layout().namespaces().len();
    let mut limit = BUILD + BUILD_EACH * u32::try_from(namespaces).unwrap_or(u32::MAX);
    if lab.spec().switch() == Switch::Ovs {
        limit += BUILD_OVS * u32::from(lab.spec().nodes);
    }
    if lab.layout().central.is_some() {
        limit += BUILD_OVN;
    }
    let start = Instant::now();
    let mut told = start;
    progress(&format!(
        "lab {}: {} nodes, {} namespaces, overlay {}{}, underlay {}",
        lab.name(),
        lab.layout().nodes.len(),
        namespaces,
        lab.spec().overlay,
        match lab.spec().switch {
            Switch::Linux => "",
            Switch::Ovs => " of Open vSwitch",
        },
        lab.spec().family
    ));
    loop {
        if let Some(state) = lab.state()? {
            if let Some(error) = state.error {
                let _ = supervisor.wait();
                bail!("{error}");
            }
            if state.ready {
                state.lacks.iter().for_each(|lack| progress(lack));
                return if lab.spec().daemons {
                    lab.wait_for_agents(progress)
                } else {
                    Ok(())
                };
            }
        }
        if let Some(status) = supervisor.try_wait().context("wait for the supervisor")? {
            bail!(
                "the supervisor ended ({status}): {}",
                tail(&lab.log_path("supervisor"))
            );
        }
        ensure!(
            start.elapsed() < limit,
            "the namespaces were not ready after {} s: {}",
            limit.as_secs(),
            tail(&lab.log_path("supervisor"))
        );
        if told.elapsed() >= Duration::from_secs(2) {
            told = Instant::now();
            progress(&format!("building ({} s)", start.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// First the supervisor, so that it starts nothing again, then whoever is left.
fn end_processes(lab: &Lab, progress: Progress<'_>) -> Result<bool> {
    let id = lab.id();
    let mut left = marked(id);
    if left.is_empty() {
        return Ok(false);
    }
    progress(&format!("ending {} processes", left.len()));
    if let Some(supervisor) = lab
        .supervisor_process()
        .filter(|process| left.contains(process))
    {
        supervisor.signal(Signal::TERM);
        let start = Instant::now();
        while supervisor.is_alive() && start.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Stopped or stuck: it must not start again what is ended below.
        supervisor.signal(Signal::KILL);
        left = marked(id);
    }
    for (signal, patience) in [(Signal::TERM, TERM), (Signal::KILL, KILL)] {
        for process in &left {
            process.signal(signal);
        }
        if wait_gone(id, patience) {
            return Ok(true);
        }
        left = marked(id);
    }
    let names: Vec<_> = left.iter().map(describe).collect();
    bail!(
        "lab {}: these processes do not end: {}",
        lab.name(),
        names.join(", ")
    )
}

/// Namespaces and directory. True: something was there.
fn remove(place: &Place, name: &str, progress: Progress<'_>) -> Result<bool> {
    let mut found = false;
    let namespaces = place.namespaces(name);
    for netns in namespaces.list() {
        if !is_namespace_of(name, &netns) {
            continue;
        }
        found = true;
        for process in identity(&namespaces.path(&netns))
            .map(in_namespace)
            .unwrap_or_default()
        {
            progress(&format!(
                "{} is in {netns} and not ours: it is left alone",
                describe(&process)
            ));
        }
        namespaces.delete(&netns)?;
    }
    let directory = place.directory(name);
    match fs::remove_dir_all(&directory) {
        Ok(()) => found = true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("remove {}", directory.display()));
        }
    }
    Ok(found)
}

fn describe(process: &Process) -> String {
    format!("process {} ({})", process.pid, command_line(process.pid))
}

/// The end of a log, for an error.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    match read() {
        Ok(text) if !text.is_empty() => text,
        _ => format!("nothing in {}", path.display()),
    }
}

/// Random bytes of the kernel, in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut buffer))
        .context("read /dev/urandom")?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}
