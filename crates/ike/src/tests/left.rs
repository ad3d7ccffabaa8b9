//! IKE SAs that the responder leaves before the initiator has entered them.

use super::net::*;
use crate::*;

const IKE_AUTH: u8 = 35;
const INFORMATIONAL: u8 = 37;

fn is_answer(bytes: &[u8]) -> bool {
    bytes[19] & 0x20 != 0
}

fn ikes_up(net: &Net, n: usize) -> usize {
    let log = net.nodes[n].log.iter();
    log.filter(|line| line.contains("ike ") && line.contains(" up, replaces"))
        .count()
}

// The IKE_AUTH answer is late, the DELETE is not: the attempt is over at once, and what comes
// late opens nothing.
#[test]
fn a_delete_before_the_answer_ends_the_attempt() {
    for seed in 0..4 {
        let mut net = Net::new(seed, 2);
        net.filter = Some(Box::new(|_, _, bytes| {
            if bytes[18] == IKE_AUTH && is_answer(bytes) {
                Fate::Delay(std::time::Duration::from_secs(3))
            } else {
                Fate::Pass
            }
        }));
        net.connect(0, 1, false);
        net.run_ms(100);
        assert_eq!((ikes_up(&net, 0), ikes_up(&net, 1)), (0, 1));
        net.act(1, |e, now| e.close(&peer_id(0), now)).unwrap();
        net.run_ms(100);
        for node in &net.nodes {
            // Its answer reaches the one who deleted.
            assert!(node.engine.sas.is_empty(), "{}", net.story());
        }
        let failed = net.nodes[0].failures.first().map(|f| f.check);
        assert_eq!(failed, Some(FailedCheck::NoAnswer), "{}", net.story());
        net.filter = None;
        net.run_ms(6_000);
        assert_eq!(ikes_up(&net, 0), 1, "{}", net.story());
        net.assert_connected(0, 1, 1);
        for n in 0..2 {
            net.assert_tidy(n, 1);
        }
    }
}

// Neither the first answer nor the DELETE arrives, but the answer's repetition would: the
// initiator would leave children that stand at both ends for one that only it has.
#[test]
fn what_was_left_for_another_is_not_entered() {
    for seed in 0..4 {
        let mut net = Net::new(seed, 2);
        net.filter = Some(Box::new(|_, _, bytes| {
            if bytes[18] == IKE_AUTH && is_answer(bytes) {
                Fate::Drop
            } else {
                Fate::Pass
            }
        }));
        net.connect(0, 1, false);
        net.run_ms(100);
        assert_eq!((ikes_up(&net, 0), ikes_up(&net, 1)), (0, 1));
        let left = net.wire[0].2[..8].to_vec();
        net.filter = Some(Box::new(move |_, _, bytes| {
            if bytes[..8] == left && bytes[18] == INFORMATIONAL {
                Fate::Drop
            } else {
                Fate::Pass
            }
        }));
        net.act(1, |e, now| e.reauthenticate(&peer_id(0), now))
            .unwrap();
        net.run_ms(100);
        net.esp = true;
        net.run(std::time::Duration::from_secs(60));
        let drops = &net.nodes[1].engine.counters().drops;
        assert!(drops.contains_key("left_for_another"), "{}", net.story());
        assert_eq!(ikes_up(&net, 0), 1, "{}", net.story());
        net.assert_connected(0, 1, 1);
        net.assert_no_esp_lost();
    }
}
