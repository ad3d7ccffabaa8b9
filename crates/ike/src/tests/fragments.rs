//! Messages in fragments (RFC 7383): what goes out, what is put together, what is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use testudo_wire::ike::{ExchangeType, Flags, HEADER_LEN, Header, PayloadType};

use super::net::*;
use crate::sa::State;
use crate::*;

/// Small enough that IKE_AUTH with the tests' certificates takes several fragments.
const SIZE: u16 = 220;

fn fragmenting() -> EngineConfig {
    EngineConfig {
        fragment_size: SIZE,
        ..config()
    }
}

fn fragmenting_pair(seed: u64) -> Net {
    let mut net = Net::with(seed, 2, fragmenting());
    net.connect(0, 1, false);
    net
}

fn at(n: usize) -> SocketAddr {
    SocketAddr::new(address(n), 500)
}

/// Type of the first payload, the exchange, the message ID and whether it is an answer.
fn facts(bytes: &[u8]) -> (PayloadType, ExchangeType, u32, bool) {
    let h = Header::parse(bytes).unwrap();
    (h.next_payload, h.exchange, h.message_id, h.flags.response)
}

fn is_fragment(bytes: &[u8]) -> bool {
    facts(bytes).0 == PayloadType::SKF
}

/// Number and total of an SKF message.
fn numbers(bytes: &[u8]) -> (u16, u16) {
    let at = HEADER_LEN + 4;
    let field = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    (field(at), field(at + 2))
}

#[test]
fn large_messages_go_in_fragments_and_small_ones_do_not() {
    let mut net = fragmenting_pair(1);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    let auth: Vec<_> = net.wire.iter().filter(|(_, _, b)| b[18] == 35).collect();
    assert!(auth.len() >= 6, "{}", auth.len());
    for (from, _, bytes) in &net.wire {
        let (kind, exchange, _, _) = facts(bytes);
        if exchange == ExchangeType::IKE_SA_INIT {
            assert!(!is_fragment(bytes));
            continue;
        }
        // With IP and UDP headers.
        assert!(bytes.len() + 28 <= usize::from(SIZE), "{from} {kind:?}");
        if is_fragment(bytes) {
            let (number, total) = numbers(bytes);
            assert!(total > 1);
            let first = PayloadType(bytes[HEADER_LEN]);
            assert_eq!(first == PayloadType::NONE, number > 1, "RFC 7383, 2.5");
        }
    }
    net.wire.clear();
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    net.run_ms(100);
    assert_eq!(net.wire.len(), 2);
    assert!(net.wire.iter().all(|(_, _, b)| !is_fragment(b)));
}

#[test]
fn ipv6_has_room_for_a_longer_header() {
    let payloads = crate::message::Payloads {
        notifies: vec![testudo_wire::ike::Notify::new(
            testudo_wire::ike::NotifyType::IKEV2_FRAGMENTATION_SUPPORTED,
            [],
        )],
        ..Default::default()
    };
    let largest = |address: &str, port: u16| {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let path = crate::engine::Path {
            local: address,
            remote: address,
        };
        crate::fragments::largest(&EngineConfig::default(), &payloads, path)
    };
    for (port, marker) in [(500, 0), (4500, 4)] {
        assert_eq!(largest("10.0.0.1", port), Some(1280 - 20 - 8 - marker));
        let mapped = largest("::ffff:10.0.0.1", port);
        assert_eq!(mapped, Some(1280 - 20 - 8 - marker));
        assert_eq!(largest("fd00::1", port), Some(1280 - 40 - 8 - marker));
    }
}

/// The marker is counted where there is one, at both ends, on whichever port the SA began.
#[test]
fn the_marker_has_room_on_port_4500() {
    let mut net = Net::with(3, 2, fragmenting());
    for n in [1, 0] {
        let config = PeerConfig {
            encapsulation: testudo_model::policy::EncapsulationMode::Always,
            ..peer_config(n, 1 - n, n == 0)
        };
        net.act(n, |e, now| e.set_peer(config, now)).unwrap();
        net.act(n, |e, now| e.handle_timeout(now));
    }
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net.act(1, |e, now| e.rekey_ike(&peer_id(0), now)).unwrap();
    net.run_ms(500);
    for n in [0, 1] {
        let of = |exchange: u8| {
            let sent = net.wire.iter().filter(move |(from, _, b)| {
                from.ip() == address(n) && b.get(18) == Some(&exchange)
            });
            sent.map(|(from, _, b)| (from.port(), b.len() + 32))
                .collect::<Vec<_>>()
        };
        for exchange in [35, 36] {
            let all = of(exchange);
            let largest = all.iter().map(|(_, len)| *len).max();
            assert!(all.iter().all(|(port, _)| *port == 4500));
            assert!(
                largest.is_some_and(|len| len <= usize::from(SIZE)),
                "{largest:?}"
            );
        }
    }
}

