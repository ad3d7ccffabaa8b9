//! Logs go to standard error, so that they never mix with results.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What the way to an API server says of itself: errors come back to who asked, and are told there; what
/// goes over it holds tokens.
const SILENT: &str = "kube_client=off,hyper=off,hyper_util=off,rustls=off,tower=off";

/// Starts logging. `TESTUDO_LOG` (as in `info,testudo_ike=debug`) overrules everything else.
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
        .unwrap_or_else(|| EnvFilter::new(format!("{level},{SILENT}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 0)
        .init();
}
