//! What became of the numbered packets, by the SA that carried them. What a kernel drops it counts
//! with a reason (Documentation/networking/xfrm_proc.rst): what is lost and what was dropped are
//! the same numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::nodes::Node;
use crate::nodes::wire::{Sink, Source};
use crate::ours::{Made, Us};
use crate::trace::{Frame, Kind};

/// One direction of the traffic.
pub struct Flow {
    /// Sent, and not refused by the sender's own kernel.
    pub passed: u64,
    /// Which numbers have come.
    arrived: Vec<bool>,
    /// Why the sender's kernel refused.
    pub refused: Vec<std::io::Error>,
}

impl Flow {
    /// Waits for all that is on its way.
    pub fn finish(source: Source, sink: Sink) -> Self {
        let sent = source.sent();
        let refused = source.refused;
        let passed = sent - refused.len() as u64;
        // As long as some still come, for a busy machine lets them wait in queues.
        let mut got = 0;
        while got < passed && sink.wait(passed) > got {
            got = sink.got();
        }
        let mut arrived = sink.finish();
        arrived.resize(usize::try_from(sent).unwrap(), false);
        Self {
            passed,
            arrived,
            refused,
        }
    }

    pub fn lost(&self) -> u64 {
        let arrived = self.arrived.iter().filter(|a| **a).count() as u64;
        self.passed - arrived
    }
}

/// Why a node's kernel dropped packets, and how many; without what it never did.
pub fn drops(node: &Node) -> BTreeMap<String, u64> {
    let all = node.run(|| std::fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap());
    let lines = all.lines().filter_map(|line| {
        let (name, count) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    });
    lines.filter(|(_, count)| *count > 0).collect()
}

fn on(frames: &[Frame], spi: u32) -> impl Iterator<Item = &Frame> {
    let carries = move |f: &&Frame| f.kind.spi() == Some(spi);
    frames.iter().filter(carries)
}

/// The daemon's packets. Where it is `hasty` it sends on a child that we ask for before it has told
/// us what its keys are made of: those packets, and no others, are lost.
pub fn theirs(
    us: &Us,
    flow: &Flow,
    frames: &[Frame],
    ours_dropped: &BTreeMap<String, u64>,
    hasty: bool,
) {
    let mut missing = 0;
    for made in &us.made {
        let sent = on(frames, made.spis[0].0).count() as u64;
        let lost = sent - received(us, made);
        let early = before(frames, made, made.receiving);
        if hasty && made.initiator {
            assert!(lost <= early, "{lost} of {early}: {}", us.story());
        } else {
            assert_eq!(lost, 0, "{:?}: {}", made.child, us.story());
        }
        if lost > 0 {
            let unanswered = before(frames, made, answered(frames, made));
            println!(
                "  {lost} lost of {sent}: {early} left before we could receive, {unanswered} of \
                 them before the answer"
            );
        }
        missing += lost;
    }
    assert_eq!(flow.lost(), missing, "{}", us.story());
    let expected = (missing > 0).then(|| ("XfrmInNoStates".to_owned(), missing));
    assert_eq!(*ours_dropped, expected.into_iter().collect());
}

fn received(us: &Us, made: &Made) -> u64 {
    match (&made.down, &us.datapath) {
        (None, Some(datapath)) => datapath.pair_counters(made.child).0.packets,
        _ => made.received,
    }
}

/// How many packets left on a child before a moment.
fn before(frames: &[Frame], made: &Made, moment: Duration) -> u64 {
    on(frames, made.spis[0].0).filter(|f| f.at < moment).count() as u64
}

/// When the answer left that gave us a child which we had asked for.
fn answered(frames: &[Frame], made: &Made) -> Duration {
    const CREATE_CHILD_SA: u8 = 36;
    let answer = Kind::Ike {
        exchange: CREATE_CHILD_SA,
        answer: true,
    };
    let answers = frames.iter().filter(|f| f.kind == answer);
    let ours = answers.filter(|f| f.at < made.receiving);
    ours.last().map_or(Duration::ZERO, |f| f.at)
}

/// Our packets. A daemon that is `hasty` sends on a child of its own making before it can receive on
/// it, so that we send on it too early; and it forgets a child the moment that it is deleted, when
/// one packet, for one thread sends, may still be on its way.
pub fn ours(
    us: &Us,
    flow: &Flow,
    frames: &[Frame],
    theirs_dropped: &BTreeMap<String, u64>,
    hasty: bool,
) {
    assert!(flow.refused.is_empty(), "{:?}", flow.refused);
    let sealed: Vec<&Frame> = frames.iter().filter(|f| f.kind.spi().is_some()).collect();
    let (mut larval, mut late) = (0, 0);
    for made in &us.made {
        let numbered = sealed.iter().zip(&flow.arrived);
        let carried: Vec<bool> = numbered
            .filter(|(f, _)| f.kind.spi() == Some(made.spis[1].0))
            .map(|(_, arrived)| *arrived)
            .collect();
        let first = carried.iter().take_while(|arrived| !**arrived).count();
        let last = carried[first..]
            .iter()
            .rev()
            .take_while(|arrived| !**arrived)
            .count();
        let between = &carried[first..carried.len() - last];
        assert!(between.iter().all(|arrived| *arrived), "{}", us.story());
        assert!(first == 0 || hasty && !made.initiator, "{}", us.story());
        assert!(
            last == 0 || hasty && last == 1 && made.down.is_some(),
            "{}",
            us.story()
        );
        larval += first as u64;
        late += last as u64;
    }
    if larval + late > 0 {
        println!("  {larval} lost before the daemon could receive, {late} when it had forgotten");
    }
    assert_eq!(flow.lost(), larval + late, "{}", us.story());
    let of = |name: &str| theirs_dropped.get(name).copied().unwrap_or(0);
    assert_eq!(of("XfrmAcquireError"), larval, "{theirs_dropped:?}");
    assert_eq!(
        of("XfrmInNoStates") + of("XfrmInStateInvalid"),
        late,
        "{theirs_dropped:?}"
    );
}
