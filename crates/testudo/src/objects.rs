//! `testudo apply | delete | get`: the store's objects as manifests.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use testudo_model::NodeName;
use testudo_model::external::NOT_SERVED;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::EncryptionPolicyKind;
use testudo_store::{
    AnyObject, DirStore, KindName, Problem, Store, StoreError, manifest, removed, tokens,
};
use testudo_store_kube::AnyStore;

use crate::change::{Done, Manner, report};
use crate::exit::{CheckFailed, Outcome};
use crate::global::Global;
use crate::nmstate::{self, Step};
use crate::openshift::Wish;
use crate::output::{self, Format};
use crate::{patch, policy, signals, store};

mod table;

/// Longest manifest on standard input, in bytes.
const MAX_INPUT: u64 = 4 << 20;

const APPLY_EXAMPLES: &str = "\
Examples:
  testudo apply -f policy.yaml
  testudo apply -f policy.yaml --diff         what would change
  testudo apply -f - < policy.yaml
  testudo apply -f cluster-network-03-config.yml";

/// Put the objects of a file into the store.
///
/// OpenShift's ipsecConfig is taken too, as a manifest of networks.operator.openshift.io, as a merge
/// patch of it or as a JSON patch (a list of operations). So are the interfaces of type ipsec of
/// NMState's NodeNetworkConfigurationPolicies: they become ExternalConnections.
#[derive(Args)]
#[command(after_help = APPLY_EXAMPLES)]
pub(crate) struct ApplyCommand {
    /// The manifest, or - for standard input
    #[arg(
        short = 'f',
        long = "file",
        visible_alias = "filename",
        value_name = "FILE"
    )]
    file: PathBuf,

    #[command(flatten)]
    manner: Manner,
}

/// Remove an object, or those of a file, from the store.
///
/// A node that is removed loses its certificates and its join token: its peers drop it, and it comes
/// back only with a new token (`testudo certs token NODE`).
#[derive(Args)]
#[command(
    after_help = "Examples:\n  testudo delete node n4          it is thrown out of the cluster\n  testudo delete -f node-n4.yaml"
)]
pub(crate) struct DeleteCommand {
    /// EncryptionPolicy, NodeEncryption, CertificateRequest, TrustBundle or ExternalConnection; short names work
    #[arg(
        value_name = "KIND",
        requires = "name",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    kind: Option<KindName>,

    /// Its name
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// The manifest, or - for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Print objects of the store.
#[derive(Args)]
#[command(after_help = "Examples:\n  testudo get nodes\n  testudo get policy cluster -o yaml")]
pub(crate) struct GetCommand {
    /// EncryptionPolicy, NodeEncryption, CertificateRequest, TrustBundle or ExternalConnection; short names work
    #[arg(value_name = "KIND")]
    kind: KindName,

