//! The 2048-bit MODP group (RFC 3526 section 3), for peers that know nothing newer.
//!
//! Over `crypto-bigint`, as the library underneath offers no finite-field
//! Diffie-Hellman through a safe interface. Exponentiation takes the same time
//! for every exponent.

use crypto_bigint::modular::ConstMontyForm;
use crypto_bigint::{U320, U2048, const_monty_params};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::SecretBytes;

/// Length in bytes of public values and of the shared secret.
pub(super) const LEN: usize = 256;
/// Length in bytes of an exponent. RFC 3526 section 8 wants 220 to 320 bits to
/// match the group's strength; the prime is safe, so no more is needed.
pub(super) const EXPONENT_LEN: usize = 40;

const PRIME: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
    020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
    4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
    98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
    9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
    3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF";

const_monty_params!(Group14, U2048, PRIME);

type Element = ConstMontyForm<Group14, { U2048::LIMBS }>;

/// A private exponent.
#[derive(ZeroizeOnDrop)]
pub(super) struct Exponent(U320);

impl Exponent {
    /// Takes exactly [`EXPONENT_LEN`] bytes, big-endian; `None` for zero. Gives
    /// the public value 2^x with it.
    pub(super) fn new(bytes: &[u8]) -> Option<(Self, Vec<u8>)> {
        if bytes.len() != EXPONENT_LEN || bytes.iter().fold(0, |all, byte| all | byte) == 0 {
            return None;
        }
        let exponent = Self(U320::from_be_slice(bytes));
        let public = exponent.raise(&U2048::from_u8(2));
        Some((exponent, public.as_bytes().to_vec()))
    }

    /// peer^x; `None` unless 1 < peer < p - 1 (RFC 6989 section 2.1: all that a
    /// safe prime needs).
    pub(super) fn agree(&self, peer: &[u8]) -> Option<SecretBytes> {
        if peer.len() != LEN {
            return None;
        }
        let peer = U2048::from_be_slice(peer);
        let prime = U2048::from_be_hex(PRIME);
        if peer <= U2048::ONE || peer >= prime.wrapping_sub(&U2048::ONE) {
            return None;
        }
        Some(self.raise(&peer))
    }

    fn raise(&self, base: &U2048) -> SecretBytes {
        let mut power = Element::new(base).pow(&self.0);
        let mut plain = power.retrieve();
        let mut bytes = plain.to_be_bytes();
        let out = SecretBytes::from(bytes.as_ref());
        bytes.as_mut().zeroize();
        plain.zeroize();
        power.zeroize();
        out
    }
}
