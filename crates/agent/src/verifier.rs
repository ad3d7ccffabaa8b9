//! Judges peers' certificates for the IKE engine: the chain against the trust bundle, the name
//! and UID in it against the node that the store knows under the peer's name.

use std::collections::BTreeMap;
use std::sync::Arc;

use testudo_ike::{CertificateVerifier, FailedCheck, PeerExpectation, VerifiedPeer, VerifyError};
use testudo_model::{PeerId, UnixTime};
use testudo_pki::{CertificateCheck, ExpectedPeer, NodeIdentity, TrustBundle, verify_chain};

use crate::clock::{seconds, unix};

/// A bundle and the nodes as they were at one moment; replaced as a whole when either changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    pub(crate) bundle: TrustBundle,
    pub(crate) nodes: BTreeMap<PeerId, NodeIdentity>,
}

impl Trust {
    /// Whether a peer may be judged otherwise than by `before`. `issuer` is the CA of the certificate
    /// that it last showed: while that one stays, with what it has revoked, others may come and go.
    pub(crate) fn judges_anew(&self, peer: &PeerId, issuer: Option<&str>, before: &Trust) -> bool {
        let named = |bundle: &TrustBundle| -> Vec<String> {
            let of_that_name = bundle
                .facts()
                .filter(|ca| Some(ca.subject.as_str()) == issuer);
            of_that_name.map(|ca| ca.fingerprint).collect()
        };
        let then = named(&before.bundle);
        self.nodes.get(peer) != before.nodes.get(peer)
            || self.bundle.revocation_lists_to_pem() != before.bundle.revocation_lists_to_pem()
            || then.is_empty()
            || named(&self.bundle) != then
    }

    /// The name of the CA that signs.
    pub(crate) fn signer(&self) -> Option<String> {
        self.bundle.facts().next().map(|ca| ca.subject)
    }

    /// All CAs that are trusted by their names, the one that signs first.
    pub(crate) fn names(&self) -> Vec<String> {
        self.bundle.facts().map(|ca| ca.subject).collect()
    }

    /// For the engine.
    pub(crate) fn verifier(&self) -> Arc<dyn CertificateVerifier + Send + Sync> {
        let authorities = self
            .bundle
            .facts()
            .map(|facts| testudo_crypto::sha1(&[&facts.spki]))
            .collect();
        Arc::new(Verifier {
            trust: self.clone(),
            authorities,
        })
    }
}

struct Verifier {
    trust: Trust,
    authorities: Vec<[u8; 20]>,
}

impl CertificateVerifier for Verifier {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let node = self
            .trust
            .nodes
            .get(expected.peer)
            .ok_or_else(|| VerifyError {
                check: FailedCheck::UnknownPeer,
                text: format!("the store knows no node \"{}\"", expected.peer),
            })?;
        let peer = verify_chain(
            chain,
            &self.trust.bundle,
            ExpectedPeer::Node(node),
            seconds(now),
        )
        .map_err(|error| VerifyError {
            check: failed_check(error.check),
            text: error.to_string(),
        })?;
        Ok(VerifiedPeer {
            spki: peer.spki,
            not_after: unix(peer.times.not_after),
            serial: peer.serial,
            subject: peer.subject,
            issuer: peer.issuer,
        })
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        self.authorities.clone()
    }
}

fn failed_check(check: CertificateCheck) -> FailedCheck {
    match check {
        CertificateCheck::Expired => FailedCheck::CertificateExpired,
        CertificateCheck::NotYetValid => FailedCheck::CertificateNotYetValid,
        CertificateCheck::WrongNode => FailedCheck::CertificateWrongIdentity,
        CertificateCheck::UnknownCa => FailedCheck::CertificateUnknownCa,
        CertificateCheck::BadSignature => FailedCheck::CertificateBadSignature,
        CertificateCheck::Revoked => FailedCheck::CertificateRevoked,
        CertificateCheck::Malformed
        | CertificateCheck::WrongPurpose
        | CertificateCheck::Forbidden => FailedCheck::CertificateMalformed,
    }
}

