//! Offers of algorithms, and the choice among them (RFC 7296, 2.7 and 3.3).

use testudo_crypto::{Cipher, Integrity, KeMethod, Prf};
use testudo_wire::ike::{
    EncryptionId, EsnId, IntegrityId, KeyExchangeId, Proposal, ProtocolId, Transform, TransformType,
};

use crate::addke::{self, AdditionalKe, Rounds};
use crate::error::{Fault, Refusal};
use crate::keys::Suite;
use crate::suites::Suites;

fn encryption(cipher: Cipher) -> Transform {
    Transform::encryption(EncryptionId(cipher.id()), Some(cipher.key_bits()))
}

fn integrity(integrity: Integrity) -> Transform {
    Transform::integrity(IntegrityId(integrity.id()))
}

fn prf(prf: Prf) -> Transform {
    Transform::new(TransformType::PRF, prf.id())
}

fn ke(method: KeMethod) -> Transform {
    Transform::key_exchange(KeyExchangeId(method.id()))
}

/// The transforms of ciphers, for one proposal each kind: AEADs, which go without an integrity
/// algorithm, do not mix with others (RFC 7296, 3.3), and of the others each integrity algorithm
/// stands alone, so that nothing is offered that we do not take.
fn by_integrity(ciphers: &[Cipher]) -> Vec<Vec<Transform>> {
    let mut kinds: Vec<Option<Integrity>> = Vec::new();
    for cipher in ciphers {
        if !kinds.contains(&cipher.integrity()) {
            kinds.push(cipher.integrity());
        }
    }
    kinds
        .into_iter()
        .map(|kind| {
            let of_kind = ciphers.iter().filter(|c| c.integrity() == kind);
            of_kind
                .map(|c| encryption(*c))
                .chain(kind.map(integrity))
                .collect()
        })
        .collect()
}

/// One proposal for each kind of cipher, numbered from 1; with additional key exchanges in front,
/// and again without, if that will do: a peer that knows nothing of RFC 9370 refuses a proposal
/// with transforms of a strange type.
fn proposals(
    protocol: ProtocolId,
    spi: &[u8],
    ciphers: &[Cipher],
    others: &[Transform],
    additional: &[AdditionalKe],
) -> Vec<Proposal> {
    let kinds = by_integrity(ciphers);
    let with = (!additional.is_empty()).then(|| addke::offer(additional));
    let without = addke::may_be_none(additional).then(Vec::new);
    with.into_iter()
        .chain(without)
        .flat_map(|more| {
            let all = move |kind: &Vec<Transform>| [&kind[..], others, &more].concat();
            kinds.iter().map(all).collect::<Vec<_>>()
        })
        .zip(1..)
        .map(|(transforms, number)| Proposal {
            number,
            protocol,
            spi: spi.to_vec(),
            transforms,
        })
        .collect()
}

/// Our offer for an IKE SA; `spi` only in a rekey.
pub(crate) fn ike_offer(suites: &Suites, spi: Option<u64>) -> Vec<Proposal> {
    let mut others: Vec<_> = suites.prfs.iter().map(|p| prf(*p)).collect();
    others.extend(suites.ke_methods.iter().map(|k| ke(*k)));
    let spi = spi.map_or_else(Vec::new, |spi| spi.to_be_bytes().to_vec());
    let additional = &suites.additional_ke;
    proposals(
        ProtocolId::IKE,
        &spi,
        &suites.ike_ciphers,
        &others,
        additional,
    )
}

/// Our offer for a child; with `with_ke` a fresh key exchange is part of it, after which come
/// those of `additional`.
pub(crate) fn child_offer(
    suites: &Suites,
    spi: u32,
    with_ke: bool,
    additional: &[AdditionalKe],
) -> Vec<Proposal> {
    let mut others = Vec::new();
    if with_ke {
        others.extend(suites.ke_methods.iter().map(|k| ke(*k)));
    }
    others.push(Transform::esn(EsnId::ESN));
    others.push(Transform::esn(EsnId::NO_ESN));
    let spi = spi.to_be_bytes();
    let additional = if with_ke { additional } else { &[] };
    proposals(
        ProtocolId::ESP,
        &spi,
        &suites.esp_ciphers,
        &others,
        additional,
    )
}

