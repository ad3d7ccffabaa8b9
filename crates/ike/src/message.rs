//! Messages under an IKE SA's keys (RFC 7296, 2.1 and 3.14).
//!
//! A message is built and read as a whole; on the wire it is one datagram, or several when the
//! peer takes fragments and it is large (RFC 7383). What is computed over a message, as IntAuth
//! (RFC 9242, 3.3.2), is computed over the whole: its [`Header`], and [`inner`] or [`Plain`].

use testudo_wire::ike::{
    Authentication, Certificate, CertificateRequest, Chain, Delete, Encrypted, ExchangeType,
    Fragment, Header, Identification, KeyExchange, Message, Notify, NotifyType, ParsedPayload,
    Payload, PayloadType, Proposal, Sealing, TrafficSelectors, build_clear, build_encrypted,
    build_fragments, parse_chain, strip_padding,
};

use crate::engine::Dropped;
use crate::error::Fault;
use crate::keys::IkeKeys;

/// A message of clear payloads.
pub(crate) fn clear(header: &Header, payloads: &[Payload]) -> Result<Vec<u8>, Fault> {
    let chain = Chain::of(payloads).map_err(|_| Fault::Bug("a payload does not fit"))?;
    build_clear(header, &chain).map_err(|_| Fault::Bug("a message does not fit"))
}

/// The datagrams of one message: one, or its fragments in order. Every transmission is the same
/// bytes, so that no IV is used for two texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Datagrams {
    first: Vec<u8>,
    rest: Vec<Vec<u8>>,
}

impl Datagrams {
    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.first)
            .chain(&self.rest)
            .map(Vec::as_slice)
    }

    /// Without room to grow, to be kept.
    pub(crate) fn fitted(mut self) -> Self {
        self.first.shrink_to_fit();
        self
    }

    /// The only datagram of a message that is never cut, as IKE_SA_INIT.
    pub(crate) fn whole(&self) -> &[u8] {
        &self.first
    }
}

impl From<Vec<u8>> for Datagrams {
    fn from(first: Vec<u8>) -> Self {
        let rest = Vec::new();
        Self { first, rest }
    }
}

/// The payloads of a message as they are encrypted, without padding: what RFC 9242, 3.3.2 calls
/// P, with the type of the first.
pub(crate) fn inner(payloads: &[Payload]) -> Result<Chain, Fault> {
    Chain::of(payloads).map_err(|_| Fault::Bug("a payload does not fit"))
}

/// A message with one SK payload around `payloads`, or with SKF payloads if it is larger than
/// the peer's path takes and the peer takes those (RFC 7383, 2.5).
pub(crate) fn protect(
    keys: &mut IkeKeys,
    header: &Header,
    payloads: &[Payload],
) -> Result<Datagrams, Fault> {
    protect_chain(keys, header, &inner(payloads)?)
}

/// [`protect`], of payloads that are encoded already.
pub(crate) fn protect_chain(
    keys: &mut IkeKeys,
    header: &Header,
    chain: &Chain,
) -> Result<Datagrams, Fault> {
    let unfit = |_| Fault::Bug("a message does not fit");
    let Some(largest) = keys.largest else {
        let whole = build_encrypted(header, chain, keys.layout()).map_err(unfit)?;
        return Ok(seal(keys, whole)?.into());
    };
    let mut pieces = build_fragments(header, chain, keys.layout(), largest)
        .map_err(unfit)?
        .into_iter();
    let first = pieces.next().ok_or(Fault::Bug("a message of no parts"))?;
    Ok(Datagrams {
        first: seal(keys, first)?,
        rest: pieces.map(|p| seal(keys, p)).collect::<Result<_, _>>()?,
    })
}

/// Encrypts one SK or SKF payload under an IV of its own (lesson L23).
pub(crate) fn seal(keys: &mut IkeKeys, sealing: Sealing) -> Result<Vec<u8>, Fault> {
    let mut bytes = sealing.bytes;
    // The parts are adjacent.
    let (before, rest) = bytes.split_at_mut(sealing.aad.len());
    let (iv, rest) = rest.split_at_mut(sealing.iv.len());
    let (text, icv) = rest.split_at_mut(sealing.plaintext.len());
    keys.seal(before, iv, text, icv)?;
    Ok(bytes)
}

/// A decrypted message, or one fragment of it: the type of its first payload and the payloads'
/// bytes.
#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) first: PayloadType,
    /// The payloads, with padding.
    bytes: Vec<u8>,
    /// Which part of the message it is; `None`: the whole.
    pub(crate) fragment: Option<Fragment>,
}

/// Decrypts the SK or SKF payload of `message`, which was parsed from `datagram`.
pub(crate) fn unprotect(
    keys: &IkeKeys,
    datagram: &[u8],
    message: &Message<'_>,
) -> Result<Plain, Dropped> {
    const FAILED: Dropped = "decrypt_failed";
    let encrypted = message.encrypted.as_ref().ok_or(FAILED)?;
    if encrypted.fragment.is_some() && keys.largest.is_none() {
        return Err("fragment_unnegotiated");
    }
    let text = decrypt(keys, datagram, encrypted).ok_or(FAILED)?;
    Ok(Plain {
        first: encrypted.first_inner,
        bytes: text,
        fragment: encrypted.fragment,
    })
}