/// Either end may not take them: then nothing is cut, and nothing cut is taken.
#[test]
fn fragments_are_had_only_when_both_ends_take_them() {
    for without in [0, 1] {
        let mut net = Net::with(2, 2, fragmenting());
        net.nodes[without].engine.config.fragment_size = 0;
        net.connect(0, 1, false);
        net.run_ms(500);
        net.assert_connected(0, 1, 1);
        assert!(net.wire.iter().all(|(_, _, b)| !is_fragment(b)));
        let bytes = Forge::of(&net, 2).fragment(&mut net, 1, 2, b"");
        net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), &bytes));
        let drops = &net.nodes[1].engine.counters().drops;
        assert_eq!(drops["fragment_unnegotiated"], 1);
    }
}

/// Makes messages under node 0's keys.
struct Forge {
    header: Header,
    /// Clear payloads before the encrypted one.
    clear: usize,
}

impl Forge {
    fn of(net: &Net, message_id: u32) -> Self {
        let sa = net.nodes[0].engine.sas.values().next().unwrap();
        let (spi_i, spi_r) = sa.spis();
        let exchange = ExchangeType::INFORMATIONAL;
        Self {
            header: Header::new(spi_i, spi_r, exchange, true, false, message_id),
            clear: 0,
        }
    }

    fn fragment(&self, net: &mut Net, number: u16, total: u16, inner: &[u8]) -> Vec<u8> {
        let sa = net.nodes[0].engine.sas.values_mut().next().unwrap();
        let keys = match &mut sa.state {
            State::AuthSent(sent) => &mut sent.keys,
            State::Established(est) => &mut est.keys,
            _ => panic!("no keys yet"),
        };
        let mut body = Vec::new();
        let unknown = |next: u8| [next, 0, 0, 4];
        for n in 0..self.clear {
            let last = n + 1 == self.clear;
            body.extend(unknown(if last { PayloadType::SKF.0 } else { 200 }));
        }
        let text_len = inner.len() + 1;
        let payload_len = (4 + 4 + 8 + text_len + 16) as u16;
        body.extend([0, 0]);
        body.extend(payload_len.to_be_bytes());
        body.extend(number.to_be_bytes());
        body.extend(total.to_be_bytes());
        let first = if self.clear > 0 {
            200
        } else {
            PayloadType::SKF.0
        };
        let mut header = self.header;
        header.next_payload = PayloadType(first);
        header.length = (HEADER_LEN + body.len() + 8 + text_len + 16) as u32;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(body);
        let mut text = [inner, &[0]].concat();
        let (mut iv, mut icv) = ([0; 8], [0; 16]);
        let sealed = keys.seal(&bytes, &mut iv, &mut text, &mut icv);
        assert!(sealed.is_ok());
        bytes.extend(iv);
        bytes.extend(text);
        bytes.extend(icv);
        bytes
    }

    /// Makes a fragment and hands it to node 1; says how many datagrams that brings.
    fn say(&self, net: &mut Net, number: u16, total: u16, inner: &[u8]) -> usize {
        let bytes = self.fragment(net, number, total, inner);
        let before = net.wire.len();
        net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), &bytes));
        net.wire.len() - before
    }
}

fn dropped(net: &Net, reason: &str) -> u64 {
    let drops = &net.nodes[1].engine.counters().drops;
    drops.get(reason).copied().unwrap_or(0)
}

fn held(net: &Net) -> usize {
    net.nodes[1].engine.incomplete.cost
}

fn connected(seed: u64) -> Net {
    let mut net = fragmenting_pair(seed);
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net
}

