//! Every event in every state: what happens stands in `docs/ike-transitions.md`, a row for each
//! event and outcome with the states that have it. The test brings engines into each state, lets
//! each event happen, and compares. A pair that is missing there, or is there twice, fails.

use std::collections::BTreeMap;

use testudo_crypto::KePrivate;
use testudo_model::ChildId;
use testudo_wire::ike::{
    Delete, ExchangeType, Header, KeyExchange, Notify, NotifyType, Payload, ProtocolId,
    UnknownPayload,
};

use super::net::*;
use super::places::{Place, STATES, reach, state_of};
use crate::message;
use crate::proposal;
use crate::sa::Slot;
use crate::timers::Deadline;
use crate::*;

const TABLE: &str = include_str!("../../../../docs/ike-transitions.md");

/// Something that happens. Gives what the caller is told, if it is refused.
type Event = Box<dyn Fn(&mut Place) -> Result<(), Misuse>>;

fn message(exchange: ExchangeType, response: bool, payloads: Vec<Payload>) -> Event {
    Box::new(move |place| {
        let id = place.next_id(response);
        let bytes = place.seal(exchange, response, id, &payloads);
        place.hand(&bytes);
        Ok(())
    })
}

fn request(exchange: ExchangeType, payloads: Vec<Payload>) -> Event {
    message(exchange, false, payloads)
}

/// An answer of the exchange that the node waits for.
fn answer(payloads: Vec<Payload>) -> Event {
    Box::new(move |place| {
        let id = place.next_id(true);
        let (n, ike) = (place.n, place.ike);
        let sa = place.net.nodes[n].engine.sas.get_mut(&ike);
        let waits = sa.and_then(|sa| Some(sa.state.request()?.exchange));
        let exchange = waits.unwrap_or(ExchangeType::INFORMATIONAL);
        let bytes = place.seal(exchange, true, id, &payloads);
        place.hand(&bytes);
        Ok(())
    })
}

fn notify(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::new(kind, []))
}

fn command(
    f: impl Fn(&mut Engine, &About, testudo_model::Now) -> Result<(), Misuse> + 'static,
) -> Event {
    Box::new(move |place| {
        let n = place.n;
        let about = About {
            n,
            ike: place.ike,
            peer: peer_id(1 - n),
            child: place.child().unwrap_or(ChildId(u64::MAX)),
        };
        place.net.act(n, |e, now| f(e, &about, now))
    })
}

/// What a command is about.
struct About {
    n: usize,
    ike: IkeId,
    peer: testudo_model::PeerId,
    child: ChildId,
}

/// What the peer asks for with CREATE_CHILD_SA.
fn create(rekeyed: Option<bool>) -> Event {
    Box::new(move |place| {
        let peer = place.peer();
        let mut payloads = Vec::new();
        if let Some(known) = rekeyed {
            let children = place.net.nodes[peer].engine.children.values();
            let spi = children.map(|c| c.spi_in).next().unwrap_or(1);
            let spi = if known { spi } else { spi ^ 1 };
            let notify = Notify::about_esp(NotifyType::REKEY_SA, spi);
            payloads.push(Payload::Notify(notify));
        }
        let engine = &mut place.net.nodes[peer].engine;
        let slot = Slot {
            name: "child0".into(),
            resource: 0,
        };
        let id = peer_id(1 - peer);
        if let Some(offer) = engine.offer_child(&id, &slot) {
            let suites = engine.suites_of(&id);
            let additional = suites.additional_ke.clone();
            payloads.extend(engine.offer_payloads(suites, &offer, true, &additional));
        }
        payloads.extend(exchange_payloads(engine));
        let message_id = place.next_id(false);
        let bytes = place.seal(ExchangeType::CREATE_CHILD_SA, false, message_id, &payloads);
        place.hand(&bytes);
        Ok(())
    })
}

fn exchange_payloads(engine: &mut Engine) -> [Payload; 2] {
    let nonce = engine.random_bytes(32);
    let ke = KePrivate::generate(testudo_crypto::KeMethod::X25519, &mut *engine.random);
    [
        Payload::Nonce(nonce),
        Payload::KeyExchange(KeyExchange {
            method: ke.method().id(),
            data: ke.public().to_vec(),
        }),
    ]
}

