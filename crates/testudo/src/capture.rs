//! `testudo capture`: what a node's link carries, told apart.

mod source;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use ipnet::IpNet;
use serde::Serialize;
use testudo_lab::Lab;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, OverlayType};
use testudo_model::{EncryptionPolicy, NodeEncryption, NodeName};
use testudo_netlink::Netlink;
use testudo_store::Store;

use crate::exit::{CheckFailed, Outcome, Usage};
use crate::global::{Global, parse_time};
use crate::output::{self, Columns, bytes};
use crate::pcap::{self, Packet, PacketKind, Protected, Reader};
use crate::pods::Pods;
use crate::policy::few;
use crate::{signals, store};
use source::{Copy, START_FAR, Source};

/// Flows that are counted one by one; more are counted in the sums alone.
const MAX_FLOWS: usize = 512;

/// Bytes of a packet that are enough to tell it from others.
const HEADERS: usize = 160;

const EXAMPLES: &str = "\
Examples:
  testudo capture --node n1 --seconds 5
  testudo capture --node n1 --peer n2 -o json
  testudo capture --node n1 --write n1.pcap
  testudo capture --node n1 --write - | wireshark -k -i -";

/// Watch what a node's link carries: ESP, IKE, clear.
///
/// On Kubernetes the packets are taken in the pod of the node's agent and come through the API server; it
/// takes the right to `create pods/exec` there, and kubectl.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CaptureCommand {
    /// The node [default: the first of the lab, else this host]
    #[arg(long, value_name = "NODE")]
    node: Option<NodeName>,

    /// Only packets to and from this node
    #[arg(long, value_name = "NODE")]
    peer: Option<NodeName>,

    /// How long
    #[arg(long, value_name = "S", default_value = "5", value_parser = parse_time)]
    seconds: Duration,

    /// Keep the packets in this file too; - is the standard output
    #[arg(long, value_name = "FILE.pcap")]
    write: Option<PathBuf>,

    /// Keep no more of each packet than its headers
    #[arg(long, hide = true)]
    headers: bool,
}

impl CaptureCommand {
    /// Whether the stream itself is what goes to the standard output.
    fn streams(&self) -> bool {
        self.write.as_deref() == Some(Path::new("-"))
    }

    /// Bytes of each packet that are kept.
    fn cut(&self) -> usize {
        match self.write.is_none() || self.headers {
            true => HEADERS,
            false => usize::MAX,
        }
    }
}

/// Runs the verb.
pub(crate) fn run(command: &CaptureCommand, global: &Global) -> Outcome {
    let store = store::open_to_read(global)?;
    let lab = store::lab_of(&store);
    if let Some(lab) = &lab
        && let Some(status) = lab.run_inside()?
    {
        return match status.success() {
            true => Ok(()),
            false => Err(CheckFailed.into()),
        };
    }
    let (policy, nodes) = signals::runtime()?.block_on(async {
        let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
        let nodes = store.list::<NodeEncryptionKind>().await?.items;
        anyhow::Ok((policy, nodes))
    })?;
    let place = Place::find(command, lab, &nodes, global)?;
    let protected = protected(policy.as_ref(), &nodes);
    let filter = Filter::new(command, &nodes, &protected)?;
    eprintln!(
        "watching {} of {} for {} s",
        place.interface,
        place.node,
        command.seconds.as_secs_f64()
    );
    let mut summary = Summary::new(&place, command);
    summary.take(&place, command, &filter)?;
    if command.streams() {
        eprintln!("{}", summary.text());
        return Ok(());
    }
    summary.report(global)
}

/// Where packets are taken.
struct Place {
    node: String,
    interface: String,
    at: At,
}

/// Whose link it is.
enum At {
    /// A node's of a lab.
    Lab(Lab),
    /// This host's.
    Here,
    /// That of a node of a cluster, where an agent's pod runs.
    Pod(Pods),
}

