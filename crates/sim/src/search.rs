//! Every order in which the datagrams of two engines can arrive.
//!
//! A walk is a row of choices. While datagrams are on their way, the next step is one of them
//! arriving, or being lost, or arriving while a copy stays behind; when none is, the next
//! deadline fires. An engine cannot be copied (its keys cannot), so each walk starts anew and
//! repeats the choices of the last one up to the one that it changes.

use std::time::Duration;

use testudo_ike::{EngineConfig, Suites};

use crate::net::{Datagram, Net, peer_config, peer_id};

/// What two engines do at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// Both begin.
    Initiate,
    /// Both rekey the child.
    RekeyChild,
    /// Both rekey the IKE SA.
    RekeyIke,
    /// One rekeys a child that the other deletes.
    RekeyAndDelete,
    /// One rekeys the IKE SA that the other closes.
    RekeyAndClose,
    /// One makes another child while the other rekeys the IKE SA.
    CreateAndRekeyIke,
    /// One rekeys the child, the other the IKE SA.
    RekeyChildAndIke,
    /// Both authenticate anew.
    Reauthenticate,
}

/// All of them.
pub const SCENES: [Scene; 8] = [
    Scene::Initiate,
    Scene::RekeyChild,
    Scene::RekeyIke,
    Scene::RekeyAndDelete,
    Scene::RekeyAndClose,
    Scene::CreateAndRekeyIke,
    Scene::RekeyChildAndIke,
    Scene::Reauthenticate,
];

/// How much is walked.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Datagrams lost in one walk, at most.
    pub losses: usize,
    /// Datagrams that arrive twice in one walk, at most.
    pub duplicates: usize,
    /// After so many steps with a choice, datagrams arrive in order and none is lost.
    pub choices: usize,
    /// Walks of one scene with one seed, at most.
    pub walks: u64,
}

/// What a full search walks of each scene: seeds and bounds. Different seeds let different ends
/// win.
pub fn full() -> Vec<(u64, Bounds)> {
    let bounds = |losses, duplicates, choices| Bounds {
        losses,
        duplicates,
        choices,
        walks: 6_000,
    };
    let mut all = Vec::new();
    for seed in [1, 2] {
        all.push((seed, bounds(0, 0, 40)));
        all.push((seed, bounds(1, 0, 12)));
        all.push((seed, bounds(0, 1, 12)));
        all.push((seed, bounds(2, 1, 6)));
    }
    all
}

/// What a search came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walked {
    /// Orders walked.
    pub orders: u64,
    /// Whether `Bounds::walks` ended it before all orders were walked.
    pub cut: bool,
}

/// How long two engines have, once the network is fair, to agree.
const BOUND: Duration = Duration::from_secs(200);

/// Steps of one walk after which it goes in circles.
const STEPS: usize = 20_000;

/// Walks all orders of a scene within the bounds. An error tells the breach, the choices that
/// lead to it, and the story.
pub fn walk(scene: Scene, seed: u64, bounds: Bounds) -> Result<Walked, String> {
    let mut walked = Walked::default();
    let mut choices: Vec<usize> = Vec::new();
    loop {
        let taken = once(scene, seed, bounds, &choices)?;
        walked.orders += 1;
        // The last step that has another option left takes it.
        let Some(last) = taken.iter().rposition(|(chosen, of)| chosen + 1 < *of) else {
            return Ok(walked);
        };
        if walked.orders >= bounds.walks {
            walked.cut = true;
            return Ok(walked);
        }
        choices.clear();
        choices.extend(taken[..=last].iter().map(|(chosen, _)| *chosen));
        choices[last] += 1;
    }
}