fn rekey_ike() -> Event {
    Box::new(|place| {
        let peer = place.peer();
        let engine = &mut place.net.nodes[peer].engine;
        let suites = engine.suites_of(&peer_id(1 - peer));
        let spi = Some(0x7777_0000_0000_0001);
        let mut payloads = vec![Payload::Sa(proposal::ike_offer(suites, spi))];
        payloads.extend(exchange_payloads(engine));
        let id = place.next_id(false);
        let bytes = place.seal(ExchangeType::CREATE_CHILD_SA, false, id, &payloads);
        place.hand(&bytes);
        Ok(())
    })
}

fn delete_child(known: bool) -> Event {
    Box::new(move |place| {
        let peer = place.peer();
        let children = place.net.nodes[peer].engine.children.values();
        let spi = children.map(|c| c.spi_in).next().unwrap_or(1);
        let delete = Payload::Delete(Delete::Child {
            protocol: ProtocolId::ESP,
            spis: vec![if known { spi } else { spi ^ 1 }],
        });
        let id = place.next_id(false);
        let bytes = place.seal(ExchangeType::INFORMATIONAL, false, id, &[delete]);
        place.hand(&bytes);
        Ok(())
    })
}

/// A word about a child's ESP.
fn word(kind: NotifyType, known: bool, data: Vec<u8>) -> Event {
    Box::new(move |place| {
        let peer = place.peer();
        let children = place.net.nodes[peer].engine.children.values();
        let spi = children.map(|c| c.spi_in).next().unwrap_or(1);
        let notify = Notify {
            data: data.clone(),
            ..Notify::about_esp(kind, if known { spi } else { spi ^ 1 })
        };
        let id = place.next_id(false);
        let payloads = [Payload::Notify(notify)];
        let bytes = place.seal(ExchangeType::INFORMATIONAL, false, id, &payloads);
        place.hand(&bytes);
        Ok(())
    })
}

/// What the repetition repeats.
const FIRST: &str = "request: the last one again";

/// The last request again.
fn repeated() -> Event {
    Box::new(|place| {
        let bytes = std::mem::take(&mut place.said);
        place.hand(&bytes);
        Ok(())
    })
}

type DeadlineOf = fn(&Place) -> Deadline;

/// All deadlines. A new one does not compile before it is in here.
fn deadlines() -> Vec<(&'static str, DeadlineOf)> {
    fn child_of(p: &Place) -> ChildId {
        p.child().unwrap_or(ChildId(u64::MAX))
    }
    fn peer_of(p: &Place) -> testudo_model::PeerId {
        peer_id(p.peer())
    }
    vec![
        ("retransmit", |p| Deadline::Retransmit(p.ike)),
        ("half_open", |p| Deadline::HalfOpen(p.ike)),
        ("rekey_ike", |p| Deadline::RekeyIke(p.ike)),
        ("expire_ike", |p| Deadline::ExpireIke(p.ike)),
        ("liveness", |p| Deadline::Liveness(p.ike)),
        ("redundant", |p| Deadline::Redundant(p.ike)),
        ("reassembly", |p| Deadline::Reassembly(p.ike)),
        ("follow_up", |p| Deadline::FollowUp(p.ike)),
        ("keepalive", |p| Deadline::Keepalive(p.ike)),
        ("rekey_child", |p| Deadline::RekeyChild(child_of(p))),
        ("expire_child", |p| Deadline::ExpireChild(child_of(p))),
        ("linger", |p| Deadline::Linger(child_of(p))),
        ("start", |p| Deadline::Start(peer_of(p))),
        ("children", |p| Deadline::Children(peer_of(p))),
        ("handover", |p| Deadline::Handover(peer_of(p))),
        ("job", |_| Deadline::Job(u64::MAX)),
    ]
}

