//! Post-quantum pre-shared keys (RFC 8784): mixed into SK_d, SK_pi and SK_pr, so that who records
//! now and breaks the key exchange later still lacks the children's keys.
//!
//! The responder says USE_PPK before it knows who asks: it does so when any of its peers has a
//! PPK. Whether this one has, it sees with IKE_AUTH.

use testudo_model::PeerId;
use testudo_wire::ike::{Authentication, Notify, NotifyType, Payload};

use crate::config::PpkConfig;
use crate::engine::Engine;
use crate::error::Fault;
use crate::keys::{IkeKeys, Roots};
use crate::message::Payloads;
use crate::verify::FailedCheck;

/// PPK_ID_FIXED: the bytes after it are the name that both ends have configured (RFC 8784, 5.1).
const PPK_ID_FIXED: u8 = 2;
/// Least bytes of a PPK: 256 bits stay 128 against Grover's search (RFC 8784, 4).
pub(crate) const PPK_MIN: usize = 32;

/// What an initiator has offered with its PPK.
pub(crate) struct PpkOffer {
    /// The keys if the responder uses it too.
    pub(crate) roots: Roots,
    id: Vec<u8>,
    required: bool,
}

impl PpkOffer {
    /// PPK_IDENTITY with its name.
    pub(crate) fn identity(&self) -> Payload {
        let data = [&[PPK_ID_FIXED], &self.id[..]].concat();
        Payload::Notify(Notify::new(NotifyType::PPK_IDENTITY, data))
    }

    /// Whether a proof made without it goes along.
    pub(crate) fn is_optional(&self) -> bool {
        !self.required
    }
}

/// NO_PPK_AUTH: the proof for a responder that does not know the PPK. Its method is that of the
/// AUTH payload beside it.
pub(crate) fn no_ppk_auth(auth: Authentication) -> Payload {
    Payload::Notify(Notify::new(NotifyType::NO_PPK_AUTH, auth.data))
}

/// USE_PPK.
pub(crate) fn use_ppk() -> Payload {
    Payload::Notify(Notify::new(NotifyType::USE_PPK, []))
}

/// PPK_IDENTITY of a responder: the PPK is in use.
pub(crate) fn in_use() -> Payload {
    Payload::Notify(Notify::new(NotifyType::PPK_IDENTITY, []))
}

fn refused(text: &str) -> Fault {
    Fault::Unproven(FailedCheck::Ppk, text.into())
}

impl Engine {
    fn ppk_of(&self, peer: &PeerId) -> Option<&PpkConfig> {
        self.peers.get(peer)?.config.ppk.as_ref()
    }

    /// Whether we ask this peer, in IKE_SA_INIT, to use a PPK.
    pub(crate) fn asks_ppk(&self, peer: &PeerId) -> bool {
        self.ppk_of(peer).is_some()
    }

    /// Whether we answer an IKE_SA_INIT with USE_PPK.
    pub(crate) fn answers_ppk(&self, payloads: &Payloads) -> bool {
        self.ppk_peers > 0 && payloads.notify(NotifyType::USE_PPK).is_some()
    }

    /// Initiator: whether an answer to IKE_SA_INIT that has USE_PPK or not lacks what this peer
    /// must say (lesson L40).
    pub(crate) fn lacks_ppk(&self, peer: &PeerId, answered: bool) -> Option<Fault> {
        let required = self.ppk_of(peer).is_some_and(|ppk| ppk.required);
        (required && !answered).then(|| refused("the peer uses no PPK, and one is required"))
    }

    /// Initiator: what follows from the answer to IKE_SA_INIT; `answered`: USE_PPK was in it.
    /// What is required may have changed since that came.
    pub(crate) fn offer_ppk(
        &self,
        peer: &PeerId,
        keys: &IkeKeys,
        answered: bool,
    ) -> Result<Option<PpkOffer>, Fault> {
        let Some(ppk) = self.ppk_of(peer) else {
            return Ok(None);
        };
        if let Some(fault) = self.lacks_ppk(peer, answered) {
            return Err(fault);
        }
        Ok(answered.then(|| PpkOffer {
            roots: keys.with_ppk(&ppk.secret),
            id: ppk.id.clone(),
            required: ppk.required,
        }))
    }

    /// Initiator: whether the responder's IKE_AUTH uses the PPK; the rest of PPK_IDENTITY is of
    /// no meaning.
    pub(crate) fn ppk_answered(
        &self,
        peer: &PeerId,
        offer: Option<&PpkOffer>,
        payloads: &Payloads,
    ) -> Result<bool, Fault> {
        let used = payloads.notify(NotifyType::PPK_IDENTITY).is_some();
        // The configuration may have changed since the request.
        let required = self.ppk_of(peer).is_some_and(|ppk| ppk.required);
        match offer {
            Some(_) if used => Ok(true),
            Some(offer) if offer.required => Err(refused("the peer does not know our PPK")),
            _ if required => Err(refused("the peer uses no PPK, and one is required")),
            // Whatever it means, we offered nothing.
            _ => Ok(false),
        }
    }

    /// Responder: the keys with the PPK that the initiator names, or none where neither end needs
    /// it; then NO_PPK_AUTH takes the place of what AUTH says (RFC 8784, 3, its table).
    pub(crate) fn choose_ppk(
        &self,
        peer: &PeerId,
        agreed: bool,
        keys: &IkeKeys,
        payloads: &mut Payloads,
    ) -> Result<Option<Roots>, Fault> {
        let ppk = self.ppk_of(peer);
        let required = ppk.is_some_and(|ppk| ppk.required);
        if !agreed {
            return if required {
                Err(refused("the peer uses no PPK, and one is required"))
            } else {
                Ok(None)
            };
        }
        let named = payloads
            .notify(NotifyType::PPK_IDENTITY)
            .ok_or_else(|| refused("the peer agreed to use a PPK and names none"))?;
        let known = ppk.filter(|ppk| {
            let name = named.data.split_first();
            name == Some((&PPK_ID_FIXED, &ppk.id[..]))
        });
        if let Some(ppk) = known {
            return Ok(Some(keys.with_ppk(&ppk.secret)));
        }
        let unknown = || refused("the peer names a PPK that is not configured for it");
        if required {
            return Err(unknown());
        }
        let without = payloads
            .notify(NotifyType::NO_PPK_AUTH)
            .map(|n| n.data.clone())
            .ok_or_else(unknown)?;
        if let Some(auth) = &mut payloads.auth {
            auth.data = without;
        }
        Ok(None)
    }
}
