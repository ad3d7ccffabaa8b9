//! A lab that is taken down when it goes out of scope, and checks that nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use testudo_agent::api::{Actions, Request, Response, TunnelView, ask};
use testudo_lab::{Process, marked};
use testudo_store::Location;

use super::{Answer, BINARY, run, testudo, wait_until};

/// How long an agent may take to answer.
const AGENT: Duration = Duration::from_secs(5);

/// What `testudo lab up` is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) overlay: &'static str,
    pub(crate) family: &'static str,
    pub(crate) nodes: u16,
    pub(crate) pods: u16,
    pub(crate) export_keys: bool,
    pub(crate) datapath: &'static str,
    /// Pods and tunnels are plugged into Open vSwitch.
    pub(crate) ovs: bool,
    /// As in `n2=user`; of one node.
    pub(crate) datapath_of: Option<&'static str>,
}

impl Options {
    /// Three nodes with a pod each over VXLAN on IPv4.
    pub(crate) const VXLAN: Self = Self {
        overlay: "vxlan",
        family: "v4",
        nodes: 3,
        pods: 1,
        export_keys: false,
        datapath: "auto",
        ovs: false,
        datapath_of: None,
    };
}

/// A lab of this test.
pub(crate) struct Lab {
    name: String,
    lab: testudo_lab::Lab,
    /// ERROR lines in the logs are what the test is about.
    errors_expected: bool,
    gone: bool,
}

