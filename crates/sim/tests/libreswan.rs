//! The orders of libreswan's crossing-streams tests (`testing/pluto`, read at its main branch of
//! November 2026) as a table: one row a test, by its name there. West is a, east is b.
//!
//! Each order is played with either end's nonces the lowest; the end must be the same: one IKE
//! SA, one child a purpose. What is compared is that end, not the way.
//!
//! Not taken: `crossing-streams-22-ikev2-ipsec-interface`, whose fault lay in the kernel's
//! policies (the restart itself is the row of 20); `23-conswitch-ike-sa-init-ikev2` and
//! `24-ikev2-delete-connswitch`: two connections of one peer that are switched to each other do
//! not exist here, a peer has one configuration.

mod stage;

use stage::{End, Setup, Stage};

/// West's and east's IKE SA (IKE_SA_INIT) and child (IKE_AUTH), as west processes them.
const WEST_IKE: &str = "a:reauth a>b:S b>a:s";
const WEST_CHILD_I: &str = "a>b:A";
const WEST_CHILD_R: &str = "b>a:a";
const EAST_IKE: &str = "b>a:S a>b:s";
/// An end that has authenticated its peer gives up its own attempt if that is not past
/// IKE_SA_INIT: then there is nothing to process.
const EAST_CHILD: &str = "b>a:A? a>b:a?";

fn play(test: &str, setup: &Setup, script: &str, end: End) {
    for lowest in [None, Some((0, 0)), Some((0, 1)), Some((1, 0)), Some((1, 1))] {
        for seed in 0..4 {
            println!("{test}, lowest {lowest:?}, seed {seed}");
            let setup = Setup {
                lowest,
                ..setup.clone()
            };
            let mut stage = Stage::new(&setup, seed);
            stage.play(script);
            stage.settle(end);
        }
    }
}

fn nothing_yet() -> Setup {
    Setup {
        children: 0,
        initiate: [false, true],
        ..Setup::default()
    }
}

// Lesson L57: the nine orders.
#[test]
fn crossing_streams_11() {
    let (e, c, w, i, r) = (EAST_IKE, EAST_CHILD, WEST_IKE, WEST_CHILD_I, WEST_CHILD_R);
    let rows = [
        ("crossing-streams-11-eewww", [e, c, w, i, r]),
        ("crossing-streams-11-eweww", [e, w, c, i, r]),
        ("crossing-streams-11-ewwew", [e, w, i, c, r]),
        ("crossing-streams-11-ewwwe", [e, w, i, r, c]),
        ("crossing-streams-11-weeww", [w, e, c, i, r]),
        ("crossing-streams-11-wewew", [w, e, i, c, r]),
        ("crossing-streams-11-wewwe", [w, e, i, r, c]),
        ("crossing-streams-11-wwewe", [w, i, e, r, c]),
        ("crossing-streams-11-wwwee", [w, i, r, e, c]),
    ];
    for (test, order) in rows {
        let script = format!("a:up b:up {}", order.join(" "));
        play(test, &nothing_yet(), &script, End::Up(1));
    }
}

#[test]
fn crossing_streams_01_02_and_12() {
    let start = "a:up b:up a:reauth a>b:S b>a:S a>b:s b>a:s a>b:A b>a:A";
    for (test, script) in [
        (
            "crossing-streams-01-github-1211",
            "a>b:a b>a:a all b:close all",
        ),
        (
            "crossing-streams-02-conn-fight",
            "a>b:a b>a:a b:close a:rekey all",
        ),
        ("crossing-streams-12-ike-auth-east", "b>a:a a>b:a all"),
        ("crossing-streams-12-ike-auth-west", "a>b:a b>a:a all"),
    ] {
        let script = format!("{start} {script}");
        play(test, &nothing_yet(), &script, End::Up(1));
    }
}

// Lesson L56. What was deleted is wanted again.
#[test]
fn crossing_streams_03_and_04() {
    let two = Setup {
        children: 2,
        ..Setup::default()
    };
    let child = "a:drop-child b:drop-child a>b:I b>a:I a>b:i b>a:i a:add-child b:add-child all";
    play("crossing-streams-03-delete-child", &two, child, End::Up(2));
    let vs_ike = "a:close b:drop-child b>a:I a>b:I all a:drop-child all";
    play(
        "crossing-streams-03-delete-child-vs-ike",
        &two,
        vs_ike,
        End::Up(1),
    );
    let ike_vs = "a:drop-child b:close b>a:I a>b:I all b:drop-child all";
    play(
        "crossing-streams-03-delete-ike-vs-child",
        &two,
        ike_vs,
        End::Up(1),
    );
    let one = Setup::default();
    let ike = "a:close b:close a>b:I b>a:I a>b:i b>a:i all";
    play("crossing-streams-03-delete-ike", &one, ike, End::Up(1));
    let down = "a:add-child b:add-child a:close a>b:C b>a:c all";
    play(
        "crossing-streams-04-child-up-ike-down",
        &one,
        down,
        End::Up(2),
    );
    let up = "a:rekey-ike b:add-child a:add-child all";
    play(
        "crossing-streams-04-ike-rekey-child-up",
        &one,
        up,
        End::Up(2),
    );
}

// Lesson L59: the peer restarts in the middle.
#[test]
fn crossing_streams_20_and_bootup() {
    let west_only = Setup {
        initiate: [true, false],
        ..nothing_yet()
    };
    for (test, script) in [
        (
            "crossing-streams-20-ike-sa-init",
            "b:up a:up a>b:S b:restart all",
        ),
        (
            "crossing-streams-20-ike-sa-init",
            "b:up a:up a>b:S b:restart b>a:S b>a:s all",
        ),
        (
            "crossing-streams-20-ike-auth",
            "b:up a:up a>b:S b>a:s b:restart all",
        ),
        (
            "crossing-streams-20-ike-auth",
            "b:up a:up a>b:S b>a:s b:restart b>a:S a>b:A all",
        ),
        (
            "crossing-streams-20-ike-auth",
            "b:up a:up a>b:S b>a:s a>b:A b:restart b>a:a all",
        ),
        (
            "crossing-streams-bootup-01",
            "b:up a:up all b:restart a:restart all",
        ),
        (
            "crossing-streams-bootup-01",
            "b:up a:up all b:restart b>a:S a>b:s a:restart all",
        ),
    ] {
        play(test, &west_only, script, End::Up(1));
    }
}

// Lesson L60.
#[test]
fn crossing_streams_21() {
    let setup = Setup {
        initiate: [true, true],
        ..Setup::default()
    };
    for script in [
        "a:add-child b:add-child a>b:C b>a:C a>b:c b>a:c all",
        "a:add-child b:add-child b>a:C a>b:C b>a:c a>b:c all",
        "a:add-child b:add-child all",
        "b:add-child a:add-child all",
    ] {
        play(
            "crossing-streams-21-second-child",
            &setup,
            script,
            End::Up(2),
        );
    }
}
