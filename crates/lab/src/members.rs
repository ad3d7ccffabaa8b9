//! Nodes that come to a lab that is up, and go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use testudo_model::NodeName;
use testudo_store::{DirStore, removed};

use crate::build;
use crate::kube;
use crate::lab::Lab;
use crate::layout::NodeLayout;
use crate::lifecycle::Progress;
use crate::place::make_directory;
use crate::spec::{MAX_NODES, Switch};

/// How long the controller may take to remove what a node was.
const PATIENCE: Duration = Duration::from_secs(60);

impl Lab {
    /// Adds a node with as many pods as the others have, and waits for its agent's first word. The lab as
    /// it is now, and the node's name. When this fails nothing of the node is left here.
    pub fn add_node(&self, progress: Progress<'_>) -> Result<(Self, String)> {
        let (lab, name) = {
            let _lock = self.place().lock()?;
            // Somebody else may have added one meanwhile.
            self.again()?.build_one(progress)?
        };
        lab.reload()?;
        if lab.spec().daemons {
            lab.wait_for_agents(progress)?;
        }
        Ok((lab, name))
    }

    /// Throws a node out of the cluster, waits until the controller has seen to that, and removes it. The
    /// lab as it is now.
    pub fn remove_node(&self, name: &str, progress: Progress<'_>) -> Result<Self> {
        let node = self.layout().node(name).cloned();
        let node = node.with_context(|| format!("no node {name} in lab {}", self.name()))?;
        self.changeable()?;
        progress(&format!("{name} is thrown out of the cluster"));
        match self.server() {
            Some(_) => kube::remove_node(self, name)?,
            None => removed::mark(&DirStore::open(self.store_dir())?, &NodeName::new(name)?)?,
        }
        if self.spec().daemons {
            self.wait_forgotten(name)?;
        }
        let lab = {
            let _lock = self.place().lock()?;
            let now = self.again()?;
            let mut layout = now.layout().clone();
            layout.nodes.retain(|other| other.name != name);
            let lab = now.with(now.spec().clone(), layout);
            lab.write()?;
            lab
        };
        lab.reload()?;
        let start = Instant::now();
        while self.agent_process(name).is_some() {
            ensure!(
                start.elapsed() < PATIENCE,
                "the agent of {name} does not end"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        lab.clear_away(&node)?;
        Ok(lab)
    }

    fn again(&self) -> Result<Self> {
        let read = Self::read(self.place().clone(), self.name())?;
        read.with_context(|| format!("lab {} is gone", self.name()))
    }

    fn changeable(&self) -> Result<()> {
        ensure!(
            self.spec().switch() == Switch::Linux,
            "nodes of a lab with Open vSwitch are those that it was made with"
        );
        ensure!(
            self.supervisor_process().is_some(),
            "the supervisor of lab {0} is gone: testudo lab down --name {0}",
            self.name()
        );
        Ok(())
    }

    fn build_one(&self, progress: Progress<'_>) -> Result<(Self, String)> {
        self.changeable()?;
        let mut spec = self.spec().clone();
        ensure!(
            spec.nodes < MAX_NODES,
            "a lab has at most {MAX_NODES} nodes in its life"
        );
        // Numbers of nodes that are gone are not used again.
        spec.nodes += 1;
        let node = NodeLayout::new(&spec, spec.nodes);
        let mut layout = self.layout().clone();
        layout.nodes.push(node.clone());
        let lab = self.with(spec, layout);
        progress(&format!("adding {}", node.name));
        make_directory(&lab.node_dir(&node.name))?;
        let made = build::add(lab.layout(), &node, &lab.namespaces()).and_then(|()| {
            match lab.server() {
                Some(_) => kube::install_node(&lab, &node.name)?,
                None => lab.give_token(&node.name)?,
            }
            lab.write()
        });
        if let Err(error) = made {
            let error = error.context(format!("add node {}", node.name));
            return match lab.clear_away(&node) {
                Ok(()) => Err(error),
                Err(second) => {
                    Err(error.context(format!("and it could not be removed: {second:#}")))
                }
            };
        }
        Ok((lab, node.name))
    }

    /// Has the supervisor read `lab.json` again.
    fn reload(&self) -> Result<()> {
        match self.supervisor_process() {
            Some(supervisor) if supervisor.signal(Signal::HUP) => Ok(()),
            _ => bail!("the supervisor of lab {} is gone", self.name()),
        }
    }

    fn wait_forgotten(&self, name: &str) -> Result<()> {
        let start = Instant::now();
        while self.cluster()?.nodes.contains_key(name) {
            ensure!(
                start.elapsed() < PATIENCE,
                "the controller has not removed {name} after {} s: {}",
                PATIENCE.as_secs(),
                crate::lifecycle::tail(&self.log_path("controller"))
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn clear_away(&self, node: &NodeLayout) -> Result<()> {
        let namespaces = self.namespaces();
        for pod in &node.pods {
            namespaces.delete(&pod.netns)?;
        }
        namespaces.delete(&node.netns)?;
        match std::fs::remove_dir_all(self.node_dir(&node.name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove the directory of {}", node.name))
            }
            _ => Ok(()),
        }
    }
}
