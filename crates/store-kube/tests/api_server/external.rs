//! ExternalConnections: their rules, and those of builds of another age.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testudo_model::ConditionStatus;
use testudo_model::UnixTime;
use testudo_model::external::{ACCEPTED, ExternalConnectionKind, judged};
use testudo_store::{Store, StoreError};
use testudo_store_kube::Writer;

use crate::refusals::{ours, theirs};
use crate::skew::changed;
use crate::world::{World, until};

type K = ExternalConnectionKind;

/// Every field.
pub(crate) fn whole() -> Value {
    json!({
        "nodeSelector": {
            "matchLabels": { "kubernetes.io/hostname": "n1", "empty": "" },
            "matchExpressions": [
                { "key": "zone", "operator": "In", "values": ["a", "b"] },
                { "key": "old", "operator": "DoesNotExist" },
            ],
        },
        "type": "tunnel", "ikev2": "insist",
        "left": "192.0.2.1", "leftId": "%fromcert", "leftSubnets": ["10.1.0.0/16"],
        "leftProtoPort": "udp/4789",
        "leftCert": { "secretName": "office", "key": "n1.p12", "passwordKey": "password" },
        "leftRsaSigKey": "%cert", "leftSendCert": "sometimes", "leftModeCfgClient": false,
        "right": "203.0.113.7", "rightId": "CN=gate, O=Exämple",
        "rightSubnets": ["198.51.100.0/24", "203.0.113.0/28"], "rightProtoPort": "17/%any",
        "rightCert": { "secretName": "gate", "key": "gate.pem" },
        "rightCa": "%same", "rightRsaSigKey": "%cert",
        "authBy": ["rsa-sha2", "ecdsa"], "requireIdOnCertificate": false,
        "ike": ["aes_gcm256-sha2_512-dh19", "aes256-sha2_256-dh14"],
        "esp": ["aes_gcm256", "aes128-sha2_256-dh31"],
        "ikeLifetime": "12h", "saLifetime": "1h",
        "dpdDelay": "30s", "dpdTimeout": "2m", "dpdAction": "restart",
        "ipsecInterface": 99, "hostAddrFamily": "ipv4", "clientAddrFamily": "ipv4",
    })
}

/// A connection with a certificate, and changes of its fields; `null` takes one away.
fn spec(changes: &Value) -> Value {
    let mut spec = json!({
        "right": "203.0.113.7",
        "rightSubnets": ["198.51.100.0/24"],
        "leftCert": { "secretName": "office" },
    });
    for (key, value) in changes.as_object().unwrap() {
        spec[key.as_str()] = value.clone();
    }
    let fields = spec.as_object_mut().unwrap();
    fields.retain(|_, value| !value.is_null());
    spec
}