#[cfg(test)]
mod tests {
    use testudo_crypto::{KeyType, SigningKey, SystemRandom};
    use testudo_ike::Identity;
    use testudo_pki::{Ca, CaOptions, certificate_request};

    use super::*;

    const NOW: u64 = 1_795_318_200;
    const LIFETIME: u64 = 3600;

    fn ca() -> Ca {
        Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap()
    }

    fn node(name: &str, uid: &str) -> NodeIdentity {
        NodeIdentity::new(name, uid).unwrap()
    }

    fn issue(ca: &Ca, node: &NodeIdentity) -> Vec<u8> {
        let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
        let request = certificate_request(&key, node).unwrap();
        ca.sign_request(&request, node, LIFETIME, NOW, &mut SystemRandom::new())
            .unwrap()
            .der
    }

    /// What the verifier of a node that trusts `ca` says of `chain` as that of n2.
    fn judge(ca: &Ca, chain: &[u8], now: u64) -> Result<VerifiedPeer, VerifyError> {
        let peer = PeerId::new("n2").unwrap();
        let trust = Trust {
            bundle: TrustBundle::from_pem(&ca.certificate_pem()).unwrap(),
            nodes: BTreeMap::from([(peer.clone(), node("n2", "u2"))]),
        };
        let expected = PeerExpectation {
            peer: &peer,
            identity: &Identity::Fqdn("n2.node.testudo".into()),
        };
        trust.verifier().verify(&[chain], &expected, unix(now))
    }

    #[test]
    fn each_failed_check_has_its_own_name() {
        let ours = ca();
        let good = issue(&ours, &node("n2", "u2"));
        let verified = judge(&ours, &good, NOW).unwrap();
        assert_eq!(verified.not_after, unix(NOW + LIFETIME));

        let mut broken = good.clone();
        *broken.last_mut().unwrap() ^= 1;
        let cases = [
            (&good, NOW + LIFETIME + 1, FailedCheck::CertificateExpired),
            (&good, NOW - 3600, FailedCheck::CertificateNotYetValid),
            (
                &issue(&ours, &node("n3", "u3")),
                NOW,
                FailedCheck::CertificateWrongIdentity,
            ),
            // A node of that name which was made anew (L94): its old certificate is no use.
            (
                &issue(&ours, &node("n2", "u9")),
                NOW,
                FailedCheck::CertificateWrongIdentity,
            ),
            (
                &issue(&ca(), &node("n2", "u2")),
                NOW,
                FailedCheck::CertificateUnknownCa,
            ),
            (&broken, NOW, FailedCheck::CertificateBadSignature),
            (
                &b"no certificate".to_vec(),
                NOW,
                FailedCheck::CertificateMalformed,
            ),
        ];
        for (chain, now, check) in cases {
            let error = judge(&ours, chain, now).unwrap_err();
            assert_eq!(error.check, check, "{error}");
            assert!(!error.text.is_empty());
        }
    }

    /// Dates are judged at each use, by the clock as it is then (L114): a node that booted in 1970 takes its
    /// peers in when its clock is right, with nothing begun anew, and no longer than their certificates last.
    #[test]
    fn a_clock_that_was_wrong_at_boot_is_right_as_soon_as_it_is_set() {
        let ours = ca();
        let peer = PeerId::new("n2").unwrap();
        let trust = Trust {
            bundle: TrustBundle::from_pem(&ours.certificate_pem()).unwrap(),
            nodes: BTreeMap::from([(peer.clone(), node("n2", "u2"))]),
        };
        let expected = PeerExpectation {
            peer: &peer,
            identity: &Identity::Fqdn("n2.node.testudo".into()),
        };
        let good = issue(&ours, &node("n2", "u2"));
        let verifier = trust.verifier();
        let judged = |now: u64| {
            let verified = verifier.verify(&[&good], &expected, unix(now));
            verified.map(drop).map_err(|error| error.check)
        };
        let early = Err(FailedCheck::CertificateNotYetValid);
        let late = Err(FailedCheck::CertificateExpired);
        assert_eq!([judged(0), judged(NOW)], [early, Ok(())]);
        let wrong_again = NOW + 50 * 365 * 86_400;
        assert_eq!([judged(wrong_again), judged(NOW)], [late, Ok(())]);
    }

