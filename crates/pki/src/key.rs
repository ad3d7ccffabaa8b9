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

/// Reads a private key in PKCS#8, as PEM or DER.
pub fn key_from_pem(bytes: &[u8]) -> Result<SigningKey, PkiError> {
    let unreadable = |why: String| PkiError::Unreadable {
        what: "a private key",
        why,
    };
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return SigningKey::from_pkcs8(bytes).map_err(|e| unreadable(e.to_string()));
    }
    let block = pem::parse(bytes).map_err(|e| unreadable(e.to_string()))?;
    let pkcs8 = SecretBytes::new(block.into_contents());
    SigningKey::from_pkcs8(pkcs8.as_bytes()).map_err(|e| unreadable(e.to_string()))
}
