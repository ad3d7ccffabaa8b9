//! How one CA follows another: when the controller takes the next step.
//!
//! ```text
//! Settled -> Trusting -> Issuing -> Retiring -> Settled
//! ```
//!
//! `Trusting`: the new CA is in the bundle beside the old one, which signs. `Issuing`: both are in the
//! bundle, the new one signs, and nodes take certificates of it. `Retiring`: the old one has left the
//! bundle, its key is gone. Each is left when every node has done its part, as it says itself
//! ([`testudo_model::Authorities`]); a node that is down holds the rotation where it is.
//!
//! Two rules hold at every moment, in every order in which nodes learn of things:
//!
//! 1. No node shows a certificate of a CA that another node does not trust.
//! 2. No IKE SA stands on a certificate of a CA that its end no longer trusts.
//!
//! A certificate may be on its way to a node when its CA ceases to sign. So a node says that it is
//! asking before it asks, and until it has taken the answer up: what `Issuing` waits for includes it.
//!
//! A rotation can be taken back while the old CA has its key. In `Trusting` the new one has signed
//! nothing and just goes. In `Issuing` the two change places: the old one signs, and the new one goes
//! when no node shows a certificate of it.
//!
//! A CA that has ended vouches for nothing: no certificate of it is good, so there is nothing left to
//! break by going on without the nodes that are waited for, and much to be had by it.

use testudo_model::{Authorities, CaPhase, CaWaiting};

/// What the controller has on its disk: all that must outlive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The step.
    pub phase: CaPhase,
    /// Counts the rotations that were begun.
    pub rotation: u64,
    /// The highest request that was answered ([`testudo_model::policy::Certificates::ca_rotation`]).
    pub answered: u64,
    /// The name of the CA that signs.
    pub signer: String,
    /// The name of the other one: in `Trusting` it comes, in `Issuing` it goes, in `Retiring` it has
    /// gone.
    pub other: Option<String>,
    /// The rotation was taken back in `Issuing`.
    pub taken_back: bool,
}

/// A change of [`Standing`]: one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What is asked for in the policy was lowered: raised again, it means the next rotation.
    Note(u64),
    /// A new CA is made and trusted. This request is answered by it.
    Begin(u64),
    /// The new CA goes, before it has signed anything: taken back, or no good any more.
    Drop,
    /// The new CA signs.
    Issue,
    /// The CA that has ceased to sign signs again: the rotation is taken back, or the other has ended.
    TurnBack,
    /// The CA that does not sign leaves the bundle, and its key goes.
    Retire,
    /// The rotation is done.
    Settle,
}

/// Where a CA is in its life, by the controller's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// It is not valid yet: the clock was ahead when it was made, or is behind.
    Future,
    /// It may sign.
    #[default]
    Good,
    /// It is valid, and so near to its end that it is not to become the one that signs.
    Late,
    /// It is not valid any more, nor is what it has signed.
    Ended,
}

/// What the decision depends on.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Where the rotation stands.
    pub standing: &'a Standing,
    /// What the policy asks for; none without a policy.
    pub asked: Option<u64>,
    /// The rotation that is to be taken back.
    pub take_back: Option<u64>,
    /// The CA is old enough.
    pub due: bool,
    /// Where the CA that signs is in its life.
    pub signer_life: Life,
    /// The same of the other one, which has its key in `Trusting` and `Issuing`.
    pub other_life: Life,
    /// The clock has gone evenly for long enough. Until it has, nothing is done because of it.
    pub sure: bool,
    /// Encryption is off: a node without a certificate needs none.
    pub off: bool,
    /// All nodes by name, with what each says of CAs.
    pub nodes: &'a [(&'a str, &'a Authorities)],
    /// Nodes whose objects cannot be read: nobody knows what they do.
    pub unreadable: &'a [String],
}

/// What is to be done, or waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The step to take now.
    pub step: Option<Step>,
    /// Who holds the rotation, in the order of names.
    pub waiting_on: Vec<CaWaiting>,
}

impl Standing {
    /// One CA, and nothing has happened to it.
    pub fn settled(signer: impl Into<String>) -> Self {
        Standing {
            phase: CaPhase::Settled,
            rotation: 0,
            answered: 0,
            signer: signer.into(),
            other: None,
            taken_back: false,
        }
    }

    /// The CAs in the bundle, the one that signs first.
    pub fn trusted(&self) -> impl Iterator<Item = &str> {
        let both = matches!(self.phase, CaPhase::Trusting | CaPhase::Issuing);
        let other = self.other.as_deref().filter(|_| both);
        std::iter::once(self.signer.as_str()).chain(other)
    }

    /// What stands after a step. `next` is the name of the CA that [`Step::Begin`] makes.
    pub fn after(&self, step: Step, next: Option<&str>) -> Standing {
        let mut after = self.clone();
        let swap = |after: &mut Standing| {
            if let Some(other) = &mut after.other {
                std::mem::swap(&mut after.signer, other);
            }
            after.phase = CaPhase::Issuing;
        };
        match step {
            Step::Note(answered) => after.answered = answered,
            Step::Begin(answered) => {
                after.phase = CaPhase::Trusting;
                after.rotation = self.rotation.saturating_add(1);
                after.answered = answered;
                after.other = next.map(str::to_owned);
                after.taken_back = false;
            }
            Step::Drop => {
                after.phase = CaPhase::Retiring;
                after.taken_back = true;
            }
            Step::Issue => swap(&mut after),
            Step::TurnBack => {
                swap(&mut after);
                // Turned twice it goes forward again.
                after.taken_back = !self.taken_back;
            }
            Step::Retire => after.phase = CaPhase::Retiring,
            Step::Settle => {
                after.phase = CaPhase::Settled;
                after.other = None;
            }
        }
        after
    }
}

