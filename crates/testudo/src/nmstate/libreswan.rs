//! The fields of `libreswan:` in an interface of NMState, all 33 of them.

use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use testudo_model::external::{
    AddressFamily, AuthBy, BundleReference, CertificateReference, ConnectionType, DpdAction,
    ExternalConnectionSpec, Ikev2, RsaSigKey, SendCert,
};
use testudo_model::{Lifetime, SecretName};

use super::object_name;

/// As they are written; what may be text or something else is looked at below.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Words {
    right: String,
    rightid: Option<String>,
    rightrsasigkey: Option<String>,
    rightcert: Option<String>,
    rightca: Option<String>,
    rightsubnet: Option<String>,
    rightsubnets: Option<Value>,
    rightprotoport: Option<Value>,
    left: Option<String>,
    leftid: Option<String>,
    leftrsasigkey: Option<String>,
    leftcert: Option<String>,
    leftsendcert: Option<String>,
    leftsubnet: Option<String>,
    leftsubnets: Option<Value>,
    leftprotoport: Option<Value>,
    leftmodecfgclient: Option<bool>,
    ikev2: Option<Value>,
    #[serde(rename = "psk")]
    _psk: Option<IgnoredAny>,
    authby: Option<String>,
    ike: Option<String>,
    esp: Option<String>,
    ikelifetime: Option<Value>,
    salifetime: Option<Value>,
    dpddelay: Option<Value>,
    dpdtimeout: Option<Value>,
    dpdaction: Option<DpdAction>,
    ipsec_interface: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<ConnectionType>,
    hostaddrfamily: Option<AddressFamily>,
    clientaddrfamily: Option<AddressFamily>,
    require_id_on_certificate: Option<bool>,
    nm_auto_defaults: Option<bool>,
}

/// Reads them; which nodes have the connection is left to the caller. The error names the field.
pub(super) fn read(words: &Value) -> Result<ExternalConnectionSpec, String> {
    if words.get("psk").is_some_and(|psk| !psk.is_null()) {
        // Before anything else looks at it: an error may repeat what it reads.
        return Err(
            "libreswan.psk: a key stands in no object: put it into a Secret, and write an \
             ExternalConnection with psk: {secretName: NAME} instead of this policy"
                .to_owned(),
        );
    }
    let words = Words::deserialize(words).map_err(|error| format!("libreswan: {error}"))?;
    let mut spec = ExternalConnectionSpec::to(one("right", &words.right)?);
    spec.kind = words.kind.unwrap_or_default();
    spec.ikev2 = version(&words)?;
    spec.left = some("left", words.left.as_deref())?.unwrap_or_default();
    spec.left_id = some("leftid", words.leftid.as_deref())?;
    spec.right_id = some("rightid", words.rightid.as_deref())?;
    spec.left_rsa_sig_key = key("leftrsasigkey", words.leftrsasigkey.as_deref())?;
    spec.right_rsa_sig_key = key("rightrsasigkey", words.rightrsasigkey.as_deref())?;
    if let Some(nickname) = &words.leftcert {
        spec.left_cert = Some(BundleReference::of(secret("leftcert", nickname)?));
    }
    if let Some(nickname) = &words.rightcert {
        spec.right_cert = Some(CertificateReference::of(secret("rightcert", nickname)?));
    }
    spec.right_ca = words.rightca.clone();
    spec.left_send_cert = words.leftsendcert.as_deref().map(sends).transpose()?;
    spec.left_subnets = subnets("leftsubnet", &words.leftsubnet, &words.leftsubnets)?;
    spec.right_subnets = subnets("rightsubnet", &words.rightsubnet, &words.rightsubnets)?;
    let ports = |field, value: &Option<Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => one(field, &text(value)).map(Some),
    };
    spec.left_proto_port = ports("leftprotoport", &words.leftprotoport)?;
    spec.right_proto_port = ports("rightprotoport", &words.rightprotoport)?;
    spec.left_mode_cfg_client = words.leftmodecfgclient.unwrap_or(false);
    spec.auth_by = words.authby.as_deref().map_or(Ok(Vec::new()), proofs)?;
    spec.require_id_on_certificate = words.require_id_on_certificate.unwrap_or(true);
    let suites = |text: &Option<String>| -> Vec<String> {
        let texts = text.iter().flat_map(|text| text.split(','));
        texts.map(suite).collect()
    };
    for text in suites(&words.ike) {
        spec.ike.push(one("ike", &text)?);
    }
    for text in suites(&words.esp) {
        spec.esp.push(one("esp", &text)?);
    }
    if let Some(time) = time("ikelifetime", &words.ikelifetime)? {
        spec.ike_lifetime = time;
    }
    if let Some(time) = time("salifetime", &words.salifetime)? {
        spec.sa_lifetime = time;
    }
    spec.dpd_delay = time("dpddelay", &words.dpddelay)?;
    spec.dpd_timeout = time("dpdtimeout", &words.dpdtimeout)?;
    spec.dpd_action = words.dpdaction;
    spec.ipsec_interface = interface(&words.ipsec_interface)?;
    spec.host_addr_family = words.hostaddrfamily;
    spec.client_addr_family = words.clientaddrfamily;
    if words.nm_auto_defaults.unwrap_or(true) {
        filled(&words, &mut spec)?;
    }
    Ok(spec)
}

