//! What must hold after every step, and once all is quiet.

use testudo_ike::{DownReason, Engine, IkeStatus};

use crate::node::{Gone, Outbound, Twin};

/// What the rules look at.
pub trait Look {
    /// How many nodes there are.
    fn nodes(&self) -> usize;
    /// The twin of a node's datapath.
    fn twin(&self, n: usize) -> &Twin;
    /// A node's IKE SAs, of all peers and in all states.
    fn status(&self, n: usize) -> Vec<IkeStatus>;
}

/// What the network was like: some rules only hold in fair weather.
#[derive(Debug, Clone, Copy, Default)]
pub struct Strictness {
    /// No SA may be replaced before its sender has another. Not so where the network is silent
    /// for longer than a handover waits.
    pub strict: bool,
    /// The network was silent for long: who heard nothing may have removed what was replaced.
    pub silenced: bool,
}

/// Whether the peer can open what is sent on this SA now.
fn opens(look: &dyn Look, out: &Outbound) -> bool {
    let inbound = &look.twin(out.purpose.0).inbound;
    let found = inbound.get(&out.half.spi);
    found.is_some_and(|half| half.key == out.half.key)
}

/// Whatever is sent now opens at the peer, unless the peer closed it on purpose, died, or
/// nothing better is known. Compares SPI and key: the same that real ESP does.
pub fn sending(look: &dyn Look, how: Strictness) -> Option<String> {
    (0..look.nodes()).find_map(|n| sending_of(look, how, n))
}

fn sending_of(look: &dyn Look, how: Strictness, n: usize) -> Option<String> {
    let twin = look.twin(n);
    for (purpose, child) in &twin.sending {
        let Some(out) = twin.outbound.get(child).filter(|o| !opens(look, o)) else {
            continue;
        };
        let why = look.twin(purpose.0).gone.get(&out.half.spi).copied();
        // One of which this node has seen that the peer has it, and that neither has closed:
        // what lingers is for late packets only, and what it asked the peer to delete may be
        // gone.
        let status = look.status(n);
        let stands = |id| {
            let mut all = status.iter().flat_map(|s| &s.children);
            all.any(|c| c.child == id && !c.deleting)
        };
        let better = twin.outbound.iter().any(|(id, o)| {
            let known = o.ours || twin.heard.contains(id);
            o.purpose == *purpose && known && opens(look, o) && stands(*id)
        });
        // A child that is not wanted any longer ends in whatever order.
        let better = better && (how.strict || purpose.1 == "child0");
        let replaced = why == Some(Gone::Down(DownReason::Replaced));
        if (replaced && !how.silenced && (better || how.strict)) || (why.is_none() && better) {
            return Some(format!(
                "n{n} sends on child {} (SPI {:08x}), which n{} cannot open: {why:?}",
                child.0, out.half.spi, purpose.0
            ));
        }
    }
    None
}

/// Why two nodes do not agree yet: each must hold one IKE SA with the other, the same children
/// on it, send on them, and hold nothing else. `None`: they do.
pub fn disagreement(look: &dyn Look, a: usize, b: usize, children: usize) -> Option<String> {
    let of = |n: usize, peer: usize| -> Vec<IkeStatus> {
        let id = crate::node::peer_id(peer);
        let mut all = look.status(n);
        all.retain(|s| s.peer.as_ref() == Some(&id));
        all
    };
    let (x, y) = (of(a, b), of(b, a));
    if (x.len(), y.len()) != (1, 1) {
        let states = |all: &[IkeStatus]| {
            let names: Vec<_> = all.iter().map(|s| s.state).collect();
            names.join(" ")
        };
        return Some(format!(
            "n{a} holds {} IKE SAs with n{b} ({}), which holds {} ({})",
            x.len(),
            states(&x),
            y.len(),
            states(&y)
        ));
    }
    for (n, peer, own, other) in [(a, b, &x[0], &y[0]), (b, a, &y[0], &x[0])] {
        if own.state != "established" || own.children.len() != children {
            let (state, number) = (own.state, own.children.len());
            return Some(format!(
                "n{n}: {state}, {number} children with n{peer}, {children} wanted"
            ));
        }
        let twin = look.twin(n);
        for child in &own.children {
            let paired = other.children.iter().any(|o| {
                o.spi_in == child.spi_out && o.spi_out == child.spi_in && o.name == child.name
            });
            let purpose = (peer, child.name.clone(), child.resource);
            let sends = twin.sending.get(&purpose) == Some(&child.child);
            if !paired || !sends || !child.sending {
                let number = child.child.0;
                return Some(format!(
                    "n{n}, child {number}: paired {paired}, sends {sends}"
                ));
            }
        }
        let held = twin.outbound.values().filter(|o| o.purpose.0 == peer);
        let held = held.count();
        if held != children {
            return Some(format!("n{n} has {held} SAs installed towards n{peer}"));
        }
    }
    None
}

/// What no pair accounts for.
pub fn leak(look: &dyn Look) -> Option<String> {
    (0..look.nodes()).find_map(|n| {
        let status = look.status(n);
        let children: usize = status.iter().map(|s| s.children.len()).sum();
        let (ikes, twin) = (status.len(), look.twin(n));
        let held = (twin.ikes.len(), twin.inbound.len(), twin.outbound.len());
        (held != (ikes, children, children)).then(|| {
            format!("n{n}: engine has {ikes} IKE SAs, {children} children; installed {held:?}")
        })
    })
}

/// What an engine holds beyond what its SAs need: none of its tables may have grown by what
/// went before.
pub fn above_floor(engine: &Engine, peers: usize, children: usize) -> Option<String> {
    let wanted = |what: &str| match what {
        "sas" | "spis" | "peer_sas" => peers,
        // Only the end that was the responder remembers how it was asked.
        "inits" => peers,
        "children" | "child_spis" | "peer_children" | "sending" => children,
        // Soft and hard end, and liveness.
        "timers" => 3 * peers + 2 * children,
        _ => 0,
    };
    let held = engine.held();
    let over = held.iter().find(|(what, number)| *number > wanted(what));
    over.map(|(what, number)| format!("{number} {what}, {} wanted", wanted(what)))
}