pub(crate) async fn both_refuse(world: &World) {
    let psk = |changes: Value| {
        let mut all = json!({ "leftCert": null, "psk": { "secretName": "key" } });
        for (key, value) in changes.as_object().unwrap() {
            all[key.as_str()] = value.clone();
        }
        all
    };
    let good = [
        json!({}),
        json!({ "nodeSelector": { "names": ["n1", "n2.example"] } }),
        json!({ "nodeSelector": {} }),
        json!({ "type": "transport", "rightSubnets": ["203.0.113.7/32"] }),
        json!({ "type": "transport", "right": "host.example.com", "left": "n1.example.com",
            "rightSubnets": ["10.1.2.3/32"] }),
        json!({ "leftModeCfgClient": true, "left": "192.0.2.1", "rightSubnets": ["0.0.0.0/0"] }),
        json!({ "right": "2001:db8::7", "left": "2001:db8::1", "rightSubnets": null,
            "hostAddrFamily": "ipv6", "clientAddrFamily": "ipv6" }),
        json!({ "right": "gate.example.com", "leftSubnets": ["10.0.0.0/8"] }),
        json!({ "leftProtoPort": "6/22", "rightProtoPort": "tcp/%any" }),
        json!({ "leftProtoPort": "255", "rightProtoPort": "255/%any" }),
        json!({ "leftId": "me@gate.example", "rightId": "@[any text]", "rightCa": "CN=ca, O=ü" }),
        json!({ "leftId": "gate.example", "rightId": "2001:db8::7" }),
        json!({ "dpdDelay": "1h", "dpdTimeout": "61m", "ikeLifetime": "60s", "saLifetime": "24h" }),
        psk(json!({ "authBy": ["secret"], "leftId": "@n1", "requireIdOnCertificate": true })),
    ];
    for change in good {
        let spec = spec(&change);
        assert_eq!(ours::<K>("office", &spec), Ok(()), "{change}");
        assert_eq!(
            theirs::<K>(world, "office", &spec).await,
            Ok(()),
            "{change}"
        );
    }
    let text = include_str!("../../../model/testdata/external-refused.json");
    let refused: Value = serde_json::from_str(text).unwrap();
    let mut seen = 0;
    for case in ["rules", "words"]
        .iter()
        .flat_map(|t| refused[t].as_array().unwrap())
    {
        let spec = spec(&case["change"]);
        ours::<K>("office", &spec).expect_err(&case.to_string());
        let said = theirs::<K>(world, "office", &spec).await;
        let said = said.expect_err(&case.to_string());
        if let Some(field) = case["field"].as_str() {
            let field = field.rsplit('.').next().unwrap();
            assert!(said.contains(field), "{case}: {said}");
        }
        seen += 1;
    }
    eprintln!("{seen} combinations and words are refused by both");
    // An API server may repeat it to whoever wrote it; it keeps nothing of it.
    let written = spec(&json!({ "leftCert": null, "psk": "hunter2" }));
    let said = theirs::<K>(world, "office", &written).await.unwrap_err();
    assert!(said.contains("psk"), "{said}");
}

/// A CRD without our rules lets in what this build refuses; one of a newer build has more fields.
pub(crate) async fn skew(world: &World) {
    let other = changed("ExternalConnection", |fields| {
        fn without_rules(schema: &mut Value) {
            if let Some(map) = schema.as_object_mut() {
                map.remove("x-kubernetes-validations");
                map.values_mut().for_each(without_rules);
            }
        }
        without_rules(&mut fields["spec"]);
        fields["spec"]["properties"]["newer"] = json!({ "type": "integer" });
    });
    world.define(&other).await;
    let api = world.raw_of::<K>().await;
    let wrong = spec(&json!({ "type": "transport", "newer": 3 }));
    until("the CRD without rules is in force", async || {
        let object = json!({
            "apiVersion": "testudo.dev/v1alpha1", "kind": "ExternalConnection",
            "metadata": { "name": "office" }, "spec": wrong,
        });
        let params = PatchParams::apply("kubectl");
        let made = api.patch("office", &params, &Patch::Apply(object)).await;
        made.is_ok_and(|made| made.data["spec"]["newer"] == 3)
    })
    .await;
    // It is read, so that its status can say what is wrong with it; nobody of this build writes it.
    let store = world.store(Writer::Controller);
    let read = store.get::<K>("office").await.unwrap().unwrap();
    let text = read.spec.check().unwrap_err();
    assert!(text.starts_with("spec.rightSubnets: "), "{text}");
    let mut told = read.clone();
    told.status = judged(&read, Some(("Invalid", text)), UnixTime(1_800_000_000));
    let told = store.update_status(&told).await.unwrap();
    let accepted = told.status.conditions.iter().find(|c| c.kind == ACCEPTED);
    assert_eq!(accepted.unwrap().status, ConditionStatus::False);
    let refused = world.store(Writer::Cli).apply(read.clone()).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
    // What this build does not know outlives its write.
    let mut mended = told;
    mended.spec.right_subnets.clear();
    mended.metadata.resource_version = None;
    world.store(Writer::Controller).apply(mended).await.unwrap();
    let raw = api.get("office").await.unwrap();
    assert_eq!(raw.data["spec"]["newer"], 3);
    assert!(raw.data["spec"].get("rightSubnets").is_none());
    assert!(store.delete::<K>("office").await.unwrap());
    world.define(&changed("ExternalConnection", |_| {})).await;
}
