//! Messages under an IKE SA's keys, and the two windows of one message each (RFC 7296, 2.1-2.3).

use testudo_wire::ike::{
    Authentication, Certificate, CertificateRequest, Chain, Delete, EncryptedLayout, ExchangeType,
    Header, Identification, KeyExchange, Message, Notify, NotifyType, ParsedPayload, Payload,
    PayloadType, Proposal, TrafficSelectors, build_clear, build_encrypted, parse_chain,
    strip_padding,
};

use crate::error::Fault;
use crate::keys::IkeKeys;

const LAYOUT: EncryptedLayout = EncryptedLayout::AES_GCM_16;

/// A message of clear payloads.
pub(crate) fn clear(header: &Header, payloads: &[Payload]) -> Result<Vec<u8>, Fault> {
    let chain = Chain::of(payloads).map_err(|_| Fault::Bug("a payload does not fit"))?;
    build_clear(header, &chain).map_err(|_| Fault::Bug("a message does not fit"))
}

/// A message with one SK payload around `payloads`.
pub(crate) fn protect(
    keys: &mut IkeKeys,
    header: &Header,
    payloads: &[Payload],
) -> Result<Vec<u8>, Fault> {
    let chain = Chain::of(payloads).map_err(|_| Fault::Bug("a payload does not fit"))?;
    let sealing = build_encrypted(header, &chain, LAYOUT)
        .map_err(|_| Fault::Bug("a message does not fit"))?;
    let mut bytes = sealing.bytes;
    let (head, tail) = bytes.split_at_mut(sealing.plaintext.start);
    let text_len = sealing.plaintext.len();
    let (text, icv_room) = tail.split_at_mut(text_len);
    let (iv, icv) = keys.seal(&head[sealing.aad], text)?;
    head[sealing.iv].copy_from_slice(&iv);
    icv_room.copy_from_slice(&icv);
    Ok(bytes)
}

/// A decrypted message: the type of its first payload and the payloads' bytes.
pub(crate) struct Plain {
    first: PayloadType,
    bytes: Vec<u8>,
}

/// Decrypts the SK payload of `message`, which was parsed from `datagram`. `None`: it is not the
/// peer's, or not encrypted, or a fragment (which we never say we take).
pub(crate) fn unprotect(keys: &IkeKeys, datagram: &[u8], message: &Message<'_>) -> Option<Plain> {
    let encrypted = message.encrypted.as_ref()?;
    if encrypted.fragment.is_some() {
        return None;
    }
    let ranges = encrypted.ranges(LAYOUT).ok()?;
    let iv: [u8; 8] = datagram.get(ranges.iv)?.try_into().ok()?;
    let icv: [u8; 16] = datagram.get(ranges.icv)?.try_into().ok()?;
    let aad = datagram.get(ranges.aad)?;
    let mut text = datagram.get(ranges.ciphertext)?.to_vec();
    if !keys.open(iv, aad, &mut text, &icv) {
        return None;
    }
    Some(Plain {
        first: encrypted.first_inner,
        bytes: text,
    })
}

impl Plain {
    /// The payloads inside.
    pub(crate) fn payloads(&self) -> Result<Payloads, Fault> {
        let text = strip_padding(&self.bytes).map_err(Fault::Malformed)?;
        Payloads::collect(parse_chain(self.first, text).map_err(Fault::Malformed)?)
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
    /// The datagram; every transmission is the same bytes.
    pub(crate) bytes: Vec<u8>,
    /// Transmissions so far.
    pub(crate) sent: u32,
}

impl Request {
    pub(crate) fn new(message_id: u32, exchange: ExchangeType, bytes: Vec<u8>) -> Self {
        Self {
            message_id,
            exchange,
            bytes,
            sent: 1,
        }
    }
}

/// What the peer asked last, and our answer, kept for when it asks again.
#[derive(Default)]
pub(crate) struct Answered {
    /// The message ID of the next new request.
    pub(crate) next: u32,
    /// The answer to the request before it.
    pub(crate) last: Option<Vec<u8>>,
}

/// How an incoming request's message ID stands to the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Never seen.
    New,
    /// The last one again.
    Repeated,
    /// Outside the window.
    Outside,
}

impl Answered {
    pub(crate) fn freshness(&self, message_id: u32) -> Freshness {
        if message_id == self.next {
            Freshness::New
        } else if self.last.is_some() && self.next.checked_sub(1) == Some(message_id) {
            Freshness::Repeated
        } else {
            Freshness::Outside
        }
    }

    pub(crate) fn answered(&mut self, bytes: Vec<u8>) {
        self.next = self.next.saturating_add(1);
        self.last = Some(bytes);
    }
}
