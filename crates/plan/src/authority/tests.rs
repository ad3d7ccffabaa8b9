use super::*;

fn says(trusted: &[&str], presented: Option<&str>, peers: &[&str], asking: bool) -> Authorities {
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    Authorities {
        trusted: owned(trusted),
        presented: presented.map(str::to_owned),
        showing: Vec::new(),
        peers: owned(peers),
        asking,
    }
}

fn standing(phase: CaPhase, signer: &str, other: Option<&str>) -> Standing {
    Standing {
        phase,
        rotation: 4,
        answered: 2,
        other: other.map(str::to_owned),
        ..Standing::settled(signer)
    }
}

fn known<'a>(standing: &'a Standing, nodes: &'a [(&'a str, &'a Authorities)]) -> Known<'a> {
    Known {
        standing,
        asked: Some(2),
        take_back: None,
        due: false,
        signer_life: Life::Good,
        other_life: Life::Good,
        sure: true,
        off: false,
        nodes,
        unreadable: &[],
    }
}

/// What each step waits for: a node's word, and the part of the reason when it is not enough.
#[test]
fn each_step_waits_for_what_every_node_says() {
    use CaPhase::*;
    let old = says(&["old"], Some("old"), &["old"], false);
    let both = says(&["old", "new"], Some("old"), &["old"], false);
    let asks = says(&["new", "old"], Some("new"), &["new"], true);
    let renewed = says(&["new", "old"], Some("new"), &["new", "old"], false);
    let done = says(&["new", "old"], Some("new"), &["new"], false);
    let bare = says(&["new", "old"], None, &[], false);
    let gone = says(&["new"], Some("new"), &["new"], false);
    let mut on_its_way = done.clone();
    on_its_way.showing = vec!["new".to_owned(), "old".to_owned()];
    let silent = Authorities::default();
    let cases: [(CaPhase, &Authorities, Option<&str>); 15] = [
        (Trusting, &old, Some("does not trust new")),
        (Trusting, &silent, Some("new yet: its agent says nothing")),
        (Trusting, &both, None),
        (Issuing, &old, Some("does not trust new")),
        (Issuing, &silent, Some("does not trust new")),
        (Issuing, &both, Some("shows a certificate of old")),
        (Issuing, &asks, Some("asked for")),
        (Issuing, &renewed, Some("peers' certificates of old")),
        (Issuing, &bare, Some("no certificate")),
        (
            Issuing,
            &on_its_way,
            Some("some peers a certificate of old"),
        ),
        (Issuing, &done, None),
        (Issuing, &gone, None),
        (Retiring, &done, Some("still trusts old")),
        (Retiring, &gone, None),
        (Retiring, &silent, None),
    ];
    for (phase, word, lack) in cases {
        let (signer, other, step) = match phase {
            Trusting => ("old", "new", Step::Issue),
            Issuing => ("new", "old", Step::Retire),
            _ => ("new", "old", Step::Settle),
        };
        let standing = standing(phase, signer, Some(other));
        let nodes = [("n1", &done), ("n2", word)];
        let nodes = match phase {
            Retiring => &nodes[1..],
            _ => &nodes[..],
        };
        let decision = decide(&known(&standing, nodes));
        match lack {
            None => assert_eq!(decision.step, Some(step), "{phase} {word:?}"),
            Some(part) => {
                assert_eq!(decision.step, None, "{phase} {word:?}");
                let [waiting] = decision.waiting_on.as_slice() else {
                    panic!("{phase} {word:?}: {decision:?}");
                };
                assert_eq!(waiting.node, "n2");
                assert!(waiting.reason.contains(part), "{phase}: {}", waiting.reason);
            }
        }
    }
}

#[test]
fn what_is_off_needs_no_certificate() {
    let standing = standing(CaPhase::Issuing, "new", Some("old"));
    let nodes = [("n1", &says(&["new", "old"], None, &[], false))];
    let mut known = known(&standing, &nodes);
    assert_eq!(decide(&known).step, None);
    known.off = true;
    assert_eq!(decide(&known).step, Some(Step::Retire));
}

#[test]
fn a_node_that_cannot_be_read_is_waited_for() {
    let unreadable = ["n9".to_owned()];
    for phase in [CaPhase::Trusting, CaPhase::Issuing, CaPhase::Retiring] {
        let standing = standing(phase, "a", Some("b"));
        let mut known = known(&standing, &[]);
        assert!(decide(&known).step.is_some(), "{phase}: nobody to wait for");
        known.unreadable = &unreadable;
        let decision = decide(&known);
        assert_eq!((decision.step, decision.waiting_on.len()), (None, 1));
        assert_eq!(decision.waiting_on[0].node, "n9");
        // Also when it has said before what it takes.
        let nodes = [("n9", &says(&["a", "b"], Some("a"), &[], false))];
        known.nodes = &nodes;
        assert_eq!(decide(&known).waiting_on, decision.waiting_on);
    }
}

