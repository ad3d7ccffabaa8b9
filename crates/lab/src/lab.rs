//! A lab that stands: what its directory says, and how to get into its namespaces.
//!
//! ```text
//! labs/NAME/lab.json        what it is: options, layout, the mark of its processes
//!           state.json      which processes it has; written by the supervisor
//!           store/          the directory store
//!           nodes/n1/       the agent's state, socket and join token; Open vSwitch's in ovs/
//!           ovn/            OVN's databases
//!           kube/           only with an API server: see `kube`
//!           controller/     the controller's state (the CA key)
//!           logs/           one file a process
//!           keys/           only with --danger-export-keys: keys in Wireshark's formats
//!           netns/          a user's lab: its namespaces
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use testudo_store::Location;
use testudo_store_kube::{AnyStore, Writer};

use crate::keeper::Role;
use crate::layout::Layout;
use crate::namespaces::{Namespaces, inside};
use crate::ovs::Ovs;
use crate::ovs::ovn::Central;
use crate::place::{Place, read_json, write_json};
use crate::process::{MARK, Process};
use crate::spec::{DEFAULT_NAME, KubeSpec, LabSpec, check_name};
use crate::userns;

/// Format of `lab.json`.
pub(crate) const VERSION: u32 = 1;

/// `lab.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this file.
    pub version: u32,
    /// Random; every process of the lab carries it ([`MARK`]).
    pub id: String,
    /// The options.
    pub spec: LabSpec,
    /// The plan.
    pub layout: Layout,
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The supervisor.
    pub supervisor: Process,
    /// Whether all namespaces stand and all daemons have been started.
    pub ready: bool,
    /// Why it could not be built.
    pub error: Option<String>,
    /// What the kernel lacks and the lab goes without.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// The controller.
    pub controller: Option<Daemon>,
    /// The agents by node.
    pub agents: BTreeMap<String, Daemon>,
    /// Daemons of Open vSwitch and OVN by name: `n1-ovsdb`, `n1-vswitchd`, `n1-ovn`, `ovn-nb`,
    /// `ovn-sb`, `ovn-northd`.
    #[serde(default)]
    pub switches: BTreeMap<String, Daemon>,
}

/// A process that the supervisor keeps running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// The process; none while it waits to be started again.
    pub process: Option<Process>,
    /// How often it was started again.
    pub restarts: u32,
}

/// A lab on this machine.
#[derive(Debug, Clone)]
pub struct Lab {
    place: Place,
    directory: PathBuf,
    manifest: Manifest,
}