/// A choice: the suite, and what of it the answer says.
pub(crate) struct Chosen<S> {
    pub(crate) suite: S,
    number: u8,
    /// The additional key exchanges, NONE among them.
    additional: Vec<Transform>,
}

impl<S> Chosen<S> {
    fn of(proposal: &Proposal, suite: S, rounds: &Rounds) -> Self {
        Self {
            suite,
            number: proposal.number,
            additional: addke::answer(rounds, proposal),
        }
    }
}

/// The algorithms of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildSuite {
    pub(crate) cipher: Cipher,
    pub(crate) ke: Option<KeMethod>,
    /// The key exchanges after it (RFC 9370).
    pub(crate) additional: Rounds,
    pub(crate) esn: bool,
}

fn usable(proposal: &Proposal, kind: TransformType) -> impl Iterator<Item = &Transform> {
    proposal.of_type(kind).filter(|t| !t.unknown_attribute)
}

fn pick_cipher(proposal: &Proposal, ours: &[Cipher]) -> Option<Cipher> {
    ours.iter().copied().find(|cipher| {
        let encrypts = usable(proposal, TransformType::ENCR)
            .any(|t| t.id == cipher.id() && t.key_length == Some(cipher.key_bits()));
        encrypts
            && match cipher.integrity() {
                Some(algorithm) => has(proposal, TransformType::INTEG, algorithm.id()),
                None => integrity_may_be_none(proposal),
            }
    })
}

fn has(proposal: &Proposal, kind: TransformType, id: u16) -> bool {
    usable(proposal, kind).any(|t| t.id == id && t.key_length.is_none())
}

fn pick_prf(proposal: &Proposal, ours: &[Prf]) -> Option<Prf> {
    ours.iter()
        .copied()
        .find(|p| has(proposal, TransformType::PRF, p.id()))
}

/// The method of the KE payload if both want it, else the first of ours that the peer has, with
/// the additional key exchanges after it. A method for which there are none is passed over.
fn pick_ke(
    proposal: &Proposal,
    suites: &Suites,
    sent: Option<u16>,
    additional: bool,
) -> Option<(KeMethod, Rounds)> {
    let both = |k: &KeMethod| has(proposal, TransformType::KE, k.id());
    let ours = || suites.ke_methods.iter().copied().filter(both);
    let first = ours().find(|k| Some(k.id()) == sent);
    first.into_iter().chain(ours()).find_map(|ke| {
        let rounds = addke::choose(proposal, &suites.additional_ke, Some(ke), additional)?;
        Some((ke, rounds))
    })
}

/// With an AEAD no integrity algorithm is chosen: none, or NONE, must be in the proposal.
fn integrity_may_be_none(proposal: &Proposal) -> bool {
    proposal.of_type(TransformType::INTEG).next().is_none()
        || has(proposal, TransformType::INTEG, IntegrityId::NONE.0)
}

fn no_additional(proposal: &Proposal) -> bool {
    addke::choose(proposal, &[], None, false).is_some()
}

fn acceptable(proposal: &Proposal, protocol: ProtocolId) -> bool {
    proposal.protocol == protocol && !proposal.has_unknown_type()
}

/// Chooses for a first IKE SA, when it is not known yet whose it is (see
/// [`crate::engine::Engine::suites_at`]): what all that it may be would take, or else what the
/// first of them takes, or else what `default` does. `intermediate`: the peer has
/// IKE_INTERMEDIATE, without which no additional key exchange can be (RFC 9370, 2.2.1).
pub(crate) fn choose_first_ike(
    offer: &[Proposal],
    (candidates, default): (Vec<&Suites>, &Suites),
    sent: u16,
    intermediate: bool,
) -> Result<Chosen<Suite>, Fault> {
    let pick = |suites: &Suites| {
        pick_ike(offer, suites, sent, intermediate, false).map(|(chosen, _)| chosen)
    };
    let mut picked: Vec<_> = candidates.iter().filter_map(|s| pick(s)).collect();
    let good = |c: &Chosen<Suite>| candidates.iter().all(|s| s.allow_ike(&c.suite));
    let best = picked.iter().position(good).unwrap_or(0);
    let chosen = if picked.is_empty() {
        pick(default).ok_or(Fault::Incompatible(Refusal::NoProposalChosen))?
    } else {
        picked.swap_remove(best)
    };
    with_method(chosen, sent)
}