    /// One object
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// `testudo apply -f`.
pub(crate) fn apply(command: &ApplyCommand, global: &Global) -> Outcome {
    let manner = command.manner;
    let (mut objects, policies) = match load(&command.file)? {
        Loaded::Objects(objects) => (objects, Vec::new()),
        Loaded::Nmstate(policies) => (Vec::new(), policies),
        Loaded::OpenShift(wish) => return patch::wished(&wish, manner, global),
    };
    for field in policies.iter().flat_map(|policy| &policy.passed_over) {
        eprintln!("{field}: not Testudo's, passed over");
    }
    let store = match manner.only_shows() {
        true => store::open_to_read(global)?,
        false => store::open_to_write(global)?,
    };
    let (done, connections) = signals::runtime()?.block_on(async {
        let mut done = Vec::new();
        for step in nmstate::steps(&store, &policies).await? {
            let kind = KindName::External;
            match step {
                Step::Apply(connection) => objects.push(AnyObject::External(*connection)),
                Step::Absent(name) => done.push(Done::new(kind, &name, "not there")),
                Step::Remove(name) if manner.only_shows() => {
                    done.push(Done::shown(kind, &name, "deleted"));
                }
                Step::Remove(name) => {
                    let result = deleted(kind, &store, &name).await?;
                    done.push(Done::new(kind, &name, result));
                }
            }
        }
        for object in &objects {
            is_supported(&store, object).await?;
        }
        let mut connections = Vec::new();
        for object in objects {
            if manner.only_shows() {
                done.push(Done::would_be(&store, &object, manner).await?);
                continue;
            }
            let (kind, name) = (object.kind(), object.name().to_owned());
            let change = object.apply(&store).await?;
            done.push(Done::new(kind, &name, change.as_str()));
            if kind == KindName::External {
                connections.push(name);
            }
        }
        anyhow::Ok((done, connections))
    })?;
    report(global, &done)?;
    for name in connections {
        eprintln!("warning: externalconnection/{name}: {NOT_SERVED}");
    }
    Ok(())
}

/// Refuses a policy that this build would not carry out: the last one stays in force.
async fn is_supported(store: &AnyStore, object: &AnyObject) -> anyhow::Result<()> {
    let AnyObject::Policy(wanted) = object else {
        return Ok(());
    };
    // One that cannot be read is written over.
    let standing = match store.get::<EncryptionPolicyKind>(wanted.name()).await {
        Err(StoreError::Invalid(_)) => None,
        standing => standing?,
    };
    let before = standing.as_ref().map(|policy| &policy.spec);
    policy::supported(before, &wanted.spec)
        .map_err(|reason| anyhow::anyhow!("{reason}; nothing was changed"))
}

async fn deleted(kind: KindName, store: &AnyStore, name: &str) -> anyhow::Result<&'static str> {
    Ok(match kind.delete(store, name).await? {
        true => "deleted",
        false => "not there",
    })
}

/// `testudo delete`.
pub(crate) fn delete(command: &DeleteCommand, global: &Global) -> Outcome {
    let objects = match (&command.file, command.kind, &command.name) {
        (None, Some(kind), Some(name)) => vec![(kind, name.clone())],
        (Some(file), _, _) => {
            let objects = match load(file)? {
                Loaded::Objects(objects) => objects,
                Loaded::OpenShift(_) => {
                    bail!(
                        "OpenShift's Network object stays: to turn IPsec off, apply mode: Disabled"
                    )
                }
                Loaded::Nmstate(_) => bail!(
                    "a NodeNetworkConfigurationPolicy that goes leaves its interfaces as they are: apply it \
                     with state: absent"
                ),
            };
            let named = objects
                .iter()
                .map(|object| (object.kind(), object.name().to_owned()));
            named.collect()
        }
        _ => bail!("neither an object nor a file is named"),
    };
    let store = store::open_to_write(global)?;
    let done = signals::runtime()?.block_on(async {
        let mut done = Vec::new();
        for (kind, name) in objects {
            if let (KindName::Node, AnyStore::Dir(directory)) = (kind, &store) {
                mark_removed(directory, &name).await?;
            }
            let result = deleted(kind, &store, &name).await?;
            done.push(Done::new(kind, &name, result));
        }
        anyhow::Ok(done)
    })?;
    report(global, &done)
}

/// Leaves the trace that stays: an agent that runs writes its object again.
async fn mark_removed(store: &DirStore, name: &str) -> anyhow::Result<()> {
    let node = NodeName::new(name)?;
    let known = store.get::<NodeEncryptionKind>(name).await;
    if !matches!(known, Ok(None)) || tokens::read(store, &node)?.is_some() {
        removed::mark(store, &node)?;
    }
    Ok(())
}

/// `testudo get`.
pub(crate) fn get(command: &GetCommand, global: &Global) -> Outcome {
    let store = store::open_to_read(global)?;
    let runtime = signals::runtime()?;
    let name = command.name.as_deref();
    let objects = runtime.block_on(command.kind.get(&store, name))?;
    if let (Some(name), true) = (name, objects.is_empty()) {
        bail!("{} {name:?} is not there", command.kind.as_str());
    }
    for problem in runtime.block_on(problems(&store, command.kind)) {
        // No part of the answer, but nobody should miss it.
        eprintln!("{}", output::harmless(&problem.to_string()));
    }
    match (global.format(), name) {
        (Format::Json | Format::Yaml, Some(_)) => output::data(global.format(), &objects[0]),
        (Format::Json | Format::Yaml, None) => output::data(global.format(), &List::of(objects)),
        (format, _) => table::print(command.kind, &objects, format == Format::Wide),
    }
}

/// Several objects, as kubectl prints them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    api_version: &'static str,
    kind: &'static str,
    items: Vec<AnyObject>,
}

