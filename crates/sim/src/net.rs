//! All nodes, their time, and what must hold between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use testudo_crypto::{DangerousSeededRandom, Random};
use testudo_ike::{Done, Engine, EngineConfig, IkeStatus, Job};
use testudo_model::Now;

use crate::esp::{Datapath, Opened, Packet};
use crate::node::{Datagram, Node, Twin, address};
use crate::rules::{self, Look, Strictness};

/// Lines of the story that a failure shows.
const STORY: usize = 240;

/// An IV under a key: both SPIs of the IKE SA, whether its initiator seals, the IV.
type Sealed = ([u8; 16], bool, [u8; 8]);

/// The nodes, their time, and what became of it.
pub struct Net {
    /// Virtual time.
    pub now: Duration,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// How the rules are meant.
    pub how: Strictness,
    /// The first rule that was broken.
    pub broken: Option<String>,
    /// The addresses that each node has now.
    pub addresses: Vec<Vec<IpAddr>>,
    story: Vec<String>,
    datapaths: Vec<Datapath>,
    configs: Vec<EngineConfig>,
    random: DangerousSeededRandom,
    /// Keys that ESP packets were sealed with.
    esp_keys: BTreeSet<Vec<u8>>,
    /// Keys that IKE messages are sealed with, and how many ends have told them.
    ike_keys: BTreeMap<Vec<u8>, u32>,
    /// What IKE sealed, with a digest of each datagram: one that is sent again is the same.
    sealed: BTreeMap<Sealed, [u8; 32]>,
}

impl Look for Net {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn twin(&self, n: usize) -> &Twin {
        &self.nodes[n].twin
    }

    fn status(&self, n: usize) -> Vec<IkeStatus> {
        self.nodes[n].engine.status()
    }
}

impl Net {
    /// Nodes that know nobody yet, one for each configuration. `seed` decides every nonce, key
    /// and jitter.
    pub fn new(seed: u64, configs: Vec<EngineConfig>) -> Self {
        let mut net = Self {
            now: Duration::from_secs(1),
            nodes: Vec::new(),
            how: Strictness::default(),
            broken: None,
            addresses: (0..configs.len()).map(|n| vec![address(n)]).collect(),
            story: Vec::new(),
            datapaths: configs.iter().map(|_| Datapath::default()).collect(),
            configs,
            random: DangerousSeededRandom::new(seed),
            esp_keys: BTreeSet::new(),
            ike_keys: BTreeMap::new(),
            sealed: BTreeMap::new(),
        };
        for n in 0..net.configs.len() {
            let (config, random) = (net.configs[n].clone(), net.fork());
            net.nodes.push(Node::new(n, config, random));
        }
        net
    }

    fn fork(&mut self) -> Box<dyn Random + Send> {
        let mut seed = [0; 8];
        self.random.fill(&mut seed);
        Box::new(DangerousSeededRandom::new(u64::from_be_bytes(seed)))
    }

    /// The node's process dies and another starts: nothing is remembered.
    pub fn restart(&mut self, n: usize) {
        let (config, random) = (self.configs[n].clone(), self.fork());
        self.nodes[n].now = self.now;
        self.nodes[n].restart(config, random);
        self.datapaths[n] = Datapath::default();
    }

