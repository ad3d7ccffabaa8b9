//! What all end-to-end tests share: the built program, labs that clean up after themselves,
//! traffic with sequence numbers, and a watch on the wire that is not ours (tcpdump).

// Every test binary uses a part of it.
#![allow(dead_code, unused_imports)]

mod cli;
pub(crate) mod filter;
pub(crate) mod guest;
mod lab;
mod load;
pub(crate) mod pcap;
mod wire;

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

pub(crate) use cli::{Answer, BINARY, run, testudo};
pub(crate) use lab::{Lab, Options, unique_name};
pub(crate) use load::{Flow, Load, Places};
pub(crate) use wire::{Recording, Watch};

/// Held by a test while it runs: one lab test at a time, also across test binaries.
pub(crate) struct Turn {
    _own: MutexGuard<'static, ()>,
    _all: File,
}

static TURN: Mutex<()> = Mutex::new(());

/// Waits for this test's turn. None: it cannot run here, which it has said.
pub(crate) fn begin(test: &str) -> Option<Turn> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED {test}: needs root for network namespaces");
        return None;
    }
    let own = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new("/run/testudo-tests.lock");
    let all = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .expect("the lock of all lab tests opens");
    let deadline = Instant::now() + Duration::from_secs(600);
    // The kernel gives it back when its holder dies, however that happens.
    while rustix::fs::flock(&all, FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(
            Instant::now() < deadline,
            "{}: another lab test held it for 10 minutes",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Some(Turn {
        _own: own,
        _all: all,
    })
}

/// Asks again and again until `look` gives a value, and says at the deadline what was waited for
/// and what was seen last.
#[track_caller]
pub(crate) fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if start.elapsed() >= patience => {
                panic!(
                    "waited {:.1} s for: {what}; last seen: {seen}",
                    patience.as_secs_f32()
                )
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Seconds, to read better.
pub(crate) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
