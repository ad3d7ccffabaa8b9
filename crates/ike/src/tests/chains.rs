//! Certificates on their way: what is asked for, and what is sent whatever was asked for.

use std::sync::{Arc, Mutex};

use testudo_crypto::KeyType;
use testudo_model::UnixTime;

use super::net::*;
use crate::*;

/// Asks for certificates of some CAs, keeps the chains that it is shown, and judges by the first
/// certificate alone.
struct Asking {
    inner: Arc<FakeVerifier>,
    authorities: Vec<[u8; 20]>,
    seen: Mutex<Vec<Vec<Vec<u8>>>>,
}

impl CertificateVerifier for Asking {
    fn verify(
        &self,
        chain: &[&[u8]],
        expected: &PeerExpectation<'_>,
        now: UnixTime,
    ) -> Result<VerifiedPeer, VerifyError> {
        let shown = chain.iter().map(|der| der.to_vec()).collect();
        self.seen.lock().unwrap().push(shown);
        self.inner.verify(chain, expected, now)
    }

    fn authorities(&self) -> Vec<[u8; 20]> {
        self.authorities.clone()
    }
}

/// A node's identity whose chain has two intermediates.
fn with_intermediates(n: usize) -> LocalIdentity {
    let mut id = local_identity(n, "ca", EPOCH + 1_000_000, KeyType::Ed25519);
    let chain = &mut id.certificate.as_mut().unwrap().chain;
    chain.push(vec![1; 900]);
    chain.push(vec![2; 900]);
    id
}

// Lesson L42 (openiked a26ca6e, 5428914, d676e9b): several, empty or unknown CERTREQ stopped
// authentication. What we ask for is a hint (RFC 7296, 3.7): the whole chain comes anyway.
#[test]
fn the_chain_is_sent_whatever_ca_is_asked_for() {
    let many: Vec<[u8; 20]> = (0..20).map(|n| [n; 20]).collect();
    for authorities in [vec![], vec![[9; 20]], many] {
        let mut net = Net::new(1, 2);
        let mut asking = Vec::new();
        for n in 0..2 {
            let verifier = Arc::new(Asking {
                inner: net.nodes[n].verifier.clone(),
                authorities: authorities.clone(),
                seen: Mutex::default(),
            });
            net.nodes[n].engine.set_verifier(verifier.clone());
            net.nodes[n].engine.set_identity(with_intermediates(n));
            asking.push(verifier);
        }
        net.connect(0, 1, false);
        net.run_ms(500);
        net.assert_connected(0, 1, 1);
        for verifier in asking {
            let seen = verifier.seen.lock().unwrap();
            let chain = seen.last().unwrap();
            assert_eq!(chain.len(), 3, "{} CAs asked for", authorities.len());
            // In the order in which they sign each other.
            assert_eq!((chain[1][0], chain[2][0]), (1, 2));
        }
    }
}

/// A chain longer than any honest one is cut before anybody looks at it.
#[test]
fn a_chain_without_end_is_bounded() {
    let mut net = Net::new(2, 2);
    let mut id = with_intermediates(0);
    let chain = &mut id.certificate.as_mut().unwrap().chain;
    chain.extend((0..40).map(|n| vec![n; 300]));
    net.nodes[0].engine.set_identity(id);
    let verifier = Arc::new(Asking {
        inner: net.nodes[1].verifier.clone(),
        authorities: Vec::new(),
        seen: Mutex::default(),
    });
    net.nodes[1].engine.set_verifier(verifier.clone());
    net.connect(0, 1, false);
    net.run_ms(500);
    let seen = verifier.seen.lock().unwrap();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|chain| chain.len() <= 8));
}
