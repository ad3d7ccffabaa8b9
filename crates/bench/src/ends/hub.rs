//! The end with one engine and many peers: a node of a large cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::ensure;
use testudo_crypto::SigningKey;

use crate::ends::driver::{self, Begin, Clock, Meter, Outside, Progress};
use crate::ends::link::{Kind, Link};
use crate::ends::{Load, Seen, trust};

pub(crate) fn run(mut link: Link, load: Load) -> anyhow::Result<Seen> {
    let ca = link.expect(Kind::Ca)?;
    let certificate = link.expect(Kind::Certificate)?;
    let key = SigningKey::from_pkcs8(&link.expect(Kind::Key)?)?;
    let identity = trust::local(trust::HUB, certificate, key);
    let mut engine = driver::engine(load, identity, Arc::new(trust::Verifier::new(&ca)?));
    let clock = Clock::start();
    for number in 0..load.connections {
        let peer = driver::peer(&trust::spoke(number), driver::HUB, driver::spoke(number))?;
        engine.set_peer(peer, clock.now())?;
    }
    let port = engine.config().port;
    let local = SocketAddr::new(driver::HUB, port);
    let first = address_bits(SocketAddr::new(driver::spoke(0), port));
    let number = |remote: SocketAddr| address_bits(remote).wrapping_sub(first);
    link.send(Kind::Ready, &[])?;
    link.expect(Kind::Ready)?;

    let mut outside = Outside::new(link, load)?;
    let meter = Meter::start()?;
    let mut progress = Progress::default();
    let mut begin = Begin::new(0, load);
    while !progress.is_done(load) || !outside.link.is_flushed() {
        while let Some(number) = begin.next(progress.ours) {
            engine.reauthenticate(&trust::peer(&trust::spoke(number))?, clock.now())?;
        }
        progress.drain(0, &mut engine, &mut outside, number)?;
        let mut idle = true;
        if let Some((Kind::Datagram(number), bytes)) = outside.link.receive()? {
            let remote = SocketAddr::new(driver::spoke(number), port);
            engine.handle_datagram(clock.now(), local, remote, bytes);
            idle = false;
        }
        progress.drain(0, &mut engine, &mut outside, number)?;
        while let Some((_, done)) = outside.done() {
            engine.handle_done(clock.now(), done);
            progress.drain(0, &mut engine, &mut outside, number)?;
            idle = false;
        }
        let now = clock.now();
        if engine.poll_timeout().is_some_and(|at| at <= now.monotonic) {
            engine.handle_timeout(now);
            progress.drain(0, &mut engine, &mut outside, number)?;
        }
        if idle && !progress.is_done(load) {
            outside.wait()?;
        }
        ensure!(meter.is_in_time(), "the handshakes take too long");
    }
    meter.stop(&outside)
}

fn address_bits(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_bits(),
        SocketAddr::V6(_) => 0,
    }
}
