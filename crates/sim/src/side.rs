//! One of two engines in the search: what it comes to by each row of inputs is learned once.
//!
//! An engine decides everything by what it was told and when, so the row of its inputs names its
//! state. A step that was taken once is remembered with what it came to. An engine cannot be
//! copied (its keys cannot); to take a new step from a state that was left, a new engine is
//! given the state's inputs again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use testudo_crypto::DangerousSeededRandom;
use testudo_ike::{Counters, IkeStatus};
use testudo_model::ChildId;

use crate::node::{Datagram, Node, Twin};
use crate::scene::{self, Command, Scene};

/// A datagram by its content.
pub(crate) type Name = u64;

/// What happens to an engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    Datagram(Name),
    /// Its deadlines that have passed fire.
    Fire,
    /// An ESP packet came in on a child.
    Esp(ChildId),
    Command(Command),
}

/// A state of an engine.
pub(crate) type StateId = u32;

/// What can be seen of a state.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) twin: Arc<Twin>,
    pub(crate) status: Arc<Vec<IkeStatus>>,
    pub(crate) next: Option<Duration>,
}

struct Known {
    before: Option<(StateId, Duration, Input)>,
    seen: Seen,
}

/// What a step comes to.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) to: StateId,
    pub(crate) sent: Arc<Vec<Name>>,
}

pub(crate) struct Side {
    scene: Scene,
    n: usize,
    seed: u64,
    known: Vec<Known>,
    steps: HashMap<(StateId, Duration, Input), Step>,
    live: Node,
    /// The state of `live`.
    at: StateId,
    tells: bool,
}

/// The datagrams of a search.
#[derive(Default)]
pub(crate) struct Mail {
    all: HashMap<Name, Datagram>,
}

impl Mail {
    pub(crate) fn name(&mut self, datagram: Datagram) -> Name {
        let to = datagram.to.to_string();
        let digest = testudo_crypto::sha256(&[to.as_bytes(), &datagram.bytes]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        let name = u64::from_be_bytes(first);
        self.all.entry(name).or_insert(datagram);
        name
    }

    pub(crate) fn get(&self, name: Name) -> &Datagram {
        &self.all[&name]
    }
}

impl Side {
    pub(crate) fn new(scene: Scene, n: usize, seed: u64, tells: bool) -> Self {
        let live = node(scene, n, seed, tells);
        let seen = see(&live, None);
        Self {
            scene,
            n,
            seed,
            known: vec![Known { before: None, seen }],
            steps: HashMap::new(),
            live,
            at: 0,
            tells,
        }
    }

    pub(crate) fn seen(&self, id: StateId) -> &Seen {
        &self.known[id as usize].seen
    }

    /// How many states are known.
    pub(crate) fn states(&self) -> usize {
        self.known.len()
    }

    /// What was told since it was last taken.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.live.lines)
    }

    /// Gives a state an input.
    pub(crate) fn step(
        &mut self,
        from: StateId,
        now: Duration,
        input: &Input,
        mail: &mut Mail,
    ) -> Result<Step, String> {
        let key = (from, now, input.clone());
        if let Some(step) = self.steps.get(&key) {
            return Ok(step.clone());
        }
        if self.at != from {
            self.go_to(from, mail)?;
        }
        let before = Quiet::of(&self.live);
        apply(&mut self.live, now, input, mail)?;
        let sent = std::mem::take(&mut self.live.sent);
        let sent: Vec<Name> = sent.into_iter().map(|d| mail.name(d)).collect();
        let to = if before.is_kept_by(&self.live, sent.len()) {
            from
        } else {
            let seen = see(&self.live, Some(self.seen(from)));
            self.known.push(Known {
                before: Some((from, now, input.clone())),
                seen,
            });
            StateId::try_from(self.known.len() - 1).expect("fewer states than 2^32")
        };
        self.at = to;
        let step = Step {
            to,
            sent: Arc::new(sent),
        };
        self.steps.insert(key, step.clone());
        match self.live.broken.take() {
            Some(broken) => Err(broken),
            None => Ok(step),
        }
    }

    /// A new engine is led to a state.
    fn go_to(&mut self, state: StateId, mail: &Mail) -> Result<(), String> {
        let mut inputs = Vec::new();
        let mut id = state;
        while let Some((before, now, input)) = &self.known[id as usize].before {
            inputs.push((*now, input.clone()));
            id = *before;
        }
        self.live = node(self.scene, self.n, self.seed, self.tells);
        for (now, input) in inputs.iter().rev() {
            apply(&mut self.live, *now, input, mail)?;
        }
        self.live.sent.clear();
        self.live.lines.clear();
        self.at = state;
        Ok(())
    }
}

fn node(scene: Scene, n: usize, seed: u64, tells: bool) -> Node {
    let random = DangerousSeededRandom::new(seed * 2 + n as u64);
    let mut node = Node::new(n, scene.config(), Box::new(random));
    node.tells = tells;
    node
}

fn apply(node: &mut Node, now: Duration, input: &Input, mail: &Mail) -> Result<(), String> {
    match input {
        Input::Datagram(name) => node.deliver(now, mail.get(*name)),
        Input::Fire => node.fire(now),
        Input::Esp(child) => node.hear(now, *child),
        Input::Command(command) => {
            let (n, command) = (node.number, *command);
            node.tell(&format!("is told: {command:?}"));
            node.act(now, |e, at| scene::tell(e, n, command, at))?;
        }
    }
    Ok(())
}

fn see(node: &Node, before: Option<&Seen>) -> Seen {
    let status = node.engine.status();
    let same_twin = before.filter(|b| b.twin.version == node.twin.version);
    let same_status = before.filter(|b| *b.status == status);
    Seen {
        twin: same_twin.map_or_else(|| Arc::new(node.twin.clone()), |b| b.twin.clone()),
        status: same_status.map_or_else(|| Arc::new(status), |b| b.status.clone()),
        next: node.next_timeout(),
    }
}

/// What is the same before and after a datagram that changes nothing: it was dropped before it
/// was believed, or the last answer was sent again. The engine's own counters say so.
struct Quiet {
    counters: Counters,
    version: u64,
    next: Option<Duration>,
}

impl Quiet {
    fn of(node: &Node) -> Self {
        Self {
            counters: node.engine.counters().clone(),
            version: node.twin.version,
            next: node.next_timeout(),
        }
    }

    fn is_kept_by(&self, node: &Node, sent: usize) -> bool {
        let (old, new) = (&self.counters, node.engine.counters());
        let drops = |c: &Counters| c.drops.values().sum::<u64>();
        let dropped = drops(new) - drops(old) == 1 && sent == 0;
        let repeated = new.answers_repeated - old.answers_repeated == 1 && sent > 0;
        new.datagrams_in - old.datagrams_in == 1
            && (dropped || repeated)
            && self.version == node.twin.version
            && self.next == node.next_timeout()
            && old.failures == new.failures
            && (old.attempts, old.retransmits) == (new.attempts, new.retransmits)
    }
}
