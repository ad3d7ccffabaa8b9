//! The kinds that a store holds, for those who learn a kind at run time.

use serde::Serialize;
use testudo_model::bundle::TrustBundleKind;
use testudo_model::external::ExternalConnectionKind;
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::EncryptionPolicyKind;
use testudo_model::request::CertificateRequestKind;
use testudo_model::{
    CertificateRequest, EncryptionPolicy, ExternalConnection, Kind, NodeEncryption, Object,
    TrustBundle,
};

use crate::document::Source;
use crate::error::{Problem, StoreError};
use crate::scan::Reader;
use crate::store::{Change, Store};

macro_rules! kinds {
    ($($variant:ident($object:ident, $kind:ty, $short:literal, $doc:literal)),+ $(,)?) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum KindName {
            $(#[doc = $doc] $variant,)+
        }

        /// An object of any kind.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum AnyObject {
            $(#[doc = $doc] $variant($object),)+
        }

        impl KindName {
            /// All kinds.
            pub const ALL: &'static [KindName] = &[$(KindName::$variant),+];

            /// As in `kind:`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(KindName::$variant => <$kind as Kind>::KIND,)+
                }
            }

            /// The name of its folder.
            pub fn plural(self) -> &'static str {
                match self {
                    $(KindName::$variant => <$kind as Kind>::PLURAL,)+
                }
            }

            fn short(self) -> &'static str {
                match self {
                    $(KindName::$variant => $short,)+
                }
            }

            /// The objects of this kind, or the one of this name.
            pub async fn get<S: Store>(
                self,
                store: &S,
                name: Option<&str>,
            ) -> Result<Vec<AnyObject>, StoreError> {
                match self {
                    $(KindName::$variant => Ok(match name {
                        None => store.list::<$kind>().await?.items,
                        Some(name) => store.get::<$kind>(name).await?.into_iter().collect(),
                    }
                    .into_iter()
                    .map(AnyObject::$variant)
                    .collect()),)+
                }
            }

            /// Removes an object; says whether there was one.
            pub async fn delete<S: Store>(self, store: &S, name: &str) -> Result<bool, StoreError> {
                match self {
                    $(KindName::$variant => store.delete::<$kind>(name).await,)+
                }
            }

            /// What of this kind the store cannot read.
            pub async fn problems<S: Store>(self, store: &S) -> Result<Vec<Problem>, StoreError> {
                match self {
                    $(KindName::$variant => Ok(store.list::<$kind>().await?.problems),)+
                }
            }

            pub(crate) fn problems_in(
                self,
                reader: &Reader,
                problems: &mut Vec<Problem>,
            ) -> Result<(), StoreError> {
                match self {
                    $(KindName::$variant => {
                        let scan = reader.scan::<$kind>()?;
                        problems.extend(scan.strays);
                        problems.extend(scan.seen.into_values().filter_map(|seen| seen.problem));
                    })+
                }
                Ok(())
            }

            pub(crate) fn parse_object(self, source: &Source<'_>) -> Result<AnyObject, Problem> {
                match self {
                    $(KindName::$variant => source.object::<$kind>().map(AnyObject::$variant),)+
                }
            }
        }

        impl AnyObject {
            /// Its kind.
            pub fn kind(&self) -> KindName {
                match self {
                    $(AnyObject::$variant(_) => KindName::$variant,)+
                }
            }

            /// Its name.
            pub fn name(&self) -> &str {
                match self {
                    $(AnyObject::$variant(object) => object.name(),)+
                }
            }

            /// Applies it, see [`Store::apply`].
            pub async fn apply<S: Store>(self, store: &S) -> Result<Change, StoreError> {
                match self {
                    $(AnyObject::$variant(object) => Ok(store.apply(object).await?.change),)+
                }
            }
        }

        $(impl From<Object<$kind>> for AnyObject {
            fn from(object: Object<$kind>) -> AnyObject {
                AnyObject::$variant(object)
            }
        })+
    };
}

kinds! {
    Policy(EncryptionPolicy, EncryptionPolicyKind, "policy", "EncryptionPolicy"),
    Node(NodeEncryption, NodeEncryptionKind, "node", "NodeEncryption"),
    Request(CertificateRequest, CertificateRequestKind, "request", "CertificateRequest"),
    Bundle(TrustBundle, TrustBundleKind, "bundle", "TrustBundle"),
    External(ExternalConnection, ExternalConnectionKind, "extconn", "ExternalConnection"),
}

impl KindName {
    /// Reads a kind as people write it: in any case, in the singular or the plural, or short
    /// (`node`, `policy`).
    pub fn parse(text: &str) -> Result<KindName, String> {
        let lower = text.to_ascii_lowercase();
        let short = lower.strip_suffix('s').unwrap_or(&lower);
        KindName::ALL
            .iter()
            .copied()
            .find(|kind| {
                kind.as_str().eq_ignore_ascii_case(&lower)
                    || kind.plural() == lower
                    || kind.short() == short
                    || kind.short() == "policy" && lower == "policies"
            })
            .ok_or_else(|| {
                let known: Vec<&str> = KindName::ALL.iter().map(|k| k.as_str()).collect();
                format!("\"{text}\" is no kind of object: {}", known.join(", "))
            })
    }
}

impl std::str::FromStr for KindName {
    type Err = String;
    fn from_str(text: &str) -> Result<KindName, String> {
        KindName::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_people_write_them() {
        for (text, kind) in [
            ("EncryptionPolicy", KindName::Policy),
            ("policies", KindName::Policy),
            ("policy", KindName::Policy),
            ("nodes", KindName::Node),
            ("nodeencryptions", KindName::Node),
            ("TrustBundle", KindName::Bundle),
            ("externalconnections", KindName::External),
            ("ExternalConnection", KindName::External),
            ("extconn", KindName::External),
            ("extconns", KindName::External),
        ] {
            assert_eq!(KindName::parse(text), Ok(kind));
        }
        assert!(
            KindName::parse("pods")
                .unwrap_err()
                .contains("NodeEncryption")
        );
    }
}
