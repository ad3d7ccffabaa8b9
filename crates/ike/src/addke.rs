//! Additional key exchanges (RFC 9370): what is offered, what is chosen of it.

use testudo_crypto::KeMethod;
use testudo_wire::ike::{KeyExchangeId, Proposal, Transform, TransformType};

/// ADDKE1 to ADDKE7.
pub(crate) const MOST: usize = 7;

/// A key exchange after the main one, of which the keys depend as much (RFC 9370). The first of
/// a list is ADDKE1 on the wire, the second ADDKE2, up to seven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdditionalKe {
    /// Its methods, the preferred first.
    pub methods: Vec<KeMethod>,
    /// Whether a peer that cannot, or will not, do it is refused.
    pub required: bool,
}

/// The methods chosen for ADDKE1 to ADDKE7, `None` where there is no exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rounds([Option<KeMethod>; MOST]);

impl Rounds {
    /// The methods of the exchanges that take place, in order.
    pub(crate) fn methods(&self) -> impl Iterator<Item = KeMethod> + '_ {
        self.0.iter().flatten().copied()
    }

    /// The method of the exchange after `done` others.
    pub(crate) fn after(&self, done: usize) -> Option<KeMethod> {
        self.methods().nth(done)
    }

    /// No additional exchange takes place.
    pub(crate) fn is_empty(&self) -> bool {
        self.methods().next().is_none()
    }

    /// Whether a configuration takes these: each method is one of its round's, no required
    /// round is missing.
    pub(crate) fn allowed_by(&self, ours: &[AdditionalKe]) -> bool {
        self.0.iter().enumerate().all(|(n, chosen)| match chosen {
            Some(method) => ours.get(n).is_some_and(|r| r.methods.contains(method)),
            None => ours.get(n).is_none_or(|r| !r.required),
        })
    }
}

fn kind(n: usize) -> TransformType {
    // n < 7.
    TransformType(TransformType::ADDKE1.0 + n as u8)
}

/// What is wrong with a list of additional key exchanges, for people.
pub(crate) fn fault(ours: &[AdditionalKe]) -> Option<&'static str> {
    if ours.len() > MOST {
        return Some("more than seven additional key exchanges");
    }
    let empty = ours.iter().any(|r| r.methods.is_empty());
    empty.then_some("an additional key exchange without methods")
}

/// Whether a proposal without any additional key exchange may be chosen.
pub(crate) fn may_be_none(ours: &[AdditionalKe]) -> bool {
    ours.iter().all(|round| !round.required)
}

/// The transforms of an offer; those that may be left out come with NONE (RFC 9370, 2.2.2).
pub(crate) fn offer(ours: &[AdditionalKe]) -> Vec<Transform> {
    let mut out = Vec::new();
    for (n, round) in ours.iter().take(MOST).enumerate() {
        let ids = round.methods.iter().map(|method| method.id());
        let none = (!round.required).then_some(KeyExchangeId::NONE.0);
        out.extend(ids.chain(none).map(|id| Transform::new(kind(n), id)));
    }
    out
}

/// Chooses from a proposal: of each type one method or, where that is offered, NONE; no method
/// twice, nor that of the main exchange (RFC 9370, 2.2.2; lesson L41). Where `possible` is
/// false, as with a peer that has no IKE_INTERMEDIATE, nothing but NONE. `None`: it cannot be.
pub(crate) fn choose(
    proposal: &Proposal,
    ours: &[AdditionalKe],
    main: Option<KeMethod>,
    possible: bool,
) -> Option<Rounds> {
    // Neither end speaks of any: so it is with most.
    if ours.is_empty() && (0..MOST).all(|n| proposal.of_type(kind(n)).next().is_none()) {
        return Some(Rounds::default());
    }
    let mut candidates: [Vec<Option<KeMethod>>; MOST] = Default::default();
    for (n, slot) in candidates.iter_mut().enumerate() {
        let offered = |id: u16| {
            let fits = |t: &&Transform| t.id == id && !t.unknown_attribute;
            let mut all = proposal.of_type(kind(n)).filter(fits);
            all.any(|t| t.key_length.is_none())
        };
        let round = ours.get(n);
        if possible {
            let methods = round.into_iter().flat_map(|r| r.methods.iter().copied());
            slot.extend(methods.filter(|m| offered(m.id())).map(Some));
        }
        let absent = proposal.of_type(kind(n)).next().is_none();
        let none = absent || offered(KeyExchangeId::NONE.0);
        if none && round.is_none_or(|r| !r.required) {
            slot.push(None);
        }
        if slot.is_empty() {
            return None;
        }
    }
    let mut rounds = Rounds::default();
    fill(&candidates, main, &mut rounds, 0).then_some(rounds)
}

