//! One cluster, from its start to its end.

use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::certificates::{private_file, private_folder};
use crate::control_plane::{self, Component};
use crate::network::{self, Between, Network};
use crate::nodes::{self, NewNode};
use crate::place::{self, LOGS, OWNER, RECORD, SLOT};
use crate::process::{self, Process};
use crate::programs::{self, CONTROL_PLANE, KUBECTL};
use crate::wait;

/// How long each step of a start may take: many times what it takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// How a cluster is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name, of which there is one at a time.
    pub name: String,
    /// How many nodes it has; without one there is nothing that runs pods.
    pub nodes: u8,
    /// How pods' packets reach other nodes.
    pub between: Between,
    /// Whether it stays when the process that makes it ends.
    pub stays: bool,
}

impl Options {
    /// A cluster that ends with the process that makes it.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 0,
            between: Between::Vxlan,
            stays: false,
        }
    }
}

/// A process of a cluster, as it is seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What it is.
    pub name: String,
    /// Its PID.
    pub pid: i32,
    /// Its resident memory in KiB; none: it has ended.
    pub memory: Option<u64>,
}

/// A cluster that runs. One that does not stay ends when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    network: Network,
    stays: bool,
}

impl Cluster {
    /// Starts a cluster and waits until its API server answers and its controllers work. Programs
    /// that are not there are built, which takes minutes; `say` hears of all that takes long.
    ///
    /// What another cluster of that name left behind is removed first; if that one runs still, and
    /// is another process's, it is an error. A start that fails leaves nothing but its logs, which
    /// the error names.
    pub fn up(options: &Options, say: &dyn Fn(&str)) -> Result<Self> {
        let name = &options.name;
        place::check_name(name)?;
        let mut wanted = CONTROL_PLANE.to_vec();
        if options.nodes > 0 {
            wanted.extend(programs::NODES);
        }
        programs::ensure(&wanted, say)?;
        place::sweep(say)?;
        let lock = place::lock(name, say)?;
        let directory = place::directory(name);
        let recorded = Process::recorded(&directory.join(RECORD));
        if recorded.iter().any(Process::is_alive) {
            bail!("cluster {name} runs already; end it with: cargo xtask kube down --name {name}");
        }
        place::remove(name)?;
        Self::start(options, say).map_err(|error| {
            let logs = place::keep_logs(name);
            let removed = place::remove(name);
            lock.remove();
            let mut error = error.context(format!("cluster {name} could not be started"));
            if let Some(logs) = logs {
                error = error.context(format!("all logs are in {}", logs.display()));
            }
            match removed {
                Ok(_) => error,
                Err(also) => error.context(format!("and not be removed: {also:#}")),
            }
        })
    }

    /// A cluster that runs and that another process made. It goes on when this is dropped.
    pub fn open(name: &str) -> Result<Self> {
        place::check_name(name)?;
        let slot = place::directory(name).join(SLOT);
        let text = fs::read_to_string(&slot)
            .with_context(|| format!("no cluster {name}: cargo xtask kube up --name {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            network: Network::parse(&text)?,
            stays: true,
        })
    }

    fn start(options: &Options, say: &dyn Fn(&str)) -> Result<Self> {
        let name = &options.name;
        let directory = place::directory(name);
        private_folder(&directory.join(LOGS))?;
        if !options.stays {
            let owner = Process::own("owner")?;
            private_file(&directory.join(OWNER), owner.line().as_bytes())?;
        }
        let network = Network::create(&place::namespace(name), options.between)?;
        private_file(&directory.join(SLOT), network.to_string().as_bytes())?;
        control_plane::prepare(&directory, network)?;
        let mut cluster = Self {
            name: name.clone(),
            network,
            // A failure is cleaned up by the caller, which holds the lock.
            stays: true,
        };
        cluster.link_programs()?;
        cluster.start_component(Component::Etcd)?;
        cluster.start_component(Component::ApiServer)?;
        cluster.answers()?;
        // It reads from the API server as it starts, and ends where it may not.
        cluster.start_component(Component::ControllerManager)?;
        cluster.ready()?;
        say(&format!(
            "cluster {name}: {}",
            control_plane::server(network)
        ));
        if options.nodes > 0 {
            cluster.start_component(Component::Scheduler)?;
            nodes::start(&cluster, options.nodes, say)?;
        }
        cluster.stays = options.stays;
        Ok(cluster)
    }

