//! Every order in which the datagrams of two engines can arrive.
//!
//! While datagrams are on their way, the next step is one of them arriving, or being lost, or
//! arriving while a copy stays behind, or a deadline firing before they arrive (so that requests
//! on their way are sent again: it counts as a copy). When none is on its way, the next deadline
//! fires. This goes on to the horizon; then the network is fair, and both must agree.
//!
//! Orders that lead to the same are walked once. What is the same is decided without looking
//! into an engine: an engine's state is the row of its inputs ([`crate::side`]), and what lies
//! between two engines are the datagrams on their way. So two orders meet when each engine saw
//! the same in the same order, at the same time: time passes only when deadlines fire. The number
//! of orders is that of all ways through the states, not of the states.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use testudo_ike::IkeStatus;

use crate::node::{Datagram, Twin, address};
use crate::rules::{self, Look, Strictness};
use crate::scene::{Command, Scene};
use crate::side::{Input, Mail, Name, Side, StateId};

/// How much is walked.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Datagrams lost in one order, at most.
    pub losses: u8,
    /// Datagrams that arrive twice in one order, at most.
    pub duplicates: u8,
    /// ESP packets arrive whenever no datagram is on its way.
    pub traffic: bool,
    /// States of one scene, at most.
    pub states: usize,
}

/// The bounds of a full search.
pub const FULL: Bounds = Bounds {
    losses: 2,
    duplicates: 1,
    traffic: false,
    states: 4_000_000,
};

/// The bounds of a full search of one scene. Two crossing reauthentications send so much on
/// three IKE SAs that a copy of each datagram would mean some ten million states.
pub fn full(scene: Scene) -> Bounds {
    match scene {
        Scene::Reauthenticate => Bounds {
            losses: 1,
            duplicates: 0,
            ..FULL
        },
        _ => FULL,
    }
}

/// What a search came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walked {
    /// Orders walked.
    pub orders: u128,
    /// Different states of both engines and the network between them.
    pub states: usize,
    /// Different states of each engine.
    pub engines: [usize; 2],
    /// Ways not gone because [`Bounds::states`] was reached.
    pub cut: u64,
}

/// From the scene's begin until when datagrams are lost, doubled and reordered: what was lost
/// twice has been sent again by then.
const HORIZON: Duration = Duration::from_secs(4);

/// How long two engines have, once the network is fair, to agree.
const BOUND: Duration = Duration::from_secs(200);

/// Steps of one order after which it goes in circles.
const STEPS: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    at: [StateId; 2],
    /// Datagrams on their way, sorted.
    flying: Vec<Name>,
    now: Duration,
    losses: u8,
    duplicates: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Deliver(Name),
    Lose(Name),
    Double(Name),
    /// The next deadline fires.
    Time,
    /// The same while datagrams are on their way.
    Early,
    /// ESP packets arrive.
    Esp,
}

impl Choice {
    /// As it stands in a command line: told by content, so it is the same in each run.
    fn text(self) -> String {
        let short = |name: Name| format!("{:06x}", name >> 40);
        match self {
            Self::Deliver(name) => short(name),
            Self::Lose(name) => format!("-{}", short(name)),
            Self::Double(name) => format!("+{}", short(name)),
            Self::Time => "t".into(),
            Self::Early => "early".into(),
            Self::Esp => "esp".into(),
        }
    }
}

struct Frame {
    state: State,
    options: Vec<Choice>,
    next: usize,
    orders: u128,
}

/// Walks all orders of a scene within the bounds. An error tells the breach, the story, and how
/// to see it again.
pub fn walk(scene: Scene, seed: u64, bounds: Bounds) -> Result<Walked, String> {
    let mut search = Search::new(scene, seed, bounds, false);
    let first = search.begin().map_err(|e| format!("{scene:?}: {e}"))?;
    search.all(first)
}

/// One order, told step by step: `choices` as a failure of [`walk`] names them.
pub fn replay(scene: Scene, seed: u64, bounds: Bounds, choices: &str) -> Result<String, String> {
    let mut search = Search::new(scene, seed, bounds, true);
    let mut story = Vec::new();
    let done = search.retell(choices, &mut story);
    let story = story.join("\n  ");
    match done {
        Ok(()) => Ok(story),
        Err(text) => Err(format!("{scene:?}: {text}\n  {story}")),
    }
}