/// Finds the first combination without repetitions.
fn fill(
    candidates: &[Vec<Option<KeMethod>>; MOST],
    main: Option<KeMethod>,
    rounds: &mut Rounds,
    n: usize,
) -> bool {
    if n == MOST {
        return true;
    }
    for candidate in &candidates[n] {
        let taken =
            candidate.is_some() && (*candidate == main || rounds.0[..n].contains(candidate));
        if taken {
            continue;
        }
        rounds.0[n] = *candidate;
        if fill(candidates, main, rounds, n + 1) {
            return true;
        }
    }
    rounds.0[n] = None;
    false
}

/// The transforms of the answer: one for each type that was offered.
pub(crate) fn answer(chosen: &Rounds, offered: &Proposal) -> Vec<Transform> {
    (0..MOST)
        .filter(|n| offered.of_type(kind(*n)).next().is_some())
        .map(|n| {
            let id = chosen.0[n].map_or(KeyExchangeId::NONE.0, KeMethod::id);
            Transform::new(kind(n), id)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use testudo_wire::ike::ProtocolId;

    use super::*;
    use KeMethod::{MlKem768, MlKem1024, P256, X25519};

    fn round(methods: &[KeMethod], required: bool) -> AdditionalKe {
        AdditionalKe {
            methods: methods.to_vec(),
            required,
        }
    }

    fn proposal(rounds: &[AdditionalKe]) -> Proposal {
        Proposal {
            number: 1,
            protocol: ProtocolId::IKE,
            spi: Vec::new(),
            transforms: offer(rounds),
        }
    }

    fn chosen(theirs: &[AdditionalKe], ours: &[AdditionalKe]) -> Option<Vec<KeMethod>> {
        let rounds = choose(&proposal(theirs), ours, Some(X25519), true)?;
        Some(rounds.methods().collect())
    }

    #[test]
    fn ours_are_chosen_in_our_order() {
        let both = [round(&[MlKem768, MlKem1024], false)];
        let other = [round(&[MlKem1024, MlKem768], false)];
        assert_eq!(chosen(&both, &other), Some(vec![MlKem1024]));
        assert_eq!(chosen(&other, &both), Some(vec![MlKem768]));
    }

    #[test]
    fn none_is_chosen_where_it_may() {
        let optional = [round(&[MlKem768], false)];
        let required = [round(&[MlKem768], true)];
        assert_eq!(chosen(&optional, &[]), Some(vec![]));
        assert_eq!(chosen(&[], &optional), Some(vec![]));
        assert_eq!(chosen(&required, &[]), None);
        assert_eq!(chosen(&[], &required), None);
        let other = [round(&[MlKem1024], false)];
        assert_eq!(chosen(&other, &optional), Some(vec![]));
        assert_eq!(chosen(&other, &required), None);
        // Without IKE_INTERMEDIATE nothing else can be chosen.
        let none = choose(&proposal(&optional), &optional, Some(X25519), false);
        assert_eq!(none, Some(Rounds::default()));
        assert_eq!(
            choose(&proposal(&required), &optional, Some(X25519), false),
            None
        );
    }

    // Lesson L41: the same method twice is no choice.
    #[test]
    fn no_method_is_chosen_twice() {
        let once = [round(&[X25519], true)];
        assert_eq!(chosen(&once, &once), None);
        let twice = [round(&[MlKem768], true), round(&[MlKem768], true)];
        assert_eq!(chosen(&twice, &twice), None);
        let either = [
            round(&[MlKem768, MlKem1024], true),
            round(&[MlKem768], true),
            round(&[MlKem768, P256], false),
        ];
        assert_eq!(
            chosen(&either, &either),
            Some(vec![MlKem1024, MlKem768, P256])
        );
        // The first gives way: the second is required.
        let yields = [round(&[MlKem768], false), round(&[MlKem768], true)];
        let rounds = choose(&proposal(&yields), &yields, Some(X25519), true).unwrap();
        assert_eq!((rounds.0[0], rounds.0[1]), (None, Some(MlKem768)));
        assert!(rounds.allowed_by(&yields));
    }

    #[test]
    fn the_answer_has_every_type_of_the_offer() {
        let rounds = [round(&[MlKem768], false), round(&[P256], false)];
        let offered = proposal(&rounds);
        let chosen = choose(&offered, &rounds[..1], Some(X25519), true).unwrap();
        assert_eq!(
            answer(&chosen, &offered),
            [
                Transform::new(TransformType::ADDKE1, 36),
                Transform::new(TransformType::ADDKE2, 0)
            ]
        );
    }

    #[test]
    fn a_transform_with_an_attribute_is_not_chosen() {
        let ours = [round(&[MlKem768], true)];
        let mut offered = proposal(&ours);
        offered.transforms[0].unknown_attribute = true;
        assert_eq!(choose(&offered, &ours, Some(X25519), true), None);
        let mut offered = proposal(&ours);
        offered.transforms[0].key_length = Some(128);
        assert_eq!(choose(&offered, &ours, Some(X25519), true), None);
    }
}