impl List {
    fn of(items: Vec<AnyObject>) -> Self {
        Self {
            api_version: "v1",
            kind: "List",
            items,
        }
    }
}

/// What a file holds.
enum Loaded {
    Objects(Vec<AnyObject>),
    /// A change in OpenShift's words.
    OpenShift(Wish),
    /// Connections in NMState's words.
    Nmstate(Vec<nmstate::Policy>),
}

/// The text of a file, or of the standard input where it is named `-`.
pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin()
            .lock()
            .take(MAX_INPUT)
            .read_to_string(&mut text),
        false => File::open(file).and_then(|f| f.take(MAX_INPUT).read_to_string(&mut text)),
    };
    read.with_context(|| file.display().to_string())?;
    Ok(text)
}

fn load(file: &Path) -> anyhow::Result<Loaded> {
    let refused = |problems: Vec<Problem>| {
        for problem in &problems {
            eprintln!("{problem}");
        }
        eprintln!("nothing was changed");
        anyhow::Error::new(CheckFailed)
    };
    let input = file == Path::new("-");
    let (named, text) = match input {
        true => (Path::new("standard input"), Some(read(file)?)),
        // What is wrong with a file is said below, with more to say.
        false => (file, read(file).ok()),
    };
    let document = text
        .as_deref()
        .and_then(|text| serde_saphyr::from_str(text).ok());
    if let Some(wish) = document.and_then(Wish::read) {
        return wish.map(Loaded::OpenShift).map_err(|reason| {
            refused(vec![Problem {
                file: named.to_owned(),
                name: None,
                line: 0,
                column: 0,
                reason,
            }])
        });
    }
    if let Some(policies) = text.as_deref().and_then(|text| nmstate(named, text)) {
        return policies.map(Loaded::Nmstate).map_err(refused);
    }
    let loaded = match (input, text) {
        (true, Some(text)) => manifest::parse(named, &text),
        _ => manifest::load(file),
    };
    loaded.map(Loaded::Objects).map_err(refused)
}

/// The policies of NMState in a text; `None` where none of its documents is one.
fn nmstate(file: &Path, text: &str) -> Option<Result<Vec<nmstate::Policy>, Vec<Problem>>> {
    let documents = manifest::documents(text);
    let read = documents.iter().map(|(line, text)| {
        let document: Option<Value> = serde_saphyr::from_str(text).ok();
        (*line, document.filter(nmstate::is_policy))
    });
    let read: Vec<(u64, Option<Value>)> = read.collect();
    if read.iter().all(|(_, document)| document.is_none()) {
        return None;
    }
    let mut policies = Vec::new();
    let mut problems = Vec::new();
    for (line, document) in read {
        let policy = match &document {
            Some(document) => nmstate::Policy::read(document),
            None => Err("NMState's policies stand in files of their own".to_owned()),
        };
        match policy {
            Ok(policy) => policies.push(policy),
            Err(reason) => problems.push(Problem {
                file: file.to_owned(),
                name: None,
                line: line + 1,
                column: 0,
                reason,
            }),
        }
    }
    Some(match problems.is_empty() {
        true => Ok(policies),
        false => Err(problems),
    })
}

/// What of a kind cannot be read.
async fn problems(store: &AnyStore, kind: KindName) -> Vec<Problem> {
    match store {
        AnyStore::Dir(store) => {
            let folder = store.root().join(kind.plural());
            let all = store.problems().unwrap_or_default().into_iter();
            all.filter(|problem| problem.file.starts_with(&folder))
                .collect()
        }
        AnyStore::Kube(_) => kind.problems(store).await.unwrap_or_default(),
    }
}
