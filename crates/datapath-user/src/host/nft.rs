//! The nft table that drops clear packets of protected flows.
//!
//! A drop in any base chain is final, so no rule of another firewall can let a packet past these
//! chains. The whole table changes in one transaction; its counters live on.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::HostOptions;
use ipnet::IpNet;
use testudo_datapath::DatapathError;
use testudo_model::{ClearTraffic, ProtectedFlows, TrafficPolicy};

/// The table's name; never `ipsec`, which the nft grammar reserves.
const TABLE: &str = "inet testudo";
const COUNTERS: [&str; 2] = ["clear_inbound", "clear_outbound"];
/// nft commits in milliseconds, but at its end the kernel makes it wait until the transaction's
/// leftovers are freed, an RCU grace period later: on an overloaded machine this takes many
/// seconds. A hang must still not stop the agent for ever.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Makes the table say what the policy says.
pub(super) fn apply(options: &HostOptions, policy: &TrafficPolicy) -> Result<(), DatapathError> {
    match script(&options.device, policy) {
        Some(text) => run(options, &["-f", "-"], &text).map(|_| ()),
        None => remove(options),
    }
}

/// Removes the table, if it is there.
pub(super) fn remove(options: &HostOptions) -> Result<(), DatapathError> {
    // To add it first makes the deletion succeed in either case, in one transaction.
    let text = format!("add table {TABLE}\ndelete table {TABLE}\n");
    match run(options, &["-f", "-"], &text) {
        // Without the program there can be no table of ours.
        Err(DatapathError::Missing { .. }) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Packets dropped by the table so far; nothing when it is not there.
pub(super) fn counters(options: &HostOptions) -> Vec<(&'static str, u64)> {
    let Ok(text) = run(
        options,
        &["-j", "list", "counters", "table", "inet", "testudo"],
        "",
    ) else {
        return Vec::new();
    };
    let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) else {
        return Vec::new();
    };
    let items = json["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    COUNTERS
        .into_iter()
        .filter_map(|name| {
            let found = items
                .iter()
                .map(|item| &item["counter"])
                .find(|c| c["name"] == name)?;
            Some((name, found["packets"].as_u64()?))
        })
        .collect()
}

/// The transaction, or `None` where nothing is dropped.
fn script(device: &str, policy: &TrafficPolicy) -> Option<String> {
    let (mut inbound, mut outbound) = (String::new(), String::new());
    let drop_in = policy.clear_inbound == ClearTraffic::Drop;
    let drop_out = policy.clear_outbound == ClearTraffic::Drop;
    if !drop_in && !drop_out {
        return None;
    }
    match &policy.flows {
        ProtectedFlows::Overlay { port } => {
            if drop_in {
                let _ = writeln!(
                    inbound,
                    "add rule {TABLE} input iifname != \"{device}\" udp dport {port} \
                     counter name clear_inbound drop"
                );
            }
            if drop_out {
                let _ = writeln!(
                    outbound,
                    "add rule {TABLE} output oifname != {{ \"{device}\", \"lo\" }} \
                     udp dport {port} counter name clear_outbound drop"
                );
            }
        }
        ProtectedFlows::Routed { local, cluster } => {
            routed(
                device,
                policy,
                local,
                cluster,
                drop_in.then_some(&mut inbound),
                drop_out.then_some(&mut outbound),
            );
        }
    }
    Some(format!(
        "add table {TABLE}\n\
         add counter {TABLE} clear_inbound\n\
         add counter {TABLE} clear_outbound\n\
         add chain {TABLE} prerouting {{ type filter hook prerouting priority -310; policy accept; }}\n\
         add chain {TABLE} input {{ type filter hook input priority -310; policy accept; }}\n\
         add chain {TABLE} output {{ type filter hook postrouting priority 310; policy accept; }}\n\
         flush chain {TABLE} prerouting\n\
         flush chain {TABLE} input\n\
         flush chain {TABLE} output\n\
         {inbound}{outbound}"
    ))
}

/// Pods' packets between nodes: what claims to come from elsewhere to a pod here must have been
/// opened by us, what goes from here to a pod elsewhere must go through us.
fn routed(
    device: &str,
    policy: &TrafficPolicy,
    local: &[IpNet],
    cluster: &[IpNet],
    inbound: Option<&mut String>,
    outbound: Option<&mut String>,
) {
    let peers = policy.peers.iter();
    let pods: Vec<IpNet> = cluster
        .iter()
        .chain(peers.clone().flat_map(|p| &p.pod_cidrs))
        .copied()
        .collect();
    let nodes: Vec<IpNet> = peers
        .flat_map(|p| &p.addresses)
        .map(|address| IpNet::from(*address))
        .collect();
    let own: Vec<IpNet> = policy.addresses.iter().map(|a| IpNet::from(*a)).collect();
    let sources: Vec<IpNet> = pods.iter().chain(&nodes).copied().collect();
    let (mut rules_in, mut rules_out) = (String::new(), String::new());
    for (word, v4) in [("ip", true), ("ip6", false)] {
        let here = set(local, v4);
        if let (Some(from), Some(to)) = (set(&sources, v4), &here) {
            let _ = writeln!(
                rules_in,
                "add rule {TABLE} prerouting iifname != \"{device}\" {word} saddr {from} \
                 {word} saddr != {to} {word} daddr {to} counter name clear_inbound drop"
            );
        }
        // What pods elsewhere send to this host under their own addresses.
        if let (Some(from), Some(to)) = (set(&pods, v4), set(&own, v4)) {
            let except = here
                .as_ref()
                .map(|here| format!("{word} saddr != {here} "))
                .unwrap_or_default();
            let _ = writeln!(
                rules_in,
                "add rule {TABLE} prerouting iifname != \"{device}\" {word} saddr {from} {except}\
                 {word} daddr {to} counter name clear_inbound drop"
            );
        }
        if let (Some(from), Some(to)) = (&here, set(&nodes, v4)) {
            let _ = writeln!(
                rules_out,
                "add rule {TABLE} output oifname != \"{device}\" {word} saddr {from} \
                 {word} daddr {to} counter name clear_outbound drop"
            );
        }
        if let Some(to) = set(&pods, v4) {
            let except = here
                .map(|here| format!("{word} daddr != {here} "))
                .unwrap_or_default();
            let _ = writeln!(
                rules_out,
                "add rule {TABLE} output oifname != \"{device}\" {word} daddr {to} {except}\
                 counter name clear_outbound drop"
            );
        }
    }
    if let Some(text) = inbound {
        text.push_str(&rules_in);
    }
    if let Some(text) = outbound {
        text.push_str(&rules_out);
    }
}

/// The prefixes of a family as an anonymous set. Merged, since nft refuses overlaps.
fn set(nets: &[IpNet], v4: bool) -> Option<String> {
    let nets: Vec<IpNet> = nets
        .iter()
        .filter(|n| n.addr().is_ipv4() == v4)
        .map(|n| n.trunc())
        .collect();
    let merged = IpNet::aggregate(&nets);
    let texts: Vec<String> = merged.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| format!("{{ {} }}", texts.join(", ")))
}

/// Runs nft with a script on its standard input and gives its standard output.
fn run(options: &HostOptions, arguments: &[&str], script: &str) -> Result<String, DatapathError> {
    let failed = |reason: String| DatapathError::Refused {
        operation: "run nft".into(),
        reason,
    };
    let mut child = Command::new(&options.nft)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => DatapathError::Missing {
                what: "the program nft is missing, without which clear packets cannot be dropped"
                    .into(),
                remedy: "install the package nftables".into(),
            },
            _ => failed(e.to_string()),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on its standard error.
        let _ = stdin.write_all(script.as_bytes());
    }
    let started = Instant::now();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.as_mut().map(|o| o.read_to_string(&mut text));
        text
    });
    let status = loop {
        match child.try_wait().map_err(|e| failed(e.to_string()))? {
            Some(status) => break status,
            None if started.elapsed() > TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("it did not end within 60 s".into()));
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let text = reader.join().unwrap_or_default();
    if status.success() {
        return Ok(text);
    }
    let mut reason = String::new();
    let _ = err
        .as_mut()
        .map(|e| e.take(2000).read_to_string(&mut reason));
    Err(failed(reason.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_prefixes_are_merged() {
        let nets: Vec<IpNet> = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.0.2.7/24"]
            .iter()
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(set(&nets, true).unwrap(), "{ 10.0.0.0/8, 192.0.2.0/24 }");
        assert_eq!(set(&nets, false).unwrap(), "{ fd00::/8 }");
        assert_eq!(set(&nets[2..3], true), None);
    }
}
