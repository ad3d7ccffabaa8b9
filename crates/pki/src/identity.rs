//! Who a node is, and how its certificate says so.

use crate::PkiError;

/// What follows the node's name in the DNS name of its certificate.
pub const NODE_DNS_SUFFIX: &str = ".node.testudo";

/// What precedes the node's UID in the URI of its certificate.
pub const NODE_URI_PREFIX: &str = "testudo:node:";

/// A node: its name, and the UID that tells it from an earlier node of that name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdentity {
    name: String,
    uid: String,
}

impl NodeIdentity {
    /// Checks both parts: the name is a DNS name in lower case (RFC 1123), the UID is 1 to 64
    /// letters, digits, dashes and underscores.
    pub fn new(name: &str, uid: &str) -> Result<Self, PkiError> {
        check_name(name).map_err(|why| PkiError::NodeName {
            name: name.chars().take(64).collect(),
            why,
        })?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if uid.is_empty() || uid.len() > 64 || !uid.bytes().all(plain) {
            return Err(PkiError::NodeUid(uid.chars().take(80).collect()));
        }
        Ok(Self {
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The DNS name in the certificate's subject alternative names: `NAME.node.testudo`.
    pub fn dns_name(&self) -> String {
        format!("{}{NODE_DNS_SUFFIX}", self.name)
    }

    /// The URI in the certificate's subject alternative names: `testudo:node:UID`.
    pub fn uri(&self) -> String {
        format!("{NODE_URI_PREFIX}{}", self.uid)
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() + NODE_DNS_SUFFIX.len() > 253 {
        return Err("it is longer than 239 characters");
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err("each part between dots has 1 to 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a part starts or ends with a dash");
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !label.bytes().all(plain) {
            return Err("only lower-case letters, digits, dashes and dots are allowed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let uid = "3f0c1f8e-7a1d-4c8c-9a57-2f4f9c1d0a01";
        for good in ["n1", "node-1.example.org", "0", &"a".repeat(63)] {
            NodeIdentity::new(good, uid).unwrap();
        }
        for bad in [
            "",
            "N1",
            "a_b",
            "-a",
            "a-",
            "a..b",
            ".a",
            "a.",
            "*",
            "a b",
            &"a".repeat(64),
        ] {
            NodeIdentity::new(bad, uid).unwrap_err();
        }
        for bad in ["", "a:b", "a b", &"a".repeat(65)] {
            NodeIdentity::new("n1", bad).unwrap_err();
        }
    }
}
