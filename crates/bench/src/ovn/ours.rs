//! Testudo: a controller, and an agent on each node, kept running as the kubelet would.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use testudo_lab::Lab;

use super::sides::{PAUSE_STOPPED, Side, run};

/// How long an agent may take to answer after its start.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same of a change of the whole cluster.
const CHANGE: &str = "300s";

/// It in a lab.
pub(super) struct Ours<'a> {
    lab: &'a Lab,
    /// The program.
    testudo: PathBuf,
    controller: Option<Child>,
    agents: BTreeMap<&'static str, Child>,
}

impl<'a> Ours<'a> {
    /// On the nodes `n1` and `n2`; off.
    pub(super) fn new(lab: &'a Lab) -> anyhow::Result<Self> {
        let mut ours = Self {
            lab,
            testudo: lab.spec().binary.clone(),
            controller: None,
            agents: BTreeMap::new(),
        };
        ours.controller = Some(ours.daemon(None)?);
        for node in ["n1", "n2"] {
            ours.start_agent(node)?;
        }
        // A roll-out is of the nodes that have said that they are there.
        ours.wait_nodes(2)?;
        Ok(ours)
    }

    fn daemon(&self, agent_of: Option<&str>) -> anyhow::Result<Child> {
        let log = self.lab.log_path(agent_of.unwrap_or("controller"));
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.lab.daemon_command(agent_of)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command.spawn().context("start a daemon")
    }

    fn start_agent(&mut self, node: &'static str) -> anyhow::Result<()> {
        let agent = self.daemon(Some(node))?;
        self.agents.insert(node, agent);
        Ok(())
    }

    /// Ends an agent by a signal.
    fn end_agent(&mut self, node: &'static str, signal: &str) -> anyhow::Result<()> {
        let mut agent = self.agents.remove(node).context("no such agent")?;
        run(Command::new("kill").args([signal, &agent.id().to_string()]))?;
        agent.wait().context("wait for an agent")?;
        Ok(())
    }

    /// Waits until a node's agent listens: by then the rules that it kept are in force.
    fn wait_agent(&self, node: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        let socket = self.lab.agent_socket(node);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            ensure!(begin.elapsed() < PATIENCE, "{node}: its agent is silent");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_nodes(&self, number: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let nodes = self.lab.cluster()?.nodes.len();
            if nodes >= number {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "{nodes} of {number} nodes are there"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every tunnel is in UDP.
    fn wait_encapsulated(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let said = self.verb(&["status", "--tunnels", "-o", "json"]).output();
            let text =
                String::from_utf8_lossy(&said.context("testudo status")?.stdout).replace(": ", ":");
            let all = text.matches("\"encapsulation\":").count();
            let in_udp = text.matches("\"encapsulation\":\"UDP").count();
            if all > 0 && all == in_udp {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "{in_udp} of {all} tunnels are in UDP"
            );
        }
    }

    fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.testudo);
        command
            .arg("--store")
            .arg(format!("dir:{}", self.lab.store_dir().display()))
            .args(words);
        command
    }
}

impl Side for Ours<'_> {
    fn switch(&mut self, on: bool) -> anyhow::Result<()> {
        let verb = if on { "init" } else { "stop" };
        run(&mut self.verb(&[verb, "--timeout", CHANGE]))
    }

    fn replace_certificate(&mut self) -> anyhow::Result<()> {
        run(&mut self.verb(&["certs", "rotate", "--timeout", CHANGE]))
    }

    fn kill_ike(&mut self) -> anyhow::Result<()> {
        self.end_agent("n1", "-9")?;
        self.start_agent("n1")
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.end_agent("n1", "-15")?;
        self.start_agent("n1")
    }

    fn stop_and_start(&mut self) -> anyhow::Result<()> {
        self.end_agent("n1", "-15")?;
        std::thread::sleep(PAUSE_STOPPED);
        self.start_agent("n1")
    }

    fn crash(&mut self) -> anyhow::Result<()> {
        self.end_agent("n1", "-9")
    }

    fn start_after_crash(&mut self) -> anyhow::Result<()> {
        self.start_agent("n1")?;
        self.wait_agent("n1")
    }

    fn add_third(&mut self) -> anyhow::Result<()> {
        self.start_agent("n3")?;
        self.wait_agent("n3")?;
        self.wait_nodes(3)
    }

    fn encapsulate(&mut self, always: bool) -> anyhow::Result<()> {
        let said = self
            .verb(&["get", "policy", "cluster", "-o", "json"])
            .output();
        let said = said.context("testudo get policy")?;
        let mut policy: Value = serde_json::from_slice(&said.stdout).context("the policy")?;
        // One object, or a list of one.
        let one = match policy["items"].get_mut(0) {
            Some(item) => item.take(),
            None => policy.take(),
        };
        let mut manifest = serde_json::json!({
            "apiVersion": one["apiVersion"],
            "kind": one["kind"],
            "metadata": {"name": one["metadata"]["name"]},
            "spec": one["spec"],
        });
        let mode = if always { "Always" } else { "Auto" };
        manifest["spec"]["full"]["encapsulation"] = Value::from(mode);
        let file = self.lab.directory().join("encapsulated.json");
        std::fs::write(&file, manifest.to_string())?;
        let file = file.to_str().context("the lab's folder is not text")?;
        run(&mut self.verb(&["apply", "-f", file]))?;
        match always {
            true => self.wait_encapsulated(),
            false => Ok(()),
        }
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        bail!("traffic did not come back")
    }
}

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        let daemons = self.agents.values_mut().chain(&mut self.controller);
        for daemon in daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
