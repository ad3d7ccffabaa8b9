use testudo_ike::EspCounts;

use super::*;

/// Steps of the simulated time.
const TICK: Duration = Duration::from_millis(10);
/// A datagram's way.
const LATENCY: Duration = Duration::from_millis(20);

/// A moment or a span, in milliseconds.
type Ms = u64;

/// When packets of one direction are sent, and when they are dropped on the way.
#[derive(Clone, Copy)]
struct Lane {
    /// Between two packets; 0: none.
    every: Ms,
    /// From when on the filter drops them.
    filtered: Ms,
    /// When nothing at all passes, UDP neither.
    away: (Ms, Ms),
}

const NEVER: Ms = Ms::MAX;

fn lane(every: Ms, filtered: Ms) -> Lane {
    Lane {
        every,
        filtered,
        away: (0, 0),
    }
}

/// What is on its way to the other end: the ask, or the counts as they were told.
#[derive(Clone, Copy)]
enum Flying {
    Ask(u32),
    Counts(u32, EspCounts),
}

struct End {
    paths: Paths,
    inbound: SaCounters,
    outbound: SaCounters,
    is_readable: bool,
    udp: bool,
    asks: u32,
}

fn peer() -> PeerId {
    PeerId::new("n2").unwrap()
}

fn plain() -> Encapsulation {
    Encapsulation::None {
        local: "10.0.0.1".parse().unwrap(),
        remote: "10.0.0.2".parse().unwrap(),
    }
}

fn end() -> End {
    let mut paths = Paths::default();
    paths.came_up(&peer(), &plain(), Monotonic::default());
    End {
        paths,
        inbound: SaCounters::default(),
        outbound: SaCounters::default(),
        is_readable: true,
        udp: false,
        asks: 0,
    }
}

impl End {
    fn counts(&self) -> EspCounts {
        EspCounts {
            received: self.inbound.sequence,
            sent: self.outbound.sequence,
        }
    }

    /// Looks and asks as the node does.
    fn turn(&mut self, now: Monotonic) -> Option<u32> {
        let mut ask = self.paths.due(now);
        if let Some(whom) = self.paths.look_due(now) {
            let seen = Seen {
                child: ChildId(1),
                peer: peer(),
                v4: true,
                udp: self.udp,
                sending: true,
                counters: self.is_readable.then_some((self.inbound, self.outbound)),
            };
            ask.extend(self.paths.look(whom, &[seen], now));
        }
        self.asks += u32::try_from(ask.len()).unwrap();
        ask.first().map(|(_, number)| *number)
    }
}

/// What came of two ends between which lanes 0 and 1 lead.
struct Outcome {
    /// When, which end found it, and which way.
    verdict: Option<(Ms, usize, Way)>,
    asks: [u32; 2],
    ends: [End; 2],
}

/// Lets two ends talk for `span`. A question that is lost is sent again each half second, as an IKE
/// request is.
fn run(mut ends: [End; 2], lanes: [Lane; 2], span: Ms) -> Outcome {
    let mut flying: Vec<(Ms, usize, Flying)> = Vec::new();
    let tick = TICK.as_millis() as Ms;
    let latency = LATENCY.as_millis() as Ms;
    let outcome = |ends: [End; 2], verdict| Outcome {
        verdict,
        asks: [ends[0].asks, ends[1].asks],
        ends,
    };
    for ms in (0..span).step_by(tick as usize) {
        let now = Monotonic(Duration::from_millis(ms));
        let away = |from: usize| (lanes[from].away.0..lanes[from].away.1).contains(&ms);
        for from in 0..2 {
            let lane = lanes[from];
            if lane.every > 0 && ms % lane.every < tick {
                let sent = &mut ends[from].outbound;
                sent.packets += 1;
                sent.sequence += 1;
                let sequence = sent.sequence;
                if ms < lane.filtered && !away(from) {
                    ends[1 - from].inbound.packets += 1;
                    ends[1 - from].inbound.sequence = sequence;
                }
            }
            if let Some(number) = ends[from].turn(now) {
                flying.push((ms + latency, 1 - from, Flying::Ask(number)));
            }
        }
        let due: Vec<_> = flying.extract_if(.., |(at, ..)| *at <= ms).collect();
        for (_, to, what) in due {
            // It comes from the other end.
            if away(1 - to) {
                flying.push((ms + 500, to, what));
                continue;
            }
            match what {
                Flying::Ask(number) => {
                    let counts = Flying::Counts(number, ends[to].counts());
                    flying.push((ms + latency, 1 - to, counts));
                }
                Flying::Counts(number, theirs) => {
                    let told = Told {
                        number,
                        own: ends[to].counts(),
                        theirs,
                    };
                    let paths = &mut ends[to].paths;
                    if let Some(way) = paths.told_counts(ChildId(1), &peer(), told, now) {
                        return outcome(ends, Some((ms, to, way)));
                    }
                }
            }
        }
    }
    outcome(ends, None)
}

