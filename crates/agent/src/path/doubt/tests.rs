use super::*;

fn at(ms: u64) -> Monotonic {
    Monotonic(Duration::from_millis(ms))
}

fn counts(received: u64, sent: u64) -> EspCounts {
    EspCounts { received, sent }
}

/// The answer to the last question.
fn told(doubt: &mut Doubt, own: EspCounts, theirs: EspCounts, now: Monotonic) -> Option<Way> {
    let number = doubt.number;
    let told = Told {
        number,
        own,
        theirs,
    };
    doubt.told(told, STEP, now)
}

/// Asked at 1 s, when we had sent 10 packets before the silence.
fn asking() -> Doubt {
    let mut doubt = Doubt::default();
    assert_eq!(doubt.look(true, 10, at(1000)), Some(1));
    doubt
}

/// A first answer at 1.1 s: we have sent 20, the peer has 10 of them and has sent nothing.
fn pausing() -> Doubt {
    let mut doubt = asking();
    let way = told(&mut doubt, counts(5, 20), counts(10, 5), at(1100));
    assert_eq!(way, None);
    doubt
}

fn resting() -> Doubt {
    let mut doubt = asking();
    let way = told(&mut doubt, counts(5, 20), counts(19, 5), at(1100));
    assert_eq!(way, None);
    doubt
}

fn name(doubt: &Doubt) -> &'static str {
    match doubt.state {
        State::Calm => "calm",
        State::Asking { .. } => "asking",
        State::Pausing { .. } => "pausing",
        State::Resting { .. } => "resting",
    }
}

