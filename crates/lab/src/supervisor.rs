//! The process behind a lab: it makes the namespaces, starts the controller and the agents, and
//! starts again what dies, as systemd or kubelet would. It ends on SIGTERM.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::build::{build, plug_into_ovs};
use crate::keeper::{Keeper, Role};
use crate::kube::Care;
use crate::lab::{Lab, State};
use crate::lifecycle::tail;
use crate::ovs::ovn::Central;
use crate::ovs::{self, Ovs};
use crate::place::write_json;
use crate::process::Process;
use crate::spec::Switch;

/// How long children have to end on SIGTERM.
const PATIENCE: Duration = Duration::from_millis(600);

/// Runs the supervisor of a lab whose directory is prepared. Returns after SIGTERM.
pub fn supervise(name: &str) -> Result<()> {
    let signals = Signals::block()?;
    let mut lab = Lab::open(Some(name))?;
    let supervisor = Process::current().context("read /proc/self/stat: is /proc mounted?")?;
    let mut state = State {
        supervisor,
        ready: false,
        error: None,
        lacks: Vec::new(),
        controller: None,
        agents: BTreeMap::new(),
        switches: BTreeMap::new(),
    };
    write_json(&lab.state_path(), &state)?;
    let mut daemons = Vec::new();
    let result = build(lab.layout(), &lab.namespaces()).and_then(|lacks| {
        state.lacks = lacks;
        switches(&lab, &mut daemons)
    });
    if let Err(error) = result {
        stop(&mut daemons);
        state.error = Some(format!("{error:#}"));
        write_json(&lab.state_path(), &state)?;
        return Err(error);
    }
    let care = if lab.spec().daemons {
        Care::start(&lab)
    } else {
        Ok(None)
    };
    let care = match care {
        Ok(care) => care,
        Err(error) => {
            stop(&mut daemons);
            state.error = Some(format!("{error:#}"));
            write_json(&lab.state_path(), &state)?;
            return Err(error);
        }
    };
    if lab.spec().daemons {
        let nodes = lab.layout().nodes.iter();
        let agents = nodes.map(|node| Role::Agent(node.name.clone()));
        let all = std::iter::once(Role::Controller).chain(agents);
        daemons.extend(all.map(|role| Keeper::new(role, lab.clone())));
    }
    let mut reload = false;
    loop {
        let mut changed = !state.ready || reload;
        if std::mem::take(&mut reload) {
            lab = Lab::open(Some(name))?;
            if let Some(care) = &care {
                care.tell(&lab);
            }
            follow(&lab, &mut daemons, &mut state);
        }
        for daemon in &mut daemons {
            changed |= daemon.reap();
            changed |= daemon.start_if_due();
        }
        if changed {
            state.ready = true;
            record(&mut state, &daemons);
            write_json(&lab.state_path(), &state)?;
        }
        let due = daemons.iter().filter_map(Keeper::wait).min();
        match signals.wait(due)? {
            Heard::Nothing => {}
            Heard::Reload => reload = true,
            Heard::End => break,
        }
    }
    stop(&mut daemons);
    Ok(())
}

/// Starts the Open vSwitch of each node and plugs all into it, and before and beside it OVN. What
/// was started is in `daemons`, also after an error.
fn switches(lab: &Lab, daemons: &mut Vec<Keeper>) -> Result<()> {
    if lab.spec().switch() != Switch::Ovs {
        return Ok(());
    }
    ovs::wait_for_processors();
    let mut start = |role: Role| {
        let log = lab.log_path(&role.name());
        let mut keeper = Keeper::new(role, lab.clone());
        keeper.start_if_due();
        daemons.push(keeper);
        log
    };
    let central = lab.layout().central.as_ref().map(|_| Central::of(lab));
    if let Some(central) = &central {
        start(Role::Southbound);
        let log = start(Role::Northbound);
        central
            .define()
            .with_context(|| format!("OVN's network: {}", tail(&log)))?;
        start(Role::Northd);
    }
    for node in &lab.layout().nodes {
        let name = || node.name.clone();
        start(Role::Database(name()));
        let log = start(Role::Switch(name()));
        Ovs::of(lab, &node.name)?
            .configure()
            .with_context(|| format!("Open vSwitch of {}: {}", node.name, tail(&log)))?;
        if central.is_some() {
            start(Role::Chassis(name()));
        }
        plug_into_ovs(lab.layout(), node, &lab.namespaces())
            .with_context(|| format!("plug node {} into Open vSwitch", node.name))?;
    }
    if let Some(central) = &central {
        let log = lab.log_path(&Role::Northd.name());
        central
            .wait()
            .with_context(|| format!("OVN: {}", tail(&log)))?;
    }
    Ok(())
}

/// Agents as the lab has nodes now: those of nodes that are gone are ended, new ones begin.
fn follow(lab: &Lab, daemons: &mut Vec<Keeper>, state: &mut State) {
    let stays = |keeper: &Keeper| match keeper.role() {
        Role::Agent(node) => lab.layout().node(node).is_some(),
        _ => true,
    };
    let (kept, mut gone): (Vec<_>, Vec<_>) = daemons.drain(..).partition(stays);
    *daemons = kept;
    stop(&mut gone);
    for keeper in &gone {
        state.agents.remove(&keeper.role().name());
    }
    for node in &lab.layout().nodes {
        let role = Role::Agent(node.name.clone());
        if daemons.iter().all(|keeper| *keeper.role() != role) {
            daemons.push(Keeper::new(role, lab.clone()));
        }
    }
}

fn record(state: &mut State, daemons: &[Keeper]) {
    for daemon in daemons {
        let (name, entry) = (daemon.role().name(), daemon.entry());
        match daemon.role() {
            Role::Controller => state.controller = Some(entry),
            Role::Agent(_) => _ = state.agents.insert(name, entry),
            _ => _ = state.switches.insert(name, entry),
        }
    }
}

/// SIGTERM to all, a moment to end, then SIGKILL.
fn stop(daemons: &mut [Keeper]) {
    for process in daemons.iter().filter_map(Keeper::process) {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for daemon in daemons.iter_mut() {
            daemon.reap();
        }
        if daemons.iter().all(|daemon| daemon.has_ended()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    daemons.iter_mut().for_each(Keeper::kill);
}

/// What signals asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    Nothing,
    /// `lab.json` is another one.
    Reload,
    End,
}

/// SIGTERM, SIGINT, SIGHUP and SIGCHLD as a descriptor.
struct Signals {
    fd: OwnedFd,
}

impl Signals {
    fn block() -> Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set before anything reads it; the other calls get
        // the same valid set.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("signalfd");
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Waits for a signal, at most `most`.
    fn wait(&self, most: Option<Duration>) -> Result<Heard> {
        let timeout = most.map_or(-1, |most| {
            i32::try_from(most.as_millis())
                .unwrap_or(i32::MAX)
                .saturating_add(1)
        });
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, timeout) };
        let mut heard = Heard::Nothing;
        loop {
            let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the buffer is as long as said.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if usize::try_from(read) != Ok(size) {
                return Ok(heard);
            }
            // SAFETY: the kernel has filled the whole structure.
            let number = unsafe { info.assume_init() }.ssi_signo;
            let now = match i32::try_from(number) {
                Ok(libc::SIGTERM | libc::SIGINT) => Heard::End,
                Ok(libc::SIGHUP) => Heard::Reload,
                _ => Heard::Nothing,
            };
            heard = heard.max(now);
        }
    }
}
