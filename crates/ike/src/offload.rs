//! Asymmetric cryptography apart from the engine, on any thread.
//!
//! Signing, verifying and key exchange take nearly all of the time of a handshake. With
//! [`EngineConfig::offload`](crate::EngineConfig::offload) a handler that needs one of them stops
//! before it has changed anything that matters, the engine keeps its message and gives the work
//! away as a [`Job`]. When the result is back the same handler runs again on the same message,
//! finds the result and goes on. So nothing is continued on a state that has changed meanwhile:
//! every check is made afresh, and a result is found by what it was computed from, so that one
//! which no longer fits is not used.

use std::collections::{BTreeMap, VecDeque};

use testudo_model::Now;

use crate::compute::{Digest, Op, Output};
use crate::engine::{Dropped, Engine, Path};
use crate::error::Fault;
use crate::event::IkeId;
use crate::message::Plain;
use crate::sa::{InitKey, Source};
use crate::timers::Deadline;

/// Results that one message may wait for: those of its handler, and some again when what they
/// were computed from has changed meanwhile.
const ROUNDS: usize = 12;

/// Work for any thread: [`Job::run`] it and give the outcome to [`Engine::handle_done`]. A job
/// may be dropped: the message that it was for is then as good as lost, and its copies for as long
/// as [`Retransmission::longest`](crate::Retransmission::longest).
pub struct Job {
    id: u64,
    digest: Digest,
    op: Op,
}

/// The outcome of a [`Job`].
#[cfg_attr(test, derive(Clone))]
pub struct Done {
    id: u64,
    digest: Digest,
    output: Output,
}

impl Job {
    /// Computes. It takes up to some hundred microseconds, with RSA and MODP some milliseconds.
    pub fn run(self) -> Done {
        Done {
            id: self.id,
            digest: self.digest,
            output: self.op.run(),
        }
    }
}

/// Where a message waits: one of each direction of an IKE SA, and one of each IKE_SA_INIT request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Init(InitKey),
    Sa { ike: IkeId, response: bool },
}

/// The jobs that are out and the messages that wait for them.
#[derive(Default)]
pub(crate) struct Offload {
    /// Of the message whose handler runs now; there is none where everything is computed at once.
    run: Option<Run>,
    waiting: BTreeMap<u64, Waiting>,
    places: BTreeMap<Place, u64>,
    jobs: VecDeque<Job>,
}

/// What a handler's run has found and wants.
#[derive(Default)]
struct Run {
    place: Option<(Place, u32)>,
    /// What the run is counted for among the half-open SAs, if it stops.
    source: Option<Source>,
    /// The message, if it came in fragments: its last one is what is handled.
    whole: Option<Plain>,
    memo: Vec<(Digest, Output)>,
    wanted: Option<(Digest, Op)>,
}

/// A message that waits.
struct Waiting {
    place: Place,
    message_id: u32,
    source: Option<Source>,
    from: Path,
    bytes: Vec<u8>,
    whole: Option<Plain>,
    digest: Digest,
    memo: Vec<(Digest, Output)>,
}

