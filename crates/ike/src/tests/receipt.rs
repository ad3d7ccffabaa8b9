//! What the two ends tell each other of ESP that comes in.

use testudo_model::policy::EncapsulationMode;
use testudo_model::{ChildId, Encapsulation};
use testudo_wire::ike::{Delete, ExchangeType, Notify, NotifyType, Payload, ProtocolId};

use super::net::*;
use crate::sa::Pending;
use crate::*;

fn pair(seed: u64) -> Net {
    let mut net = Net::new(seed, 2);
    net.connect(0, 1, false);
    net.run_ms(300);
    net.assert_connected(0, 1, 1);
    net
}

fn child_of(net: &Net, n: usize) -> ChildId {
    net.ikes(n, 1 - n)[0].children[0].child
}

fn is_udp(net: &Net, n: usize) -> bool {
    let ike = net.ikes(n, 1 - n)[0].ike;
    let sa = &net.nodes[n].engine.sas[&ike];
    matches!(sa.encapsulation(4500), Encapsulation::Udp { .. })
}

#[test]
fn the_peer_is_asked_about_a_child_and_tells_its_counts() {
    let mut net = pair(1);
    let (ours, theirs) = (child_of(&net, 0), child_of(&net, 1));
    net.act(0, |e, now| e.ask_esp(ours, 5, now)).unwrap();
    net.run_ms(100);
    let asked = Receipt::Asked {
        child: theirs,
        peer: peer_id(0),
        number: 5,
    };
    assert_eq!(net.nodes[1].receipts, [asked]);
    let counts = EspCounts {
        received: 7,
        sent: (1 << 40) + 3,
    };
    net.act(1, |e, now| e.tell_esp(theirs, 5, counts, now))
        .unwrap();
    net.run_ms(100);
    let told = Receipt::Counts {
        child: ours,
        peer: peer_id(1),
        number: 5,
        counts,
    };
    assert_eq!(net.nodes[0].receipts, [told]);
}

#[test]
fn of_two_words_about_the_same_child_the_newer_waits() {
    let mut net = pair(2);
    let child = child_of(&net, 0);
    net.filter = Some(Box::new(|_, _, _| Fate::Drop));
    for sent in 0..50 {
        let counts = EspCounts { received: 0, sent };
        net.act(0, |e, now| e.tell_esp(child, 0, counts, now))
            .unwrap();
        net.act(0, |e, now| e.ask_esp(child, 0, now)).unwrap();
    }
    net.filter = None;
    net.run_ms(5_000);
    let sent: Vec<_> = net.nodes[1]
        .receipts
        .iter()
        .filter_map(|r| match r {
            Receipt::Counts { counts, .. } => Some(counts.sent),
            _ => None,
        })
        .collect();
    // The first was on its way already.
    assert_eq!(sent, [0, 49]);
    assert_eq!(net.nodes[1].receipts.len(), 3);
}

#[test]
fn a_child_that_is_gone_is_not_asked_about() {
    let mut net = pair(3);
    let (old, theirs) = (child_of(&net, 0), child_of(&net, 1));
    net.act(0, |e, now| e.rekey_child(old, now)).unwrap();
    net.run_ms(10_000);
    let gone = net.act(0, |e, now| e.ask_esp(old, 0, now));
    assert_eq!(gone, Err(Misuse::UnknownChild(old)));
    let counts = EspCounts::default();
    let gone = net.act(1, |e, now| e.tell_esp(theirs, 0, counts, now));
    assert_eq!(gone, Err(Misuse::UnknownChild(theirs)));
    let ike = IkeId(u64::MAX);
    let gone = net.act(1, |e, now| e.tell_filtered(ike, now));
    assert_eq!(gone, Err(Misuse::UnknownIke(ike)));
}

