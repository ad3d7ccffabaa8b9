//! The agents of a Kubernetes cluster, asked through its API server: the program runs once more in an
//! agent's pod (`kubectl exec`), where the agent's socket and the node's links are.
//!
//! kubectl does the asking: who has credentials for a cluster has them for kubectl, exec plugins and proxies
//! included.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use testudo_store::{Kubernetes, Location};

use crate::global::Global;
use crate::store;

/// The labels of agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=testudo,app.kubernetes.io/component=agent";

/// The agent's container in its pod.
const CONTAINER: &str = "agent";

/// The longest that the API server may take for a list of pods.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    name: String,
    container: String,
    /// Why nothing can be run in it.
    trouble: Option<String>,
}

/// The agents' pods by the names of their nodes, and how they are reached.
pub(crate) struct Pods {
    kubectl: Kubectl,
    by_node: BTreeMap<String, Pod>,
}

struct Kubectl {
    at: Kubernetes,
    namespace: String,
}

impl Pods {
    /// Asks the API server; `None` where the store is no cluster's.
    pub(crate) fn find(global: &Global) -> anyhow::Result<Option<Self>> {
        let Location::Kubernetes(at) = store::resolve(global)? else {
            return Ok(None);
        };
        let namespace = global.namespace().to_owned();
        let kubectl = Kubectl { at, namespace };
        let mut command = kubectl.command();
        command.args(["get", "pods", "-l", AGENTS, "-o", "json"]);
        command.arg("--request-timeout=15s");
        let answer = run(command, PATIENCE)?;
        if !answer.status.success() {
            bail!(
                "the agents' pods cannot be listed: {}",
                last_line(&answer.stderr)
            );
        }
        let list: Value = serde_json::from_slice(&answer.stdout)
            .context("what kubectl printed of the agents' pods is not JSON")?;
        let by_node = pods(&list);
        Ok(Some(Self { kubectl, by_node }))
    }

    /// The nodes that have an agent's pod.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.by_node.keys().map(String::as_str)
    }

    /// A command that runs `testudo` with these words in the pod of a node's agent.
    pub(crate) fn testudo(&self, node: &str, words: &[&str]) -> anyhow::Result<Command> {
        let namespace = &self.kubectl.namespace;
        let Some(pod) = self.by_node.get(node) else {
            bail!(
                "no agent's pod runs on {node} in namespace {namespace} (label {AGENTS}); another \
                 namespace is named with -n"
            );
        };
        if let Some(trouble) = &pod.trouble {
            bail!(
                "the agent's pod {namespace}/{} on {node} {trouble}",
                pod.name
            );
        }
        let mut command = self.kubectl.command();
        command.args(["exec", &pod.name, "-c", &pod.container, "--", "testudo"]);
        command.args(words);
        Ok(command)
    }

    /// Runs `testudo` in the pod of a node's agent to its end; what it printed. An exit code other than 0
    /// is an error only if it printed nothing.
    pub(crate) fn ask(
        &self,
        node: &str,
        words: &[&str],
        patience: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        let answer = run(self.testudo(node, words)?, patience)?;
        if answer.stdout.is_empty() {
            bail!("{}", last_line(&answer.stderr));
        }
        Ok(answer.stdout)
    }
}

impl Kubectl {
    fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        if let Some(file) = &self.at.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &self.at.context {
            command.args(["--context", context]);
        }
        command.args(["-n", &self.namespace]);
        command.stdin(Stdio::null());
        command
    }
}

/// What a list of pods says: of several on a node one that is ready comes first.
fn pods(list: &Value) -> BTreeMap<String, Pod> {
    let mut by_node: BTreeMap<String, Pod> = BTreeMap::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let Some(node) = item.pointer("/spec/nodeName").and_then(Value::as_str) else {
            continue;
        };
        let pod = pod(item);
        match by_node.get(node) {
            Some(other) if other.trouble.is_none() => {}
            _ => {
                by_node.insert(node.to_owned(), pod);
            }
        }
    }
    by_node
}

