//! The payloads of a message (RFC 7296, 3.2 to 3.16).

use super::build::BuildError;
use super::limits;
use super::notify::Notify;
use super::proposal::{self, Proposal, ProtocolId};
use super::ts::TrafficSelectors;
use crate::error::{Problem, WireError};
use crate::numbers::numbers;
use crate::reader::Reader;

numbers! {
    /// The type of a payload (RFC 7296, 3.2). The types of IKEv1 (1 to 20) have no name here:
    /// inside IKEv2 they are unknown.
    PayloadType: u8 {
        NONE = 0,
        SA = 33,
        KE = 34,
        IDI = 35,
        IDR = 36,
        CERT = 37,
        CERTREQ = 38,
        AUTH = 39,
        NONCE = 40,
        NOTIFY = 41,
        DELETE = 42,
        VENDOR_ID = 43,
        TSI = 44,
        TSR = 45,
        /// Encrypted and authenticated.
        SK = 46,
        CP = 47,
        EAP = 48,
        /// An encrypted fragment (RFC 7383).
        SKF = 53,
    }
}

numbers! {
    /// The kind of an identity (RFC 7296, 3.5).
    IdType: u8 {
        IPV4_ADDR = 1,
        FQDN = 2,
        RFC822_ADDR = 3,
        IPV6_ADDR = 5,
        DER_ASN1_DN = 9,
        DER_ASN1_GN = 10,
        KEY_ID = 11,
    }
}

numbers! {
    /// The encoding of a certificate (RFC 7296, 3.6).
    CertEncoding: u8 {
        PKCS7 = 1,
        CRL = 7,
        X509_SIGNATURE = 4,
        HASH_AND_URL = 12,
        HASH_AND_URL_BUNDLE = 13,
        RAW_PUBLIC_KEY = 15,
    }
}

numbers! {
    /// How the AUTH payload was computed (RFC 7296, 3.8).
    AuthMethod: u8 {
        RSA_SIGNATURE = 1,
        SHARED_KEY = 2,
        DSS_SIGNATURE = 3,
        ECDSA_P256_SHA256 = 9,
        ECDSA_P384_SHA384 = 10,
        ECDSA_P521_SHA512 = 11,
        GENERIC_SECURE_PASSWORD = 12,
        NULL = 13,
        /// RFC 7427.
        DIGITAL_SIGNATURE = 14,
    }
}

/// A KE payload (RFC 7296, 3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyExchange {
    /// The method, a [`super::KeyExchangeId`].
    pub method: u16,
    /// The public value; its length is not checked here.
    pub data: Vec<u8>,
}

/// An ID payload (RFC 7296, 3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identification {
    /// Its kind.
    pub kind: IdType,
    /// The identity.
    pub data: Vec<u8>,
}

impl Identification {
    /// The body as we send it, which our own AUTH covers. For the peer's identity take the
    /// `body` of the parsed payload: its reserved bytes count.
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.kind.0, 0, 0, 0];
        out.extend(&self.data);
        out
    }
}

/// A CERT payload (RFC 7296, 3.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The encoding.
    pub encoding: CertEncoding,
    /// The certificate.
    pub data: Vec<u8>,
}

/// A CERTREQ payload (RFC 7296, 3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The encoding that is asked for.
    pub encoding: CertEncoding,
    /// SHA-1 hashes of the trusted CAs' public keys, 20 bytes each, for X.509.
    pub authorities: Vec<u8>,
}

impl CertificateRequest {
    /// The hashes; bytes that make no whole hash are left out.
    pub fn hashes(&self) -> impl Iterator<Item = &[u8; 20]> {
        self.authorities.as_chunks::<20>().0.iter()
    }
}

/// An AUTH payload (RFC 7296, 3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// The method.
    pub method: AuthMethod,
    /// The signature or MAC; for [`AuthMethod::DIGITAL_SIGNATURE`] with the algorithm in front.
    pub data: Vec<u8>,
}

impl Authentication {
    /// An AUTH payload by RFC 7427: the DER AlgorithmIdentifier, then the signature. None when
    /// the algorithm has more than 255 bytes.
    pub fn digital_signature(algorithm: &[u8], signature: &[u8]) -> Option<Self> {
        let mut data = vec![u8::try_from(algorithm.len()).ok()?];
        data.extend(algorithm);
        data.extend(signature);
        Some(Self {
            method: AuthMethod::DIGITAL_SIGNATURE,
            data,
        })
    }

    /// Algorithm and signature of an AUTH payload by RFC 7427.
    pub fn split_digital_signature(&self) -> Option<(&[u8], &[u8])> {
        let (&length, rest) = self.data.split_first()?;
        (self.method == AuthMethod::DIGITAL_SIGNATURE).then_some(())?;
        rest.split_at_checked(usize::from(length))
    }
}

