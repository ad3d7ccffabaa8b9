use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::condition::ConditionStatus;
use crate::time::UnixTime;

/// A connection with a certificate, and changes of its fields; `null` takes one away.
fn spec(changes: Value) -> Value {
    let mut spec = json!({
        "right": "203.0.113.7",
        "rightSubnets": ["198.51.100.0/24"],
        "leftCert": { "secretName": "office" },
    });
    for (key, value) in changes.as_object().unwrap() {
        spec[key.as_str()] = value.clone();
    }
    spec.as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    spec
}

fn read(changes: Value) -> Result<ExternalConnectionSpec, String> {
    let spec: ExternalConnectionSpec =
        serde_json::from_value(spec(changes)).map_err(|error| error.to_string())?;
    ExternalConnectionKind::validate("office", &spec)?;
    Ok(spec)
}

#[test]
fn all_words_are_read_and_written() {
    let whole = json!({
        "nodeSelector": {
            "matchLabels": { "kubernetes.io/hostname": "n1", "empty": "" },
            "matchExpressions": [
                { "key": "zone", "operator": "In", "values": ["a", "b"] },
                { "key": "old", "operator": "DoesNotExist" },
            ],
        },
        "type": "tunnel",
        "ikev2": "insist",
        "left": "192.0.2.1",
        "leftId": "%fromcert",
        "leftSubnets": ["10.1.0.0/16"],
        "leftProtoPort": "udp/4789",
        "leftCert": { "secretName": "office", "key": "n1.p12", "passwordKey": "password" },
        "leftRsaSigKey": "%cert",
        "leftSendCert": "sometimes",
        "leftModeCfgClient": false,
        "right": "203.0.113.7",
        "rightId": "CN=gate, O=Example",
        "rightSubnets": ["198.51.100.0/24", "203.0.113.0/28"],
        "rightProtoPort": "udp",
        "rightCert": { "secretName": "gate", "key": "gate.pem" },
        "rightCa": "%same",
        "rightRsaSigKey": "%cert",
        "authBy": ["rsa-sha2", "ecdsa"],
        "requireIdOnCertificate": false,
        "ike": ["aes_gcm256-sha2_512-dh19", "aes256-sha2_256-dh14"],
        "esp": ["aes_gcm256", "aes128-sha2_256-dh31"],
        "ikeLifetime": "12h",
        "saLifetime": "1h",
        "dpdDelay": "30s",
        "dpdTimeout": "2m",
        "dpdAction": "restart",
        "ipsecInterface": 99,
        "hostAddrFamily": "ipv4",
        "clientAddrFamily": "ipv4",
    });
    let spec: ExternalConnectionSpec = serde_json::from_value(whole.clone()).unwrap();
    assert_eq!(spec.check(), Ok(()));
    assert_eq!(serde_json::to_value(&spec).unwrap(), whole);
    let psk = read(json!({
        "leftCert": null, "psk": { "secretName": "office" }, "authBy": ["secret"],
        "nodeSelector": { "names": ["n1", "n2"] },
    }));
    assert_eq!(psk.unwrap().psk.unwrap().key, "psk");
}

#[test]
fn little_is_enough() {
    let spec = read(json!({})).unwrap();
    assert_eq!(spec.left, Endpoint::DefaultRoute);
    assert_eq!(spec.kind, ConnectionType::Tunnel);
    assert_eq!(spec.left_cert.as_ref().unwrap().key, "keystore.p12");
    let mut plain = ExternalConnectionSpec::to(spec.right.clone());
    plain.right_subnets = spec.right_subnets.clone();
    plain.left_cert = spec.left_cert.clone();
    assert_eq!(spec, plain);
    // Transport mode as OpenShift's documentation has it: the other host alone, as a prefix.
    read(json!({ "type": "transport", "rightSubnets": ["203.0.113.7/32"] })).unwrap();
    let named = json!({ "type": "transport", "right": "host.example.com",
        "left": "n1.example.com", "rightSubnets": ["10.1.2.3/32"] });
    read(named).unwrap();
    read(json!({ "leftModeCfgClient": true, "rightSubnets": ["0.0.0.0/0"] })).unwrap();
    read(json!({ "right": "2001:db8::7", "left": "2001:db8::1", "rightSubnets": null })).unwrap();
}

/// What is refused: `rules` by what is written together, `words` by a single word. Changes of [`spec`].
/// The tests against an API server put the same to it.
fn refused(table: &str) -> Vec<Value> {
    let text = include_str!("../../testdata/external-refused.json");
    let all: Value = serde_json::from_str(text).unwrap();
    all[table].as_array().unwrap().clone()
}

#[test]
fn each_refusal_names_its_field_and_says_what_to_do() {
    for case in refused("rules") {
        let text = read(case["change"].clone()).expect_err(&case.to_string());
        let (field, word) = (
            case["field"].as_str().unwrap(),
            case["word"].as_str().unwrap(),
        );
        assert!(text.starts_with(&format!("{field}: ")), "{case}: {text}");
        assert!(text.contains(word), "{case}: {text}");
    }
}

#[test]
fn words_that_mean_nothing_are_refused_when_they_are_read() {
    for case in refused("words") {
        let text = read(case["change"].clone()).expect_err(&case.to_string());
        assert!(
            text.contains(case["word"].as_str().unwrap()),
            "{case}: {text}"
        );
    }
}