/// Every event in every state: whether the peer is asked, and the state after it.
#[test]
fn every_event_in_every_state() {
    type Event = fn(&mut Doubt) -> bool;
    type Start = (&'static str, fn() -> Doubt);
    let states: [Start; 4] = [
        ("calm", Doubt::default),
        ("asking", asking),
        ("pausing", pausing),
        ("resting", resting),
    ];
    let events: [(&str, Event); 8] = [
        ("a quiet look", |d| d.look(false, 20, at(2000)).is_some()),
        ("an unheard look", |d| d.look(true, 20, at(2000)).is_some()),
        ("an unheard look, late", |d| {
            d.look(true, 20, at(60_000)).is_some()
        }),
        ("time, early", |d| d.due(at(1200)).is_some()),
        ("time, due", |d| d.due(at(9000)).is_some()),
        ("counts: an answer to an earlier question", |d| {
            let told = Told {
                number: d.number.wrapping_sub(1),
                own: counts(5, 20),
                theirs: counts(10, 5),
            };
            d.told(told, STEP, at(2000)).is_some()
        }),
        ("counts: all came in", |d| {
            told(d, counts(5, 20), counts(20, 5), at(2000)).is_some()
        }),
        ("counts: nothing came in", |d| {
            told(d, counts(5, 20), counts(10, 5), at(2000)).is_some()
        }),
    ];
    let wanted = [
        // Of each event, in the order above: asks (or judges), and the state after it.
        [
            (false, "calm"),
            (true, "asking"),
            (true, "asking"),
            (false, "calm"),
            (false, "calm"),
            (false, "calm"),
            (false, "calm"),
            (false, "calm"),
        ],
        [
            (false, "asking"),
            (false, "asking"),
            // The answer does not come: begun anew at the next look.
            (false, "calm"),
            (false, "asking"),
            (false, "asking"),
            (false, "asking"),
            (false, "resting"),
            (false, "pausing"),
        ],
        [
            (false, "pausing"),
            (false, "pausing"),
            (false, "pausing"),
            (false, "pausing"),
            (true, "asking"),
            // Nobody asked.
            (false, "pausing"),
            (false, "pausing"),
            (false, "pausing"),
        ],
        [
            (false, "resting"),
            (false, "resting"),
            (false, "resting"),
            (false, "resting"),
            (false, "calm"),
            (false, "resting"),
            (false, "resting"),
            (false, "resting"),
        ],
    ];
    for ((state, make), row) in states.iter().zip(wanted) {
        assert_eq!(name(&make()), *state);
        for ((event, act), (asks, after)) in events.iter().zip(row) {
            let mut doubt = make();
            let did = act(&mut doubt);
            assert_eq!((did, name(&doubt)), (asks, after), "{event} in {state}");
        }
    }
}

/// Answers one after the other, each half a second after the last: (we have received, we have sent,
/// the peer has received, the peer has sent).
fn answers(rows: &[(u64, u64, u64, u64)]) -> Option<(usize, Way)> {
    let mut doubt = asking();
    let mut now = 1000;
    for (index, (received, sent, theirs, their_sent)) in rows.iter().enumerate() {
        now += 20;
        let own = counts(*received, *sent);
        let peer = counts(*theirs, *their_sent);
        if let Some(way) = told(&mut doubt, own, peer, at(now)) {
            return Some((index, way));
        }
        now += 600;
        doubt.due(at(now))?;
    }
    None
}

#[test]
fn what_answers_prove() {
    type Case = (
        &'static str,
        &'static [(u64, u64, u64, u64)],
        Option<(usize, Way)>,
    );
    let cases: [Case; 11] = [
        (
            "ours do not arrive",
            &[(5, 13, 10, 5), (5, 15, 10, 5), (5, 17, 10, 5)],
            Some((2, Way::Out)),
        ),
        (
            "the peer's do not arrive",
            &[
                (5, 13, 13, 8),
                (5, 15, 15, 9),
                (5, 17, 17, 10),
                (5, 19, 19, 11),
            ],
            Some((3, Way::In)),
        ),
        (
            "neither do",
            &[(0, 3, 0, 3), (0, 5, 0, 5), (0, 7, 0, 7)],
            Some((2, Way::Out)),
        ),
        (
            "what the peer sent after its first word may be lost with what delayed that",
            &[
                (5, 13, 13, 8),
                (5, 15, 15, 9),
                (5, 17, 17, 9),
                (5, 19, 19, 9),
            ],
            None,
        ),
        ("ours arrive, the peer is silent", &[(5, 13, 12, 5)], None),
        (
            "what was on its way has come by the second answer",
            &[(5, 13, 10, 5), (5, 15, 14, 5)],
            None,
        ),
        (
            "two packets are too few",
            &[(0, 1, 0, 0), (0, 2, 0, 0), (0, 2, 0, 0), (0, 2, 0, 0)],
            None,
        ),
        (
            "none left since the first answer: it may have been before UDP passed",
            &[(0, 9, 0, 0), (0, 9, 0, 0), (0, 9, 0, 0), (0, 9, 0, 0)],
            None,
        ),
        (
            "those that left since then have not had the time of a question yet",
            &[(0, 9, 0, 0), (0, 12, 0, 0)],
            None,
        ),
        (
            "now they have",
            &[(0, 9, 0, 0), (0, 10, 0, 0), (0, 10, 0, 0)],
            Some((2, Way::Out)),
        ),
        (
            "some came in since the first answer, however late",
            &[
                (0, 90, 10, 0),
                (0, 180, 60, 0),
                (0, 270, 130, 0),
                (0, 360, 190, 0),
            ],
            None,
        ),
    ];
    for (what, rows, wanted) in cases {
        assert_eq!(answers(rows), wanted, "{what}");
    }
}

/// The network was away while the question was under way: the answer is the first of a new row.
#[test]
fn a_slow_answer_begins_anew() {
    let mut doubt = asking();
    let lost = |received| counts(received, 5);
    assert_eq!(told(&mut doubt, counts(5, 20), lost(10), at(1100)), None);
    assert_eq!(doubt.due(at(1700)), Some(2));
    // 20 more were lost with the network; it is back.
    let slow = at(1700) + PROMPT + Duration::from_millis(1);
    assert_eq!(told(&mut doubt, counts(5, 40), lost(10), slow), None);
    assert_eq!(doubt.due(slow + STEP), Some(3));
    assert_eq!(told(&mut doubt, counts(5, 40), lost(10), slow + STEP), None);
    let next = slow + STEP + STEP * 2;
    assert_eq!(doubt.due(next), Some(4));
    // The first packet since then has arrived.
    assert_eq!(told(&mut doubt, counts(5, 41), lost(41), next), None);
    assert_eq!(name(&doubt), "resting");
}

/// A lone lost packet on an idle path is asked about a few times, later each time.
#[test]
fn an_idle_path_is_left_alone() {
    let mut doubt = asking();
    let (mut now, mut asked) = (at(1000), 1);
    while name(&doubt) != "calm" {
        now = now + Duration::from_millis(10);
        assert_eq!(told(&mut doubt, counts(5, 11), counts(10, 5), now), None);
        if let Some(due) = doubt.deadline() {
            now = due;
            asked += u32::from(doubt.due(now).is_some());
        }
    }
    assert_eq!(asked, 1 + MOST_IDLE);
    assert!(now.since(at(1000)) > Duration::from_secs(10));
}
