//! `testudo status --tunnels`: every tunnel as its agent sees it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use testudo_agent::api::{self, ChildView, Gettable, Request, TunnelView};
use testudo_model::NodeEncryption;

use crate::exit::{CheckFailed, Outcome};
use crate::global::Global;
use crate::output::{self, age, bytes};
use crate::pods::Pods;

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Agents asked at once.
const AT_ONCE: usize = 16;

/// How long the answer of an agent in a pod may take: kubectl, the API server and the kubelet are on the
/// way.
const PATIENCE_FAR: Duration = Duration::from_secs(30);

/// What the agents answered, for programs.
#[derive(Serialize, Deserialize)]
struct Answers {
    tunnels: Vec<TunnelView>,
    errors: Vec<Silent>,
}

/// An agent that did not answer.
#[derive(Serialize, Deserialize)]
struct Silent {
    node: String,
    error: String,
}

/// Asks the agents of these nodes and prints what they say. Exit code 1 when one did not answer.
///
/// An agent whose socket is on this host is asked there; others are in pods of a cluster.
pub(crate) fn show(nodes: &[NodeEncryption], global: &Global) -> Outcome {
    let all_here = nodes.iter().all(|node| socket_here(node).is_some());
    let pods = match all_here {
        true => None,
        false => Pods::find(global)?,
    };
    let answers = ask_all(nodes, pods.as_ref());
    if global.format().is_data() {
        output::data(global.format(), &answers)?;
    } else {
        for tunnel in &answers.tunnels {
            output::line(&text(tunnel))?;
        }
        let up = answers.tunnels.iter().filter(|t| t.up).count();
        output::line(&format!("{up} of {} tunnels up", answers.tunnels.len()))?;
    }
    for silent in &answers.errors {
        eprintln!("node {}: {}", silent.node, silent.error);
    }
    match answers.errors.is_empty() {
        true => Ok(()),
        false => Err(CheckFailed.into()),
    }
}

fn ask_all(nodes: &[NodeEncryption], pods: Option<&Pods>) -> Answers {
    let mut answers = Answers {
        tunnels: Vec::new(),
        errors: Vec::new(),
    };
    for some in nodes.chunks(AT_ONCE) {
        let replies: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|n| scope.spawn(|| ask(n, pods))).collect();
            asked
                .into_iter()
                .map(std::thread::ScopedJoinHandle::join)
                .collect()
        });
        for (node, reply) in some.iter().zip(replies) {
            match reply {
                Ok(Ok(tunnels)) => answers.tunnels.extend(tunnels),
                Ok(Err(error)) => answers.silent(node, format!("{error:#}")),
                Err(_) => answers.silent(node, "asking it failed".to_owned()),
            }
        }
    }
    answers
}

impl Answers {
    fn silent(&mut self, node: &NodeEncryption, error: String) {
        self.errors.push(Silent {
            node: node.name().to_owned(),
            error,
        });
    }
}

/// The agent's socket, if it is on this host.
fn socket_here(node: &NodeEncryption) -> Option<&Path> {
    let socket = node.spec.agent_socket.as_deref().map(Path::new);
    socket.filter(|socket| socket.exists())
}

fn ask(node: &NodeEncryption, pods: Option<&Pods>) -> anyhow::Result<Vec<TunnelView>> {
    if let (Some(pods), None) = (pods, socket_here(node)) {
        return ask_pod(node.name(), pods);
    }
    let Some(socket) = &node.spec.agent_socket else {
        anyhow::bail!("its agent has not said where its socket is");
    };
    let request = Request::Get {
        get: Gettable::Tunnels,
    };
    let response = api::ask(Path::new(socket), &request, PATIENCE)?;
    let tunnels = response.tunnels.unwrap_or_default();
    // Agents of other clusters may have their sockets in the same place.
    match (tunnels.iter().find(|t| t.node != node.name()), pods) {
        (None, _) => Ok(tunnels),
        (Some(_), Some(pods)) => ask_pod(node.name(), pods),
        (Some(other), None) => {
            anyhow::bail!("{socket} is the socket of the agent of {}", other.node)
        }
    }
}

fn ask_pod(node: &str, pods: &Pods) -> anyhow::Result<Vec<TunnelView>> {
    let words = ["status", "--tunnels", "--node", node, "-o", "json"];
    let answer = pods.ask(node, &words, PATIENCE_FAR)?;
    let answers: Answers = serde_json::from_slice(&answer)
        .context("what the program in its pod says is not understood: another build")?;
    match answers.errors.into_iter().next() {
        Some(silent) => anyhow::bail!("{}", silent.error),
        None => Ok(answers.tunnels),
    }
}

