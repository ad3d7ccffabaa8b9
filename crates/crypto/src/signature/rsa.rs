//! RSA public keys, read strictly: what is not plain DER of a sound key stops
//! here, before the library computes with it.

/// AlgorithmIdentifier of rsaEncryption with its NULL (RFC 3279 section 2.3.1).
const ALGORITHM: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// Lengths in bits that a modulus may have. Shorter ones can be factored, longer
/// ones make a peer's key a burden.
const MODULUS_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The smallest public exponent (FIPS 186-5 section 5.1): with 3, flaws in
/// others' padding have let signatures be forged.
const EXPONENT_MIN: u32 = 65537;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;

/// The RSAPublicKey inside a SubjectPublicKeyInfo, if it is sound.
pub(super) fn from_spki(der: &[u8]) -> Option<&[u8]> {
    let (info, rest) = element(SEQUENCE, der)?;
    let (bits, after) = element(BIT_STRING, info.strip_prefix(ALGORITHM)?)?;
    let key = bits.strip_prefix(&[0])?;
    (rest.is_empty() && after.is_empty() && is_sound(key)).then_some(key)
}

/// The SubjectPublicKeyInfo around an RSAPublicKey.
pub(super) fn spki(key: &[u8]) -> Vec<u8> {
    let bits = wrap(BIT_STRING, &[&[0], key]);
    wrap(SEQUENCE, &[ALGORITHM, &bits])
}

/// Whether an RSAPublicKey is plain DER with an odd modulus of an allowed
/// length and an odd exponent from 65537 to 32 bits.
pub(super) fn is_sound(key: &[u8]) -> bool {
    let Some((modulus, exponent)) = numbers(key) else {
        return false;
    };
    let Some(first) = modulus.first() else {
        return false;
    };
    let bits = modulus.len() * 8 - first.leading_zeros() as usize;
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
    let e = exponent
        .iter()
        .fold(0u64, |e, byte| e << 8 | u64::from(*byte));
    MODULUS_BITS.contains(&bits)
        && odd(modulus)
        && odd(exponent)
        && exponent.len() <= 4
        && e >= u64::from(EXPONENT_MIN)
}

/// Modulus and exponent, without leading zeros.
fn numbers(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (inside, rest) = element(SEQUENCE, key)?;
    let (modulus, after) = element(INTEGER, inside)?;
    let (exponent, end) = element(INTEGER, after)?;
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    Some((positive(modulus)?, positive(exponent)?))
}

/// The digits of a positive INTEGER in its shortest form.
fn positive(integer: &[u8]) -> Option<&[u8]> {
    match integer {
        [0, digits @ ..] if digits.first()? & 0x80 != 0 => Some(digits),
        [first, ..] if (1..0x80).contains(first) => Some(integer),
        _ => None,
    }
}

/// Content of the element with `tag` at the front, and what follows it. Lengths
/// must be in their shortest form and below 64 KiB.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, after) = match *der.strip_prefix(&[tag])? {
        [len, ref after @ ..] if len < 0x80 => (usize::from(len), after),
        [0x81, len, ref after @ ..] if len >= 0x80 => (usize::from(len), after),
        [0x82, high, low, ref after @ ..] if high != 0 => {
            (usize::from(u16::from_be_bytes([high, low])), after)
        }
        _ => return None,
    };
    after.split_at_checked(len)
}

/// A DER element of less than 64 KiB.
fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [.., high, low] = content.len().to_be_bytes();
    let head: &[u8] = match content.len() {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [head, &content].concat()
}
