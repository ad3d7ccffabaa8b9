//! Rekeys that cross while one of the two is refused, and probes that cross a rekey.

use std::net::SocketAddr;
use std::time::Duration;

use testudo_wire::ike::{Chain, EncryptionId, Payload, PayloadType, TransformType, parse_chain};

use super::net::*;
use super::voice::*;
use crate::fuzzing;

type Datagram = (SocketAddr, SocketAddr, Vec<u8>);

/// Takes what node `n` has sent since the wire had `from` datagrams.
fn sent(net: &Net, from: usize) -> Datagram {
    net.wire[from].clone()
}

fn deliver(net: &mut Net, (from, to, bytes): &Datagram) {
    let n = usize::from(to.ip() == address(1));
    net.act(n, |e, now| e.handle_datagram(now, *to, *from, bytes));
}

/// What makes the other end refuse a rekey of a child.
#[derive(Debug, Clone, Copy)]
enum Refused {
    TsUnacceptable,
    NoProposalChosen,
    ChildSaNotFound,
}

/// Node 0's request, changed under its keys so that node 1 refuses it.
fn spoil(net: &mut Net, datagram: &mut Datagram, how: Refused) {
    let [a, b] = &mut net.nodes[..] else {
        panic!("two nodes");
    };
    let (sender, receiver) = (&mut a.engine, &b.engine);
    let sealed = fuzzing::reseal(sender, receiver, &datagram.2, |_, first, inside| {
        let parsed = parse_chain(PayloadType(first), &inside).unwrap();
        let payloads: Vec<_> = parsed
            .into_iter()
            .map(|p| match (how, p.payload) {
                (Refused::TsUnacceptable, Payload::TsInitiator(_)) => {
                    Payload::TsInitiator(crate::ts::to_wire(&child(7, 7, 1).local_ts))
                }
                (Refused::NoProposalChosen, Payload::Sa(mut list)) => {
                    let encryption = list[0].transforms.iter_mut();
                    for t in encryption.filter(|t| t.kind == TransformType::ENCR) {
                        t.id = EncryptionId(11).0;
                    }
                    Payload::Sa(list)
                }
                (Refused::ChildSaNotFound, Payload::Notify(mut notify)) => {
                    notify.spi = vec![1, 2, 3, 4];
                    Payload::Notify(notify)
                }
                (_, other) => other,
            })
            .collect();
        let chain = Chain::of(&payloads).unwrap();
        (chain.first().0, chain.bytes().to_vec())
    });
    datagram.2 = sealed.expect("both hold the keys");
}

fn rekey(net: &mut Net, n: usize) {
    let child = net.ikes(n, 1 - n)[0].children[0].child;
    net.act(n, |e, now| e.rekey_child(child, now)).unwrap();
}

// strongSwan#1896 and #2477, lesson L46: our own rekey was refused in a collision, and the SA that
// the peer's rekey made was never sent on. openiked 689eeb0 and acdc1d7, lesson L49: what was
// remembered of a failed collision made the next rekey delete the good SA.
#[test]
fn a_rekey_refused_in_a_collision_leaves_the_peers() {
    for how in [
        Refused::TsUnacceptable,
        Refused::NoProposalChosen,
        Refused::ChildSaNotFound,
    ] {
        for answer_first in [false, true] {
            let mut net = pair(1);
            net.run(Duration::from_secs(2));
            net.filter = Some(Box::new(|_, _, _| Fate::Drop));
            let start = net.wire.len();
            rekey(&mut net, 0);
            rekey(&mut net, 1);
            let (mut ours, theirs) = (sent(&net, start), sent(&net, start + 1));
            spoil(&mut net, &mut ours, how);
            deliver(&mut net, &ours);
            deliver(&mut net, &theirs);
            let (refusal, answer) = (sent(&net, start + 2), sent(&net, start + 3));
            for datagram in match answer_first {
                true => [answer, refusal],
                false => [refusal, answer],
            } {
                deliver(&mut net, &datagram);
            }
            net.filter = None;
            net.run_ms(200);
            net.esp = true;
            net.run(Duration::from_secs(1));
            net.assert_no_esp_lost();
            // A refused rekey may be tried again: whose the child is at the end is free.
            net.run(Duration::from_secs(90));
            net.assert_connected(0, 1, 1);
            // And the next rekey is as any other.
            for n in 0..2 {
                let before = net.nodes[n].engine.counters().child_rekeys;
                rekey(&mut net, n);
                net.run(Duration::from_secs(10));
                net.assert_connected(0, 1, 1);
                assert!(net.nodes[n].engine.counters().child_rekeys > before);
            }
            net.assert_no_esp_lost();
            for n in 0..2 {
                net.assert_tidy(n, 1);
                assert_eq!(net.nodes[n].engine.counters().ike_established, 1);
            }
        }
    }
}

// libreswan v4.7, lesson L63: a probe raced a new IKE SA, and its lost answer ended both.
#[test]
fn a_probe_that_crosses_a_rekey_ends_nothing() {
    for prober in 0..2 {
        for probe_lost in [false, true] {
            let mut net = pair(2);
            let mut first = true;
            net.filter = Some(Box::new(move |_, _, bytes| {
                let probe = bytes[18] == 37 && std::mem::take(&mut first);
                if probe && probe_lost {
                    Fate::Drop
                } else {
                    Fate::Pass
                }
            }));
            let peer = peer_id(1 - prober);
            net.act(prober, |e, now| e.probe(&peer, now)).unwrap();
            let other = 1 - prober;
            let peer = peer_id(prober);
            net.act(other, |e, now| e.rekey_ike(&peer, now)).unwrap();
            net.run(Duration::from_secs(120));
            net.assert_connected(0, 1, 1);
            for n in 0..2 {
                let counters = net.nodes[n].engine.counters();
                assert_eq!((counters.ike_established, counters.ike_rekeys), (1, 1));
                assert!(net.nodes[n].failures.is_empty(), "{}", net.story());
                assert!(net.nodes[n].downs.is_empty(), "{}", net.story());
            }
        }
    }
}
