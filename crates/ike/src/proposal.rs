//! Offers of algorithms, and the choice among them (RFC 7296, 2.7 and 3.3).

use testudo_crypto::{Aead, KeMethod, Prf};
use testudo_wire::ike::{
    EncryptionId, EsnId, IntegrityId, KeyExchangeId, Proposal, ProtocolId, Transform, TransformType,
};

use crate::error::{Fault, Refusal};
use crate::keys::Suite;
use crate::suites::Suites;

fn encryption(aead: Aead) -> Transform {
    Transform::encryption(EncryptionId(aead.id()), Some(aead.key_bits()))
}

fn prf(prf: Prf) -> Transform {
    Transform::new(TransformType::PRF, prf.id())
}

fn ke(method: KeMethod) -> Transform {
    Transform::key_exchange(KeyExchangeId(method.id()))
}

/// Our offer for an IKE SA; `spi` only in a rekey.
pub(crate) fn ike_offer(suites: &Suites, spi: Option<u64>) -> Vec<Proposal> {
    let mut transforms: Vec<_> = suites.ike_aeads.iter().map(|a| encryption(*a)).collect();
    transforms.extend(suites.prfs.iter().map(|p| prf(*p)));
    transforms.extend(suites.ke_methods.iter().map(|k| ke(*k)));
    vec![Proposal {
        number: 1,
        protocol: ProtocolId::IKE,
        spi: spi.map_or_else(Vec::new, |spi| spi.to_be_bytes().to_vec()),
        transforms,
    }]
}

/// Our offer for a child; with `with_ke` a fresh key exchange is part of it.
pub(crate) fn child_offer(suites: &Suites, spi: u32, with_ke: bool) -> Vec<Proposal> {
    let mut transforms: Vec<_> = suites.esp_aeads.iter().map(|a| encryption(*a)).collect();
    if with_ke {
        transforms.extend(suites.ke_methods.iter().map(|k| ke(*k)));
    }
    transforms.push(Transform::esn(EsnId::ESN));
    transforms.push(Transform::esn(EsnId::NO_ESN));
    vec![Proposal {
        number: 1,
        protocol: ProtocolId::ESP,
        spi: spi.to_be_bytes().to_vec(),
        transforms,
    }]
}

/// A choice: the suite and the peer's SPI, and the proposal that says so.
pub(crate) struct Chosen<S> {
    pub(crate) suite: S,
    pub(crate) number: u8,
}

/// The algorithms of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildSuite {
    pub(crate) aead: Aead,
    pub(crate) ke: Option<KeMethod>,
    pub(crate) esn: bool,
}

fn usable(proposal: &Proposal, kind: TransformType) -> impl Iterator<Item = &Transform> {
    proposal.of_type(kind).filter(|t| !t.unknown_attribute)
}

