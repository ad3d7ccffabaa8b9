//! Real traffic over every flow, while every link of the underlay is listened to.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use testudo_model::Phase;
use testudo_model::policy::OverlayType;

use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::lifecycle::{Progress, random_hex};
use crate::sizes::{Sizes, sizes};
use crate::tap::{Links, Seen, Tap};

/// How long an answer may take, each try.
const TRIES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(900),
];
/// What each try gets once the whole has taken too long.
const HURRIED: [Duration; 1] = [Duration::from_millis(200)];
/// After this the remaining flows are hurried.
const LEISURE: Duration = Duration::from_secs(30);
/// Bytes of a TCP exchange: several segments, also with offloads.
const STREAM: usize = 48 * 1024;
/// A roll-out that moves on meanwhile makes the expectation wrong: then all is asked again.
const ROUNDS: usize = 3;

/// What `testudo lab verify -o json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether all is as it should be.
    pub ok: bool,
    /// The phase in force.
    pub phase: Phase,
    /// Every flow.
    pub flows: Vec<Flow>,
    /// What was on the links meanwhile.
    pub wire: Wire,
    /// What the agents say.
    pub tunnels: Tunnels,
    /// What became of large packets.
    pub sizes: Sizes,
}

/// One flow and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// `pod/n1/p1` or `host/n1`.
    pub from: String,
    /// As `from`.
    pub to: String,
    /// Which row of the table of flows it is.
    pub kind: &'static str,
    /// What the phase and the policy ask for.
    pub expected: Fate,
    /// What was seen.
    pub observed: Fate,
    /// Whether they are the same.
    pub ok: bool,
}

/// What becomes of a flow's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// They arrive, and no link shows their content.
    Encrypted,
    /// A link shows their content.
    Clear,
    /// They arrive and are on no link.
    Local,
    /// They do not arrive.
    Blocked,
}

/// Packets on the underlay's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Wire {
    /// ESP, alone or in UDP.
    pub esp_packets: u64,
    /// Packets of protected flows in clear.
    pub clear_protected_packets: u64,
}

/// Tunnels, counted once a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tunnels {
    /// That stand.
    pub up: u32,
    /// That should stand.
    pub expected: u32,
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Encrypted => "encrypted",
            Self::Clear => "clear",
            Self::Local => "local",
            Self::Blocked => "blocked",
        })
    }
}

/// Sends traffic over every flow of the lab and says what became of it.
pub fn verify(lab: &Lab, progress: Progress<'_>) -> Result<Report> {
    let mut cluster = lab.cluster()?;
    for round in 1.. {
        let report = one_round(lab, &cluster, progress)?;
        let after = lab.cluster()?;
        if after.phase == cluster.phase || round == ROUNDS {
            return Ok(with_tunnels(report, &after));
        }
        progress(&format!(
            "the phase went from {} to {}: once more",
            cluster.phase, after.phase
        ));
        cluster = after;
    }
    unreachable!("the last round returns")
}

/// The verdict is about the tunnels that it shows: one may have come while the flows were tried.
fn with_tunnels(report: Report, after: &Cluster) -> Report {
    let tunnels = tunnels(after);
    Report {
        ok: report.ok && tunnels.up == tunnels.expected,
        tunnels,
        ..report
    }
}

/// Everything but the tunnels.
fn one_round(lab: &Lab, cluster: &Cluster, progress: Progress<'_>) -> Result<Report> {
    let ends = endpoints(lab)?;
    let plan = flows(&ends, cluster);
    progress(&format!("{} flows, phase {}", plan.len(), cluster.phase));
    let tap = Tap::start(lab, Links::All, None)?;
    let start = Instant::now();
    let mut told = start;
    let mut flows = Vec::with_capacity(plan.len());
    for planned in &plan {
        let tries: &[_] = if start.elapsed() < LEISURE {
            &TRIES
        } else {
            &HURRIED
        };
        let observed = observe(lab, &tap, &ends, planned, tries)?;
        flows.push(Flow {
            from: ends[planned.from].name.clone(),
            to: ends[planned.to].name.clone(),
            kind: planned.kind,
            expected: planned.expected,
            observed,
            ok: observed == planned.expected,
        });
        if told.elapsed() >= Duration::from_secs(2) {
            told = Instant::now();
            progress(&format!("{} of {} flows", flows.len(), plan.len()));
        }
    }
    let sizes = sizes(&ends, cluster, lab.layout().pod_mtu)?;
    let seen = tap.stop()?;
    if seen.missed > 0 {
        progress(&format!(
            "{} frames were not captured: the result does not count",
            seen.missed
        ));
    }
    let ok = flows.iter().all(|flow| flow.ok)
        && (cluster.phase != Phase::Strict || seen.clear_protected_packets == 0)
        && sizes.ok()
        && seen.missed == 0;
    Ok(Report {
        sizes,
        ok,
        phase: cluster.phase,
        flows,
        wire: Wire {
            esp_packets: seen.esp_packets,
            clear_protected_packets: seen.clear_protected_packets,
        },
        tunnels: tunnels(cluster),
    })
}

