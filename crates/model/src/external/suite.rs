//! Suites as libreswan writes them: `aes_gcm256-sha2_512-dh19`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use testudo_crypto::{Aead, Cbc, Cipher, EtmSuite, Integrity, KeMethod, Prf};

const GCM: [(&str, Aead); 2] = [
    ("aes_gcm256", Aead::Aes256Gcm16),
    ("aes_gcm128", Aead::Aes128Gcm16),
];
const CBC: [(&str, Cbc); 2] = [("aes256", Cbc::Aes256), ("aes128", Cbc::Aes128)];
const HASHES: [(&str, Prf, Integrity); 3] = [
    ("sha2_256", Prf::HmacSha256, Integrity::HmacSha256_128),
    ("sha2_384", Prf::HmacSha384, Integrity::HmacSha384_192),
    ("sha2_512", Prf::HmacSha512, Integrity::HmacSha512_256),
];
const GROUPS: [(&str, KeMethod); 5] = [
    ("dh31", KeMethod::X25519),
    ("dh19", KeMethod::P256),
    ("dh20", KeMethod::P384),
    ("dh21", KeMethod::P521),
    ("dh14", KeMethod::Modp2048),
];

/// A suite of IKE: `CIPHER[-HASH][-GROUP]`; AES-CBC needs its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IkeSuite {
    /// The cipher, with its integrity algorithm.
    pub cipher: Cipher,
    /// The PRF; any known one if absent.
    pub prf: Option<Prf>,
    /// The key exchange; any known one if absent.
    pub group: Option<KeMethod>,
}

/// A suite of ESP: `CIPHER[-GROUP]`, or `CIPHER-HASH[-GROUP]` with AES-CBC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EspSuite {
    /// The cipher, with its integrity algorithm.
    pub cipher: Cipher,
    /// The key exchange of rekeys; that of the IKE SA if absent.
    pub group: Option<KeMethod>,
}

struct Parts {
    cipher: Cipher,
    prf: Option<Prf>,
    group: Option<KeMethod>,
}

fn parse(text: &str) -> Result<Parts, String> {
    let mut words = text.split('-').peekable();
    let name = words.next().unwrap_or_default();
    let hash = words
        .peek()
        .and_then(|word| HASHES.iter().find(|(name, ..)| name == word));
    if hash.is_some() {
        words.next();
    }
    let gcm = GCM.iter().find(|(known, _)| *known == name);
    let cbc = CBC.iter().find(|(known, _)| *known == name);
    let cipher = match (gcm, cbc, hash) {
        (Some((_, aead)), ..) => Cipher::Gcm(*aead),
        (_, Some((_, cbc)), Some((_, _, integrity))) => Cipher::Cbc(EtmSuite {
            cbc: *cbc,
            integrity: *integrity,
        }),
        (_, Some(_), None) => {
            return Err(format!(
                "\"{text}\": {name} needs a hash beside it, as in {name}-sha2_256"
            ));
        }
        (None, None, _) => {
            return Err(format!(
                "\"{text}\": the cipher \"{name}\" is none of {}, {}",
                GCM.map(|(name, _)| name).join(", "),
                CBC.map(|(name, _)| name).join(", ")
            ));
        }
    };
    let group = match words.next() {
        None => None,
        Some(word) => match GROUPS.iter().find(|(name, _)| *name == word) {
            Some((_, group)) => Some(*group),
            None => {
                return Err(format!(
                    "\"{text}\": \"{word}\" is none of {}, {}",
                    HASHES.map(|(name, ..)| name).join(", "),
                    GROUPS.map(|(name, _)| name).join(", ")
                ));
            }
        },
    };
    if let Some(more) = words.next() {
        return Err(format!(
            "\"{text}\": \"{more}\" cannot stand there; a suite is CIPHER, CIPHER-HASH or CIPHER-HASH-GROUP"
        ));
    }
    Ok(Parts {
        cipher,
        prf: hash.map(|(_, prf, _)| *prf),
        group,
    })
}

fn write(f: &mut fmt::Formatter<'_>, parts: &Parts) -> fmt::Result {
    let name = match parts.cipher {
        Cipher::Gcm(aead) => GCM.iter().find(|(_, known)| *known == aead).map(|k| k.0),
        Cipher::Cbc(suite) => CBC.iter().find(|(_, c)| *c == suite.cbc).map(|k| k.0),
    };
    f.write_str(name.unwrap_or_default())?;
    let integrity = parts.cipher.integrity();
    let hash = HASHES
        .iter()
        .find(|(_, prf, known)| Some(*known) == integrity || Some(*prf) == parts.prf);
    if let Some((name, ..)) = hash {
        write!(f, "-{name}")?;
    }
    let group = GROUPS.iter().find(|(_, known)| Some(*known) == parts.group);
    match group {
        Some((name, _)) => write!(f, "-{name}"),
        None => Ok(()),
    }
}

impl FromStr for IkeSuite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Parts { cipher, prf, group } = parse(text)?;
        Ok(IkeSuite { cipher, prf, group })
    }
}

impl FromStr for EspSuite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parse(text)?;
        if let (Cipher::Gcm(_), Some(_)) = (parts.cipher, parts.prf) {
            return Err(format!(
                "\"{text}\": AES-GCM has no hash beside it in ESP; leave it out"
            ));
        }
        Ok(EspSuite {
            cipher: parts.cipher,
            group: parts.group,
        })
    }
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cipher, prf, group) = (self.cipher, self.prf, self.group);
        write(f, &Parts { cipher, prf, group })
    }
}

impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = Parts {
            cipher: self.cipher,
            prf: None,
            group: self.group,
        };
        write(f, &parts)
    }
}

fn any_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    format!("({})", names.join("|"))
}

/// The pattern of all suites that can be read; `hash`: with AES-GCM too.
fn pattern(hash: bool) -> String {
    let gcm = any_of(GCM.map(|(name, _)| name));
    let cbc = any_of(CBC.map(|(name, _)| name));
    let hashes = any_of(HASHES.map(|(name, ..)| name));
    let groups = any_of(GROUPS.map(|(name, _)| name));
    let with_gcm = match hash {
        true => format!("(-{hashes})?"),
        false => String::new(),
    };
    format!("^({gcm}{with_gcm}|{cbc}-{hashes})(-{groups})?$")
}

macro_rules! suite {
    ($name:ident, $hash:literal) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(suite: $name) -> String {
                suite.to_string()
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
                json_schema!({ "type": "string", "maxLength": 32, "pattern": pattern($hash) })
            }
        }
    };
}

suite!(IkeSuite, true);
suite!(EspSuite, false);
