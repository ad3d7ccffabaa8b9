//! What crosses the underlay's links, over time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testudo_lab::{Lab, Links, Tap};

/// How often what was captured is read.
const LOOK: Duration = Duration::from_millis(20);

/// A capture of every link of the underlay that runs until it is stopped.
pub(super) struct Wire {
    looks: Arc<Mutex<Vec<Look>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// What had been seen up to a moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    esp: u64,
    in_udp: u64,
    clear: u64,
}

/// What was seen in a span of time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// ESP packets.
    pub(super) esp: u64,
    /// Those of them in UDP.
    pub(super) in_udp: u64,
    /// When the first of them was seen.
    pub(super) first_esp: Option<Instant>,
    /// The overlay's packets in clear.
    pub(super) clear: u64,
    /// When the last of these was seen.
    pub(super) last_clear: Option<Instant>,
}

impl Wire {
    /// Begins.
    pub(super) fn start(lab: &Lab) -> anyhow::Result<Self> {
        let tap = Tap::start(lab, Links::All, None)?;
        let (looks, stop) = (Arc::<Mutex<Vec<Look>>>::default(), Arc::default());
        let (kept, stopped): (_, Arc<AtomicBool>) = (Arc::clone(&looks), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let (at, seen) = (Instant::now(), tap.seen());
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Look {
                        at,
                        esp: seen.esp_packets,
                        in_udp: seen.esp_in_udp_packets,
                        clear: seen.clear_protected_packets,
                    });
                std::thread::sleep(LOOK);
            }
            let seen = tap.stop()?;
            ensure!(
                seen.missed == 0,
                "{} frames were not captured: the counts of clear packets are too low",
                seen.missed
            );
            Ok(())
        });
        Ok(Self {
            looks,
            stop,
            thread: Some(thread),
        })
    }

    /// What was seen between two moments.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Span {
        between(
            &self.looks.lock().unwrap_or_else(PoisonError::into_inner),
            from,
            to,
        )
    }

    /// Ends it; an error if it has missed a frame.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a capture ends once")?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn between(looks: &[Look], from: Instant, to: Instant) -> Span {
    let first = looks.partition_point(|look| look.at < from);
    let end = looks.partition_point(|look| look.at <= to);
    // What was seen up to the span, so that a packet between two looks counts for the later.
    let before = first.checked_sub(1).map(|at| looks[at]);
    let mut last = before.unwrap_or(Look {
        at: from,
        esp: 0,
        in_udp: 0,
        clear: 0,
    });
    let mut span = Span::default();
    for look in looks.get(first..end).unwrap_or_default() {
        span.esp += look.esp - last.esp;
        span.in_udp += look.in_udp - last.in_udp;
        span.clear += look.clear - last.clear;
        if look.esp > last.esp {
            span.first_esp.get_or_insert(look.at);
        }
        if look.clear > last.clear {
            span.last_clear = Some(look.at);
        }
        last = *look;
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_what_came_in_it() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let look = |ms, esp, in_udp, clear| Look {
            at: at(ms),
            esp,
            in_udp,
            clear,
        };
        let looks = [
            look(0, 0, 0, 5),
            look(20, 0, 0, 9),
            look(40, 3, 0, 9),
            look(60, 8, 4, 9),
        ];
        let span = between(&looks, at(10), at(50));
        assert_eq!((span.esp, span.in_udp, span.clear), (3, 0, 4));
        assert_eq!(
            (span.first_esp, span.last_clear),
            (Some(at(40)), Some(at(20)))
        );
        let span = between(&looks, at(30), at(90));
        assert_eq!((span.esp, span.in_udp), (8, 4));
        assert_eq!((span.clear, span.last_clear), (0, None));
        assert_eq!(between(&looks, at(70), at(90)), Span::default());
    }
}
