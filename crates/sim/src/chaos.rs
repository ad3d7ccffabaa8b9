//! One seed decides everything: how many nodes, what the network does to datagrams, what the
//! nodes are told, who dies. Then the network is fair, and all must agree within a bound.

use std::collections::BTreeMap;
use std::time::Duration;

use testudo_ike::{EngineConfig, Suites};

use crate::net::{Datagram, Esp, Net, peer_config, peer_id};

/// How long the nodes have, once the network is fair, to agree: a dead peer is noticed after
/// 30 s of silence and 32 s of retransmission, a failed attempt is repeated after at most 60 s
/// and may itself take 32 s to fail.
const BOUND: Duration = Duration::from_secs(300);

/// Steps of one seed after which it goes in circles.
const STEPS: usize = 400_000;

/// What one seed came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// IKE datagrams that were sent.
    pub datagrams: u64,
    /// Of these, lost.
    pub lost: u64,
    /// Commands given and nodes restarted.
    pub commands: u64,
    /// Virtual time from fair weather to agreement.
    pub settled: Duration,
}

/// What the network does.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// In percent.
    loss: u64,
    duplicates: u64,
    /// Each datagram is late by up to this much; so the order changes.
    jitter: u64,
}

enum Packet {
    Ike(Datagram),
    Esp(Esp),
}

struct Chaos {
    net: Net,
    weather: Weather,
    flying: BTreeMap<(Duration, u64), Packet>,
    order: u64,
    /// No datagram arrives until then.
    silent_until: Duration,
    next_esp: Duration,
    pairs: Vec<Pair>,
    outcome: Outcome,
}

struct Pair {
    ends: [usize; 2],
    initiate: [bool; 2],
    children: usize,
}

