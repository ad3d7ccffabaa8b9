//! One call of the API: how long it may take, and how it is counted.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What became of a call, as metrics name it.
const OUTCOMES: [&str; 5] = ["ok", "conflict", "refused", "away", "late"];
const OK: usize = 0;
const CONFLICT: usize = 1;
const REFUSED: usize = 2;
const AWAY: usize = 3;
const LATE: usize = 4;

static CALLS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Does one call, and no longer than `patience`.
pub async fn call<T>(
    patience: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> kube::Result<T> {
    let done = tokio::time::timeout(patience, call).await;
    let outcome = match &done {
        Ok(Ok(_)) => OK,
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => CONFLICT,
        Ok(Err(kube::Error::Api(_))) => REFUSED,
        Ok(Err(_)) => AWAY,
        Err(_) => LATE,
    };
    CALLS[outcome].fetch_add(1, Relaxed);
    done.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", patience.as_secs());
        Err(kube::Error::Service(text.into()))
    })
}

/// The calls that this process has made since it began, by what became of them: `ok`, `conflict` (somebody
/// else was faster), `refused` (also what is not there), `away` (no connection), `late` (no answer in time).
pub fn calls() -> [(&'static str, u64); 5] {
    std::array::from_fn(|at| (OUTCOMES[at], CALLS[at].load(Relaxed)))
}