/// One walk: the given choices, then always the first. Returns each choice and of how many.
pub fn once(
    scene: Scene,
    seed: u64,
    bounds: Bounds,
    choices: &[usize],
) -> Result<Vec<(usize, usize)>, String> {
    let mut net = Net::new(seed, 2, config());
    net.strict = true;
    let mut children = begin(&mut net, scene)?;
    let mut walk = Walk {
        choices,
        taken: Vec::new(),
        losses: bounds.losses,
        duplicates: bounds.duplicates,
        most: bounds.choices,
    };
    let mut flying = Vec::new();
    let end = walk.run(&mut net, &mut flying)?;
    if scene == Scene::RekeyAndDelete {
        // The other end's configuration follows.
        net.act(0, |e, now| e.set_peer(peer_config(0, 1, true, 1), now))
            .map_err(|e| e.to_string())?;
        children = 1;
    }
    let result = calm(&mut net, flying, end + BOUND, children);
    result
        .map(|()| walk.taken.clone())
        .map_err(|e| failure(scene, seed, &walk.taken, &e, &net))
}

fn failure(scene: Scene, seed: u64, taken: &[(usize, usize)], text: &str, net: &Net) -> String {
    let choices: Vec<String> = taken.iter().map(|(c, _)| c.to_string()).collect();
    let choices = choices.join(",");
    format!(
        "{text}\n  {}\nreplay: cargo xtask sim --scene {scene:?} --seed {seed} --choices {choices}",
        net.story()
    )
}

/// Deadlines only where they matter; no key exchange where it changes nothing.
fn config() -> EngineConfig {
    EngineConfig {
        child_lifetime: Duration::from_secs(100_000),
        ike_lifetime: Duration::from_secs(800_000),
        liveness: Duration::from_secs(30),
        suites: Suites {
            pfs: false,
            ..Suites::default()
        },
        ..EngineConfig::default()
    }
}

/// Brings both ends to where the scene starts, and lets both act. Returns how many children
/// there will be.
fn begin(net: &mut Net, scene: Scene) -> Result<usize, String> {
    let before = if scene == Scene::RekeyAndDelete { 2 } else { 1 };
    let both = scene == Scene::Initiate;
    configure(net, 1, both, before)?;
    configure(net, 0, true, before)?;
    net.fire();
    if both {
        return Ok(1);
    }
    settle(net, before)?;
    let command = |net: &mut Net, n: usize, what: Scene| -> Result<(), String> {
        let child = net.nodes[n].engine.status()[0]
            .children
            .iter()
            .max_by_key(|c| c.name.clone())
            .map(|c| c.child);
        let peer = peer_id(1 - n);
        let child = child.ok_or("no child")?;
        net.act(n, |e, now| match what {
            Scene::RekeyChild => e.rekey_child(child, now),
            Scene::RekeyIke => e.rekey_ike(&peer, now),
            Scene::Reauthenticate => e.reauthenticate(&peer, now),
            _ => e.close(&peer, now),
        })
        .map_err(|e| e.to_string())
    };
    match scene {
        Scene::Initiate => {}
        Scene::RekeyChild | Scene::RekeyIke | Scene::Reauthenticate => {
            command(net, 0, scene)?;
            command(net, 1, scene)?;
        }
        Scene::RekeyAndDelete => {
            command(net, 0, Scene::RekeyChild)?;
            configure(net, 1, false, 1)?;
        }
        Scene::RekeyAndClose => {
            command(net, 0, Scene::RekeyIke)?;
            command(net, 1, Scene::RekeyAndClose)?;
        }
        Scene::CreateAndRekeyIke => {
            command(net, 1, Scene::RekeyIke)?;
            configure(net, 1, false, 2)?;
            configure(net, 0, true, 2)?;
            return Ok(2);
        }
        Scene::RekeyChildAndIke => {
            command(net, 0, Scene::RekeyChild)?;
            command(net, 1, Scene::RekeyIke)?;
        }
    }
    Ok(1)
}

fn configure(net: &mut Net, n: usize, initiate: bool, children: usize) -> Result<(), String> {
    let config = peer_config(n, 1 - n, initiate, children);
    net.act(n, |e, now| e.set_peer(config, now))
        .map_err(|e| e.to_string())
}