fn name_of(deadline: &Deadline) -> &'static str {
    match deadline {
        Deadline::Retransmit(_) => "retransmit",
        Deadline::HalfOpen(_) => "half_open",
        Deadline::RekeyIke(_) => "rekey_ike",
        Deadline::ExpireIke(_) => "expire_ike",
        Deadline::Liveness(_) => "liveness",
        Deadline::Redundant(_) => "redundant",
        Deadline::Reassembly(_) => "reassembly",
        Deadline::FollowUp(_) => "follow_up",
        Deadline::Keepalive(_) => "keepalive",
        Deadline::RekeyChild(_) => "rekey_child",
        Deadline::ExpireChild(_) => "expire_child",
        Deadline::Linger(_) => "linger",
        Deadline::Start(_) => "start",
        Deadline::Children(_) => "children",
        Deadline::Handover(_) => "handover",
        Deadline::Job(_) => "job",
    }
}

fn messages() -> Vec<(String, Event)> {
    use ExchangeType as X;
    let exchanges = [
        X::IKE_SA_INIT,
        X::IKE_INTERMEDIATE,
        X::IKE_AUTH,
        X::CREATE_CHILD_SA,
        X::INFORMATIONAL,
        X::IKE_FOLLOWUP_KE,
        X(200),
    ];
    let mut out: Vec<(String, Event)> = Vec::new();
    for exchange in exchanges {
        for (word, response) in [("request", false), ("answer", true)] {
            let name = format!("empty {word}: {exchange}");
            out.push((name, message(exchange, response, Vec::new())));
        }
    }
    out.extend(requests());
    out.extend(odd_ones());
    out.extend(answers());
    out
}

fn critical() -> Payload {
    Payload::Unknown(UnknownPayload {
        kind: testudo_wire::ike::PayloadType(201),
        critical: true,
        data: Vec::new(),
    })
}

fn requests() -> Vec<(String, Event)> {
    use ExchangeType as X;
    let refused = notify(NotifyType::AUTHENTICATION_FAILED);
    let requests = vec![
        ("delete a child", delete_child(true)),
        ("delete an unknown child", delete_child(false)),
        (
            "delete the IKE SA",
            request(X::INFORMATIONAL, vec![Payload::Delete(Delete::Ike)]),
        ),
        (
            "AUTHENTICATION_FAILED",
            request(X::INFORMATIONAL, vec![refused]),
        ),
        (
            "critical unknown payload",
            request(X::INFORMATIONAL, vec![critical()]),
        ),
        (
            "TESTUDO_ESP_ASKED",
            word(NotifyType::TESTUDO_ESP_ASKED, true, vec![1; 4]),
        ),
        (
            "TESTUDO_ESP_ASKED of an unknown child",
            word(NotifyType::TESTUDO_ESP_ASKED, false, vec![1; 4]),
        ),
        (
            "TESTUDO_ESP_COUNTS",
            word(NotifyType::TESTUDO_ESP_COUNTS, true, vec![1; 20]),
        ),
        (
            "TESTUDO_ESP_COUNTS, cut short",
            word(NotifyType::TESTUDO_ESP_COUNTS, true, vec![1; 19]),
        ),
        (
            "TESTUDO_ESP_FILTERED",
            request(
                X::INFORMATIONAL,
                vec![notify(NotifyType::TESTUDO_ESP_FILTERED)],
            ),
        ),
        ("create a child", create(None)),
        ("rekey a child", create(Some(true))),
        ("rekey an unknown child", create(Some(false))),
        ("rekey the IKE SA", rekey_ike()),
        (&FIRST["request: ".len()..], repeated()),
    ];
    requests
        .into_iter()
        .map(|(name, e)| (format!("request: {name}"), e))
        .collect()
}

/// Out of turn, and not the peer's.
fn odd_ones() -> Vec<(String, Event)> {
    use ExchangeType as X;
    let mut out: Vec<(String, Event)> = Vec::new();
    for (name, ahead) in [("early", 1), ("far ahead", 1000)] {
        let event: Event = Box::new(move |place| {
            let id = place.next_id(false) + ahead;
            let bytes = place.seal(X::INFORMATIONAL, false, id, &[]);
            place.hand(&bytes);
            Ok(())
        });
        out.push((format!("request: {name}"), event));
    }
    for (name, response) in [("forged request", false), ("forged answer", true)] {
        let event: Event = Box::new(move |place| {
            let id = place.next_id(response);
            let mut bytes = place.seal(X::INFORMATIONAL, response, id, &[]);
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            place.hand(&bytes);
            Ok(())
        });
        out.push((name.to_owned(), event));
    }
    out
}

