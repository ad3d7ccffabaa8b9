//! Where credentials are: in Secrets of the namespace that Testudo runs in, never in the object.

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::name::SecretName;

/// A PKCS#12 bundle (RFC 7292) in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct BundleReference {
    /// The Secret, in the namespace that Testudo runs in.
    pub secret_name: SecretName,
    /// The key in it under which the bundle stands.
    #[serde(default = "bundle_key")]
    pub key: String,
    /// The key in it under which the bundle's password stands. It has none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_key: Option<String>,
}

/// A certificate, PEM, in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct CertificateReference {
    /// The Secret, in the namespace that Testudo runs in.
    pub secret_name: SecretName,
    /// The key in it under which the certificate stands.
    #[serde(default = "certificate_key")]
    pub key: String,
}

/// A pre-shared key in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct KeyReference {
    /// The Secret, in the namespace that Testudo runs in.
    pub secret_name: SecretName,
    /// The key in it under which the pre-shared key stands.
    #[serde(default = "psk_key")]
    pub key: String,
}

/// The name that cert-manager gives to a bundle.
fn bundle_key() -> String {
    "keystore.p12".to_owned()
}

fn certificate_key() -> String {
    "tls.crt".to_owned()
}

fn psk_key() -> String {
    "psk".to_owned()
}

/// A reference, read so that what stands in its place is never repeated in an error: it may be the
/// secret itself.
macro_rules! reference {
    ($name:ident, $instead:literal, { $($field:ident: $kind:ty = $default:expr),+ }) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(rename_all = "camelCase", deny_unknown_fields)]
                struct Fields {
                    secret_name: SecretName,
                    $($field: Option<$kind>,)+
                }

                struct Reader;

                impl<'de> Visitor<'de> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($instead)
                    }

                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$name, A::Error> {
                        let read = Fields::deserialize(MapAccessDeserializer::new(map))?;
                        Ok($name {
                            secret_name: read.secret_name,
                            $($field: ($default)(read.$field),)+
                        })
                    }

                    fn visit_str<E: Error>(self, _: &str) -> Result<$name, E> {
                        Err(E::custom($instead))
                    }

                    fn visit_u64<E: Error>(self, _: u64) -> Result<$name, E> {
                        Err(E::custom($instead))
                    }

                    fn visit_i64<E: Error>(self, _: i64) -> Result<$name, E> {
                        Err(E::custom($instead))
                    }

                    fn visit_u128<E: Error>(self, _: u128) -> Result<$name, E> {
                        Err(E::custom($instead))
                    }

                    fn visit_i128<E: Error>(self, _: i128) -> Result<$name, E> {
                        Err(E::custom($instead))
                    }

                    fn visit_f64<E: Error>(self, _: f64) -> Result<$name, E> {
                        Err(E::custom($instead))
                    }
                }

                deserializer.deserialize_any(Reader)
            }
        }
    };
}

reference!(
    BundleReference,
    "a certificate is named by its Secret: leftCert: {secretName: NAME}",
    {
        key: String = |key: Option<String>| key.unwrap_or_else(bundle_key),
        password_key: String = |key: Option<String>| key
    }
);
reference!(
    CertificateReference,
    "a certificate is named by its Secret: rightCert: {secretName: NAME}",
    { key: String = |key: Option<String>| key.unwrap_or_else(certificate_key) }
);
reference!(
    KeyReference,
    "a key stands in no object: put it into a Secret and name that: psk: {secretName: NAME}",
    { key: String = |key: Option<String>| key.unwrap_or_else(psk_key) }
);

impl BundleReference {
    /// That Secret, with the bundle under the usual key and without a password.
    pub fn of(secret_name: SecretName) -> BundleReference {
        BundleReference {
            secret_name,
            key: bundle_key(),
            password_key: None,
        }
    }
}

impl CertificateReference {
    /// That Secret, with the certificate under the usual key.
    pub fn of(secret_name: SecretName) -> CertificateReference {
        CertificateReference {
            secret_name,
            key: certificate_key(),
        }
    }
}

impl KeyReference {
    /// That Secret, with the pre-shared key under the usual key.
    pub fn of(secret_name: SecretName) -> KeyReference {
        KeyReference {
            secret_name,
            key: psk_key(),
        }
    }
}
