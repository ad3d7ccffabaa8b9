//! Numbered datagrams while something is done, and what became of each.

use std::time::Instant;

use super::Datapath;
use super::world::{LONG, World};
use crate::common::{Flow, Load};

/// Datagrams a second, in all. A guest has one processor for everything, and system calls are dear there.
const fn rate(datapath: Datapath) -> u32 {
    match datapath {
        Datapath::Kernel => 80,
        Datapath::User => 900,
    }
}

/// Something that is done under traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    name: &'static str,
    /// The nodes whose agent's process ends meanwhile.
    interrupted: &'static [&'static str],
    /// Places that go: flows with them are not counted on.
    without: &'static [&'static str],
    /// Datagrams a second, in all; else what the datapath bears.
    rate: Option<u32>,
}

impl Step {
    pub(super) const fn named(name: &'static str) -> Self {
        Self {
            name,
            interrupted: &[],
            without: &[],
            rate: None,
        }
    }

    pub(super) const fn interrupts(self, interrupted: &'static [&'static str]) -> Self {
        Self {
            interrupted,
            ..self
        }
    }

    pub(super) const fn without(self, places: &'static [&'static str]) -> Self {
        Self {
            without: places,
            ..self
        }
    }

    pub(super) const fn at_rate(self, rate: u32) -> Self {
        Self {
            rate: Some(rate),
            ..self
        }
    }

    /// Whether packets between these nodes may be lost.
    fn excuses(&self, datapath: Datapath, nodes: [String; 2]) -> bool {
        let ends = |node: &String| self.interrupted.contains(&node.as_str());
        datapath == Datapath::User && nodes.iter().any(ends)
    }
}

/// Does it while datagrams go from pod to pod of all nodes in a ring, back between the first two, from
/// the first node itself to the second one's pod, and from a third one to the first pod. Each that is sent must
/// arrive, once.
#[track_caller]
pub(super) fn under_load(world: &mut World, step: Step, work: impl FnOnce(&mut World)) {
    eprintln!("-- {}", step.name);
    let flows = flows(world, step.without);
    let node_of = |world: &World, flow: &str| -> [String; 2] {
        let (from, to) = flow.split_once(" > ").expect("two places");
        [from, to].map(|place| format!("node{}", world.place(place).node))
    };
    let excused: Vec<bool> = flows
        .iter()
        .map(|flow| {
            let nodes = node_of(world, &format!("{} > {}", flow.from, flow.to));
            step.excuses(world.datapath, nodes)
        })
        .collect();
    let load = Load::start(
        world,
        flows,
        step.rate.unwrap_or_else(|| rate(world.datapath)),
    );
    let start = Instant::now();
    work(world);
    load.wait_all_arrive(LONG);
    let took = start.elapsed().as_secs_f32();
    let outcomes = load.stop();
    let lost: u32 = outcomes.iter().map(|outcome| outcome.lost()).sum();
    let sent: u32 = outcomes.iter().map(|outcome| outcome.sent).sum();
    eprintln!("   {}: {took:.1} s, {sent} sent, {lost} lost", step.name);
    world.counted.0 += sent;
    world.counted.1 += lost;
    for (outcome, excused) in outcomes.iter().zip(excused) {
        if outcome.lost() > 0 {
            eprintln!(
                "   {}: {} of {} lost{}",
                outcome.flow,
                outcome.lost(),
                outcome.sent,
                outcome.around_holes()
            );
        }
        assert!(
            (excused || outcome.lost() == 0) && outcome.doubled == 0,
            "{}: {}: of {} sent {} were lost and {} doubled\n{}",
            step.name,
            outcome.flow,
            outcome.sent,
            outcome.lost(),
            outcome.doubled,
            world.state()
        );
    }
}

fn flows(world: &World, without: &[&str]) -> Vec<Flow> {
    let stays = |place: &str| world.places.contains_key(place) && !without.contains(&place);
    let mut nodes: Vec<u8> = world.places.values().map(|place| place.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.retain(|node| stays(&format!("pod{node}")));
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let next = nodes[(index + 1) % nodes.len()];
        pairs.push((format!("pod{node}"), format!("pod{next}")));
    }
    for (from, to) in [("pod2", "pod1"), ("node1", "pod2"), ("node3", "pod1")] {
        let pair = (from.to_owned(), to.to_owned());
        // Between two nodes the ring goes back itself.
        if stays(from) && !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    let flow = |(from, to): (String, String)| Flow {
        address: world.place(&to).address,
        from,
        to,
    };
    pairs.into_iter().map(flow).collect()
}