    /// Starts a process of the control plane that does not run, and waits for nothing.
    pub fn start_component(&self, component: Component) -> Result<()> {
        let directory = self.directory();
        let netns = network::path(&place::namespace(&self.name));
        let netns = format!("--net={}", netns.display());
        let mut words = vec!["nsenter".to_owned(), netns];
        words.extend(component.words(&directory, self.network)?);
        let name = component.name();
        let log = self.log(name);
        Process::start(name, &words, &log, &self.record())?;
        Ok(())
    }

    /// Ends a process of the control plane, as an outage does; the rest goes on.
    pub fn stop_component(&self, component: Component) -> Result<()> {
        let mut processes = Process::recorded(&self.record());
        processes.retain(|process| process.name == component.name());
        match process::end(&processes).first() {
            Some(left) => bail!("{} (PID {}) does not end", left.name, left.pid()),
            None => Ok(()),
        }
    }

    /// Waits until the API server says that it is ready.
    fn answers(&self) -> Result<()> {
        let needed = self.running();
        let logs = self.directory().join(LOGS);
        wait::until(
            "the API server is not ready",
            PATIENCE,
            &needed,
            &logs,
            || self.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"]),
        )?;
        Ok(())
    }

    /// Waits until the API server answers and the controllers do their work.
    pub fn ready(&self) -> Result<()> {
        self.answers()?;
        let needed = self.running();
        let logs = self.directory().join(LOGS);
        // The controller manager makes it: pods could not be created without it.
        wait::until(
            "the controllers do not work",
            PATIENCE,
            &needed,
            &logs,
            || self.kubectl(&["get", "serviceaccount", "default", "--request-timeout=5s"]),
        )?;
        Ok(())
    }

    /// Where its processes are recorded.
    pub(crate) fn record(&self) -> PathBuf {
        self.directory().join(RECORD)
    }

    /// Those of its processes that run.
    pub(crate) fn running(&self) -> Vec<Process> {
        let mut processes = Process::recorded(&self.record());
        processes.retain(Process::is_alive);
        processes
    }

    pub(crate) fn network(&self) -> Network {
        self.network
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory: kubeconfigs, certificates, data, and the logs in `logs`.
    pub fn directory(&self) -> PathBuf {
        place::directory(&self.name)
    }

    /// The kubeconfig of an administrator. The API server is reached from the machine's own network
    /// namespace, and from the cluster's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory().join("kubeconfig")
    }

    /// The API server's URL.
    pub fn server(&self) -> String {
        control_plane::server(self.network)
    }

    /// The log of a process of the cluster.
    pub fn log(&self, process: &str) -> PathBuf {
        self.directory().join(LOGS).join(format!("{process}.log"))
    }

    /// A folder for the `PATH`: kubectl, and what else was built or put there.
    pub fn programs(&self) -> PathBuf {
        self.directory().join("bin")
    }

