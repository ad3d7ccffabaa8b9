//! `testudo lab demo`: the main job on a screen, each claim checked by what is on the wire.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use testudo_agent::api::{self, Actions, Gettable, Request, TunnelView};
use testudo_lab::{Lab, LabSpec, Links, Load, LoadOptions, LoadReport, Place, Tap, secret};

use crate::exit::{CheckFailed, Outcome, Usage};

/// Packets a second on each of the six flows.
const RATE: u32 = 3000;
/// What a pod tells another, and nobody else should read.
const SECRET: &str = "the legions cross the river at dawn";
/// How long any one step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Show the main job: clear text turning into ESP, rotations without a loss.
#[derive(Args)]
pub(crate) struct DemoCommand {
    /// Leave the lab up and say what to try next
    #[arg(long)]
    keep: bool,
    /// The lab's name
    #[arg(long, value_name = "N", default_value = "demo")]
    name: String,
}

/// Runs the story; an error if one of its claims does not hold.
pub(crate) fn run(command: &DemoCommand) -> Outcome {
    let start = Instant::now();
    let mut story = Story::default();
    if !matches!(Place::current()?, Place::Machine) {
        return Err(Usage(
            "the demo listens in the lab's namespaces and needs root; without root, go by hand: testudo lab up"
                .to_owned(),
        )
        .into());
    }
    story.chapter("Three nodes, two pods each, a VXLAN overlay; no encryption");
    let spec = LabSpec::new(&command.name, std::env::current_exe()?);
    let lab = testudo_lab::up(spec, &mut |text| eprintln!("  {text}"))?;
    let told = tell(&lab, &mut story);
    if told.is_err() || !command.keep {
        let id = lab.id().to_owned();
        story.chapter("Everything is torn down");
        testudo_lab::down(lab.name(), &mut |_| {})?;
        let left = leftovers(&lab, &id);
        story.claim("nothing is left behind", left.is_empty(), left.join(", "));
    } else {
        keep(&lab);
    }
    told?;
    let (held, failed) = (story.held, story.failed);
    println!(
        "\n{held} claims hold, {failed} do not; {:.1} s in all",
        start.elapsed().as_secs_f32()
    );
    match failed {
        0 => Ok(()),
        _ => Err(CheckFailed.into()),
    }
}

/// What has been claimed, and whether it held.
#[derive(Default)]
struct Story {
    held: u32,
    failed: u32,
}

impl Story {
    fn chapter(&self, title: &str) {
        println!("\n== {title}");
    }

    fn claim(&mut self, text: &str, holds: bool, detail: impl std::fmt::Display) {
        let detail = detail.to_string();
        let tail = if detail.is_empty() {
            detail
        } else {
            format!("  ({detail})")
        };
        if holds {
            self.held += 1;
            println!("  ok    {text}{tail}");
        } else {
            self.failed += 1;
            println!("  WRONG {text}{tail}");
        }
    }
}

fn tell(lab: &Lab, story: &mut Story) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("testudo-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let files = (folder.join("clear.pcap"), folder.join("esp.pcap"));

    in_clear(lab, story, &files.0)?;
    let load = Load::start(
        lab,
        &LoadOptions {
            rate: RATE,
            ..LoadOptions::default()
        },
    )?;
    std::thread::sleep(Duration::from_millis(300));
    switch_on(lab, story, &load)?;
    let tap = sealed(lab, story, &files.1)?;
    rotations(lab, story, &load)?;
    let seen = tap.stop()?;
    story.claim(
        "in Strict the links carried ESP and no clear packet of a protected flow",
        seen.esp_packets > 0 && seen.clear_protected_packets == 0,
        format!(
            "{} ESP, {} clear protected",
            seen.esp_packets, seen.clear_protected_packets
        ),
    );
    let capture = std::fs::read(&files.1).with_context(|| files.1.display().to_string())?;
    let mut windows = capture.windows(SECRET.len());
    story.claim(
        "the secret is nowhere in the capture",
        !windows.any(|bytes| bytes == SECRET.as_bytes()),
        format!("{} bytes searched", capture.len()),
    );
    println!();
    verb(lab, &["status"])?;

    story.chapter("Switched off under load, in the same acknowledged steps");
    load.mark("switch-off");
    let took = timed(|| verb(lab, &["stop"]))?;
    println!("  back to Disabled in {:.2} s", took.as_secs_f32());
    std::thread::sleep(Duration::from_millis(300));
    losses(story, &load.stop());
    println!(
        "\n  captures: {}\n            {}",
        files.0.display(),
        files.1.display()
    );
    Ok(())
}