/// However much is sent and whichever direction is filtered, from the beginning or from 10 s on:
/// noticed within four seconds of traffic, by one end or the other, and the direction is right.
#[test]
fn a_filter_is_noticed_within_four_seconds() {
    for filtered in [0, 10_000, 10_370, 10_730] {
        for (ours, theirs) in [(1, 1), (10, 0), (100, 100), (300, 1000), (500, 0)] {
            for (out, inward) in [(true, true), (true, false), (false, true)] {
                if inward && !out && theirs == 0 {
                    continue;
                }
                let from = |filters| if filters { filtered } else { NEVER };
                let lanes = [lane(ours, from(out)), lane(theirs, from(inward))];
                let found = run([end(), end()], lanes, 30_000);
                let what = format!("{filtered} {ours} {theirs} {out} {inward}");
                let (ms, who, way) = found.verdict.expect(&what);
                assert!(ms - filtered < 4_000, "{what}: {ms}");
                let is_out = (way == Way::Out) == (who == 0);
                assert!(
                    if is_out { out } else { inward },
                    "{what}: {way:?} at {who}"
                );
            }
        }
    }
}

/// A connection that is tried: packets at 0, 1, 3, 7 s. A ping, one a second.
#[test]
fn few_packets_are_enough() {
    let ping = run([end(), end()], [lane(1000, 0), lane(0, 0)], 30_000);
    let (ms, ..) = ping.verdict.expect("a ping");
    assert!(ms < 5_000, "{ms}");
    let slow = run([end(), end()], [lane(10_000, 0), lane(0, 0)], 120_000);
    assert!(slow.verdict.is_some(), "a packet each ten seconds");
}

/// Traffic in one direction or both, at any rate, on a path that is as it should be; and on one that
/// is away for a while, which UDP is with it: no verdict, and few questions.
#[test]
fn a_good_path_is_never_taken_for_filtered() {
    for (ours, theirs) in [
        (1, 1),
        (10, 0),
        (0, 10),
        (100, 100),
        (700, 0),
        (1000, 1000),
        (3000, 10_000),
    ] {
        let lanes = [lane(ours, NEVER), lane(theirs, NEVER)];
        let found = run([end(), end()], lanes, 600_000);
        assert!(found.verdict.is_none(), "{ours} {theirs}");
        let asks = found.asks[0] + found.asks[1];
        assert!(
            asks <= 300,
            "{ours} {theirs}: {asks} questions in ten minutes"
        );
        if ours == theirs {
            continue;
        }
        for start in (20_000..26_000).step_by(1310) {
            for span in [200, 900, 1900, 3500, 30_000] {
                for (first, second) in [(true, true), (true, false), (false, true)] {
                    let mut lanes = lanes;
                    lanes[0].away = (start, if first { start + span } else { start });
                    lanes[1].away = (start, if second { start + span } else { start });
                    let found = run([end(), end()], lanes, 90_000);
                    let what =
                        format!("{ours} {theirs}, away {start} for {span}, {first} {second}");
                    let seen = found.verdict.map(|(ms, who, _)| (ms, who));
                    assert_eq!(seen, None, "{what}");
                }
            }
        }
    }
}