/// A refusal of the whole, with what NetworkManager's defaults have to do with it.
pub(super) fn checked(words: &Value, said: Result<(), String>) -> Result<(), String> {
    let automatic = words.get("nm-auto-defaults") != Some(&Value::Bool(false));
    let there = |word: &str| words.get(word).is_some();
    let mut filled = Vec::new();
    if automatic && !there("leftmodecfgclient") {
        filled.push("leftmodecfgclient: true");
    }
    if automatic && !there("rightsubnet") && !there("rightsubnets") {
        filled.push("rightsubnet: 0.0.0.0/0");
    }
    said.map_err(|text| match filled.is_empty() {
        true => text,
        false => format!(
            "{text} (NetworkManager's defaults have filled in {}: write the fields, or \
             nm-auto-defaults: false)",
            filled.join(" and ")
        ),
    })
}

/// What NetworkManager writes where nothing is said.
fn filled(words: &Words, spec: &mut ExternalConnectionSpec) -> Result<(), String> {
    spec.left_mode_cfg_client = words.leftmodecfgclient.unwrap_or(true);
    if spec.right_subnets.is_empty() {
        let sixth = |net: &IpNet| net.addr().is_ipv6();
        let ipv6 = match spec.client_addr_family {
            Some(family) => family == AddressFamily::Ipv6,
            None => spec.left_subnets.iter().any(sixth),
        };
        let everything = if ipv6 { "::/0" } else { "0.0.0.0/0" };
        spec.right_subnets.push(one("rightsubnet", everything)?);
    }
    Ok(())
}

/// The version of IKE. Where NetworkManager fills in, nothing means IKEv1.
fn version(words: &Words) -> Result<Ikev2, String> {
    let said = match &words.ikev2 {
        None | Some(Value::Null) if words.nm_auto_defaults.unwrap_or(true) => {
            return Err(
                "libreswan.ikev2 is missing, which means IKEv1 to NetworkManager, and that is not \
                 spoken here: write ikev2: insist"
                    .to_owned(),
            );
        }
        None | Some(Value::Null | Value::Bool(true)) => "insist".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(value) => text(value),
    };
    match said.as_str() {
        "yes" | "propose" | "permit" => Ok(Ikev2::Insist),
        other => {
            Ikev2::try_from(other.to_owned()).map_err(|text| format!("libreswan.ikev2: {text}"))
        }
    }
}

fn one<T: FromStr<Err = impl std::fmt::Display>>(field: &str, text: &str) -> Result<T, String> {
    text.trim()
        .parse()
        .map_err(|error| format!("libreswan.{field}: {error}"))
}

fn some<T: FromStr<Err = String>>(field: &str, text: Option<&str>) -> Result<Option<T>, String> {
    text.map(|text| one(field, text)).transpose()
}

/// A value that YAML may have taken for a number.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn key(field: &str, said: Option<&str>) -> Result<Option<RsaSigKey>, String> {
    let read = |text: &str| RsaSigKey::try_from(text.to_owned());
    let read = said.map(read).transpose();
    read.map_err(|text| format!("libreswan.{field}: {text}"))
}