    /// A number below `limit`, from the seed.
    pub fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_be_bytes(bytes) % limit.max(1)
    }

    /// One of a few, from the seed.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let index = self.below(of.len() as u64);
        of[usize::try_from(index).unwrap_or(0)]
    }

    /// Does something to a node's engine, takes what it says, and checks.
    pub fn act<T>(&mut self, n: usize, f: impl FnOnce(&mut Engine, Now) -> T) -> T {
        let out = self.nodes[n].act(self.now, f);
        self.check(n);
        out
    }

    /// Hands a datagram to the node that has its address.
    pub fn deliver(&mut self, datagram: &Datagram) {
        let to = datagram.to.ip();
        if let Some(n) = (0..self.nodes.len()).find(|n| self.addresses[*n].contains(&to)) {
            self.nodes[n].deliver(self.now, datagram);
            self.check(n);
        }
    }

    /// When the next deadline of any node is.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.nodes.iter().filter_map(Node::next_timeout).min()
    }

    /// Fires what is due at all nodes.
    pub fn fire(&mut self) {
        for n in 0..self.nodes.len() {
            if self.nodes[n]
                .next_timeout()
                .is_some_and(|at| at <= self.now)
            {
                self.nodes[n].fire(self.now);
                self.check(n);
            }
        }
    }

    /// What was sent since it was last asked.
    pub fn sent(&mut self) -> Vec<Datagram> {
        let all = self.nodes.iter_mut();
        let all: Vec<_> = all.flat_map(|n| std::mem::take(&mut n.sent)).collect();
        for datagram in &all {
            self.note_sealed(datagram);
        }
        // Nothing leaves from an address that its node has no longer.
        let has = |d: &Datagram| self.addresses.iter().any(|a| a.contains(&d.from.ip()));
        all.into_iter().filter(has).collect()
    }

    /// What engines gave away since it was last asked, with the node and which of its lives it is.
    pub fn jobs(&mut self) -> Vec<(usize, u32, Job)> {
        let nodes = self.nodes.iter_mut();
        nodes
            .flat_map(|n| {
                let (number, lives) = (n.number, n.lives);
                std::mem::take(&mut n.jobs)
                    .into_iter()
                    .map(move |job| (number, lives, job))
            })
            .collect()
    }

    /// What came of a job, if the process that gave it away still lives.
    pub fn deliver_done(&mut self, n: usize, lives: u32, done: Done) {
        if self.nodes[n].lives == lives {
            self.act(n, |e, now| e.handle_done(now, done));
        }
    }

    /// A packet for each child that a node sends on.
    pub fn esp(&mut self) -> Vec<Packet> {
        let mut all = Vec::new();
        for n in 0..self.nodes.len() {
            match self.datapaths[n].seal(&self.nodes[n], &mut self.esp_keys) {
                Ok(packets) => all.extend(packets),
                Err(text) => self.break_rule(n, &text),
            }
        }
        all
    }

    /// A packet arrives.
    pub fn deliver_esp(&mut self, packet: &Packet) {
        let n = packet.to;
        match self.datapaths[n].open(&self.nodes[n], packet) {
            Ok(Opened::On(child)) => {
                self.nodes[n].hear(self.now, child);
                self.check(n);
            }
            Ok(Opened::Broken(reason)) => {
                self.break_rule(n, &format!("cannot open a packet: {}", reason.as_str()));
            }
            // Whether that was right is decided by what was known when it was sealed.
            Ok(Opened::Unknown(_)) => {}
            Err(text) => self.break_rule(n, &text),
        }
    }

    /// What holds after each step.
    fn check(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        self.story.append(&mut node.lines);
        let keys = std::mem::take(&mut node.ike_keys);
        let own = node.broken.take();
        for key in keys {
            let told = self.ike_keys.entry(key).or_insert(0);
            *told += 1;
            if *told > 2 {
                self.break_rule(n, "a key of an IKE SA came again");
            }
        }
        if let Some(text) = own {
            self.broken.get_or_insert(text);
        }
        if let Some(text) = rules::sending(self, self.how) {
            self.break_rule(n, &text);
        }
    }

    /// No IV is used twice under one key (lesson L23): what has the same is the same datagram.
    fn note_sealed(&mut self, datagram: &Datagram) {
        let bytes = &datagram.bytes;
        let iv_at = match bytes.get(16) {
            Some(46) => 32,
            // A fragment has its number and their number before the IV.
            Some(53) => 36,
            _ => return,
        };
        let (Some(spis), Some(iv)) = (bytes.get(..16), bytes.get(iv_at..iv_at + 8)) else {
            return;
        };
        let mut key: Sealed = ([0; 16], bytes[19] & 0x08 != 0, [0; 8]);
        key.0.copy_from_slice(spis);
        key.2.copy_from_slice(iv);
        let digest = testudo_crypto::sha256(&[bytes]);
        let same = *self.sealed.entry(key).or_insert(digest) == digest;
        if !same {
            self.broken
                .get_or_insert_with(|| format!("IV {iv:02x?} twice, in {}", datagram.from));
        }
    }

    /// Adds a line to the story.
    pub fn tell(&mut self, n: usize, text: &str) {
        self.nodes[n].now = self.now;
        self.nodes[n].tell(text);
        self.story.append(&mut self.nodes[n].lines);
    }

    /// Notes the first breach.
    pub fn break_rule(&mut self, n: usize, text: &str) {
        self.tell(n, &format!("BREACH: {text}"));
        let now = self.now;
        self.broken
            .get_or_insert_with(|| format!("n{n} {text} (at {now:?})"));
    }

    /// The last lines of what happened.
    pub fn story(&self) -> String {
        let skip = self.story.len().saturating_sub(STORY);
        self.story[skip..].join("\n  ")
    }
}
