//! What may be negotiated: with everybody, and with a peer that needs something else.

use std::net::IpAddr;

use testudo_crypto::{Cipher, KeMethod, Prf, SignatureScheme};
use testudo_model::PeerId;

use crate::addke::AdditionalKe;
use crate::engine::Engine;
use crate::event::IkeId;
use crate::keys::Suite;

/// Algorithms that may be negotiated; of each kind the preferred first. What is not here is
/// neither offered nor accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suites {
    /// Key exchange methods (RFC 7296, 3.3.2, transform type 4).
    pub ke_methods: Vec<KeMethod>,
    /// Key exchanges after that one (RFC 9370, transform types 6 to 12), of IKE SAs and of
    /// children that have a key exchange.
    pub additional_ke: Vec<AdditionalKe>,
    /// PRFs.
    pub prfs: Vec<Prf>,
    /// Ciphers for IKE.
    pub ike_ciphers: Vec<Cipher>,
    /// Ciphers for ESP.
    pub esp_ciphers: Vec<Cipher>,
    /// Whether children made after the first, rekeys of the first included, have a key exchange of
    /// their own (perfect forward secrecy). A peer's request without one gets NO_PROPOSAL_CHOSEN.
    pub pfs: bool,
    /// How a peer with a certificate may sign (RFC 7427): key type, padding and hash together, so
    /// that no allowed hash comes with a key type that is allowed with another (lesson L34). The
    /// methods of before (1 with SHA-1, 9 to 11 of RFC 4754) are not taken.
    pub signatures: Vec<SignatureScheme>,
}

impl Default for Suites {
    fn default() -> Self {
        Self {
            ke_methods: vec![
                KeMethod::X25519,
                KeMethod::P256,
                KeMethod::P384,
                KeMethod::P521,
            ],
            additional_ke: vec![AdditionalKe {
                methods: vec![KeMethod::MlKem768],
                required: false,
            }],
            prfs: vec![Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512],
            ike_ciphers: vec![Cipher::AES_256_GCM],
            esp_ciphers: vec![Cipher::AES_256_GCM],
            pfs: true,
            signatures: SignatureScheme::ALL.to_vec(),
        }
    }
}

impl Suites {
    /// Whether an IKE SA of these algorithms may stand.
    pub(crate) fn allow_ike(&self, suite: &Suite) -> bool {
        self.ike_ciphers.contains(&suite.cipher)
            && self.prfs.contains(&suite.prf)
            && self.ke_methods.contains(&suite.ke)
            && suite.additional.allowed_by(&self.additional_ke)
    }

    /// The first kind of algorithm of which there is none, for people.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        [
            (self.ke_methods.is_empty(), "key exchange method"),
            (self.prfs.is_empty(), "PRF"),
            (self.ike_ciphers.is_empty(), "cipher for IKE"),
            (self.esp_ciphers.is_empty(), "cipher for ESP"),
            (self.signatures.is_empty(), "signature scheme"),
        ]
        .into_iter()
        .find_map(|(none, kind)| none.then_some(kind))
    }
}

/// What the peers at one address want, where it has to be known before it is known who asks: at
/// IKE_SA_INIT.
#[derive(Debug, Default)]
pub(crate) struct AtAddress {
    /// How many of them want forced encapsulation.
    pub(crate) forced: usize,
    /// How many have no suites of their own.
    plain: usize,
    /// Suites of their own, and how many have these.
    suites: Vec<(Suites, usize)>,
}

impl AtAddress {
    /// A peer with that address is there.
    pub(crate) fn add(&mut self, forced: bool, suites: Option<&Suites>) {
        self.forced += usize::from(forced);
        let Some(suites) = suites else {
            self.plain += 1;
            return;
        };
        match self.suites.iter_mut().find(|(known, _)| known == suites) {
            Some((_, count)) => *count += 1,
            None => self.suites.push((suites.clone(), 1)),
        }
    }

    /// One is gone; it was added with the same arguments.
    pub(crate) fn remove(&mut self, forced: bool, suites: Option<&Suites>) {
        self.forced -= usize::from(forced);
        self.plain -= usize::from(suites.is_none());
        for (known, count) in &mut self.suites {
            *count -= usize::from(Some(&*known) == suites);
        }
        self.suites.retain(|(_, count)| *count > 0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.forced == 0 && self.plain == 0 && self.suites.is_empty()
    }
}

impl Engine {
    /// What may be negotiated with a peer.
    pub(crate) fn suites_of(&self, peer: &PeerId) -> &Suites {
        self.suites_for(Some(peer))
    }

    /// The same for the peer of an IKE SA.
    pub(crate) fn suites_on(&self, id: IkeId) -> &Suites {
        self.suites_for(self.sas.get(&id).and_then(|sa| sa.peer.as_ref()))
    }

    /// The same for a peer that may not be known yet.
    pub(crate) fn suites_for(&self, peer: Option<&PeerId>) -> &Suites {
        peer.and_then(|peer| self.peers.get(peer))
            .and_then(|peer| peer.config.suites.as_ref())
            .unwrap_or(&self.config.suites)
    }

    /// What may be negotiated with whoever asks from that address: what the peers that are known
    /// to be there have, those with suites of their own first; then the default, for a peer that
    /// has moved. IKE_AUTH shows who it was, and whether what was chosen is allowed for it.
    pub(crate) fn suites_at(&self, address: IpAddr) -> (Vec<&Suites>, &Suites) {
        let default = &self.config.suites;
        let Some(there) = self.at_address.get(&address.to_canonical()) else {
            return (Vec::new(), default);
        };
        let own = there.suites.iter().map(|(suites, _)| suites);
        let plain = (there.plain > 0).then_some(default);
        (own.chain(plain).collect(), default)
    }
}
