//! `testudo lab`: a whole cluster on this machine.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use testudo_lab::spec::DEFAULT_NAME;
use testudo_lab::{
    Datapath, Family, Keying, KubeSpec, Lab, LabSpec, Links, Load, LoadOptions, Overlay, Switch,
    Tap,
};

use testudo_model::policy;
use testudo_store::Location;

use crate::exit::{CheckFailed, Outcome, Usage};
use crate::global::{Global, parse_time};
use crate::output::{self, Columns};

/// A whole cluster in network namespaces on this machine.
#[derive(Args)]
pub(crate) struct LabCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a lab; encryption is off until `testudo init`
    Up(Up),
    /// End a lab and leave nothing behind
    Down(Down),
    /// Namespaces, addresses and processes of a lab
    Status(Name),
    /// Real traffic over every flow, captured on every link
    Verify(Name),
    /// Capture the underlay: counts, and a pcap file
    Capture(Capture),
    /// Numbered datagrams between the nodes' first pods; counts what is lost
    Load(LoadCommand),
    /// Add a node to a lab that is up, or throw one out
    Node(Node),
    /// Run a command in a node (n1), a pod (n1/p1) or the underlay
    Exec(Exec),
    /// Show the main job: clear text turning into ESP, rotations without a loss
    Demo(crate::demo::DemoCommand),
    /// The process behind a lab; `lab up` starts it
    #[command(hide = true)]
    Supervise(Name),
}

#[derive(Args)]
struct Name {
    /// The lab's name [default: the only one there is, else "lab"]
    #[arg(long, value_name = "N")]
    name: Option<String>,
}

#[derive(Args)]
struct Up {
    /// The lab's name
    #[arg(long, value_name = "N", default_value = DEFAULT_NAME)]
    name: String,
    /// Nodes
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    nodes: u16,
    /// Pods on each node
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pods: u16,
    /// How pods reach other nodes: vxlan, geneve, ovn or routed
    #[arg(long, default_value = "vxlan", value_parser = word::<Overlay>)]
    overlay: Overlay,
    /// What pods and tunnels are plugged into: linux (the kernel's own devices) or ovs
    #[arg(long, default_value = "linux", value_parser = word::<Switch>)]
    switch: Switch,
    /// Where the packages of Open vSwitch and OVN are unpacked [default: they are installed]
    #[arg(long, value_name = "FOLDER")]
    ovs_root: Option<PathBuf>,
    /// auto, user or kernel
    #[arg(long, default_value = "auto", value_parser = word::<Datapath>)]
    datapath: Datapath,
    /// A node that has another one: n2=user
    #[arg(long, value_name = "NODE=WHICH", value_parser = datapath_of)]
    datapath_of: Vec<(String, Datapath)>,
    /// certificate or psk
    #[arg(long, default_value = "certificate", value_parser = word::<Keying>)]
    keying: Keying,
    /// Addresses of the nodes: v4, v6 or dual
    #[arg(long, default_value = "v4", value_parser = word::<Family>)]
    family: Family,
    /// Agents write their IKE and ESP keys into the lab's directory, for Wireshark
    #[arg(long)]
    danger_export_keys: bool,
    /// Namespaces alone, without a controller and agents
    #[arg(long, hide = true)]
    no_daemons: bool,
}

#[derive(Args)]
struct Down {
    #[command(flatten)]
    name: Name,
    /// End all labs
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(Args)]
struct Node {
    #[command(subcommand)]
    verb: NodeVerb,
}

#[derive(Subcommand)]
enum NodeVerb {
    /// One more, with as many pods as the others
    Add(Name),
    /// Its certificates are revoked, its peers drop it, and its namespaces go
    Delete(DeleteNode),
}

#[derive(Args)]
struct DeleteNode {
    #[command(flatten)]
    name: Name,
    /// n4
    #[arg(value_name = "NODE")]
    node: String,
}

#[derive(Args)]
struct Exec {
    #[command(flatten)]
    name: Name,
    /// n1, n1/p1, pod/n1/p1, host/n1 or underlay
    #[arg(value_name = "NODE|POD")]
    target: String,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Args)]