    /// kubectl as administrator of this cluster.
    pub fn kubectl_command(&self) -> Result<Command> {
        let mut command = Command::new(KUBECTL.path()?);
        command
            .env("KUBECONFIG", self.kubeconfig())
            // What it caches of one cluster is not for the next under the same address.
            .env("KUBECACHEDIR", self.directory().join("cache"))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs kubectl; what it printed, or an error with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .kubectl_command()?
            .args(arguments)
            .output()
            .context("kubectl could not be started")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), text.trim());
        }
        String::from_utf8(output.stdout).context("kubectl printed no text")
    }

    /// The numbers of its nodes, in order.
    pub fn nodes(&self) -> Vec<u8> {
        nodes::numbers(self)
    }

    /// Adds a node to a cluster that has some, and waits until it is ready for pods; its number.
    pub fn add_node(&self, new: NewNode<'_>, say: &dyn Fn(&str)) -> Result<u8> {
        let _lock = place::lock(&self.name, say)?;
        ensure!(
            !self.nodes().is_empty(),
            "cluster {0} was made without nodes: cargo xtask kube up --name {0} --nodes 1",
            self.name
        );
        nodes::add(self, new, say)
    }

    /// Takes a node away, as when its machine is switched off for good: its processes and pods end, and the
    /// others lose the way to it. Its Node object stays until somebody deletes it, as in every cluster.
    pub fn remove_node(&self, number: u8) -> Result<()> {
        let _lock = place::lock(&self.name, &|_| ())?;
        nodes::remove(self, number)
    }

    /// A command that runs in a node, as root there: its network, its mounts, its processes. Nodes
    /// count from 1. The program and its arguments are to be added.
    pub fn node_command(&self, number: u8) -> Result<Command> {
        nodes::enter(self, number)
    }

    /// A folder that leads to a node's files as the node sees them: its `/run` and `/var/lib` are its own.
    pub fn node_root(&self, number: u8) -> Result<PathBuf> {
        nodes::root(self, number)
    }

    /// A node's network namespace.
    pub fn node_namespace(&self, number: u8) -> Result<OwnedFd> {
        nodes::namespace(self, number)
    }

    /// The network namespace of the pod on a node that has this address.
    pub fn pod_namespace(&self, number: u8, address: IpAddr) -> Result<OwnedFd> {
        nodes::pod_namespace(self, number, address)
    }

    /// The name of the network namespace whose bridge joins all nodes: its ports `node1`, ... are the links
    /// of the underlay.
    pub fn underlay(&self) -> String {
        place::namespace(&self.name)
    }

    /// Loads an image (an archive in the OCI's layout) into a node.
    pub fn load_image(&self, number: u8, archive: &Path) -> Result<()> {
        nodes::load(self, number, archive)
    }

    /// Its processes, also those that have ended.
    pub fn processes(&self) -> Vec<State> {
        Process::recorded(&self.record())
            .iter()
            .map(|process| State {
                name: process.name.clone(),
                pid: process.pid(),
                memory: process.memory().filter(|_| process.is_alive()),
            })
            .collect()
    }

    /// Ends it now; what could not be ended is an error, where a drop would be silent.
    pub fn down(mut self) -> Result<()> {
        self.stays = true;
        place::down(&self.name, &|_| ())?;
        if place::is_there(&self.name) {
            bail!("cluster {} is still there", self.name);
        }
        Ok(())
    }

    fn link_programs(&self) -> Result<()> {
        let folder = self.programs();
        private_folder(&folder)?;
        for program in [&KUBECTL, &programs::HELM_CLIENT] {
            link(&folder, program.name, &program.path()?)?;
        }
        Ok(())
    }

    /// Puts a program into the folder for the `PATH` under a name, in the place of what is there.
    pub fn link_program(&self, name: &str, program: &Path) -> Result<()> {
        link(&self.programs(), name, program)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if std::thread::panicking()
            && let Some(logs) = place::keep_logs(&self.name)
        {
            eprintln!("cluster {}: its logs are in {}", self.name, logs.display());
        }
        if let Err(error) = place::down(&self.name, &|_| ()) {
            eprintln!("cluster {} could not be ended: {error:#}", self.name);
        }
    }
}

fn link(folder: &Path, name: &str, program: &Path) -> Result<()> {
    let path = folder.join(name);
    let partial = folder.join(format!(".{name}"));
    let _ = fs::remove_file(&partial);
    std::os::unix::fs::symlink(program, &partial)
        .and_then(|()| fs::rename(&partial, &path))
        .with_context(|| path.display().to_string())
}
