//! The way from a node's namespace to the API server: the supervisor listens on the node's loopback and
//! carries each connection on from the machine's own namespace. TLS goes through from end to end.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::lab::Lab;

/// Where an agent finds the API server.
pub(super) const HERE: &str = "127.0.0.1:6443";

/// Host and port of `https://HOST[:PORT][/PATH]`.
pub(super) fn target(server: &str) -> Result<(String, u16)> {
    let rest = server
        .strip_prefix("https://")
        .with_context(|| format!("{server}: a lab needs an API server with https"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    let whole = (authority.trim_matches(['[', ']']).to_owned(), 443);
    match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => {
            let port = port
                .parse()
                .with_context(|| format!("{server}: its port"))?;
            Ok((host.to_owned(), port))
        }
        _ => Ok(whole),
    }
}

/// What follows the host: an API server behind a proxy may have a path.
pub(super) fn path(server: &str) -> &str {
    let rest = server.strip_prefix("https://").unwrap_or(server);
    rest.find('/').map_or("", |at| &rest[at..])
}

/// A listener a node.
#[derive(Default)]
pub(super) struct Listeners {
    opened: BTreeMap<String, TcpListener>,
    serving: BTreeMap<String, JoinHandle<()>>,
}

impl Listeners {
    /// Listens in each node that has none yet, and no longer in those that are gone.
    pub(super) fn open(&mut self, lab: &Lab) -> Result<()> {
        self.serving.retain(|node, task| {
            let stays = lab.layout().node(node).is_some();
            if !stays {
                task.abort();
            }
            stays
        });
        for node in &lab.layout().nodes {
            let name = &node.name;
            if self.opened.contains_key(name) || self.serving.contains_key(name) {
                continue;
            }
            let listener = lab.inside(name, || {
                let listener = TcpListener::bind(HERE)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            let listener = listener.with_context(|| format!("listen on {HERE} in {name}"))?;
            self.opened.insert(name.clone(), listener);
        }
        Ok(())
    }

    /// Carries what comes in. Must be called in the runtime that is to do it.
    pub(super) fn serve(&mut self, lab: &Lab) {
        let Ok(target) = target(lab.server().unwrap_or_default()) else {
            return;
        };
        for (node, listener) in std::mem::take(&mut self.opened) {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let task = tokio::spawn(accept(listener, target.clone()));
                    self.serving.insert(node, task);
                }
                Err(error) => eprintln!("{node} has no way to the API server: {error}"),
            }
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, target: (String, u16)) {
    loop {
        match listener.accept().await {
            Ok((mut near, _)) => {
                let target = target.clone();
                tokio::spawn(async move {
                    // One that cannot be carried on is closed: its end finds the server away.
                    if let Ok(mut far) = TcpStream::connect((target.0.as_str(), target.1)).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
            // Out of descriptors, say: that passes.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_apart() {
        for (server, host, port, rest) in [
            ("https://198.18.0.1", "198.18.0.1", 443, ""),
            ("https://10.0.0.1:6443", "10.0.0.1", 6443, ""),
            ("https://[fd00::1]:6443", "fd00::1", 6443, ""),
            ("https://[fd00::1]", "fd00::1", 443, ""),
            (
                "https://k8s.example:8443/k8s/c1",
                "k8s.example",
                8443,
                "/k8s/c1",
            ),
            ("https://k8s.example/k8s", "k8s.example", 443, "/k8s"),
        ] {
            assert_eq!(target(server).unwrap(), (host.to_owned(), port), "{server}");
            assert_eq!(path(server), rest, "{server}");
        }
        for bad in ["http://10.0.0.1", "10.0.0.1:6443", "https://a:b"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