struct Capture {
    #[command(flatten)]
    name: Name,
    /// One node's link, both directions [default: all links, each packet once]
    #[arg(long, value_name = "N")]
    node: Option<String>,
    /// How long, as in 500ms or 10s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    seconds: Duration,
    /// Write the packets there
    #[arg(long, value_name = "FILE.pcap")]
    write: Option<PathBuf>,
}

#[derive(Args)]
struct LoadCommand {
    #[command(flatten)]
    name: Name,
    /// How long, as in 500ms or 10s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    seconds: Duration,
    /// Packets a second on each flow
    #[arg(long, value_name = "PPS", default_value_t = 500)]
    rate: u32,
    /// Bytes of a datagram's payload
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    payload: usize,
}

/// A lab that runs.
pub(crate) struct Running {
    /// Its name.
    pub(crate) name: String,
    /// Where its objects are.
    pub(crate) location: Location,
}

/// Runs the verb.
pub(crate) fn run(command: LabCommand, global: &Global) -> Outcome {
    match command.verb {
        Verb::Up(options) => up(options, global),
        Verb::Down(options) => down(options),
        Verb::Status(name) => status(&open(&name)?, global),
        Verb::Verify(name) => verify(&open_inside(&name)?, global),
        Verb::Capture(options) => capture(&options, global),
        Verb::Load(options) => load(&options, global),
        Verb::Exec(options) => exec(&options),
        Verb::Node(options) => node(&options.verb),
        Verb::Demo(command) => crate::demo::run(&command),
        Verb::Supervise(name) => {
            let name = name.name.context("--name is missing")?;
            testudo_lab::supervise(&name)
        }
    }
}

/// The labs that run on this machine, by name.
pub(crate) fn running() -> Vec<Running> {
    let labs = testudo_lab::Lab::list().unwrap_or_default();
    labs.iter()
        .map(|lab| Running {
            name: lab.name().to_owned(),
            location: lab.location(),
        })
        .collect()
}

/// How pods' packets cross the underlay in the lab whose store this is.
pub(crate) fn overlay_of(store: &std::path::Path) -> Option<policy::Overlay> {
    let lab = of_location(&Location::Directory(store.to_owned()))?;
    let layout = lab.layout();
    Some(policy::Overlay {
        kind: match layout.overlay {
            Overlay::Vxlan => policy::OverlayType::Vxlan,
            Overlay::Geneve | Overlay::Ovn => policy::OverlayType::Geneve,
            Overlay::Routed => policy::OverlayType::Routed,
        },
        port: layout.overlay_port,
        pod_cidrs: match layout.overlay {
            Overlay::Routed => layout.cluster_cidrs.clone(),
            Overlay::Vxlan | Overlay::Geneve | Overlay::Ovn => Vec::new(),
        },
    })
}

/// The lab whose store this is.
pub(crate) fn of_location(location: &Location) -> Option<Lab> {
    let labs = Lab::list().unwrap_or_default();
    labs.into_iter().find(|lab| lab.is_at(location))
}

fn datapath_of(text: &str) -> Result<(String, Datapath), String> {
    let (node, datapath) = text.split_once('=').ok_or("write it as in n2=user")?;
    Ok((node.to_owned(), word(datapath)?))
}

fn up(options: Up, global: &Global) -> Outcome {
    let spec = LabSpec {
        name: options.name,
        nodes: options.nodes,
        pods: options.pods,
        overlay: options.overlay,
        switch: options.switch,
        ovs_root: options.ovs_root,
        datapath: options.datapath,
        datapath_of: options.datapath_of,
        keying: options.keying,
        family: options.family,
        kube: kubernetes(global)?,
        daemons: !options.no_daemons,
        danger_export_keys: options.danger_export_keys,
        binary: std::env::current_exe().context("find this program")?,
    };
    spec.validate()
        .map_err(|error| Usage(format!("{error:#}")))?;
    let lab = testudo_lab::up(spec, &mut say)?;
    if global.format().is_data() {
        return output::data(global.format(), &lab.status()?);
    }
    eprintln!(
        "lab {} is up, encryption is off. Next: {}; testudo lab verify; testudo lab down",
        lab.name(),
        init_line(&lab, global)
    );
    Ok(())
}