fn pick_aead(proposal: &Proposal, ours: &[Aead]) -> Option<Aead> {
    ours.iter().copied().find(|aead| {
        usable(proposal, TransformType::ENCR)
            .any(|t| t.id == aead.id() && t.key_length == Some(aead.key_bits()))
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

/// The method of the KE payload if both want it, else the first of ours that the peer has.
fn pick_ke(proposal: &Proposal, ours: &[KeMethod], sent: Option<u16>) -> Option<KeMethod> {
    let both = |k: &KeMethod| has(proposal, TransformType::KE, k.id());
    ours.iter()
        .copied()
        .find(|k| Some(k.id()) == sent && both(k))
        .or_else(|| ours.iter().copied().find(both))
}

/// With an AEAD no integrity algorithm is chosen: none, or NONE, must be in the proposal.
fn integrity_may_be_none(proposal: &Proposal) -> bool {
    proposal.of_type(TransformType::INTEG).next().is_none()
        || has(proposal, TransformType::INTEG, IntegrityId::NONE.0)
}

/// Additional key exchanges must be there with a choice of NONE, or not at all (RFC 9370, 2.2.2).
fn additional_ke_may_be_none(proposal: &Proposal) -> bool {
    (TransformType::ADDKE1.0..=TransformType::ADDKE7.0)
        .map(TransformType)
        .all(|kind| {
            proposal.of_type(kind).next().is_none() || has(proposal, kind, KeyExchangeId::NONE.0)
        })
}

fn acceptable(proposal: &Proposal, protocol: ProtocolId) -> bool {
    proposal.protocol == protocol
        && !proposal.has_unknown_type()
        && integrity_may_be_none(proposal)
        && additional_ke_may_be_none(proposal)
}

/// Chooses for a first IKE SA, when it is not known yet whose it is: what all that it may be
/// would take, or else what the first of them takes (see [`crate::engine::Engine::suites_at`]).
pub(crate) fn choose_first_ike(
    offer: &[Proposal],
    candidates: &[&Suites],
    sent: u16,
) -> Result<Chosen<Suite>, Fault> {
    let mut first = None;
    for suites in candidates {
        let Some((chosen, _)) = pick_ike(offer, suites, sent, false) else {
            continue;
        };
        if candidates.iter().all(|s| s.allow_ike(&chosen.suite)) {
            return with_method(chosen, sent);
        }
        first = first.or(Some(chosen));
    }
    let chosen = first.ok_or(Fault::Incompatible(Refusal::NoProposalChosen))?;
    with_method(chosen, sent)
}

/// Chooses for an IKE SA. `sent` is the method of the peer's KE payload. In a rekey each
/// proposal has an SPI, which comes with the choice.
pub(crate) fn choose_ike(
    offer: &[Proposal],
    suites: &Suites,
    sent: u16,
    rekey: bool,
) -> Result<(Chosen<Suite>, u64), Fault> {
    let (chosen, spi) = pick_ike(offer, suites, sent, rekey)
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
        let (Some(aead), Some(prf), Some(ke)) = (
            pick_aead(proposal, &suites.ike_aeads),
            pick_prf(proposal, &suites.prfs),
            pick_ke(proposal, &suites.ke_methods, Some(sent)),
        ) else {
            continue;
        };
        let suite = Suite { aead, prf, ke };
        let number = proposal.number;
        return Some((Chosen { suite, number }, spi));
    }
    None
}

/// The one proposal that says what was chosen.
pub(crate) fn ike_answer(chosen: &Chosen<Suite>, spi: Option<u64>) -> Vec<Proposal> {
    vec![Proposal {
        number: chosen.number,
        protocol: ProtocolId::IKE,
        spi: spi.map_or_else(Vec::new, |spi| spi.to_be_bytes().to_vec()),
        transforms: vec![
            encryption(chosen.suite.aead),
            prf(chosen.suite.prf),
            ke(chosen.suite.ke),
        ],
    }]
}

/// Chooses for a child; gives the peer's SPI with it. `sent` is the method of the KE payload,
/// if there is one. With IKE_AUTH (`in_auth`) there is none, and offers of methods are ignored.
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
        let Some(aead) = pick_aead(proposal, &suites.esp_aeads) else {
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
        let none_allowed = !wants_ke || has(proposal, TransformType::KE, KeyExchangeId::NONE.0);
        let ke = match pick_ke(proposal, &suites.ke_methods, sent) {
            Some(ke) if wants_ke && Some(ke.id()) == sent => Some(ke),
            Some(ke) if wants_ke && sent.is_some() => {
                return Err(Fault::Incompatible(Refusal::InvalidKe(ke.id())));
            }
            Some(ke) if !none_allowed => {
                return Err(Fault::Incompatible(Refusal::InvalidKe(ke.id())));
            }
            _ if none_allowed => None,
            _ => continue,
        };
        let suite = ChildSuite { aead, ke, esn };
        let number = proposal.number;
        return Ok((Chosen { suite, number }, spi));
    }
    Err(Fault::Incompatible(Refusal::NoProposalChosen))
}

/// The one proposal that says what was chosen.
pub(crate) fn child_answer(chosen: &Chosen<ChildSuite>, spi: u32) -> Vec<Proposal> {
    let mut transforms = vec![encryption(chosen.suite.aead)];
    transforms.extend(chosen.suite.ke.map(ke));
    let esn = if chosen.suite.esn {
        EsnId::ESN
    } else {
        EsnId::NO_ESN
    };
    transforms.push(Transform::esn(esn));
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
    rekey: bool,
) -> Result<(Suite, u64), Fault> {
    let offer = ike_offer(suites, None);
    if !is_single_choice(answer, &offer) {
        return Err(Fault::Misbehaved("answer_not_offered"));
    }
    let (chosen, spi) = choose_ike(answer, suites, sent.id(), rekey)
        .map_err(|_| Fault::Misbehaved("answer_not_offered"))?;
    Ok((chosen.suite, spi))
}

/// Reads the answer to our offer for a child.
pub(crate) fn read_child_answer(
    answer: &[Proposal],
    suites: &Suites,
    sent: Option<KeMethod>,
) -> Result<(ChildSuite, u32), Fault> {
    let offer = child_offer(suites, 0, sent.is_some());
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

    fn suites() -> Suites {
        Suites::default()
    }

    #[test]
    fn our_offers_are_accepted_by_ourselves() {
        let offer = ike_offer(&suites(), None);
        let (chosen, _) = choose_ike(&offer, &suites(), 31, false).unwrap();
        assert_eq!(chosen.suite.ke, KeMethod::X25519);
        let answer = ike_answer(&chosen, None);
        assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, false).is_ok());
        let offer = child_offer(&suites(), 0x1000, true);
        let (chosen, spi) = choose_child(&offer, &suites(), Some(19), false).unwrap();
        assert_eq!(
            (chosen.suite.ke, chosen.suite.esn, spi),
            (Some(KeMethod::P256), true, 0x1000)
        );
        let answer = child_answer(&chosen, 0x2000);
        assert!(read_child_answer(&answer, &suites(), Some(KeMethod::P256)).is_ok());
        assert!(read_child_answer(&answer, &suites(), None).is_err());
    }

    // CVE-2016-5391 (lesson L03): a proposal without one of the mandatory transforms.
    #[test]
    fn each_missing_transform_is_no_proposal() {
        for kind in [TransformType::ENCR, TransformType::PRF, TransformType::KE] {
            let mut offer = ike_offer(&suites(), None);
            offer[0].transforms.retain(|t| t.kind != kind);
            assert_eq!(
                choose_ike(&offer, &suites(), 31, false).err(),
                Some(Fault::Incompatible(Refusal::NoProposalChosen))
            );
        }
        for kind in [TransformType::ENCR, TransformType::ESN] {
            let mut offer = child_offer(&suites(), 0x1000, false);
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
            let (chosen, _) = choose_ike(&[bad, second], &suites(), 31, false).unwrap();
            assert_eq!(chosen.number, 2);
        }
    }

    #[test]
    fn a_method_we_do_not_have_asks_for_one_that_we_have() {
        let offer = ike_offer(&suites(), None);
        assert_eq!(
            choose_ike(&offer, &suites(), 14, false).err(),
            Some(Fault::Incompatible(Refusal::InvalidKe(31)))
        );
    }

    #[test]
    fn an_answer_that_we_did_not_offer_is_refused() {
        let mut answer = ike_offer(&suites(), None);
        assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, false).is_err());
        answer[0].transforms = vec![
            encryption(Aead::Aes128Gcm16),
            prf(Prf::HmacSha256),
            ke(KeMethod::X25519),
        ];
        assert!(read_ike_answer(&answer, &suites(), KeMethod::X25519, false).is_err());
    }
}
