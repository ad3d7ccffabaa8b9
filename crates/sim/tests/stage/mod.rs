//! Two engines and a script that says which datagram arrives next.
//!
//! A script is a row of words:
//! - `a:rekey`, `a:rekey-ike`, `a:reauth`, `a:close`, `a:up`: what node a is told. `a:drop-child`
//!   and `a:add-child`: its configuration has one child less or more. `a:restart`: its process
//!   dies, and the next one reaches for its peer. `a:passive`: it no longer begins by itself;
//!   `a:remove`: its peer is taken from its configuration.
//! - `a>b:C`: the oldest datagram of that kind from a on its way arrives at b; `a>x:C`: it is
//!   lost; `a>=b:C`: a copy arrives. With `?` at its end: if there is one. Kinds: `S` IKE_SA_INIT, `A` IKE_AUTH, `C` CREATE_CHILD_SA,
//!   `I` INFORMATIONAL; small letters are their answers. A number takes a later one: `C1`.
//! - `3s`: so much time passes, and nothing arrives.
//! - `all`: what is on its way arrives in order, and what that brings, until nothing is.
//!
//! After each step the rules of [`testudo_sim::rules`] hold. At the end the network is fair: ESP
//! flows, all datagrams arrive, and both ends must agree within the bound.

// Each file of tests uses its part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, Random};
use testudo_ike::{EngineConfig, IkeStatus};
use testudo_sim::node::{Datagram, Node, Twin, peer_id};
use testudo_sim::rules::{self, Look, Strictness};
use testudo_sim::scene::{self, Command, Scene};

const BOUND: Duration = Duration::from_secs(200);

/// Gives nonces a rank: of the first 32-byte numbers drawn after it is armed, the one with this
/// index begins with 00, the others with 80 or more.
#[derive(Clone, Default)]
struct Rank(Arc<Mutex<Option<(usize, usize)>>>);

impl Rank {
    fn arm(&self, lowest: usize) {
        *self.0.lock().unwrap() = Some((lowest, 0));
    }

    fn apply(&self, out: &mut [u8]) {
        if let (32, Some((lowest, drawn))) = (out.len(), self.0.lock().unwrap().as_mut()) {
            out[0] = if *drawn == *lowest { 0 } else { out[0] | 0x80 };
            *drawn += 1;
        }
    }
}

struct Ranked(DangerousSeededRandom, Rank);

impl Random for Ranked {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
        self.1.apply(out);
    }
}

/// How the two nodes are set up.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The configuration of each.
    pub(crate) configs: [EngineConfig; 2],
    /// Whether b begins the IKE SA, in place of a.
    pub(crate) swapped: bool,
    /// Children that stand before the script begins. None: nothing stands.
    pub(crate) children: usize,
    /// Whether each starts by itself when nothing stands.
    pub(crate) initiate: [bool; 2],
    /// Which number of 32 bytes is the lowest: whose, and how many it drew before.
    pub(crate) lowest: Option<(usize, usize)>,
}

/// What must stand at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// One IKE SA with so many children.
    Up(usize),
    /// Nothing at either end.
    Nothing,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            configs: [Scene::RekeyChild.config(), Scene::RekeyChild.config()],
            swapped: false,
            children: 1,
            initiate: [true, false],
            lowest: None,
        }
    }
}

/// The two nodes.
pub(crate) struct Stage {
    pub(crate) now: Duration,
    pub(crate) nodes: [Node; 2],
    setup: Setup,
    flying: Vec<Datagram>,
    ranks: [Rank; 2],
    children: [usize; 2],
    story: Vec<String>,
    restarts: u64,
}

impl Look for Stage {
    fn nodes(&self) -> usize {
        2
    }

    fn twin(&self, n: usize) -> &Twin {
        &self.nodes[n].twin
    }

    fn status(&self, n: usize) -> Vec<IkeStatus> {
        self.nodes[n].engine.status()
    }
}

fn random(seed: u64, rank: &Rank) -> Box<dyn Random + Send> {
    Box::new(Ranked(DangerousSeededRandom::new(seed), rank.clone()))
}

