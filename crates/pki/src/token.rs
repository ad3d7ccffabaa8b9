//! Join tokens: what proves to the controller that a request comes from the node it names.

use testudo_crypto::{Prf, Random, SecretBytes, constant_time_eq};
use zeroize::Zeroize;

use crate::{PkiError, hex};

/// Length of a join token in bytes.
pub const TOKEN_LEN: usize = 32;

/// Makes a token for one node.
pub fn new_token(random: &mut dyn Random) -> SecretBytes {
    let mut bytes = vec![0; TOKEN_LEN];
    random.fill(&mut bytes);
    SecretBytes::new(bytes)
}

/// The token as its file has it: hex. The caller wipes it after writing.
pub fn token_to_hex(token: &SecretBytes) -> SecretBytes {
    SecretBytes::new(hex(token.as_bytes()).into_bytes())
}

/// Reads a token from its file's text; white space around it is allowed.
pub fn token_from_hex(text: &[u8]) -> Result<SecretBytes, PkiError> {
    let unreadable = |why: &str| PkiError::Unreadable {
        what: "the join token",
        why: why.to_owned(),
    };
    let text = text.trim_ascii();
    if text.len() != TOKEN_LEN * 2 {
        return Err(unreadable("64 hex digits are wanted"));
    }
    let mut bytes = Vec::with_capacity(TOKEN_LEN);
    for pair in text.chunks_exact(2) {
        let digit = |b: u8| char::from(b).to_digit(16);
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
            bytes.zeroize();
            return Err(unreadable("it has a character that is no hex digit"));
        };
        bytes.push((high << 4 | low) as u8);
    }
    Ok(SecretBytes::new(bytes))
}

/// HMAC-SHA256 over node name, zero, UID, zero and the request's DER, keyed with the token.
pub fn join_proof(token: &SecretBytes, name: &str, uid: &str, request: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 5] = [name.as_bytes(), &[0], uid.as_bytes(), &[0], request];
    Prf::HmacSha256
        .compute(token.as_bytes(), &parts)
        .as_bytes()
        .to_vec()
}

/// Checks a proof in constant time.
pub fn check_join_proof(
    token: &SecretBytes,
    name: &str,
    uid: &str,
    request: &[u8],
    proof: &[u8],
) -> bool {
    constant_time_eq(&join_proof(token, name, uid, request), proof)
}