/// With children for CPUs all are asked about at once, and so they are answered for.
#[test]
fn what_waits_to_be_said_goes_with_one_message() {
    let mut net = Net::new(8, 2);
    for n in [1, 0] {
        let mut config = peer_config(n, 1 - n, n == 0);
        config.children[0].resources = 20;
        net.act(n, |e, now| {
            e.set_peer(config, now).unwrap();
            e.handle_timeout(now);
        });
    }
    net.run_ms(5_000);
    net.assert_connected(0, 1, 21);
    let sent = std::rc::Rc::new(std::cell::RefCell::new([0, 0]));
    let count = std::rc::Rc::clone(&sent);
    net.filter = Some(Box::new(move |from, _, _| {
        let from = usize::from(from.ip() == address(1));
        count.borrow_mut()[from] += 1;
        Fate::Pass
    }));
    let children: Vec<ChildId> = net.ikes(0, 1)[0].children.iter().map(|c| c.child).collect();
    for child in &children {
        net.act(0, |e, now| e.ask_esp(*child, 1, now)).unwrap();
    }
    net.run_ms(500);
    // The first alone, for the window was free; sixteen; four.
    assert_eq!(*sent.borrow(), [3, 3]);
    let asked: Vec<ChildId> = net.nodes[1]
        .receipts
        .iter()
        .map(|r| match r {
            Receipt::Asked { child, .. } => *child,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked.len(), children.len());
    for child in asked {
        let counts = EspCounts::default();
        net.act(1, |e, now| e.tell_esp(child, 1, counts, now))
            .unwrap();
    }
    net.run_ms(500);
    assert_eq!(net.nodes[0].receipts.len(), children.len());
    assert_eq!(*sent.borrow(), [6, 6]);
}

/// A message that asks about a child and deletes it, or shows that another stands in its place: nobody
/// is told of a question that cannot be answered any more.
#[test]
fn a_question_about_a_child_that_goes_with_the_same_message_is_not_told() {
    let mut net = pair(7);
    let theirs = child_of(&net, 1);
    let ike = net.ikes(0, 1)[0].ike;
    let spi = net.ikes(0, 1)[0].children[0].spi_in.0;
    let asked = Notify {
        data: vec![0; 4],
        ..Notify::about_esp(NotifyType::TESTUDO_ESP_ASKED, spi)
    };
    let delete = Delete::Child {
        protocol: ProtocolId::ESP,
        spis: vec![spi],
    };
    let words = [Payload::Notify(asked), Payload::Delete(delete)];
    net.act(0, |e, now| {
        e.send_request(
            now,
            ike,
            ExchangeType::INFORMATIONAL,
            &words,
            Pending::Probe,
        );
    });
    net.run_ms(100);
    assert_eq!(net.nodes[1].receipts, []);
    let counts = EspCounts::default();
    let gone = net.act(1, |e, now| e.tell_esp(theirs, 0, counts, now));
    assert_eq!(gone, Err(Misuse::UnknownChild(theirs)));
}

/// None of it breaks anything, and of very many words few are heard.
#[test]
fn words_that_cannot_be_read_are_passed_over() {
    let mut net = pair(4);
    let ike = net.ikes(0, 1)[0].ike;
    let spi = net.ikes(0, 1)[0].children[0].spi_in.0;
    let mut words = Vec::new();
    for kind in [
        NotifyType::TESTUDO_ESP_ASKED,
        NotifyType::TESTUDO_ESP_COUNTS,
    ] {
        words.push(Notify::new(kind, []));
        words.push(Notify::new(kind, [0; 20]));
        words.push(Notify::about_esp(kind, spi ^ 1));
        words.push(Notify {
            spi: vec![1, 2, 3],
            ..Notify::about_esp(kind, spi)
        });
    }
    for len in [0, 1, 4, 16, 19, 21, 36] {
        words.push(Notify {
            data: vec![9; len],
            ..Notify::about_esp(NotifyType::TESTUDO_ESP_COUNTS, spi)
        });
    }
    let mut all: Vec<_> = words.into_iter().map(Payload::Notify).collect();
    let exchange = ExchangeType::INFORMATIONAL;
    net.act(0, |e, now| {
        e.send_request(now, ike, exchange, &all, Pending::Probe);
    });
    net.run_ms(100);
    assert_eq!(net.nodes[1].receipts, []);
    let good = |number: u8| Notify {
        data: vec![0, 0, 0, number],
        ..Notify::about_esp(NotifyType::TESTUDO_ESP_ASKED, spi)
    };
    let mut equal = all.clone();
    equal.extend(vec![Payload::Notify(good(0)); 40]);
    net.act(0, |e, now| {
        e.send_request(now, ike, exchange, &equal, Pending::Probe);
    });
    net.run_ms(100);
    assert_eq!(net.nodes[1].receipts.len(), 1, "equal ones are one");
    net.nodes[1].receipts.clear();
    all.extend((0..40).map(|number| Payload::Notify(good(number))));
    net.act(0, |e, now| {
        e.send_request(now, ike, exchange, &all, Pending::Probe);
    });
    net.run_ms(100);
    assert_eq!(net.nodes[1].receipts.len(), 16);
    net.assert_connected(0, 1, 1);
}

/// One end finds that ESP is filtered and wants UDP, and after a while not any more: each time the
/// pair goes over without a loss, whichever end it is and whoever began.
#[test]
fn one_end_goes_over_to_udp_and_back() {
    for n in [0, 1] {
        let mut net = pair(5);
        net.esp = true;
        for (mode, udp) in [
            (EncapsulationMode::Always, true),
            (EncapsulationMode::Auto, false),
        ] {
            let config = PeerConfig {
                encapsulation: mode,
                ..peer_config(n, 1 - n, n == 0)
            };
            net.act(n, |e, now| e.set_peer(config, now)).unwrap();
            net.run_ms(8_000);
            net.assert_connected(0, 1, 1);
            assert_eq!([is_udp(&net, 0), is_udp(&net, 1)], [udp, udp]);
        }
        net.assert_no_esp_lost();
    }
}

/// Without the word the other end would take it for a NAT, and follow the peer anywhere.
#[test]
fn a_peer_that_says_why_it_wants_udp_is_not_behind_a_nat() {
    let mut net = pair(6);
    let config = PeerConfig {
        encapsulation: EncapsulationMode::Always,
        ..peer_config(0, 1, true)
    };
    net.act(0, |e, now| e.set_peer(config, now)).unwrap();
    net.run_ms(8_000);
    let ike = net.ikes(0, 1)[0].ike;
    net.act(0, |e, now| e.tell_filtered(ike, now)).unwrap();
    net.run_ms(100);
    let told = Receipt::Filtered { peer: peer_id(0) };
    assert_eq!(net.nodes[1].receipts, [told]);
    // Its successor knows it too.
    net.act(0, |e, now| e.rekey_ike(&peer_id(1), now)).unwrap();
    net.run_ms(1_000);
    assert!(is_udp(&net, 1));
    let child = child_of(&net, 1);
    let remote = net.ikes(1, 0)[0].remote;
    let elsewhere = "10.7.7.7:4500".parse().unwrap();
    net.act(1, |e, _| e.note_moved(child, elsewhere));
    assert_eq!(net.ikes(1, 0)[0].remote, remote);
    let port = std::net::SocketAddr::new(remote.ip(), 61_000);
    net.act(1, |e, _| e.note_moved(child, port));
    assert_eq!(net.ikes(1, 0)[0].remote, port);
}