fn tunnels(cluster: &Cluster) -> Tunnels {
    let (up, expected) = cluster.tunnels();
    Tunnels { up, expected }
}

/// A pod or a node, with its sockets.
pub(crate) struct Endpoint {
    name: String,
    pub(crate) node: String,
    pub(crate) is_pod: bool,
    /// The word for its namespace.
    target: String,
    /// How others reach it.
    pub(crate) addresses: Vec<IpAddr>,
    /// The addresses of its node on the underlay.
    outer: Vec<IpAddr>,
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Endpoint {
    pub(crate) fn socket(&self, family: IpAddr) -> &UdpSocket {
        if family.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn endpoints(lab: &Lab) -> Result<Vec<Endpoint>> {
    let mut ends = Vec::new();
    for node in &lab.layout().nodes {
        let host = (
            format!("host/{}", node.name),
            node.name.clone(),
            false,
            &node.addresses,
        );
        let pods = node.pods.iter().map(|pod| {
            let target = format!("{}/{}", node.name, pod.name);
            (format!("pod/{target}"), target, true, &pod.addresses)
        });
        for (name, target, is_pod, addresses) in pods.chain([host]) {
            let (v4, v6) = lab.inside(&target, || {
                let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
                let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("bind")?;
                Ok((v4, v6))
            })?;
            ends.push(Endpoint {
                name,
                node: node.name.clone(),
                is_pod,
                target,
                addresses: addresses.clone(),
                outer: node.addresses.clone(),
                v4,
                v6,
            });
        }
    }
    Ok(ends)
}

/// A flow to be tried; the ends by their place in the list.
struct Planned {
    from: usize,
    to: usize,
    kind: &'static str,
    expected: Fate,
}

/// Every ordered pair of ends, with what the table of flows says about it.
fn flows(ends: &[Endpoint], cluster: &Cluster) -> Vec<Planned> {
    let mut plan = Vec::new();
    for (from, source) in ends.iter().enumerate() {
        for (to, destination) in ends.iter().enumerate() {
            if from == to {
                continue;
            }
            let same_node = source.node == destination.node;
            let kind = kind(source.is_pod, destination.is_pod, same_node);
            let pods = (source.is_pod, destination.is_pod);
            let expected = expected(pods, same_node, cluster);
            plan.push(Planned {
                from,
                to,
                kind,
                expected,
            });
        }
    }
    plan
}

fn kind(from_pod: bool, to_pod: bool, same_node: bool) -> &'static str {
    match (from_pod, to_pod, same_node) {
        (true, true, true) => "pod-pod-local",
        (true, true, false) => "pod-pod-remote",
        (false, true, true) => "host-pod-local",
        (false, true, false) => "host-pod-remote",
        (true, false, true) => "pod-host-local",
        (true, false, false) => "pod-host-remote",
        (false, false, _) => "host-host",
    }
}

/// What goes to a pod crosses the overlay or is routed to a pod CIDR: it is protected. What goes
/// to a host is not, unless the policy says so, or pods are routed: there a pod's packet to a host
/// may be the answer of a protected flow, and no router can tell.
fn expected((from_pod, to_pod): (bool, bool), same_node: bool, cluster: &Cluster) -> Fate {
    let routed = cluster.policy.overlay.kind == OverlayType::Routed;
    let protected = to_pod || (from_pod && routed) || cluster.policy.host_traffic;
    if same_node {
        Fate::Local
    } else if cluster.phase >= Phase::Permissive && protected {
        Fate::Encrypted
    } else {
        Fate::Clear
    }
}

/// Tries one flow over every family that its destination has, and pods over TCP as well. The
/// first answer that is not the expected one is the flow's.
fn observe(
    lab: &Lab,
    tap: &Tap,
    ends: &[Endpoint],
    planned: &Planned,
    tries: &[Duration],
) -> Result<Fate> {
    let (from, to) = (&ends[planned.from], &ends[planned.to]);
    for address in &to.addresses {
        let fate = watched(tap, from, to, planned.expected, |request, reply| {
            datagrams(from, to, *address, tries, request, reply)
        })?;
        if fate != planned.expected {
            return Ok(fate);
        }
    }
    if planned.kind == "pod-pod-remote" {
        return watched(tap, from, to, planned.expected, |request, reply| {
            stream(lab, from, to, request, reply)
        });
    }
    Ok(planned.expected)
}

/// Runs an exchange with tokens of its own and looks where they were seen.
fn watched(
    tap: &Tap,
    from: &Endpoint,
    to: &Endpoint,
    expected: Fate,
    exchange: impl FnOnce(&[u8], &[u8]) -> Result<bool>,
) -> Result<Fate> {
    let request = format!("request-{}", random_hex(16)?).into_bytes();
    let reply = format!("reply-{}", random_hex(16)?).into_bytes();
    tap.look_for(&request);
    tap.look_for(&reply);
    let before = tap.seen();
    let arrived = exchange(&request, &reply)?;
    tap.settle();
    let after = tap.seen();
    let seen = tap.found(&request) + tap.found(&reply) > 0;
    let grew = |from: &Endpoint, to: &Endpoint| {
        esp(&after, &from.outer, &to.outer) > esp(&before, &from.outer, &to.outer)
    };
    Ok(match (arrived, seen) {
        // Read by others is read by others, also when it was dropped at the end.
        (false, true) if expected == Fate::Encrypted => Fate::Clear,
        (false, _) => Fate::Blocked,
        (true, true) => Fate::Clear,
        (true, false) if from.node != to.node && grew(from, to) && grew(to, from) => {
            Fate::Encrypted
        }
        (true, false) => Fate::Local,
    })
}

fn esp(seen: &Seen, from: &[IpAddr], to: &[IpAddr]) -> u64 {
    let between: &BTreeMap<_, _> = &seen.esp_between;
    from.iter()
        .flat_map(|from| to.iter().map(move |to| (*from, *to)))
        .filter_map(|pair| between.get(&pair))
        .sum()
}

/// A datagram there and one back. False: one of them did not arrive.
pub(crate) fn datagrams(
    from: &Endpoint,
    to: &Endpoint,
    address: IpAddr,
    tries: &[Duration],
    request: &[u8],
    reply: &[u8],
) -> Result<bool> {
    let (client, server) = (from.socket(address), to.socket(address));
    let target = SocketAddr::new(
        address,
        server.local_addr().context("local address")?.port(),
    );
    for patience in tries {
        // What a full queue or a rule refuses is a packet that does not arrive.
        if client.send_to(request, target).is_err() {
            std::thread::sleep(*patience);
            continue;
        }
        let deadline = Instant::now() + *patience;
        if let Some(peer) = wait_for(server, request, deadline)?
            && server.send_to(reply, peer).is_ok()
            && wait_for(client, reply, deadline)?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who sent the datagram with this content; none if it does not come in time.
fn wait_for(socket: &UdpSocket, wanted: &[u8], deadline: Instant) -> Result<Option<SocketAddr>> {
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket
            .set_read_timeout(Some(left))
            .context("set a timeout")?;
        // Errors are time-outs, or what ICMP told about an earlier datagram.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer)
            && buffer[..length] == *wanted
        {
            return Ok(Some(peer));
        }
    }
}

/// A TCP connection with enough data for several segments, the token all over it.
fn stream(lab: &Lab, from: &Endpoint, to: &Endpoint, request: &[u8], reply: &[u8]) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let address = to.addresses[0];
    let listener = lab.inside(&to.target, || {
        TcpListener::bind((address, 0)).context("listen")
    })?;
    let target = listener.local_addr().context("local address")?;
    // The handshake is done by the kernel: the connection waits to be accepted.
    let connected = lab.inside(&from.target, || {
        Ok(TcpStream::connect_timeout(&target, PATIENCE))
    })?;
    let Ok(mut client) = connected else {
        return Ok(false);
    };
    let (mut server, _) = listener.accept().context("accept")?;
    for side in [&client, &server] {
        side.set_read_timeout(Some(PATIENCE))
            .context("set a timeout")?;
        side.set_write_timeout(Some(PATIENCE))
            .context("set a timeout")?;
    }
    let body = request.repeat(STREAM / request.len());
    let arrived = std::thread::scope(|scope| {
        let length = body.len();
        let answer = scope.spawn(move || -> std::io::Result<bool> {
            let mut got = vec![0; length];
            server.read_exact(&mut got)?;
            server.write_all(reply)?;
            Ok(got.starts_with(request) && got.ends_with(request))
        });
        let mut got = vec![0; reply.len()];
        let heard = client
            .write_all(&body)
            .and_then(|()| client.read_exact(&mut got))
            .is_ok();
        let whole = matches!(answer.join(), Ok(Ok(true)));
        heard && whole && got == reply
    });
    Ok(arrived)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeView;

    #[test]
    fn expectations_follow_the_table_of_flows() {
        let at = |phase, host_traffic| {
            let mut cluster = Cluster {
                phase,
                ..Cluster::default()
            };
            cluster.policy.host_traffic = host_traffic;
            cluster
        };
        for phase in Phase::ALL {
            let encrypts = phase >= Phase::Permissive;
            let protected = if encrypts {
                Fate::Encrypted
            } else {
                Fate::Clear
            };
            let (hosts, to_pod, to_host) = ((false, false), (false, true), (true, false));
            assert_eq!(expected(to_pod, true, &at(phase, true)), Fate::Local);
            assert_eq!(expected(to_pod, false, &at(phase, false)), protected);
            assert_eq!(expected(to_host, false, &at(phase, false)), Fate::Clear);
            assert_eq!(expected(hosts, false, &at(phase, false)), Fate::Clear);
            assert_eq!(expected(hosts, false, &at(phase, true)), protected);
            let mut routed = at(phase, false);
            routed.policy.overlay.kind = OverlayType::Routed;
            assert_eq!(expected(to_host, false, &routed), protected);
            assert_eq!(expected(hosts, false, &routed), Fate::Clear);
        }
    }

    fn report() -> Report {
        Report {
            ok: true,
            phase: Phase::Strict,
            flows: vec![Flow {
                from: "pod/n1/p1".into(),
                to: "pod/n2/p1".into(),
                kind: kind(true, true, false),
                expected: Fate::Encrypted,
                observed: Fate::Encrypted,
                ok: true,
            }],
            wire: Wire {
                esp_packets: 7,
                clear_protected_packets: 0,
            },
            tunnels: Tunnels { up: 6, expected: 6 },
            sizes: Sizes {
                pod_mtu: 1400,
                effective_mtu: Some(1416),
                full_size: true,
                fragmented: true,
                advice: None,
            },
        }
    }

    #[test]
    fn the_verdict_is_about_the_tunnels_that_are_shown() {
        let node = |up| NodeView {
            datapath: "user".into(),
            degraded: None,
            effective_mtu: None,
            tunnels_up: up,
            tunnels_expected: 2,
        };
        let after = |up| Cluster {
            nodes: [("n1".to_owned(), node(2)), ("n2".to_owned(), node(up))].into(),
            ..Cluster::default()
        };
        let good = with_tunnels(report(), &after(2));
        assert_eq!((good.ok, good.tunnels.up), (true, 4));
        let bad = with_tunnels(report(), &after(1));
        assert_eq!((bad.ok, bad.tunnels.up), (false, 3));
    }

    #[test]
    fn the_report_has_the_shape_that_programs_read() {
        assert_eq!(
            serde_json::to_string(&report()).unwrap(),
            r#"{"ok":true,"phase":"Strict","flows":[{"from":"pod/n1/p1","to":"pod/n2/p1","kind":"pod-pod-remote","expected":"encrypted","observed":"encrypted","ok":true}],"wire":{"esp_packets":7,"clear_protected_packets":0},"tunnels":{"up":6,"expected":6},"sizes":{"pod_mtu":1400,"effective_mtu":1416,"full_size":true,"fragmented":true,"advice":null}}"#
        );
    }
}