impl Place {
    fn find(
        command: &CaptureCommand,
        lab: Option<Lab>,
        nodes: &[NodeEncryption],
        global: &Global,
    ) -> anyhow::Result<Self> {
        if let Some(lab) = lab {
            let first = lab.layout().nodes.first().map(|n| n.name.clone());
            let name = command.node.as_ref().map(ToString::to_string).or(first);
            let name = name.context("the lab has no node")?;
            let node = lab.layout().node(&name);
            let node = node.with_context(|| format!("node {name:?} is not in the lab"))?;
            let addresses = node.addresses.clone();
            let interface = lab.inside(&name, move || interface_of(&addresses))?;
            let interface = interface.with_context(|| format!("{name} has no underlay link"))?;
            return Ok(Self {
                node: name,
                interface,
                at: At::Lab(lab),
            });
        }
        // This host's own link needs nobody's help.
        for node in nodes {
            if command
                .node
                .as_ref()
                .is_some_and(|n| n.as_str() != node.name())
            {
                continue;
            }
            if let Some(interface) = interface_of(&node.spec.addresses)? {
                return Ok(Self {
                    node: node.name().to_owned(),
                    interface,
                    at: At::Here,
                });
            }
        }
        if let Some(pods) = Pods::find(global)? {
            return Self::pod(command, pods);
        }
        match &command.node {
            Some(node) => bail!("no link of this host has an address of {node}: run it on {node}"),
            None => bail!("no link of this host has an address of a known node"),
        }
    }

    fn pod(command: &CaptureCommand, pods: Pods) -> anyhow::Result<Self> {
        let Some(node) = &command.node else {
            let nodes: Vec<String> = pods.nodes().map(str::to_owned).collect();
            let text = match nodes.is_empty() {
                true => "no agent's pod runs in this cluster".to_owned(),
                false => format!("say whose link: --node NAME, of {}", few(&nodes)),
            };
            return Err(anyhow::Error::new(Usage(text)));
        };
        Ok(Self {
            node: node.to_string(),
            interface: "the link".to_owned(),
            at: At::Pod(pods),
        })
    }

    fn tcpdump(&self) -> anyhow::Result<Command> {
        match &self.at {
            // tcpdump gives up root's rights, and a user's namespace has no other user to become.
            At::Lab(lab) if matches!(lab.place(), testudo_lab::Place::Inside { .. }) => bail!(
                "tcpdump does not run in a lab without root: \
                 testudo lab capture --name {} --node {} --write FILE.pcap",
                lab.name(),
                self.node
            ),
            At::Lab(lab) => lab.command(&self.node, "tcpdump"),
            At::Here | At::Pod(_) => Ok(Command::new("tcpdump")),
        }
    }

    /// Begins to take packets.
    fn open(&self, command: &CaptureCommand, filter: &Filter) -> anyhow::Result<Source> {
        if let At::Pod(pods) = &self.at {
            let seconds = format!("{}s", command.seconds.as_secs_f64());
            let mut words = vec!["capture", "--node", &self.node, "--seconds", &seconds];
            words.extend(["--write", "-"]);
            if let Some(peer) = &command.peer {
                words.extend(["--peer", peer.as_str()]);
            }
            if command.cut() == HEADERS {
                words.push("--headers");
            }
            return Source::pod(pods.testudo(&self.node, &words)?);
        }
        let mut tcpdump = self.tcpdump()?;
        tcpdump.args(["-i", &self.interface, "-n", "-U", "-w", "-"]);
        if command.cut() == HEADERS {
            tcpdump.args(["-s", &HEADERS.to_string()]);
        }
        if let Some(source) = Source::tcpdump(with(tcpdump, &filter.expression()))? {
            return Ok(source);
        }
        if let At::Lab(_) = self.at {
            bail!("tcpdump is not installed: apt-get install tcpdump");
        }
        let filter = filter.clone();
        let wanted = move |link_type: u32, frame: &[u8]| filter.wants(link_type, frame);
        Source::own(&self.interface, command.cut(), wanted)
    }

    /// How long packets may come for.
    fn patience(&self, command: &CaptureCommand) -> Duration {
        match self.at {
            // It ends by itself, and what it has seen is on the way for a while.
            At::Pod(_) => command.seconds + START_FAR,
            At::Lab(_) | At::Here => command.seconds,
        }
    }
}

fn with(mut command: Command, argument: &str) -> Command {
    command.arg(argument);
    command
}

/// The link that has one of these addresses, in the present namespace.
fn interface_of(addresses: &[IpAddr]) -> anyhow::Result<Option<String>> {
    let mut netlink = Netlink::open()?;
    let found = netlink.addresses()?;
    let found = found.iter().find(|a| addresses.contains(&a.address.addr()));
    let Some(index) = found.map(|a| a.link) else {
        return Ok(None);
    };
    let links = netlink.links()?;
    Ok(links.into_iter().find(|l| l.index == index).map(|l| l.name))
}