/// A Delete payload (RFC 7296, 3.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delete {
    /// The IKE SA that the message came in.
    Ike,
    /// Child SAs, by the SPIs that the sender receives on.
    Child {
        /// ESP or AH, or another number, which is to be ignored.
        protocol: ProtocolId,
        /// The SPIs.
        spis: Vec<u32>,
    },
}

/// A payload of a type that we do not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPayload {
    /// Its type.
    pub kind: PayloadType,
    /// The critical bit. A parsed one is never critical: that is an error.
    pub critical: bool,
    /// Its body.
    pub data: Vec<u8>,
}

/// A payload, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// SA.
    Sa(Vec<Proposal>),
    /// KE.
    KeyExchange(KeyExchange),
    /// IDi.
    IdInitiator(Identification),
    /// IDr.
    IdResponder(Identification),
    /// CERT.
    Certificate(Certificate),
    /// CERTREQ.
    CertificateRequest(CertificateRequest),
    /// AUTH.
    Authentication(Authentication),
    /// Ni or Nr.
    Nonce(Vec<u8>),
    /// N.
    Notify(Notify),
    /// D.
    Delete(Delete),
    /// V.
    VendorId(Vec<u8>),
    /// TSi.
    TsInitiator(TrafficSelectors),
    /// TSr.
    TsResponder(TrafficSelectors),
    /// CP, not looked into.
    Configuration(Vec<u8>),
    /// EAP, not looked into.
    Eap(Vec<u8>),
    /// Any other.
    Unknown(UnknownPayload),
}

impl Payload {
    /// Its type on the wire.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::SA,
            Self::KeyExchange(_) => PayloadType::KE,
            Self::IdInitiator(_) => PayloadType::IDI,
            Self::IdResponder(_) => PayloadType::IDR,
            Self::Certificate(_) => PayloadType::CERT,
            Self::CertificateRequest(_) => PayloadType::CERTREQ,
            Self::Authentication(_) => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::NOTIFY,
            Self::Delete(_) => PayloadType::DELETE,
            Self::VendorId(_) => PayloadType::VENDOR_ID,
            Self::TsInitiator(_) => PayloadType::TSI,
            Self::TsResponder(_) => PayloadType::TSR,
            Self::Configuration(_) => PayloadType::CP,
            Self::Eap(_) => PayloadType::EAP,
            Self::Unknown(unknown) => unknown.kind,
        }
    }

    /// The critical bit to send: only an unknown payload can have it.
    pub fn critical(&self) -> bool {
        matches!(self, Self::Unknown(unknown) if unknown.critical)
    }

    /// Decodes a body; `offset` is its place in the message, for errors.
    ///
    /// SK and SKF are not bodies that can be decoded: they come out as unknown.
    pub fn decode(
        kind: PayloadType,
        critical: bool,
        body: &[u8],
        offset: usize,
    ) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, offset, name(kind));
        let r = &mut reader;
        Ok(match kind {
            PayloadType::SA => Self::Sa(proposal::decode(r)?),
            PayloadType::KE => {
                let method = r.u16()?;
                r.u16()?;
                Self::KeyExchange(KeyExchange {
                    method,
                    data: r.rest().to_vec(),
                })
            }
            PayloadType::IDI => Self::IdInitiator(decode_id(r)?),
            PayloadType::IDR => Self::IdResponder(decode_id(r)?),
            PayloadType::CERT => Self::Certificate(Certificate {
                encoding: CertEncoding(r.u8()?),
                data: r.rest().to_vec(),
            }),
            PayloadType::CERTREQ => {
                let encoding = CertEncoding(r.u8()?);
                Self::CertificateRequest(CertificateRequest {
                    encoding,
                    authorities: r.rest().to_vec(),
                })
            }
            PayloadType::AUTH => {
                let method = AuthMethod(r.u8()?);
                r.take(3)?;
                Self::Authentication(Authentication {
                    method,
                    data: r.rest().to_vec(),
                })
            }
            PayloadType::NONCE => Self::Nonce(decode_nonce(r)?),
            PayloadType::NOTIFY => Self::Notify(Notify::decode(r)?),
            PayloadType::DELETE => Self::Delete(decode_delete(r)?),
            PayloadType::VENDOR_ID => Self::VendorId(body.to_vec()),
            PayloadType::TSI => Self::TsInitiator(TrafficSelectors::decode(r)?),
            PayloadType::TSR => Self::TsResponder(TrafficSelectors::decode(r)?),
            PayloadType::CP => Self::Configuration(body.to_vec()),
            PayloadType::EAP => Self::Eap(body.to_vec()),
            _ => Self::Unknown(UnknownPayload {
                kind,
                critical,
                data: body.to_vec(),
            }),
        })
    }

    /// Appends the body, without the generic header.
    pub(super) fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), BuildError> {
        self.check()?;
        match self {
            Self::Sa(proposals) => proposal::encode(proposals, out),
            Self::KeyExchange(ke) => {
                out.extend(ke.method.to_be_bytes());
                out.extend([0, 0]);
                out.extend(&ke.data);
            }
            Self::IdInitiator(id) | Self::IdResponder(id) => out.extend(id.body()),
            Self::Certificate(cert) => {
                out.push(cert.encoding.0);
                out.extend(&cert.data);
            }
            Self::CertificateRequest(request) => {
                out.push(request.encoding.0);
                out.extend(&request.authorities);
            }
            Self::Authentication(auth) => {
                out.extend([auth.method.0, 0, 0, 0]);
                out.extend(&auth.data);
            }
            Self::Notify(notify) => notify.encode(out),
            Self::Delete(delete) => encode_delete(delete, out),
            Self::TsInitiator(ts) | Self::TsResponder(ts) => ts.encode(out),
            Self::Nonce(data)
            | Self::VendorId(data)
            | Self::Configuration(data)
            | Self::Eap(data) => out.extend(data),
            Self::Unknown(unknown) => out.extend(&unknown.data),
        }
        Ok(())
    }

    /// What the encoding has no room for, or what our own parser would refuse.
    fn check(&self) -> Result<(), BuildError> {
        let fits = match self {
            Self::Sa(proposals) => {
                let transforms: usize = proposals.iter().map(|p| p.transforms.len()).sum();
                !proposals.is_empty()
                    && proposals.len() <= limits::PROPOSALS
                    && transforms <= limits::TRANSFORMS
                    && proposals
                        .iter()
                        .all(|p| p.spi.len() <= 255 && p.transforms.len() <= 255)
            }
            Self::Nonce(nonce) => (limits::NONCE_MIN..=limits::NONCE_MAX).contains(&nonce.len()),
            Self::Notify(notify) => notify.spi.len() <= 255,
            Self::Delete(Delete::Child { protocol, spis }) => {
                *protocol != ProtocolId::IKE && spis.len() <= limits::DELETE_SPIS
            }
            Self::TsInitiator(ts) | Self::TsResponder(ts) => {
                (1..=limits::TRAFFIC_SELECTORS).contains(&ts.selectors.len())
            }
            _ => true,
        };
        if fits {
            Ok(())
        } else {
            Err(BuildError::Payload { kind: self.kind() })
        }
    }
}

