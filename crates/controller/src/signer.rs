//! Who gets a certificate: the decision about one request.

use std::collections::BTreeMap;

use testudo_crypto::{Random, SecretBytes};
use testudo_model::{CertificateRequest, NodeEncryption};
use testudo_pki::{
    Ca, IssuedCertificate, NodeIdentity, RequestError, check_join_proof, request_from_pem,
};

/// What the decision is made from.
pub(crate) struct Signer<'a> {
    /// Signs.
    pub(crate) ca: &'a Ca,
    /// Seconds that a node's certificate is valid.
    pub(crate) lifetime: u64,
    /// The nodes known, by name.
    pub(crate) nodes: &'a BTreeMap<String, NodeEncryption>,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// Why a request is denied. The text goes into its status.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Nobody has given this node a token.
    #[error(
        "node {0} has no join token at the controller; make one with `testudo certs token {0}` and give it to the node's agent"
    )]
    NoToken(String),
    /// The node's token cannot be read.
    #[error("the node's join token cannot be read: {0}")]
    TokenUnreadable(String),
    /// It is not the node that asks.
    #[error("{0}")]
    Stranger(String),
    /// It is not to be signed, whoever asks: it cannot be read, or its node has asked again since.
    #[error("{0}")]
    Unfit(String),
    /// It is a node of that name that asks, but not the one that has the name now.
    #[error("{0}")]
    OtherLife(String),
    /// Nobody knows yet: it is asked again, and nothing is answered meanwhile.
    #[error("it is not known whose the request is: {0}")]
    Unknown(String),
    /// The UID is another node's.
    #[error("UID {uid} belongs to node {owner}")]
    ForeignUid {
        /// The UID asked for.
        uid: String,
        /// Whose it is.
        owner: String,
    },
    /// The proof cannot be read.
    #[error("the proof is no hex")]
    ProofFormat,
    /// Nobody could take it back.
    #[error(transparent)]
    Full(#[from] crate::register::Full),
    /// The request itself is bad.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Denial {
    /// A word for the metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Denial::NoToken(_) | Denial::TokenUnreadable(_) => "token",
            Denial::Stranger(_) => "stranger",
            Denial::Unfit(_) => "unfit",
            Denial::OtherLife(_) => "other_life",
            Denial::Unknown(_) => "unknown",
            Denial::ForeignUid { .. } => "foreign_uid",
            Denial::ProofFormat => "proof",
            Denial::Full(_) => "full",
            Denial::Request(_) => "request",
        }
    }
}