/// What the policy protects; before there is one, the usual overlays.
fn protected(policy: Option<&EncryptionPolicy>, nodes: &[NodeEncryption]) -> Protected {
    let overlay = policy.map(|p| &p.spec.overlay);
    if overlay.is_some_and(|o| o.kind == OverlayType::Routed) {
        let clusterwide = overlay.into_iter().flat_map(|o| &o.pod_cidrs);
        let pods = clusterwide.chain(nodes.iter().flat_map(|n| &n.spec.pod_cidrs));
        let mut pods: Vec<IpNet> = pods.map(IpNet::trunc).collect();
        pods.sort();
        pods.dedup();
        return Protected {
            overlay_ports: Vec::new(),
            pods,
        };
    }
    Protected {
        // Geneve, VXLAN, and VXLAN as Linux first had it.
        overlay_ports: match overlay.and_then(|o| o.udp_port()) {
            Some(port) => vec![port],
            None => vec![6081, 4789, 8472],
        },
        pods: Vec::new(),
    }
}

/// Which packets are taken.
#[derive(Clone)]
struct Filter {
    protected: Protected,
    /// Only packets from or to one of these; empty: all.
    peers: Vec<IpAddr>,
}

impl Filter {
    fn new(
        command: &CaptureCommand,
        nodes: &[NodeEncryption],
        protected: &Protected,
    ) -> anyhow::Result<Self> {
        let mut peers = Vec::new();
        if let Some(peer) = &command.peer {
            let node = nodes.iter().find(|n| n.name() == peer.as_str());
            let node = node.with_context(|| format!("node \"{peer}\" is not known"))?;
            peers.clone_from(&node.spec.addresses);
        }
        Ok(Self {
            protected: protected.clone(),
            peers,
        })
    }

    /// As tcpdump reads it.
    fn expression(&self) -> String {
        let mut wanted = vec!["ip proto 50".to_owned(), "ip6 proto 50".to_owned()];
        for port in [500, 4500].iter().chain(&self.protected.overlay_ports) {
            wanted.push(format!("udp port {port}"));
        }
        // A filter has a longest length; clusters name one prefix for all pods, or few.
        let pods = self.protected.pods.iter().take(64);
        wanted.extend(pods.map(|net| format!("net {net}")));
        let mut filter = format!("({})", wanted.join(" or "));
        if !self.peers.is_empty() {
            let hosts = self.peers.iter().map(|a| format!("host {a}"));
            filter += &format!(" and ({})", hosts.collect::<Vec<_>>().join(" or "));
        }
        filter
    }

    /// Whether a frame is one of them.
    fn wants(&self, link_type: u32, frame: &[u8]) -> bool {
        let Some(packet) = pcap::look(link_type, frame, &self.protected) else {
            return false;
        };
        let ends = [packet.source, packet.destination];
        let of_peer = self.peers.is_empty() || ends.iter().any(|end| self.peers.contains(end));
        packet.kind != PacketKind::Other && of_peer
    }
}

/// What was seen, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    node: String,
    interface: String,
    seconds: f64,
    packets: u64,
    esp_packets: u64,
    esp_in_udp_packets: u64,
    ike_packets: u64,
    keepalives: u64,
    clear_overlay_packets: u64,
    clear_pod_packets: u64,
    other_packets: u64,
    flows: Vec<FlowLine>,
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FlowKey {
    source: IpAddr,
    destination: IpAddr,
    kind: PacketKind,
    spi: Option<u32>,
}

#[derive(Serialize)]
struct FlowLine {
    source: IpAddr,
    destination: IpAddr,
    kind: PacketKind,
    spi: Option<String>,
    packets: u64,
    bytes: u64,
}

impl Summary {
    fn new(place: &Place, command: &CaptureCommand) -> Self {
        Self {
            node: place.node.clone(),
            interface: place.interface.clone(),
            seconds: command.seconds.as_secs_f64(),
            packets: 0,
            esp_packets: 0,
            esp_in_udp_packets: 0,
            ike_packets: 0,
            keepalives: 0,
            clear_overlay_packets: 0,
            clear_pod_packets: 0,
            other_packets: 0,
            flows: Vec::new(),
            file: command.write.clone(),
        }
    }

