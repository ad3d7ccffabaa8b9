//! The words that a field has few of.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// libreswan's `type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionType {
    /// Whole packets go inside ESP (RFC 4303 3.1.2).
    #[default]
    Tunnel,
    /// What is in the packets does, between the two hosts alone (RFC 4303 3.1.1).
    Transport,
}

/// libreswan's `dpdaction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DpdAction {
    /// Packets wait until the host outside is back.
    Hold,
    /// The connection is taken down.
    Clear,
    /// It is set up anew.
    Restart,
}

/// libreswan's `leftsendcert`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SendCert {
    /// In every authentication.
    Always,
    /// When the host outside asks for it (libreswan says `sendifasked` too).
    Sometimes,
    /// Never: the host outside has it.
    Never,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl AddressFamily {
    /// That of an address.
    pub fn of(address: std::net::IpAddr) -> AddressFamily {
        match address.is_ipv4() {
            true => AddressFamily::Ipv4,
            false => AddressFamily::Ipv6,
        }
    }
}

impl std::fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            AddressFamily::Ipv4 => "IPv4",
            AddressFamily::Ipv6 => "IPv6",
        })
    }
}

/// An enum whose variants are words, and what is said of a word that is none of them.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$about:meta])* $variant:ident = $word:literal),+ $(,)?
    } else $refuse:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name {
            $($(#[$about])* $variant,)+
        }

        impl $name {
            /// All words.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(word: String) -> Result<Self, String> {
                let refuse: fn(&str) -> String = $refuse;
                let known = Self::ALL.iter().copied().find(|known| known.as_str() == word);
                known.ok_or_else(|| refuse(&word))
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> String {
                word.as_str().to_owned()
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
                json_schema!({ "type": "string", "enum": [$($word),+] })
            }
        }
    };
}

words! {
    /// libreswan's `ikev2`: IKEv1 is not spoken.
    #[derive(Default)]
    Ikev2 {
        /// IKEv2 and nothing else.
        #[default]
        Insist = "insist",
    } else |word| match word {
        "yes" | "propose" | "permit" => format!("{word} means insist here: write insist"),
        _ => format!("\"{word}\": IKEv1 is not spoken here; write insist"),
    }
}

words! {
    /// libreswan's `authby`.
    AuthBy {
        /// RSA signatures with SHA-2 (RFC 7427).
        Rsasig = "rsasig",
        /// The same by its other name.
        RsaSha2 = "rsa-sha2",
        /// ECDSA signatures with SHA-2 (RFC 7427).
        Ecdsa = "ecdsa",
        /// A pre-shared key.
        Secret = "secret",
    } else |word| match word {
        "null" | "never" => format!("\"{word}\": a host that does not prove who it is gets no connection"),
        "rsa-sha1" => "\"rsa-sha1\": SHA-1 is not spoken here; write rsa-sha2".to_owned(),
        _ => format!("\"{word}\" is none of rsasig, rsa-sha2, ecdsa, secret"),
    }
}

words! {
    /// libreswan's `leftrsasigkey` and `rightrsasigkey`: a bare key in a field is not taken.
    RsaSigKey {
        /// The key of the certificate.
        Cert = "%cert",
    } else |_| "a bare RSA key is not taken: keys come with certificates here; write %cert".to_owned()
}
