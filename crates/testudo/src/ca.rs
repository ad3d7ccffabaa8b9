//! `testudo ca`: the cluster's CAs.

mod rotate;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::CLUSTER;
use testudo_model::{CaPhase, CaWaiting, TrustBundleStatus};
use testudo_pki::{TrustBundle, utc};
use testudo_store::Store;

use crate::exit::Outcome;
use crate::global::Global;
use crate::output::{self, Columns, Format};
use crate::policy::few;
use crate::{signals, store};

const EXAMPLES: &str = "\
Examples:
  testudo ca show
  testudo ca rotate                 a new CA and new certificates, traffic unbroken
  testudo ca rotate --timeout 10m
  testudo ca rotate --abort         back to the old CA, while its key is there";

/// The cluster's CAs.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CaCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the CAs that nodes trust, who uses them, and how far a rotation is.
    Show,
    /// Replace the CA: all nodes trust both, then take certificates of the new, then drop the old.
    Rotate {
        /// Take the rotation that goes on back
        #[arg(long)]
        abort: bool,
    },
}

/// Runs the verb.
pub(crate) fn run(command: &CaCommand, global: &Global) -> Outcome {
    match command.verb {
        Verb::Show => show(global),
        Verb::Rotate { abort } => {
            let store = store::open_to_write(global)?;
            signals::runtime()?.block_on(rotate::run(&store, abort, global))
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    subject: String,
    /// What it does: `signs`, `follows`, `goes`, or is `trusted` alone.
    role: &'static str,
    serial: String,
    fingerprint: String,
    key_id: Option<String>,
    not_before: String,
    not_after: String,
    /// Nodes whose certificate it issued.
    nodes: Vec<String>,
}

fn show(global: &Global) -> Outcome {
    let store = store::open_to_read(global)?;
    let (bundle, nodes) = signals::runtime()?.block_on(async {
        let bundle = store.get::<TrustBundleKind>(CLUSTER).await?;
        let nodes = store.list::<NodeEncryptionKind>().await?.items;
        anyhow::Ok((bundle, nodes))
    })?;
    let Some(bundle) = bundle else {
        bail!("there is no CA yet; the controller makes it at its first start");
    };
    let trusted = TrustBundle::from_pem(&bundle.spec.certificates)?;
    let lines: Vec<Line> = trusted
        .facts()
        .enumerate()
        .map(|(index, ca)| {
            let issued_by = |issuer: &str| issuer == ca.subject;
            let users = nodes.iter().filter(|n| {
                let facts = n.status.certificate.as_ref();
                facts.is_some_and(|f| issued_by(&f.issuer))
            });
            Line {
                role: role(&bundle.status, &ca.subject, index),
                nodes: users.map(|n| n.name().to_owned()).collect(),
                not_before: utc(ca.times.not_before),
                not_after: utc(ca.times.not_after),
                subject: ca.subject,
                serial: ca.serial,
                fingerprint: ca.fingerprint,
                key_id: ca.subject_key_id,
            }
        })
        .collect();
    if global.format().is_data() {
        let view = serde_json::json!({
            "cas": lines,
            "rotation": bundle.status,
            "pem": bundle.spec.certificates,
        });
        return output::data(global.format(), &view);
    }
    let wide = global.format() == Format::Wide;
    let mut headers = vec!["SUBJECT", "ROLE", "NOT-AFTER", "NODES", "SHA-256"];
    if wide {
        headers.extend(["SERIAL", "NOT-BEFORE"]);
    }
    let mut columns = Columns::new(headers);
    for line in lines {
        let mut cells = vec![
            line.subject,
            line.role.to_owned(),
            line.not_after,
            line.nodes.len().to_string(),
            line.fingerprint,
        ];
        if wide {
            cells.extend([line.serial, line.not_before]);
        }
        columns.row(cells);
    }
    columns.print()?;
    match rotation(&bundle.status) {
        Some(text) => output::line(&format!("\n{text}")),
        None => Ok(()),
    }
}

fn role(status: &TrustBundleStatus, subject: &str, index: usize) -> &'static str {
    let other = status.other.as_deref() == Some(subject);
    match status.phase {
        _ if index == 0 => "signs",
        CaPhase::Trusting if other => "follows",
        CaPhase::Issuing if other => "goes",
        _ => "trusted",
    }
}

/// How far a rotation is, in one line; none before the first.
pub(crate) fn rotation(status: &TrustBundleStatus) -> Option<String> {
    if status.rotation == 0 && status.message.is_empty() {
        return None;
    }
    let mut text = format!(
        "CA rotation {}: {}",
        status.rotation,
        rotate::progress(status)
    );
    if status.taken_back {
        text += " (taken back)";
    }
    if !status.message.is_empty() {
        text += &format!("; {}", status.message);
    }
    Some(text)
}

/// Nodes, each with what it has not done; of many the first.
pub(crate) fn waiting(on: &[CaWaiting]) -> String {
    let all: Vec<String> = on
        .iter()
        .map(|waiting| format!("{} ({})", waiting.node, waiting.reason))
        .collect();
    few(&all)
}