fn in_clear(lab: &Lab, story: &mut Story, file: &Path) -> Result<()> {
    let tap = Tap::start(lab, Links::All, Some(file))?;
    tap.look_for(SECRET.as_bytes());
    secret::exchange(lab, "n1/p1", "n2/p1", SECRET, PATIENCE)?;
    tap.settle();
    let found = tap.found(SECRET.as_bytes());
    tap.stop()?;
    story.claim(
        "a listener on the underlay reads the pods' secret",
        found > 0,
        format!("\"{SECRET}\", seen {found} times"),
    );
    let (ok, told) = verify(lab)?;
    story.claim(
        "every flow is as the table says it is before encryption",
        ok,
        told,
    );
    Ok(())
}

fn switch_on(lab: &Lab, story: &mut Story, load: &Load) -> Result<()> {
    story.chapter(&format!(
        "testudo init, while six flows carry {RATE} packets a second each"
    ));
    load.mark("switch-on");
    let took = timed(|| verb(lab, &["init"]))?;
    story.claim(
        "from init to Strict in 2 seconds or less",
        took <= Duration::from_secs(2),
        format!("{:.2} s", took.as_secs_f32()),
    );
    std::thread::sleep(Duration::from_millis(300));
    load.mark("strict");
    Ok(())
}

/// The same request again; the tap goes on listening.
fn sealed(lab: &Lab, story: &mut Story, file: &Path) -> Result<Tap> {
    story.chapter("The same request again");
    let tap = Tap::start(lab, Links::All, Some(file))?;
    tap.look_for(SECRET.as_bytes());
    secret::exchange(lab, "n1/p1", "n2/p1", SECRET, PATIENCE)?;
    tap.settle();
    let found = tap.found(SECRET.as_bytes());
    let seen = tap.seen();
    story.claim(
        "the pods still talk, and a listener sees ESP only",
        found == 0 && seen.esp_packets > 0 && seen.clear_protected_packets == 0,
        format!(
            "{} ESP packets, {} clear protected, the secret seen {found} times",
            seen.esp_packets, seen.clear_protected_packets
        ),
    );
    let (ok, told) = verify(lab)?;
    story.claim("every flow is as the table says it is in Strict", ok, told);
    Ok(tap)
}

