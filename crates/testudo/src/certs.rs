//! `testudo certs`: the nodes' certificates.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{CLUSTER, EncryptionPolicyKind, NODE_ROTATION, rotation_of};
use testudo_model::{EncryptionPolicy, NodeEncryption, NodeName, UnixTime};
use testudo_store::{Event, Store, tokens};
use testudo_store_kube::AnyStore;

use crate::exit::{Outcome, TimedOut};
use crate::global::Global;
use crate::output::{self, Columns, Format};
use crate::policy::few;
use crate::{signals, store};

const EXAMPLES: &str = "\
Examples:
  testudo certs list -o wide
  testudo certs rotate              every node gets a new certificate
  testudo certs rotate n2
  testudo certs token n4            make the join token that a new node needs";

/// The nodes' certificates.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CertsCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print every node's certificate in use.
    List,
    /// Have nodes take new keys and certificates, with traffic unbroken.
    Rotate {
        /// One node instead of all
        #[arg(value_name = "NODE")]
        node: Option<NodeName>,
    },
    /// Make the join token of a node, if it has none, and print its file.
    Token {
        /// The node
        #[arg(value_name = "NODE")]
        node: NodeName,
    },
}

/// Runs the verb.
pub(crate) fn run(command: &CertsCommand, global: &Global) -> Outcome {
    match &command.verb {
        Verb::List => list(global),
        Verb::Rotate { node } => {
            let store = store::open_to_write(global)?;
            let node = node.as_ref().map(NodeName::as_str);
            signals::runtime()?.block_on(rotate(&store, node, global))
        }
        Verb::Token { node } => token(node, global),
    }
}

/// One node's certificate, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    node: String,
    serial: Option<String>,
    subject: Option<String>,
    issuer: Option<String>,
    not_before: Option<UnixTime>,
    not_after: Option<UnixTime>,
    /// When the node asks for the next one, at the latest.
    renew_at: Option<UnixTime>,
    rotation: u64,
}

fn list(global: &Global) -> Outcome {
    let store = store::open_to_read(global)?;
    let (nodes, policy) = signals::runtime()?.block_on(async {
        let nodes = store.list::<NodeEncryptionKind>().await?.items;
        let policy = store.get::<EncryptionPolicyKind>(CLUSTER).await?;
        anyhow::Ok((nodes, policy))
    })?;
    let renew_after = policy
        .unwrap_or_else(default_policy)
        .spec
        .certificates
        .renew_after;
    let lines: Vec<Line> = nodes
        .into_iter()
        .map(|node| {
            let facts = node.status.certificate.as_ref();
            Line {
                serial: facts.map(|f| f.serial.clone()),
                subject: facts.map(|f| f.subject.clone()),
                issuer: facts.map(|f| f.issuer.clone()),
                not_before: facts.map(|f| f.not_before),
                not_after: facts.map(|f| f.not_after),
                renew_at: facts.map(|f| (f.not_before + renew_after.0).min(f.not_after)),
                rotation: node.status.rotation,
                node: node.metadata.name,
            }
        })
        .collect();
    if global.format().is_data() {
        return output::data(
            global.format(),
            &serde_json::json!({ "certificates": lines }),
        );
    }
    let wide = global.format() == Format::Wide;
    let mut headers = vec!["NODE", "SERIAL", "ISSUER", "NOT-AFTER"];
    if wide {
        headers.extend(["SUBJECT", "NOT-BEFORE", "RENEW-AT", "ROTATION"]);
    }
    let mut columns = Columns::new(headers);
    for line in lines {
        let time = |t: Option<UnixTime>| t.map(|t| t.to_string()).unwrap_or_default();
        let mut cells = vec![
            line.node,
            line.serial.unwrap_or_default(),
            line.issuer.unwrap_or_default(),
            time(line.not_after),
        ];
        if wide {
            cells.extend([
                line.subject.unwrap_or_default(),
                time(line.not_before),
                time(line.renew_at),
                line.rotation.to_string(),
            ]);
        }
        columns.row(cells);
    }
    columns.print()
}

fn default_policy() -> EncryptionPolicy {
    EncryptionPolicy::new(CLUSTER, Default::default())
}

