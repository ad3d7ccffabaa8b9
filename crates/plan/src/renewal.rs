//! Whose turn it is to renew a certificate.
//!
//! By age every node renews on its own, spread by its UID so that a cluster made in one minute
//! does not renew in one minute. On request (`certificates.rotation` raised), and when another CA
//! signs than the one of its certificate, the nodes go in the order of their UIDs, a wave of a twentieth
//! of them at a time, so that the two ends of a tunnel seldom reauthenticate at once and the controller
//! is not asked by all in one second: up to twenty nodes go one after the other. A wave is no row that waits
//! for its last: whoever is done makes room for the next. A node that is dead holds up the others for a
//! slot and no longer.

use std::time::Duration;

use testudo_model::policy::Certificates;
use testudo_model::{CertificateFacts, NodeEncryption, UnixTime};

/// How long a node waits for each one before it in a rotation.
pub const SLOT: Duration = Duration::from_secs(15);

/// A wave is so many nodes' part of them all.
const WAVES: usize = 20;

/// The part of a certificate's age by which renewals are spread, in percent.
const SPREAD_PERCENT: u64 = 10;

/// Whether to renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Not before this time, as things stand.
    Later(UnixTime),
    /// Now, for this reason.
    Now(Reason),
    /// A rotation is wanted, but these nodes go first, or the node's own second has not come; look again
    /// when one of them has changed, or after this time.
    After {
        /// The nodes before this one that have not finished.
        nodes: Vec<String>,
        /// When they are waited for no longer.
        until: UnixTime,
    },
}

/// Why to renew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no certificate.
    Missing,
    /// It is old enough.
    Age,
    /// `certificates.rotation` asks for it.
    Rotation(u64),
    /// Another CA signs than the one of the certificate in use.
    Authority,
}

/// What the decision depends on.
pub struct Known<'a> {
    /// The policy's lifetimes.
    pub certificates: &'a Certificates,
    /// This node.
    pub own: &'a NodeEncryption,
    /// All nodes, this one among them or not.
    pub nodes: &'a [NodeEncryption],
    /// The rotation that a node is to be at, by its name: the cluster's and what is asked of it
    /// alone.
    pub rotation_of: &'a dyn Fn(&str) -> u64,
    /// The certificate in use.
    pub certificate: Option<&'a CertificateFacts>,
    /// The rotation for which `certificate` was asked; tunnels may not use it all yet.
    pub certificate_rotation: u64,
    /// Common name of the CA that signs, if it is known.
    pub signer: Option<&'a str>,
    /// When this agent first saw the rotation that is wanted, or the CA that signs.
    pub rotation_seen: UnixTime,
}

/// Decides.
pub fn turn(known: &Known<'_>, now: UnixTime) -> Turn {
    let Some(certificate) = known.certificate else {
        return Turn::Now(Reason::Missing);
    };
    let due = due(known, certificate);
    if now >= due {
        return Turn::Now(Reason::Age);
    }
    let wanted = (known.rotation_of)(known.own.name());
    let behind = known.certificate_rotation.max(known.own.status.rotation) < wanted;
    let reason = match known.signer {
        Some(signer) if certificate.issuer != signer => Reason::Authority,
        _ if behind => Reason::Rotation(wanted),
        _ => return Turn::Later(due),
    };
    let others = known.nodes.iter();
    let others: Vec<_> = others.filter(|n| n.name() != known.own.name()).collect();
    let wave = (others.len() + 1).div_ceil(WAVES);
    let mine = key(known.own);
    let mut before: Vec<&NodeEncryption> = others;
    before.retain(|node| key(node) < mine);
    let place = u32::try_from(before.len() / wave).unwrap_or(u32::MAX);
    // Those of one wave do not begin in one second.
    let begin = known.rotation_seen + jitter(known.own, wave);
    let until = begin + SLOT.saturating_mul(place);
    before.retain(|node| is_behind(known, node));
    if (before.len() < wave && now >= begin) || now >= until {
        return Turn::Now(reason);
    }
    before.sort_by_key(|node| key(node));
    let until = match before.len() < wave {
        true => begin,
        false => until,
    };
    Turn::After {
        nodes: before.iter().map(|node| node.name().to_owned()).collect(),
        until,
    }
}

/// What decides the order.
fn key(node: &NodeEncryption) -> (&str, &str) {
    (node.spec.uid.as_str(), node.name())
}

/// How long a node of a wave waits from the beginning on: up to a slot, and not at all where it is alone.
fn jitter(node: &NodeEncryption, wave: usize) -> Duration {
    match wave {
        1 => Duration::ZERO,
        _ => {
            // By the second: so are the times.
            let part = fraction(node.spec.uid.as_str()) % SLOT.as_secs();
            Duration::from_secs(part)
        }
    }
}

/// Whether another node has yet to take its turn.
fn is_behind(known: &Known<'_>, node: &NodeEncryption) -> bool {
    let shown = node.status.authorities.presented.as_deref();
    let other_ca = shown.is_some() && known.signer.is_some() && shown != known.signer;
    other_ca || node.status.rotation < (known.rotation_of)(node.name())
}

/// When the certificate is old enough: `renewAfter`, less up to a tenth of it by the node's UID,
/// and never so late that less than a tenth of its life is left.
fn due(known: &Known<'_>, certificate: &CertificateFacts) -> UnixTime {
    let begin = certificate.not_before.0;
    let life = u64::try_from(certificate.not_after.0.saturating_sub(begin)).unwrap_or(0);
    let wanted = known.certificates.renew_after.0.as_secs();
    let age = wanted.min(life - life / 10);
    let spread = age / 100 * SPREAD_PERCENT + age % 100 * SPREAD_PERCENT / 100;
    let early = u64::try_from(
        u128::from(spread) * u128::from(fraction(known.own.spec.uid.as_str()))
            / u128::from(u64::MAX),
    )
    .unwrap_or(spread);
    certificate.not_before + Duration::from_secs(age.saturating_sub(early))
}

/// A number that follows from a text and is spread evenly: FNV-1a with a finisher.
fn fraction(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