impl Lab {
    /// Opens a lab by name. Without one: the only lab there is, else the default name.
    pub fn open(name: Option<&str>) -> Result<Self> {
        let place = Place::current()?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => default_name(&place)?,
        };
        check_name(&name)?;
        Self::read(place, &name)?.with_context(|| {
            format!("no lab {name:?} here: make it with `testudo lab up --name {name}`")
        })
    }

    /// All labs that can be read, by name.
    pub fn list() -> Result<Vec<Self>> {
        let place = Place::current()?;
        let names = place.names();
        Ok(names
            .iter()
            .filter_map(|name| Self::read(place.clone(), name).ok().flatten())
            .collect())
    }

    pub(crate) fn read(place: Place, name: &str) -> Result<Option<Self>> {
        let directory = place.directory(name);
        let Some(manifest) = read_json::<Manifest>(&directory.join("lab.json"))? else {
            return Ok(None);
        };
        if manifest.version != VERSION {
            bail!(
                "{}: made by another version of testudo: testudo lab down --name {name}",
                directory.display()
            );
        }
        Ok(Some(Self {
            place,
            directory,
            manifest,
        }))
    }

    pub(crate) fn from_parts(place: Place, manifest: Manifest) -> Self {
        let directory = place.directory(&manifest.spec.name);
        Self {
            place,
            directory,
            manifest,
        }
    }

    /// The same lab as another manifest has it.
    pub(crate) fn with(&self, spec: LabSpec, layout: Layout) -> Self {
        let manifest = Manifest {
            spec,
            layout,
            ..self.manifest.clone()
        };
        Self {
            manifest,
            ..self.clone()
        }
    }

    /// Writes `lab.json`.
    pub(crate) fn write(&self) -> Result<()> {
        write_json(&self.directory.join("lab.json"), &self.manifest)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.manifest.spec.name
    }

    /// The options it was made with.
    pub fn spec(&self) -> &LabSpec {
        &self.manifest.spec
    }

    /// Its namespaces and addresses.
    pub fn layout(&self) -> &Layout {
        &self.manifest.layout
    }

    /// The mark of its processes.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where it stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The directory store; `--store dir:PATH` for every other command. Not there where the objects are in an
    /// API server: see [`Lab::location`].
    pub fn store_dir(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// Where its objects are: what `--store` or `--kubeconfig` of every other command names.
    pub fn location(&self) -> Location {
        match self.spec().kube {
            Some(_) => crate::kube::location(self),
            None => Location::Directory(self.store_dir()),
        }
    }

    /// Whether these are its objects: the same directory, or by any kubeconfig the same API server.
    pub fn is_at(&self, location: &Location) -> bool {
        match (location, self.server()) {
            (Location::Kubernetes(at), Some(server)) => {
                let named = KubeSpec {
                    kubeconfig: at.kubeconfig.clone(),
                    context: at.context.clone(),
                    server: String::new(),
                };
                crate::kube::choose(&named).is_ok_and(|(found, _)| found == server)
            }
            (location, _) => *location == self.location(),
        }
    }

    /// The API server's URL, if its objects are in one.
    pub fn server(&self) -> Option<&str> {
        self.spec().kube.as_ref().map(|kube| kube.server.as_str())
    }

    /// Its objects, for who reads and writes as the command line does.
    pub(crate) fn store(&self) -> Result<AnyStore> {
        Ok(AnyStore::open(&self.location(), Writer::Cli)?)
    }

    /// The directory of a node's agent.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.directory.join("nodes").join(node)
    }

    /// The socket of a node's agent.
    pub fn agent_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("agent.sock")
    }

    /// The node's copy of its join token.
    pub fn join_token(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("join-token")
    }

    /// Where agents write their keys, if they were told to.
    pub fn keys_dir(&self) -> PathBuf {
        self.directory.join("keys")
    }

    /// The log of a process: `supervisor`, `controller`, a node's name, or `n1-vswitchd`.
    pub fn log_path(&self, process: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{process}.log"))
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// What the supervisor last wrote; none before it has.
    pub fn state(&self) -> Result<Option<State>> {
        read_json(&self.state_path())
    }

    /// The process of a node's agent, if it runs now.
    pub fn agent_process(&self, node: &str) -> Option<Process> {
        let state = self.state().ok()??;
        state
            .agents
            .get(node)?
            .process
            .filter(|process| process.is_alive())
    }

    /// The process of a daemon of Open vSwitch or OVN, if it runs now: `n1-ovsdb`, `n1-vswitchd`,
    /// `n1-ovn`, `ovn-nb`, `ovn-sb`, `ovn-northd`.
    pub fn switch_process(&self, name: &str) -> Option<Process> {
        let state = self.state().ok()??;
        let daemon = state.switches.get(name)?;
        daemon.process.filter(|process| process.is_alive())
    }

    /// The controller's process, if it runs now.
    pub fn controller_process(&self) -> Option<Process> {
        let state = self.state().ok()??;
        state
            .controller?
            .process
            .filter(|process| process.is_alive())
    }

    /// The supervisor's process, if it runs now.
    pub fn supervisor_process(&self) -> Option<Process> {
        let state = self.state().ok()??;
        Some(state.supervisor).filter(|process| process.is_alive())
    }

    /// Its namespaces.
    pub fn namespaces(&self) -> Namespaces {
        self.place.namespaces(self.name())
    }

    /// Opens the namespace that a word names: `n1`, `n1/p1`, `pod/n1/p1`, `host/n1`, `underlay`.
    pub fn netns(&self, target: &str) -> Result<OwnedFd> {
        let name = self.layout().find_namespace(target).with_context(|| {
            format!(
                "{target:?} is not in lab {}: one of {}",
                self.name(),
                self.layout().targets()
            )
        })?;
        self.namespaces().open(name)
    }

    /// Runs `run` on a thread inside a namespace of the lab. Sockets opened there stay there.
    pub fn inside<T: Send>(
        &self,
        target: &str,
        run: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        inside(self.netns(target)?.as_fd(), run)
    }

    /// How another program finds a namespace: a name for `ip netns exec` as root, else a path for
    /// `nsenter --user=/proc/PID/ns/user --net=PATH`.
    pub fn netns_for_others(&self, name: &str) -> String {
        match (&self.place, self.supervisor_process()) {
            (Place::Machine, _) => name.to_owned(),
            (_, Some(supervisor)) => format!(
                "/proc/{}/root{}",
                supervisor.pid,
                self.namespaces().path(name).display()
            ),
            (_, None) => self.namespaces().path(name).display().to_string(),
        }
    }

    /// A user's lab can be entered by a new process only. Runs this program again inside, with
    /// the same arguments, and returns how it ended; none where the caller can go on itself.
    pub fn run_inside(&self) -> Result<Option<ExitStatus>> {
        let Place::User { base } = &self.place else {
            return Ok(None);
        };
        let supervisor = self.supervisor_process().with_context(|| {
            format!(
                "the supervisor of lab {0} is gone, and its namespaces with it: testudo lab down --name {0}",
                self.name()
            )
        })?;
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(std::env::args_os().skip(1));
        userns::in_namespace_of(&mut command, supervisor, base)?;
        command.status().map(Some).context("enter the lab")
    }

    /// Replaces this process by `command` in a namespace of the lab. Returns only on failure.
    pub fn exec(&self, target: &str, command: &[String]) -> Result<std::convert::Infallible> {
        let (program, arguments) = command
            .split_first()
            .context("exec: say what to run after --")?;
        let netns = self.netns(target)?;
        testudo_netlink::enter_netns(netns.as_fd())?;
        let error = Command::new(program)
            .args(arguments)
            .env(MARK, self.id())
            .exec();
        Err(error).with_context(|| format!("run {program}"))
    }

    /// The command of a node's agent, or of the controller, for who runs a lab without daemons.
    pub fn daemon_command(&self, agent_of: Option<&str>) -> Result<Command> {
        let role = agent_of.map_or(Role::Controller, |node| Role::Agent(node.to_owned()));
        let mut command = role.command(self)?;
        command.env(MARK, self.id());
        Ok(command)
    }

    /// A program of Open vSwitch or OVN that asks or tells a database: `vs` is a node's, `nb` and `sb`
    /// are OVN's.
    pub fn database_command(&self, database: &str, node: &str, program: &str) -> Result<Command> {
        match database {
            "vs" => Ovs::of(self, node)?.client(program),
            name => Central::of(self).client(name, program),
        }
    }

    /// A command that runs in a namespace of the lab once it is spawned.
    pub fn command(&self, target: &str, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        command.env(MARK, self.id());
        enter_on_spawn(&mut command, self.netns(target)?);
        Ok(command)
    }
}

/// The command's process enters a network namespace before it becomes the program.
pub(crate) fn enter_on_spawn(command: &mut Command, netns: OwnedFd) {
    // SAFETY: setns is one system call, which is allowed between fork and exec; the descriptor is
    // owned by the closure.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::move_into_link_name_space(
                netns.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .map_err(Into::into)
        });
    }
}

/// The name to use when none is given.
pub(crate) fn default_name(place: &Place) -> Result<String> {
    let names = place.names();
    match names.as_slice() {
        [only] => Ok(only.clone()),
        [] => Ok(DEFAULT_NAME.to_owned()),
        several if several.iter().any(|name| name == DEFAULT_NAME) => Ok(DEFAULT_NAME.to_owned()),
        several => bail!(
            "several labs run: choose one with --name: {}",
            several.join(", ")
        ),
    }
}