fn token(node: &NodeName, global: &Global) -> Outcome {
    let store = store::open_dir(
        global,
        "with Kubernetes no join token is needed: a pod's service account token says its node",
    )?;
    tokens::ensure(&store, node)?;
    let path = tokens::path(&store, node);
    if global.format().is_data() {
        let view = serde_json::json!({ "node": node.as_str(), "file": path });
        return output::data(global.format(), &view);
    }
    eprintln!("bring this file to {node} and start its agent with --join-token-file");
    output::line(&path.display().to_string())
}

/// What is waited for: each node's serial before, and the rotation it has to reach.
type Pending = BTreeMap<String, (Option<String>, u64)>;

async fn rotate(store: &AnyStore, node: Option<&str>, global: &Global) -> Outcome {
    let began = Instant::now();
    let mut watch = store.watch::<NodeEncryptionKind>().await?;
    let nodes = store.list::<NodeEncryptionKind>().await?.items;
    if let Some(name) = node
        && !nodes.iter().any(|n| n.name() == name)
    {
        bail!("node {name:?} is not known; see `testudo get nodes`");
    }
    let policy = raise(store, node).await?;
    let mut pending: Pending = nodes
        .iter()
        .filter(|n| node.is_none_or(|name| n.name() == name))
        .map(|n| (n.name().to_owned(), wanted(n, &policy)))
        .collect();
    let rotated: Vec<String> = pending.keys().cloned().collect();
    if global.wait != Some(false) {
        let follow = async {
            while !pending.is_empty() {
                match watch.next().await {
                    Some(Event::Added(node) | Event::Modified(node)) => {
                        settle(&mut pending, &node, began);
                    }
                    Some(Event::Deleted(node)) => {
                        pending.remove(node.name());
                    }
                    Some(_) => {}
                    None => bail!("the store has gone away"),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(global.timeout(), follow).await {
            Ok(done) => done?,
            Err(_) => return Err(late(&pending, global)),
        }
    }
    report(global, &rotated, began)
}

/// Asks for the rotation in the policy.
async fn raise(store: &AnyStore, node: Option<&str>) -> anyhow::Result<EncryptionPolicy> {
    for _ in 0..8 {
        let Some(mut policy) = store.get::<EncryptionPolicyKind>(CLUSTER).await? else {
            bail!("there is no policy yet: run `testudo init` first");
        };
        match node {
            None => policy.spec.certificates.rotation += 1,
            Some(name) => {
                let key = format!("{NODE_ROTATION}{name}");
                let old = policy.metadata.annotations.get(&key);
                let old: u32 = old.and_then(|text| text.parse().ok()).unwrap_or(0);
                let new = old.saturating_add(1).to_string();
                policy.metadata.annotations.insert(key, new);
            }
        }
        match store.apply(policy).await {
            Ok(applied) => return Ok(applied.object),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.into()),
        }
    }
    bail!("the policy is being changed by others all the time: try again")
}

fn wanted(node: &NodeEncryption, policy: &EncryptionPolicy) -> (Option<String>, u64) {
    let serial = node.status.certificate.as_ref().map(|c| c.serial.clone());
    (serial, rotation_of(policy, node.name()))
}

/// A node is done when it reports the rotation with another serial than before.
fn settle(pending: &mut Pending, node: &NodeEncryption, began: Instant) {
    let Some((before, rotation)) = pending.get(node.name()) else {
        return;
    };
    let Some(facts) = &node.status.certificate else {
        return;
    };
    if node.status.rotation >= *rotation && before.as_ref() != Some(&facts.serial) {
        pending.remove(node.name());
        let seconds = began.elapsed().as_secs_f64();
        eprintln!("{seconds:6.2} s  {}: serial {}", node.name(), facts.serial);
    }
}

fn late(pending: &Pending, global: &Global) -> anyhow::Error {
    let names: Vec<String> = pending.keys().cloned().collect();
    anyhow::Error::new(TimedOut(format!(
        "no new certificate in use after {} s on {}; see `testudo get requests` and the agents' logs",
        global.timeout().as_secs_f64(),
        few(&names)
    )))
}

fn report(global: &Global, rotated: &[String], began: Instant) -> Outcome {
    let waited = global.wait != Some(false);
    let seconds = began.elapsed().as_secs_f64();
    if global.format().is_data() {
        let view = serde_json::json!({
            "nodes": rotated,
            "done": waited,
            "seconds": (seconds * 1000.0).round() / 1000.0,
        });
        return output::data(global.format(), &view);
    }
    output::line(&match waited {
        true => format!("{} certificates rotated, {seconds:.2} s", rotated.len()),
        false => format!("rotation asked of {} nodes", rotated.len()),
    })
}
