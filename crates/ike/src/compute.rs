//! The asymmetric operations as values: what goes in, what comes out, what each is known by.

use std::sync::Arc;

use testudo_crypto::{
    KeMethod, KePrivate, KeResponse, Random, SecretBytes, SignatureScheme, hmac_sha256, sha256,
};
use testudo_model::{PeerId, UnixTime};
use testudo_wire::ike::Authentication;

use crate::config::{CertificateCredential, Identity};
use crate::engine::Engine;
use crate::error::Fault;
use crate::proof;
use crate::verify::{CertificateVerifier, PeerExpectation, VerifiedPeer};

/// An operation with all that it needs: it can run on any thread.
pub(crate) enum Op {
    /// The responder's half of a key exchange.
    Respond {
        method: KeMethod,
        /// The initiator's public value.
        initiator: Vec<u8>,
        /// What a private key is drawn from.
        seed: SecretBytes,
    },
    /// The second half of the initiator's.
    Agree {
        private: Arc<KePrivate>,
        /// The responder's public value.
        responder: Vec<u8>,
    },
    /// Our signature.
    Sign(SignOp),
    /// The peer's chain and signature.
    Prove(Box<ProveOp>),
}

/// What we sign with, and what.
pub(crate) struct SignOp {
    pub(crate) credential: Arc<CertificateCredential>,
    /// Grows with each change of our identity.
    pub(crate) epoch: u64,
    /// Hashes that the peer takes.
    pub(crate) peer_hashes: Vec<u16>,
    pub(crate) octets: Vec<u8>,
}

/// Who says to be whom, and by what.
pub(crate) struct ProveOp {
    pub(crate) verifier: Arc<dyn CertificateVerifier + Send + Sync>,
    /// Grows with each change of the verifier.
    pub(crate) epoch: u64,
    pub(crate) peer: PeerId,
    pub(crate) identity: Identity,
    /// DER, the peer's own certificate first.
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) wall: UnixTime,
    /// The schemes that the peer may sign in.
    pub(crate) allowed: Vec<SignatureScheme>,
    pub(crate) auth: Authentication,
    pub(crate) octets: Vec<u8>,
}

/// What came of an operation.
#[derive(Clone)]
pub(crate) enum Output {
    /// `None`: the peer's public value is none.
    Respond(Option<KeResponse>),
    /// `None`: the peer's public value is none.
    Agree(Option<SecretBytes>),
    Sign(Result<Authentication, Fault>),
    Prove(Result<VerifiedPeer, Fault>),
}

/// Names what a result is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Op {
    pub(crate) fn run(self) -> Output {
        match self {
            Self::Respond {
                method,
                initiator,
                seed,
            } => {
                let answer = method.respond(&initiator, &mut Stretched { seed, counter: 0 });
                Output::Respond(answer.ok())
            }
            Self::Agree { private, responder } => Output::Agree(private.agree(&responder).ok()),
            Self::Sign(op) => {
                let auth = proof::sign(&op.credential, &op.peer_hashes, &op.octets);
                Output::Sign(auth)
            }
            Self::Prove(op) => Output::Prove(op.run()),
        }
    }

    /// Of everything that the result depends on but the seed, which is another in each run of a
    /// handler, and the time: a chain is judged at the moment when the job was made.
    pub(crate) fn digest(&self) -> Digest {
        let mut text = Text(Vec::new());
        match self {
            Self::Respond {
                method, initiator, ..
            } => text.number(1).number(method.id().into()).bytes(initiator),
            Self::Agree { private, responder } => text
                .number(2)
                .number(private.method().id().into())
                .bytes(private.public())
                .bytes(responder),
            Self::Sign(op) => {
                text.number(3).number(op.epoch).bytes(&op.octets);
                op.peer_hashes
                    .iter()
                    .fold(&mut text, |text, hash| text.number((*hash).into()))
            }
            Self::Prove(op) => {
                let identity = op.identity.to_wire();
                text.number(4).number(op.epoch);
                text.bytes(op.peer.as_str().as_bytes())
                    .bytes(&identity.body())
                    .number(op.auth.method.0.into())
                    .bytes(&op.auth.data)
                    .bytes(&op.octets);
                op.allowed.iter().fold(&mut text, |text, scheme| {
                    text.bytes(scheme.algorithm_identifier())
                });
                op.chain.iter().fold(&mut text, |text, der| text.bytes(der))
            }
        };
        Digest(sha256(&[&text.0]))
    }
}