/// Chooses for an IKE SA. `sent` is the method of the peer's KE payload. In a rekey each
/// proposal has an SPI, which comes with the choice. `additional`: there can be additional key
/// exchanges.
pub(crate) fn choose_ike(
    offer: &[Proposal],
    suites: &Suites,
    sent: u16,
    additional: bool,
    rekey: bool,
) -> Result<(Chosen<Suite>, u64), Fault> {
    let (chosen, spi) = pick_ike(offer, suites, sent, additional, rekey)
        .ok_or(Fault::Incompatible(Refusal::NoProposalChosen))?;
    Ok((with_method(chosen, sent)?, spi))
}

/// A choice whose key exchange is the one that the peer sent; else it is asked for.
fn with_method(chosen: Chosen<Suite>, sent: u16) -> Result<Chosen<Suite>, Fault> {
    let wanted = chosen.suite.ke.id();
    if wanted == sent {
        Ok(chosen)
    } else {
        Err(Fault::Incompatible(Refusal::InvalidKe(wanted)))
    }
}

fn pick_ike(
    offer: &[Proposal],
    suites: &Suites,
    sent: u16,
    additional: bool,
    rekey: bool,
) -> Option<(Chosen<Suite>, u64)> {
    for proposal in offer {
        let spi = match (rekey, proposal.spi_u64()) {
            (true, Some(spi)) if spi != 0 => spi,
            (false, None) if proposal.spi.is_empty() => 0,
            _ => continue,
        };
        // ESN belongs to no IKE SA.
        let esn = proposal.of_type(TransformType::ESN).next().is_some();
        if esn || !acceptable(proposal, ProtocolId::IKE) {
            continue;
        }
        let (Some(cipher), Some(prf), Some((ke, rounds))) = (
            pick_cipher(proposal, &suites.ike_ciphers),
            pick_prf(proposal, &suites.prfs),
            pick_ke(proposal, suites, Some(sent), additional),
        ) else {
            continue;
        };
        let suite = Suite {
            cipher,
            prf,
            ke,
            additional: rounds,
        };
        return Some((Chosen::of(proposal, suite, &rounds), spi));
    }
    None
}

/// The one proposal that says what was chosen.
pub(crate) fn ike_answer(chosen: &Chosen<Suite>, spi: Option<u64>) -> Vec<Proposal> {
    let suite = &chosen.suite;
    let mut transforms = vec![encryption(suite.cipher), prf(suite.prf)];
    transforms.extend(suite.cipher.integrity().map(integrity));
    transforms.push(ke(suite.ke));
    transforms.extend(&chosen.additional);
    vec![Proposal {
        number: chosen.number,
        protocol: ProtocolId::IKE,
        spi: spi.map_or_else(Vec::new, |spi| spi.to_be_bytes().to_vec()),
        transforms,
    }]
}

/// Chooses for a child; gives the peer's SPI with it. `sent` is the method of the KE payload,
/// if there is one. With IKE_AUTH (`in_auth`) there is none, and offers of methods are ignored. All
/// other children, the successor of that one too, have one where `suites` ask for it: a proposal
/// that has none to choose is passed over, and one to which the peer sent no KE payload asks for it
/// (RFC 7296, 1.3, 2.17 and 3.3.6).
pub(crate) fn choose_child(
    offer: &[Proposal],
    suites: &Suites,
    sent: Option<u16>,
    in_auth: bool,
) -> Result<(Chosen<ChildSuite>, u32), Fault> {
    for proposal in offer {
        let Some(spi) = proposal.spi_u32().filter(|spi| *spi > 255) else {
            continue;
        };
        if !acceptable(proposal, ProtocolId::ESP) {
            continue;
        }
        let Some(cipher) = pick_cipher(proposal, &suites.esp_ciphers) else {
            continue;
        };
        let esn = if has(proposal, TransformType::ESN, EsnId::ESN.0) {
            true
        } else if has(proposal, TransformType::ESN, EsnId::NO_ESN.0) {
            false
        } else {
            continue;
        };
        let wants_ke =
            !in_auth && usable(proposal, TransformType::KE).any(|t| t.id != KeyExchangeId::NONE.0);
        let without = !wants_ke || has(proposal, TransformType::KE, KeyExchangeId::NONE.0);
        let none_allowed = without && (in_auth || !suites.pfs);
        let (ke, additional) = match pick_ke(proposal, suites, sent, true) {
            Some((ke, rounds)) if wants_ke && Some(ke.id()) == sent => (Some(ke), rounds),
            Some((ke, _)) if wants_ke && (sent.is_some() || !none_allowed) => {
                return Err(Fault::Incompatible(Refusal::InvalidKe(ke.id())));
            }
            // No additional exchange without the main one; in IKE_AUTH neither is asked for.
            _ if none_allowed && (in_auth || no_additional(proposal)) => (None, Rounds::default()),
            _ => continue,
        };
        let suite = ChildSuite {
            cipher,
            ke,
            additional,
            esn,
        };
        let mut chosen = Chosen::of(proposal, suite, &additional);
        if in_auth {
            chosen.additional.clear();
        }
        return Ok((chosen, spi));
    }
    Err(Fault::Incompatible(Refusal::NoProposalChosen))
}

