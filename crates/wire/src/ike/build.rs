//! Writing whole messages.

use core::ops::Range;

use thiserror::Error;

use super::header::{HEADER_LEN, Header};
use super::limits;
use super::parse::{EncryptedLayout, FRAGMENT_LEN, Fragment, GENERIC_LEN};
use super::payload::{Payload, PayloadType};

/// Bytes of the pad length.
const PAD_LENGTH: usize = 1;

/// Room for the payloads of most messages: more is made where it is needed.
const USUAL: usize = 512;

/// Why a message cannot be written. Each is a mistake of the caller or a limit of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BuildError {
    /// A payload has more parts than its fields can count, or than any parser here accepts.
    #[error("the {kind} payload has too many, too few or too large parts")]
    Payload {
        /// Its type.
        kind: PayloadType,
    },
    /// A payload is longer than its 16-bit length field can say.
    #[error("the {kind} payload would have {length} bytes, more than 65535")]
    TooLong {
        /// Its type.
        kind: PayloadType,
        /// Its length with the generic header.
        length: usize,
    },
    /// More payloads than a message may have.
    #[error("more than {} payloads in a message", limits::PAYLOADS)]
    TooManyPayloads,
    /// The message is longer than a datagram.
    #[error("the message would have {length} bytes, more than a datagram holds")]
    Message {
        /// Its length.
        length: usize,
    },
    /// Too small a size for fragments, or too many of them.
    #[error("{bytes} bytes of payloads cannot be cut into messages of {max} bytes")]
    Fragments {
        /// Bytes of the inner payloads.
        bytes: usize,
        /// The largest message allowed.
        max: usize,
    },
}

/// Payloads in a row, encoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    first: Option<PayloadType>,
    bytes: Vec<u8>,
    /// Where the generic header of the last payload lies.
    last: usize,
    count: usize,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// A chain of these payloads.
    pub fn of<'p>(payloads: impl IntoIterator<Item = &'p Payload>) -> Result<Self, BuildError> {
        let mut chain = Self {
            bytes: Vec::with_capacity(USUAL),
            ..Self::default()
        };
        for payload in payloads {
            chain.push(payload)?;
        }
        Ok(chain)
    }

    /// Appends a payload; gives the range of its body in [`Self::bytes`].
    pub fn push(&mut self, payload: &Payload) -> Result<Range<usize>, BuildError> {
        self.append(payload.kind(), payload.critical(), |out| {
            payload.encode_body(out)
        })
    }

    /// Appends a payload of which the body is encoded already.
    pub fn push_raw(
        &mut self,
        kind: PayloadType,
        critical: bool,
        body: &[u8],
    ) -> Result<Range<usize>, BuildError> {
        self.append(kind, critical, |out| {
            out.extend(body);
            Ok(())
        })
    }

    /// Appends a payload, the body written by `write`. One that is refused leaves no trace.
    fn append(
        &mut self,
        kind: PayloadType,
        critical: bool,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildError>,
    ) -> Result<Range<usize>, BuildError> {
        if self.count == limits::PAYLOADS {
            return Err(BuildError::TooManyPayloads);
        }
        let start = self.bytes.len();
        let body = start + GENERIC_LEN;
        push_generic(&mut self.bytes, PayloadType::NONE, critical, 0);
        let field = write(&mut self.bytes).and_then(|()| {
            let length = self.bytes.len() - start;
            u16::try_from(length).map_err(|_| BuildError::TooLong { kind, length })
        });
        match field {
            Ok(field) => self.bytes[start + 2..body].copy_from_slice(&field.to_be_bytes()),
            Err(error) => {
                self.bytes.truncate(start);
                return Err(error);
            }
        }
        match self.first {
            None => self.first = Some(kind),
            Some(_) => self.bytes[self.last] = kind.0,
        }
        self.last = start;
        self.count += 1;
        Ok(body..self.bytes.len())
    }

    /// The type of the first payload.
    pub fn first(&self) -> PayloadType {
        self.first.unwrap_or(PayloadType::NONE)
    }

    /// The payloads with their generic headers.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// No payload is in it.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// A message to be encrypted in place: fill `iv`, encrypt `plaintext` with `aad`, put the tag
/// into `icv`, send `bytes`. The four ranges are adjacent and make up all of `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealing {
    /// The datagram, with zeros where IV and ICV belong.
    pub bytes: Vec<u8>,
    /// Additional authenticated data: from the header up to the IV.
    pub aad: Range<usize>,
    /// Room for the IV.
    pub iv: Range<usize>,
    /// Payloads, padding to whole blocks, and pad length, in clear.
    pub plaintext: Range<usize>,
    /// Room for the integrity check value.
    pub icv: Range<usize>,
}