    fn take(
        &mut self,
        place: &Place,
        command: &CaptureCommand,
        filter: &Filter,
    ) -> anyhow::Result<()> {
        let copy = match command.write.as_deref() {
            None => None,
            Some(_) if command.streams() => Some(Copy::Stdout),
            Some(path) => {
                let file = File::create(path);
                let shown = path.display();
                Some(Copy::File(
                    file.with_context(|| format!("{shown} cannot be written"))?,
                ))
            }
        };
        let mut source = place.open(command, filter)?;
        if command.streams() {
            // For whoever reads the stream, and waits for it to begin.
            eprintln!("listening on {}", place.interface);
        }
        let output = source.output(copy)?;
        let (sender, receiver) = mpsc::sync_channel(1024);
        let protected = filter.protected.clone();
        let reader = std::thread::spawn(move || -> anyhow::Result<()> {
            let mut reader = Reader::new(output)?;
            while let Some(packet) = reader.next(&protected) {
                if sender.send(packet).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut flows = BTreeMap::new();
        let deadline = Instant::now() + place.patience(command);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(packet) => self.count(&packet, &mut flows),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        source.stop()?;
        for packet in receiver {
            self.count(&packet, &mut flows);
        }
        match reader.join() {
            Ok(read) => read.context("the capture's stream")?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        self.flows = flows.into_iter().map(line).collect();
        Ok(())
    }

    fn count(&mut self, packet: &Packet, flows: &mut BTreeMap<FlowKey, (u64, u64)>) {
        self.packets += 1;
        match packet.kind {
            PacketKind::Esp => self.esp_packets += 1,
            PacketKind::Ike => self.ike_packets += 1,
            PacketKind::Keepalive => self.keepalives += 1,
            PacketKind::ClearOverlay => self.clear_overlay_packets += 1,
            PacketKind::ClearPod => self.clear_pod_packets += 1,
            PacketKind::Other => self.other_packets += 1,
        }
        self.esp_in_udp_packets += u64::from(packet.in_udp);
        let key = FlowKey {
            source: packet.source,
            destination: packet.destination,
            kind: packet.kind,
            spi: packet.spi,
        };
        if flows.len() < MAX_FLOWS || flows.contains_key(&key) {
            let flow = flows.entry(key).or_default();
            flow.0 += 1;
            flow.1 += u64::from(packet.length);
        }
    }

    fn report(&self, global: &Global) -> Outcome {
        if global.format().is_data() {
            return output::data(global.format(), self);
        }
        let mut columns =
            Columns::new(["SOURCE", "DESTINATION", "KIND", "SPI", "PACKETS", "BYTES"]);
        for flow in &self.flows {
            columns.row([
                flow.source.to_string(),
                flow.destination.to_string(),
                kind_text(flow.kind).to_owned(),
                flow.spi.clone().unwrap_or_default(),
                flow.packets.to_string(),
                bytes(flow.bytes),
            ]);
        }
        columns.print()?;
        output::line("")?;
        output::line(&self.text())
    }

    fn text(&self) -> String {
        format!(
            "{} packets on {} of {} in {} s: {} ESP ({} in UDP), {} IKE, {} clear overlay, {} clear pod, {} other",
            self.packets,
            self.interface,
            self.node,
            self.seconds,
            self.esp_packets,
            self.esp_in_udp_packets,
            self.ike_packets + self.keepalives,
            self.clear_overlay_packets,
            self.clear_pod_packets,
            self.other_packets
        )
    }
}

fn kind_text(kind: PacketKind) -> &'static str {
    match kind {
        PacketKind::Esp => "ESP",
        PacketKind::Ike => "IKE",
        PacketKind::Keepalive => "keepalive",
        PacketKind::ClearOverlay => "clear overlay",
        PacketKind::ClearPod => "clear pod",
        PacketKind::Other => "other",
    }
}

fn line((key, (packets, bytes)): (FlowKey, (u64, u64))) -> FlowLine {
    FlowLine {
        source: key.source,
        destination: key.destination,
        kind: key.kind,
        spi: key.spi.map(|spi| format!("{spi:08x}")),
        packets,
        bytes,
    }
}