/// Decides. At most one step is taken; call it again after each, and after each change of a node or
/// of the policy.
pub fn decide(known: &Known<'_>) -> Decision {
    let standing = known.standing;
    let take_back = known.take_back == Some(standing.rotation);
    let step = |step| Decision {
        step: Some(step),
        waiting_on: Vec::new(),
    };
    let ended = known.sure && known.signer_life == Life::Ended;
    let done = match standing.phase {
        CaPhase::Settled => {
            return match known.asked {
                Some(asked) if asked > standing.answered => step(Step::Begin(asked)),
                Some(asked) if asked < standing.answered => step(Step::Note(asked)),
                _ if known.due && known.sure => step(Step::Begin(standing.answered)),
                _ => Decision::default(),
            };
        }
        CaPhase::Trusting if known.sure && known.other_life != Life::Good => {
            return step(Step::Drop);
        }
        CaPhase::Trusting if take_back && irrevocable(known).is_none() => return step(Step::Drop),
        // Until it is sure that the coming CA is no good, it does not sign.
        CaPhase::Trusting if known.other_life != Life::Good => None,
        CaPhase::Trusting if ended => return step(Step::Issue),
        CaPhase::Trusting => Some(Step::Issue),
        CaPhase::Issuing if ended && known.other_life == Life::Good => return step(Step::TurnBack),
        CaPhase::Issuing if ended => return step(Step::Retire),
        CaPhase::Issuing if take_back && !standing.taken_back && irrevocable(known).is_none() => {
            return step(Step::TurnBack);
        }
        CaPhase::Issuing => Some(Step::Retire),
        CaPhase::Retiring if ended => return step(Step::Settle),
        CaPhase::Retiring => Some(Step::Settle),
    };
    // What a node said before its object was damaged may not be so any more.
    let readable = |node: &&(&str, &Authorities)| !known.unreadable.iter().any(|n| n == node.0);
    let lacks = known
        .nodes
        .iter()
        .filter(readable)
        .filter_map(|(name, says)| {
            let reason = lacks(standing, known.off, says)?;
            Some(((*name).to_owned(), reason))
        });
    let unreadable = known.unreadable.iter().map(|name| {
        let reason = "its object cannot be read".to_owned();
        (name.clone(), reason)
    });
    let mut waiting_on: Vec<CaWaiting> = lacks
        .chain(unreadable)
        .map(|(node, reason)| CaWaiting { node, reason })
        .collect();
    waiting_on.sort_unstable();
    waiting_on.dedup_by(|a, b| a.node == b.node);
    Decision {
        step: done.filter(|_| waiting_on.is_empty()),
        waiting_on,
    }
}

/// Why the rotation that goes on cannot be taken back: the CA that would sign again is no good for it.
/// None in the steps in which it can, and where there is none.
pub fn irrevocable(known: &Known<'_>) -> Option<String> {
    let standing = known.standing;
    let (ca, life) = match standing.phase {
        CaPhase::Trusting => (&standing.signer, known.signer_life),
        CaPhase::Issuing if !standing.taken_back => (standing.other.as_ref()?, known.other_life),
        _ => return None,
    };
    match (standing.phase, life) {
        (_, Life::Ended) => Some(format!("{ca} has ended")),
        (CaPhase::Issuing, Life::Late) => Some(format!("{ca} is about to end")),
        (CaPhase::Issuing, Life::Future) => Some(format!("{ca} is not valid yet")),
        _ => None,
    }
}

/// What a node has not done of the present step.
fn lacks(standing: &Standing, off: bool, node: &Authorities) -> Option<String> {
    let signer = &standing.signer;
    let other = standing.other.as_ref()?;
    let trusts = |ca: &String| node.trusted.contains(ca);
    match standing.phase {
        CaPhase::Settled => None,
        CaPhase::Trusting if node.is_empty() => Some(format!(
            "does not trust {other} yet: its agent says nothing of CAs; has it run, and is it of this build?"
        )),
        CaPhase::Trusting => (!trusts(other)).then(|| format!("does not trust {other} yet")),
        CaPhase::Issuing if !trusts(signer) => Some(format!("does not trust {signer} yet")),
        CaPhase::Issuing => match &node.presented {
            None if !off => Some("has no certificate yet".to_owned()),
            Some(shown) if shown != signer => Some(format!("shows a certificate of {shown}")),
            _ if let Some(shown) = node.showing.iter().find(|ca| *ca != signer) => {
                Some(format!("shows some peers a certificate of {shown}"))
            }
            _ if node.asking => {
                Some("has not taken up the certificate that it asked for".to_owned())
            }
            _ if node.peers.contains(other) => {
                Some(format!("has IKE SAs on peers' certificates of {other}"))
            }
            _ => None,
        },
        CaPhase::Retiring => trusts(other).then(|| format!("still trusts {other}")),
    }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