fn name(kind: PayloadType) -> &'static str {
    match kind {
        PayloadType::SA => "SA payload",
        PayloadType::KE => "KE payload",
        PayloadType::IDI => "IDi payload",
        PayloadType::IDR => "IDr payload",
        PayloadType::CERT => "CERT payload",
        PayloadType::CERTREQ => "CERTREQ payload",
        PayloadType::AUTH => "AUTH payload",
        PayloadType::NONCE => "Nonce payload",
        PayloadType::NOTIFY => "Notify payload",
        PayloadType::DELETE => "Delete payload",
        PayloadType::TSI => "TSi payload",
        PayloadType::TSR => "TSr payload",
        _ => "payload",
    }
}

fn decode_id(r: &mut Reader<'_>) -> Result<Identification, WireError> {
    let kind = IdType(r.u8()?);
    r.take(3)?;
    Ok(Identification {
        kind,
        data: r.rest().to_vec(),
    })
}

fn decode_nonce(r: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    let said = r.left();
    if !(limits::NONCE_MIN..=limits::NONCE_MAX).contains(&said) {
        return Err(r.error(Problem::BadLength {
            said,
            min: limits::NONCE_MIN,
            max: limits::NONCE_MAX,
        }));
    }
    Ok(r.rest().to_vec())
}

fn decode_delete(r: &mut Reader<'_>) -> Result<Delete, WireError> {
    let protocol = ProtocolId(r.u8()?);
    let size = r.u8()?;
    let count = usize::from(r.u16()?);
    if protocol == ProtocolId::IKE {
        // The SPI is in the header already; RFC 7296 says size and count are 0.
        if size != 0 || count != 0 {
            return Err(r.error(Problem::BadValue(size.into())));
        }
        r.finish()?;
        return Ok(Delete::Ike);
    }
    if size != 4 {
        return Err(r.error(Problem::BadValue(size.into())));
    }
    if count > limits::DELETE_SPIS {
        return Err(r.error(Problem::TooMany {
            limit: limits::DELETE_SPIS,
        }));
    }
    if r.left() != count * 4 {
        return Err(r.error(Problem::BadLength {
            said: count * 4,
            min: r.left(),
            max: r.left(),
        }));
    }
    let mut spis = Vec::new();
    while !r.is_empty() {
        spis.push(r.u32()?);
    }
    Ok(Delete::Child { protocol, spis })
}

fn encode_delete(delete: &Delete, out: &mut Vec<u8>) {
    match delete {
        Delete::Ike => out.extend([ProtocolId::IKE.0, 0, 0, 0]),
        Delete::Child { protocol, spis } => {
            out.extend([protocol.0, 4]);
            out.extend((spis.len() as u16).to_be_bytes());
            for spi in spis {
                out.extend(spi.to_be_bytes());
            }
        }
    }
}