/// One tunnel as a block of lines. No key is ever part of an agent's answer.
fn text(tunnel: &TunnelView) -> String {
    let mut block = Block::new(format!(
        "Tunnel {} -> {} ({}): {}",
        tunnel.node,
        tunnel.peer,
        tunnel.address_family,
        if tunnel.up { "up" } else { "down" }
    ));
    block.field("Interface", Some(&tunnel.interface));
    block.field("Tunnel type", Some(&tunnel.tunnel_type));
    block.field("Local IP", tunnel.local_ip.as_ref());
    block.field("Remote IP", tunnel.remote_ip.as_ref());
    block.field("Address family", Some(&tunnel.address_family));
    block.field("Mark", tunnel.mark.as_ref());
    block.field("Local certificate", tunnel.local_certificate.as_ref());
    block.field("Local CA", tunnel.local_ca.as_ref());
    block.field("Remote certificate", tunnel.remote_certificate.as_ref());
    block.field("Remote CA", tunnel.remote_ca.as_ref());
    block.field(
        "Remote certificate until",
        tunnel.remote_certificate_not_after.as_ref(),
    );
    block.field(
        "PSK",
        Some(if tunnel.psk {
            "in use (hidden)"
        } else {
            "None"
        }),
    );
    block.field("MTU", tunnel.mtu.as_ref());
    let encapsulation = tunnel.encapsulation.as_ref().map(|how| {
        let why = match tunnel.esp_filtered {
            true => " (ESP is filtered on the path)",
            false => "",
        };
        format!("{how}{why}")
    });
    block.field("Encapsulation", encapsulation);
    block.field(
        "Kernel policies installed",
        Some(match tunnel.kernel_policies_installed {
            Some(number) => number.to_string(),
            None => "the kernel could not be asked".to_owned(),
        }),
    );
    block.field(
        "Security associations installed",
        Some(tunnel.security_associations_installed),
    );
    block.field("Connections active", Some(tunnel.connections_active));
    if let Some(ike) = &tunnel.ike {
        let role = if ike.initiator {
            "initiator"
        } else {
            "responder"
        };
        block.field(
            "IKE SA",
            Some(format!(
                "{}_i {}_r, {role}, {}, age {}",
                ike.initiator_spi,
                ike.responder_spi,
                ike.suite,
                age(ike.age)
            )),
        );
    }
    for child in &tunnel.children {
        block.field("Child SA", Some(child_text(child)));
    }
    block.field("In", Some(amount(tunnel.packets_in, tunnel.bytes_in)));
    block.field("Out", Some(amount(tunnel.packets_out, tunnel.bytes_out)));
    block.field(
        "Rekeys",
        Some(format!(
            "{} child, {} IKE, {} authentications",
            tunnel.child_rekeys, tunnel.ike_rekeys, tunnel.authentications
        )),
    );
    let error = match (&tunnel.last_error, tunnel.last_error_at) {
        (Some(error), Some(at)) => Some(format!("{error} ({at})")),
        (Some(error), None) => Some(error.clone()),
        (None, _) => None,
    };
    block.field("Last error", error.as_ref());
    block.lines.join("\n")
}

fn child_text(child: &ChildView) -> String {
    format!(
        "{} {} {}, SPI in {} out {}{}, age {}, in {}, out {}",
        child.name,
        child.mode,
        child.cipher,
        child.spi_in,
        child.spi_out,
        if child.sending { ", sending" } else { "" },
        age(child.age),
        amount(child.packets_in, child.bytes_in),
        amount(child.packets_out, child.bytes_out)
    )
}

fn amount(packets: u64, octets: u64) -> String {
    format!("{packets} packets, {}", bytes(octets))
}

struct Block {
    lines: Vec<String>,
}

impl Block {
    fn new(head: String) -> Self {
        Self { lines: vec![head] }
    }

    fn field(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        let name = format!("{name}:");
        self.lines.push(match value {
            Some(value) => format!("  {name:33}{value}"),
            None => format!("  {name:33}None"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::PeerId;

    #[test]
    fn every_field_of_the_contract_is_printed() {
        let tunnel = TunnelView {
            node: "n1".into(),
            peer: PeerId::new("n2").unwrap(),
            interface: "testudo0".into(),
            tunnel_type: "vxlan".into(),
            local_ip: "10.0.0.1".parse().ok(),
            remote_ip: "10.0.0.2".parse().ok(),
            address_family: "IPv4".into(),
            mark: None,
            local_certificate: Some("n1".into()),
            local_ca: Some("Testudo CA 1".into()),
            remote_certificate: Some("n2".into()),
            remote_ca: Some("Testudo CA 1".into()),
            remote_certificate_not_after: None,
            psk: false,
            mtu: Some(1454),
            kernel_policies_installed: Some(3),
            security_associations_installed: 2,
            connections_active: 1,
            up: true,
            encapsulation: Some("UDP".into()),
            esp_filtered: true,
            ike: None,
            children: vec![],
            packets_in: 1,
            packets_out: 2,
            bytes_in: 100,
            bytes_out: 4096,
            child_rekeys: 0,
            ike_rekeys: 0,
            authentications: 1,
            last_error: None,
            last_error_at: None,
        };
        let text = text(&tunnel);
        for wanted in [
            "Tunnel n1 -> n2 (IPv4): up",
            "Interface:",
            "Tunnel type:",
            "Local IP:",
            "Remote IP:",
            "Address family:",
            "Mark:",
            "Local certificate:",
            "Remote CA:",
            "PSK:",
            "MTU:",
            "UDP (ESP is filtered on the path)",
            "Kernel policies installed:",
            "Security associations installed:",
            "Connections active:",
            "4.0 KiB",
            "Last error:",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
    }
}