/// Lets the first negotiation finish, in order.
fn settle(net: &mut Net, children: usize) -> Result<(), String> {
    for _ in 0..200 {
        let all = std::mem::take(&mut net.sent);
        net.now += Duration::from_millis(5);
        net.fire();
        if all.is_empty() && net.disagreement(0, 1, children).is_none() {
            for packet in net.esp() {
                net.deliver_esp(&packet);
            }
            return Ok(());
        }
        for datagram in &all {
            net.deliver(datagram);
        }
    }
    Err("the first negotiation did not finish".into())
}

struct Walk<'a> {
    choices: &'a [usize],
    taken: Vec<(usize, usize)>,
    losses: usize,
    duplicates: usize,
    most: usize,
}

impl Walk<'_> {
    /// Goes on while there is a choice. Returns the time at which the last one was made.
    fn run(&mut self, net: &mut Net, flying: &mut Vec<Datagram>) -> Result<Duration, String> {
        let quiet = net.now + Duration::from_secs(4);
        while self.taken.len() < self.most && net.broken.is_none() {
            flying.append(&mut net.sent);
            if flying.is_empty() {
                // Every request that was lost has been sent again by then.
                let next = net.next_timeout().filter(|at| *at <= quiet);
                let Some(next) = next else { break };
                net.now = net.now.max(next);
                net.fire();
                continue;
            }
            net.now += Duration::from_millis(5);
            let many = flying.len();
            let lossy = if self.losses > 0 { many } else { 0 };
            let twice = if self.duplicates > 0 { many } else { 0 };
            let options = many + lossy + twice;
            let chosen = if options == 1 {
                0
            } else {
                self.choose(options)
            };
            if chosen < many {
                let datagram = flying.remove(chosen);
                net.deliver(&datagram);
            } else if chosen < many + lossy {
                self.losses -= 1;
                flying.remove(chosen - many);
            } else {
                self.duplicates -= 1;
                let copy = flying[chosen - many - lossy].clone();
                net.deliver(&copy);
            }
        }
        Ok(net.now)
    }

    fn choose(&mut self, options: usize) -> usize {
        let chosen = self.choices.get(self.taken.len()).copied().unwrap_or(0);
        let chosen = chosen.min(options - 1);
        self.taken.push((chosen, options));
        chosen
    }
}

/// A fair network, until both agree or the bound has passed.
fn calm(
    net: &mut Net,
    mut flying: Vec<Datagram>,
    end: Duration,
    children: usize,
) -> Result<(), String> {
    for _ in 0..STEPS {
        if let Some(broken) = &net.broken {
            return Err(broken.clone());
        }
        flying.append(&mut net.sent);
        if flying.is_empty() {
            let wrong = net.disagreement(0, 1, children).or_else(|| net.leak());
            let Some(wrong) = wrong else { return Ok(()) };
            let next = net.next_timeout().filter(|at| *at <= end);
            let Some(next) = next else {
                return Err(format!("no agreement within {BOUND:?}: {wrong}"));
            };
            net.now = net.now.max(next);
            net.fire();
            continue;
        }
        net.now += Duration::from_millis(5);
        for datagram in std::mem::take(&mut flying) {
            net.deliver(&datagram);
        }
    }
    Err("the engines talk without end".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(losses: usize, duplicates: usize, choices: usize) {
        let mut orders = 0;
        for scene in SCENES {
            let bounds = Bounds {
                losses,
                duplicates,
                choices,
                walks: 400,
            };
            match walk(scene, 1, bounds) {
                Ok(walked) => orders += walked.orders,
                Err(e) => panic!("{scene:?}: {e}"),
            }
        }
        println!("{orders} orders walked");
        assert!(orders > 0);
    }

    #[test]
    fn every_order_without_loss_converges() {
        all(0, 0, 10);
    }

    #[test]
    fn every_order_with_a_loss_converges() {
        all(1, 0, 6);
    }

    #[test]
    fn every_order_with_a_duplicate_converges() {
        all(0, 1, 6);
    }
}