fn answers() -> Vec<(String, Event)> {
    let mut out: Vec<(String, Event)> = Vec::new();
    for kind in [
        NotifyType::TEMPORARY_FAILURE,
        NotifyType::NO_PROPOSAL_CHOSEN,
        NotifyType::NO_ADDITIONAL_SAS,
        NotifyType::CHILD_SA_NOT_FOUND,
        NotifyType::INVALID_SYNTAX,
        NotifyType::AUTHENTICATION_FAILED,
    ] {
        out.push((format!("answer: {kind}"), answer(vec![notify(kind)])));
    }
    out.push((
        "answer: critical unknown payload".into(),
        answer(vec![critical()]),
    ));
    let truth: Event = Box::new(|place| {
        place.true_answer();
        Ok(())
    });
    out.push(("answer: the true one".into(), truth));
    out
}

fn commands() -> Vec<(String, Event)> {
    let list: Vec<(&str, Event)> = vec![
        ("probe", command(|e, p, now| e.probe(&p.peer, now))),
        ("rekey_ike", command(|e, p, now| e.rekey_ike(&p.peer, now))),
        (
            "rekey_child",
            command(|e, p, now| e.rekey_child(p.child, now)),
        ),
        (
            "reauthenticate",
            command(|e, p, now| e.reauthenticate(&p.peer, now)),
        ),
        ("close", command(|e, p, now| e.close(&p.peer, now))),
        (
            "remove_peer",
            command(|e, p, now| {
                e.remove_peer(&p.peer, now);
                Ok(())
            }),
        ),
        (
            "set_peer, the same",
            command(|e, p, now| e.set_peer(peer_config(p.n, 1 - p.n, p.n == 0), now)),
        ),
        (
            "set_peer, a child more",
            command(|e, p, now| {
                let mut config = peer_config(p.n, 1 - p.n, p.n == 0);
                config.children.push(child(5, p.n, 1 - p.n));
                e.set_peer(config, now)
            }),
        ),
        (
            "set_peer, no child",
            command(|e, p, now| {
                let mut config = peer_config(p.n, 1 - p.n, p.n == 0);
                config.children.clear();
                e.set_peer(config, now)
            }),
        ),
        (
            "set_peer, another proof",
            command(|e, p, now| {
                let mut config = peer_config(p.n, 1 - p.n, p.n == 0);
                config.auth = psk("secret");
                e.set_peer(config, now)
            }),
        ),
        (
            "set_peer, other suites",
            command(|e, p, now| {
                let mut config = peer_config(p.n, 1 - p.n, p.n == 0);
                let suites = &mut e.config.suites.clone();
                suites.pfs = !suites.pfs;
                config.suites = Some(suites.clone());
                e.set_peer(config, now)
            }),
        ),
        (
            "set_peer, another address",
            command(|e, p, now| {
                let mut config = peer_config(p.n, 1 - p.n, p.n == 0);
                config.addresses[0].remote = address(200);
                e.set_peer(config, now)
            }),
        ),
        (
            "refuse_child",
            command(|e, p, now| e.refuse_child(p.child, now)),
        ),
        (
            "probe_child",
            command(|e, p, now| e.probe_child(p.child, now)),
        ),
        ("ask_esp", command(|e, p, now| e.ask_esp(p.child, 1, now))),
        (
            "tell_esp",
            command(|e, p, now| e.tell_esp(p.child, 1, EspCounts::default(), now)),
        ),
        (
            "tell_filtered",
            command(|e, p, now| e.tell_filtered(p.ike, now)),
        ),
        (
            "note_moved",
            command(|e, p, _| {
                e.note_moved(p.child, std::net::SocketAddr::new(address(200), 4500));
                Ok(())
            }),
        ),
        (
            "set_lifetimes",
            command(|e, _, _| {
                let second = std::time::Duration::from_secs(1);
                let limits = e.config.soft_limits;
                e.set_lifetimes(second, second, limits);
                Ok(())
            }),
        ),
        (
            "set_identity",
            command(|e, p, _| {
                let kind = testudo_crypto::KeyType::Ed25519;
                e.set_identity(local_identity(p.n, "ca", EPOCH + 5, kind));
                Ok(())
            }),
        ),
        (
            "recheck_peers, good",
            command(|e, _, now| {
                e.recheck_peers(now);
                Ok(())
            }),
        ),
        (
            "note_inbound",
            command(|e, p, now| {
                e.note_inbound(p.child, now);
                Ok(())
            }),
        ),
    ];
    let mut out: Vec<_> = list
        .into_iter()
        .map(|(name, event)| (format!("command: {name}"), event))
        .collect();
    let untrusted: Event = Box::new(|place| {
        let n = place.n;
        place.net.nodes[n].verifier.trusted.lock().unwrap().clear();
        place.net.act(n, |e, now| e.recheck_peers(now));
        Ok(())
    });
    out.push(("command: recheck_peers, bad".into(), untrusted));
    out
}

