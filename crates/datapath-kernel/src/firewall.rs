//! The firewall is set by a thread of its own: nft takes seconds on a busy machine, and neither the
//! agent's loop nor its start waits for it.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};

use testudo_datapath::{DatapathError, Waker};
use testudo_model::TrafficPolicy;
use testudo_netlink::Nft;

use crate::nft;

/// What came of it. `Some`: the kernel has no tables, and why.
pub(crate) type Set = Result<Option<String>, DatapathError>;

/// One run at most. The last one is over before this is dropped, so that none comes too late.
#[derive(Default)]
pub(crate) struct Firewall {
    running: Option<Running>,
}

struct Running {
    policy: TrafficPolicy,
    result: Receiver<Set>,
    waker: Arc<Mutex<Option<Waker>>>,
}

/// How far it is.
pub(crate) enum Progress {
    /// Nothing was begun, or what was is told already.
    Idle,
    /// The waker is called when there is more to say.
    Running,
    /// It says this policy now, or does not.
    Done(TrafficPolicy, Set),
}

impl Firewall {
    /// Begins, in the network namespace of the calling thread. Nothing else may run.
    pub(crate) fn begin(&mut self, nft: &Nft, policy: &TrafficPolicy) {
        let (tell, result) = channel();
        let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
        let (nft, wanted, bell) = (nft.clone(), policy.clone(), Arc::clone(&waker));
        let run = move || {
            let _ = tell.send(nft::apply(&nft, &wanted));
            let waker = bell.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(wake) = waker {
                wake();
            }
        };
        // A receiver without a sender says that there was no thread.
        let _ = std::thread::Builder::new().name("nft".into()).spawn(run);
        self.running = Some(Running {
            policy: policy.clone(),
            result,
            waker,
        });
    }

    /// How far it is; the end is told once.
    pub(crate) fn poll(&mut self, waker: Option<&Waker>) -> Progress {
        let Some(running) = &self.running else {
            return Progress::Idle;
        };
        // Before the look: what comes after it wakes.
        *running.waker.lock().unwrap_or_else(PoisonError::into_inner) = waker.cloned();
        let set = match running.result.try_recv() {
            Ok(set) => set,
            Err(TryRecvError::Empty) => return Progress::Running,
            Err(TryRecvError::Disconnected) => Err(no_thread()),
        };
        match self.running.take() {
            Some(running) => Progress::Done(running.policy, set),
            None => Progress::Idle,
        }
    }

    /// Waits for the end of what runs. `None`: nothing did, or what came of it is told already.
    pub(crate) fn wait(&mut self) -> Option<Set> {
        let running = self.running.take()?;
        Some(running.result.recv().unwrap_or_else(|_| Err(no_thread())))
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

fn no_thread() -> DatapathError {
    DatapathError::Refused {
        operation: "run nft".into(),
        reason: "there is no thread for it".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use testudo_model::{ClearTraffic, ProtectedFlows};

    use super::*;

    fn policy(port: u16) -> TrafficPolicy {
        TrafficPolicy {
            addresses: Vec::new(),
            flows: ProtectedFlows::Overlay { port },
            clear_inbound: ClearTraffic::Drop,
            clear_outbound: ClearTraffic::Drop,
            peers: Vec::new(),
        }
    }

    /// A program in nft's place that takes its time.
    fn slow(dir: &std::path::Path, code: u8) -> Nft {
        let path = dir.join(format!("nft{code}"));
        let script = format!("#!/bin/sh\ncat >/dev/null\nsleep 0.2\nexit {code}\n");
        // Another process writes it: what this one has open for writing, and so whatever another test
        // forks just now, cannot be started.
        let written = Command::new("sh")
            .args(["-c", "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .arg(script)
            .status();
        assert!(written.unwrap().success());
        Nft::new(path)
    }

    #[test]
    fn nobody_waits_for_nft_and_the_end_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut firewall = Firewall::default();
        assert!(matches!(firewall.poll(None), Progress::Idle));
        let (rung, bell) = channel();
        let waker: Waker = Arc::new(move || rung.send(()).unwrap());
        firewall.begin(&slow(dir.path(), 0), &policy(1));
        assert!(matches!(firewall.poll(Some(&waker)), Progress::Running));
        bell.recv_timeout(Duration::from_secs(60)).unwrap();
        let Progress::Done(of, set) = firewall.poll(Some(&waker)) else {
            panic!("it is over");
        };
        assert_eq!((of, set.unwrap()), (policy(1), None));
        assert!(matches!(firewall.poll(None), Progress::Idle));
    }

    #[test]
    fn what_runs_is_over_before_its_owner_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let mut firewall = Firewall::default();
        firewall.begin(&slow(dir.path(), 0), &policy(1));
        drop(firewall);
        assert!(begin.elapsed() >= Duration::from_millis(200));
    }

    #[test]
    fn what_came_of_it_is_not_lost_when_nobody_takes_it_over() {
        let dir = tempfile::tempdir().unwrap();
        let closing = |code| {
            let mut firewall = Firewall::default();
            firewall.begin(&slow(dir.path(), code), &policy(1));
            crate::Closing(firewall)
        };
        assert!(closing(0).outcome().is_ok());
        let refused = closing(1).outcome();
        assert!(
            matches!(refused, Err(DatapathError::Partly { .. })),
            "{refused:?}"
        );
        assert!(crate::Closing::default().outcome().is_ok());
    }
}
