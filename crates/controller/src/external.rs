//! Connections to hosts outside: whether they can be as they are written, and that no agent of this
//! version serves them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use testudo_model::external::{ACCEPTED, NOT_SERVED, PROGRAMMED, judged};
use testudo_model::policy::CLUSTER;
use testudo_model::{
    Condition, ConditionStatus, ExternalConnection, ExternalConnectionStatus, UnixTime,
};
use testudo_store::{Store, StoreError};
use tracing::{info, warn};

use crate::news::{About, News};
use crate::run::{Controller, seconds};
use crate::safe::Safe;
use crate::world::World;

/// Why a connection is not accepted: a word in CamelCase and a sentence.
type Trouble = (&'static str, String);

impl<S: Store, K: Safe> Controller<S, K> {
    /// Says in the status of each connection what is to be said of it. What cannot be written for one
    /// keeps the others from nothing.
    pub(crate) async fn judge_connections(&mut self) -> Result<(), StoreError> {
        let mut failed = Ok(());
        for (connection, trouble) in judgements(&self.world) {
            let now = UnixTime(i64::try_from(seconds()).unwrap_or(i64::MAX));
            let trouble = trouble
                .as_ref()
                .map(|(reason, text)| (*reason, text.clone()));
            let status = judged(&connection, trouble, now);
            if status == connection.status {
                continue;
            }
            let name = connection.name().to_owned();
            let news = changes(&name, &connection.status, &status);
            let wanted = ExternalConnection {
                status,
                ..connection
            };
            match self.store.update_status(&wanted).await {
                Ok(written) => {
                    news.into_iter().for_each(|news| self.safe.tell(news));
                    self.world.connections.put(written);
                }
                Err(error) => {
                    if error.is_conflict() || error.is_not_found() {
                        let connections = &mut self.world.connections;
                        connections.refresh(&self.store, &name).await?;
                    }
                    failed = Err(error);
                }
            }
        }
        failed
    }
}

/// Every connection and what is wrong with it.
fn judgements(world: &World) -> Vec<(ExternalConnection, Option<Trouble>)> {
    let connections = &world.connections.objects;
    if connections.is_empty() {
        return Vec::new();
    }
    let nodes = || world.nodes.objects.values();
    let addresses: BTreeSet<IpAddr> = nodes().flat_map(|n| n.spec.addresses.clone()).collect();
    let policy = world.policies.objects.get(CLUSTER);
    let pods: BTreeSet<IpNet> = nodes()
        .flat_map(|node| node.spec.pod_cidrs.clone())
        .chain(
            policy
                .into_iter()
                .flat_map(|p| p.spec.overlay.pod_cidrs.clone()),
        )
        .collect();
    let mut before: Vec<&ExternalConnection> = Vec::new();
    let mut done = Vec::new();
    for connection in connections.values() {
        let trouble = connection
            .spec
            .check()
            .err()
            .map(|text| ("Invalid", text))
            .or_else(|| inside(connection, &addresses, &pods))
            .or_else(|| twin(connection, &before));
        if trouble.is_none() {
            before.push(connection);
        }
        done.push((connection.clone(), trouble));
    }
    done
}

/// What is of the cluster is not outside.
fn inside(
    connection: &ExternalConnection,
    addresses: &BTreeSet<IpAddr>,
    pods: &BTreeSet<IpNet>,
) -> Option<Trouble> {
    let spec = &connection.spec;
    if let Some(address) = spec.right.address().filter(|a| addresses.contains(a)) {
        let text = format!(
            "spec.right: {address} is a node of this cluster: nodes are protected by the EncryptionPolicy"
        );
        return Some(("NodeAddress", text));
    }
    let within = |subnet: &&IpNet| pods.iter().any(|pods| pods.contains(*subnet));
    let subnet = spec.right_subnets.iter().find(within)?;
    let text = format!("spec.rightSubnets: {subnet} is of this cluster's pods, not outside");
    Some(("PodPrefix", text))
}

/// Of two connections that mean the same packets the first by name has them.
fn twin(connection: &ExternalConnection, before: &[&ExternalConnection]) -> Option<Trouble> {
    let spec = &connection.spec;
    let other = before.iter().find(|other| {
        let other = &other.spec;
        let packets = |s: &testudo_model::ExternalConnectionSpec| {
            let sorted = |nets: &[IpNet]| nets.iter().copied().collect::<BTreeSet<_>>();
            let subnets = [sorted(&s.left_subnets), sorted(&s.right_subnets)];
            (subnets, s.left_proto_port, s.right_proto_port)
        };
        other.right == spec.right
            && other.left == spec.left
            && packets(other) == packets(spec)
            && other.node_selector.shares_nodes(&spec.node_selector)
    })?;
    let text = format!(
        "spec.right: \"{}\" is a connection of the same packets already: change one of them, or select \
         other nodes",
        other.name()
    );
    Some(("Duplicate", text))
}

fn condition<'s>(status: &'s ExternalConnectionStatus, kind: &str) -> Option<&'s Condition> {
    status.conditions.iter().find(|c| c.kind == kind)
}

/// Tells in the log what has changed; what others are to hear of it.
fn changes(
    name: &str,
    old: &ExternalConnectionStatus,
    new: &ExternalConnectionStatus,
) -> Vec<News> {
    let about = || About::Connection(name.to_owned());
    let mut news = Vec::new();
    let said = |status: &ExternalConnectionStatus| {
        condition(status, ACCEPTED).map(|c| (c.status, c.reason.clone(), c.message.clone()))
    };
    if said(old) != said(new)
        && let Some((accepted, reason, text)) = said(new)
    {
        if accepted == ConditionStatus::True {
            info!("connection {name} is accepted");
        } else {
            warn!("connection {name} is not accepted ({reason}): {text}");
            news.push(News::bad(about(), "NotAccepted", "Judge", text));
        }
    }
    if condition(old, PROGRAMMED).is_none() {
        warn!("connection {name} is not served: {NOT_SERVED}");
        news.push(News::bad(about(), "NotServed", "Judge", NOT_SERVED));
    }
    news
}
