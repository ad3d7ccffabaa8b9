//! Algorithms that a policy may name for what nodes speak with each other.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use testudo_crypto::{Cipher, KeMethod};

/// A cipher of IKE or ESP between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NodeCipher {
    /// `AES-GCM-16-256`.
    Aes256Gcm,
    /// `AES-GCM-16-128`: a little faster, a shorter key.
    Aes128Gcm,
}

/// A key exchange between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NodeKeyExchange {
    /// `X25519`.
    X25519,
    /// `P-256`.
    P256,
    /// `P-384`.
    P384,
    /// `P-521`.
    P521,
}

impl NodeCipher {
    /// Every one, the best first.
    pub const ALL: [Self; 2] = [Self::Aes256Gcm, Self::Aes128Gcm];

    /// What is negotiated.
    pub fn cipher(self) -> Cipher {
        match self {
            Self::Aes256Gcm => Cipher::AES_256_GCM,
            Self::Aes128Gcm => Cipher::AES_128_GCM,
        }
    }

    /// The name in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-GCM-16-256",
            Self::Aes128Gcm => "AES-GCM-16-128",
        }
    }
}

impl NodeKeyExchange {
    /// Every one, in the default's order.
    pub const ALL: [Self; 4] = [Self::X25519, Self::P256, Self::P384, Self::P521];

    /// What is negotiated.
    pub fn method(self) -> KeMethod {
        match self {
            Self::X25519 => KeMethod::X25519,
            Self::P256 => KeMethod::P256,
            Self::P384 => KeMethod::P384,
            Self::P521 => KeMethod::P521,
        }
    }

    /// The name in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X25519 => "X25519",
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }
}

/// The reason for refusing what is for hosts outside the cluster that have nothing better.
const OLD: &str = "is for hosts outside that have nothing better, not for nodes";

impl TryFrom<String> for NodeCipher {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|c| c.as_str() == name);
        let names = Self::ALL.map(Self::as_str);
        known.ok_or_else(|| match name.to_ascii_uppercase().starts_with("AES-CBC") {
            true => format!("{name} {OLD}: name {}", names.join(" or ")),
            false => format!("{name} is no cipher of nodes: name {}", names.join(" or ")),
        })
    }
}

impl TryFrom<String> for NodeKeyExchange {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|k| k.as_str() == name);
        let names = Self::ALL.map(Self::as_str).join(", ");
        known.ok_or_else(|| {
            let upper = name.to_ascii_uppercase();
            if upper.starts_with("MODP") {
                format!("{name} {OLD}: name some of {names}")
            } else if upper.starts_with("ML-KEM") {
                format!("{name} comes after one of {names}: ike.postQuantum says whether")
            } else {
                format!("{name} is no key exchange of nodes: name some of {names}")
            }
        })
    }
}

impl From<NodeCipher> for String {
    fn from(cipher: NodeCipher) -> Self {
        cipher.as_str().to_owned()
    }
}

impl From<NodeKeyExchange> for String {
    fn from(method: NodeKeyExchange) -> Self {
        method.as_str().to_owned()
    }
}

macro_rules! schema_of_names {
    ($($name:ident),+) => {
        $(impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "enum": $name::ALL.map($name::as_str) })
            }
        })+
    };
}

schema_of_names!(NodeCipher, NodeKeyExchange);

/// Refuses a list that is empty or says something twice.
pub(crate) fn check<T: PartialEq>(path: &str, list: &[T]) -> Result<(), String> {
    if list.is_empty() {
        return Err(format!(
            "{path}: nothing is left to negotiate; leave it out for the default"
        ));
    }
    let twice = (1..list.len()).any(|n| list[..n].contains(&list[n]));
    if twice {
        return Err(format!("{path}: something is in it twice"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for cipher in NodeCipher::ALL {
            assert_eq!(NodeCipher::try_from(String::from(cipher)), Ok(cipher));
        }
        for method in NodeKeyExchange::ALL {
            assert_eq!(NodeKeyExchange::try_from(String::from(method)), Ok(method));
        }
    }

    #[test]
    fn what_is_for_old_hosts_is_refused_with_the_reason() {
        for name in ["AES-CBC-256", "aes-cbc-128"] {
            let text = NodeCipher::try_from(name.to_owned()).unwrap_err();
            assert!(text.contains("hosts outside"), "{text}");
        }
        let text = NodeKeyExchange::try_from("MODP-2048".to_owned()).unwrap_err();
        assert!(text.contains("hosts outside"), "{text}");
        let text = NodeKeyExchange::try_from("ML-KEM-768".to_owned()).unwrap_err();
        assert!(text.contains("ike.postQuantum"), "{text}");
        for name in ["", "AES-GCM-16-192", "3DES"] {
            let text = NodeCipher::try_from(name.to_owned()).unwrap_err();
            assert!(text.contains("AES-GCM-16-256"), "{text}");
        }
        assert!(NodeKeyExchange::try_from("x25519".to_owned()).is_err());
    }

    #[test]
    fn lists_are_neither_empty_nor_repeated() {
        assert!(check::<u8>("a", &[]).is_err());
        assert!(check("a", &[1, 2, 1]).is_err());
        assert!(check("a", &[1, 2]).is_ok());
    }
}
