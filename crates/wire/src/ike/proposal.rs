//! Proposals and transforms of an SA payload (RFC 7296, 3.3).

use super::limits;
use crate::error::{Problem, WireError};
use crate::numbers::numbers;
use crate::reader::Reader;

numbers! {
    /// The protocol of a proposal, Notify or Delete (RFC 7296, 3.3.1).
    ProtocolId: u8 {
        /// In a Notify about no SA in particular.
        NONE = 0,
        IKE = 1,
        AH = 2,
        ESP = 3,
    }
}

numbers! {
    /// The type of a transform (RFC 7296, 3.3.2; RFC 9370).
    TransformType: u8 {
        ENCR = 1,
        PRF = 2,
        INTEG = 3,
        /// Key exchange method, once named Diffie-Hellman group.
        KE = 4,
        ESN = 5,
        ADDKE1 = 6,
        ADDKE2 = 7,
        ADDKE3 = 8,
        ADDKE4 = 9,
        ADDKE5 = 10,
        ADDKE6 = 11,
        ADDKE7 = 12,
    }
}

numbers! {
    /// Encryption algorithms, transform type 1.
    EncryptionId: u16 {
        TRIPLE_DES = 3,
        NULL = 11,
        AES_CBC = 12,
        AES_CTR = 13,
        AES_CCM_8 = 14,
        AES_CCM_12 = 15,
        AES_CCM_16 = 16,
        AES_GCM_8 = 18,
        AES_GCM_12 = 19,
        AES_GCM_16 = 20,
        NULL_AUTH_AES_GMAC = 21,
        CHACHA20_POLY1305 = 28,
        AES_CCM_8_IIV = 29,
        AES_GCM_16_IIV = 30,
        CHACHA20_POLY1305_IIV = 31,
    }
}

numbers! {
    /// Pseudorandom functions, transform type 2.
    PrfId: u16 {
        HMAC_MD5 = 1,
        HMAC_SHA1 = 2,
        AES128_XCBC = 4,
        HMAC_SHA2_256 = 5,
        HMAC_SHA2_384 = 6,
        HMAC_SHA2_512 = 7,
        AES128_CMAC = 8,
    }
}

numbers! {
    /// Integrity algorithms, transform type 3.
    IntegrityId: u16 {
        NONE = 0,
        HMAC_MD5_96 = 1,
        HMAC_SHA1_96 = 2,
        AES_XCBC_96 = 5,
        AES_CMAC_96 = 8,
        HMAC_SHA2_256_128 = 12,
        HMAC_SHA2_384_192 = 13,
        HMAC_SHA2_512_256 = 14,
    }
}

numbers! {
    /// Key exchange methods, transform type 4 and the additional ones of RFC 9370.
    KeyExchangeId: u16 {
        NONE = 0,
        MODP_1024 = 2,
        MODP_1536 = 5,
        MODP_2048 = 14,
        MODP_3072 = 15,
        MODP_4096 = 16,
        MODP_6144 = 17,
        MODP_8192 = 18,
        P256 = 19,
        P384 = 20,
        P521 = 21,
        X25519 = 31,
        X448 = 32,
        ML_KEM_512 = 35,
        ML_KEM_768 = 36,
        ML_KEM_1024 = 37,
    }
}

numbers! {
    /// Sequence numbers, transform type 5.
    EsnId: u16 {
        NO_ESN = 0,
        ESN = 1,
    }
}

const ATTRIBUTE_KEY_LENGTH: u16 = 14;
const ATTRIBUTE_TV: u16 = 0x8000;
const MORE_PROPOSALS: u8 = 2;
const MORE_TRANSFORMS: u8 = 3;

/// One transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transform {
    /// Its type.
    pub kind: TransformType,
    /// The algorithm: an [`EncryptionId`], [`PrfId`], ... by `kind`.
    pub id: u16,
    /// The Key Length attribute, in bits.
    pub key_length: Option<u16>,
    /// An attribute that we do not know, or a second or misformed Key Length, was there. Such a
    /// transform must not be chosen (RFC 7296, 3.3.6). Never encoded.
    pub unknown_attribute: bool,
}

impl Transform {
    /// A transform without attributes.
    pub fn new(kind: TransformType, id: u16) -> Self {
        Self {
            kind,
            id,
            key_length: None,
            unknown_attribute: false,
        }
    }

    /// An encryption transform with a key length in bits.
    pub fn encryption(id: EncryptionId, key_length: Option<u16>) -> Self {
        Self {
            key_length,
            ..Self::new(TransformType::ENCR, id.0)
        }
    }

    /// A pseudorandom function.
    pub fn prf(id: PrfId) -> Self {
        Self::new(TransformType::PRF, id.0)
    }

    /// An integrity algorithm.
    pub fn integrity(id: IntegrityId) -> Self {
        Self::new(TransformType::INTEG, id.0)
    }

    /// A key exchange method.
    pub fn key_exchange(id: KeyExchangeId) -> Self {
        Self::new(TransformType::KE, id.0)
    }

    /// Extended sequence numbers or not.
    pub fn esn(id: EsnId) -> Self {
        Self::new(TransformType::ESN, id.0)
    }
}

/// One proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Its number; an offer counts from 1, an answer repeats the chosen number.
    pub number: u8,
    /// The protocol.
    pub protocol: ProtocolId,
    /// The sender's SPI: empty, 4 bytes (ESP, AH) or 8 (IKE). Other sizes are kept: such a
    /// proposal is not to be chosen.
    pub spi: Vec<u8>,
    /// Its transforms, as sent.
    pub transforms: Vec<Transform>,
}