#[test]
fn a_key_that_is_written_out_is_not_repeated() {
    for key in [json!("hunter2"), json!(4711), json!(-4711), json!(47.11)] {
        let text = read(json!({ "leftCert": null, "psk": key.clone() })).unwrap_err();
        assert!(text.contains("put it into a Secret"), "{text}");
        let shown = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        assert!(!text.contains(&shown), "{text}");
    }
}

#[test]
fn spellings_of_one_thing_are_one() {
    let id = |text: &str| text.parse::<Identity>().unwrap();
    assert_eq!(id("gate.example.com"), id("@gate.example.com"));
    for text in [
        "%fromcert",
        "192.0.2.1",
        "2001:db8::1",
        "@gate",
        "me@gate",
        "@[a key]",
        "CN=ä, O=x",
    ] {
        assert_eq!(id(text).to_string(), text);
    }
    let ports = |text: &str| text.parse::<ProtoPort>().unwrap();
    assert_eq!(ports("17/4789"), ports("udp/4789"));
    assert_eq!(ports("tcp/%any"), ports("6"));
    assert_eq!(ports("50").to_string(), "50");
    for text in [
        "aes_gcm256",
        "aes_gcm128-sha2_384",
        "aes128-sha2_512-dh21",
        "aes_gcm256-dh31",
    ] {
        assert_eq!(text.parse::<IkeSuite>().unwrap().to_string(), text);
    }
    assert_eq!(
        "aes128-sha2_512".parse::<EspSuite>().unwrap().to_string(),
        "aes128-sha2_512"
    );
}

#[test]
fn nodes_are_selected_by_name_or_by_all_that_is_said_of_labels() {
    let selector = |value: Value| serde_json::from_value::<NodeSelector>(value).unwrap();
    let labels: BTreeMap<String, String> = [("zone", "a"), ("disk", "")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let cases = [
        (json!({}), true),
        (json!({ "names": ["n1"] }), true),
        (json!({ "names": ["n2"] }), false),
        (json!({ "matchLabels": { "zone": "a", "disk": "" } }), true),
        (json!({ "matchLabels": { "zone": "b" } }), false),
        (json!({ "matchLabels": { "none": "" } }), false),
        (
            json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a", "b"] }] }),
            true,
        ),
        (
            json!({ "matchExpressions": [{ "key": "none", "operator": "In", "values": ["a"] }] }),
            false,
        ),
        (
            json!({ "matchExpressions": [{ "key": "none", "operator": "NotIn", "values": ["a"] }] }),
            true,
        ),
        (
            json!({ "matchExpressions": [{ "key": "zone", "operator": "NotIn", "values": ["a"] }] }),
            false,
        ),
        (
            json!({ "matchExpressions": [{ "key": "disk", "operator": "Exists" }] }),
            true,
        ),
        (
            json!({ "matchExpressions": [{ "key": "disk", "operator": "DoesNotExist" }] }),
            false,
        ),
        (
            json!({ "matchLabels": { "zone": "a" },
            "matchExpressions": [{ "key": "none", "operator": "Exists" }] }),
            false,
        ),
    ];
    for (value, selected) in cases {
        assert_eq!(
            selector(value.clone()).matches("n1", &labels),
            selected,
            "{value}"
        );
    }
    let (one, two) = (
        selector(json!({ "names": ["n1"] })),
        selector(json!({ "names": ["n2"] })),
    );
    assert!(!one.shares_nodes(&two) && one.shares_nodes(&selector(json!({}))));
    let both = selector(json!({ "names": ["n1", "n2"] }));
    assert!(one.shares_nodes(&both) && both.shares_nodes(&two));
    let zone = |zone: &str| selector(json!({ "matchLabels": { "zone": zone } }));
    assert!(zone("a").shares_nodes(&zone("a")) && !zone("a").shares_nodes(&zone("b")));
}

#[test]
fn every_connection_is_said_not_to_be_served() {
    let mut connection = ExternalConnection::new("office", read(json!({})).unwrap());
    connection.metadata.generation = 4;
    connection.status = judged(&connection, None, UnixTime(100));
    let said = |connection: &ExternalConnection, kind: &str| {
        let found = connection.status.conditions.iter().find(|c| c.kind == kind);
        found.cloned().unwrap()
    };
    let accepted = said(&connection, ACCEPTED);
    assert_eq!(accepted.status, ConditionStatus::True);
    let programmed = said(&connection, PROGRAMMED);
    assert_eq!(programmed.status, ConditionStatus::False);
    assert_eq!(
        (programmed.reason.as_str(), programmed.observed_generation),
        ("NotServed", 4)
    );
    assert_eq!(programmed.message, NOT_SERVED);
    // Said again it is the same; another generation and a trouble are not.
    assert_eq!(judged(&connection, None, UnixTime(200)), connection.status);
    connection.metadata.generation = 5;
    connection.status = judged(
        &connection,
        Some(("Invalid", "why".to_owned())),
        UnixTime(300),
    );
    let accepted = said(&connection, ACCEPTED);
    assert_eq!(accepted.status, ConditionStatus::False);
    assert_eq!(
        (accepted.reason.as_str(), accepted.message.as_str()),
        ("Invalid", "why")
    );
    assert_eq!(
        (accepted.last_transition_time, accepted.observed_generation),
        (UnixTime(300), 5)
    );
    let programmed = said(&connection, PROGRAMMED);
    assert_eq!(programmed.last_transition_time, UnixTime(100));
    assert_eq!(connection.status.observed_generation, 5);
}