    #[test]
    fn a_node_that_the_store_does_not_know_is_nobody() {
        let ours = ca();
        let trust = Trust {
            bundle: TrustBundle::from_pem(&ours.certificate_pem()).unwrap(),
            nodes: BTreeMap::new(),
        };
        let good = issue(&ours, &node("n2", "u2"));
        let peer = PeerId::new("n2").unwrap();
        let expected = PeerExpectation {
            peer: &peer,
            identity: &Identity::Fqdn("n2.node.testudo".into()),
        };
        let error = trust
            .verifier()
            .verify(&[&good], &expected, unix(NOW))
            .unwrap_err();
        assert_eq!(error.check, FailedCheck::UnknownPeer);
    }

    /// While one CA follows another both are asked for (RFC 7296, 3.7) and both are good.
    #[test]
    fn two_cas_are_trusted_and_asked_for_at_once() {
        let (old, new) = (ca(), ca());
        let n2 = node("n2", "u2");
        let peer = PeerId::new("n2").unwrap();
        let mut trust = Trust {
            bundle: TrustBundle::from_pem(&(new.certificate_pem() + &old.certificate_pem()))
                .unwrap(),
            nodes: BTreeMap::from([(peer.clone(), n2.clone())]),
        };
        assert_eq!(trust.signer().as_ref(), Some(&new.facts().subject));
        let authorities = trust.verifier().authorities();
        let hashes = [&new, &old].map(|ca| testudo_crypto::sha1(&[&ca.facts().spki]));
        assert_eq!(authorities, hashes);
        let expected = PeerExpectation {
            peer: &peer,
            identity: &Identity::Fqdn("n2.node.testudo".into()),
        };
        let shown = [issue(&old, &n2), issue(&new, &n2)];
        for chain in &shown {
            let verifier = trust.verifier();
            verifier.verify(&[chain], &expected, unix(NOW)).unwrap();
        }
        trust.bundle = TrustBundle::from_pem(&new.certificate_pem()).unwrap();
        let judged = |chain: &[u8]| trust.verifier().verify(&[chain], &expected, unix(NOW));
        judged(&shown[1]).unwrap();
        let error = judged(&shown[0]).unwrap_err();
        assert_eq!(error.check, FailedCheck::CertificateUnknownCa);
    }

    /// Nobody can ask an absent peer again: what stands with it goes when its own CA goes, and not
    /// when another one comes.
    #[test]
    fn a_peer_is_judged_anew_when_its_own_ca_goes_or_revokes() {
        let (old, new) = (ca(), ca());
        let peer = PeerId::new("n2").unwrap();
        let trust = |pem: String, uid: &str| Trust {
            bundle: TrustBundle::from_pem(&pem).unwrap(),
            nodes: BTreeMap::from([(peer.clone(), node("n2", uid))]),
        };
        let (only_old, only_new) = (old.certificate_pem(), new.certificate_pem());
        let both = only_new.clone() + &only_old;
        let of_old = Some(old.facts().subject.as_str());
        let of_new = Some(new.facts().subject.as_str());
        let before = trust(only_old, "u2");
        let during = trust(both, "u2");
        let after = trust(only_new.clone(), "u2");
        assert!(!during.judges_anew(&peer, of_old, &before));
        assert!(!after.judges_anew(&peer, of_new, &during));
        assert!(after.judges_anew(&peer, of_old, &during));
        assert!(after.judges_anew(&peer, None, &during));
        assert!(trust(only_new, "u9").judges_anew(&peer, of_new, &during));
        let mut revoking = during.clone();
        let list = new.revocation_list(&[], 1, NOW, NOW + 1000).unwrap();
        revoking.bundle.add_revocation_list(&list).unwrap();
        assert!(revoking.judges_anew(&peer, of_old, &during));
    }
}
