//! Saying with an engine's keys what it never meant to say.

use testudo_wire::ike::{Chain, Header, Message, Payload, PayloadType};

use super::net::*;
use crate::fuzzing;
use crate::message;

/// Two nodes with an IKE SA and a child, with a pre-shared key: quickly made.
pub(crate) fn pair(seed: u64) -> Net {
    let mut net = quiet_pair(seed);
    net.act(0, |e, now| e.handle_timeout(now));
    net.run_ms(500);
    net.assert_connected(0, 1, 1);
    net
}

/// Two nodes that know each other; node 0 is about to begin.
pub(crate) fn quiet_pair(seed: u64) -> Net {
    let mut config = config();
    config.liveness = std::time::Duration::from_secs(10);
    let mut net = Net::with(seed, 2, config);
    let now = net.at();
    for (n, peer) in [(1, 0), (0, 1)] {
        let config = crate::PeerConfig {
            auth: psk("secret"),
            ..peer_config(n, peer, n == 0)
        };
        net.nodes[n].engine.set_peer(config, now).unwrap();
    }
    net
}

/// Node `from` says `payloads` on its newest IKE SA; gives what the other answers.
pub(crate) fn say(
    net: &mut Net,
    from: usize,
    exchange: u8,
    message_id: u32,
    response: bool,
    payloads: &Chain,
) -> Vec<Vec<u8>> {
    let engine = &mut net.nodes[from].engine;
    let path = engine.sas.values().next_back().unwrap().path();
    let first = payloads.first().0;
    let bytes = payloads.bytes();
    let sealed = fuzzing::seal(engine, exchange, message_id, response, first, bytes).unwrap();
    let before = net.wire.len();
    net.act(1 - from, |e, now| {
        e.handle_datagram(now, path.remote, path.local, &sealed);
    });
    net.wire[before..].iter().map(|w| w.2.clone()).collect()
}

/// The payloads, and one more that is written as it is.
pub(crate) fn chain(payloads: &[Payload], raw: &[(PayloadType, Vec<u8>)]) -> Chain {
    let mut chain = Chain::of(payloads).unwrap();
    for (kind, body) in raw {
        chain.push_raw(*kind, false, body).unwrap();
    }
    chain
}

/// A message in clear with its payloads changed.
pub(crate) fn rewrite(
    bytes: &[u8],
    change: impl FnOnce(&mut Header, &mut Vec<Payload>),
) -> Vec<u8> {
    let parsed = Message::parse(bytes).unwrap();
    let mut header = parsed.header;
    let mut payloads: Vec<_> = parsed.payloads.into_iter().map(|p| p.payload).collect();
    change(&mut header, &mut payloads);
    message::clear(&header, &payloads).unwrap()
}
