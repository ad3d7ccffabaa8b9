//! The process behind a lab: it makes the namespaces, starts the controller and the agents, and
//! starts again what dies, as systemd or kubelet would. It ends on SIGTERM.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::build::build;
use crate::lab::{Daemon, Lab, State, enter_on_spawn};
use crate::place::{make_directory, write_json};
use crate::process::Process;
use crate::spec::Datapath;

/// First delay of the second and later restarts in a row; the first restart is immediate.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest delay between two starts.
const BACKOFF_MOST: Duration = Duration::from_millis(800);
/// A process that lived so long is healthy again: its next restart is immediate.
const HEALTHY: Duration = Duration::from_secs(5);
/// How long children have to end on SIGTERM.
const PATIENCE: Duration = Duration::from_millis(600);

/// Runs the supervisor of a lab whose directory is prepared. Returns after SIGTERM.
pub fn supervise(name: &str) -> Result<()> {
    let signals = Signals::block()?;
    let lab = Lab::open(Some(name))?;
    let supervisor = Process::current().context("read /proc/self/stat: is /proc mounted?")?;
    let mut state = State {
        supervisor,
        ready: false,
        error: None,
        lacks: Vec::new(),
        controller: None,
        agents: BTreeMap::new(),
    };
    write_json(&lab.state_path(), &state)?;
    let result = build(lab.layout(), &lab.namespaces()).and_then(|lacks| {
        state.lacks = lacks;
        daemons(&lab)
    });
    let mut daemons = match result {
        Ok(daemons) => daemons,
        Err(error) => {
            state.error = Some(format!("{error:#}"));
            write_json(&lab.state_path(), &state)?;
            return Err(error);
        }
    };
    loop {
        let mut changed = !state.ready;
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
        if signals.wait(due)? {
            break;
        }
    }
    stop(&mut daemons);
    Ok(())
}

fn record(state: &mut State, daemons: &[Keeper]) {
    for daemon in daemons {
        let entry = Daemon {
            process: daemon.process,
            restarts: daemon.restarts,
        };
        if daemon.name == CONTROLLER {
            state.controller = Some(entry);
        } else {
            state.agents.insert(daemon.name.clone(), entry);
        }
    }
}

const CONTROLLER: &str = "controller";

fn daemons(lab: &Lab) -> Result<Vec<Keeper>> {
    if !lab.spec().daemons {
        return Ok(Vec::new());
    }
    let mut all = vec![Keeper::new(CONTROLLER, lab.clone())];
    all.extend(
        lab.layout()
            .nodes
            .iter()
            .map(|node| Keeper::new(&node.name, lab.clone())),
    );
    Ok(all)
}

/// One process that is kept running.
struct Keeper {
    name: String,
    lab: Lab,
    child: Option<Child>,
    process: Option<Process>,
    restarts: u32,
    started: Instant,
    due: Instant,
    backoff: Duration,
    ever: bool,
}

