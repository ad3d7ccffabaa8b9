//! A controller and some nodes in random order: each learns of the bundle, of answers and of its peers
//! whenever chance lets it, exchanges end late, nodes join, leave, restart and are down, the controller
//! is killed between any two writes, and the user takes rotations back. After each step the two rules
//! of the [module](super) are checked, and at the end, when chance is over, that the rotation arrives.
//!
//! `TESTUDO_SEED=n` replays one run.

use std::collections::{BTreeMap, BTreeSet};

use testudo_model::{Authorities, CaPhase};

use crate::chance::Chance;

use super::{Known, Life, Standing, Step, decide};

const SEEDS: u64 = 300;
const STEPS: usize = 900;
const MOST_NODES: usize = 5;

/// A node's request as it stands in the store.
#[derive(Clone, Debug)]
struct Request {
    number: u64,
    /// The CA of the certificate that answers it.
    answer: Option<String>,
}

/// An agent: what it has in memory, and on its disk.
#[derive(Default)]
struct Agent {
    up: bool,
    /// The bundle as it was last told.
    view: Vec<String>,
    certificate: Option<String>,
    pending: Option<u64>,
    presented: Option<String>,
    showing: BTreeSet<String>,
    /// Peers with which it is to authenticate anew, and since when.
    open: BTreeMap<String, u64>,
    /// The CA that each peer last showed, and when.
    shown: BTreeMap<String, (String, u64)>,
    /// It has been told the bundle since its object stands in the store. Before that, nobody can know
    /// what it trusts, and it has no tunnels to lose.
    settled: bool,
    published: bool,
}

/// An IKE SA, or an exchange that makes one.
struct Sa {
    ends: [String; 2],
    /// The CA of the certificate that each end shows in it.
    shows: [String; 2],
    /// Where it stands already.
    up: [bool; 2],
}