/// (asked for, due, what is done)
#[test]
fn a_rotation_begins_when_it_is_asked_for_or_due() {
    let cases = [
        (None, false, None),
        (Some(2), false, None),
        (Some(3), false, Some(Step::Begin(3))),
        (Some(7), true, Some(Step::Begin(7))),
        (Some(2), true, Some(Step::Begin(2))),
        (None, true, Some(Step::Begin(2))),
        // A policy that was written anew: the next time it is raised counts.
        (Some(0), false, Some(Step::Note(0))),
    ];
    let nodes = [("n1", &Authorities::default())];
    for (asked, due, step) in cases {
        let settled = standing(CaPhase::Settled, "old", None);
        let mut known = known(&settled, &nodes);
        (known.asked, known.due) = (asked, due);
        assert_eq!(decide(&known).step, step, "{asked:?} {due}");
        // While one runs neither begins another.
        let running = standing(CaPhase::Trusting, "old", Some("new"));
        known.standing = &running;
        assert_eq!(decide(&known).step, None);
    }
}

#[test]
fn a_rotation_is_taken_back_while_the_old_key_is_there() {
    let nodes = [("n1", &Authorities::default())];
    for (phase, number, step) in [
        (CaPhase::Trusting, 4, Some(Step::Drop)),
        (CaPhase::Issuing, 4, Some(Step::TurnBack)),
        (CaPhase::Trusting, 3, None),
        (CaPhase::Issuing, 3, None),
    ] {
        let standing = standing(phase, "a", Some("b"));
        let mut known = known(&standing, &nodes);
        known.take_back = Some(number);
        assert_eq!(decide(&known).step, step, "{phase} {number}");
    }
    let mut back = standing(CaPhase::Issuing, "a", Some("b"));
    back.taken_back = true;
    let mut known = known(&back, &nodes);
    known.take_back = Some(4);
    assert_eq!(decide(&known).step, None, "once is enough");
    let settled = standing(CaPhase::Settled, "a", None);
    known.standing = &settled;
    assert_eq!(decide(&known).step, None);
}

/// One node has taken a certificate of the new CA, its peers have not seen it, and the rotation is taken
/// back: the new CA must not go before the node shows another.
#[test]
fn a_certificate_that_is_on_its_way_to_the_peers_holds_a_rotation_that_is_taken_back() {
    let old = says(&["new", "old"], Some("old"), &["old"], false);
    let mut first = old.clone();
    first.showing = vec!["new".to_owned()];
    let issuing = standing(CaPhase::Issuing, "new", Some("old"));
    let nodes = [("n1", &first), ("n2", &old)];
    let mut known = known(&issuing, &nodes);
    known.take_back = Some(4);
    assert_eq!(decide(&known).step, Some(Step::TurnBack));
    let back = issuing.after(Step::TurnBack, None);
    known.standing = &back;
    let decision = decide(&known);
    assert_eq!(decision.step, None);
    assert_eq!(decision.waiting_on[0].node, "n1");
    let nodes = [("n1", &old), ("n2", &old)];
    known.nodes = &nodes;
    assert_eq!(decide(&known).step, Some(Step::Retire));
}

/// A node that is down holds a rotation, and meanwhile the CAs end: what is done without it.
#[test]
fn no_rotation_waits_for_the_certificates_of_a_ca_that_has_ended() {
    use CaPhase::*;
    use Life::*;
    let nodes = [
        ("n1", &says(&["a"], Some("a"), &[], true)),
        ("n2", &says(&["a", "b"], Some("b"), &["b"], true)),
    ];
    let cases = [
        // The coming CA is no good any more, or not yet: it never signs.
        (Trusting, Good, Ended, Some(Step::Drop)),
        (Trusting, Good, Late, Some(Step::Drop)),
        (Trusting, Good, Future, Some(Step::Drop)),
        (Trusting, Ended, Ended, Some(Step::Drop)),
        (Trusting, Ended, Good, Some(Step::Issue)),
        (Issuing, Ended, Good, Some(Step::TurnBack)),
        (Issuing, Ended, Ended, Some(Step::Retire)),
        (Issuing, Ended, Late, Some(Step::Retire)),
        (Issuing, Good, Ended, None),
        (Retiring, Ended, Good, Some(Step::Settle)),
        (Retiring, Good, Good, None),
    ];
    for (phase, signer, other, step) in cases {
        let standing = standing(phase, "a", Some("b"));
        let mut known = known(&standing, &nodes);
        (known.signer_life, known.other_life) = (signer, other);
        assert_eq!(decide(&known).step, step, "{phase} {signer:?} {other:?}");
        // By a clock that has just jumped nothing is done, and no CA of the future signs.
        known.sure = false;
        assert_eq!(decide(&known).step, None, "{phase} {signer:?} {other:?}");
        known.nodes = &[];
        let bad = phase == Trusting && other != Good;
        assert_eq!(decide(&known).step.is_none(), bad, "{phase} {other:?}");
    }
}