impl Stage {
    /// Both ends, with what stands before the script.
    pub(crate) fn new(setup: &Setup, seed: u64) -> Self {
        let ranks = [Rank::default(), Rank::default()];
        let node = |n: usize| {
            let random = random(seed * 2 + n as u64, &ranks[n]);
            Node::new(n, setup.configs[n].clone(), random)
        };
        let mut stage = Self {
            now: Duration::from_secs(1),
            nodes: [node(0), node(1)],
            setup: setup.clone(),
            flying: Vec::new(),
            ranks: ranks.clone(),
            children: [setup.children; 2],
            story: Vec::new(),
            restarts: 0,
        };
        if setup.swapped {
            stage.setup.initiate.swap(0, 1);
        }
        if setup.children > 0 {
            for n in [0, 1] {
                stage.configure(n);
            }
            stage.settle(End::Up(setup.children));
        } else {
            stage.children = [1, 1];
        }
        if let Some((n, index)) = setup.lowest {
            stage.ranks[n].arm(index);
            stage.ranks[1 - n].arm(usize::MAX);
        }
        stage.story.push("--- the script begins".into());
        stage
    }

    fn configure(&mut self, n: usize) {
        let (initiate, children) = (self.setup.initiate[n], self.children[n]);
        self.tell(n, Command::Configure { initiate, children });
    }

    fn tell(&mut self, n: usize, command: Command) {
        let now = self.now;
        self.nodes[n].now = now;
        self.nodes[n].tell(&format!("is told: {command:?}"));
        // A refusal is as good: what was to be rekeyed may have a successor already.
        let _ = self.nodes[n].act(now, |e, at| scene::tell(e, n, command, at));
        self.nodes[n].fire(now);
        self.took();
    }

    /// Takes what was sent, and checks.
    fn took(&mut self) {
        for n in 0..2 {
            let node = &mut self.nodes[n];
            self.story.append(&mut node.lines);
            self.flying.append(&mut node.sent);
            if let Some(broken) = node.broken.take() {
                self.fail(&broken);
            }
        }
        let how = Strictness {
            strict: false,
            silenced: false,
        };
        if let Some(broken) = rules::sending(self, how) {
            self.fail(&broken);
        }
    }

    pub(crate) fn fail(&self, text: &str) -> ! {
        let flying: Vec<_> = self.flying.iter().map(name).collect();
        panic!(
            "{text}\n  {}\n  on their way: {}",
            self.story.join("\n  "),
            flying.join(" ")
        );
    }

    /// Plays a script.
    pub(crate) fn play(&mut self, script: &str) {
        for word in script.split_whitespace() {
            self.story.push(format!("[{word}]"));
            self.word(word);
        }
    }

    fn word(&mut self, word: &str) {
        if word == "all" {
            return self.deliver_all();
        }
        let seconds = word.strip_suffix('s').and_then(|s| s.parse().ok());
        if let Some(seconds) = seconds {
            return self.pass(Duration::from_secs(seconds), false);
        }
        let (who, what) = word.split_at(1);
        let n = usize::from(who == "b");
        let what = match what.strip_suffix('?') {
            Some(kind) if self.position(n, &kind[3..]).is_none() => return,
            Some(what) => what,
            None => what,
        };
        if let Some(command) = what.strip_prefix(':') {
            self.command(n, command);
        } else if let Some(what) = what.strip_prefix(">=") {
            let datagram = self.flying[self.find(n, &what[2..])].clone();
            self.deliver(&datagram);
        } else {
            let datagram = self.flying.remove(self.find(n, &what[3..]));
            if !what.starts_with(">x") {
                self.deliver(&datagram);
            }
        }
    }

    fn command(&mut self, n: usize, command: &str) {
        match command {
            "rekey" => self.tell(n, Command::RekeyChild),
            "rekey-ike" => self.tell(n, Command::RekeyIke),
            "reauth" => self.tell(n, Command::Reauthenticate),
            "close" => self.tell(n, Command::Close),
            "up" => self.configure(n),
            "drop-child" => {
                self.children[n] -= 1;
                self.configure(n);
            }
            "add-child" => {
                self.children[n] += 1;
                self.configure(n);
            }
            "passive" => {
                self.setup.initiate[n] = false;
                self.configure(n);
            }
            "remove" => {
                let (now, peer) = (self.now, peer_id(1 - n));
                self.nodes[n].act(now, |e, at| e.remove_peer(&peer, at));
                self.took();
            }
            "restart" => {
                self.restarts += 1;
                let random = random(1_000 * self.restarts + n as u64, &self.ranks[n]);
                let config = self.setup.configs[n].clone();
                self.nodes[n].now = self.now;
                self.nodes[n].restart(config, random);
                self.configure(n);
                self.tell(n, Command::Reauthenticate);
            }
            _ => self.fail(&format!("no such command: {command}")),
        }
    }

