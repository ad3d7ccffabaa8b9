//! Logs go to standard error, so that they never mix with results.

use std::io::IsTerminal;

use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// The way to an API server is silent at every level: what goes over it holds tokens, and bodies of
/// answers may be Secrets. Its errors come back to who asked, and are told there. Each stands for all
/// targets that begin so, as in `hyper_util` and `tower_http`.
const SILENT: [&str; 4] = ["kube", "hyper", "rustls", "tower"];

/// Starts logging. `TESTUDO_LOG` (as in `info,testudo_ike=debug`) overrules everything but [`SILENT`].
pub(crate) fn start(daemon: bool, verbose: u8) {
    let level = match (daemon, verbose) {
        (false, 0) => "warn",
        (true, 0) | (false, 1) => "info",
        (true, 1) | (false, 2) => "debug",
        _ => "trace",
    };
    let filter = std::env::var("TESTUDO_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(level));
    let ansi = std::io::stderr().is_terminal();
    subscriber(filter, std::io::stderr, ansi, verbose > 0).init();
}

/// Two filters, and what is logged has passed both: no directive of one, however precise, undoes the other.
fn subscriber<W>(filter: EnvFilter, writer: W, ansi: bool, targets: bool) -> impl Subscriber
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(targets)
        .finish()
        .with(filter_fn(may_speak))
}

fn may_speak(of: &Metadata<'_>) -> bool {
    !SILENT.iter().any(|name| of.target().starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// All that is logged under a filter by the ways to an API server and by one of our own crates.
    fn logged(filter: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = File::create(file.path()).unwrap();
        let subscriber = subscriber(EnvFilter::new(filter), writer, false, true);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(target: "kube_client::client::builder", "HTTP");
            let _inside = span.enter();
            tracing::error!(target: "kube_client::client", "body of a Secret");
            tracing::trace!(target: "hyper_util::client", "header with a token");
            tracing::debug!(target: "rustls::client", "record");
            tracing::debug!(target: "tower_http::trace", "request");
            tracing::info!(target: "testudo_store_kube", "ours");
        });
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn no_filter_makes_the_way_to_an_api_server_speak() {
        for filter in [
            "info",
            "trace",
            "trace,kube_client=trace,hyper_util=trace",
            "trace,kube_client::client=trace",
            "trace,[HTTP]=trace",
        ] {
            let text = logged(filter);
            assert_eq!(text.lines().count(), 1, "{filter}: {text}");
            assert!(text.contains("ours"), "{filter}: {text}");
        }
    }
}
