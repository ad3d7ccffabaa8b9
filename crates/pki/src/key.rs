//! Private keys as files have them.

use testudo_crypto::{SecretBytes, SigningKey};
use zeroize::Zeroize;

use crate::PkiError;

/// A private key as PKCS#8 in PEM (RFC 5958), for a file that only its owner reads.
pub fn key_to_pem(key: &SigningKey) -> Result<SecretBytes, PkiError> {
    let pkcs8 = key.to_pkcs8().map_err(|e| PkiError::Making {
        what: "the file of a private key",
        why: e.to_string(),
    })?;
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let block = pem::Pem::new("PRIVATE KEY", pkcs8.as_bytes());
    let text = pem::encode_config(&block, config);
    block.into_contents().zeroize();
    Ok(SecretBytes::new(text.into_bytes()))
}

/// Every private key of a PEM text, as PKCS#8 in DER.
pub fn keys_from_pem(text: &[u8]) -> Result<Vec<SecretBytes>, PkiError> {
    let blocks = pem::parse_many(text).map_err(|e| PkiError::Unreadable {
        what: "a private key",
        why: e.to_string(),
    })?;
    let keys = blocks
        .into_iter()
        .filter(|block| block.tag() == "PRIVATE KEY");
    Ok(keys
        .map(|block| SecretBytes::new(block.into_contents()))
        .collect())
}

/// Reads a private key in PKCS#8, as DER or as the first `PRIVATE KEY` block of a PEM text, which
/// may hold certificates too.
pub fn key_from_pem(bytes: &[u8]) -> Result<SigningKey, PkiError> {
    let unreadable = |why: String| PkiError::Unreadable {
        what: "a private key",
        why,
    };
    if bytes.first() == Some(&0x30) {
        return SigningKey::from_pkcs8(bytes).map_err(|e| unreadable(e.to_string()));
    }
    let blocks = pem::parse_many(bytes).map_err(|e| unreadable(e.to_string()))?;
    let block = blocks.into_iter().find(|b| b.tag() == "PRIVATE KEY");
    let block = block.ok_or_else(|| unreadable("it holds no PRIVATE KEY".into()))?;
    let pkcs8 = SecretBytes::new(block.into_contents());
    SigningKey::from_pkcs8(pkcs8.as_bytes()).map_err(|e| unreadable(e.to_string()))
}