/// Writes a message of clear payloads alone.
pub fn build_clear(header: &Header, chain: &Chain) -> Result<Vec<u8>, BuildError> {
    let length = HEADER_LEN + chain.bytes.len();
    let mut out = start_message(header, chain.first(), length)?;
    out.extend(&chain.bytes);
    Ok(out)
}

/// Writes a message with one SK payload around the inner payloads, which may be none.
pub fn build_encrypted(
    header: &Header,
    inner: &Chain,
    layout: EncryptedLayout,
) -> Result<Sealing, BuildError> {
    seal_room(header, inner.first(), None, &inner.bytes, layout)
}

/// Writes a message as SKF payloads (RFC 7383), each datagram at most `max_message` bytes, or as
/// one SK payload when it fits.
pub fn build_fragments(
    header: &Header,
    inner: &Chain,
    layout: EncryptedLayout,
    max_message: usize,
) -> Result<Vec<Sealing>, BuildError> {
    let around = HEADER_LEN + GENERIC_LEN + layout.iv_len + layout.icv_len;
    if around + padded_len(inner.bytes.len(), layout) <= max_message {
        return Ok(vec![build_encrypted(header, inner, layout)?]);
    }
    let impossible = BuildError::Fragments {
        bytes: inner.bytes.len(),
        max: max_message,
    };
    let room = max_message
        .checked_sub(around + FRAGMENT_LEN)
        .map(|text| text - text % layout.block_len)
        .and_then(|text| text.checked_sub(PAD_LENGTH))
        .filter(|room| *room > 0)
        .ok_or(impossible)?;
    let total = u16::try_from(inner.bytes.len().div_ceil(room)).map_err(|_| impossible)?;
    let mut out = Vec::new();
    for (number, piece) in (1..=total).zip(inner.bytes.chunks(room)) {
        // Only the first fragment names the first inner payload (RFC 7383, 2.5).
        let first = if number == 1 {
            inner.first()
        } else {
            PayloadType::NONE
        };
        out.push(seal_room(
            header,
            first,
            Some(Fragment { number, total }),
            piece,
            layout,
        )?);
    }
    Ok(out)
}

/// Bytes of inner payloads with padding and pad length. The padding is less than a block, so less
/// than 256 bytes.
fn padded_len(inner: usize, layout: EncryptedLayout) -> usize {
    (inner + PAD_LENGTH).next_multiple_of(layout.block_len)
}

fn seal_room(
    header: &Header,
    first: PayloadType,
    fragment: Option<Fragment>,
    inner: &[u8],
    layout: EncryptedLayout,
) -> Result<Sealing, BuildError> {
    let kind = if fragment.is_some() {
        PayloadType::SKF
    } else {
        PayloadType::SK
    };
    let extra = if fragment.is_some() { FRAGMENT_LEN } else { 0 };
    let padded = padded_len(inner.len(), layout);
    let length = GENERIC_LEN + extra + layout.iv_len + padded + layout.icv_len;
    let field = u16::try_from(length).map_err(|_| BuildError::TooLong { kind, length })?;
    let mut bytes = start_message(header, kind, HEADER_LEN + length)?;
    push_generic(&mut bytes, first, false, field);
    if let Some(Fragment { number, total }) = fragment {
        bytes.extend(number.to_be_bytes());
        bytes.extend(total.to_be_bytes());
    }
    let iv = bytes.len();
    let text = iv + layout.iv_len;
    bytes.resize(text, 0);
    bytes.extend(inner);
    // The padding may have any content (RFC 7296, 3.14).
    let pad = padded - inner.len() - PAD_LENGTH;
    bytes.resize(bytes.len() + pad, 0);
    bytes.push(pad as u8);
    let icv = bytes.len();
    let end = icv + layout.icv_len;
    bytes.resize(end, 0);
    Ok(Sealing {
        bytes,
        aad: 0..iv,
        iv: iv..text,
        plaintext: text..icv,
        icv: icv..end,
    })
}

fn start_message(
    header: &Header,
    first: PayloadType,
    length: usize,
) -> Result<Vec<u8>, BuildError> {
    let field = u16::try_from(length).map_err(|_| BuildError::Message { length })?;
    let mut out = Vec::with_capacity(length);
    out.extend(
        Header {
            next_payload: first,
            length: field.into(),
            ..*header
        }
        .to_bytes(),
    );
    Ok(out)
}

fn push_generic(out: &mut Vec<u8>, next: PayloadType, critical: bool, length: u16) {
    out.extend([next.0, if critical { 0x80 } else { 0 }]);
    out.extend(length.to_be_bytes());
}
