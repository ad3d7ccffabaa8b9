//! The story of a lab on an API server, for either datapath.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::Value;
use testudo_agent::api::{Actions, Gettable, Request, StatusView};
use testudo_kube_env::{Cluster, Component, Options as KubeOptions};

use crate::common::{Flow, Lab, Load, Options, Watch, seconds, testudo, wait_until};

/// What anything may take on a busy machine.
const LONG: u64 = 240;

struct World {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl World {
    fn up() -> Self {
        let cluster = Cluster::up(&KubeOptions::named("lab-kube"), &|line| eprintln!("{line}"));
        Self {
            cluster: cluster.expect("a control plane"),
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    #[track_caller]
    fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(arguments).expect("kubectl")
    }

    fn names(&self, kind: &str) -> Vec<String> {
        let listed = self.kubectl(&["get", kind, "-o", "name"]);
        listed.lines().map(str::to_owned).collect()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    /// A Node as a lab makes it, or as somebody else does.
    fn make_node(&self, name: &str, lab: Option<&str>) {
        let labels = lab.map(|lab| format!(", labels: {{ testudo.dev/lab: {lab} }}"));
        let manifest = format!(
            "{{ apiVersion: v1, kind: Node, metadata: {{ name: {name}{} }} }}",
            labels.unwrap_or_default()
        );
        let file = self.dir.path().join("node.yaml");
        std::fs::write(&file, manifest).expect("a manifest");
        self.kubectl(&["create", "-f", &file.display().to_string()]);
    }

    fn revocation_lists(&self) -> usize {
        let bundle = self.json(&["get", "trustbundle", "cluster"]);
        let lists = bundle["spec"]["revocationLists"].as_str();
        lists.unwrap_or_default().matches("BEGIN X509 CRL").count()
    }
}

/// One step after the other, each named before it begins: the name is the last line before a failure.
fn step(name: &str) {
    println!("-- {name}");
}

#[track_caller]
fn status_of(lab: &Lab, node: &str) -> Result<StatusView, String> {
    let get = Gettable::Status;
    let response = lab.ask(node, &Request::Get { get })?;
    response.status.ok_or_else(|| format!("{node}: no status"))
}

/// Waits until each of these agents finds the store away, or there.
#[track_caller]
fn wait_store(lab: &Lab, away: bool) {
    wait_until("the agents' word on the store", seconds(LONG), || {
        for node in &lab.inner().layout().nodes {
            let since = status_of(lab, &node.name)?.store_away_since;
            if since.is_some() != away {
                return Err(format!("{}: away since {since:?}", node.name));
            }
        }
        Ok(())
    });
}

fn flow(lab: &Lab, from: usize, to: usize) -> Flow {
    let nodes = &lab.inner().layout().nodes;
    Flow {
        from: format!("{}/p1", nodes[from].name),
        to: format!("{}/p1", nodes[to].name),
        address: nodes[to].pods[0].addresses[0],
    }
}

/// How far the rotation of the CA is; an API server that is busy may not say.
fn rotation(lab: &Lab) -> Result<Value, String> {
    let answer = lab.testudo(&["ca", "show", "-o", "json"]);
    match answer.code {
        Some(0) => Ok(answer.json()["rotation"].clone()),
        _ => Err(answer.to_string()),
    }
}

/// Waits until the API server, which may be busy, has this phase.
#[track_caller]
fn phase_is(lab: &Lab, phase: &str) {
    wait_until(phase, seconds(LONG), || {
        let answer = lab.testudo(&["get", "policy", "cluster", "-o", "json"]);
        match answer.code {
            Some(0) if answer.json()["status"]["phase"] == phase => Ok(()),
            _ => Err(answer.to_string()),
        }
    });
}

/// Waits until every flow is as the phase says.
#[track_caller]
fn as_expected(lab: &Lab) {
    wait_until("flows as expected", seconds(LONG), || match lab.verify() {
        answer if answer.code == Some(0) => Ok(()),
        answer => Err(answer.to_string()),
    });
}

/// What the agent of each node tells of its child SAs, by node and peer.
fn children(lab: &Lab) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for node in &lab.inner().layout().nodes {
        for tunnel in lab.tunnels(&node.name).expect("an agent answers") {
            let sending = tunnel.children.iter().find(|child| child.sending);
            let key = format!("{} {}", node.name, tunnel.peer);
            all.insert(
                key,
                format!("{:?}", sending.map(|child| child.spi_out.clone())),
            );
        }
    }
    all
}

/// What differs from one kernel to another.
pub(crate) struct Story {
    /// `user` or `kernel`, of all nodes.
    pub(crate) datapath: &'static str,
    /// Datagrams a second, in all.
    pub(crate) rate: u32,
}

/// From its making to its end.
pub(crate) fn tell(story: &Story) {
    let world = World::up();
    refused(&world);
    let options = Options {
        datapath: story.datapath,
        ..Options::VXLAN
    };
    let mut lab = Lab::up_on(&world.cluster.kubeconfig(), options);
    // The controller and the agents say that the API server is away.
    lab.expect_errors();

    step("from nothing to Strict");
    let load = Load::ring(&lab, story.rate);
    lab.testudo(&["init", "--timeout", "180s"]).ok();
    phase_is(&lab, "Strict");
    let clear = Watch::clear(&lab);
    as_expected(&lab);

    requests_are_cleaned_up(&world);
    node_comes_goes_and_comes_back(&world, &mut lab);
    ca_rotates(&lab);
    outage(&world, &lab);

    step("the main load has lost nothing");
    load.run_for(seconds(1));
    let sent = load.stop_without_loss();
    println!("{sent} datagrams, none lost");

    killed(story, &world, &lab);
    clear.stop_with_none();

    step("stopped under traffic");
    let load = Load::ring(&lab, story.rate);
    lab.testudo(&["stop", "--timeout", "180s"]).ok();
    phase_is(&lab, "Disabled");
    load.run_for(seconds(1));
    let sent = load.stop_without_loss();
    println!("{sent} datagrams, none lost");
    as_expected(&lab);

    step("the end");
    lab.down();
    assert_eq!(world.names("node"), ["node/other"]);
    assert_eq!(world.names("crd"), Vec::<String>::new());
    for kind in ["namespace", "clusterrole", "clusterrolebinding", "csr"] {
        let left = world.names(kind);
        assert!(
            !left.iter().any(|name| name.contains("testudo")),
            "{left:?}"
        );
    }
}

/// What a lab cannot have it says in a line, and nothing of anybody else's is touched.
fn refused(world: &World) {
    step("refused");
    let up = |kubeconfig: &str| {
        let flags = ["--kubeconfig", kubeconfig, "lab", "up", "--name", "refused"];
        testudo(&[&flags[..], &["--nodes", "2", "--pods", "1"]].concat())
    };
    let kubeconfig = world.cluster.kubeconfig();
    let text = std::fs::read_to_string(&kubeconfig).expect("a kubeconfig");
    let nowhere = world.dir.path().join("nowhere");
    let elsewhere = text.replace(&world.cluster.server(), "https://127.0.0.1:1");
    std::fs::write(&nowhere, elsewhere).expect("a kubeconfig");
    let answer = up(&nowhere.display().to_string()).expect(1);
    let last = answer.err.lines().last().unwrap_or_default();
    assert!(
        last.contains("https://127.0.0.1:1 cannot be reached"),
        "{answer}"
    );

    world.make_node("n1", None);
    let kubeconfig = kubeconfig.display().to_string();
    let answer = up(&kubeconfig).expect(1);
    assert!(answer.err.contains("Node n1"), "{answer}");
    assert_eq!(world.names("node"), ["node/n1"]);
    assert_eq!(world.names("crd"), Vec::<String>::new());
    world.kubectl(&["delete", "node", "n1"]);
    world.make_node("other", None);
}

/// kube-controller-manager deletes requests an hour after their answer: nobody asks again, and nothing is signed.
fn requests_are_cleaned_up(world: &World) {
    step("requests are deleted");
    let register = || {
        let named = "metadata.name=testudo-certificates";
        let secrets = world.json(&["get", "secret", "-A", "--field-selector", named]);
        secrets["items"][0]["data"].clone()
    };
    let before = register();
    assert!(before.is_object(), "{before}");
    assert!(!world.names("csr").is_empty());
    world.kubectl(&["delete", "csr", "--all"]);
    // One that is made anew is made at once.
    for _ in 0..10 {
        std::thread::sleep(seconds(1));
        assert_eq!(world.names("csr"), Vec::<String>::new());
    }
    assert_eq!(register(), before, "certificates were signed");
}

/// A node joins under traffic; its Node is deleted while its agent runs; a Node of the same name is made;
/// and it goes for good.
fn node_comes_goes_and_comes_back(world: &World, lab: &mut Lab) {
    step("a node is added");
    testudo(&["lab", "node", "add", "--name", lab.name()]).ok();
    lab.again();
    lab.wait_tunnels(seconds(LONG));
    as_expected(lab);
    let first = world.json(&["get", "node", "n4"])["metadata"]["uid"].clone();
    let load = Load::start(lab, vec![flow(lab, 0, 3), flow(lab, 3, 1)], 500);

    step("its Node is deleted");
    world.kubectl(&["delete", "node", "n4"]);
    wait_until("the end of n4's NodeEncryption", seconds(LONG), || {
        let there = world.names("nodeencryption");
        match there.iter().any(|name| name.ends_with("/n4")) {
            true => Err(format!("{there:?}")),
            false => Ok(()),
        }
    });
    assert_eq!(world.revocation_lists(), 1);
    wait_until("nobody speaks with n4", seconds(LONG), || {
        for peer in ["n1", "n2", "n3"] {
            let tunnels = lab.tunnels(peer)?;
            if let Some(one) = tunnels.iter().find(|t| t.peer.to_string() == "n4" && t.up) {
                return Err(format!("{peer}: {one:?}"));
            }
        }
        Ok(())
    });
    let cut = load.now();
    load.run_for(seconds(3));
    let to = load.now();
    for outcome in load.stop() {
        let gap = outcome.longest_gap(cut, to);
        println!(
            "{}: {} of {} lost",
            outcome.flow,
            outcome.lost(),
            outcome.sent
        );
        assert!(gap >= to - cut, "{}: only {gap:?}", outcome.flow);
    }

    step("a Node of the same name is made");
    world.make_node("n4", Some(lab.name()));
    let second = world.json(&["get", "node", "n4"])["metadata"]["uid"].clone();
    assert_ne!(first, second);
    wait_until("n4 under its new UID", seconds(LONG), || {
        let nodes = world.json(&["get", "nodeencryption"]);
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|node| node["metadata"]["name"] == "n4");
        match found.map(|node| node["spec"]["uid"].clone()) {
            Some(uid) if uid == second => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    lab.wait_tunnels(seconds(LONG));
    as_expected(lab);

    step("it goes for good");
    testudo(&["lab", "node", "delete", "--name", lab.name(), "n4"]).ok();
    lab.again();
    assert_eq!(world.names("node").len(), 4, "n1, n2, n3 and the other");
    lab.wait_tunnels(seconds(LONG));
    as_expected(lab);
}

/// One CA follows another while the controller is killed: the next one waits for the Lease.
fn ca_rotates(lab: &Lab) {
    step("the CA is rotated, the controller is killed");
    lab.testudo(&["ca", "rotate", "--wait=false"]).ok();
    let controller = lab.inner().controller_process().expect("it runs");
    wait_until("a rotation that has begun", seconds(LONG), || {
        let status = rotation(lab)?;
        let begun = status["rotation"] == 1;
        begun.then_some(()).ok_or(format!("{status:#}"))
    });
    assert!(controller.signal(Signal::KILL));
    wait_until("a rotation that is done", seconds(LONG), || {
        let status = rotation(lab)?;
        let done = status["phase"] == "Settled" && status["rotation"] == 1;
        done.then_some(()).ok_or(format!("{status:#}"))
    });
    assert_ne!(lab.inner().controller_process(), Some(controller));
}

/// The API server is away: rekeys and traffic go on.
fn outage(world: &World, lab: &Lab) {
    step("the API server is stopped");
    let before = logs(lab);
    let stopped = world.cluster.stop_component(Component::ApiServer);
    stopped.expect("the API server is stopped");
    wait_store(lab, true);
    let answer = lab.testudo(&["get", "nodes"]).expect(1);
    assert_eq!(answer.err.lines().count(), 1, "{answer}");

    step("rekeys while it is away");
    let old = children(lab);
    lab.act("n1", Actions::RekeyChild);
    lab.act("n2", Actions::RekeyIke);
    wait_until("new child SAs", seconds(LONG), || {
        let new = children(lab);
        let same = ["n1 n2", "n1 n3", "n2 n1", "n3 n1"];
        match same.iter().find(|pair| old.get(**pair) == new.get(**pair)) {
            Some(pair) => Err(format!("{pair}: {new:?}")),
            None => Ok(()),
        }
    });

    step("it is started again");
    let started = world.cluster.start_component(Component::ApiServer);
    started.expect("the API server is started");
    world.cluster.ready().expect("it answers");
    wait_store(lab, false);
    for (node, from) in before {
        let log = lab.log(&node);
        let fresh = &log[from..];
        for words in ["stays in force", "the store answers again"] {
            let count = fresh.lines().filter(|line| line.contains(words)).count();
            assert_eq!(count, 1, "{node}: {words}\n{fresh}");
        }
    }
    lab.testudo(&["certs", "rotate", "--timeout", "120s"]).ok();
}

fn logs(lab: &Lab) -> Vec<(String, usize)> {
    let nodes = lab.inner().layout().nodes.iter();
    let length = |name: &str| lab.log(name).len();
    nodes
        .map(|node| (node.name.clone(), length(&node.name)))
        .collect()
}

/// Agents are killed, one with the API server and one without. Where the datapath is in their process their
/// packets are lost as long as they are dead. Nobody else's are ever, and none is in clear.
fn killed(story: &Story, world: &World, lab: &Lab) {
    step("an agent is killed");
    let load = Load::ring(lab, story.rate);
    assert!(lab.agent("n2").signal(Signal::KILL));
    load.wait_all_arrive(seconds(LONG));
    loses_at_most(story, "n2", load);

    step("an agent is killed while the API server is away");
    let stopped = world.cluster.stop_component(Component::ApiServer);
    stopped.expect("the API server is stopped");
    wait_store(lab, true);
    let load = Load::ring(lab, story.rate);
    let old = lab.agent("n3");
    assert!(old.signal(Signal::KILL));
    wait_until("another agent", seconds(LONG), || match lab.agent("n3") {
        new if new != old => Ok(()),
        _ => Err("the old one".to_owned()),
    });
    lab.wait_tunnels(seconds(LONG));
    load.wait_all_arrive(seconds(LONG));
    let status = status_of(lab, "n3").expect("an answer");
    assert_eq!(status.phase.to_string(), "Strict", "{status:?}");
    assert!(status.store_away_since.is_some(), "{status:?}");
    loses_at_most(story, "n3", load);
    let started = world.cluster.start_component(Component::ApiServer);
    started.expect("the API server is started");
    world.cluster.ready().expect("it answers");
    wait_store(lab, false);
    lab.wait_tunnels(seconds(LONG));
    as_expected(lab);
}

#[track_caller]
fn loses_at_most(story: &Story, node: &str, load: Load) {
    for outcome in load.stop() {
        println!(
            "{}: {} of {} lost",
            outcome.flow,
            outcome.lost(),
            outcome.sent
        );
        if story.datapath == "kernel" || !outcome.flow.contains(node) {
            assert_eq!(outcome.lost(), 0, "{}: {:?}", outcome.flow, outcome.holes);
        }
    }
}