fn events() -> Vec<(String, Event)> {
    let mut out = messages();
    for (name, make) in deadlines() {
        let event: Event = Box::new(move |place| {
            let (n, deadline) = (place.n, make(place));
            assert_eq!(name_of(&deadline), name);
            place.net.act(n, |e, now| e.fire(deadline, now));
            Ok(())
        });
        out.push((format!("deadline: {name}"), event));
    }
    let last: Event = Box::new(|place| {
        let (n, ike) = (place.n, place.ike);
        place.net.act(n, |e, now| {
            let tries = e.config.retransmission.tries;
            let sa = e.sas.get_mut(&ike);
            if let Some(request) = sa.and_then(|sa| sa.state.request()) {
                request.sent = tries;
            }
            e.fire(Deadline::Retransmit(ike), now);
        });
        Ok(())
    });
    out.push(("deadline: retransmit, the last".into(), last));
    out.extend(commands());
    out
}

/// What a datagram of the node's is.
fn describe(place: &mut Place, bytes: &[u8], sent_before: bool) -> String {
    let Ok(header) = Header::parse(bytes) else {
        return "sends a keepalive".into();
    };
    if !header.flags.response {
        let again = if sent_before { " again" } else { "" };
        return format!("sends {}{again}", header.exchange);
    }
    let Ok(parsed) = testudo_wire::ike::Message::parse(bytes) else {
        return "answers".into();
    };
    let Some(keys) = place.peer_keys() else {
        return "answers".into();
    };
    let plain = message::unprotect(keys, bytes, &parsed);
    let payloads = plain.ok().and_then(|p| p.payloads().ok());
    match payloads.as_ref().and_then(|p| p.error()) {
        Some(error) => format!("answers {}", error.kind),
        None => "answers".into(),
    }
}

