//! Identities between configuration and wire (RFC 7296, 3.5).

use std::fmt;
use std::net::IpAddr;

use testudo_wire::ike::{IdType, Identification};

use crate::config::Identity;

impl Identity {
    /// As sent.
    pub(crate) fn to_wire(&self) -> Identification {
        let (kind, data) = match self {
            Self::Address(IpAddr::V4(ip)) => (IdType::IPV4_ADDR, ip.octets().to_vec()),
            Self::Address(IpAddr::V6(ip)) => (IdType::IPV6_ADDR, ip.octets().to_vec()),
            Self::Fqdn(name) => (IdType::FQDN, name.as_bytes().to_vec()),
            Self::Email(name) => (IdType::RFC822_ADDR, name.as_bytes().to_vec()),
            Self::DistinguishedName(der) => (IdType::DER_ASN1_DN, der.clone()),
            Self::KeyId(id) => (IdType::KEY_ID, id.clone()),
        };
        Identification { kind, data }
    }

    /// As received; `None` if it is empty, too long, of another kind or not well formed.
    pub(crate) fn from_wire(id: &Identification) -> Option<Self> {
        const LONGEST: usize = 1024;
        if id.data.is_empty() || id.data.len() > LONGEST {
            return None;
        }
        let text = || {
            let text = std::str::from_utf8(&id.data).ok()?;
            text.chars()
                .all(|c| c.is_ascii_graphic())
                .then(|| text.to_owned())
        };
        match id.kind {
            IdType::IPV4_ADDR => {
                let octets: [u8; 4] = id.data.as_slice().try_into().ok()?;
                Some(Self::Address(octets.into()))
            }
            IdType::IPV6_ADDR => {
                let octets: [u8; 16] = id.data.as_slice().try_into().ok()?;
                Some(Self::Address(octets.into()))
            }
            IdType::FQDN => text().map(Self::Fqdn),
            IdType::RFC822_ADDR => text().map(Self::Email),
            IdType::DER_ASN1_DN => Some(Self::DistinguishedName(id.data.clone())),
            IdType::KEY_ID => Some(Self::KeyId(id.data.clone())),
            _ => None,
        }
    }

    /// The form in which identities are compared: names do not know case.
    pub(crate) fn normal(&self) -> Self {
        match self {
            Self::Fqdn(name) => Self::Fqdn(name.to_ascii_lowercase()),
            Self::Email(name) => Self::Email(name.to_ascii_lowercase()),
            other => other.clone(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Fqdn(name) | Self::Email(name) => f.write_str(name),
            Self::DistinguishedName(bytes) | Self::KeyId(bytes) => {
                for byte in bytes.iter().take(64) {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_survives_the_wire() {
        for id in [
            Identity::Address("10.0.0.1".parse().unwrap()),
            Identity::Address("fd00::1".parse().unwrap()),
            Identity::Fqdn("n1.node.testudo".into()),
            Identity::Email("a@b".into()),
            Identity::DistinguishedName(vec![0x30, 0]),
            Identity::KeyId(vec![1, 2, 3]),
        ] {
            assert_eq!(Identity::from_wire(&id.to_wire()), Some(id));
        }
    }

    // CVE-2025-9242, CVE-2013-6075 (lesson L10): lengths before content.
    #[test]
    fn malformed_identities_match_nothing() {
        for (kind, data) in [
            (IdType::FQDN, vec![]),
            (IdType::FQDN, vec![0xff; 4]),
            (IdType::FQDN, b"n1\0.evil".to_vec()),
            (IdType::IPV4_ADDR, vec![1; 5]),
            (IdType::IPV6_ADDR, vec![1; 4]),
            (IdType::KEY_ID, vec![1; 5000]),
            (IdType(0), vec![1]),
        ] {
            assert_eq!(Identity::from_wire(&Identification { kind, data }), None);
        }
    }
}
