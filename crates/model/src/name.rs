//! Names of nodes and peers, checked when they are made. A copy of one shares its text: a peer's
//! name stands in each of its SAs, deadlines and events.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{text}\" is not a {what}: {reason}")]
pub struct NameError {
    /// What the text should have been.
    pub what: &'static str,
    /// The text, cut to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

fn error(what: &'static str, text: &str, reason: &'static str) -> NameError {
    NameError {
        what,
        text: text.chars().take(80).collect(),
        reason,
    }
}

/// A DNS subdomain (RFC 1123, as Kubernetes has it) as a pattern for schemas, and the longest.
pub const SUBDOMAIN: (&str, u32) = (
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$",
    253,
);

/// [`identifier`] as a pattern for schemas, and the longest.
const IDENTIFIER: (&str, u32) = ("^[A-Za-z0-9_-]+$", 64);

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $shape:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and takes it.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(reason) => Err(error($what, &text, reason)),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let (pattern, longest) = $shape;
                json_schema!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": longest,
                    "pattern": pattern,
                })
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

text_name!(
    /// A node's name, a DNS subdomain as Kubernetes wants it (RFC 1123, at most 253 characters).
    NodeName,
    "node name",
    dns_subdomain,
    SUBDOMAIN
);
text_name!(
    /// A node's UID: given once, never given again, also when a node of the same name returns.
    NodeUid,
    "node UID",
    identifier,
    IDENTIFIER
);
text_name!(
    /// The kernel's boot ID (`/proc/sys/kernel/random/boot_id`), new at each boot.
    BootId,
    "boot ID",
    identifier,
    IDENTIFIER
);
text_name!(
    /// The name of an IKE peer: a node's name, or that of an external connection.
    PeerId,
    "peer name",
    dns_subdomain,
    SUBDOMAIN
);

text_name!(
    /// The name of a Secret.
    SecretName,
    "name of a Secret",
    dns_subdomain,
    SUBDOMAIN
);

impl From<&NodeName> for PeerId {
    fn from(name: &NodeName) -> PeerId {
        PeerId(name.0.clone())
    }
}

pub(crate) fn dns_subdomain(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 253 {
        return Err("it is longer than 253 characters");
    }
    for label in text.split('.') {
        let bytes = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return Err("it has an empty part between dots");
        };
        if bytes.len() > 63 {
            return Err("a part of it is longer than 63 characters");
        }
        if !bytes.iter().all(inner) {
            return Err("only lower case letters, digits, '-' and '.' are allowed");
        }
        if *first == b'-' || *last == b'-' {
            return Err("a part of it begins or ends with '-'");
        }
    }
    Ok(())
}

fn identifier(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 64 {
        return Err("it is longer than 64 characters");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        return Err("only letters, digits, '-' and '_' are allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_follow_rfc_1123() {
        for good in ["n1", "worker-3.example.org", "a", "0"] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "N1", "-a", "a-", "a..b", "a/b", "../x", "a b", "ä"] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
        assert!(NodeName::new("a".repeat(64)).is_err());
    }

    #[test]
    fn the_error_names_the_text_and_the_reason() {
        let error = NodeName::new("Bad_Name").unwrap_err().to_string();
        assert!(error.contains("Bad_Name") && error.contains("lower case"));
    }
}