fn rotations(lab: &Lab, story: &mut Story, load: &Load) -> Result<()> {
    story.chapter("Certificates rotated under load");
    let before = serials(lab)?;
    load.mark("certificate rotation");
    let took = timed(|| verb(lab, &["certs", "rotate"]))?;
    let after = serials(lab)?;
    let renewed = before
        .iter()
        .filter(|(node, serial)| after.get(*node) != Some(*serial));
    story.claim(
        "every node has a new certificate",
        renewed.count() == before.len() && after.len() == before.len(),
        format!("{} nodes in {:.2} s", after.len(), took.as_secs_f32()),
    );
    std::thread::sleep(Duration::from_millis(300));

    story.chapter("Child SAs and IKE SAs rekeyed under load");
    for (name, action) in [
        ("child rekey", Actions::RekeyChild),
        ("IKE rekey", Actions::RekeyIke),
    ] {
        load.mark(name);
        let (pairs, took) = rekey(lab, action)?;
        story.claim(
            &format!("{name}: every tunnel has new keys"),
            pairs > 0,
            format!("{pairs} pairs of nodes in {:.2} s", took.as_secs_f32()),
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    load.mark("strict again");
    Ok(())
}

fn losses(story: &mut Story, report: &LoadReport) {
    for interval in &report.intervals {
        story.claim(
            &format!("{}: 0 lost", interval.name),
            interval.lost == 0,
            format!(
                "{} sent in {:.1} s, {} lost, longest silence {} ms",
                interval.sent,
                interval.milliseconds as f32 / 1000.0,
                interval.lost,
                interval.longest_gap_ms
            ),
        );
    }
    let slowest = report.flows.iter().map(|flow| flow.sent).min().unwrap_or(0);
    let milliseconds: u64 = report.intervals.iter().map(|each| each.milliseconds).sum();
    let rate = slowest * 1000 / milliseconds.max(1);
    story.claim(
        "each flow carried at least 2,000 packets a second",
        rate >= 2000,
        format!("{rate} a second on the slowest of {}", report.flows.len()),
    );
}

/// Has one end of each pair of nodes rekey, and waits until every tunnel shows other keys.
fn rekey(lab: &Lab, action: Actions) -> Result<(usize, Duration)> {
    let before = key_marks(lab, action)?;
    let start = Instant::now();
    let nodes: Vec<&str> = lab
        .layout()
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    let mut pairs = 0;
    for (index, node) in nodes.iter().enumerate() {
        for peer in &nodes[index + 1..] {
            let request = Request::Do {
                action,
                peer: Some(peer.parse()?),
            };
            api::ask(&lab.agent_socket(node), &request, PATIENCE)?;
            pairs += 1;
        }
    }
    loop {
        let now = key_marks(lab, action)?;
        let same = before
            .iter()
            .filter(|(key, mark)| now.get(*key) == Some(*mark));
        if same.count() == 0 && now.len() == before.len() {
            return Ok((pairs, start.elapsed()));
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{action:?}: some tunnels keep their keys"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// By node and peer, what changes with new keys: the SPIs of the child that sends, or of the IKE SA.
fn key_marks(lab: &Lab, action: Actions) -> Result<BTreeMap<(String, String), String>> {
    let mut marks = BTreeMap::new();
    for node in &lab.layout().nodes {
        for tunnel in tunnels(lab, &node.name)? {
            let child = || tunnel.children.iter().find(|child| child.sending);
            let mark = match action {
                Actions::RekeyChild => child().map(|c| format!("{} {}", c.spi_in, c.spi_out)),
                _ => tunnel
                    .ike
                    .as_ref()
                    .map(|ike| format!("{} {}", ike.initiator_spi, ike.responder_spi)),
            };
            marks.insert(
                (node.name.clone(), tunnel.peer.to_string()),
                mark.unwrap_or_default(),
            );
        }
    }
    Ok(marks)
}

fn tunnels(lab: &Lab, node: &str) -> Result<Vec<TunnelView>> {
    let request = Request::Get {
        get: Gettable::Tunnels,
    };
    let answer = api::ask(&lab.agent_socket(node), &request, PATIENCE)?;
    answer
        .tunnels
        .with_context(|| format!("the agent of {node} named no tunnels"))
}

/// `lab verify`, and what it says in a line.
fn verify(lab: &Lab) -> Result<(bool, String)> {
    let output = testudo(&["lab", "verify", "--name", lab.name(), "-o", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    let report: Value =
        serde_json::from_slice(&output.stdout).context("lab verify printed no JSON")?;
    let flows = report["flows"].as_array().cloned().unwrap_or_default();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for flow in &flows {
        let observed = flow["observed"].as_str().unwrap_or("?");
        *counts.entry(observed.to_owned()).or_default() += 1;
        if flow["ok"] != Value::Bool(true) {
            println!("  {flow}");
        }
    }
    let told: Vec<String> = counts
        .iter()
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    let ok = report["ok"] == Value::Bool(true) && output.status.success() && !flows.is_empty();
    Ok((ok, format!("{} flows: {}", flows.len(), told.join(", "))))
}

/// Serial numbers by node, as `certs list` has them.
fn serials(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let store = format!("dir:{}", lab.store_dir().display());
    let output = testudo(&["certs", "list", "--store", &store, "-o", "json"]).output()?;
    let list: Value =
        serde_json::from_slice(&output.stdout).context("certs list printed no JSON")?;
    let rows = list.as_array().or_else(|| list["certificates"].as_array());
    let rows = rows.context("certs list printed no list")?;
    let serial = |row: &Value| {
        Some((
            row["node"].as_str()?.to_owned(),
            row["serial"].as_str()?.to_owned(),
        ))
    };
    Ok(rows.iter().filter_map(serial).collect())
}

/// A verb of the command line on the lab's store, as a user would type it.
fn verb(lab: &Lab, words: &[&str]) -> Result<()> {
    println!("  $ testudo {}", words.join(" "));
    let store = format!("dir:{}", lab.store_dir().display());
    let status = testudo(words).args(["--store", &store]).status()?;
    if !status.success() {
        bail!(
            "testudo {} ended with {status}; logs: {}",
            words.join(" "),
            lab.log_path("").display()
        );
    }
    Ok(())
}

fn testudo(words: &[&str]) -> Command {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("testudo"));
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    command
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}

/// Namespaces, processes and directories that should be gone.
fn leftovers(lab: &Lab, id: &str) -> Vec<String> {
    let namespaces = lab.namespaces().list().into_iter();
    let mut left: Vec<String> = namespaces
        .filter(|name| testudo_lab::layout::is_namespace_of(lab.name(), name))
        .map(|name| format!("namespace {name}"))
        .collect();
    left.extend(
        testudo_lab::marked(id)
            .iter()
            .map(|process| format!("process {}", process.pid)),
    );
    if lab.directory().exists() {
        left.push(lab.directory().display().to_string());
    }
    left
}

fn keep(lab: &Lab) {
    let name = lab.name();
    println!("\n== The lab {name} stays up. To try next:");
    for line in [
        "testudo init                                    encryption on".to_owned(),
        "testudo status --tunnels                        every tunnel".to_owned(),
        format!("testudo lab verify --name {name}                 every flow, captured"),
        format!("testudo lab exec --name {name} n1/p1 -- ping 10.244.2.2"),
        format!("testudo lab capture --name {name} --node n1      what n1's link carries"),
        "testudo certs rotate                            new certificates".to_owned(),
        format!("testudo lab down --name {name}"),
    ] {
        println!("  {line}");
    }
}
