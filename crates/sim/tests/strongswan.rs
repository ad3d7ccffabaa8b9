//! The collisions of strongSwan's suites (`libcharon/tests/suites`, read at its main branch of
//! November 2026) as tables: one row a case, by its name there. What is compared is the end: the
//! two programs need not say the same on the way.
//!
//! Not taken, with the reason:
//! - `*_multi_ke`, `test_collision_mixed`: they stand beside the key exchange of RFC 9370.
//! - `test_ike_mid_sync`: RFC 6311 (a cluster that shares an IKE SA) is not part of the engine.
//! - `test_regular_responder_incorrect_delete`, `test_collision_responder_incorrect_delete`: a
//!   peer that deletes what it must not; only a forged peer can, see the tests of hostile peers.
//! - `*_ke_invalid*`: an engine begins a rekey with the group that worked (lesson L52), so none is
//!   refused here; the tests inside `testudo-ike` take a group away in between.
//! - `test_regular_responder_handle_hard_expire`: in `testudo-ike`'s tests of lifetimes.
//! - `test_regular_responder_lost_sa`: an engine loses no child without a word.

mod stage;

use stage::{End, Setup, Stage};

/// A case: its name there, the lowest nonce (whose, and which of its own; `None`: any), the
/// script, the end, and who made what stands then (`-`: either).
struct Row {
    case: &'static str,
    lowest: Option<(usize, usize)>,
    script: &'static str,
    end: End,
    winner: char,
}

const fn row(
    case: &'static str,
    lowest: Option<(usize, usize)>,
    script: &'static str,
    end: End,
    winner: char,
) -> Row {
    Row {
        case,
        lowest,
        script,
        end,
        winner,
    }
}

/// Plays each row with either end as the original initiator of the IKE SA.
fn walk(rows: &[Row], setup: &Setup, made: fn(&Stage) -> char) {
    for row in rows {
        for swapped in [false, true] {
            println!("{}, swapped {swapped}, lowest {:?}", row.case, row.lowest);
            let setup = Setup {
                swapped,
                lowest: row.lowest,
                ..setup.clone()
            };
            let mut stage = Stage::new(&setup, 7);
            stage.play(row.script);
            stage.settle(row.end);
            let winner = made(&stage);
            if row.winner != '-' && winner != row.winner {
                stage.fail(&format!("{}: {winner} won, not {}", row.case, row.winner));
            }
        }
    }
}

fn child0(stage: &Stage) -> char {
    stage.maker("child0")
}

const ONE: End = End::Up(1);

/// a's nonces: its own, then that of its answer; the same for b. The exchange with the lowest
/// nonce loses.
const A_OWN: Option<(usize, usize)> = Some((0, 0));
const A_ANSWER: Option<(usize, usize)> = Some((0, 1));
const B_OWN: Option<(usize, usize)> = Some((1, 0));
const B_ANSWER: Option<(usize, usize)> = Some((1, 1));

// test_child_rekey.c, "regular". Lesson L43 to L47.
#[test]
fn rekeys_of_a_child() {
    let rows = [
        row("test_regular", None, "a:rekey all", ONE, 'a'),
        row("test_regular", None, "b:rekey all", ONE, 'b'),
        // The responder's soft end comes while it waits for the DELETE: nothing happens.
        row(
            "test_regular_responder_ignore_soft_expire",
            None,
            "a:rekey a>b:C b>a:c b:rekey a>b:I b>a:i",
            ONE,
            '-',
        ),
        // The DELETE is never answered.
        row(
            "test_regular_delete_timeout",
            None,
            "a:rekey a>b:C b>a:c a>x:I 1s a>x:I 2s a>x:I",
            ONE,
            'a',
        ),
    ];
    walk(&rows, &Setup::default(), child0);
}