struct World {
    chance: Chance,
    clock: u64,
    // The controller's disk and memory.
    standing: Standing,
    decided: Option<Step>,
    // The store.
    asked: u64,
    take_back: Option<u64>,
    bundle: Vec<String>,
    said: BTreeMap<String, Authorities>,
    requests: BTreeMap<String, Request>,
    // The nodes.
    agents: BTreeMap<String, Agent>,
    sas: Vec<Sa>,
    made: usize,
    cas: usize,
    rotations: BTreeSet<(u64, CaPhase, bool)>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let standing = Standing::settled("ca0");
        let mut world = World {
            chance: Chance(seed),
            clock: 0,
            bundle: standing.trusted().map(str::to_owned).collect(),
            standing,
            decided: None,
            asked: 0,
            take_back: None,
            said: BTreeMap::new(),
            requests: BTreeMap::new(),
            agents: BTreeMap::new(),
            sas: Vec::new(),
            made: 0,
            cas: 1,
            rotations: BTreeSet::new(),
            log: Vec::new(),
        };
        for _ in 0..2 + world.chance.below(2) {
            world.join();
        }
        world
    }

    fn join(&mut self) {
        let name = format!("n{}", self.made);
        self.made += 1;
        self.log.push(format!("{name} joins"));
        let agent = Agent {
            up: true,
            view: self.bundle.clone(),
            ..Agent::default()
        };
        self.agents.insert(name, agent);
    }

    fn leave(&mut self, name: &str) {
        self.log.push(format!("{name} leaves"));
        self.agents.remove(name);
        self.said.remove(name);
        self.requests.remove(name);
        self.sas.retain(|sa| !sa.ends.iter().any(|end| end == name));
    }

    /// Its memory is gone, its disk is not; peers do not notice at once.
    fn stop(&mut self, name: &str) {
        self.log.push(format!("{name} stops"));
        if let Some(agent) = self.agents.get_mut(name) {
            let (certificate, pending) = (agent.certificate.take(), agent.pending);
            *agent = Agent {
                certificate,
                pending,
                view: std::mem::take(&mut agent.view),
                settled: agent.settled,
                published: agent.published,
                ..Agent::default()
            };
        }
        for sa in &mut self.sas {
            for end in 0..2 {
                sa.up[end] &= sa.ends[end] != name;
            }
        }
        self.sas.retain(|sa| sa.up.contains(&true));
    }

    fn start(&mut self, name: &str) {
        let bundle = self.bundle.clone();
        if let Some(agent) = self.agents.get_mut(name)
            && !agent.up
        {
            self.log.push(format!("{name} starts"));
            agent.up = true;
            agent.settled |= agent.published;
            agent.view = bundle;
            self.renewed(name);
        }
    }

    fn learn(&mut self, name: &str) {
        let bundle = self.bundle.clone();
        let Some(agent) = self.agents.get_mut(name).filter(|a| a.up) else {
            return;
        };
        if agent.view != bundle {
            self.log.push(format!("{name} trusts {bundle:?}"));
        }
        agent.settled |= agent.published;
        agent.view = bundle;
    }

    /// The engine has a certificate: peers that are connected are to see it.
    fn renewed(&mut self, name: &str) {
        self.clock += 1;
        let connected = self.connected(name);
        if let Some(agent) = self.agents.get_mut(name) {
            agent.open = connected
                .into_iter()
                .map(|peer| (peer, self.clock))
                .collect();
            agent.showing.extend(agent.certificate.clone());
        }
        self.presents(name);
    }

    fn presents(&mut self, name: &str) {
        if let Some(agent) = self.agents.get_mut(name)
            && agent.open.is_empty()
            && agent.certificate.is_some()
        {
            agent.presented.clone_from(&agent.certificate);
            agent.showing.clear();
        }
    }

    fn connected(&self, name: &str) -> BTreeSet<String> {
        let mut peers = BTreeSet::new();
        for sa in &self.sas {
            for end in 0..2 {
                if sa.ends[end] == name && sa.up[end] {
                    peers.insert(sa.ends[1 - end].clone());
                }
            }
        }
        peers
    }

    /// Writes what the agent says now, and then its request, which may be prevented by a kill.
    fn publish(&mut self, name: &str, kill: bool) {
        let peers = self.standing_on(name);
        let Some(agent) = self.agents.get_mut(name).filter(|a| a.up) else {
            return;
        };
        agent.published = true;
        let says = Authorities {
            trusted: agent.view.clone(),
            presented: agent.presented.clone(),
            showing: agent.showing.iter().cloned().collect(),
            peers,
            asking: agent.pending.is_some(),
        };
        let pending = agent.pending;
        self.said.insert(name.to_owned(), says);
        if let Some(number) = pending
            && !kill
            && self.requests.get(name).is_none_or(|r| r.number != number)
        {
            let answer = None;
            self.requests
                .insert(name.to_owned(), Request { number, answer });
        }
    }

    /// The CAs of peers' certificates on which SAs stand at this end.
    fn standing_on(&self, name: &str) -> Vec<String> {
        let mut cas = BTreeSet::new();
        for sa in &self.sas {
            for end in 0..2 {
                if sa.ends[end] == name && sa.up[end] {
                    cas.insert(sa.shows[1 - end].clone());
                }
            }
        }
        cas.into_iter().collect()
    }

    /// What `Certificates::consider` does, in an order of its own: turns only make it rarer.
    fn consider(&mut self, name: &str) {
        let early = self.chance.one_in(8);
        let give_up = self.chance.one_in(4);
        let answer = self.requests.get(name).cloned();
        let Some(agent) = self.agents.get_mut(name).filter(|a| a.up) else {
            return;
        };
        if let Some(number) = agent.pending {
            let answer = answer.filter(|r| r.number == number).and_then(|r| r.answer);
            let Some(ca) = answer else { return };
            if agent.view.contains(&ca) {
                self.log.push(format!("{name} takes a certificate of {ca}"));
                agent.certificate = Some(ca);
                agent.pending = None;
                self.renewed(name);
            } else if give_up {
                self.log.push(format!("{name} gives up one of {ca}"));
                agent.pending = None;
            }
            return;
        }
        let signer = agent.view.first();
        if early || agent.certificate.is_none() || agent.certificate.as_ref() != signer {
            self.clock += 1;
            agent.pending = Some(self.clock);
        }
    }

    /// Begins an exchange, with the certificates that both ends have now.
    fn begin(&mut self, a: &str, b: &str) {
        let shown = |name: &str| {
            let agent = self
                .agents
                .get(name)
                .filter(|agent| agent.up && agent.published)?;
            agent.certificate.clone()
        };
        if let (Some(ca_a), Some(ca_b), true) = (shown(a), shown(b), a != b) {
            self.sas.push(Sa {
                ends: [a.to_owned(), b.to_owned()],
                shows: [ca_a, ca_b],
                up: [false, false],
            });
        }
    }

    /// The exchange gets to one end, or an SA that has a successor goes.
    fn go_on(&mut self, which: usize) {
        if which >= self.sas.len() {
            return;
        }
        self.clock += 1;
        let end = usize::from(self.sas[which].up[0]);
        let sa = &self.sas[which];
        let (name, peer) = (sa.ends[end].clone(), sa.ends[1 - end].clone());
        let ca = sa.shows[1 - end].clone();
        if sa.up == [true, true] {
            // Replaced by a newer one that stands at both ends?
            let pair: BTreeSet<&String> = sa.ends.iter().collect();
            let newer = self.sas[which + 1..].iter().any(|other| {
                other.up == [true, true] && other.ends.iter().collect::<BTreeSet<_>>() == pair
            });
            if newer {
                self.sas.remove(which);
            }
            return;
        }
        let Some(agent) = self.agents.get_mut(&name).filter(|a| a.up) else {
            self.sas.remove(which);
            return;
        };
        if !agent.view.contains(&ca) {
            // Only before a node has settled: the rules are checked elsewhere.
            self.sas.remove(which);
            return;
        }
        agent.shown.insert(peer.clone(), (ca, self.clock));
        if agent
            .open
            .get(&peer)
            .is_some_and(|since| *since <= self.clock)
        {
            agent.open.remove(&peer);
        }
        self.sas[which].up[end] = true;
        self.presents(&name);
    }

    /// `late_certificates` and the reauthentications that are due.
    fn reauthenticate(&mut self, name: &str) {
        let connected = self.connected(name);
        let Some(agent) = self.agents.get_mut(name).filter(|a| a.up) else {
            return;
        };
        agent.open.retain(|peer, _| connected.contains(peer));
        let signer = agent.view.first().cloned();
        let late: Vec<String> = agent
            .shown
            .iter()
            .filter(|(peer, (ca, _))| {
                let says = self
                    .said
                    .get(*peer)
                    .and_then(|said| said.presented.as_ref());
                Some(ca) != signer.as_ref() && says == signer.as_ref() && connected.contains(*peer)
            })
            .map(|(peer, _)| peer.clone())
            .collect();
        // What is asked of a peer does not count for what it has seen of us.
        let open: BTreeSet<String> = agent.open.keys().chain(&late).cloned().collect();
        self.presents(name);
        for peer in open {
            self.begin(name, &peer);
        }
    }

    /// One write of the controller. Nothing that it remembers between two is needed.
    fn controller(&mut self) {
        let names: Vec<String> = self.standing.trusted().map(str::to_owned).collect();
        if self.bundle != names {
            self.log.push(format!("bundle {names:?}"));
            self.bundle = names;
            return;
        }
        let open = self.requests.iter_mut().find(|(_, r)| r.answer.is_none());
        if let Some((name, request)) = open {
            let ca = self.standing.signer.clone();
            self.log.push(format!("{name} is answered by {ca}"));
            request.answer = Some(ca);
            return;
        }
        // What was decided is written a moment later.
        let Some(step) = self.decided.take() else {
            self.decided = self.decide();
            return;
        };
        let next = format!("ca{}", self.cas);
        self.standing = self.standing.after(step, Some(&next));
        self.cas += usize::from(matches!(step, Step::Begin(_)));
        let standing = &self.standing;
        self.rotations
            .insert((standing.rotation, standing.phase, standing.taken_back));
        self.log.push(format!("{step:?}: {standing:?}"));
    }

    fn decide(&self) -> Option<Step> {
        let words = self.said.iter().map(|(name, said)| (name.as_str(), said));
        let nodes: Vec<_> = words.collect();
        let known = Known {
            standing: &self.standing,
            asked: Some(self.asked),
            take_back: self.take_back,
            due: false,
            signer_life: Life::Good,
            other_life: Life::Good,
            sure: true,
            off: false,
            nodes: &nodes,
            unreadable: &[],
        };
        decide(&known).step
    }

    fn step(&mut self) {
        let names: Vec<String> = self.agents.keys().cloned().collect();
        let any = |world: &mut World| names[world.chance.below(names.len())].clone();
        let (a, b) = (any(self), any(self));
        match self.chance.below(100) {
            0..8 => self.learn(&a),
            8..20 => {
                let kill = self.chance.one_in(8);
                self.publish(&a, kill);
                if kill {
                    self.stop(&a);
                }
            }
            20..34 => self.consider(&a),
            34..40 => self.begin(&a, &b),
            40..62 => {
                let which = self.chance.below(self.sas.len().max(1));
                self.go_on(which);
            }
            62..72 => self.reauthenticate(&a),
            72..92 => self.controller(),
            // Killed: all that it had decided is forgotten.
            92..94 => self.decided = None,
            94 if self.chance.one_in(2) => self.stop(&a),
            95 | 96 => self.start(&a),
            97 if names.len() < MOST_NODES && self.chance.one_in(3) => self.join(),
            97 if names.len() > 2 && self.chance.one_in(6) => self.leave(&a),
            98 if self.chance.one_in(3) && self.standing.phase == CaPhase::Settled => {
                self.asked = self.standing.answered + 1;
            }
            99 if self.standing.phase == CaPhase::Issuing || self.chance.one_in(6) => {
                self.take_back = Some(self.standing.rotation);
            }
            _ => {}
        }
    }

    fn check(&self) {
        for (x, shower) in self.agents.iter().filter(|(_, a)| a.settled) {
            for (y, judge) in self.agents.iter().filter(|(y, a)| a.settled && *y != x) {
                let trusts = |ca: &String| judge.view.contains(ca);
                let bad = shower.certificate.iter().find(|ca| !trusts(ca));
                // An agent that is down shows nothing, and takes another one first when its CA is gone.
                if let Some(ca) = bad.filter(|_| shower.up) {
                    self.fail(&format!(
                        "{x} shows a certificate of {ca}, {y} trusts {:?}",
                        judge.view
                    ));
                }
                for sa in &self.sas {
                    for end in 0..2 {
                        let here = sa.ends[end] == *y && sa.ends[1 - end] == *x && sa.up[end];
                        if here && !trusts(&sa.shows[1 - end]) {
                            let ca = &sa.shows[1 - end];
                            self.fail(&format!("{y} has an SA on {x}'s certificate of {ca}"));
                        }
                    }
                }
            }
        }
    }

    /// Everybody does all it can, until nothing changes any more.
    fn finish(&mut self) {
        self.take_back = None;
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for _ in 0..120 {
            if self.has_arrived() {
                return;
            }
            for a in &names {
                self.start(a);
                self.learn(a);
                self.publish(a, false);
                self.controller();
                self.consider(a);
                for b in &names {
                    if a < b && !self.connected(a).contains(b) {
                        self.begin(a, b);
                    }
                }
                self.reauthenticate(a);
                for which in (0..self.sas.len()).rev() {
                    self.go_on(which);
                    self.go_on(which);
                }
                // A peer without an SA at the other end is found dead.
                self.sas.retain(|sa| sa.up[0] == sa.up[1]);
                self.check();
            }
        }
        self.fail(&format!(
            "it does not arrive: {:?}, {:#?}",
            self.standing, self.said
        ));
    }

    /// One CA, which signs, which all trust and no other, and of which all have certificates.
    fn has_arrived(&self) -> bool {
        let standing = &self.standing;
        let only = [standing.signer.clone()];
        standing.phase == CaPhase::Settled
            && standing.answered == self.asked
            && self.agents.values().all(|agent| {
                agent.up && agent.view == only && agent.certificate.as_ref() == Some(&only[0])
            })
    }

    fn fail(&self, what: &str) -> ! {
        let from = self.log.len().saturating_sub(60);
        panic!("{what}\n{}", self.log[from..].join("\n"));
    }
}