struct Search {
    scene: Scene,
    seed: u64,
    bounds: Bounds,
    sides: [Side; 2],
    mail: Mail,
    begun: Duration,
    calmed: HashSet<([StateId; 2], Vec<Name>, Duration)>,
    cut: u64,
}

/// Both sides in one state.
struct Both<'a> {
    sides: &'a [Side; 2],
    at: [StateId; 2],
}

impl Look for Both<'_> {
    fn nodes(&self) -> usize {
        2
    }

    fn twin(&self, n: usize) -> &Twin {
        &self.sides[n].seen(self.at[n]).twin
    }

    fn status(&self, n: usize) -> Vec<IkeStatus> {
        self.sides[n].seen(self.at[n]).status.to_vec()
    }
}

impl Search {
    fn new(scene: Scene, seed: u64, bounds: Bounds, tells: bool) -> Self {
        Self {
            scene,
            seed,
            bounds,
            sides: [0, 1].map(|n| Side::new(scene, n, seed, tells)),
            mail: Mail::default(),
            begun: Duration::ZERO,
            calmed: HashSet::new(),
            cut: 0,
        }
    }

    /// Brings both ends to where the scene starts, and lets both act.
    fn begin(&mut self) -> Result<State, String> {
        let mut state = State {
            at: [0, 0],
            flying: Vec::new(),
            now: Duration::from_secs(1),
            losses: self.bounds.losses,
            duplicates: self.bounds.duplicates,
        };
        let (children, both) = self.scene.before();
        for (n, initiate) in [(1, both), (0, true)] {
            let command = Command::Configure { initiate, children };
            self.input(&mut state, n, &Input::Command(command))?;
        }
        if !self.scene.stands_before() {
            self.pass(&mut state)?;
        } else {
            self.calm(&mut state, children)?;
            while self.esp(&mut state)? {}
            self.calm(&mut state, children)?;
        }
        for (n, command) in self.scene.commands() {
            self.input(&mut state, n, &Input::Command(command))?;
        }
        state.flying.sort_unstable();
        self.begun = state.now;
        self.calmed.clear();
        Ok(state)
    }

    fn all(&mut self, first: State) -> Result<Walked, String> {
        let mut known: HashMap<State, u128> = HashMap::new();
        let options = self.options(&first);
        let mut frames = vec![Frame {
            state: first,
            options,
            next: 0,
            orders: 0,
        }];
        let mut total = 0;
        while let Some(frame) = frames.last_mut() {
            if let Some(choice) = frame.options.get(frame.next).copied() {
                frame.next += 1;
                let mut state = frame.state.clone();
                if let Err(text) = self.take(&mut state, choice) {
                    return Err(self.failure(&frames, &text));
                }
                if let Some(orders) = known.get(&state) {
                    frame.orders = frame.orders.saturating_add(*orders);
                } else if known.len() >= self.bounds.states {
                    self.cut += 1;
                } else {
                    let options = self.options(&state);
                    frames.push(Frame {
                        state,
                        options,
                        next: 0,
                        orders: 0,
                    });
                }
                continue;
            }
            if frame.options.is_empty() {
                frame.orders = 1;
                let end = frame.state.clone();
                if let Err(text) = self.end(end) {
                    return Err(self.failure(&frames, &text));
                }
            }
            let done = frames.pop().expect("the loop looked at it");
            match frames.last_mut() {
                Some(up) => up.orders = up.orders.saturating_add(done.orders),
                None => total = done.orders,
            }
            known.insert(done.state, done.orders);
        }
        Ok(Walked {
            orders: total,
            states: known.len(),
            engines: [self.sides[0].states(), self.sides[1].states()],
            cut: self.cut,
        })
    }

    /// What can happen next. Nothing: the horizon is reached.
    fn options(&self, state: &State) -> Vec<Choice> {
        let next = self
            .next(state)
            .is_some_and(|at| at <= self.begun + HORIZON);
        if state.flying.is_empty() {
            if self.bounds.traffic && !self.unheard(state).is_empty() {
                return vec![Choice::Esp];
            }
            return if next { vec![Choice::Time] } else { Vec::new() };
        }
        let mut names = state.flying.clone();
        names.dedup();
        let mut options: Vec<Choice> = names.iter().map(|n| Choice::Deliver(*n)).collect();
        if state.losses > 0 {
            options.extend(names.iter().map(|n| Choice::Lose(*n)));
        }
        if state.duplicates > 0 {
            options.extend(names.iter().map(|n| Choice::Double(*n)));
            options.extend(next.then_some(Choice::Early));
        }
        options
    }