    fn find(&self, from: usize, kind: &str) -> usize {
        match self.position(from, kind) {
            Some(at) => at,
            None => self.fail(&format!("no {kind} of n{from} is on its way")),
        }
    }

    fn position(&self, from: usize, kind: &str) -> Option<usize> {
        let (letter, index) = kind.split_at(1);
        let index: usize = if index.is_empty() {
            0
        } else {
            index.parse().unwrap()
        };
        let wanted = format!("{}:{letter}", ["a", "b"][from]);
        let all = self.flying.iter().enumerate();
        let found = all.filter(|(_, d)| name(d) == wanted).nth(index);
        found.map(|(at, _)| at)
    }

    fn deliver(&mut self, datagram: &Datagram) {
        let n = usize::from(sender(datagram) == 0);
        self.nodes[n].deliver(self.now, datagram);
        self.took();
    }

    fn deliver_all(&mut self) {
        for _ in 0..1_000 {
            if self.flying.is_empty() {
                return;
            }
            let datagram = self.flying.remove(0);
            self.deliver(&datagram);
        }
        self.fail("the engines talk without end");
    }

    /// Time passes; datagrams arrive if `fair`.
    fn pass(&mut self, span: Duration, fair: bool) {
        let end = self.now + span;
        loop {
            if fair {
                self.deliver_all();
                self.esp();
            }
            let next = self.nodes.iter().filter_map(Node::next_timeout).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            for n in 0..2 {
                self.nodes[n].fire(self.now);
            }
            self.took();
        }
        self.now = end;
    }

    /// A packet on each child that is sent on.
    fn esp(&mut self) {
        for n in 0..2 {
            let outs = self.nodes[n].twin.sending.values();
            let outs = outs.filter_map(|c| self.nodes[n].twin.outbound.get(c));
            let inbound = &self.nodes[1 - n].twin.inbound;
            let opened = outs.filter_map(|o| inbound.get(&o.half.spi));
            let children: Vec<_> = opened.map(|half| half.child).collect();
            for child in children {
                self.nodes[1 - n].hear(self.now, child);
                self.took();
            }
        }
    }

    fn wrong(&self, end: End) -> Option<String> {
        match end {
            End::Up(children) => {
                rules::disagreement(self, 0, 1, children).or_else(|| rules::leak(self))
            }
            End::Nothing => {
                let held = self.nodes.iter().map(|n| n.engine.status().len());
                let held: usize = held.sum();
                (held > 0).then(|| format!("{held} IKE SAs stay"))
            }
        }
    }

    /// The network is fair from here on.
    pub(crate) fn settle(&mut self, end: End) {
        let last = self.now + BOUND;
        while let Some(wrong) = self.wrong(end) {
            if self.now > last {
                self.fail(&format!("no agreement within {BOUND:?}: {wrong}"));
            }
            self.pass(Duration::from_secs(1), true);
        }
    }

    /// Which end made the child of a name that stands: 'a' or 'b'.
    pub(crate) fn maker(&self, child: &str) -> char {
        let twin = &self.nodes[0].twin;
        let mut all = twin.outbound.values().filter(|o| o.purpose.1 == child);
        match all.next() {
            Some(out) if out.ours => 'a',
            Some(_) => 'b',
            None => '-',
        }
    }

    /// Which end made the IKE SA that stands.
    pub(crate) fn ike_maker(&self) -> char {
        match self.nodes[0].engine.status().first() {
            Some(status) if status.initiator => 'a',
            Some(_) => 'b',
            None => '-',
        }
    }
}

fn sender(datagram: &Datagram) -> usize {
    usize::from(datagram.from.ip() == testudo_sim::node::address(1))
}

fn name(datagram: &Datagram) -> String {
    let (kind, flags) = (datagram.bytes[18], datagram.bytes[19]);
    let letter = match kind {
        34 => "S",
        35 => "A",
        36 => "C",
        37 => "I",
        _ => "?",
    };
    let letter = if flags & 0x20 != 0 {
        letter.to_lowercase()
    } else {
        letter.to_owned()
    };
    format!("{}:{letter}", ["a", "b"][sender(datagram)])
}
