//! Reading whole messages.

use core::ops::Range;

use super::header::{HEADER_LEN, Header};
use super::limits;
use super::payload::{Payload, PayloadType};
use crate::error::{Problem, WireError};
use crate::reader::Reader;

/// Bytes of the generic payload header (RFC 7296, 3.2).
pub(super) const GENERIC_LEN: usize = 4;
/// Bytes of fragment number and total in an SKF payload (RFC 7383, 2.5).
pub(super) const FRAGMENT_LEN: usize = 4;
const CRITICAL: u8 = 0x80;

/// A payload with its raw bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedPayload<'a> {
    /// The payload, decoded.
    pub payload: Payload,
    /// Its body as sent, reserved bytes included, without the generic header: what AUTH covers
    /// for an ID (RFC 7296, 2.15).
    pub body: &'a [u8],
    /// Offset of the generic header in the buffer that was parsed.
    pub offset: usize,
}

/// Number and total of a fragment (RFC 7383, 2.5): 1 <= number <= total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Its number, from 1.
    pub number: u16,
    /// How many there are.
    pub total: u16,
}

/// Sizes that the cipher of an Encrypted payload has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncryptedLayout {
    /// Bytes of the IV.
    pub iv_len: usize,
    /// Bytes of the integrity check value.
    pub icv_len: usize,
    /// Payloads, padding and pad length are a multiple of so many bytes: the cipher's block, or 1.
    /// Never 0.
    pub block_len: usize,
}

impl EncryptedLayout {
    /// AES-GCM with a 16-byte ICV (RFC 5282).
    pub const AES_GCM_16: Self = Self {
        iv_len: 8,
        icv_len: 16,
        block_len: 1,
    };
}

/// The SK or SKF payload that ends a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// Type of the first payload inside; of fragments, only the first one says it.
    pub first_inner: PayloadType,
    /// Number and total when it is an SKF payload.
    pub fragment: Option<Fragment>,
    /// From the IV to the end of the message.
    pub body: Range<usize>,
}

/// Where the parts of an Encrypted payload lie in the datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedRanges {
    /// Additional authenticated data: from the header up to the IV (RFC 5282, 5.1).
    pub aad: Range<usize>,
    /// The IV.
    pub iv: Range<usize>,
    /// Payloads, padding and pad length, encrypted.
    pub ciphertext: Range<usize>,
    /// The integrity check value, which ends the datagram.
    pub icv: Range<usize>,
}

impl Encrypted {
    /// Splits the body by the sizes of the SA's cipher.
    pub fn ranges(&self, layout: EncryptedLayout) -> Result<EncryptedRanges, WireError> {
        // At the very least the pad length is encrypted.
        let need = layout.iv_len + 1 + layout.icv_len;
        if self.body.len() < need {
            return Err(WireError::truncated(
                "encrypted payload",
                self.body.start,
                need,
                self.body.len(),
            ));
        }
        let text = self.body.start + layout.iv_len;
        let icv = self.body.end - layout.icv_len;
        if !(icv - text).is_multiple_of(layout.block_len) {
            return Err(WireError::new(
                "encrypted payload",
                text,
                Problem::BadLength {
                    said: icv - text,
                    min: layout.block_len,
                    max: icv - text,
                },
            ));
        }
        Ok(EncryptedRanges {
            aad: 0..self.body.start,
            iv: self.body.start..text,
            ciphertext: text..icv,
            icv: icv..self.body.end,
        })
    }
}

/// A whole message, as far as it can be read without keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// The header.
    pub header: Header,
    /// The payloads outside the Encrypted one, in order.
    pub payloads: Vec<ParsedPayload<'a>>,
    /// The SK or SKF payload.
    pub encrypted: Option<Encrypted>,
}

impl<'a> Message<'a> {
    /// Reads a datagram, without the non-ESP marker.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, WireError> {
        let header = Header::parse(datagram)?;
        header.check(datagram.len())?;
        if datagram.len() > limits::MESSAGE {
            let problem = Problem::BadLength {
                said: datagram.len(),
                min: HEADER_LEN,
                max: limits::MESSAGE,
            };
            return Err(WireError::new("IKE message length", 24, problem));
        }
        let mut chain = Walk::new(header.next_payload, &datagram[HEADER_LEN..], HEADER_LEN);
        let mut payloads = Vec::new();
        let mut encrypted = None;
        while let Some(raw) = chain.next()? {
            if raw.kind == PayloadType::SK || raw.kind == PayloadType::SKF {
                // It must be the last (RFC 7296, 3.14): its next payload is the first inside, so
                // that whatever follows is bytes too many.
                encrypted = Some(raw.encrypted()?);
                break;
            }
            payloads.push(raw.decode()?);
        }
        chain.reader.finish()?;
        Ok(Self {
            header,
            payloads,
            encrypted,
        })
    }
}