/// The one proposal that says what was chosen.
pub(crate) fn child_answer(chosen: &Chosen<ChildSuite>, spi: u32) -> Vec<Proposal> {
    let cipher = chosen.suite.cipher;
    let mut transforms = vec![encryption(cipher)];
    transforms.extend(cipher.integrity().map(integrity));
    transforms.extend(chosen.suite.ke.map(ke));
    let esn = if chosen.suite.esn {
        EsnId::ESN
    } else {
        EsnId::NO_ESN
    };
    transforms.push(Transform::esn(esn));
    transforms.extend(&chosen.additional);
    vec![Proposal {
        number: chosen.number,
        protocol: ProtocolId::ESP,
        spi: spi.to_be_bytes().to_vec(),
        transforms,
    }]
}

/// An answer holds one proposal with one transform a type, each of which we offered.
fn is_single_choice(answer: &[Proposal], offer: &[Proposal]) -> bool {
    let [proposal] = answer else { return false };
    let Some(offered) = offer.iter().find(|o| o.number == proposal.number) else {
        return false;
    };
    proposal.protocol == offered.protocol
        && proposal.transforms.iter().all(|t| {
            let none = t.kind == TransformType::INTEG && t.id == IntegrityId::NONE.0;
            (none || offered.transforms.contains(t)) && proposal.of_type(t.kind).count() == 1
        })
}

/// Reads the answer to our offer for an IKE SA.
pub(crate) fn read_ike_answer(
    answer: &[Proposal],
    suites: &Suites,
    sent: KeMethod,
    additional: bool,
    rekey: bool,
) -> Result<(Suite, u64), Fault> {
    let offer = ike_offer(suites, None);
    if !is_single_choice(answer, &offer) {
        return Err(Fault::Misbehaved("answer_not_offered"));
    }
    let (chosen, spi) = choose_ike(answer, suites, sent.id(), additional, rekey)
        .map_err(|_| Fault::Misbehaved("answer_not_offered"))?;
    Ok((chosen.suite, spi))
}