impl Proposal {
    /// The SPI of an ESP or AH proposal.
    pub fn spi_u32(&self) -> Option<u32> {
        self.spi.as_slice().try_into().ok().map(u32::from_be_bytes)
    }

    /// The SPI of an IKE proposal (when rekeying).
    pub fn spi_u64(&self) -> Option<u64> {
        self.spi.as_slice().try_into().ok().map(u64::from_be_bytes)
    }

    /// The transforms of one type.
    pub fn of_type(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms.iter().filter(move |t| t.kind == kind)
    }

    /// A transform of a type we have no name for is there; the whole proposal must then be
    /// refused, since an unknown type cannot be left out (RFC 7296, 3.3.6).
    pub fn has_unknown_type(&self) -> bool {
        self.transforms.iter().any(|t| t.kind.name().is_none())
    }
}

pub(super) fn decode(r: &mut Reader<'_>) -> Result<Vec<Proposal>, WireError> {
    let mut proposals = Vec::new();
    let mut transforms_left = limits::TRANSFORMS;
    let mut last = false;
    while !last {
        if proposals.len() == limits::PROPOSALS {
            return Err(r.error(Problem::TooMany {
                limit: limits::PROPOSALS,
            }));
        }
        let (proposal, is_last) = decode_proposal(r, &mut transforms_left)?;
        proposals.push(proposal);
        last = is_last;
    }
    r.finish()?;
    Ok(proposals)
}

/// Reads "last or more", the reserved byte and the length of a substructure; gives its inside.
fn substructure<'a>(
    r: &mut Reader<'a>,
    more: u8,
    header: usize,
    what: &'static str,
) -> Result<(bool, Reader<'a>), WireError> {
    let start = r.clone();
    let mark = r.u8()?;
    if mark != 0 && mark != more {
        return Err(WireError::new(
            what,
            start.offset(),
            Problem::BadValue(mark.into()),
        ));
    }
    r.u8()?;
    let said = usize::from(r.u16()?);
    let max = start.left();
    if said < header || said > max {
        return Err(WireError::new(
            what,
            start.offset() + 2,
            Problem::BadLength {
                said,
                min: header,
                max,
            },
        ));
    }
    Ok((mark == 0, r.sub(said - 4, what)?))
}

fn decode_proposal(
    r: &mut Reader<'_>,
    transforms_left: &mut usize,
) -> Result<(Proposal, bool), WireError> {
    let (last, mut body) = substructure(r, MORE_PROPOSALS, 8, "proposal")?;
    let number = body.u8()?;
    let protocol = ProtocolId(body.u8()?);
    let spi_len = usize::from(body.u8()?);
    let count = body.u8()?;
    let spi = body.take(spi_len)?.to_vec();
    let mut transforms = Vec::new();
    for index in 0..count {
        *transforms_left = transforms_left.checked_sub(1).ok_or_else(|| {
            body.error(Problem::TooMany {
                limit: limits::TRANSFORMS,
            })
        })?;
        let offset = body.offset();
        let (transform, is_last) = decode_transform(&mut body)?;
        if is_last != (index + 1 == count) {
            return Err(WireError::new(
                "number of transforms",
                offset,
                Problem::BadValue(count.into()),
            ));
        }
        transforms.push(transform);
    }
    body.finish()?;
    Ok((
        Proposal {
            number,
            protocol,
            spi,
            transforms,
        },
        last,
    ))
}

fn decode_transform(r: &mut Reader<'_>) -> Result<(Transform, bool), WireError> {
    let (last, mut body) = substructure(r, MORE_TRANSFORMS, 8, "transform")?;
    let kind = TransformType(body.u8()?);
    body.u8()?;
    let mut transform = Transform::new(kind, body.u16()?);
    let mut count = 0;
    while !body.is_empty() {
        if count == limits::ATTRIBUTES {
            return Err(body.error(Problem::TooMany {
                limit: limits::ATTRIBUTES,
            }));
        }
        count += 1;
        let attribute = body.u16()?;
        let value = body.u16()?;
        if attribute == ATTRIBUTE_TV | ATTRIBUTE_KEY_LENGTH && transform.key_length.is_none() {
            transform.key_length = Some(value);
            continue;
        }
        transform.unknown_attribute = true;
        if attribute & ATTRIBUTE_TV == 0 {
            body.take(usize::from(value))?;
        }
    }
    Ok((transform, last))
}

pub(super) fn encode(proposals: &[Proposal], out: &mut Vec<u8>) {
    for (index, proposal) in proposals.iter().enumerate() {
        let start = out.len();
        let more = if index + 1 < proposals.len() {
            MORE_PROPOSALS
        } else {
            0
        };
        out.extend([more, 0, 0, 0, proposal.number, proposal.protocol.0]);
        // Counts that do not fit are refused by `Payload::check` before anything is written.
        out.extend([proposal.spi.len() as u8, proposal.transforms.len() as u8]);
        out.extend(&proposal.spi);
        for (index, transform) in proposal.transforms.iter().enumerate() {
            let more = if index + 1 < proposal.transforms.len() {
                MORE_TRANSFORMS
            } else {
                0
            };
            let length: u16 = if transform.key_length.is_some() {
                12
            } else {
                8
            };
            out.extend([more, 0]);
            out.extend(length.to_be_bytes());
            out.extend([transform.kind.0, 0]);
            out.extend(transform.id.to_be_bytes());
            if let Some(bits) = transform.key_length {
                out.extend((ATTRIBUTE_TV | ATTRIBUTE_KEY_LENGTH).to_be_bytes());
                out.extend(bits.to_be_bytes());
            }
        }
        let length = (out.len() - start) as u16;
        out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}
