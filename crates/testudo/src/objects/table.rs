//! Objects as a table for people.

use testudo_model::external::{ACCEPTED, PROGRAMMED};
use testudo_model::{Condition, ExternalConnection};
use testudo_store::{AnyObject, KindName};

use crate::exit::Outcome;
use crate::output::Columns;

/// Prints objects of one kind; `wide`: with what else people ask for.
pub(super) fn print(kind: KindName, objects: &[AnyObject], wide: bool) -> Outcome {
    let mut headers: Vec<&str> = match kind {
        KindName::Policy => vec!["NAME", "MODE", "ENFORCEMENT", "PHASE", "NODES", "TUNNELS"],
        KindName::Node => vec!["NAME", "ADDRESS", "DATAPATH", "PHASE", "TUNNELS", "MTU"],
        KindName::Request => vec!["NAME", "UID", "STATE"],
        KindName::Bundle => vec!["NAME", "CERTIFICATES"],
        KindName::External => vec![
            "NAME",
            "TYPE",
            "RIGHT",
            "SUBNETS",
            "ACCEPTED",
            "PROGRAMMED",
            "REASON",
        ],
    };
    if wide {
        if kind == KindName::External {
            headers.extend(["LEFT", "CREDENTIAL", "NODES"]);
        }
        headers.extend(["GENERATION", "UID"]);
        if kind == KindName::External {
            headers.push("MESSAGE");
        }
    }
    let mut columns = Columns::new(headers);
    for object in objects {
        let mut cells = cells(object);
        if wide {
            let metadata = match object {
                AnyObject::Policy(o) => &o.metadata,
                AnyObject::Node(o) => &o.metadata,
                AnyObject::Request(o) => &o.metadata,
                AnyObject::Bundle(o) => &o.metadata,
                AnyObject::External(o) => {
                    cells.extend(wide_cells(o));
                    &o.metadata
                }
            };
            cells.push(metadata.generation.to_string());
            cells.push(metadata.uid.clone().unwrap_or_default());
            if let AnyObject::External(o) = object {
                cells.push(message(o));
            }
        }
        columns.row(cells);
    }
    columns.print()
}

fn cells(object: &AnyObject) -> Vec<String> {
    match object {
        AnyObject::Policy(o) => vec![
            o.name().to_owned(),
            format!("{:?}", o.spec.mode),
            format!("{:?}", o.spec.enforcement),
            o.status.phase.to_string(),
            format!("{}/{}", o.status.nodes_acknowledged, o.status.nodes),
            format!("{}/{}", o.status.tunnels_up, o.status.tunnels_expected),
        ],
        AnyObject::Node(o) => vec![
            o.name().to_owned(),
            o.spec
                .addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            o.spec.datapath.clone(),
            o.status
                .acknowledged
                .map(|a| a.phase.to_string())
                .unwrap_or_default(),
            format!("{}/{}", o.status.tunnels_up, o.status.tunnels_expected),
            o.status
                .effective_mtu
                .map(|m| m.to_string())
                .unwrap_or_default(),
        ],
        AnyObject::Request(o) => {
            let answered = o.status.answers.as_ref() == Some(&o.spec.proof);
            let state = match (&o.status.denied, answered) {
                (_, false) => "pending".to_owned(),
                (Some(why), true) => format!("denied: {why}"),
                (None, true) => "issued".to_owned(),
            };
            vec![o.name().to_owned(), o.spec.uid.to_string(), state]
        }
        AnyObject::Bundle(o) => vec![
            o.name().to_owned(),
            o.spec
                .certificates
                .matches("BEGIN CERTIFICATE")
                .count()
                .to_string(),
        ],
        AnyObject::External(o) => {
            let said = |kind: &str| said(o, kind).map(|c| format!("{:?}", c.status));
            let reason = telling(o).map(|c| c.reason.clone());
            vec![
                o.name().to_owned(),
                format!("{:?}", o.spec.kind).to_ascii_lowercase(),
                o.spec.right.to_string(),
                list(&o.spec.right_subnets),
                said(ACCEPTED).unwrap_or_default(),
                said(PROGRAMMED).unwrap_or_default(),
                reason.unwrap_or_default(),
            ]
        }
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

/// What is said of a connection under a type of condition.
fn said<'o>(connection: &'o ExternalConnection, kind: &str) -> Option<&'o Condition> {
    let mut conditions = connection.status.conditions.iter();
    conditions.find(|condition| condition.kind == kind)
}

/// The condition that says most: why it is not accepted, else how far it is.
fn telling(connection: &ExternalConnection) -> Option<&Condition> {
    let refused = said(connection, ACCEPTED).filter(|c| !c.message.is_empty());
    refused.or_else(|| said(connection, PROGRAMMED))
}

fn message(connection: &ExternalConnection) -> String {
    telling(connection)
        .map(|condition| condition.message.clone())
        .unwrap_or_default()
}

fn wide_cells(connection: &ExternalConnection) -> [String; 3] {
    let spec = &connection.spec;
    let certificate = spec.left_cert.as_ref().map(|cert| &cert.secret_name);
    let credential = match (certificate, spec.psk.as_ref().map(|psk| &psk.secret_name)) {
        (Some(secret), _) => format!("certificate/{secret}"),
        (None, Some(secret)) => format!("psk/{secret}"),
        (None, None) => String::new(),
    };
    let selector = &spec.node_selector;
    let nodes = match (selector.is_all(), selector.names.is_empty()) {
        (true, _) => "all".to_owned(),
        (false, false) => list(&selector.names),
        (false, true) => {
            let labels = selector.match_labels.iter();
            let labels = labels.map(|(key, value)| format!("{key}={value}"));
            let more = selector
                .match_expressions
                .iter()
                .map(|one| format!("{} {:?} ({})", one.key, one.operator, one.values.join(",")));
            list(&labels.chain(more).collect::<Vec<_>>())
        }
    };
    [spec.left.to_string(), credential, nodes]
}