/// Reads the answer to our offer for a child.
pub(crate) fn read_child_answer(
    answer: &[Proposal],
    suites: &Suites,
    sent: Option<KeMethod>,
    additional: &[AdditionalKe],
) -> Result<(ChildSuite, u32), Fault> {
    let offer = child_offer(suites, 0, sent.is_some(), additional);
    if !is_single_choice(answer, &offer) {
        return Err(Fault::Misbehaved("answer_not_offered"));
    }
    let (chosen, spi) = choose_child(answer, suites, sent.map(KeMethod::id), sent.is_none())
        .map_err(|_| Fault::Misbehaved("answer_not_offered"))?;
    if chosen.suite.ke != sent {
        return Err(Fault::Misbehaved("answer_without_ke"));
    }
    Ok((chosen.suite, spi))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without additional key exchanges.
    fn suites() -> Suites {
        Suites {
            additional_ke: Vec::new(),
            ..Suites::default()
        }
    }

    #[test]
    fn our_offers_are_accepted_by_ourselves() {
        let offer = ike_offer(&suites(), None);
        let (chosen, _) = choose_ike(&offer, &suites(), 31, true, false).unwrap();
        assert_eq!(chosen.suite.ke, KeMethod::X25519);
        let answer = ike_answer(&chosen, None);
        assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, true, false).is_ok());
        let offer = child_offer(&suites(), 0x1000, true, &[]);
        let (chosen, spi) = choose_child(&offer, &suites(), Some(19), false).unwrap();
        assert_eq!(
            (chosen.suite.ke, chosen.suite.esn, spi),
            (Some(KeMethod::P256), true, 0x1000)
        );
        let answer = child_answer(&chosen, 0x2000);
        assert!(read_child_answer(&answer, &suites(), Some(KeMethod::P256), &[]).is_ok());
        assert!(read_child_answer(&answer, &suites(), None, &[]).is_err());
    }

    // CVE-2016-5391 (lesson L03): a proposal without one of the mandatory transforms.
    #[test]
    fn each_missing_transform_is_no_proposal() {
        for kind in [TransformType::ENCR, TransformType::PRF, TransformType::KE] {
            let mut offer = ike_offer(&suites(), None);
            offer[0].transforms.retain(|t| t.kind != kind);
            assert_eq!(
                choose_ike(&offer, &suites(), 31, true, false).err(),
                Some(Fault::Incompatible(Refusal::NoProposalChosen))
            );
        }
        for kind in [TransformType::ENCR, TransformType::ESN] {
            let mut offer = child_offer(&suites(), 0x1000, false, &[]);
            offer[0].transforms.retain(|t| t.kind != kind);
            assert!(choose_child(&offer, &suites(), None, true).is_err());
        }
    }

    // CVE-2024-3652 (lesson L04): a bad proposal is skipped, the next good one chosen.
    #[test]
    fn a_bad_proposal_is_skipped() {
        let good = ike_offer(&suites(), None).remove(0);
        let bad = |t: Transform| {
            let mut p = good.clone();
            p.transforms.push(t);
            p
        };
        for bad in [
            bad(Transform::new(TransformType(99), 1)),
            bad(Transform::integrity(IntegrityId::HMAC_SHA2_256_128)),
            bad(Transform::esn(EsnId::ESN)),
            bad(Transform::new(TransformType::ADDKE1, 36)),
            Proposal {
                spi: vec![1; 8],
                ..good.clone()
            },
            Proposal {
                protocol: ProtocolId::ESP,
                ..good.clone()
            },
        ] {
            let second = Proposal {
                number: 2,
                ..good.clone()
            };
            let (chosen, _) = choose_ike(&[bad, second], &suites(), 31, true, false).unwrap();
            assert_eq!(chosen.number, 2);
        }
    }

    /// A peer's with everything, AES-CBC in front.
    fn with_cbc() -> Suites {
        let mut all: Vec<_> = Cipher::all().collect();
        all.reverse();
        Suites {
            ike_ciphers: all.clone(),
            esp_ciphers: all,
            additional_ke: Vec::new(),
            ..Suites::default()
        }
    }

    // Lesson L04 for ciphers that need an integrity algorithm, and for those that must have none.
    #[test]
    fn odd_pairs_of_cipher_and_integrity_are_skipped() {
        let suites = with_cbc();
        let encr = |id: u16, bits| Transform::encryption(EncryptionId(id), bits);
        let mac = IntegrityId::HMAC_SHA2_256_128;
        let pairs: [(Transform, Option<IntegrityId>); 9] = [
            (encr(12, Some(128)), None),
            (encr(12, Some(128)), Some(IntegrityId::NONE)),
            (encr(12, Some(192)), Some(mac)),
            (encr(12, None), Some(mac)),
            (encr(12, Some(0)), Some(mac)),
            (encr(12, Some(256)), Some(IntegrityId::HMAC_SHA1_96)),
            // NULL, GMAC, and an AEAD with an integrity algorithm.
            (encr(11, None), Some(mac)),
            (encr(21, Some(256)), None),
            (encr(20, Some(256)), Some(mac)),
        ];
        for (cipher, mac) in pairs {
            let pair = [Some(cipher), mac.map(Transform::integrity)];
            let with = |mut proposal: Proposal| {
                let strange =
                    |t: &Transform| !matches!(t.kind, TransformType::ENCR | TransformType::INTEG);
                proposal.transforms.retain(strange);
                proposal.transforms.extend(pair.iter().flatten());
                proposal
            };
            let good = ike_offer(&suites, None).remove(0);
            let offer = [with(good.clone()), Proposal { number: 2, ..good }];
            let (chosen, _) = choose_ike(&offer, &suites, 31, true, false).unwrap();
            assert_eq!(chosen.number, 2, "{pair:?}");
            assert!(choose_ike(&offer[..1], &suites, 31, true, false).is_err());
            let good = child_offer(&suites, 0x1000, false, &[]).remove(0);
            let offer = [with(good.clone()), Proposal { number: 2, ..good }];
            let (chosen, _) = choose_child(&offer, &suites, None, true).unwrap();
            assert_eq!(chosen.number, 2, "{pair:?}");
        }
    }

    #[test]
    fn each_integrity_algorithm_is_offered_alone_and_no_aead_with_one() {
        let suites = with_cbc();
        for offer in [
            ike_offer(&suites, None),
            child_offer(&suites, 0x1000, true, &[]),
        ] {
            assert_eq!(offer.len(), 4);
            for (number, proposal) in (1..).zip(&offer) {
                assert_eq!(proposal.number, number);
                let macs = proposal.of_type(TransformType::INTEG).count();
                let aead = proposal.of_type(TransformType::ENCR).all(|t| t.id == 20);
                assert_eq!(macs, usize::from(!aead));
                assert_eq!(proposal.of_type(TransformType::ENCR).count(), 2);
            }
        }
        // An answer that leaves the integrity algorithm out, or changes it, is none.
        let offer = ike_offer(&suites, None);
        let (chosen, _) = choose_ike(&offer, &suites, 31, true, false).unwrap();
        let answer = ike_answer(&chosen, None);
        let read = |answer: &[Proposal]| {
            read_ike_answer(answer, &suites, KeMethod::X25519, true, false).is_ok()
        };
        assert!(read(&answer));
        for other in [IntegrityId::NONE, IntegrityId::HMAC_SHA1_96] {
            let mut wrong = answer.clone();
            for t in &mut wrong[0].transforms {
                if t.kind == TransformType::INTEG {
                    t.id = other.0;
                }
            }
            assert!(!read(&wrong));
        }
        let mut without = answer;
        without[0]
            .transforms
            .retain(|t| t.kind != TransformType::INTEG);
        assert!(!read(&without));
    }

    // Forward secrecy that is configured is not left to the peer.
    #[test]
    fn a_child_without_a_key_exchange_is_refused_where_one_is_wanted() {
        let lax = Suites {
            pfs: false,
            ..suites()
        };
        let none = Transform::key_exchange(KeyExchangeId::NONE);
        let without = child_offer(&suites(), 0x1000, false, &[]);
        let with = child_offer(&suites(), 0x1000, true, &[]);
        let mut either = with.clone();
        either[0].transforms.push(none);
        let mut only_none = without.clone();
        only_none[0].transforms.push(none);
        let refused = Fault::Incompatible(Refusal::NoProposalChosen);
        let asks = Fault::Incompatible(Refusal::InvalidKe(31));
        let of = |offer: &[Proposal], suites: &Suites, sent, in_auth| {
            choose_child(offer, suites, sent, in_auth).map(|(chosen, _)| chosen.suite.ke)
        };
        for offer in [&without, &only_none] {
            assert_eq!(of(offer, &suites(), None, false), Err(refused.clone()));
            // A KE payload that no proposal speaks of is none.
            assert_eq!(of(offer, &suites(), Some(31), false), Err(refused.clone()));
            assert_eq!(of(offer, &lax, None, false), Ok(None));
            assert_eq!(of(offer, &suites(), None, true), Ok(None));
        }
        assert_eq!(of(&either, &suites(), None, false), Err(asks));
        assert_eq!(of(&either, &lax, None, false), Ok(None));
        // The next proposal has one.
        let second = Proposal {
            number: 2,
            ..with[0].clone()
        };
        let both = [without[0].clone(), second];
        let (chosen, _) = choose_child(&both, &suites(), Some(31), false).unwrap();
        assert_eq!(
            (chosen.number, chosen.suite.ke),
            (2, Some(KeMethod::X25519))
        );
    }

    fn hybrid(required: bool) -> Suites {
        Suites {
            additional_ke: vec![AdditionalKe {
                methods: vec![KeMethod::MlKem768],
                required,
            }],
            ..Suites::default()
        }
    }

    #[test]
    fn an_old_peer_chooses_the_proposal_without_additional_exchanges() {
        let offer = ike_offer(&hybrid(false), None);
        assert_eq!(offer.len(), 2);
        let known = |p: &Proposal| p.of_type(TransformType::ADDKE1).next().is_none();
        assert!(!known(&offer[0]) && known(&offer[1]));
        // A required exchange leaves it nothing.
        assert_eq!(ike_offer(&hybrid(true), None).len(), 1);
        for (suites, intermediate) in [(suites(), true), (hybrid(false), false)] {
            let (chosen, _) = choose_ike(&offer, &suites, 31, intermediate, false).unwrap();
            assert!(chosen.suite.additional.is_empty());
            let answer = ike_answer(&chosen, None);
            let read = read_ike_answer(&answer, &hybrid(false), KeMethod::X25519, true, false);
            assert!(read.unwrap().0.additional.is_empty());
        }
        let required = choose_ike(&offer, &hybrid(true), 31, false, false);
        assert!(required.is_err());
    }

    #[test]
    fn additional_exchanges_are_chosen_and_read() {
        for required in [false, true] {
            let suites = hybrid(required);
            let offer = ike_offer(&suites, Some(7));
            let (chosen, spi) = choose_ike(&offer, &suites, 31, true, true).unwrap();
            let answer = ike_answer(&chosen, Some(8));
            let read = read_ike_answer(&answer, &suites, KeMethod::X25519, true, true);
            let (suite, spi_r) = read.unwrap();
            assert_eq!((suite, spi, spi_r), (chosen.suite, 7, 8));
            assert_eq!(suite.additional.after(0), Some(KeMethod::MlKem768));
            assert_eq!(suite.additional.after(1), None);
            // The peer cannot have chosen it without IKE_INTERMEDIATE.
            let read = read_ike_answer(&answer, &suites, KeMethod::X25519, false, true);
            assert!(read.is_err());

            let additional = &suites.additional_ke;
            let offer = child_offer(&suites, 0x1000, true, additional);
            let (chosen, _) = choose_child(&offer, &suites, Some(31), false).unwrap();
            assert_eq!(chosen.suite.additional.after(0), Some(KeMethod::MlKem768));
            let answer = child_answer(&chosen, 0x2000);
            let sent = Some(KeMethod::X25519);
            assert!(read_child_answer(&answer, &suites, sent, additional).is_ok());
            // It was not offered.
            assert!(read_child_answer(&answer, &suites, sent, &[]).is_err());
            // A child of IKE_AUTH has no key exchange.
            let offer = child_offer(&suites, 0x1000, false, additional);
            let (chosen, _) = choose_child(&offer, &suites, None, true).unwrap();
            assert_eq!(chosen.suite.additional, Rounds::default());
        }
    }

    // Lesson L41: the main method again.
    #[test]
    fn the_main_method_is_not_an_additional_one() {
        let mut suites = hybrid(true);
        suites.ke_methods = vec![KeMethod::MlKem768, KeMethod::X25519];
        let offer = ike_offer(&suites, None);
        assert_eq!(
            choose_ike(&offer, &suites, 36, true, false).err(),
            Some(Fault::Incompatible(Refusal::InvalidKe(31)))
        );
        let answer = |main| {
            let mut answer = offer.clone();
            answer[0].transforms = vec![
                encryption(Cipher::AES_256_GCM),
                prf(Prf::HmacSha256),
                ke(main),
                Transform::new(TransformType::ADDKE1, 36),
            ];
            read_ike_answer(&answer, &suites, main, true, false)
        };
        assert!(answer(KeMethod::X25519).is_ok());
        assert!(answer(KeMethod::MlKem768).is_err());
    }

    #[test]
    fn a_method_we_do_not_have_asks_for_one_that_we_have() {
        let offer = ike_offer(&suites(), None);
        assert_eq!(
            choose_ike(&offer, &suites(), 14, true, false).err(),
            Some(Fault::Incompatible(Refusal::InvalidKe(31)))
        );
    }

    #[test]
    fn an_answer_that_we_did_not_offer_is_refused() {
        let mut answer = ike_offer(&suites(), None);
        assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, true, false).is_err());
        answer[0].transforms = vec![
            encryption(Cipher::AES_128_GCM),
            prf(Prf::HmacSha256),
            ke(KeMethod::X25519),
        ];
        assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, true, false).is_err());
    }
}
