//! Algorithms of SAs by the kernel's names.

use super::abi;
use super::key::XfrmKey;
use crate::message::{Request, read_string, read_u32};

/// The longest key that is read, in bytes; the kernel's longest is shorter.
const LONGEST_KEY: usize = 512;

/// How packets are protected.
pub enum XfrmAlgorithm {
    /// Encryption and integrity in one (RFC 4106).
    Aead {
        /// The kernel's name, `rfc4106(gcm(aes))`.
        name: String,
        /// Key and salt.
        key: XfrmKey,
        /// Length of the integrity check value in bits.
        icv_bits: u32,
    },
    /// A cipher and a separate integrity check.
    CipherAndIntegrity {
        /// The cipher's name, `cbc(aes)`.
        cipher: String,
        /// The cipher's key.
        cipher_key: XfrmKey,
        /// The integrity algorithm's name, `hmac(sha256)`.
        integrity: String,
        /// Its key.
        integrity_key: XfrmKey,
        /// Length of the integrity check value in bits.
        icv_bits: u32,
    },
    /// None: an SA that is only reserved, or one whose algorithms this type cannot say.
    None,
}

impl XfrmAlgorithm {
    /// The algorithms' names, without keys.
    pub fn names(&self) -> String {
        match self {
            XfrmAlgorithm::Aead { name, icv_bits, .. } => format!("{name} {icv_bits}"),
            XfrmAlgorithm::CipherAndIntegrity {
                cipher,
                integrity,
                icv_bits,
                ..
            } => format!("{cipher} {integrity} {icv_bits}"),
            XfrmAlgorithm::None => "none".into(),
        }
    }

    pub(super) fn put(&self, request: &mut Request) {
        match self {
            XfrmAlgorithm::Aead {
                name,
                key,
                icv_bits,
            } => put(request, abi::ALG_AEAD, name, key, Some(*icv_bits)),
            XfrmAlgorithm::CipherAndIntegrity {
                cipher,
                cipher_key,
                integrity,
                integrity_key,
                icv_bits,
            } => {
                put(request, abi::ALG_CRYPT, cipher, cipher_key, None);
                let kind = abi::ALG_AUTH_TRUNC;
                put(request, kind, integrity, integrity_key, Some(*icv_bits));
            }
            XfrmAlgorithm::None => {}
        }
    }
}

/// Writes `xfrm_algo`, or `xfrm_algo_aead` and `xfrm_algo_auth` where there is a second length.
fn put(request: &mut Request, kind: u16, name: &str, key: &XfrmKey, icv_bits: Option<u32>) {
    let mut head = [0; abi::ALG_NAME_LEN + 8];
    let len = name.len().min(abi::ALG_NAME_LEN - 1);
    head[..len].copy_from_slice(&name.as_bytes()[..len]);
    let bits = u32::try_from(key.as_bytes().len() * 8).expect("keys are short");
    head[abi::ALG_NAME_LEN..][..4].copy_from_slice(&bits.to_ne_bytes());
    let mut end = abi::ALG_NAME_LEN + 4;
    if let Some(icv) = icv_bits {
        head[end..end + 4].copy_from_slice(&icv.to_ne_bytes());
        end += 4;
    }
    request.attr_parts(kind, &[&head[..end], key.as_bytes()]);
}

/// Algorithms as attributes give them, one after the other.
#[derive(Default)]
pub(super) struct Collected {
    aead: Option<(String, XfrmKey, u32)>,
    cipher: Option<(String, XfrmKey)>,
    integrity: Option<(String, XfrmKey, u32)>,
}

impl Collected {
    /// Looks at one attribute; `None`: it is malformed.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) -> Option<()> {
        match kind {
            abi::ALG_AEAD => self.aead = Some(parse_with_icv(value)?),
            abi::ALG_CRYPT => {
                let (name, key) = parse(value, abi::ALG_NAME_LEN + 4)?;
                self.cipher = Some((name, key));
            }
            abi::ALG_AUTH_TRUNC => self.integrity = Some(parse_with_icv(value)?),
            // Kernels list the integrity algorithm twice; this form has no length.
            abi::ALG_AUTH if self.integrity.is_none() => {
                let (name, key) = parse(value, abi::ALG_NAME_LEN + 4)?;
                self.integrity = Some((name, key, 0));
            }
            _ => {}
        }
        Some(())
    }

    pub(super) fn finish(self) -> XfrmAlgorithm {
        match (self.aead, self.cipher, self.integrity) {
            (Some((name, key, icv_bits)), _, _) => XfrmAlgorithm::Aead {
                name,
                key,
                icv_bits,
            },
            (None, Some((cipher, cipher_key)), Some((integrity, integrity_key, icv_bits))) => {
                XfrmAlgorithm::CipherAndIntegrity {
                    cipher,
                    cipher_key,
                    integrity,
                    integrity_key,
                    icv_bits,
                }
            }
            _ => XfrmAlgorithm::None,
        }
    }
}

fn parse_with_icv(value: &[u8]) -> Option<(String, XfrmKey, u32)> {
    let icv_bits = read_u32(value, abi::ALG_NAME_LEN + 4)?;
    let (name, key) = parse(value, abi::ALG_NAME_LEN + 8)?;
    Some((name, key, icv_bits))
}

/// Name and key of an algorithm whose key begins at `key_at`.
fn parse(value: &[u8], key_at: usize) -> Option<(String, XfrmKey)> {
    let name = read_string(value.get(..abi::ALG_NAME_LEN)?);
    let bits = usize::try_from(read_u32(value, abi::ALG_NAME_LEN)?).ok()?;
    let len = bits.div_ceil(8);
    if len > LONGEST_KEY {
        return None;
    }
    let key = value.get(key_at..key_at.checked_add(len)?)?;
    Some((name, XfrmKey::new(key)))
}
