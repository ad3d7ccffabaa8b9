//! Keys on their way into the kernel.

use zeroize::Zeroizing;

/// Key bytes: overwritten when dropped, never shown.
pub struct XfrmKey(Zeroizing<Vec<u8>>);

impl XfrmKey {
    /// Takes a copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