// Lesson L20 (CVE-2016-1287): nothing that a fragment says of itself leads out of bounds, and a
// smaller total does not end a message early.
#[test]
fn impossible_fragments_are_dropped() {
    let mut net = connected(3);
    let forge = Forge::of(&net, 2);
    for (number, total) in [(0, 0), (0, 3), (4, 3), (u16::MAX, 1), (1, 0)] {
        assert_eq!(forge.say(&mut net, number, total, b""), 0);
        assert_eq!(held(&net), 0, "{number} of {total}");
    }
    for total in [257, 1000, u16::MAX] {
        assert_eq!(forge.say(&mut net, 1, total, b""), 0);
        assert_eq!(held(&net), 0);
    }
    assert_eq!(dropped(&net, "too_many_fragments"), 3);
    // Cut anywhere.
    let whole = forge.fragment(&mut net, 1, 3, b"text");
    for len in HEADER_LEN..whole.len() {
        let mut bytes = whole[..len].to_vec();
        for patched in [false, true] {
            if patched {
                bytes[24..28].copy_from_slice(&(len as u32).to_be_bytes());
                let payload = (len - HEADER_LEN) as u16;
                if len >= HEADER_LEN + 4 {
                    bytes[30..32].copy_from_slice(&payload.to_be_bytes());
                }
            }
            net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), &bytes));
            assert_eq!(held(&net), 0, "{len}");
        }
    }
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    net.run_ms(100);
    assert_eq!(net.nodes[1].engine.counters().drops.get("message_id"), None);
    net.assert_connected(0, 1, 1);
}

#[test]
fn a_total_may_only_grow() {
    let mut net = connected(4);
    let forge = Forge::of(&net, 2);
    assert_eq!(forge.say(&mut net, 1, 3, b""), 0);
    let one = held(&net);
    assert!(one > 0);
    // Fewer: dropped, however few are missing then.
    assert_eq!(forge.say(&mut net, 2, 2, b""), 0);
    assert_eq!(forge.say(&mut net, 1, 1, b""), 0);
    assert_eq!(dropped(&net, "fragment_total"), 2);
    assert_eq!(held(&net), one);
    assert_eq!(forge.say(&mut net, 1, 3, b""), 0);
    assert_eq!(dropped(&net, "fragment_repeated"), 1);
    assert_eq!(held(&net), one);
    // More: begun anew.
    assert_eq!(forge.say(&mut net, 4, 4, b""), 0);
    assert_eq!(dropped(&net, "fragments_abandoned"), 1);
    assert_eq!(held(&net), one);
    for number in [2, 3] {
        assert_eq!(forge.say(&mut net, number, 4, b""), 0);
    }
    assert_eq!(forge.say(&mut net, 1, 4, b""), 1, "{}", net.story());
    assert_eq!(held(&net), 0);
}

#[test]
fn a_message_that_comes_whole_needs_no_fragments() {
    let mut net = connected(5);
    let forge = Forge::of(&net, 2);
    assert_eq!(forge.say(&mut net, 2, 3, b""), 0);
    net.act(0, |e, now| e.probe(&peer_id(1), now)).unwrap();
    net.run_ms(100);
    assert_eq!(held(&net), 0);
    assert_eq!(dropped(&net, "fragments_abandoned"), 1);
    assert_eq!(forge.say(&mut net, 3, 3, b""), 0);
    assert_eq!(dropped(&net, "fragment_repeated"), 1);
    assert_eq!(held(&net), 0);
}

#[test]
fn fragments_outside_the_window_are_not_held() {
    let mut net = connected(6);
    for message_id in [0, 6, 7, u32::MAX] {
        let forge = Forge::of(&net, message_id);
        assert_eq!(forge.say(&mut net, 1, 2, b""), 0);
    }
    let mut answer = Forge::of(&net, 0);
    answer.header.flags = Flags {
        response: true,
        ..answer.header.flags
    };
    assert_eq!(answer.say(&mut net, 1, 2, b""), 0);
    assert_eq!(held(&net), 0);
}

// Lesson L19 (CVE-2026-12413): clear payloads beside a fragment are bounded, and do no harm.
#[test]
fn clear_payloads_beside_a_fragment_are_bounded() {
    let mut net = connected(7);
    let mut forge = Forge::of(&net, 2);
    assert_eq!(forge.say(&mut net, 1, 3, b""), 0);
    let one = held(&net);
    for clear in [64, 65, 200] {
        forge.clear = clear;
        assert_eq!(forge.say(&mut net, 2, 3, b""), 0);
        assert_eq!(held(&net), one, "{clear}");
    }
    forge.clear = 63;
    assert_eq!(forge.say(&mut net, 2, 3, b""), 0);
    assert_eq!(held(&net), 2 * one);
    forge.clear = 0;
    assert_eq!(forge.say(&mut net, 3, 3, b""), 1);
    assert_eq!(held(&net), 0);
}

