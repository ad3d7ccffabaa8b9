//! The choice among what a peer offers.

use testudo_crypto::{Cipher, KeMethod, Prf};
use testudo_wire::ike::{
    EsnId, IntegrityId, KeyExchangeId, Proposal, ProtocolId, Transform, TransformType,
};

use super::{ChildSuite, Chosen};
use crate::addke::{self, Rounds};
use crate::error::{Fault, Refusal};
use crate::keys::Suite;
use crate::suites::Suites;

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

fn usable(proposal: &Proposal, kind: TransformType) -> impl Iterator<Item = &Transform> {
    proposal.of_type(kind).filter(|t| !t.unknown_attribute)
}

fn has(proposal: &Proposal, kind: TransformType, id: u16) -> bool {
    usable(proposal, kind).any(|t| t.id == id && t.key_length.is_none())
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