    fn next(&self, state: &State) -> Option<Duration> {
        let next = |n: usize| self.sides[n].seen(state.at[n]).next;
        [next(0), next(1)].into_iter().flatten().min()
    }

    fn take(&mut self, state: &mut State, choice: Choice) -> Result<(), String> {
        match choice {
            Choice::Deliver(name) => {
                remove(&mut state.flying, name);
                self.deliver(state, name)?;
            }
            Choice::Lose(name) => {
                remove(&mut state.flying, name);
                state.losses -= 1;
            }
            Choice::Double(name) => {
                state.duplicates -= 1;
                self.deliver(state, name)?;
            }
            Choice::Time => self.pass(state)?,
            Choice::Early => {
                state.duplicates -= 1;
                self.pass(state)?;
            }
            Choice::Esp => {
                self.esp(state)?;
            }
        }
        state.flying.sort_unstable();
        Ok(())
    }

    fn deliver(&mut self, state: &mut State, name: Name) -> Result<(), String> {
        let n = receiver(self.mail.get(name));
        self.input(state, n, &Input::Datagram(name))
    }

    /// Time passes to the next deadline.
    fn pass(&mut self, state: &mut State) -> Result<(), String> {
        let Some(next) = self.next(state) else {
            return Ok(());
        };
        state.now = state.now.max(next);
        for n in 0..2 {
            let due = self.sides[n].seen(state.at[n]).next;
            if due.is_some_and(|at| at <= state.now) {
                self.input(state, n, &Input::Fire)?;
            }
        }
        Ok(())
    }

    fn input(&mut self, state: &mut State, n: usize, input: &Input) -> Result<(), String> {
        let side = &mut self.sides[n];
        let step = side.step(state.at[n], state.now, input, &mut self.mail)?;
        state.at[n] = step.to;
        state.flying.extend(step.sent.iter());
        let both = Both {
            sides: &self.sides,
            at: state.at,
        };
        let how = Strictness {
            strict: true,
            silenced: false,
        };
        rules::sending(&both, how).map_or(Ok(()), Err)
    }

    /// Children on which the peer would hear a packet for the first time.
    fn unheard(&self, state: &State) -> Vec<(usize, testudo_model::ChildId)> {
        let mut all = Vec::new();
        for n in 0..2 {
            let twin = &self.sides[n].seen(state.at[n]).twin;
            let peer = &self.sides[1 - n].seen(state.at[1 - n]).twin;
            let outs = twin.sending.values().filter_map(|c| twin.outbound.get(c));
            for out in outs {
                let half = peer.inbound.get(&out.half.spi);
                let opened = half.filter(|h| h.key == out.half.key);
                let first = opened.filter(|h| !peer.heard.contains(&h.child));
                all.extend(first.map(|h| (1 - n, h.child)));
            }
        }
        all
    }

    /// ESP packets arrive. Tells whether any was the first on its child.
    fn esp(&mut self, state: &mut State) -> Result<bool, String> {
        let all = self.unheard(state);
        for (n, child) in &all {
            self.input(state, *n, &Input::Esp(*child))?;
        }
        Ok(!all.is_empty())
    }

    /// The horizon is reached: from here on the network is fair.
    fn end(&mut self, mut state: State) -> Result<(), String> {
        let key = (state.at, state.flying.clone(), state.now);
        if !self.calmed.insert(key) {
            return Ok(());
        }
        let (command, children) = self.scene.after();
        if let Some((n, command)) = command {
            self.input(&mut state, n, &Input::Command(command))?;
        }
        self.calm(&mut state, children)
    }

    /// A fair network, until both agree or the bound has passed.
    fn calm(&mut self, state: &mut State, children: usize) -> Result<(), String> {
        let end = state.now + BOUND;
        for _ in 0..STEPS {
            if !state.flying.is_empty() {
                for name in std::mem::take(&mut state.flying) {
                    self.deliver(state, name)?;
                }
                continue;
            }
            let both = Both {
                sides: &self.sides,
                at: state.at,
            };
            let wrong = rules::disagreement(&both, 0, 1, children);
            let Some(wrong) = wrong.or_else(|| rules::leak(&both)) else {
                return Ok(());
            };
            if self.next(state).is_none_or(|at| at > end) {
                return Err(format!("no agreement within {BOUND:?}: {wrong}"));
            }
            self.pass(state)?;
        }
        Err("the engines talk without end".into())
    }