#[test]
fn only_authentic_fragments_are_held() {
    let mut net = connected(8);
    let bytes = Forge::of(&net, 2).fragment(&mut net, 1, 3, b"text");
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), &bad));
        assert_eq!(held(&net), 0, "bit {bit}");
    }
    net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), &bytes));
    assert!(held(&net) > 0);
}

// Lesson L22: each repeated fragment brought the whole answer.
#[test]
fn a_repeated_request_is_answered_once() {
    let mut net = connected(9);
    let (mut request, mut answer) = (Vec::new(), Vec::new());
    for (_, _, bytes) in &net.wire {
        match facts(bytes) {
            (PayloadType::SKF, ExchangeType::IKE_AUTH, 1, false) => request.push(bytes.clone()),
            (PayloadType::SKF, ExchangeType::IKE_AUTH, 1, true) => answer.push(bytes.clone()),
            _ => {}
        }
    }
    assert!(request.len() > 2 && answer.len() > 2);
    net.wire.clear();
    for bytes in request.iter().rev() {
        net.act(1, |e, now| e.handle_datagram(now, at(1), at(0), bytes));
    }
    let sent: Vec<_> = net.wire.iter().map(|(_, _, bytes)| bytes.clone()).collect();
    assert_eq!(sent, answer);
    assert_eq!(net.nodes[1].engine.counters().answers_repeated, 1);
    let others = request.len() as u64 - 1;
    assert_eq!(dropped(&net, "fragment_repeated"), others);
    net.assert_connected(0, 1, 1);
}

// Lesson L22, the other half: one fragment lost, all are sent again.
#[test]
fn when_one_fragment_is_lost_all_are_sent_again() {
    for (node, lost) in [(0, 1), (0, 3), (1, 1), (1, 2)] {
        let mut net = Net::with(10, 2, fragmenting());
        let mut done = false;
        net.filter = Some(Box::new(move |from, _, bytes| {
            let hit = from == at(node) && is_fragment(bytes) && numbers(bytes).0 == lost;
            if hit && !std::mem::replace(&mut done, true) {
                return Fate::Drop;
            }
            Fate::Pass
        }));
        net.connect(0, 1, false);
        net.run_ms(2_000);
        net.assert_connected(0, 1, 1);
        let mut times: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (from, _, bytes) in net.wire.iter().filter(|(_, _, b)| is_fragment(b)) {
            if *from == at(node) {
                *times.entry(bytes.clone()).or_default() += 1;
            }
        }
        assert!(times.len() > 2);
        assert!(times.values().all(|n| *n == 2), "{:?}", times.values());
        assert_eq!(net.nodes[0].engine.counters().retransmits, 1);
    }
}

/// The same bytes always under the same key and IV, other bytes never (lesson L23).
pub(super) fn assert_no_iv_twice(net: &Net) {
    let mut seen = BTreeMap::new();
    let mut sealed = 0;
    for (_, _, bytes) in &net.wire {
        let h = Header::parse(bytes).unwrap();
        let skip = match h.next_payload {
            PayloadType::SK => 4,
            PayloadType::SKF => 8,
            _ => continue,
        };
        sealed += 1;
        let iv = HEADER_LEN + skip;
        let key = (&bytes[..16], h.flags.initiator, &bytes[iv..iv + 8]);
        let before = seen.insert(key, bytes).unwrap_or(bytes);
        assert_eq!(before, bytes, "an IV for two texts\n{}", net.story());
    }
    assert!(sealed >= 6);
}

// Lesson L23: (key, IV) of every seal, with fragments, retransmits and rekeys.
#[test]
fn no_iv_is_used_twice_with_a_key() {
    let mut net = Net::with(11, 2, fragmenting());
    net.weather = Weather {
        loss: 20,
        duplicates: 20,
        jitter: Duration::from_millis(30),
        ..FAIR
    };
    net.connect(0, 1, true);
    net.run_ms(20_000);
    for round in 0..6 {
        let n = round % 2;
        let peer = peer_id(1 - n);
        let _ = net.act(n, |e, now| e.rekey_ike(&peer, now));
        net.run_ms(10_000);
        for child in net.nodes[n]
            .engine
            .children
            .keys()
            .copied()
            .collect::<Vec<_>>()
        {
            let _ = net.act(n, |e, now| e.rekey_child(child, now));
        }
        let _ = net.act(1 - n, |e, now| e.probe(&peer_id(n), now));
        net.run_ms(10_000);
    }
    assert!(net.nodes[0].engine.counters().retransmits > 0);
    assert!(net.nodes[0].engine.counters().ike_rekeys > 3);
    let rekeys = net.wire.iter().filter(|(_, _, b)| b[18] == 36);
    assert!(rekeys.filter(|(_, _, b)| is_fragment(b)).count() > 4);
    assert_no_iv_twice(&net);
}