/// A name that no lab has, and none that a killed run left behind.
pub(crate) fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    format!(
        "t{}-{:x}-{}",
        std::process::id(),
        now.as_millis() & 0xffff_ffff,
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

impl Lab {
    /// Makes it with the program under test.
    #[track_caller]
    pub(crate) fn up(options: Options) -> Self {
        Self::up_with(Path::new(BINARY), options)
    }

    /// Makes it with a program of this path, which its daemons are started from again, too.
    #[track_caller]
    pub(crate) fn up_with(program: &Path, options: Options) -> Self {
        Self::up_by(program, &[], options)
    }

    /// Makes it with nodes of the API server that a kubeconfig names.
    #[track_caller]
    pub(crate) fn up_on(kubeconfig: &Path, options: Options) -> Self {
        let kubeconfig = kubeconfig.to_str().expect("a path of text");
        Self::up_by(
            Path::new(BINARY),
            &["--store", "kube", "--kubeconfig", kubeconfig],
            options,
        )
    }

    #[track_caller]
    fn up_by(program: &Path, flags: &[&str], options: Options) -> Self {
        let name = unique_name();
        let nodes = options.nodes.to_string();
        let pods = options.pods.to_string();
        let mut arguments = vec!["lab", "up", "--name", &name, "--overlay", options.overlay];
        arguments.extend(["--family", options.family, "--nodes", &nodes]);
        arguments.extend(["--pods", &pods]);
        arguments.extend(["--datapath", options.datapath]);
        if let Some(node) = options.datapath_of {
            arguments.extend(["--datapath-of", node]);
        }
        let ovs = options.ovs.then(open_vswitch);
        if let Some(root) = &ovs {
            arguments.extend(["--switch", "ovs", "--ovs-root", root]);
        }
        if options.export_keys {
            arguments.push("--danger-export-keys");
        }
        let mut command = Command::new(program);
        command.args(flags).args(&arguments);
        run(command).ok();
        let lab = testudo_lab::Lab::open(Some(&name)).expect("a lab that is up can be opened");
        Self {
            name,
            lab,
            errors_expected: false,
            gone: false,
        }
    }

    /// From nothing to Strict, with the time it took on the standard output.
    #[track_caller]
    pub(crate) fn strict(options: Options) -> Self {
        Self::up(options).made_strict()
    }

    /// The same of one that is up.
    #[track_caller]
    pub(crate) fn made_strict(self) -> Self {
        let lab = self;
        let answer = lab.testudo(&["init", "--timeout", "180s"]).ok();
        println!("{}: init took {:.2} s", lab.name, answer.took.as_secs_f32());
        assert_eq!(lab.phase(), "Strict");
        lab
    }

    /// The same with all ESP inside UDP.
    #[track_caller]
    pub(crate) fn made_strict_in_udp(self) -> Self {
        let lab = self;
        let manifest = format!(
            "apiVersion: testudo.dev/v1alpha1\n\
             kind: EncryptionPolicy\n\
             metadata: {{name: cluster}}\n\
             spec:\n  mode: Full\n  overlay: {{type: {}}}\n  full: {{encapsulation: Always}}\n",
            match lab.inner().spec().overlay {
                testudo_lab::Overlay::Vxlan => "VXLAN",
                testudo_lab::Overlay::Geneve => "Geneve",
                other => panic!("no policy for {other}"),
            }
        );
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("policy.yaml");
        fs::write(&file, manifest).expect("a file");
        let file = file.to_str().expect("a path of text");
        lab.testudo(&["apply", "-f", file]).ok();
        wait_until("Strict", Duration::from_secs(180), || {
            let phase = lab.phase();
            (phase == "Strict").then_some(()).ok_or(phase)
        });
        for tunnel in lab.tunnels("n1").expect("an answer") {
            assert_eq!(tunnel.encapsulation.as_deref(), Some("UDP"), "{tunnel:#?}");
        }
        lab
    }

    /// ERROR lines in the logs are no failure in this test.
    pub(crate) fn expect_errors(&mut self) {
        self.errors_expected = true;
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The library's view of it.
    pub(crate) fn inner(&self) -> &testudo_lab::Lab {
        &self.lab
    }

    /// Its nodes are others now.
    pub(crate) fn again(&mut self) {
        self.lab = testudo_lab::Lab::open(Some(&self.name)).expect("it is up");
    }

    /// `dir:PATH` of its store.
    pub(crate) fn store(&self) -> String {
        format!("dir:{}", self.lab.store_dir().display())
    }

    /// Runs a verb on its store.
    #[track_caller]
    pub(crate) fn testudo(&self, arguments: &[&str]) -> Answer {
        let (flag, value) = match self.lab.location() {
            Location::Directory(_) => ("--store", self.store()),
            Location::Kubernetes(at) => {
                let file = at.kubeconfig.expect("a lab's own kubeconfig");
                ("--kubeconfig", file.display().to_string())
            }
        };
        let mut all = vec![flag, &value];
        all.extend(arguments);
        testudo(&all)
    }

    /// What a command says inside a node or pod, by way of `lab exec`.
    #[track_caller]
    pub(crate) fn exec(&self, target: &str, command: &[&str]) -> String {
        let mut all = vec!["lab", "exec", "--name", &self.name, target, "--"];
        all.extend(command);
        testudo(&all).ok().out
    }

    /// Runs a verb on its store and reads what it prints as JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        self.testudo(&all).ok().json()
    }

    /// `lab status -o json`.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        testudo(&["lab", "status", "--name", &self.name, "-o", "json"])
            .ok()
            .json()
    }

    /// `lab verify -o json`, whatever it finds.
    #[track_caller]
    pub(crate) fn verify(&self) -> Answer {
        testudo(&["lab", "verify", "--name", &self.name, "-o", "json"])
    }

    /// The phase, as `lab status` has it.
    #[track_caller]
    pub(crate) fn phase(&self) -> String {
        self.status()["phase"].as_str().unwrap_or("?").to_owned()
    }

    /// Asks a node's agent.
    pub(crate) fn ask(&self, node: &str, request: &Request) -> Result<Response, String> {
        ask(&self.lab.agent_socket(node), request, AGENT).map_err(|e| format!("{e:#}"))
    }

    /// The tunnels of a node as its agent tells them.
    pub(crate) fn tunnels(&self, node: &str) -> Result<Vec<TunnelView>, String> {
        let request = serde_json::from_str(r#"{"get":"tunnels"}"#).expect("a request");
        let response = self.ask(node, &request)?;
        response
            .tunnels
            .ok_or_else(|| format!("{node}: an answer without tunnels"))
    }

    /// Every counter of what a node dropped, with its group: `datapath.replayed`.
    pub(crate) fn drops(
        &self,
        node: &str,
    ) -> Result<std::collections::BTreeMap<String, u64>, String> {
        let request = serde_json::from_str(r#"{"get":"drops"}"#).expect("a request");
        let response = self.ask(node, &request)?;
        let drops = response
            .drops
            .ok_or_else(|| format!("{node}: an answer without drops"))?;
        let groups = [
            ("datapath", drops.datapath),
            ("ike", drops.ike),
            ("failures", drops.failures),
            ("agent", drops.agent),
        ];
        Ok(groups
            .into_iter()
            .flat_map(|(group, counters)| {
                counters
                    .into_iter()
                    .map(move |(reason, count)| (format!("{group}.{reason}"), count))
            })
            .collect())
    }

    /// Has an agent do something with all its peers.
    #[track_caller]
    pub(crate) fn act(&self, node: &str, action: Actions) {
        let request = Request::Do { action, peer: None };
        let response = self
            .ask(node, &request)
            .unwrap_or_else(|e| panic!("{node}: {action:?}: {e}"));
        let result = response
            .action
            .unwrap_or_else(|| panic!("{node}: {action:?}: no result"));
        // A peer that began the same a moment ago is a good reason not to begin.
        println!("{node}: {action:?}: {result:?}");
        assert!(
            result.begun > 0 || !result.refused.is_empty(),
            "{node}: {action:?}: nothing to do it with"
        );
    }

    /// Waits until every tunnel of every node stands.
    #[track_caller]
    pub(crate) fn wait_tunnels(&self, patience: Duration) {
        let others = self.lab.layout().nodes.len() - 1;
        wait_until("all tunnels up", patience, || {
            for node in &self.lab.layout().nodes {
                let tunnels = self.tunnels(&node.name)?;
                let up = tunnels.iter().filter(|tunnel| tunnel.up).count();
                if up < others || up < tunnels.len() {
                    return Err(format!("{}: {up} of {} up", node.name, tunnels.len()));
                }
            }
            Ok(())
        });
    }

    /// The process of a node's agent.
    #[track_caller]
    pub(crate) fn agent(&self, node: &str) -> Process {
        wait_until("an agent's process", AGENT, || {
            self.lab
                .agent_process(node)
                .ok_or_else(|| format!("none on {node}"))
        })
    }

    /// The supervisor's process.
    #[track_caller]
    pub(crate) fn supervisor(&self) -> Process {
        self.lab.supervisor_process().expect("the supervisor runs")
    }

    /// The log of a process.
    pub(crate) fn log(&self, process: &str) -> String {
        fs::read_to_string(self.lab.log_path(process)).unwrap_or_default()
    }

    /// Waits until a process's log, from byte `from` on, holds a line with all these words.
    #[track_caller]
    pub(crate) fn wait_log(&self, process: &str, from: usize, words: &[&str], patience: Duration) {
        wait_until(
            &format!("a line of {process}'s log with {words:?}"),
            patience,
            || {
                let log = self.log(process);
                let fresh = &log.as_bytes()[from.min(log.len())..];
                let fresh = String::from_utf8_lossy(fresh);
                let found = fresh
                    .lines()
                    .any(|line| words.iter().all(|word| line.contains(word)));
                match found {
                    true => Ok(()),
                    false => Err(tail(&fresh, 15)),
                }
            },
        );
    }

    /// Takes it down with the program under test and checks that nothing is left. Done again, it
    /// is still no error.
    #[track_caller]
    pub(crate) fn down(mut self) {
        self.gone = true;
        let logs = self.logs();
        testudo(&["lab", "down", "--name", &self.name]).ok();
        self.check_gone();
        testudo(&["lab", "down", "--name", &self.name]).ok();
        self.check_logs(&logs);
    }

    #[track_caller]
    fn check_gone(&self) {
        let left = self.left();
        assert!(left.is_empty(), "lab {} left: {left:?}", self.name);
    }

    /// What of it is still on the machine.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let prefix = format!("testudo-{}-", self.name);
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) {
                left.push(format!("namespace {name}"));
            }
        }
        if self.lab.directory().exists() {
            left.push(self.lab.directory().display().to_string());
        }
        for process in marked(self.lab.id()) {
            left.push(format!("process {}", process.pid));
        }
        left
    }

    fn logs(&self) -> Vec<(PathBuf, String)> {
        let mut logs: Vec<_> = fs::read_dir(self.lab.directory().join("logs"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .map(|path| (path.clone(), fs::read_to_string(path).unwrap_or_default()))
            .collect();
        logs.sort();
        if let Some(folder) = std::env::var_os("TESTUDO_GUEST_SHARED") {
            let folder = Path::new(&folder).join(&self.name);
            let _ = fs::create_dir_all(&folder);
            for (path, text) in &logs {
                let _ = fs::write(folder.join(path.file_name().unwrap_or_default()), text);
            }
        }
        logs
    }

    /// A panic is always a bug; an ERROR where none was provoked too.
    #[track_caller]
    fn check_logs(&self, logs: &[(PathBuf, String)]) {
        for (path, text) in logs {
            let bad = text.lines().find(|line| {
                line.contains("panicked at") || (!self.errors_expected && line.contains(" ERROR "))
            });
            if let Some(line) = bad {
                panic!("{}: {line}", path.display());
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let logs = self.logs();
        if std::thread::panicking() {
            println!("=== lab {}: the ends of its logs", self.name);
            for (path, text) in &logs {
                println!("--- {}\n{}", path.display(), tail(text, 40));
            }
        }
        // Stopped processes do not heed SIGTERM; down would wait for them in vain.
        for process in marked(self.lab.id()) {
            process.signal(Signal::CONT);
        }
        let answer = testudo(&["lab", "down", "--name", &self.name]);
        if std::thread::panicking() {
            println!("{answer}\nleft: {:?}", self.left());
            return;
        }
        answer.ok();
        self.check_gone();
        self.check_logs(&logs);
    }
}

/// Where `cargo xtask packages` has unpacked Open vSwitch: below the folder that cargo builds into.
#[track_caller]
fn open_vswitch() -> String {
    let program = std::env::current_exe().expect("the running program's path");
    let mut above = program.ancestors();
    let target = above.find(|folder| folder.join(".rustc_info.json").is_file());
    let root = target
        .expect("a target folder")
        .join("interop/openvswitch/root");
    assert!(root.is_dir(), "no Open vSwitch: cargo xtask packages");
    root.display().to_string()
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
