//! Asymmetric operations as jobs: late, in any order, never, twice, for what is gone.

use std::time::Duration;

use testudo_crypto::KeMethod;

use super::net::*;
use crate::*;

fn offloading(additional: bool) -> EngineConfig {
    let base = match additional {
        true => hybrid(&[&[KeMethod::MlKem768]], true),
        false => config(),
    };
    EngineConfig {
        offload: true,
        ..base
    }
}

/// Two ends that both give their jobs away and get nothing back unless the test sees to it.
fn holding(seed: u64, config: EngineConfig) -> Net {
    let mut net = Net::with(seed, 2, config);
    net.hold_jobs = true;
    net
}

/// Lets time pass and does one job of those that are out every few milliseconds; `pick` says
/// which.
fn work(net: &mut Net, steps: usize, mut pick: impl FnMut(&mut Net) -> usize) {
    for _ in 0..steps {
        net.run_ms(7);
        if !net.jobs.is_empty() {
            let index = pick(net);
            net.finish(index);
        }
    }
}

fn drops(net: &Net, n: usize, reason: &str) -> u64 {
    let counters = net.nodes[n].engine.counters();
    counters.drops.get(reason).copied().unwrap_or(0)
}

/// Nothing waits and nothing is counted for what waited.
fn idle(net: &Net, n: usize) {
    assert_eq!(net.nodes[n].engine.waiting_jobs(), 0, "{}", net.story());
    assert_eq!(net.nodes[n].engine.half_open_total, 0, "{}", net.story());
}

#[test]
fn results_that_come_late_are_taken() {
    for additional in [false, true] {
        let mut net = holding(1, offloading(additional));
        net.connect(0, 1, false);
        work(&mut net, 60, |_| 0);
        net.assert_connected(0, 1, 1);
        for n in 0..2 {
            idle(&net, n);
            assert!(net.nodes[n].failures.is_empty(), "{}", net.story());
        }
        // Answering the key exchange, the initiator's proof, ours; and the same at the other end.
        let jobs = 3 + u64::from(additional);
        assert_eq!(net.nodes[0].engine.counters().jobs, jobs);
        assert_eq!(net.nodes[1].engine.counters().jobs, jobs);
    }
}

#[test]
fn results_may_come_in_any_order() {
    for seed in 0..6 {
        let mut net = Net::with(seed, 6, offloading(seed % 2 == 1));
        net.hold_jobs = true;
        for n in 1..6 {
            net.connect(0, n, n % 2 == 0);
        }
        work(&mut net, 300, |net| {
            net.below(net.jobs.len() as u64) as usize
        });
        net.hold_jobs = false;
        net.run(Duration::from_secs(60));
        for n in 1..6 {
            net.assert_connected(0, n, 1);
            idle(&net, n);
        }
    }
}

#[test]
fn rekeys_of_both_kinds_go_through_jobs() {
    for additional in [false, true] {
        let mut net = Net::with(4, 2, offloading(additional));
        net.connect(0, 1, false);
        net.run_ms(500);
        net.esp = true;
        net.hold_jobs = true;
        let before = net.nodes[0].engine.counters().jobs;
        for n in [0, 1] {
            let child = net.ikes(n, 1 - n)[0].children[0].child;
            net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
            work(&mut net, 40, |_| 0);
            net.act(n, |e, now| e.rekey_ike(&peer_id(1 - n), now))
                .unwrap();
            work(&mut net, 40, |_| 0);
        }
        net.esp = false;
        net.run(Duration::from_secs(100));
        net.assert_connected(0, 1, 1);
        net.assert_no_esp_lost();
        let counters = net.nodes[0].engine.counters();
        assert_eq!(counters.ike_rekeys, 2);
        assert_eq!(counters.child_rekeys, 2);
        assert_eq!(counters.jobs - before, if additional { 8 } else { 4 });
    }
}

// What waits has not been done: no event, no answer, no other state.
#[test]
fn a_handler_that_stops_has_done_nothing() {
    let mut net = holding(1, offloading(false));
    net.connect(0, 1, false);
    let mut stops = 0;
    for _ in 0..60 {
        let before = picture(&net);
        let jobs = net.jobs.len();
        net.run_ms(1);
        if net.jobs.len() > jobs {
            stops += 1;
            assert_eq!(before, picture(&net));
        }
        while !net.jobs.is_empty() {
            let before = picture(&net);
            net.finish(0);
            if !net.jobs.is_empty() {
                stops += 1;
                assert_eq!(before, picture(&net));
            }
        }
    }
    assert_eq!(stops, 6);
    net.assert_connected(0, 1, 1);
}

