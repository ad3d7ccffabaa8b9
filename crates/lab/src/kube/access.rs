//! Kubeconfigs and tokens: files that only root reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::config::{AuthInfo, Kubeconfig, NamedAuthInfo};
use serde_json::json;

use crate::lab::Lab;
use crate::place::{make_directory, write_atomic};
use crate::spec::KubeSpec;

use super::relay;

/// Reads the kubeconfig that is meant, leaves the one context that is meant, and says the server's URL.
/// Without a file: what kubectl would take.
pub(crate) fn choose(from: &KubeSpec) -> Result<(String, Vec<u8>)> {
    let read = match &from.kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    let file = from.kubeconfig.as_ref().map_or_else(
        || "the kubeconfig".to_owned(),
        |file| format!("the kubeconfig {}", file.display()),
    );
    let mut config =
        read.with_context(|| format!("{file} cannot be used; name one with --kubeconfig"))?;
    let wanted = from.context.clone().or(config.current_context.take());
    let wanted = wanted
        .with_context(|| format!("{file} says no current context; name one with --context"))?;
    config.contexts.retain(|context| context.name == wanted);
    let context = config
        .contexts
        .first()
        .and_then(|named| named.context.clone());
    let context = context.with_context(|| format!("{file} has no context {wanted:?}"))?;
    config
        .clusters
        .retain(|cluster| cluster.name == context.cluster);
    config
        .auth_infos
        .retain(|user| context.user.as_ref() == Some(&user.name));
    config.current_context = Some(wanted);
    let server = cluster(&config)
        .and_then(|cluster| cluster.server.clone())
        .with_context(|| format!("{file} names no server"))?;
    Ok((server.trim_end_matches('/').to_owned(), text(&config)?))
}

fn cluster(config: &Kubeconfig) -> Option<&kube::config::Cluster> {
    config.clusters.first()?.cluster.as_ref()
}

/// JSON is YAML.
fn text(config: &Kubeconfig) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(config).context("write a kubeconfig")
}

/// Whose token it is, and where it is kept.
pub(super) struct Credentials {
    folder: PathBuf,
    pub(super) account: &'static str,
    /// Name and UID of the Node that it is bound to.
    pub(super) node: Option<(String, String)>,
}

impl Credentials {
    pub(super) fn controller(lab: &Lab) -> Self {
        Self {
            folder: lab.directory().join("kube/controller"),
            account: "testudo-controller",
            node: None,
        }
    }

    pub(super) fn agent(lab: &Lab, node: &str, uid: &str) -> Self {
        Self {
            folder: lab.node_dir(node).join("kube"),
            account: "testudo-agent",
            node: Some((node.to_owned(), uid.to_owned())),
        }
    }

    /// Whether the token that is kept is bound to the Node that is there.
    pub(super) fn are_of_this_node(&self) -> bool {
        let Some((_, uid)) = &self.node else {
            return true;
        };
        fs::read_to_string(self.folder.join("node-uid")).is_ok_and(|kept| kept == *uid)
    }

    /// What a TokenRequest asks for (authentication.k8s.io/v1).
    pub(super) fn request(&self, seconds: u64) -> serde_json::Value {
        let mut spec = json!({ "expirationSeconds": seconds });
        if let Some((name, uid)) = &self.node {
            spec["boundObjectRef"] =
                json!({ "kind": "Node", "apiVersion": "v1", "name": name, "uid": uid });
        }
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec })
    }

    /// Keeps a token, and a kubeconfig that names its file: whoever uses it reads the next one in time.
    pub(super) fn keep(&self, lab: &Lab, token: &str) -> Result<()> {
        make_directory(&self.folder)?;
        let file = self.folder.join("token");
        write_atomic(&file, token.as_bytes())?;
        if let Some((_, uid)) = &self.node {
            write_atomic(&self.folder.join("node-uid"), uid.as_bytes())?;
        }
        let kubeconfig = self.folder.join("kubeconfig");
        match kubeconfig.exists() {
            true => Ok(()),
            false => write_atomic(&kubeconfig, &self.kubeconfig(lab, &file)?),
        }
    }

    fn kubeconfig(&self, lab: &Lab, token: &Path) -> Result<Vec<u8>> {
        let mut config =
            Kubeconfig::read_from(super::admin(lab)).context("the lab's kubeconfig")?;
        let user = AuthInfo {
            token_file: Some(token.display().to_string()),
            ..AuthInfo::default()
        };
        let context = config
            .contexts
            .first_mut()
            .and_then(|named| named.context.as_mut());
        let context = context.context("the lab's kubeconfig has no context")?;
        context.user = Some(self.account.to_owned());
        config.auth_infos = vec![NamedAuthInfo {
            name: self.account.to_owned(),
            auth_info: Some(user),
            ..NamedAuthInfo::default()
        }];
        // An agent's namespace has its own way there, under the server's name.
        if self.node.is_some() {
            let cluster = config.clusters.first_mut();
            let cluster = cluster.and_then(|named| named.cluster.as_mut());
            let cluster = cluster.context("the lab's kubeconfig has no cluster")?;
            let server = cluster.server.clone().unwrap_or_default();
            if cluster.tls_server_name.is_none() {
                cluster.tls_server_name = Some(relay::target(&server)?.0);
            }
            cluster.server = Some(format!("https://{}{}", relay::HERE, relay::path(&server)));
        }
        text(&config)
    }
}

/// The kubeconfig of a node's agent.
pub(crate) fn kubeconfig_of_agent(lab: &Lab, node: &str) -> PathBuf {
    lab.node_dir(node).join("kube/kubeconfig")
}

/// The kubeconfig of the controller.
pub(crate) fn kubeconfig_of_controller(lab: &Lab) -> PathBuf {
    lab.directory().join("kube/controller/kubeconfig")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"{
        "apiVersion": "v1", "kind": "Config", "current-context": "b",
        "clusters": [
            { "name": "ca", "cluster": { "server": "https://10.0.0.1:6443" } },
            { "name": "cb", "cluster": { "server": "https://10.0.0.2:6443/" } }
        ],
        "users": [
            { "name": "ua", "user": { "token": "secret-a" } },
            { "name": "ub", "user": { "token": "secret-b" } }
        ],
        "contexts": [
            { "name": "a", "context": { "cluster": "ca", "user": "ua" } },
            { "name": "b", "context": { "cluster": "cb", "user": "ub" } }
        ]
    }"#;

    #[test]
    fn one_context_is_left_with_its_own_cluster_and_user() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        fs::write(&file, TWO).unwrap();
        let chosen = |context: Option<&str>| {
            choose(&KubeSpec {
                kubeconfig: Some(file.clone()),
                context: context.map(str::to_owned),
                server: String::new(),
            })
        };
        let (server, bytes) = chosen(None).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(server, "https://10.0.0.2:6443");
        assert!(
            text.contains("secret-b") && !text.contains("secret-a"),
            "{text}"
        );
        assert_eq!(chosen(Some("a")).unwrap().0, "https://10.0.0.1:6443");
        let error = format!("{:#}", chosen(Some("c")).unwrap_err());
        assert!(error.contains("no context \"c\""), "{error}");
    }
}