/// The API server that the lab's nodes are to be nodes of, which has to be said: a kubeconfig of the shell
/// does not make a lab one of a cluster that is used.
fn kubernetes(global: &Global) -> anyhow::Result<Option<KubeSpec>> {
    let named = global.kubeconfig.is_some() || global.context.is_some();
    match &global.store {
        Some(Location::Kubernetes(_)) => {}
        None if named => {}
        Some(Location::Directory(_)) if named => {
            return Err(Usage(
                "a directory and an API server are both named: leave out --store and \
                 TESTUDO_STORE, or --kubeconfig and --context"
                    .to_owned(),
            )
            .into());
        }
        // A lab's directory store is its own.
        Some(Location::Directory(_)) | None => return Ok(None),
    }
    Ok(Some(KubeSpec {
        kubeconfig: global.kubeconfig.clone(),
        context: global.context.clone(),
        server: String::new(),
    }))
}

/// The flags of a verb that name a store.
pub(crate) fn flags(location: &Location) -> String {
    match location {
        Location::Directory(path) => format!("--store dir:{}", path.display()),
        Location::Kubernetes(at) => match &at.kubeconfig {
            Some(file) => format!("--kubeconfig {}", file.display()),
            None => "--store kube".to_owned(),
        },
    }
}

/// Where a lab's objects are, for people.
fn where_of(lab: &Lab) -> String {
    match lab.server() {
        Some(server) => format!("API server {server}   {}", flags(&lab.location())),
        None => format!("store {}", lab.location()),
    }
}

/// What switches the lab's encryption on, typed in this shell: with a kubeconfig or several labs
/// around, the bare verb means something else.
fn init_line(lab: &Lab, global: &Global) -> String {
    match crate::store::resolve(global) {
        Ok(found) if found == lab.location() => "testudo init".to_owned(),
        _ => format!("testudo init {}", flags(&lab.location())),
    }
}

fn down(options: Down) -> Outcome {
    if options.all {
        if testudo_lab::down_all(&mut say)?.is_empty() {
            eprintln!("no labs here");
        }
        return Ok(());
    }
    let name = match options.name.name {
        Some(name) => name,
        None => testudo_lab::default_name()?,
    };
    if testudo_lab::down(&name, &mut say)? {
        eprintln!("lab {name} is gone");
    } else {
        eprintln!("no lab {name} here: nothing to do");
    }
    Ok(())
}

fn status(lab: &Lab, global: &Global) -> Outcome {
    let status = lab.status()?;
    if global.format().is_data() {
        return output::data(global.format(), &status);
    }
    let pid =
        |pid: Option<i32>| pid.map_or_else(|| "not running".to_owned(), |pid| pid.to_string());
    output::line(&format!(
        "lab {}   phase {}   controller {}   {}",
        status.name,
        status.phase,
        pid(status.controller_pid),
        where_of(lab)
    ))?;
    let mut columns = Columns::new(["NAME", "NAMESPACE", "ADDRESS", "AGENT", "DATAPATH"]);
    for node in &status.nodes {
        columns.row([
            &node.name,
            &node.netns,
            &node.address,
            &pid(node.agent_pid),
            &node.datapath,
        ]);
        for pod in &node.pods {
            let name = format!("{}/{}", node.name, pod.name);
            columns.row([&name, &pod.netns, &pod.address, "", ""]);
        }
    }
    columns.print()?;
    if lab.supervisor_process().is_none() {
        eprintln!(
            "its supervisor is gone: what dies is not started again. testudo lab down --name {}",
            status.name
        );
    }
    Ok(())
}

fn node(verb: &NodeVerb) -> Outcome {
    match verb {
        NodeVerb::Add(name) => {
            let (lab, node) = open_inside(name)?.add_node(&mut say)?;
            eprintln!("node {node} is in lab {}", lab.name());
        }
        NodeVerb::Delete(options) => {
            let lab = open_inside(&options.name)?;
            lab.remove_node(&options.node, &mut say)?;
            eprintln!("node {} is gone from lab {}", options.node, lab.name());
        }
    }
    Ok(())
}