    fn failure(&self, frames: &[Frame], text: &str) -> String {
        let chosen = |f: &Frame| Some(f.options.get(f.next.checked_sub(1)?)?.text());
        let choices: Vec<_> = frames.iter().filter_map(chosen).collect();
        let choices = choices.join(",");
        let (scene, seed) = (self.scene, self.seed);
        let told = match replay(scene, seed, self.bounds, &choices) {
            Ok(story) => format!("{scene:?}: {text}, but not when it was told again\n  {story}"),
            Err(story) => story,
        };
        let traffic = if self.bounds.traffic {
            " --traffic yes"
        } else {
            ""
        };
        format!(
            "{told}\nreplay: cargo xtask sim --scene {scene:?} --seed {seed}{traffic} \
             --order {choices}"
        )
    }

    fn retell(&mut self, choices: &str, story: &mut Vec<String>) -> Result<(), String> {
        let begun = self.begin();
        self.told("", story, Duration::ZERO);
        let mut state = begun?;
        story.push(format!("{:?} the scene begins", state.now));
        for word in choices.split(',').filter(|w| !w.is_empty()) {
            let options = self.options(&state);
            let found = options.iter().find(|o| o.text() == word).copied();
            let Some(choice) = found else {
                let all: Vec<_> = options.iter().map(|o| o.text()).collect();
                return Err(format!("no {word} to choose: {}", all.join(" ")));
            };
            let done = self.take(&mut state, choice);
            self.told(word, story, state.now);
            done?;
        }
        if self.options(&state).is_empty() {
            story.push(format!("{:?} the network is fair now", state.now));
            let done = self.end(state);
            self.told("", story, Duration::ZERO);
            done?;
        }
        Ok(())
    }

    fn told(&mut self, word: &str, story: &mut Vec<String>, now: Duration) {
        if !word.is_empty() {
            story.push(format!("{now:?} [{word}]"));
        }
        for side in &mut self.sides {
            story.extend(side.lines());
        }
    }
}

fn receiver(datagram: &Datagram) -> usize {
    usize::from(datagram.to.ip() == address(1))
}

fn remove(flying: &mut Vec<Name>, name: Name) {
    if let Some(index) = flying.iter().position(|n| *n == name) {
        flying.remove(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::SCENES;

    fn all(scenes: &[Scene], losses: u8, duplicates: u8) {
        let mut orders = 0_u128;
        for scene in scenes {
            let bounds = Bounds {
                losses,
                duplicates,
                ..FULL
            };
            match walk(*scene, 1, bounds) {
                Ok(walked) => {
                    assert_eq!(walked.cut, 0);
                    orders = orders.saturating_add(walked.orders);
                }
                Err(e) => panic!("{e}"),
            }
        }
        println!("{orders} orders walked");
        assert!(orders > 0);
    }

    const LARGE: [Scene; 2] = [Scene::Initiate, Scene::Reauthenticate];

    #[test]
    fn every_order_with_two_losses_and_a_duplicate_converges() {
        let small: Vec<_> = SCENES.into_iter().filter(|s| !LARGE.contains(s)).collect();
        all(&small, 2, 1);
    }

    #[test]
    fn every_order_of_two_that_begin_converges() {
        all(&[Scene::Initiate], 2, 0);
        all(&[Scene::Initiate], 0, 1);
    }

    #[test]
    fn every_order_of_two_that_authenticate_anew_converges() {
        all(&[Scene::Reauthenticate], 0, 0);
    }

    #[test]
    fn every_order_with_esp_in_between_converges() {
        for scene in SCENES.into_iter().filter(|s| !LARGE.contains(s)) {
            let bounds = Bounds {
                losses: 1,
                duplicates: 0,
                traffic: true,
                ..FULL
            };
            if let Err(e) = walk(scene, 2, bounds) {
                panic!("{e}");
            }
        }
    }

    /// What a failure tells is enough to see it again.
    #[test]
    fn an_order_is_told_again_by_its_words() {
        let mut search = Search::new(Scene::RekeyChild, 1, FULL, false);
        let mut state = search.begin().unwrap();
        let mut words = Vec::new();
        while let Some(choice) = search.options(&state).last().copied() {
            words.push(choice.text());
            search.take(&mut state, choice).unwrap();
        }
        let story = replay(Scene::RekeyChild, 1, FULL, &words.join(",")).unwrap();
        assert!(story.contains("the network is fair now"), "{story}");
        assert!(story.contains("CREATE_CHILD_SA answer"), "{story}");
    }
}