impl Keeper {
    fn new(name: &str, lab: Lab) -> Self {
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            lab,
            child: None,
            process: None,
            restarts: 0,
            started: now,
            due: now,
            backoff: Duration::ZERO,
            ever: false,
        }
    }

    /// Takes note of its end. True: it has ended.
    fn reap(&mut self) -> bool {
        let Some(child) = &mut self.child else {
            return false;
        };
        let ended = match child.try_wait() {
            Ok(None) => return false,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        eprintln!("{} ended: {ended}", self.name);
        self.child = None;
        self.process = None;
        if self.started.elapsed() >= HEALTHY {
            self.backoff = Duration::ZERO;
        }
        self.delay();
        true
    }

    fn delay(&mut self) {
        self.due = Instant::now() + self.backoff;
        self.backoff = if self.backoff.is_zero() {
            BACKOFF_FIRST
        } else {
            (self.backoff * 2).min(BACKOFF_MOST)
        };
    }

    /// Starts it if its time has come. True: something changed.
    fn start_if_due(&mut self) -> bool {
        if self.child.is_some() || Instant::now() < self.due {
            return false;
        }
        self.restarts += u32::from(self.ever);
        self.ever = true;
        self.started = Instant::now();
        match self.spawn() {
            Ok(child) => {
                self.process = i32::try_from(child.id()).ok().and_then(Process::find);
                eprintln!("{} started as process {}", self.name, child.id());
                self.child = Some(child);
            }
            Err(error) => {
                eprintln!("{} did not start: {error:#}", self.name);
                self.delay();
            }
        }
        true
    }

    /// Time until it is due; none while it runs.
    fn wait(&self) -> Option<Duration> {
        self.child
            .is_none()
            .then(|| self.due.saturating_duration_since(Instant::now()))
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = if self.name == CONTROLLER {
            controller_command(&self.lab)?
        } else {
            agent_command(&self.lab, &self.name)?
        };
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.lab.log_path(&self.name))
            .context("open the log")?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("open the log twice")?)
            .stderr(log);
        unblock_on_spawn(&mut command);
        command
            .spawn()
            .with_context(|| format!("run {}", self.lab.spec().binary.display()))
    }
}

fn controller_command(lab: &Lab) -> Result<Command> {
    let mut command = Command::new(&lab.spec().binary);
    command
        .arg("controller")
        .arg("--store")
        .arg(format!("dir:{}", lab.store_dir().display()));
    Ok(command)
}

fn agent_command(lab: &Lab, name: &str) -> Result<Command> {
    let node = lab
        .layout()
        .node(name)
        .context("a daemon is named after its node")?;
    let directory = lab.node_dir(name);
    make_directory(&directory.join("state"))?;
    let mut command = Command::new(&lab.spec().binary);
    command
        .args(["agent", "--node", name])
        .arg("--store")
        .arg(format!("dir:{}", lab.store_dir().display()))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .arg("--socket")
        .arg(lab.agent_socket(name))
        .arg("--join-token-file")
        .arg(lab.join_token(name));
    for address in &node.addresses {
        command.arg("--address").arg(address.to_string());
    }
    for cidr in &node.pod_cidrs {
        command.arg("--pod-cidr").arg(cidr.to_string());
    }
    match lab.spec().datapath_of(name) {
        // The policy's to say.
        Datapath::Auto => {}
        datapath => {
            command.args(["--datapath", datapath.as_str()]);
        }
    }
    if lab.spec().danger_export_keys {
        make_directory(&lab.keys_dir())?;
        command.arg("--danger-export-keys").arg(lab.keys_dir());
    }
    enter_on_spawn(&mut command, lab.netns(name)?);
    Ok(command)
}

/// SIGTERM to all, a moment to end, then SIGKILL.
fn stop(daemons: &mut [Keeper]) {
    for process in daemons.iter().filter_map(|daemon| daemon.process) {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for daemon in daemons.iter_mut() {
            daemon.reap();
        }
        if daemons.iter().all(|daemon| daemon.child.is_none()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for child in daemons
        .iter_mut()
        .filter_map(|daemon| daemon.child.as_mut())
    {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A blocked signal stays blocked over fork and exec: the daemon would never hear SIGTERM.
fn unblock_on_spawn(command: &mut Command) {
    // SAFETY: sigemptyset initialises the set before it is read, and both calls are allowed
    // between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        });
    }
}

/// SIGTERM, SIGINT and SIGCHLD as a descriptor.
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
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
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

    /// Waits for a signal, at most `most`. True: it is time to end.
    fn wait(&self, most: Option<Duration>) -> Result<bool> {
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
        let mut end = false;
        loop {
            let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the buffer is as long as said.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if usize::try_from(read) != Ok(size) {
                return Ok(end);
            }
            // SAFETY: the kernel has filled the whole structure.
            let number = unsafe { info.assume_init() }.ssi_signo;
            end |= number == libc::SIGTERM as u32 || number == libc::SIGINT as u32;
        }
    }
}