// test_child_rekey.c, "collisions rekey".
#[test]
fn crossing_rekeys_of_a_child() {
    let cross = "a:rekey b:rekey a>b:C b>a:C b>a:c a>b:c all";
    // b has its answer and deletes before a has its own.
    let late = "a:rekey b:rekey a>b:C b>a:C a>b:c b>a:I? a>b:i? b>a:c all";
    let later = "a:rekey b:rekey a>b:C b>a:C a>b:c b>a:I? a>b:i? b:rekey b>a:C? a>b:c? b>a:c all";
    // a's request comes when b's rekey is done, or after its DELETE.
    let request = "a:rekey b:rekey b>a:C a>b:c a>b:C b>a:c b>a:I all";
    let request_first = "a:rekey b:rekey b>a:C a>b:c a>b:C b>a:I a>b:i b>a:c all";
    let request_more = "a:rekey b:rekey b>a:C a>b:c b>a:I a>b:i a>b:C b>a:c all";
    let mut rows = Vec::new();
    for (lowest, winner) in [(A_OWN, 'b'), (A_ANSWER, 'a'), (B_OWN, 'a'), (B_ANSWER, 'b')] {
        rows.push(row("test_collision", lowest, cross, ONE, winner));
    }
    for (lowest, winner) in [(A_OWN, 'b'), (B_ANSWER, 'b')] {
        rows.push(row(
            "test_collision_delayed_response",
            lowest,
            late,
            ONE,
            winner,
        ));
    }
    for (lowest, winner) in [(A_ANSWER, 'a'), (B_OWN, 'a')] {
        rows.push(row(
            "test_collision_delayed_response",
            lowest,
            late,
            ONE,
            winner,
        ));
    }
    for lowest in [A_OWN, A_ANSWER, B_OWN, B_ANSWER] {
        rows.push(row(
            "test_collision_delayed_response_delete",
            lowest,
            later,
            ONE,
            '-',
        ));
    }
    for lowest in [A_OWN, A_ANSWER, B_OWN] {
        rows.push(row(
            "test_collision_delayed_request",
            lowest,
            request,
            ONE,
            'b',
        ));
        rows.push(row(
            "test_collision_delayed_request",
            lowest,
            request_first,
            ONE,
            'b',
        ));
        rows.push(row(
            "test_collision_delayed_request_more",
            lowest,
            request_more,
            ONE,
            'b',
        ));
    }
    walk(&rows, &Setup::default(), child0);
}

// test_child_rekey.c, "collisions delete": two children stand, b deletes the one that a rekeys.
// Its peer's configuration follows.
#[test]
fn a_rekey_crosses_the_deletion_of_the_child() {
    let rows = [
        row(
            "test_collision_delete",
            None,
            "a:rekey b:drop-child a>b:C b>a:I b>a:c a>b:i a:drop-child all",
            ONE,
            '-',
        ),
        row(
            "test_collision_delete_drop_delete",
            None,
            "a:rekey b:drop-child a>b:C b>a:c b>x:I a:drop-child all",
            ONE,
            '-',
        ),
        row(
            "test_collision_delete_drop_rekey",
            None,
            "a:rekey b:drop-child b>a:I a>b:i a>b:C b>a:c a:drop-child all",
            ONE,
            '-',
        ),
        // b deletes the new one before a has it.
        row(
            "test_collision_delete_delayed_response",
            None,
            "a:rekey a>b:C b:drop-child b>a:I a>b:i b>a:c a:drop-child all",
            ONE,
            '-',
        ),
        row(
            "test_regular_responder_delete",
            None,
            "a:rekey a>b:C b>a:c b:drop-child b>a:I a>b:I all a:drop-child all",
            ONE,
            '-',
        ),
    ];
    let setup = Setup {
        children: 2,
        ..Setup::default()
    };
    walk(&rows, &setup, child0);
}

// test_child_rekey.c and test_child_delete.c, "collisions ike rekey" and "ike delete";
// test_child_create.c. Lesson L53, lesson L56.
#[test]
fn a_child_crosses_its_ike_sa() {
    let rows = [
        row(
            "test_child_rekey: test_collision_ike_rekey",
            None,
            "a:rekey b:rekey-ike a>b:C b>a:C a>b:c b>a:c all",
            ONE,
            '-',
        ),
        row(
            "test_child_rekey: test_collision_ike_delete",
            None,
            "a:rekey b:close a>b:C b>a:I a>b:i b>a:c all",
            ONE,
            '-',
        ),
        row(
            "test_child_rekey: test_collision_ike_delete, the answer first",
            None,
            "a:rekey b:close a>b:C b>a:c b>a:I all",
            ONE,
            '-',
        ),
    ];
    walk(&rows, &Setup::default(), child0);
    let two = [
        row(
            "test_child_delete: test_regular",
            None,
            "a:drop-child all b:drop-child all",
            ONE,
            '-',
        ),
        row(
            "test_child_delete: test_collision",
            None,
            "a:drop-child b:drop-child a>b:I b>a:I b>a:i a>b:i all",
            ONE,
            '-',
        ),
        row(
            "test_child_delete: test_collision_drop",
            None,
            "a:drop-child b:drop-child a>b:I b>x:I b>a:i all",
            ONE,
            '-',
        ),
        row(
            "test_child_delete: test_collision_ike_rekey",
            None,
            "a:drop-child b:drop-child all",
            ONE,
            '-',
        ),
        row(
            "test_child_delete: test_collision_ike_rekey",
            None,
            "a:drop-child b:rekey-ike a>b:I b>a:C a>b:c b>a:i b:drop-child all",
            ONE,
            '-',
        ),
        row(
            "test_child_delete: test_collision_ike_delete",
            None,
            "a:drop-child b:drop-child b:close a>b:I b>a:I all",
            ONE,
            '-',
        ),
    ];
    let setup = Setup {
        children: 2,
        ..Setup::default()
    };
    walk(&two, &setup, child0);
    let create = [
        row(
            "test_child_create: test_duplicate",
            None,
            "a:up b:up all",
            ONE,
            '-',
        ),
        row(
            "test_child_create: test_collision_ike_rekey",
            None,
            "b:rekey-ike b:add-child a:add-child all",
            End::Up(2),
            '-',
        ),
    ];
    walk(&create, &Setup::default(), child0);
}