/// Reads the payloads inside a decrypted and unpadded Encrypted payload. Offsets are from the
/// start of `bytes`. An Encrypted payload inside another is refused.
pub fn parse_chain(first: PayloadType, bytes: &[u8]) -> Result<Vec<ParsedPayload<'_>>, WireError> {
    let mut chain = Walk::new(first, bytes, 0);
    let mut payloads = Vec::new();
    while let Some(raw) = chain.next()? {
        if raw.kind == PayloadType::SK || raw.kind == PayloadType::SKF {
            let problem = Problem::BadValue(raw.kind.0.into());
            return Err(WireError::new(
                "encrypted payload inside another",
                raw.offset,
                problem,
            ));
        }
        payloads.push(raw.decode()?);
    }
    chain.reader.finish()?;
    Ok(payloads)
}

/// Takes padding and pad length off decrypted bytes (RFC 7296, 3.14). The padding may have any
/// content.
pub fn strip_padding(plain: &[u8]) -> Result<&[u8], WireError> {
    let (&pad, rest) = plain
        .split_last()
        .ok_or_else(|| WireError::truncated("pad length", 0, 1, 0))?;
    let end = rest.len().checked_sub(usize::from(pad)).ok_or_else(|| {
        let problem = Problem::BadLength {
            said: pad.into(),
            min: 0,
            max: rest.len(),
        };
        WireError::new("pad length", rest.len(), problem)
    })?;
    Ok(&rest[..end])
}

struct Raw<'a> {
    kind: PayloadType,
    next: PayloadType,
    critical: bool,
    offset: usize,
    body: &'a [u8],
}

impl<'a> Raw<'a> {
    fn body_offset(&self) -> usize {
        self.offset + GENERIC_LEN
    }

    fn decode(&self) -> Result<ParsedPayload<'a>, WireError> {
        let payload = Payload::decode(self.kind, self.critical, self.body, self.body_offset())?;
        if self.critical && matches!(payload, Payload::Unknown(_)) {
            return Err(WireError::new(
                "payload",
                self.offset,
                Problem::UnsupportedCritical(self.kind.0),
            ));
        }
        Ok(ParsedPayload {
            payload,
            body: self.body,
            offset: self.offset,
        })
    }

    fn encrypted(&self) -> Result<Encrypted, WireError> {
        let mut start = self.body_offset();
        let end = start + self.body.len();
        let mut fragment = None;
        if self.kind == PayloadType::SKF {
            let mut r = Reader::new(self.body, start, "SKF payload");
            let (number, total) = (r.u16()?, r.u16()?);
            if number == 0 || number > total {
                return Err(WireError::new(
                    "fragment number",
                    start,
                    Problem::BadValue(number.into()),
                ));
            }
            fragment = Some(Fragment { number, total });
            start += FRAGMENT_LEN;
        }
        Ok(Encrypted {
            first_inner: self.next,
            fragment,
            body: start..end,
        })
    }
}

/// Walks the generic headers of a chain of payloads.
struct Walk<'a> {
    next: PayloadType,
    reader: Reader<'a>,
    count: usize,
}

impl<'a> Walk<'a> {
    fn new(first: PayloadType, bytes: &'a [u8], base: usize) -> Self {
        Self {
            next: first,
            reader: Reader::new(bytes, base, "payload chain"),
            count: 0,
        }
    }

    fn next(&mut self) -> Result<Option<Raw<'a>>, WireError> {
        if self.next == PayloadType::NONE {
            return Ok(None);
        }
        if self.count == limits::PAYLOADS {
            return Err(self.reader.error(Problem::TooMany {
                limit: limits::PAYLOADS,
            }));
        }
        self.count += 1;
        let kind = self.next;
        let offset = self.reader.offset();
        let available = self.reader.left();
        let next = PayloadType(self.reader.u8()?);
        let critical = self.reader.u8()? & CRITICAL != 0;
        let said = usize::from(self.reader.u16()?);
        if said < GENERIC_LEN || said > available {
            let problem = Problem::BadLength {
                said,
                min: GENERIC_LEN,
                max: available,
            };
            return Err(WireError::new("payload length", offset + 2, problem));
        }
        let body = self.reader.take(said - GENERIC_LEN)?;
        self.next = next;
        Ok(Some(Raw {
            kind,
            next,
            critical,
            offset,
            body,
        }))
    }
}