/// Lets it happen, and says what that did.
fn outcome(mut place: Place, name: &str, event: &Event) -> String {
    let n = place.n;
    if name == FIRST {
        let id = place.next_id(false);
        place.said = place.seal(ExchangeType::INFORMATIONAL, false, id, &[]);
        let bytes = place.said.clone();
        place.hand(&bytes);
    }
    let state = place.sa().map(state_of);
    let drops = place.net.nodes[n].engine.counters().drops.clone();
    let lines = place.net.nodes[n].log.len();
    let wire = place.net.wire.len();
    let tasks = |p: &Place| p.sa().and_then(|sa| Some(sa.established()?.tasks.len()));
    let queued = tasks(&place);
    let mut out = Vec::new();
    if event(&mut place).is_err() {
        out.push("misuse".to_owned());
    }
    for (reason, count) in &place.net.nodes[n].engine.counters().drops {
        if drops.get(reason) != Some(count) {
            out.push(format!("drops {reason}"));
        }
    }
    let ours = address(n);
    let sent: Vec<_> = place.net.wire[wire..].to_vec();
    for (_, _, bytes) in sent.iter().filter(|(from, _, _)| from.ip() == ours) {
        let before = place.net.wire[..wire].iter().any(|(_, _, b)| b == bytes);
        let what = describe(&mut place, bytes, before);
        if !out.contains(&what) {
            out.push(what);
        }
    }
    for line in &place.net.nodes[n].log[lines..] {
        let (_, line) = line.split_once(' ').unwrap();
        let has = |word: &str| line.contains(word);
        let what = match line.split(' ').next() {
            Some("ike") if has(" up") => "an IKE SA up",
            Some("ike") => "the IKE SA down",
            Some("child") if has(" up ") => "a child up",
            Some("child") if has(" down") => "a child down",
            Some("child") => "sends on a child",
            Some("failed:") => "tells a failure",
            Some("receipt:") => "tells of ESP",
            _ => "moves",
        };
        if !out.iter().any(|o| o == what) {
            out.push(what.to_owned());
        }
    }
    if tasks(&place) > queued {
        out.push("queues".to_owned());
    }
    let after = place.sa().map(state_of);
    match after {
        _ if after == state => {}
        None => out.push("forgotten".to_owned()),
        Some(name) => out.push(format!("-> {name}")),
    }
    if out.is_empty() {
        out.push("nothing".to_owned());
    }
    out.join(", ")
}

/// (event, state) -> outcome, as the document has it.
fn table() -> BTreeMap<(String, String), String> {
    let mut out = BTreeMap::new();
    let mut event = String::new();
    for line in TABLE.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [first, outcome, states] = cells[..] else {
            panic!("three cells: {line}");
        };
        if first == "event" {
            continue;
        }
        if !first.is_empty() {
            event = first.to_owned();
        }
        for state in states.split(", ") {
            let pair = (event.clone(), state.to_owned());
            let twice = out.insert(pair, outcome.to_owned());
            assert_eq!(twice, None, "{event} in {state} is there twice");
        }
    }
    out
}

/// What a caller can do stands in the table, but for what is not about an IKE SA.
#[test]
fn every_command_is_an_event() {
    let sources = [
        include_str!("../engine.rs"),
        include_str!("../moves.rs"),
        include_str!("../receipt.rs"),
        include_str!("../refused.rs"),
    ];
    let others = [
        "set_verifier",
        "handle_datagram",
        "handle_timeout",
        "poll_event",
        "poll_transmit",
    ];
    let all = commands();
    let mut count = 0;
    for source in sources {
        let mut words = source.split("    pub fn ").skip(1);
        for text in words.by_ref() {
            let (name, rest) = text.split_once('(').unwrap();
            if !rest.trim_start().starts_with("&mut self") || others.contains(&name) {
                continue;
            }
            count += 1;
            let wanted = format!("command: {name}");
            let there = all.iter().any(|(event, _)| {
                let (event, _) = event.split_once(',').unwrap_or((event, ""));
                event == wanted
            });
            assert!(there, "{name} is not in the table");
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    let mut wanted = table();
    let mut found: BTreeMap<usize, BTreeMap<String, Vec<&str>>> = BTreeMap::new();
    let all = events();
    let mut wrong = Vec::new();
    for state in STATES {
        for (index, (name, event)) in all.iter().enumerate() {
            let is = outcome(reach(state), name, event);
            let said = wanted.remove(&(name.clone(), state.to_owned()));
            if said.as_ref() != Some(&is) {
                wrong.push(format!("{name} in {state}: {is}; the table has {said:?}"));
            }
            let row = found.entry(index).or_default();
            row.entry(is).or_default().push(state);
        }
    }
    if !wrong.is_empty() || !wanted.is_empty() {
        // The rows as they would have to be, to be judged and not to be copied.
        for (index, rows) in &found {
            let mut first = all[*index].0.as_str();
            for (outcome, states) in rows {
                println!("| {first} | {outcome} | {} |", states.join(", "));
                first = "";
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} pairs:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(wanted.is_empty(), "no such pairs: {:?}", wanted.keys());
}