/// What both ends have, told and sent.
fn picture(net: &Net) -> (Vec<Vec<IkeStatus>>, Vec<usize>, usize) {
    let status = net.nodes.iter().map(|n| n.engine.status()).collect();
    let told = net.nodes.iter().map(|n| n.log.len()).collect();
    (status, told, net.wire.len())
}

#[test]
fn a_job_that_never_comes_back_costs_its_message_only() {
    for kept in 0..6 {
        let mut net = holding(kept, offloading(false));
        net.connect(0, 1, false);
        // So many are done; those after them are lost until the attempt is given up.
        for _ in 0..40 {
            net.run_ms(7);
            match net.done < kept {
                true if !net.jobs.is_empty() => net.finish(0),
                _ => net.jobs.clear(),
            }
        }
        assert_eq!(net.done, kept);
        for _ in 0..400 {
            net.run_ms(100);
            net.jobs.clear();
        }
        assert!(net.nodes[0].engine.counters().attempts > 1);
        net.hold_jobs = false;
        net.run(Duration::from_secs(300));
        net.assert_connected(0, 1, 1);
        idle(&net, 0);
        idle(&net, 1);
    }
}

#[test]
fn a_result_counts_once() {
    let mut net = holding(1, offloading(false));
    net.connect(0, 1, false);
    net.run_ms(20);
    let (n, job) = net.jobs.remove(0);
    assert_eq!(n, 1, "the responder answers the key exchange");
    let done = job.run();
    let again = done.clone();
    net.act(n, |e, now| e.handle_done(now, done));
    let sas = net.nodes[1].engine.sas.len();
    net.act(n, |e, now| e.handle_done(now, again));
    assert_eq!(net.nodes[1].engine.sas.len(), sas);
    assert_eq!(drops(&net, 1, "late_job"), 1);
    net.hold_jobs = false;
    net.run_ms(500);
    while !net.jobs.is_empty() {
        net.finish(0);
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
}

// A retransmission while the job is out: neither a second job nor a second answer.
#[test]
fn copies_of_a_message_that_waits_are_dropped() {
    let mut net = holding(1, offloading(false));
    net.connect(0, 1, false);
    net.run(Duration::from_secs(3));
    assert_eq!(net.jobs.len(), 1);
    assert!(drops(&net, 1, "job_running") >= 2, "{}", net.story());
    work(&mut net, 60, |_| 0);
    net.assert_connected(0, 1, 1);
    assert_eq!(net.nodes[1].engine.counters().ike_established, 1);
}

#[test]
fn a_result_for_what_is_gone_is_dropped() {
    for steps in 1..6 {
        for end in 0..2 {
            let mut net = holding(steps, offloading(false));
            net.connect(0, 1, false);
            work(&mut net, steps as usize * 2, |_| 0);
            net.run_ms(20);
            for n in [end, 1 - end] {
                net.act(n, |e, now| e.remove_peer(&peer_id(1 - n), now));
            }
            while !net.jobs.is_empty() {
                net.finish(0);
            }
            net.hold_jobs = false;
            net.run(Duration::from_secs(300));
            for n in 0..2 {
                assert!(net.nodes[n].engine.sas.is_empty(), "{}", net.story());
                idle(&net, n);
            }
        }
    }
}

#[test]
fn a_result_of_a_former_life_is_none_of_ours() {
    for steps in 0..3 {
        let mut net = holding(steps, offloading(false));
        net.connect(0, 1, false);
        work(&mut net, steps as usize * 2, |_| 0);
        net.run_ms(20);
        net.restart(1);
        let now = net.at();
        let peer = peer_config(1, 0, false);
        net.nodes[1].engine.set_peer(peer, now).unwrap();
        let old = net.jobs.iter().filter(|(n, _)| *n == 1).count() as u64;
        // The new one waits for results of its own when the old ones come.
        net.run(Duration::from_secs(2));
        for _ in 0..net.jobs.len() {
            net.finish(0);
        }
        assert!(drops(&net, 1, "late_job") >= old, "{}", net.story());
        net.hold_jobs = false;
        net.run_ms(10);
        while !net.jobs.is_empty() {
            net.finish(0);
        }
        net.run(Duration::from_secs(300));
        net.assert_connected(0, 1, 1);
        idle(&net, 1);
    }
}

// Trust that went while a chain was being judged is gone: the judgement is made again.
#[test]
fn a_judgement_from_before_a_change_of_trust_is_not_used() {
    let mut net = holding(1, offloading(false));
    net.connect(0, 1, false);
    work(&mut net, 4, |_| 0);
    while net.nodes[1].engine.counters().jobs < 2 {
        work(&mut net, 1, |_| 0);
    }
    // The second job of the responder judges the initiator.
    net.run_ms(20);
    let (n, job) = net.jobs.remove(0);
    assert_eq!(n, 1);
    let done = job.run();
    let verifier = net.nodes[1].verifier.clone();
    verifier.trusted.lock().unwrap().clear();
    net.nodes[1].engine.set_verifier(verifier);
    net.act(1, |e, now| e.handle_done(now, done));
    net.hold_jobs = false;
    while !net.jobs.is_empty() {
        net.finish(0);
    }
    net.run_ms(500);
    assert!(net.nodes[1].twin.ikes.is_empty(), "{}", net.story());
    let failed = &net.nodes[1].failures;
    assert!(
        failed
            .iter()
            .any(|f| f.check == FailedCheck::CertificateUnknownCa),
        "{failed:?}"
    );
}

// Nothing but its timer releases an IKE_SA_INIT request whose job is lost.
#[test]
fn a_lost_job_of_a_stranger_is_forgotten_in_time() {
    let mut net = holding(1, offloading(false));
    net.connect(0, 1, false);
    net.run_ms(20);
    net.jobs.clear();
    assert_eq!(net.nodes[1].engine.half_open_total, 1);
    net.act(0, |e, now| e.remove_peer(&peer_id(1), now));
    net.run(Duration::from_secs(40));
    assert_eq!(drops(&net, 1, "job_timeout"), 1);
    idle(&net, 1);
}

// The peer's next transmission begins anew before it takes us for dead, whether the job was for
// its request or for the answer to it.
#[test]
fn a_lost_job_costs_no_ike_sa() {
    for seed in 0..4 {
        for lost in 0..2 {
            let mut net = Net::with(seed, 2, offloading(false));
            net.connect(0, 1, false);
            net.run_ms(500);
            net.hold_jobs = true;
            let child = net.ikes(0, 1)[0].children[0].child;
            net.act(0, |e, now| e.rekey_child(child, now)).unwrap();
            net.run_ms(20);
            if lost == 1 {
                net.finish(0);
                net.run_ms(20);
            }
            assert_eq!(net.jobs.len(), 1, "{}", net.story());
            net.jobs.clear();
            net.hold_jobs = false;
            net.esp = true;
            net.run(Duration::from_secs(30));
            assert_eq!(drops(&net, 1 - lost, "job_timeout"), 1);
            net.assert_connected(0, 1, 1);
            assert_eq!(net.ikes(0, 1)[0].children[0].rekeys, 1, "{}", net.story());
            net.assert_no_esp_lost();
            let down = |line: &String| line.contains("ike ") && line.contains("down");
            for n in 0..2 {
                assert!(!net.nodes[n].log.iter().any(down), "{}", net.story());
                idle(&net, n);
            }
        }
    }
}

// What waits is counted among the half-open SAs, and bounded as they are.
#[test]
fn requests_that_wait_are_bounded() {
    let mut config = offloading(false);
    config.limits.half_open_per_address = 3;
    config.limits.cookie_threshold = 1000;
    let mut net = holding(1, config);
    net.connect(0, 1, false);
    net.run_ms(20);
    let (from, to, first) = net.wire[0].clone();
    for n in 0..20 {
        let mut other = first.clone();
        other[7] ^= n + 1;
        net.act(1, |e, now| e.handle_datagram(now, to, from, &other));
    }
    assert_eq!(net.nodes[1].engine.waiting_jobs(), 3);
    assert_eq!(net.nodes[1].engine.half_open_total, 3);
    assert_eq!(net.nodes[1].engine.counters().cookies_sent, 18);
    // Those that are let in stay so when their results come.
    let cookies = net.nodes[1].engine.counters().cookies_sent;
    while !net.jobs.is_empty() {
        net.finish(0);
    }
    assert_eq!(net.nodes[1].engine.counters().cookies_sent, cookies);
    assert_eq!(net.nodes[1].engine.half_open_total, 3);
    assert_eq!(net.nodes[1].engine.waiting_jobs(), 0);
}

#[test]
fn a_job_can_go_to_another_thread() {
    fn sendable<T: Send + 'static>() {}
    sendable::<Job>();
    sendable::<Done>();
}