impl ProveOp {
    /// First whose key it is, then whether it made the signature.
    fn run(&self) -> Result<VerifiedPeer, Fault> {
        let chain: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        let expected = PeerExpectation {
            peer: &self.peer,
            identity: &self.identity,
        };
        let verified = self
            .verifier
            .verify(&chain, &expected, self.wall)
            .map_err(|e| Fault::Unproven(e.check, e.text))?;
        proof::check_signature(&verified.spki, &self.allowed, &self.auth, &self.octets)?;
        Ok(verified)
    }
}

/// Each part with its length, so that no two texts are alike.
struct Text(Vec<u8>);

impl Text {
    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
}

/// Random bytes out of a few: HMAC (seed, counter). A job cannot reach the engine's source.
struct Stretched {
    seed: SecretBytes,
    counter: u64,
}

impl Random for Stretched {
    fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(32) {
            self.counter += 1;
            let block = hmac_sha256(self.seed.as_bytes(), &[&self.counter.to_be_bytes()]);
            part.copy_from_slice(&block[..part.len()]);
        }
    }
}

impl Engine {
    /// The answer to an initiator's public value; `bad_public_key` if that is none.
    pub(crate) fn respond(
        &mut self,
        method: KeMethod,
        initiator: &[u8],
    ) -> Result<KeResponse, Fault> {
        let seed = SecretBytes::new(self.random_bytes(32));
        let op = Op::Respond {
            method,
            initiator: initiator.to_vec(),
            seed,
        };
        match self.compute(op)? {
            Output::Respond(answer) => answer.ok_or(Fault::Misbehaved("bad_public_key")),
            _ => Err(Fault::Bug("another result")),
        }
    }

    /// The secret of an exchange that we began; `bad_public_key` if the answer is no key.
    pub(crate) fn agree(
        &mut self,
        private: &Arc<KePrivate>,
        responder: &[u8],
    ) -> Result<SecretBytes, Fault> {
        match self.compute(agreement(private, responder))? {
            Output::Agree(secret) => secret.ok_or(Fault::Misbehaved("bad_public_key")),
            _ => Err(Fault::Bug("another result")),
        }
    }

    /// The same, where the handler cannot stop any more.
    pub(crate) fn agree_now(
        &mut self,
        private: &Arc<KePrivate>,
        responder: &[u8],
    ) -> Result<SecretBytes, Fault> {
        match self.compute_now(agreement(private, responder)) {
            Output::Agree(secret) => secret.ok_or(Fault::Misbehaved("bad_public_key")),
            _ => Err(Fault::Bug("another result")),
        }
    }

    /// Makes sure that the result is there when [`Engine::agree_now`] is called.
    pub(crate) fn agree_ahead(
        &mut self,
        private: &Arc<KePrivate>,
        responder: &[u8],
    ) -> Result<(), Fault> {
        self.compute_ahead(|| agreement(private, responder))
    }

    /// Our AUTH payload by certificate.
    pub(crate) fn sign(&mut self, op: SignOp) -> Result<Authentication, Fault> {
        match self.compute(Op::Sign(op))? {
            Output::Sign(auth) => auth,
            _ => Err(Fault::Bug("another result")),
        }
    }

    /// Judges a peer's chain and its signature.
    pub(crate) fn prove(&mut self, op: ProveOp) -> Result<VerifiedPeer, Fault> {
        match self.compute(Op::Prove(Box::new(op)))? {
            Output::Prove(verified) => verified,
            _ => Err(Fault::Bug("another result")),
        }
    }
}

fn agreement(private: &Arc<KePrivate>, responder: &[u8]) -> Op {
    Op::Agree {
        private: private.clone(),
        responder: responder.to_vec(),
    }
}