fn run(seed: u64) -> BTreeSet<(u64, CaPhase, bool)> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        world.check();
    }
    world.finish();
    world.rotations
}

#[test]
fn in_any_order_no_node_shows_what_another_does_not_trust() {
    if let Ok(seed) = std::env::var("TESTUDO_SEED") {
        println!("{:#?}", run(seed.parse().unwrap()));
        return;
    }
    let mut seen: BTreeMap<(CaPhase, bool), usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        println!("TESTUDO_SEED={seed}");
        for (_, phase, taken_back) in run(seed) {
            *seen.entry((phase, taken_back)).or_default() += 1;
        }
    }
    println!("{seen:#?}");
    // Chance has been everywhere.
    for phase in [CaPhase::Issuing, CaPhase::Retiring, CaPhase::Settled] {
        for taken_back in [false, true] {
            let times = seen.get(&(phase, taken_back)).copied().unwrap_or(0);
            assert!(times > 20, "{phase} {taken_back}: {times}");
        }
    }
}

/// The rules need every part of what a node says: a controller that passes one over breaks them.
#[test]
fn without_any_one_word_of_the_nodes_it_goes_wrong() {
    type Forget = fn(&mut Authorities, &Standing);
    let forgets: [(&str, Forget); 5] = [
        ("trusted", |said, standing| {
            said.trusted = vec![standing.signer.clone()];
            said.trusted.extend(
                standing
                    .other
                    .clone()
                    .filter(|_| standing.phase == CaPhase::Trusting),
            );
        }),
        ("presented", |said, standing| {
            said.presented = Some(standing.signer.clone())
        }),
        ("showing", |said, _| said.showing.clear()),
        ("peers", |said, _| said.peers.clear()),
        ("asking", |said, _| said.asking = false),
    ];
    for (what, forget) in forgets {
        let fails = (0..SEEDS * 4).any(|seed| {
            std::panic::catch_unwind(|| {
                let mut world = World::new(seed);
                for _ in 0..STEPS {
                    world.step();
                    // The controller sees it so; agents write it again when they speak next.
                    let standing = world.standing.clone();
                    for said in world.said.values_mut() {
                        forget(said, &standing);
                    }
                    world.check();
                }
            })
            .is_err()
        });
        assert!(fails, "{what} is not needed");
    }
}