/// The Secret that stands for a name in the node's NSS database.
fn secret(field: &str, nickname: &str) -> Result<SecretName, String> {
    let name = object_name(nickname).map_err(|text| format!("libreswan.{field}: {text}"))?;
    one(field, &name)
}

fn sends(word: &str) -> Result<SendCert, String> {
    match word {
        "always" | "yes" => Ok(SendCert::Always),
        "sendifasked" | "sometimes" | "ifasked" => Ok(SendCert::Sometimes),
        "never" | "no" => Ok(SendCert::Never),
        other => Err(format!(
            "libreswan.leftsendcert: \"{other}\" is none of always, sendifasked, never"
        )),
    }
}

/// `leftsubnet` and `leftsubnets`: one prefix, or several in braces, with commas or spaces.
fn subnets(
    field: &str,
    single: &Option<String>,
    several: &Option<Value>,
) -> Result<Vec<IpNet>, String> {
    let listed = match several {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.iter().map(text).collect(),
        Some(value) => {
            let text = text(value);
            let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
            let parts = inner.split([',', ' ']).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        }
    };
    if single.is_some() && !listed.is_empty() {
        return Err(format!(
            "libreswan.{field}: {field}s is there too: leave one of them out"
        ));
    }
    let all = single.iter().chain(&listed);
    all.map(|net| one(field, net)).collect()
}

fn proofs(text: &str) -> Result<Vec<AuthBy>, String> {
    let mut found = Vec::new();
    for word in text.split(',').map(str::trim) {
        let word = match word {
            "rsa" => "rsasig",
            "rsa-sha2_256" | "rsa-sha2_384" | "rsa-sha2_512" => "rsa-sha2",
            "ecdsa-sha2" | "ecdsa-sha2_256" | "ecdsa-sha2_384" | "ecdsa-sha2_512" => "ecdsa",
            "psk" => "secret",
            other => other,
        };
        let by = AuthBy::try_from(word.to_owned());
        let by = by.map_err(|text| format!("libreswan.authby: {text}"))?;
        if !found.contains(&by) {
            found.push(by);
        }
    }
    Ok(found)
}

/// A suite in libreswan's many spellings, in ours.
fn suite(text: &str) -> String {
    let text = text.trim().to_ascii_lowercase().replace(';', "-");
    let words = text.split('-').filter(|word| *word != "null");
    let words = words.map(|word| match word {
        "aes_gcm_256" | "aes_gcm_c_256" | "aes_gcm_c256" | "aes_gcm_16_256" | "aes256gcm16" => {
            "aes_gcm256"
        }
        "aes_gcm_128" | "aes_gcm_c_128" | "aes_gcm_c128" | "aes_gcm_16_128" | "aes128gcm16" => {
            "aes_gcm128"
        }
        "aes_256" | "aes_cbc256" | "aes_cbc_256" => "aes256",
        "aes_128" | "aes_cbc128" | "aes_cbc_128" => "aes128",
        "sha2" | "sha256" | "hmac_sha2_256" => "sha2_256",
        "sha384" | "hmac_sha2_384" => "sha2_384",
        "sha512" | "hmac_sha2_512" => "sha2_512",
        "modp2048" => "dh14",
        "ecp256" | "ecp_256" => "dh19",
        "ecp384" | "ecp_384" => "dh20",
        "ecp521" | "ecp_521" => "dh21",
        "curve25519" | "x25519" => "dh31",
        other => other,
    });
    words.collect::<Vec<_>>().join("-")
}

/// A number of seconds, or one with a unit. 0 is none.
fn time(field: &str, value: &Option<Value>) -> Result<Option<Lifetime>, String> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => text(value),
    };
    let text = text.trim();
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = if bare {
        format!("{text}s")
    } else {
        text.to_owned()
    };
    match text.trim_end_matches(|c: char| c.is_ascii_alphabetic()) {
        "0" => Ok(None),
        _ => one(field, &text).map(Some),
    }
}

/// `yes` is the first one.
fn interface(value: &Option<Value>) -> Result<Option<u32>, String> {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(1)),
        Some(value) => match text(value).as_str() {
            "no" | "0" => Ok(None),
            "yes" => Ok(Some(1)),
            number => number.parse().map(Some).map_err(|_| {
                format!("libreswan.ipsec-interface: \"{number}\" is none of yes, no, a number")
            }),
        },
    }
}