/// With traffic both ways nobody asks anything.
#[test]
fn a_busy_path_is_not_asked_about() {
    let found = run([end(), end()], [lane(10, NEVER), lane(10, NEVER)], 60_000);
    assert_eq!(found.asks, [0, 0]);
    let idle = run([end(), end()], [lane(0, NEVER), lane(0, NEVER)], 60_000);
    assert_eq!(idle.asks, [0, 0]);
}

fn at(seconds: u64) -> Monotonic {
    Monotonic(Duration::from_secs(seconds))
}

fn ends() -> (IpAddr, IpAddr) {
    (plain().local(), plain().remote())
}

#[test]
fn a_verdict_is_of_one_path_and_ends() {
    let mut paths = Paths::default();
    let hour = RETRY.0;
    let forces = |paths: &Paths| paths.forces(&peer(), [ends()].into_iter());
    assert!(!forces(&paths));
    assert_eq!(paths.filtered(&peer(), ends(), Way::Out, at(0)), Some(hour));
    assert_eq!(
        paths.filtered(&peer(), ends(), Way::Out, at(1)),
        None,
        "it is known"
    );
    assert!(forces(&paths));
    let moved = (ends().0, "10.0.0.9".parse().unwrap());
    assert!(!paths.forces(&peer(), [moved].into_iter()));
    assert!(paths.forces(&peer(), [moved, ends()].into_iter()));
    assert_eq!(paths.deadline(), Some(at(3600)));
    assert!(paths.over(at(3599)).is_empty());
    assert_eq!(paths.over(at(3600)), [peer()]);
    assert!(!forces(&paths));
    // In vain: twice as long, up to a day.
    let mut now = 3600;
    for hours in [2, 4, 8, 16, 24, 24] {
        let wait = Duration::from_secs(hours * 3600);
        assert_eq!(
            paths.filtered(&peer(), ends(), Way::Out, at(now + 2)),
            Some(wait)
        );
        now += 2 + wait.as_secs();
        assert_eq!(paths.over(at(now)), [peer()]);
    }
    // Packets arrive: a filter that comes back later is a new one.
    let seen = |packets| Seen {
        child: ChildId(1),
        peer: peer(),
        v4: true,
        udp: false,
        sending: true,
        counters: Some((packets, packets)),
    };
    let packets = SaCounters {
        packets: 1,
        bytes: 100,
        sequence: 1,
    };
    assert_eq!(paths.look(Whom::All, &[seen(packets)], at(now + 500)), []);
    let later = at(now + 600);
    assert_eq!(paths.filtered(&peer(), ends(), Way::Out, later), Some(hour));
    paths.forget(&peer());
    assert!(!forces(&paths));
    assert_eq!(paths.look(Whom::All, &[], later), []);
    assert_eq!(paths.deadline(), None);
}

impl Paths {
    /// A verdict about the peer is over at this moment.
    pub(crate) fn try_now(&mut self, peer: &PeerId, now: Monotonic) {
        self.filtered(peer, ends(), Way::Out, now);
        self.verdicts.get_mut(peer).unwrap().until = now;
        assert_eq!(self.over(now), std::slice::from_ref(peer));
    }
}

/// One end whose verdict is just over.
fn tried() -> End {
    let mut one = end();
    let start = Monotonic::default();
    one.paths.try_now(&peer(), start);
    one.paths.look = None;
    one.paths.came_up(&peer(), &plain(), start);
    one
}

/// After a verdict ESP is tried again: when it is filtered still, a second is enough to see it.
#[test]
fn a_try_in_vain_is_short() {
    let lanes = [lane(10, 0), lane(10, 0)];
    let found = run([tried(), end()], lanes, 10_000);
    let (ms, who, _) = found.verdict.expect("a verdict");
    assert_eq!(who, 0);
    assert!(ms < 1_000, "{ms}");
}