#[test]
fn fragments_lost_doubled_and_reordered_still_make_one_sa() {
    for seed in 0..40 {
        let mut net = Net::with(seed, 2, fragmenting());
        net.weather = Weather {
            loss: 10,
            duplicates: 30,
            jitter: Duration::from_millis(60),
            ..FAIR
        };
        net.connect(0, 1, seed % 2 == 1);
        net.run_ms(60_000);
        net.weather = FAIR;
        net.run_ms(60_000);
        net.assert_connected(0, 1, 1);
        net.assert_tidy(0, 1);
        net.assert_tidy(1, 1);
        assert_no_iv_twice(&net);
        for node in &net.nodes {
            assert_eq!(node.engine.incomplete.cost, 0, "{}", net.story());
        }
    }
}

#[test]
fn what_stays_incomplete_is_forgotten() {
    let mut net = connected(12);
    let forge = Forge::of(&net, 2);
    assert_eq!(forge.say(&mut net, 2, 3, b"text"), 0);
    assert!(held(&net) > 0);
    net.run_ms(31_000);
    assert_eq!(held(&net), 0);
    assert_eq!(dropped(&net, "fragments_incomplete"), 1);
    // With the SA.
    assert_eq!(forge.say(&mut net, 2, 3, b"text"), 0);
    net.act(0, |e, now| e.remove_peer(&peer_id(1), now));
    net.act(1, |e, now| e.remove_peer(&peer_id(0), now));
    assert_eq!(forge.say(&mut net, 2, 3, b"text"), 0);
    net.run_ms(25_000);
    assert!(net.nodes[1].engine.sas.is_empty(), "{}", net.story());
    assert_eq!(held(&net), 0);
    assert_eq!(net.nodes[1].engine.timers.len(), 0);
}

#[test]
fn one_message_is_bounded() {
    let mut net = connected(13);
    net.nodes[1].engine.config.limits.fragmented_message = 2_000;
    let forge = Forge::of(&net, 2);
    for number in 1..=100 {
        forge.say(&mut net, number, 200, &[0; 100]);
        assert!(held(&net) <= 2_000);
    }
    assert!(dropped(&net, "fragments_oversized") > 5);
}

/// Peers that prove nothing and leave their messages incomplete do not fill the memory, and those
/// that are known are heard nevertheless.
#[test]
fn all_messages_together_are_bounded() {
    let strangers = 60;
    let mut net = Net::with(14, strangers + 2, fragmenting());
    let hub = strangers + 1;
    net.nodes[hub].engine.config.limits.fragment_bytes = 4_000;
    net.nodes[hub].engine.config.limits.cookie_threshold = 1_000;
    net.connect(0, hub, false);
    net.run_ms(500);
    net.filter = Some(Box::new(move |from, _, bytes| {
        let strange = from.ip() != address(0) && from.ip() != address(hub);
        if strange && is_fragment(bytes) && numbers(bytes).0 == 1 {
            Fate::Drop
        } else {
            Fate::Pass
        }
    }));
    let now = net.at();
    for n in 1..=strangers {
        net.nodes[n]
            .engine
            .set_peer(peer_config(n, hub, true), now)
            .unwrap();
        net.act(n, |e, now| e.handle_timeout(now));
    }
    // The known one makes a new child and rekeys meanwhile, in fragments.
    for round in 0..20 {
        net.run_ms(10);
        assert!(net.nodes[hub].engine.incomplete.cost <= 4_000);
        if round == 10 {
            net.act(0, |e, now| e.rekey_ike(&peer_id(hub), now))
                .unwrap();
        }
    }
    assert!(net.nodes[hub].engine.half_open_total >= strangers);
    assert!(net.nodes[hub].engine.counters().drops["fragment_limit"] > 10);
    assert_eq!(net.nodes[hub].engine.counters().ike_rekeys, 1);
    net.assert_connected(0, hub, 1);
    net.run_ms(120_000);
    assert!(net.nodes[hub].engine.incomplete.cost <= 4_000);
}
