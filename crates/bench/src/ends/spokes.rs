//! The end with many engines: every other node of the cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::ends::driver::{self, Begin, Clock, HUB, Meter, Outside, Progress};
use crate::ends::link::{Kind, Link};
use crate::ends::{Load, Seen, trust};

/// How often the engines' timers are looked at; none is due where nothing is lost.
const TIMERS: Duration = Duration::from_millis(250);

pub(crate) fn run(mut link: Link, load: Load) -> anyhow::Result<Seen> {
    let authority = trust::Authority::new()?;
    let (certificate, key) = authority.issue(trust::HUB)?;
    link.send(Kind::Ca, authority.certificate())?;
    link.send(Kind::Certificate, &certificate)?;
    link.send(Kind::Key, key.to_pkcs8()?.as_bytes())?;

    let verifier = Arc::new(trust::Verifier::new(authority.certificate())?);
    let clock = Clock::start();
    let mut engines = Vec::new();
    for number in 0..load.connections {
        let name = trust::spoke(number);
        let (certificate, key) = authority.issue(&name)?;
        let identity = trust::local(&name, certificate, key);
        let mut engine = driver::engine(load, identity, verifier.clone());
        let peer = driver::peer(trust::HUB, driver::spoke(number), HUB)?;
        engine.set_peer(peer, clock.now())?;
        engines.push(engine);
    }
    let hub = trust::peer(trust::HUB)?;
    let port = engines.first().map_or(500, |e| e.config().port);
    let remote = SocketAddr::new(HUB, port);
    link.expect(Kind::Ready)?;
    link.send(Kind::Ready, &[])?;

    let mut outside = Outside::new(link, load)?;
    let meter = Meter::start()?;
    let mut progress = Progress::default();
    let mut begin = Begin::new(1, load);
    let mut timers = Instant::now();
    while !progress.is_done(load) || !outside.link.is_flushed() {
        while let Some(number) = begin.next(progress.ours) {
            let engine = &mut engines[number as usize];
            engine.reauthenticate(&hub, clock.now())?;
            progress.drain(number, engine, &mut outside, |_| number)?;
        }
        let mut idle = true;
        if let Some((Kind::Datagram(number), bytes)) = outside.link.receive()? {
            let engine = engines
                .get_mut(number as usize)
                .context("a connection that is not there")?;
            let local = SocketAddr::new(driver::spoke(number), port);
            engine.handle_datagram(clock.now(), local, remote, bytes);
            progress.drain(number, engine, &mut outside, |_| number)?;
            idle = false;
        }
        while let Some((number, done)) = outside.done() {
            let engine = &mut engines[number as usize];
            engine.handle_done(clock.now(), done);
            progress.drain(number, engine, &mut outside, |_| number)?;
            idle = false;
        }
        if idle && !progress.is_done(load) {
            outside.wait()?;
        }
        if timers.elapsed() > TIMERS {
            timers = Instant::now();
            for (number, engine) in (0..).zip(&mut engines) {
                let now = clock.now();
                if engine.poll_timeout().is_some_and(|at| at <= now.monotonic) {
                    engine.handle_timeout(now);
                    progress.drain(number, engine, &mut outside, |_| number)?;
                }
            }
        }
        ensure!(meter.is_in_time(), "the handshakes take too long");
    }
    meter.stop(&outside)
}
