//! On Kubernetes a node has the UID of its Node, which its token names: the controller signs for no other.
//!
//! A Node that is deleted and made anew has another UID, and the agent's pod may outlive that. Its
//! certificate is revoked then, and asking for another under the old UID leads nowhere.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testudo_model::{Monotonic, Now};
use testudo_store::Location;
use testudo_store_kube::{BoundNode, bound_node};

use crate::Options;
use crate::identity;
use crate::node::Node;

/// While the node is not let in, its token is looked at so often. The kubelet renews the file.
const LOOK: Duration = Duration::from_secs(10);

/// Takes the UID at the start.
pub(crate) async fn take_identity(options: &Options) -> Result<()> {
    let Location::Kubernetes(at) = &options.store else {
        return Ok(());
    };
    match bound_node(at).await.context("who we are")? {
        Some(bound) if bound.name == options.node => {
            identity::adopt(&options.state_dir, &bound.uid)
        }
        Some(bound) => bail!("{}", of_another(&bound, options)),
        None => {
            tracing::warn!(
                "the token is bound to no node: the controller will sign nothing for it"
            );
            Ok(())
        }
    }
}

fn of_another(bound: &BoundNode, options: &Options) -> String {
    format!(
        "the token is bound to node {}, and this is the agent of {}",
        bound.name, options.node
    )
}

/// Whether the node still is who it was at the start: asked while the cluster does not let it in.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    looked: Option<Monotonic>,
}

impl Doubt {
    /// An error means that the agent is to be started again, to take the new UID up.
    pub(crate) async fn look(&mut self, node: &Node, now: Now) -> Result<()> {
        let Location::Kubernetes(at) = &node.options.store else {
            return Ok(());
        };
        let lately = |at| now.monotonic.since(at) < LOOK;
        if !node.is_shut_out() || self.looked.is_some_and(lately) {
            return Ok(());
        }
        self.looked = Some(now.monotonic);
        match bound_node(at).await {
            Ok(Some(bound)) if bound.name != node.identity.name => {
                bail!("{}", of_another(&bound, &node.options))
            }
            Ok(Some(bound)) if bound.uid != node.identity.uid => bail!(
                "Node {} was made anew: its UID is {} now, and this agent began with {}; \
                 it takes up the new one when it starts again",
                bound.name,
                bound.uid,
                node.identity.uid
            ),
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!("who we are is not known: {error}");
                Ok(())
            }
        }
    }
}