/// Runs one seed. An error tells the breach, the story, and how to see it again.
pub fn run(seed: u64) -> Result<Outcome, String> {
    let mut chaos = Chaos::new(seed);
    match chaos.play() {
        Ok(()) => Ok(chaos.outcome),
        Err(text) => Err(format!(
            "seed {seed}: {text}\n  {}\nreplay: cargo xtask sim --seed {seed}",
            chaos.net.story()
        )),
    }
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let config = EngineConfig {
            suites: Suites {
                pfs: seed % 2 == 1,
                ..Suites::default()
            },
            // Long: what is asked at the end is whether all is quiet.
            child_lifetime: Duration::from_secs(100_000),
            ike_lifetime: Duration::from_secs(800_000),
            // So small that most messages go in fragments, in some runs.
            fragment_size: if seed % 3 == 2 { 240 } else { 1280 },
            ..EngineConfig::default()
        };
        let nodes = if seed % 5 == 4 { 3 } else { 2 };
        let mut net = Net::new(seed, nodes, config);
        let weather = Weather {
            loss: net.below(4) * 10,
            duplicates: net.below(3) * 10,
            jitter: [0, 20, 300, 1500][usize::try_from(net.below(4)).unwrap_or(0)],
        };
        let mut pairs = Vec::new();
        for a in 0..nodes {
            for b in a + 1..nodes {
                let both = net.below(2) == 0;
                let children = 1 + usize::try_from(net.below(2)).unwrap_or(0);
                pairs.push(Pair {
                    ends: [a, b],
                    initiate: [true, both],
                    children,
                });
            }
        }
        Self {
            net,
            weather,
            flying: BTreeMap::new(),
            order: 0,
            silent_until: Duration::ZERO,
            next_esp: Duration::ZERO,
            pairs,
            outcome: Outcome::default(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        for pair in 0..self.pairs.len() {
            for end in [1, 0] {
                self.configure(pair, end)?;
            }
        }
        let commands = 4 + self.net.below(8);
        for _ in 0..commands {
            // Often close together, so that they cross; sometimes far apart.
            let gap = [0, 3, 12, 40, 400, 6_000][usize::try_from(self.net.below(6)).unwrap_or(0)];
            self.pass(Duration::from_millis(gap))?;
            self.command()?;
        }
        self.pass(Duration::from_secs(1))?;
        self.weather = Weather {
            loss: 0,
            duplicates: 0,
            jitter: 0,
        };
        self.silent_until = Duration::ZERO;
        let fair = self.net.now;
        loop {
            self.pass(Duration::from_secs(1))?;
            self.outcome.settled = self.net.now - fair;
            let wrong = self.wrong();
            let Some(wrong) = wrong else { return Ok(()) };
            if self.outcome.settled > BOUND {
                return Err(format!("no agreement within {BOUND:?}: {wrong}"));
            }
        }
    }

    fn wrong(&self) -> Option<String> {
        let pairs = self.pairs.iter();
        let wrong = |p: &Pair| self.net.disagreement(p.ends[0], p.ends[1], p.children);
        pairs.filter_map(wrong).next().or_else(|| self.net.leak())
    }

    fn configure(&mut self, pair: usize, end: usize) -> Result<(), String> {
        let pair = &self.pairs[pair];
        let (own, other) = (pair.ends[end], pair.ends[1 - end]);
        let config = peer_config(own, other, pair.initiate[end], pair.children);
        self.net
            .act(own, |e, now| e.set_peer(config, now))
            .map_err(|e| e.to_string())
    }

    /// One thing happens to one node.
    fn command(&mut self) -> Result<(), String> {
        self.outcome.commands += 1;
        let many = u64::try_from(self.pairs.len()).unwrap_or(1);
        let pair = usize::try_from(self.net.below(many)).unwrap_or(0);
        let end = usize::try_from(self.net.below(2)).unwrap_or(0);
        let (own, other) = (self.pairs[pair].ends[end], self.pairs[pair].ends[1 - end]);
        let peer = peer_id(other);
        // Refusals are as good as anything: the peer may be down.
        match self.net.below(16) {
            0..4 => {
                self.net.tell(own, "is told to rekey a child");
                let status = self.net.nodes[own].engine.status();
                let of_peer = status.iter().filter(|s| s.peer.as_ref() == Some(&peer));
                let child = of_peer.flat_map(|s| &s.children).next().map(|c| c.child);
                if let Some(child) = child {
                    let _ = self.net.act(own, |e, now| e.rekey_child(child, now));
                }
            }
            4..8 => {
                self.net.tell(own, "is told to rekey the IKE SA");
                let _ = self.net.act(own, |e, now| e.rekey_ike(&peer, now));
            }
            8..11 => {
                self.net.tell(own, "is told to authenticate anew");
                let _ = self.net.act(own, |e, now| e.reauthenticate(&peer, now));
            }
            11 => {
                self.net.tell(own, "is told to close");
                let _ = self.net.act(own, |e, now| e.close(&peer, now));
            }
            12 => {
                let _ = self.net.act(own, |e, now| e.probe(&peer, now));
            }
            13 => {
                self.net.tell(own, "and its peer want other children");
                self.pairs[pair].children = 3 - self.pairs[pair].children;
                self.configure(pair, end)?;
                self.pass(Duration::from_millis(7))?;
                self.configure(pair, 1 - end)?;
            }
            14 => self.restart(own)?,
            _ => {
                let span = Duration::from_secs(1 + self.net.below(45));
                self.net
                    .tell(own, &format!("and all others hear nothing for {span:?}"));
                self.net.silenced = true;
                self.silent_until = self.net.now + span;
                self.pass(span)?;
            }
        }
        Ok(())
    }

    /// The process dies; the next one does as the agent does: it reaches for all its peers.
    fn restart(&mut self, node: usize) -> Result<(), String> {
        self.net.restart(node);
        for pair in 0..self.pairs.len() {
            let ends = self.pairs[pair].ends;
            let Some(end) = ends.iter().position(|n| *n == node) else {
                continue;
            };
            self.configure(pair, end)?;
            let peer = peer_id(ends[1 - end]);
            let _ = self.net.act(node, |e, now| e.reauthenticate(&peer, now));
        }
        Ok(())
    }

    /// Lets time pass.
    fn pass(&mut self, span: Duration) -> Result<(), String> {
        let end = self.net.now + span;
        for _ in 0..STEPS {
            self.take();
            if let Some(broken) = &self.net.broken {
                return Err(broken.clone());
            }
            let mut next = end.min(self.next_esp.max(self.net.now));
            if let Some((at, _)) = self.flying.keys().next() {
                next = next.min(*at);
            }
            if let Some(at) = self.net.next_timeout() {
                next = next.min(at);
            }
            self.net.now = self.net.now.max(next);
            if self.net.now >= end {
                self.net.now = end;
                return Ok(());
            }
            self.net.fire();
            if self.next_esp <= self.net.now {
                self.next_esp = self.net.now + Duration::from_millis(250);
                for packet in self.net.esp() {
                    self.fly(Packet::Esp(packet));
                }
            }
            while let Some(entry) = self.flying.first_entry() {
                if entry.key().0 > self.net.now {
                    break;
                }
                match entry.remove() {
                    Packet::Ike(datagram) => self.net.deliver(&datagram),
                    Packet::Esp(packet) => self.net.deliver_esp(&packet),
                }
            }
        }
        Err("the engines talk without end".into())
    }

    /// Puts what was sent on its way.
    fn take(&mut self) {
        for datagram in std::mem::take(&mut self.net.sent) {
            self.outcome.datagrams += 1;
            if self.net.below(100) < self.weather.duplicates {
                self.fly(Packet::Ike(datagram.clone()));
            }
            self.fly(Packet::Ike(datagram));
        }
    }

    fn fly(&mut self, packet: Packet) {
        if self.net.now < self.silent_until || self.net.below(100) < self.weather.loss {
            self.outcome.lost += 1;
            return;
        }
        let late = 5 + self.net.below(self.weather.jitter + 1);
        let at = self.net.now + Duration::from_millis(late);
        self.order += 1;
        self.flying.insert((at, self.order), packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(range: std::ops::Range<u64>) {
        for seed in range {
            if let Err(text) = run(seed) {
                panic!("{text}");
            }
        }
    }

    // In parts, so that they run beside each other.
    #[test]
    fn seeds_converge_1() {
        seeds(1..101);
    }

    #[test]
    fn seeds_converge_2() {
        seeds(101..201);
    }

    #[test]
    fn seeds_converge_3() {
        seeds(201..301);
    }
}
