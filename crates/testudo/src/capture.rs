//! `testudo capture`: what a node's link carries, told apart.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
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

use crate::exit::{CheckFailed, Outcome};
use crate::global::{Global, parse_time};
use crate::output::{self, Columns, bytes};
use crate::pcap::{Packet, PacketKind, Protected, Reader};
use crate::{signals, store};

/// Flows that are counted one by one; more are counted in the sums alone.
const MAX_FLOWS: usize = 512;

/// How long tcpdump may take to begin.
const START: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  testudo capture --node n1 --seconds 5
  testudo capture --node n1 --peer n2 -o json
  testudo capture --node n1 --write n1.pcap";

/// Watch what a node's link carries: ESP, IKE, clear.
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

    /// Keep the packets in this file too
    #[arg(long, value_name = "FILE.pcap")]
    write: Option<PathBuf>,
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
    let place = Place::find(command, lab, &nodes)?;
    let protected = protected(policy.as_ref(), &nodes);
    let filter = filter(command, &nodes, &protected)?;
    eprintln!(
        "watching {} of {} for {} s",
        place.interface,
        place.node,
        command.seconds.as_secs_f64()
    );
    let mut summary = Summary::new(&place, command);
    summary.take(&place, command, &filter, &protected)?;
    summary.report(global)
}

/// Where packets are taken.
struct Place {
    node: String,
    interface: String,
    lab: Option<Lab>,
}

impl Place {
    fn find(
        command: &CaptureCommand,
        lab: Option<Lab>,
        nodes: &[NodeEncryption],
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
                lab: Some(lab),
            });
        }
        // Outside of a lab only this host's own link can be watched.
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
                    lab: None,
                });
            }
        }
        match &command.node {
            Some(node) => bail!("no link of this host has an address of {node}: run it on {node}"),
            None => bail!("no link of this host has an address of a known node"),
        }
    }

    fn tcpdump(&self) -> anyhow::Result<Command> {
        match &self.lab {
            // tcpdump gives up root's rights, and a user's namespace has no other user to become.
            Some(lab) if matches!(lab.place(), testudo_lab::Place::Inside { .. }) => bail!(
                "tcpdump does not run in a lab without root: \
                 testudo lab capture --name {} --node {} --write FILE.pcap",
                lab.name(),
                self.node
            ),
            Some(lab) => lab.command(&self.node, "tcpdump"),
            None => Ok(Command::new("tcpdump")),
        }
    }
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

fn filter(
    command: &CaptureCommand,
    nodes: &[NodeEncryption],
    protected: &Protected,
) -> anyhow::Result<String> {
    let mut wanted = vec!["ip proto 50".to_owned(), "ip6 proto 50".to_owned()];
    for port in [500, 4500].iter().chain(&protected.overlay_ports) {
        wanted.push(format!("udp port {port}"));
    }
    // A filter has a longest length; clusters name one prefix for all pods, or few.
    let pods = protected.pods.iter().take(64);
    wanted.extend(pods.map(|net| format!("net {net}")));
    let mut filter = format!("({})", wanted.join(" or "));
    if let Some(peer) = &command.peer {
        let node = nodes.iter().find(|n| n.name() == peer.as_str());
        let node = node.with_context(|| format!("node \"{peer}\" is not known"))?;
        let hosts = node.spec.addresses.iter().map(|a| format!("host {a}"));
        filter += &format!(" and ({})", hosts.collect::<Vec<_>>().join(" or "));
    }
    Ok(filter)
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
        filter: &str,
        protected: &Protected,
    ) -> anyhow::Result<()> {
        let mut tcpdump = Tcpdump::start(place, filter, command.write.as_deref())?;
        let output = tcpdump.output.take().context("tcpdump has no output")?;
        let (sender, receiver) = mpsc::sync_channel(1024);
        let protected = protected.clone();
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
        let deadline = Instant::now() + command.seconds;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(packet) => self.count(&packet, &mut flows),
                Err(_) => break,
            }
        }
        tcpdump.stop();
        for packet in receiver {
            self.count(&packet, &mut flows);
        }
        let _ = reader.join();
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
        output::line(&format!(
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
        ))
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

/// A tcpdump that runs; it ends with this value.
struct Tcpdump {
    child: Child,
    output: Option<Tee>,
}

impl Tcpdump {
    fn start(place: &Place, filter: &str, file: Option<&Path>) -> anyhow::Result<Self> {
        let file = file.map(|path| {
            let shown = path.display();
            File::create(path).with_context(|| format!("{shown} cannot be written"))
        });
        let file = file.transpose()?;
        let mut command = place.tcpdump()?;
        command.args(["-i", &place.interface, "-n", "-U", "-w", "-"]);
        if file.is_none() {
            // Headers are enough to tell packets apart.
            command.args(["-s", "160"]);
        }
        let spawned = command
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("tcpdump is not installed: apt-get install tcpdump");
            }
            other => other.context("tcpdump cannot be started")?,
        };
        let input = child.stdout.take().context("tcpdump has no output")?;
        let output = Some(Tee { input, file });
        let mut this = Self { child, output };
        this.wait_until_listening()?;
        Ok(this)
    }

    /// Packets are seen from the moment on at which tcpdump says that it listens.
    fn wait_until_listening(&mut self) -> anyhow::Result<()> {
        let errors = self.child.stderr.take().context("tcpdump has no errors")?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                // After the wait nobody listens, but tcpdump must not block on a full pipe.
                let _ = sender.send(line);
            }
        });
        let deadline = Instant::now() + START;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(line) if line.contains("listening on") => return Ok(()),
                Ok(line) => said.push(line),
                Err(_) => bail!("tcpdump did not begin: {}", said.join("; ")),
            }
        }
    }

    fn stop(&mut self) {
        // What is to be said about a process that is gone already has been said.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Passes a stream on, and keeps a copy in a file.
struct Tee {
    input: std::process::ChildStdout,
    file: Option<File>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(buffer)?;
        if let Some(file) = &mut self.file {
            file.write_all(&buffer[..n])?;
        }
        Ok(n)
    }
}