impl Engine {
    /// The next job, with [`EngineConfig::offload`](crate::EngineConfig::offload). Ask after the
    /// datagrams are drained.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.offload.jobs.pop_front()
    }

    /// Takes in the outcome of a job, as if its message had come now. Outcomes may come in any
    /// order; one that nobody waits for any more is counted.
    pub fn handle_done(&mut self, now: Now, done: Done) {
        let offload = &mut self.offload;
        let fits = |waiting: &Waiting| waiting.digest == done.digest;
        if !offload.waiting.get(&done.id).is_some_and(fits) {
            self.count_drop("late_job");
            return;
        }
        let Some(waiting) = self.stop_waiting(done.id) else {
            return;
        };
        let mut memo = waiting.memo;
        memo.push((done.digest, done.output));
        let run = Run {
            source: waiting.source,
            whole: waiting.whole,
            memo,
            ..Run::default()
        };
        self.take_in(now, waiting.from, &waiting.bytes, run);
    }

    /// Runs the handler of a datagram that has just come.
    pub(crate) fn take_in_new(&mut self, now: Now, from: Path, bytes: &[u8]) {
        self.take_in(now, from, bytes, Run::default());
    }

    fn take_in(&mut self, now: Now, from: Path, bytes: &[u8], run: Run) {
        self.offload.run = self.config.offload.then_some(run);
        let outcome = self.route(now, from, bytes);
        match self.offload.run.take() {
            Some(run) if run.wanted.is_some() => self.wait(now, from, bytes, run),
            _ => {
                if let Err(reason) = outcome {
                    self.count_drop(reason);
                }
            }
        }
    }

    /// Keeps a message until its job is done.
    fn wait(&mut self, now: Now, from: Path, bytes: &[u8], run: Run) {
        let (Some((place, message_id)), Some((digest, op))) = (run.place, run.wanted) else {
            return self.count_drop("bug");
        };
        if run.memo.len() >= ROUNDS || self.offload.places.contains_key(&place) {
            return self.count_drop("job_limit");
        }
        let id = self.tick();
        if let Some(source) = run.source {
            self.count_half_open(source);
        }
        // A job that never comes back holds its place no longer than the peer waits at most
        // before it sends again: so one that is lost costs a while, not the IKE SA.
        let until = now.monotonic + self.config.retransmission.longest;
        self.timers.set(Deadline::Job(id), until);
        self.offload.places.insert(place.clone(), id);
        self.offload.jobs.push_back(Job { id, digest, op });
        let waiting = Waiting {
            place,
            message_id,
            source: run.source,
            from,
            bytes: bytes.to_vec(),
            whole: run.whole,
            digest,
            memo: run.memo,
        };
        self.offload.waiting.insert(id, waiting);
        self.counters.jobs += 1;
    }

    fn stop_waiting(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.offload.waiting.remove(&id)?;
        self.offload.places.remove(&waiting.place);
        // One that was not fetched yet is of no use either.
        self.offload.jobs.retain(|job| job.id != id);
        self.timers.cancel(&Deadline::Job(id));
        if let Some(source) = waiting.source {
            self.uncount_half_open(source);
        }
        Some(waiting)
    }

    /// A job did not come back in time.
    pub(crate) fn job_over(&mut self, id: u64) {
        if self.stop_waiting(id).is_some() {
            self.count_drop("job_timeout");
        }
    }

    /// The messages of an IKE SA that is gone go with it.
    pub(crate) fn forget_jobs(&mut self, ike: IkeId) {
        for response in [false, true] {
            let place = Place::Sa { ike, response };
            if let Some(id) = self.offload.places.get(&place).copied() {
                self.stop_waiting(id);
            }
        }
    }

    /// Says what the message is that is being handled. A copy of one that waits is dropped.
    pub(crate) fn at_place(&mut self, place: Place, message_id: u32) -> Result<(), Dropped> {
        let offload = &mut self.offload;
        let Some(run) = &mut offload.run else {
            return Ok(());
        };
        let waiting = offload
            .places
            .get(&place)
            .and_then(|id| offload.waiting.get(id));
        if waiting.is_some_and(|w| w.message_id == message_id) {
            return Err("job_running");
        }
        run.place = Some((place, message_id));
        Ok(())
    }

    /// Whether the IKE_SA_INIT request that is being handled has been let in before, and as what.
    pub(crate) fn let_in_before(&self) -> Option<Source> {
        self.offload.run.as_ref().and_then(|run| run.source)
    }

    /// Says as what an IKE_SA_INIT request is counted while it waits.
    pub(crate) fn let_in(&mut self, source: Source) {
        if let Some(run) = &mut self.offload.run {
            run.source = Some(source);
        }
    }

    /// Messages that wait.
    pub(crate) fn waiting_jobs(&self) -> usize {
        let offload = &self.offload;
        debug_assert_eq!(offload.waiting.len(), offload.places.len());
        offload.waiting.len()
    }

    /// Whether the handler stops for a job.
    pub(crate) fn is_suspended(&self) -> bool {
        self.offload
            .run
            .as_ref()
            .is_some_and(|run| run.wanted.is_some())
    }

    /// The message is dealt with: what the call still does is computed at once.
    pub(crate) fn never_suspend(&mut self) {
        self.offload.run = None;
    }

    /// The message that is handled was put together from fragments.
    pub(crate) fn assembled(&mut self, whole: &Plain) {
        if let Some(run) = &mut self.offload.run {
            run.whole = Some(whole.clone());
        }
    }

    /// The message that is handled, if it was put together in an earlier run of its handler.
    pub(crate) fn assembled_before(&self) -> Option<Plain> {
        self.offload.run.as_ref().and_then(|run| run.whole.clone())
    }

    /// The result of an asymmetric operation: computed now, or found. Else [`Fault::Suspended`]:
    /// the handler returns it at once and runs again when the result is there.
    pub(crate) fn compute(&mut self, op: Op) -> Result<Output, Fault> {
        let Some(run) = &mut self.offload.run else {
            return Ok(op.run());
        };
        let digest = op.digest();
        if let Some((_, output)) = run.memo.iter().find(|(of, _)| *of == digest) {
            return Ok(output.clone());
        }
        run.wanted = Some((digest, op));
        Err(Fault::Suspended)
    }

    /// Makes sure that the result will be found by a later [`Engine::compute_now`], where the
    /// handler has to change something before it comes to that.
    pub(crate) fn compute_ahead(&mut self, op: impl FnOnce() -> Op) -> Result<(), Fault> {
        if self.offload.run.is_none() {
            return Ok(());
        }
        self.compute(op()).map(drop)
    }

    /// The result of an asymmetric operation, found or computed now: the handler cannot stop any
    /// more.
    pub(crate) fn compute_now(&mut self, op: Op) -> Output {
        let digest = op.digest();
        let run = self.offload.run.as_ref();
        let found = run.and_then(|run| run.memo.iter().find(|(of, _)| *of == digest));
        match found {
            Some((_, output)) => output.clone(),
            None => op.run(),
        }
    }
}