/// Of a rekey of the IKE SA, a number of 32 bytes is drawn for the nonce and for the key of the
/// exchange: the initiator draws nonce and key, the responder key and nonce.
const A_OWN_IKE: Option<(usize, usize)> = Some((0, 0));
const A_ANSWER_IKE: Option<(usize, usize)> = Some((0, 3));
const B_OWN_IKE: Option<(usize, usize)> = Some((1, 0));
const B_ANSWER_IKE: Option<(usize, usize)> = Some((1, 3));

// test_ike_rekey.c. Lesson L53.
#[test]
fn crossing_rekeys_of_the_ike_sa() {
    let cross = "a:rekey-ike b:rekey-ike a>b:C b>a:C b>a:c a>b:c all";
    let late = "a:rekey-ike b:rekey-ike a>b:C b>a:C a>b:c b>a:I all";
    let late_lost = "a:rekey-ike b:rekey-ike a>b:C b>a:C a>b:c b>x:c all";
    let dropped = "a:rekey-ike b:rekey-ike b>a:C a>b:c a>x:C b>a:I all";
    let delayed = "a:rekey-ike b:rekey-ike b>a:C a>b:c a>b:C b>a:I b>a:c all";
    let delayed_delete = "a:rekey-ike b:rekey-ike b>a:C a>b:c a>b:C b>a:c b>a:I all";
    let orders = [
        (A_OWN_IKE, 'b'),
        (A_ANSWER_IKE, 'a'),
        (B_OWN_IKE, 'a'),
        (B_ANSWER_IKE, 'b'),
    ];
    let mut rows = vec![
        row("test_regular", None, "a:rekey-ike all", ONE, 'a'),
        row("test_regular", None, "b:rekey-ike all", ONE, 'b'),
    ];
    for (lowest, winner) in orders {
        rows.push(row("test_collision", lowest, cross, ONE, winner));
        rows.push(row(
            "test_collision_delayed_response",
            lowest,
            late_lost,
            ONE,
            winner,
        ));
    }
    for lowest in [A_OWN_IKE, B_ANSWER_IKE] {
        rows.push(row(
            "test_collision_delayed_response",
            lowest,
            late,
            ONE,
            'b',
        ));
    }
    for lowest in [A_OWN_IKE, A_ANSWER_IKE, B_OWN_IKE] {
        rows.push(row(
            "test_collision_dropped_request",
            lowest,
            dropped,
            ONE,
            'b',
        ));
        rows.push(row(
            "test_collision_delayed_request",
            lowest,
            delayed,
            ONE,
            'b',
        ));
        rows.push(row(
            "test_collision_delayed_request_and_delete",
            lowest,
            delayed_delete,
            ONE,
            'b',
        ));
    }
    walk(&rows, &Setup::default(), Stage::ike_maker);
}

// test_ike_rekey.c, "collisions delete"; test_ike_delete.c. Lesson L56.
#[test]
fn the_ike_sa_is_deleted_meanwhile() {
    let rows = [
        row(
            "test_ike_delete: test_regular",
            None,
            "a:passive b:passive a:remove all",
            End::Nothing,
            '-',
        ),
        row(
            "test_ike_delete: test_regular",
            None,
            "a:passive b:passive b:remove all",
            End::Nothing,
            '-',
        ),
        row(
            "test_ike_delete: test_collision",
            None,
            "a:passive b:passive a:remove b:remove a>b:I b>a:I b>a:i a>b:i all",
            End::Nothing,
            '-',
        ),
        row(
            "test_collision_delete",
            None,
            "a:passive b:passive a:rekey-ike b:remove a>b:C b>a:I a:remove b>a:c a>b:i all",
            End::Nothing,
            '-',
        ),
        row(
            "test_collision_delete_drop_delete",
            None,
            "a:passive b:passive a:rekey-ike b:remove a>b:C b>a:c b>x:I a:remove all",
            End::Nothing,
            '-',
        ),
        row(
            "test_collision_delete, and up again",
            None,
            "a:rekey-ike b:close a>b:C b>a:I b>a:c a>b:i all",
            ONE,
            '-',
        ),
    ];
    walk(&rows, &Setup::default(), child0);
}