impl Signer<'_> {
    /// Signs a request, or says why not. Whose it is was made sure of before ([`crate::Safe`]).
    pub(crate) fn decide(
        &self,
        request: &CertificateRequest,
        random: &mut dyn Random,
    ) -> Result<IssuedCertificate, Denial> {
        let (name, uid) = (request.spec.node.as_str(), request.spec.uid.as_str());
        let der = request_from_pem(&request.spec.request)?;
        self.check_uid(name, uid)?;
        let identity = NodeIdentity::new(name, uid).map_err(RequestError::Internal)?;
        let issued = self
            .ca
            .sign_request(&der, &identity, self.lifetime, self.now, random)?;
        Ok(issued)
    }

    /// A UID names one node for ever: the holder of one node's token must not take another's.
    fn check_uid(&self, name: &str, uid: &str) -> Result<(), Denial> {
        let owner = self
            .nodes
            .values()
            .find(|node| node.spec.uid.as_str() == uid && node.name() != name);
        match owner {
            Some(node) => Err(Denial::ForeignUid {
                uid: uid.to_owned(),
                owner: node.name().to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// Whether the request was made by who holds the token of the node that it names: whoever holds another
/// node's token cannot make a proof that fits.
pub(crate) fn check_proof(
    request: &CertificateRequest,
    token: Option<&SecretBytes>,
) -> Result<(), Denial> {
    let (name, uid) = (request.spec.node.as_str(), request.spec.uid.as_str());
    let token = token.ok_or_else(|| Denial::NoToken(name.to_owned()))?;
    let der = request_from_pem(&request.spec.request)?;
    let proof = unhex(&request.spec.proof, 64).ok_or(Denial::ProofFormat)?;
    match check_join_proof(token, name, uid, &der, &proof) {
        true => Ok(()),
        false => Err(RequestError::BadProof {
            node: name.to_owned(),
        }
        .into()),
    }
}

/// The bytes that a text of hex digits says, `most` of them.
pub(crate) fn unhex(text: &str, most: usize) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    if !text.len().is_multiple_of(2) || text.len() / 2 > most {
        return None;
    }
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_crypto::{KeyType, SigningKey, SystemRandom};
    use testudo_model::{CertificateRequestSpec, NodeEncryptionSpec, NodeName, NodeUid, Object};
    use testudo_pki::{
        CaOptions, ExpectedPeer, TrustBundle, certificate_request, hex, join_proof, new_token,
        request_to_pem, verify_chain,
    };

    const NOW: u64 = 1_800_000_000;
    const YEAR: u64 = 365 * 86_400;

    fn ca() -> Ca {
        Ca::generate(&CaOptions::default(), NOW, &mut SystemRandom::new()).unwrap()
    }

    /// A request under the name `claimed`, whose PKCS#10 asks for `asked`.
    fn request(claimed: &str, asked: &str, token: &SecretBytes) -> CertificateRequest {
        let key = SigningKey::generate(KeyType::EcdsaP256).unwrap();
        let identity = NodeIdentity::new(asked, &format!("uid-{asked}")).unwrap();
        let der = certificate_request(&key, &identity).unwrap();
        let uid = format!("uid-{claimed}");
        Object::new(
            claimed,
            CertificateRequestSpec {
                node: NodeName::new(claimed).unwrap(),
                proof: hex(&join_proof(token, claimed, &uid, &der)),
                uid: NodeUid::new(uid).unwrap(),
                request: request_to_pem(&der),
            },
        )
    }

    fn node(name: &str, uid: &str) -> NodeEncryption {
        Object::new(
            name,
            NodeEncryptionSpec {
                uid: NodeUid::new(uid).unwrap(),
                boot_id: "b".parse().unwrap(),
                addresses: vec!["10.0.0.1".parse().unwrap()],
                pod_cidrs: vec![],
                datapath: "user".into(),
                agent_socket: None,
            },
        )
    }

    fn decide(
        ca: &Ca,
        request: &CertificateRequest,
        token: Option<&SecretBytes>,
        nodes: &[NodeEncryption],
    ) -> Result<IssuedCertificate, Denial> {
        let nodes = nodes.iter().map(|n| (n.name().to_owned(), n.clone()));
        let signer = Signer {
            ca,
            lifetime: 5 * YEAR,
            nodes: &nodes.collect(),
            now: NOW,
        };
        check_proof(request, token)?;
        signer.decide(request, &mut SystemRandom::new())
    }

    #[test]
    fn the_node_with_its_token_gets_its_certificate() {
        let ca = ca();
        let token = new_token(&mut SystemRandom::new());
        let nodes = [node("n1", "uid-n1")];
        let issued = decide(&ca, &request("n1", "n1", &token), Some(&token), &nodes).unwrap();
        let mut bundle = TrustBundle::new();
        bundle.add(ca.certificate()).unwrap();
        let n1 = NodeIdentity::new("n1", "uid-n1").unwrap();
        let expected = ExpectedPeer::Node(&n1);
        verify_chain(&[&issued.der], &bundle, expected, NOW).unwrap();
    }

    #[test]
    fn the_token_of_one_node_gets_nothing_of_another() {
        let ca = ca();
        let mut random = SystemRandom::new();
        let (token_1, token_2) = (new_token(&mut random), new_token(&mut random));
        let deny = |request: &CertificateRequest, token: Option<&SecretBytes>, nodes: &[_]| {
            decide(&ca, request, token, nodes).unwrap_err().to_string()
        };
        // n1's token under n2's name.
        let text = deny(&request("n2", "n2", &token_1), Some(&token_2), &[]);
        assert!(text.contains("join token of node n2"), "{text}");
        // n1's name around n2's request.
        let text = deny(&request("n1", "n2", &token_1), Some(&token_1), &[]);
        assert!(text.contains("only n1"), "{text}");
        // n1 with the UID of n2.
        let text = deny(
            &request("n1", "n1", &token_1),
            Some(&token_1),
            &[node("n2", "uid-n1")],
        );
        assert!(text.contains("belongs to node n2"), "{text}");
        // No token at all.
        let text = deny(&request("n3", "n3", &token_1), None, &[]);
        assert!(text.contains("testudo certs token n3"), "{text}");
    }

    #[test]
    fn a_request_that_was_changed_is_denied() {
        let ca = ca();
        let token = new_token(&mut SystemRandom::new());
        let mut other_key = request("n1", "n1", &token);
        other_key.spec.request = request("n1", "n1", &token).spec.request;
        let mut other_proof = request("n1", "n1", &token);
        other_proof.spec.proof.replace_range(0..2, "zz");
        let mut garbage = request("n1", "n1", &token);
        garbage.spec.request = "nonsense".into();
        for bad in [other_key, other_proof, garbage] {
            decide(&ca, &bad, Some(&token), &[]).unwrap_err();
        }
    }
}
