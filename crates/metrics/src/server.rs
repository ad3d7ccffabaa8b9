//! The HTTP server: three pages, read only, for whoever reaches the port.
//!
//! ```text
//! GET /metrics   the page of metrics
//! GET /healthz   200 while the daemon answers
//! GET /readyz    200 when it is ready, else 503 and why not
//! ```
//!
//! Clients cost little and are bounded: so many at once, each with so much time.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::page::Page;

/// Clients served at once; others wait in the kernel's queue.
const CLIENTS: usize = 16;
/// A client that does not say in this time what it wants is let go.
const HEADERS: Duration = Duration::from_secs(5);
/// The daemon answers between two rounds of its loop; longer means that it hangs.
const ANSWER: Duration = Duration::from_secs(5);
/// A connection ends after so long; Prometheus comes again.
const CONNECTION: Duration = Duration::from_secs(300);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Who knows the answers. The outer error: the daemon cannot answer, and why.
pub trait Source: Clone + Send + Sync + 'static {
    /// The metrics of now.
    fn page(&self) -> impl Future<Output = Result<Page, String>> + Send;

    /// Whether the daemon does its work; else why not, a sentence.
    fn ready(&self) -> impl Future<Output = Result<Result<(), String>, String>> + Send;
}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens there and serves what `source` knows.
    pub async fn start(listen: SocketAddr, source: impl Source) -> io::Result<Server> {
        let listener = TcpListener::bind(listen).await?;
        Ok(Server {
            address: listener.local_addr()?,
            task: tokio::spawn(accept(listener, source)),
        })
    }

    /// Where it listens; the port is the one that was found where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, source: impl Source) {
    let slots = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    // A client that is slow or gone is its own loss.
                    let _ = timeout(CONNECTION, serve(stream, source)).await;
                });
            }
            // Out of descriptors, as a rule: it passes.
            Err(error) => {
                tracing::debug!("no client of the metrics is taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, source: impl Source) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, source: &impl Source) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served");
        let allow = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allow);
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => match asked(source.page()).await {
            Ok(page) => response(StatusCode::OK, OPEN_METRICS, page.encode()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
        },
        "/healthz" => match asked(source.ready()).await {
            Ok(_) => text(StatusCode::OK, "ok"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
        },
        "/readyz" => match asked(source.ready()).await {
            Ok(Ok(())) => text(StatusCode::OK, "ok"),
            Ok(Err(why)) | Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "here are /metrics, /healthz and /readyz",
        ),
    }
}

async fn asked<T>(answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer,
        Err(_) => Err("the daemon does not answer; it hangs or is overloaded".to_owned()),
    }
}

fn text(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    response(status, PLAIN, format!("{line}\n"))
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A daemon that is ready, or not and says why, or does not answer at all.
    #[derive(Clone)]
    enum Daemon {
        Ready,
        NotReady,
        Gone,
    }

    impl Source for Daemon {
        async fn page(&self) -> Result<Page, String> {
            let mut page = Page::default();
            page.gauge("testudo_tunnels_up", "Tunnels").gauge([], 4.0);
            Ok(page)
        }

        async fn ready(&self) -> Result<Result<(), String>, String> {
            match self {
                Daemon::Ready => Ok(Ok(())),
                Daemon::NotReady => Ok(Err("the store has not been read yet".to_owned())),
                Daemon::Gone => Err("the agent is stopping".to_owned()),
            }
        }
    }

    async fn ask(daemon: Daemon, request: &str) -> String {
        let server = Server::start("127.0.0.1:0".parse().unwrap(), daemon)
            .await
            .unwrap();
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_page_has_its_status() {
        for (daemon, path, status, part) in [
            (
                Daemon::Ready,
                "/metrics",
                "200",
                "testudo_tunnels_up 4.0\n# EOF",
            ),
            (Daemon::Ready, "/healthz", "200", "ok"),
            (Daemon::Ready, "/readyz", "200", "ok"),
            (Daemon::NotReady, "/healthz", "200", "ok"),
            (Daemon::NotReady, "/readyz", "503", "not been read"),
            (Daemon::Gone, "/healthz", "503", "stopping"),
            (Daemon::Gone, "/readyz", "503", "stopping"),
            (Daemon::Ready, "/", "404", "/metrics"),
        ] {
            let answer = ask(daemon, &format!("GET {path}")).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{path}: {answer}"
            );
            assert!(answer.contains(part), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn nothing_but_reading_is_served() {
        let answer = ask(Daemon::Ready, "POST /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("allow: GET, HEAD"), "{answer}");
    }

    /// Clients that say nothing do not keep others out for ever.
    #[tokio::test(start_paused = true)]
    async fn silent_clients_are_let_go() {
        let server = Server::start("127.0.0.1:0".parse().unwrap(), Daemon::Ready)
            .await
            .unwrap();
        let mut silent = Vec::new();
        for _ in 0..CLIENTS {
            silent.push(TcpStream::connect(server.address()).await.unwrap());
        }
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
