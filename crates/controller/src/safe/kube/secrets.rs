//! Documents as Secrets, and the CA that somebody gives in one.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::core::ResourceExt;
use testudo_crypto::SecretBytes;
use testudo_pki::{Ca, TrustBundle};

use super::{SafeError, Sealed, Version, call, code};
use crate::run::seconds;
use crate::safe::Unusable;

/// The key in a Secret of ours.
const KEY: &str = "document";
/// A Secret of the API server takes a megabyte.
const MOST: usize = 1 << 20;
/// The keys in a Secret of type `kubernetes.io/tls`.
const TLS_CERTIFICATE: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";

/// What is kept of a Secret that is followed: never what stands in it.
pub(super) fn version(secret: &Secret) -> Version {
    Version(secret.resource_version().unwrap_or_default())
}

/// The document, and which text it is; `None` when there is no such Secret. `empty`: the reason that is
/// given where the Secret has no document in it.
pub(super) async fn read(
    api: &Api<Secret>,
    name: &str,
    place: &str,
    empty: &'static str,
) -> anyhow::Result<Option<Sealed>> {
    let read = call(api.get_opt(name)).await;
    let Some(secret) = read.with_context(|| place.to_owned())? else {
        return Ok(None);
    };
    let version = version(&secret);
    let text = secret.data.and_then(|mut data| data.remove(KEY));
    let text = text.ok_or_else(|| Unusable {
        reason: empty,
        text: format!("{place} has no {KEY}: restore it"),
    })?;
    Ok(Some(Sealed {
        text: SecretBytes::new(text.0),
        version,
    }))
}

/// Puts the text in the place of the version `over`. What else stands in the Secret stays.
pub(super) async fn write(
    api: &Api<Secret>,
    name: &str,
    place: &str,
    text: &SecretBytes,
    over: Option<&Version>,
    may: impl Fn() -> anyhow::Result<()>,
) -> Result<Version, SafeError> {
    let length = text.as_bytes().len();
    if length > MOST {
        return Err(anyhow::anyhow!("{place} would take {length} bytes of {MOST}").into());
    }
    let changed = || SafeError::Changed(place.to_owned());
    let data = ByteString(text.as_bytes().to_vec());
    let params = PostParams {
        field_manager: Some("testudo-controller".to_owned()),
        ..PostParams::default()
    };
    let written = match over {
        None => {
            let mut secret = Secret {
                type_: Some("testudo.dev/safe".to_owned()),
                data: Some(BTreeMap::from([(KEY.to_owned(), data)])),
                ..Secret::default()
            };
            secret.metadata.name = Some(name.to_owned());
            may()?;
            call(api.create(&params, &secret)).await
        }
        Some(over) => {
            let stands = call(api.get_opt(name)).await.context(place.to_owned())?;
            // One that is made in its place is another one.
            let mut secret = stands.ok_or_else(changed)?;
            if version(&secret) != *over {
                return Err(changed());
            }
            let all = secret.data.get_or_insert_default();
            all.insert(KEY.to_owned(), data);
            may()?;
            call(api.replace(name, &params, &secret)).await
        }
    };
    match written {
        Ok(written) => Ok(version(&written)),
        Err(error) if [404, 409].contains(&code(&error)) => Err(changed()),
        Err(error) => Err(error.context(place.to_owned()).into()),
    }
}

/// The CA in a Secret of type `kubernetes.io/tls`, as cert-manager makes one with `isCA: true`.
pub(super) async fn given(api: &Api<Secret>, name: &str, place: &str) -> anyhow::Result<Ca> {
    let read = call(api.get_opt(name)).await;
    let secret = read.with_context(|| place.to_owned())?;
    let secret = secret.ok_or_else(|| Unusable {
        reason: "GivenCaMissing",
        text: format!("{place} with the CA that is to be used is not there"),
    })?;
    let mut data = secret.data.unwrap_or_default();
    let mut part = |key: &str| data.remove(key).map(|bytes| bytes.0).unwrap_or_default();
    let (certificate, key) = (part(TLS_CERTIFICATE), SecretBytes::new(part(TLS_KEY)));
    let ca = take(&certificate, &key).map_err(|error| Unusable {
        reason: "GivenCaUnusable",
        text: format!("{place}: the CA that is to be used cannot be: {error:#}"),
    })?;
    Ok(ca)
}

/// Reads certificate and key, and sees that such a CA can do all that ours has to.
fn take(certificate: &[u8], key: &SecretBytes) -> anyhow::Result<Ca> {
    let certificate = std::str::from_utf8(certificate).context("tls.crt is not text")?;
    let ca = Ca::load(certificate, key.as_bytes()).context(
        "it takes a certificate with isCA in tls.crt and its key in tls.key, in PKCS#8 \
         (privateKey.encoding), of ECDSA or Ed25519",
    )?;
    let now = seconds();
    let times = ca.facts().times;
    anyhow::ensure!(now < times.not_after, "it has ended");
    let list = ca.revocation_list(&[], 1, now, now.saturating_add(60));
    let list = list.context(
        "it signs no revocation lists, which takes a key of ECDSA or Ed25519, the usages cert sign and crl \
         sign, and a subject with no more than one of each part",
    )?;
    let mut alone = TrustBundle::new();
    alone.add(ca.certificate())?;
    alone
        .add_revocation_list(&list)
        .context("nodes would not take its revocation lists")?;
    Ok(ca)
}

#[cfg(test)]
mod tests {
    use testudo_crypto::SystemRandom;
    use testudo_pki::CaOptions;

    use super::*;

    #[test]
    fn a_ca_that_is_given_must_be_one_and_whole() {
        let random = &mut SystemRandom::new();
        let options = CaOptions::default();
        let ca = Ca::generate(&options, seconds(), random).unwrap();
        let other = Ca::generate(&options, seconds(), random).unwrap();
        let key = |ca: &Ca| ca.key_pem().unwrap();
        let pem = ca.certificate_pem();
        let taken = take(pem.as_bytes(), &key(&ca)).unwrap();
        assert_eq!(taken.facts(), ca.facts());
        let ended = Ca::generate(&options, 1000, random).unwrap();
        for (certificate, key, part) in [
            (pem.as_str(), key(&other), "tls.key"),
            (pem.as_str(), SecretBytes::new(Vec::new()), "tls.key"),
            ("", key(&ca), "tls.crt"),
            (ended.certificate_pem().as_str(), key(&ended), "has ended"),
        ] {
            let error = take(certificate.as_bytes(), &key).err().unwrap();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