#[test]
fn nothing_is_taken_back_to_a_ca_that_has_ended() {
    use CaPhase::*;
    use Life::*;
    let nodes = [("n1", &Authorities::default())];
    for (phase, signer, other, step) in [
        (Trusting, Late, Good, Some(Step::Drop)),
        // It goes forward at once instead.
        (Trusting, Ended, Good, Some(Step::Issue)),
        (Issuing, Good, Good, Some(Step::TurnBack)),
        (Issuing, Good, Late, None),
        (Issuing, Good, Ended, None),
        (Issuing, Good, Future, None),
    ] {
        let standing = standing(phase, "a", Some("b"));
        let mut known = known(&standing, &nodes);
        (known.signer_life, known.other_life, known.take_back) = (signer, other, Some(4));
        assert_eq!(decide(&known).step, step, "{phase} {signer:?} {other:?}");
        let back = matches!(step, Some(Step::Drop | Step::TurnBack));
        assert_eq!(irrevocable(&known).is_none(), back, "{phase} {other:?}");
    }
    // The old CA ends when the rotation has been taken back: forward once more, and there it stays.
    let mut standing = standing(Issuing, "old", Some("new"));
    standing.taken_back = true;
    let mut known = known(&standing, &nodes);
    (known.signer_life, known.take_back) = (Ended, Some(4));
    assert_eq!(decide(&known).step, Some(Step::TurnBack));
    let forward = standing.after(Step::TurnBack, None);
    assert_eq!((&*forward.signer, forward.taken_back), ("new", false));
    known.standing = &forward;
    (known.signer_life, known.other_life) = (Good, Ended);
    assert_eq!(decide(&known).step, None);
}

/// With both ended and every node down the cluster gets a CA all the same, in few steps.
#[test]
fn a_cluster_whose_cas_have_all_ended_gets_another() {
    let nodes = [("n1", &says(&["a", "b"], Some("b"), &["b"], true))];
    let mut standing = standing(CaPhase::Issuing, "a", Some("b"));
    for step in [Step::Retire, Step::Settle, Step::Begin(2), Step::Issue] {
        let mut known = known(&standing, &nodes);
        let coming = standing.phase == CaPhase::Trusting;
        (known.signer_life, known.due) = (Life::Ended, true);
        known.other_life = if coming { Life::Good } else { Life::Ended };
        assert_eq!(decide(&known).step, Some(step), "{standing:?}");
        standing = standing.after(step, Some("c"));
    }
    assert_eq!(standing.signer, "c");
}

#[test]
fn the_steps_there_and_back() {
    let names = |standing: &Standing| standing.trusted().map(str::to_owned).collect::<Vec<_>>();
    let start = Standing::settled("a");
    let trusting = start.after(Step::Begin(1), Some("b"));
    assert_eq!((trusting.rotation, trusting.answered), (1, 1));
    assert_eq!(names(&trusting), ["a", "b"]);
    let issuing = trusting.after(Step::Issue, None);
    assert_eq!(names(&issuing), ["b", "a"]);
    let retiring = issuing.after(Step::Retire, None);
    assert_eq!(names(&retiring), ["b"]);
    let settled = retiring.after(Step::Settle, None);
    assert_eq!(
        (names(&settled), &settled.other),
        (vec!["b".to_owned()], &None)
    );

    let back = issuing.after(Step::TurnBack, None);
    assert_eq!(
        (names(&back), back.phase),
        (vec!["a".into(), "b".into()], CaPhase::Issuing)
    );
    assert_eq!(names(&back.after(Step::Retire, None)), ["a"]);
    let dropped = trusting.after(Step::Drop, None);
    assert_eq!(
        (names(&dropped), dropped.phase),
        (vec!["a".into()], CaPhase::Retiring)
    );
}
