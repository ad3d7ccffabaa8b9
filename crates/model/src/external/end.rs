//! The two ends: where they are, who they are, which of their packets are meant.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::external::words::AddressFamily;
use crate::name::dns_subdomain;
use crate::selector::PortRange;

/// The longest identity, in bytes.
const LONGEST_ID: usize = 255;

/// Where an end is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// `%defaultroute`: the address from which the node reaches the other end.
    #[default]
    DefaultRoute,
    /// An address.
    Address(IpAddr),
    /// A name, looked up by the node.
    Host(String),
}

/// Who an end says it is (RFC 7296 3.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Identity {
    /// `%fromcert`: the subject of its certificate.
    FromCertificate,
    /// An address.
    Address(IpAddr),
    /// `@name`, or the name alone.
    Fqdn(String),
    /// `user@name`.
    Email(String),
    /// `@[text]`: any text that both ends know.
    KeyId(String),
    /// A distinguished name: `CN=n1, O=Example`.
    DistinguishedName(String),
}

/// A protocol and port of an end, as libreswan writes them: `udp/4789`, `17/4789`, `tcp/%any`, `gre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProtoPort {
    /// The IP protocol, never 0.
    pub protocol: u8,
    /// Its ports: one, or all.
    pub ports: PortRange,
}

impl Endpoint {
    /// The address, where one is written.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Endpoint::Address(address) => Some(*address),
            Endpoint::DefaultRoute | Endpoint::Host(_) => None,
        }
    }

    /// The family, where an address is written.
    pub fn family(&self) -> Option<AddressFamily> {
        self.address().map(AddressFamily::of)
    }
}

/// Whether an address can be that of one host which others reach.
fn is_of_a_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !special && !local
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "%defaultroute" {
            return Ok(Endpoint::DefaultRoute);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return match is_of_a_host(address) {
                true => Ok(Endpoint::Address(address)),
                false => Err(format!("\"{text}\" is the address of no single host")),
            };
        }
        if text.starts_with('%') {
            return Err(format!(
                "\"{text}\" names no host: write an address or a name"
            ));
        }
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !text.is_empty() {
            return Err(format!("\"{text}\" is no address"));
        }
        match dns_subdomain(text) {
            Ok(()) => Ok(Endpoint::Host(text.to_owned())),
            Err(reason) => Err(format!(
                "\"{}\" is neither an address nor the name of a host: {reason}",
                cut(text)
            )),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::DefaultRoute => f.pad("%defaultroute"),
            Endpoint::Address(address) => f.pad(&address.to_string()),
            Endpoint::Host(name) => f.pad(name),
        }
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| {
            Err(format!(
                "\"{}\" is no identity: {reason}; write %fromcert, an address, @name, user@name, \
                 a distinguished name as in CN=n1, or @[text]",
                cut(text)
            ))
        };
        if text.is_empty() {
            return wrong("it is empty");
        }
        if text.len() > LONGEST_ID {
            return wrong("it is longer than 255 bytes");
        }
        if text.chars().any(char::is_control) {
            return wrong("it holds a control character");
        }
        if text == "%fromcert" {
            return Ok(Identity::FromCertificate);
        }
        if text.starts_with('%') {
            return wrong("this word is not known");
        }
        if let Ok(address) = text.parse() {
            return Ok(Identity::Address(address));
        }
        if let Some(inner) = text.strip_prefix("@[") {
            return match inner.strip_suffix(']') {
                Some(inner) if !inner.is_empty() => Ok(Identity::KeyId(inner.to_owned())),
                _ => wrong("what stands after @[ does not end with ]"),
            };
        }
        if let Some(name) = text.strip_prefix('@') {
            return match dns_subdomain(name) {
                Ok(()) => Ok(Identity::Fqdn(name.to_owned())),
                Err(reason) => wrong(reason),
            };
        }
        if let Some((kind, value)) = text.split_once('=') {
            let kind_fits = !kind.is_empty() && kind.bytes().all(is_of_attribute);
            return match kind_fits && !value.is_empty() {
                true => Ok(Identity::DistinguishedName(text.to_owned())),
                false => wrong("what stands at an = is no attribute"),
            };
        }
        if let Some((user, name)) = text.split_once('@') {
            return match (user.contains(' '), dns_subdomain(name)) {
                (false, Ok(())) => Ok(Identity::Email(text.to_owned())),
                (true, _) => wrong("it holds a space"),
                (_, Err(reason)) => wrong(reason),
            };
        }
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return wrong("it is no address");
        }
        match dns_subdomain(text) {
            Ok(()) => Ok(Identity::Fqdn(text.to_owned())),
            Err(reason) => wrong(reason),
        }
    }
}

