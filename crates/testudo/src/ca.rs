//! `testudo ca`: the cluster's CAs.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::CLUSTER;
use testudo_pki::{TrustBundle, utc};
use testudo_store::Store;

use crate::exit::Outcome;
use crate::global::Global;
use crate::output::{self, Columns, Format};
use crate::{signals, store};

/// The cluster's CAs.
#[derive(Args)]
#[command(after_help = "Examples:\n  testudo ca show\n  testudo ca show -o json")]
pub(crate) struct CaCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the CAs that nodes trust, and who uses them.
    Show,
}

/// Runs the verb.
pub(crate) fn run(command: &CaCommand, global: &Global) -> Outcome {
    match command.verb {
        Verb::Show => show(global),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    subject: String,
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
        .map(|ca| {
            let issued_by = |issuer: &str| issuer == ca.subject;
            let users = nodes.iter().filter(|n| {
                let facts = n.status.certificate.as_ref();
                facts.is_some_and(|f| issued_by(&f.issuer))
            });
            Line {
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
        let view = serde_json::json!({ "cas": lines, "pem": bundle.spec.certificates });
        return output::data(global.format(), &view);
    }
    let wide = global.format() == Format::Wide;
    let mut headers = vec!["SUBJECT", "NOT-AFTER", "NODES", "SHA-256"];
    if wide {
        headers.extend(["SERIAL", "NOT-BEFORE"]);
    }
    let mut columns = Columns::new(headers);
    for line in lines {
        let mut cells = vec![
            line.subject,
            line.not_after,
            line.nodes.len().to_string(),
            line.fingerprint,
        ];
        if wide {
            cells.extend([line.serial, line.not_before]);
        }
        columns.row(cells);
    }
    columns.print()
}
