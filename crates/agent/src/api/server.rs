//! The socket's server. Clients are served beside the engine and never wait in its way: a slow
//! one waits for itself, and one too many waits in the kernel's queue.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::{MAX_CLIENTS, MAX_REQUEST, Request, Response};

/// A client that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// A client that does not read its answer in this time is let go.
const WRITE: Duration = Duration::from_secs(5);
/// The engine answers between two rounds of its loop; longer means that it hangs.
const ANSWER: Duration = Duration::from_secs(5);

/// A request and where its answer goes.
pub(crate) type Call = (Request, oneshot::Sender<Response>);

/// The bound socket; its file is gone when this is dropped.
pub(crate) struct Server {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Binds the socket, for its owner alone, and serves it. What clients ask comes out of the
    /// receiver.
    pub(crate) fn start(path: &Path) -> Result<(Server, mpsc::Receiver<Call>)> {
        use std::os::unix::fs::PermissionsExt;
        // What an agent that was killed left behind. A living one cannot be here: it would hold
        // UDP 500.
        crate::files::remove(path)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("{}: making the directory", parent.display()))?;
        }
        let listener = UnixListener::bind(path)
            .with_context(|| format!("{}: binding the agent's socket", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("{}: closing it to others", path.display()))?;
        let (calls, receiver) = mpsc::channel(MAX_CLIENTS);
        let server = Server {
            path: path.to_owned(),
            task: tokio::spawn(accept(listener, calls)),
        };
        Ok((server, receiver))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<Call>) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    serve(stream, calls).await;
                });
            }
            // Out of descriptors, as a rule: it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: UnixStream, calls: mpsc::Sender<Call>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(MAX_REQUEST as u64 + 1);
        match timeout(IDLE, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return,
        }
        let too_long = line.len() > MAX_REQUEST;
        let response = if too_long {
            Response::error(format!("a request has at most {MAX_REQUEST} bytes"))
        } else {
            answer(&line, &calls).await
        };
        let Ok(mut bytes) = serde_json::to_vec(&response) else {
            return;
        };
        bytes.push(b'\n');
        let written = timeout(WRITE, writer.write_all(&bytes)).await;
        if too_long || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

async fn answer(line: &[u8], calls: &mpsc::Sender<Call>) -> Response {
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(_) => {
            return Response::error(
                "not a request: write {\"get\":\"tunnels\"|\"status\"|\"drops\"} or \
                 {\"do\":\"rekey-child\"|\"rekey-ike\"|\"reauthenticate\",\"peer\":NAME}",
            );
        }
    };
    let (reply, answer) = oneshot::channel();
    let asked = async {
        calls.send((request, reply)).await.ok()?;
        answer.await.ok()
    };
    match timeout(ANSWER, asked).await {
        Ok(Some(response)) => response,
        _ => Response::error("the agent does not answer; it is stopping or overloaded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn talk(stream: &mut UnixStream, line: &[u8]) -> Option<Response> {
        stream.write_all(line).await.unwrap();
        let mut answer = Vec::new();
        BufReader::new(stream)
            .read_until(b'\n', &mut answer)
            .await
            .ok()?;
        serde_json::from_slice(&answer).ok()
    }

    #[tokio::test]
    async fn a_client_gets_answers_and_nonsense_gets_help() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "left by a dead agent").unwrap();
        let (_server, mut calls) = Server::start(&path).unwrap();
        tokio::spawn(async move {
            while let Some((_, reply)) = calls.recv().await {
                let response = Response {
                    ok: true,
                    ..Response::default()
                };
                let _ = reply.send(response);
            }
        });
        let mut client = UnixStream::connect(&path).await.unwrap();
        assert!(
            talk(&mut client, b"{\"get\":\"status\"}\n")
                .await
                .unwrap()
                .ok
        );
        let help = talk(&mut client, b"hello\n").await.unwrap();
        assert!(help.error.unwrap().contains("tunnels"));
        let long = vec![b'x'; MAX_REQUEST + 10];
        let refused = talk(&mut client, &long).await.unwrap();
        assert!(refused.error.unwrap().contains("at most"));
    }

    /// L75 (libreswan#2553): a client that never reads does not stop the others.
    #[tokio::test]
    async fn a_client_that_never_reads_does_not_stop_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_server, mut calls) = Server::start(&path).unwrap();
        tokio::spawn(async move {
            while let Some((_, reply)) = calls.recv().await {
                let _ = reply.send(Response::error("x".repeat(1 << 20)));
            }
        });
        let mut deaf = UnixStream::connect(&path).await.unwrap();
        deaf.write_all(b"{\"get\":\"status\"}\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut client = UnixStream::connect(&path).await.unwrap();
        let answer = talk(&mut client, b"{\"get\":\"status\"}\n").await.unwrap();
        assert!(!answer.ok);
    }
}