fn verify(lab: &Lab, global: &Global) -> Outcome {
    let report = testudo_lab::verify::verify(lab, &mut say)?;
    if global.format().is_data() {
        output::data(global.format(), &report)?;
    } else {
        let mut columns = Columns::new(["FROM", "TO", "KIND", "EXPECTED", "OBSERVED", "OK"]);
        for flow in &report.flows {
            columns.row([
                flow.from.clone(),
                flow.to.clone(),
                flow.kind.to_owned(),
                flow.expected.to_string(),
                flow.observed.to_string(),
                if flow.ok { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        columns.print()?;
        output::line(&format!(
            "phase {}: {} of {} flows as expected; {} ESP packets, {} clear packets of protected flows; tunnels {}/{}: {}",
            report.phase,
            report.flows.iter().filter(|flow| flow.ok).count(),
            report.flows.len(),
            report.wire.esp_packets,
            report.wire.clear_protected_packets,
            report.tunnels.up,
            report.tunnels.expected,
            if report.ok { "ok" } else { "NOT OK" }
        ))?;
        if let Some(advice) = &report.sizes.advice {
            output::line(advice)?;
        }
    }
    verdict(report.ok)
}

fn capture(options: &Capture, global: &Global) -> Outcome {
    let lab = open_inside(&options.name)?;
    let links = options.node.as_deref().map_or(Links::All, Links::Node);
    let tap = Tap::start(&lab, links, options.write.as_deref())?;
    std::thread::sleep(options.seconds);
    let seen = tap.stop()?;
    if global.format().is_data() {
        return output::data(global.format(), &seen);
    }
    output::line(&format!(
        "{} frames: {} ESP, {} IKE, {} clear packets of protected flows, {} other IP; {} missed",
        seen.frames,
        seen.esp_packets,
        seen.ike_packets,
        seen.clear_protected_packets,
        seen.other_packets,
        seen.missed
    ))
}

fn load(options: &LoadCommand, global: &Global) -> Outcome {
    let lab = open_inside(&options.name)?;
    let load = Load::start(
        &lab,
        &LoadOptions {
            rate: options.rate,
            payload: options.payload,
            flows: Vec::new(),
        },
    )?;
    std::thread::sleep(options.seconds);
    let report = load.stop();
    if global.format().is_data() {
        output::data(global.format(), &report)?;
    } else {
        let mut columns = Columns::new(["FROM", "TO", "SENT", "LOST", "TWICE", "REORDERED", "GAP"]);
        for flow in &report.flows {
            columns.row([
                flow.from.clone(),
                flow.to.clone(),
                flow.sent.to_string(),
                flow.lost.to_string(),
                flow.duplicated.to_string(),
                flow.reordered.to_string(),
                format!("{}ms", flow.longest_gap_ms),
            ]);
        }
        columns.print()?;
        output::line(&format!(
            "{} packets, {} lost",
            report.sent(),
            report.lost()
        ))?;
    }
    verdict(report.lost() == 0)
}

fn verdict(good: bool) -> Outcome {
    if good {
        Ok(())
    } else {
        Err(CheckFailed.into())
    }
}

fn exec(options: &Exec) -> Outcome {
    let lab = open_inside(&options.name)?;
    match lab.exec(&options.target, &options.command)? {}
}

fn open(name: &Name) -> anyhow::Result<Lab> {
    Lab::open(name.name.as_deref())
}

/// Opens a lab whose namespaces are needed. In a user's lab this program goes on as a new process
/// inside, and its exit code becomes ours.
fn open_inside(name: &Name) -> anyhow::Result<Lab> {
    let lab = open(name)?;
    if let Some(status) = lab.run_inside()? {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(lab)
}

fn say(text: &str) {
    eprintln!("{text}");
}

fn word<T: FromStr<Err = anyhow::Error>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error: anyhow::Error| error.to_string())
}