fn is_of_attribute(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'.'
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::FromCertificate => f.write_str("%fromcert"),
            Identity::Address(address) => write!(f, "{address}"),
            Identity::Fqdn(name) => write!(f, "@{name}"),
            Identity::Email(text) | Identity::DistinguishedName(text) => f.write_str(text),
            Identity::KeyId(text) => write!(f, "@[{text}]"),
        }
    }
}

/// Protocols that have names; those at the head have ports.
const PROTOCOLS: [(&str, u8); 8] = [
    ("tcp", 6),
    ("udp", 17),
    ("sctp", 132),
    ("dccp", 33),
    ("udplite", 136),
    ("icmp", 1),
    ("icmpv6", 58),
    ("gre", 47),
];
const WITH_PORTS: usize = 5;

impl FromStr for ProtoPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| {
            Err(format!(
                "\"{}\": {reason}; write a protocol and a port, as in udp/4789, tcp/%any, gre",
                cut(text)
            ))
        };
        let (name, port) = match text.split_once('/') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        let named = PROTOCOLS.iter().find(|(known, _)| *known == name);
        let number = || plain(name).and_then(|number| u8::try_from(number).ok());
        let protocol = match named.map(|(_, number)| *number).or_else(number) {
            None | Some(0) => return wrong("the protocol is neither a known name nor 1 to 255"),
            Some(protocol) => protocol,
        };
        let ports = match port {
            None | Some("%any") => PortRange::ANY,
            Some(port) => match plain(port) {
                None | Some(0) => return wrong("the port is neither %any nor 1 to 65535"),
                Some(port) => PortRange::one(port),
            },
        };
        let has_ports = PROTOCOLS[..WITH_PORTS].iter().any(|(_, n)| *n == protocol);
        if ports != PortRange::ANY && !has_ports {
            return wrong("this protocol has no ports");
        }
        Ok(ProtoPort { protocol, ports })
    }
}

/// A number without a sign or zeros before it.
fn plain(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let leading = text.len() > 1 && text.starts_with('0');
    (digits && !leading).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for ProtoPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = PROTOCOLS.iter().find(|(_, n)| *n == self.protocol);
        match named {
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "{}", self.protocol)?,
        }
        match self.ports {
            PortRange::ANY => Ok(()),
            ports => write!(f, "/{}", ports.first),
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The patterns of what can be read; what they do not say, rules in CEL do.
mod pattern {
    pub(super) const ENDPOINT: &str = "^(%defaultroute|[0-9A-Fa-f:.]+|[a-z0-9.-]+)$";
    pub(super) const IDENTITY: &str = r"^[^\x00-\x1f\x7f]+$";
    pub(super) const PROTO_PORT: &str = "^((tcp|udp|sctp|dccp|udplite|6|17|132|33|136)(/(%any|[1-9][0-9]{0,4}))?\
         |(icmp|icmpv6|gre|[1-9][0-9]{0,2})(/%any)?)$";
}

macro_rules! text {
    ($name:ident, $pattern:expr, $longest:literal) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
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
                json_schema!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": $longest,
                    "pattern": $pattern,
                })
            }
        }
    };
}

text!(Endpoint, pattern::ENDPOINT, 253);
text!(Identity, pattern::IDENTITY, 255);
text!(ProtoPort, pattern::PROTO_PORT, 16);
