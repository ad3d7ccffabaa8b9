//! Offers of algorithms, and the choice among them (RFC 7296, 2.7 and 3.3).

mod answer;
mod choose;

use testudo_crypto::{Cipher, Integrity, KeMethod, Prf};
use testudo_wire::ike::{
    EncryptionId, EsnId, IntegrityId, KeyExchangeId, Proposal, ProtocolId, Transform, TransformType,
};

use crate::addke::{self, AdditionalKe, Rounds};
use crate::suites::Suites;

pub(crate) use answer::{child_answer, ike_answer, read_child_answer, read_ike_answer};
pub(crate) use choose::{choose_child, choose_first_ike, choose_ike};

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

#[cfg(test)]
mod tests;