fn decrypt(keys: &IkeKeys, datagram: &[u8], encrypted: &Encrypted) -> Option<Vec<u8>> {
    let ranges = encrypted.ranges(keys.layout()).ok()?;
    let (iv, icv) = (datagram.get(ranges.iv)?, datagram.get(ranges.icv)?);
    let before = datagram.get(ranges.aad)?;
    let mut text = datagram.get(ranges.ciphertext)?.to_vec();
    keys.open(before, iv, &mut text, icv).then_some(text)
}

impl Plain {
    /// A message of which all parts are there; `inner` is their content, without padding.
    pub(crate) fn joined(first: PayloadType, mut inner: Vec<u8>) -> Self {
        inner.push(0); // The pad length.
        Self {
            first,
            bytes: inner,
            fragment: None,
        }
    }

    /// Of a repeated request: whether our answer goes out again. Else each of its fragments
    /// would bring the whole answer (RFC 7383, 2.6.1; lesson L22).
    pub(crate) fn asks_again(&self) -> bool {
        self.fragment.is_none_or(|f| f.number == 1)
    }

    /// Bytes that it takes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The payloads' bytes without padding: what RFC 9242, 3.3.2 calls P.
    pub(crate) fn inner(&self) -> Result<&[u8], Fault> {
        strip_padding(&self.bytes).map_err(Fault::Malformed)
    }

    /// The payloads inside.
    pub(crate) fn payloads(&self) -> Result<Payloads, Fault> {
        Payloads::collect(parse_chain(self.first, self.inner()?).map_err(Fault::Malformed)?)
    }
}

/// An ID payload with its raw body, which AUTH covers.
pub(crate) struct RawId {
    pub(crate) id: Identification,
    pub(crate) body: Vec<u8>,
}

/// The payloads of a message by their kind. A kind that may come once comes once.
#[derive(Default)]
pub(crate) struct Payloads {
    pub(crate) sa: Option<Vec<Proposal>>,
    pub(crate) ke: Option<KeyExchange>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) id_i: Option<RawId>,
    pub(crate) id_r: Option<RawId>,
    pub(crate) certs: Vec<Certificate>,
    pub(crate) certreqs: Vec<CertificateRequest>,
    pub(crate) auth: Option<Authentication>,
    pub(crate) notifies: Vec<Notify>,
    pub(crate) deletes: Vec<Delete>,
    pub(crate) ts_i: Option<TrafficSelectors>,
    pub(crate) ts_r: Option<TrafficSelectors>,
    pub(crate) eap: bool,
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Fault> {
    if slot.replace(value).is_some() {
        return Err(Fault::Misbehaved("repeated_payload"));
    }
    Ok(())
}

impl Payloads {
    /// Sorts parsed payloads.
    pub(crate) fn collect(parsed: Vec<ParsedPayload<'_>>) -> Result<Self, Fault> {
        let mut out = Self::default();
        for ParsedPayload { payload, body, .. } in parsed {
            let raw = |id| RawId {
                id,
                body: body.to_vec(),
            };
            match payload {
                Payload::Sa(x) => once(&mut out.sa, x)?,
                Payload::KeyExchange(x) => once(&mut out.ke, x)?,
                Payload::Nonce(x) => once(&mut out.nonce, x)?,
                Payload::IdInitiator(x) => once(&mut out.id_i, raw(x))?,
                Payload::IdResponder(x) => once(&mut out.id_r, raw(x))?,
                Payload::Certificate(x) => out.certs.push(x),
                Payload::CertificateRequest(x) => out.certreqs.push(x),
                Payload::Authentication(x) => once(&mut out.auth, x)?,
                Payload::Notify(x) => out.notifies.push(x),
                Payload::Delete(x) => out.deletes.push(x),
                Payload::TsInitiator(x) => once(&mut out.ts_i, x)?,
                Payload::TsResponder(x) => once(&mut out.ts_r, x)?,
                Payload::Eap(_) => out.eap = true,
                Payload::VendorId(_) | Payload::Configuration(_) | Payload::Unknown(_) => {}
            }
        }
        Ok(out)
    }

    /// The first notify of a kind.
    pub(crate) fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        self.notifies.iter().find(|n| n.kind == kind)
    }

    /// The first error notify.
    pub(crate) fn error(&self) -> Option<&Notify> {
        self.notifies.iter().find(|n| n.kind.is_error())
    }
}

/// A request that waits for its answer.
pub(crate) struct Request {
    pub(crate) message_id: u32,
    pub(crate) exchange: ExchangeType,
    /// Its datagrams; every transmission is the same bytes.
    pub(crate) bytes: Datagrams,
    /// Transmissions so far.
    pub(crate) sent: u32,
}

impl Request {
    pub(crate) fn new(
        message_id: u32,
        exchange: ExchangeType,
        bytes: impl Into<Datagrams>,
    ) -> Self {
        Self {
            message_id,
            exchange,
            bytes: bytes.into(),
            sent: 1,
        }
    }
}