/// However rarely packets leave, and however late the first does, a try in vain is one more in a row.
#[test]
fn tries_in_vain_grow_rarer_where_packets_are_few() {
    for every in [1000, 3000, 10_000] {
        let found = run([tried(), end()], [lane(every, 0), lane(0, 0)], 120_000);
        let (ms, who, way) = found.verdict.expect("a verdict");
        let now = Monotonic(Duration::from_millis(ms));
        let [mut one, _] = found.ends;
        assert!(one.paths.over(now).is_empty());
        let holds = one.paths.filtered(&peer(), ends(), way, now);
        assert_eq!((who, holds), (0, Some(RETRY.0 * 2)), "{every}: {ms}");
    }
    let mut idle = tried();
    for seconds in 1..600 {
        assert_eq!(idle.turn(at(seconds)), None);
        assert!(idle.paths.over(at(seconds)).is_empty());
    }
    let holds = idle.paths.filtered(&peer(), ends(), Way::Out, at(600));
    assert_eq!(holds, Some(RETRY.0 * 2));
}

/// An end that sees whether UDP has helped.
fn proving() -> End {
    let mut one = end();
    let start = Monotonic::default();
    one.paths.filtered(&peer(), ends(), Way::Out, start);
    one.udp = true;
    one
}

/// What is missing in UDP too is no filter of ESP: the verdict is taken back, and not taken again
/// until it would have been over.
#[test]
fn a_verdict_that_udp_does_not_bear_out_is_taken_back() {
    let found = run([proving(), end()], [lane(300, 0), lane(0, 0)], 30_000);
    let (ms, who, way) = found.verdict.expect("they are missing");
    assert_eq!((who, way), (0, Way::Out));
    let now = Monotonic(Duration::from_millis(ms));
    let [mut one, _] = found.ends;
    let paths = &mut one.paths;
    assert!(!paths.missing_in_udp(&peer(), ends(), Way::In, now));
    assert!(paths.forces(&peer(), [ends()].into_iter()));
    assert!(paths.missing_in_udp(&peer(), ends(), way, now));
    assert!(!paths.forces(&peer(), [ends()].into_iter()));
    assert_eq!(paths.all_filtered(), [].into());
    assert!(!paths.missing_in_udp(&peer(), ends(), way, now), "once");
    let again = paths.filtered(&peer(), ends(), way, at(600));
    assert_eq!(again, None);
    assert!(paths.over(at(3600)).is_empty(), "nothing is to be tried");
    assert!(paths.filtered(&peer(), ends(), way, at(3700)).is_some());
    // Where UDP helps the verdict stays, and after a minute nobody looks.
    let good = run([proving(), end()], [lane(300, NEVER), lane(0, 0)], 30_000);
    assert!(good.verdict.is_none());
    let [mut one, _] = good.ends;
    assert!(one.paths.is_to_prove(&peer(), at(59)));
    assert!(!one.paths.is_to_prove(&peer(), at(60)));
    assert!(!one.paths.missing_in_udp(&peer(), ends(), way, at(61)));
    assert!(one.paths.forces(&peer(), [ends()].into_iter()));
}

#[test]
fn what_the_peer_has_found_is_shown_until_plain_esp_is_there() {
    let mut paths = Paths::default();
    assert!(paths.heard_verdict(&peer()));
    assert!(!paths.heard_verdict(&peer()), "it is known");
    assert_eq!(paths.all_filtered(), [peer()].into());
    let udp = Encapsulation::Udp {
        local: "10.0.0.1:4500".parse().unwrap(),
        remote: "10.0.0.2:4500".parse().unwrap(),
    };
    paths.came_up(&peer(), &udp, at(1));
    assert_eq!(paths.all_filtered(), [peer()].into());
    assert_eq!(paths.deadline(), None, "nothing to look at");
    paths.came_up(&peer(), &plain(), at(2));
    assert_eq!(paths.all_filtered(), [].into());
    assert_eq!(paths.deadline(), Some(at(3)));
}

/// Counters that could not be read are not those of an SA that carried nothing: neither is the peer
/// asked for them, nor is what was known before forgotten.
#[test]
fn what_cannot_be_read_says_nothing() {
    let mut one = end();
    let look = |one: &mut End, seconds| one.turn(at(seconds));
    one.outbound.packets = 9;
    one.inbound.packets = 9;
    assert_eq!(look(&mut one, 1), None);
    one.is_readable = false;
    one.outbound.packets = 20;
    assert_eq!(look(&mut one, 2), None, "nobody knows what left");
    one.is_readable = true;
    assert_eq!(look(&mut one, 3), Some(1), "11 left and none came in");
}
