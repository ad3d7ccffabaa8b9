//! One process that the supervisor keeps running.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::kube;
use crate::lab::{Daemon, Lab, enter_on_spawn};
use crate::ovs::Ovs;
use crate::ovs::ovn::Central;
use crate::place::make_directory;
use crate::process::{Process, unblock_on_spawn};
use crate::spec::Datapath;

/// First delay of the second and later restarts in a row; the first restart is immediate.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest delay between two starts.
const BACKOFF_MOST: Duration = Duration::from_millis(800);
/// A process that lived so long is healthy again: its next restart is immediate.
const HEALTHY: Duration = Duration::from_secs(5);

/// What a process is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// The controller.
    Controller,
    /// The agent of a node.
    Agent(String),
    /// The database server of a node's Open vSwitch.
    Database(String),
    /// The switch daemon of a node's Open vSwitch.
    Switch(String),
    /// OVN's daemon of a node.
    Chassis(String),
    /// The server of OVN's northbound database.
    Northbound,
    /// The server of OVN's southbound database.
    Southbound,
    /// OVN's northd.
    Northd,
}

impl Role {
    /// Its name: of its log, and in the lab's state.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Controller => "controller".to_owned(),
            Self::Agent(node) => node.clone(),
            Self::Database(node) => format!("{node}-ovsdb"),
            Self::Switch(node) => format!("{node}-vswitchd"),
            Self::Chassis(node) => format!("{node}-ovn"),
            Self::Northbound => "ovn-nb".to_owned(),
            Self::Southbound => "ovn-sb".to_owned(),
            Self::Northd => "ovn-northd".to_owned(),
        }
    }

    /// What runs it.
    pub(crate) fn command(&self, lab: &Lab) -> Result<Command> {
        match self {
            Self::Controller => Ok(controller_command(lab)),
            Self::Agent(node) => agent_command(lab, node),
            Self::Database(node) => Ovs::of(lab, node)?.database(),
            Self::Switch(node) => Ovs::of(lab, node)?.daemon(),
            Self::Chassis(node) => Ovs::of(lab, node)?.controller(),
            Self::Northbound => Central::of(lab).northbound(),
            Self::Southbound => Central::of(lab).southbound(),
            Self::Northd => Central::of(lab).northd(),
        }
    }
}

/// One process that is kept running.
pub(crate) struct Keeper {
    role: Role,
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
    pub(crate) fn new(role: Role, lab: Lab) -> Self {
        let now = Instant::now();
        Self {
            role,
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
    pub(crate) fn reap(&mut self) -> bool {
        let Some(child) = &mut self.child else {
            return false;
        };
        let ended = match child.try_wait() {
            Ok(None) => return false,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        eprintln!("{} ended: {ended}", self.role.name());
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
    pub(crate) fn start_if_due(&mut self) -> bool {
        if self.child.is_some() || Instant::now() < self.due {
            return false;
        }
        self.restarts += u32::from(self.ever);
        self.ever = true;
        self.started = Instant::now();
        match self.spawn() {
            Ok(child) => {
                self.process = i32::try_from(child.id()).ok().and_then(Process::find);
                eprintln!("{} started as process {}", self.role.name(), child.id());
                self.child = Some(child);
                if self.restarts > 0 {
                    self.write_flows_again();
                }
            }
            Err(error) => {
                eprintln!("{} did not start: {error:#}", self.role.name());
                self.delay();
            }
        }
        true
    }

    /// A switch that was started again has its ports from its database, and no flows. OVN's daemon
    /// writes them by itself.
    fn write_flows_again(&self) {
        let Role::Switch(node) = self.role.clone() else {
            return;
        };
        if self.lab.layout().central.is_some() {
            return;
        }
        let lab = self.lab.clone();
        // Others may need a start meanwhile.
        std::thread::spawn(move || {
            let written = Ovs::of(&lab, &node).and_then(|ovs| ovs.write_flows());
            match written {
                Ok(()) => eprintln!("{node}: the flows of its switch are written again"),
                Err(error) => eprintln!("{node}: its switch has no flows: {error:#}"),
            }
        });
    }

    /// What it is for.
    pub(crate) fn role(&self) -> &Role {
        &self.role
    }

    /// It as the lab's state has it.
    pub(crate) fn entry(&self) -> Daemon {
        Daemon {
            process: self.process,
            restarts: self.restarts,
        }
    }

    /// The process, while it runs.
    pub(crate) fn process(&self) -> Option<Process> {
        self.process
    }

    /// Whether it does not run.
    pub(crate) fn has_ended(&self) -> bool {
        self.child.is_none()
    }

    /// Ends it at once, if it still runs.
    pub(crate) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Time until it is due; none while it runs.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.child
            .is_none()
            .then(|| self.due.saturating_duration_since(Instant::now()))
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = self.role.command(&self.lab)?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.lab.log_path(&self.role.name()))
            .context("open the log")?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("open the log twice")?)
            .stderr(log);
        unblock_on_spawn(&mut command);
        command
            .spawn()
            .with_context(|| format!("run {}", command.get_program().display()))
    }
}

fn controller_command(lab: &Lab) -> Command {
    let mut command = Command::new(&lab.spec().binary);
    command.arg("controller");
    match lab.server() {
        None => {
            command
                .arg("--store")
                .arg(format!("dir:{}", lab.store_dir().display()));
        }
        Some(_) => {
            let kubeconfig = kube::kubeconfig_of_controller(lab);
            by_kubeconfig(&mut command, &kubeconfig);
            command.args(["--namespace", kube::NAMESPACE]);
        }
    }
    command
}

/// The daemon goes by this file, whatever its shell says.
fn by_kubeconfig(command: &mut Command, file: &Path) {
    for name in ["KUBECONFIG", "TESTUDO_STORE", "POD_NAMESPACE"] {
        command.env_remove(name);
    }
    command.arg("--kubeconfig").arg(file);
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
        .arg("--state-dir")
        .arg(directory.join("state"))
        .arg("--socket")
        .arg(lab.agent_socket(name));
    match lab.server() {
        None => {
            command
                .arg("--store")
                .arg(format!("dir:{}", lab.store_dir().display()))
                .arg("--join-token-file")
                .arg(lab.join_token(name));
        }
        Some(_) => by_kubeconfig(&mut command, &kube::kubeconfig_of_agent(lab, name)),
    }
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