fn pod(item: &Value) -> Pod {
    let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
    let containers = item.pointer("/spec/containers").and_then(Value::as_array);
    let mut names = containers
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str());
    let first = names.clone().next().unwrap_or(CONTAINER);
    let container = names.find(|name| *name == CONTAINER).unwrap_or(first);
    let phase = text("/status/phase").unwrap_or("Unknown");
    let states = item
        .pointer("/status/containerStatuses")
        .and_then(Value::as_array);
    let state = states
        .into_iter()
        .flatten()
        .find(|state| state["name"].as_str() == Some(container));
    let runs = state.is_some_and(|state| state.pointer("/state/running").is_some());
    let why = state.and_then(|state| state.pointer("/state/waiting/reason"));
    let trouble = match (
        text("/metadata/deletionTimestamp"),
        runs,
        why.and_then(Value::as_str),
    ) {
        (Some(_), _, _) => Some("is being deleted".to_owned()),
        (None, true, _) => None,
        (None, false, Some(why)) => Some(format!("does not run: {why}")),
        (None, false, None) => Some(format!("does not run: it is {phase}")),
    };
    Pod {
        name: text("/metadata/name").unwrap_or_default().to_owned(),
        container: container.to_owned(),
        trouble,
    }
}

/// Runs a command to its end, and no longer than `patience`.
fn run(mut command: Command, patience: Duration) -> anyhow::Result<Output> {
    let mut child = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                bail!(
                    "no answer through the API server within {} s",
                    patience.as_secs()
                );
            }
        }
    };
    Ok(Output {
        status,
        stdout: out.join().unwrap_or_default(),
        stderr: err.join().unwrap_or_default(),
    })
}

/// Starts kubectl, or says that it is missing.
pub(crate) fn start(command: &mut Command) -> anyhow::Result<Child> {
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!(
            "kubectl is not on the PATH: the agents of a cluster are asked through it"
        ),
        _ => anyhow::Error::new(error).context("kubectl cannot be started"),
    })
}

/// What is kept of what a pod says, bytes: the tunnels of a node among thousands take less.
const MOST_SAID: u64 = 64 << 20;

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pod says what it likes, and as much.
            let _ = pipe.by_ref().take(MOST_SAID).read_to_end(&mut bytes);
            // What is left is let go, so that its writer comes to its end.
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        bytes
    })
}

/// The last thing that was said, which is why it failed.
pub(crate) fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    // "command terminated with exit code 1" stands behind what the command said.
    let said = |line: &&str| !line.starts_with("command terminated");
    let last = lines.clone().rfind(said).or_else(|| lines.next_back());
    last.unwrap_or("kubectl said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(name: &str, node: Option<&str>, containers: &[&str], state: Value) -> Value {
        let names: Vec<Value> = containers
            .iter()
            .map(|name| json!({ "name": name }))
            .collect();
        json!({
            "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": names },
            "status": {
                "phase": "Running",
                "containerStatuses": [{ "name": containers[0], "state": state }],
            },
        })
    }

    #[test]
    fn the_pod_that_runs_is_taken_and_of_others_it_is_said_why_not() {
        let running = json!({ "running": {} });
        let waiting = json!({ "waiting": { "reason": "ImagePullBackOff" } });
        let mut going = item("going", Some("n3"), &["agent"], running.clone());
        going["metadata"]["deletionTimestamp"] = json!("2026-11-28T12:00:00Z");
        let found = pods(&json!({ "items": [
            item("old", Some("n1"), &["agent", "keeper"], waiting.clone()),
            item("new", Some("n1"), &["agent", "keeper"], running.clone()),
            item("stuck", Some("n2"), &["main"], waiting),
            item("nowhere", None, &["agent"], running),
            going,
        ] }));
        assert_eq!(found.len(), 3);
        assert_eq!((&*found["n1"].name, &found["n1"].trouble), ("new", &None));
        assert_eq!(found["n2"].container, "main");
        assert!(
            found["n2"]
                .trouble
                .as_ref()
                .unwrap()
                .contains("ImagePullBackOff")
        );
        assert!(found["n3"].trouble.as_ref().unwrap().contains("deleted"));
    }

    #[test]
    fn of_what_was_said_the_reason_is_told() {
        for (said, wanted) in [
            (
                "E1128 memcache.go\nError from server (Forbidden): no\n",
                "Error from server (Forbidden): no",
            ),
            (
                "testudo: no\ncommand terminated with exit code 1\n",
                "testudo: no",
            ),
            (
                "command terminated with exit code 137",
                "command terminated with exit code 137",
            ),
            ("", "kubectl said nothing"),
        ] {
            assert_eq!(last_line(said.as_bytes()), wanted);
        }
    }
}
