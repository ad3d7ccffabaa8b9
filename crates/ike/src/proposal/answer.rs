//! What the answer to an offer says, written and read.

use testudo_crypto::KeMethod;
use testudo_wire::ike::{EsnId, IntegrityId, Proposal, ProtocolId, Transform, TransformType};

use super::{
    ChildSuite, Chosen, child_offer, choose_child, choose_ike, encryption, ike_offer, integrity,
    ke, prf,
};
use crate::addke::AdditionalKe;
use crate::error::Fault;
use crate::keys::Suite;
use crate::suites::Suites;

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
