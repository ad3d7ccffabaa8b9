//! The CRDs: what they keep, what they refuse, what they fill in, what kubectl shows of them.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testudo_model::bundle::TrustBundleKind;
use testudo_model::external::{ExternalConnectionKind, judged};
use testudo_model::node::NodeEncryptionKind;
use testudo_model::policy::{EncryptionPolicyKind, Mode, RotationProgress};
use testudo_model::{
    Acknowledgement, Authorities, CaPhase, CaWaiting, CertificateFacts, Condition, ConditionStatus,
    EncryptionPolicySpec, EncryptionPolicyStatus, Kind, NodeEncryptionStatus, Object, Phase,
    TrustBundleSpec, TrustBundleStatus, UnixTime,
};
use testudo_store::{Store, StoreError};
use testudo_store_kube::Writer;

use crate::external;
use crate::world::{World, agent, node, policy};

const TIME: UnixTime = UnixTime(1_800_000_000);

fn conditions() -> Vec<Condition> {
    ["Ready", "Progressing", "Degraded"]
        .map(|kind| Condition {
            kind: kind.to_owned(),
            status: ConditionStatus::True,
            reason: "Reason".to_owned(),
            message: "a sentence".to_owned(),
            last_transition_time: TIME,
            observed_generation: 3,
        })
        .to_vec()
}

fn policy_status() -> EncryptionPolicyStatus {
    EncryptionPolicyStatus {
        phase: Phase::Strict,
        target: Phase::Strict,
        rollout: 9,
        since: 2,
        waiting_on: vec!["n9".to_owned()],
        observed_generation: 3,
        nodes: 4,
        nodes_acknowledged: 3,
        tunnels_up: 11,
        tunnels_expected: 12,
        certificate_rotation: Some(RotationProgress {
            number: 4,
            phase: None,
            done: 3,
            nodes: 4,
            waiting_on: vec!["n9".to_owned()],
            since: Some(TIME),
        }),
        ca_rotation: Some(RotationProgress {
            number: 2,
            phase: Some(CaPhase::Issuing),
            done: 1,
            nodes: 4,
            waiting_on: vec!["n8".to_owned(), "n9".to_owned()],
            since: Some(TIME),
        }),
        conditions: conditions(),
    }
}

fn node_status() -> NodeEncryptionStatus {
    NodeEncryptionStatus {
        acknowledged: Some(Acknowledgement {
            phase: Phase::Strict,
            rollout: 9,
        }),
        certificate: Some(CertificateFacts {
            subject: "CN=n1".to_owned(),
            issuer: "CN=ca".to_owned(),
            serial: "0a".to_owned(),
            not_before: TIME,
            not_after: UnixTime(TIME.0 + 1),
        }),
        rotation: 2,
        authorities: Authorities {
            trusted: vec!["ca".to_owned()],
            presented: Some("ca".to_owned()),
            showing: vec!["old".to_owned()],
            peers: vec!["ca".to_owned()],
            asking: true,
        },
        tunnels_up: 3,
        tunnels_expected: 4,
        effective_mtu: Some(1400),
        datapath_note: Some("no ESP".to_owned()),
        per_cpu: 2,
        agent_pid: Some(77),
        agent_version: Some("0.1.0".to_owned()),
        conditions: conditions(),
    }
}

fn bundle_status() -> TrustBundleStatus {
    TrustBundleStatus {
        phase: CaPhase::Issuing,
        rotation: 1,
        answered: 1,
        signer: "new".to_owned(),
        other: Some("old".to_owned()),
        taken_back: true,
        waiting: 1,
        waiting_on: vec![CaWaiting {
            node: "n1".to_owned(),
            reason: "why".to_owned(),
        }],
        signer_not_after: Some(TIME),
        irrevocable: "why not".to_owned(),
        since: Some(TIME),
        message: "begun".to_owned(),
    }
}

/// A field that the CRD lacked would be cut off by the API server, in silence.
pub(crate) async fn every_field_is_kept(world: &World) {
    async fn kept<K: Kind>(world: &World, wanted: Object<K>) {
        let store = world.store(Writer::Controller);
        let made = store.apply(wanted.clone()).await.unwrap().object;
        assert_eq!((&made.spec, &made.status), (&wanted.spec, &wanted.status));
        let read = store.get::<K>(wanted.name()).await.unwrap();
        assert_eq!(read, Some(made));
        assert!(store.delete::<K>(wanted.name()).await.unwrap());
    }
    let mut wanted = policy(Mode::Full);
    wanted.spec = serde_json::from_value(json!({
        "mode": "Full",
        "full": { "encapsulation": "Always" },
        "enforcement": "Permissive",
        "keying": "PreSharedKey",
        "overlay": { "type": "Routed", "port": 4789, "podCIDRs": ["10.244.0.0/16", "fd00::/48"] },
        "hostTraffic": true,
        "certificates": { "caLifetime": "20d", "nodeLifetime": "36h", "renewAfter": "90m",
            "rotation": 4, "caRotation": 5 },
        "ike": { "ciphers": ["AES-GCM-16-128"], "keyExchanges": ["P-521", "X25519"],
            "lifetime": "45s", "postQuantum": "Required" },
        "esp": { "ciphers": ["AES-GCM-16-128", "AES-GCM-16-256"], "lifetime": "2w", "bytes": 1,
            "packets": 2, "perCpu": 127 },
        "datapath": "Userspace",
    }))
    .unwrap();
    wanted.status = policy_status();
    kept(world, wanted).await;
    let mut wanted = node("n1");
    wanted.status = node_status();
    kept(world, wanted.clone()).await;
    // Each write of a node's status goes to every agent, and what keeps it must not be half of that.
    let store = world.store(agent("n1"));
    store.apply(wanted).await.unwrap();
    let raw = world.raw_of::<NodeEncryptionKind>().await.get("n1").await;
    let managed = json!(raw.unwrap().metadata.managed_fields);
    let entries = managed.as_array().unwrap();
    let status = entries
        .iter()
        .find(|entry| entry["subresource"] == "status");
    let fields = status.map(|status| &status["fieldsV1"]);
    assert_eq!(fields, Some(&json!({ "f:status": {} })), "{managed}");
    assert!(store.delete::<NodeEncryptionKind>("n1").await.unwrap());
    let spec = TrustBundleSpec {
        certificates: "certificates".to_owned(),
        revocation_lists: "lists".to_owned(),
    };
    let mut wanted: Object<TrustBundleKind> = Object::new("cluster", spec);
    wanted.status = bundle_status();
    kept(world, wanted).await;
    let mut wanted: Object<ExternalConnectionKind> =
        Object::new("office", serde_json::from_value(external::whole()).unwrap());
    wanted.status = judged(&wanted, Some(("Invalid", "a sentence".to_owned())), TIME);
    kept(world, wanted).await;
}

/// What our own validation says of a spec as a program reads it.
pub(crate) fn ours<K: Kind>(name: &str, spec: &Value) -> Result<(), String> {
    let spec = serde_json::from_value(spec.clone()).map_err(|e| e.to_string())?;
    K::validate(name, &spec)
}

pub(crate) async fn theirs<K: Kind>(world: &World, name: &str, spec: &Value) -> Result<(), String> {
    let api = world.raw_of::<K>().await;
    let object = json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": K::KIND,
        "metadata": { "name": name }, "spec": spec,
    });
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply("test").validation_strict()
    };
    match api.patch(name, &params, &Patch::Apply(object)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422 | 500) => {
            // An apply of a field that no schema has fails before it is validated.
            Err(status.message)
        }
        Err(error) => panic!("{name}: {spec}: {error}"),
    }
}

pub(crate) async fn both_refuse(world: &World) {
    let certificates = |ca: &str, node: &str, renew: &str| json!({ "certificates": { "caLifetime": ca, "nodeLifetime": node, "renewAfter": renew } });
    let good = [
        json!({}),
        certificates("10y", "10y", "4.5y"),
        certificates("3h", "7200s", "119m"),
        json!({ "esp": { "lifetime": "1000y" }, "overlay": { "port": 1 } }),
        json!({ "overlay": { "podCIDRs": ["10.0.0.0/8", "fd00::/8"] } }),
    ];
    for spec in good {
        assert_eq!(ours::<EncryptionPolicyKind>("cluster", &spec), Ok(()));
        let said = theirs::<EncryptionPolicyKind>(world, "cluster", &spec).await;
        assert_eq!(said, Ok(()), "{spec}");
    }
    let bad = [
        ("other", json!({}), "cluster"),
        ("cluster", json!({ "modus": "Full" }), "modus"),
        ("cluster", json!({ "mode": "Half" }), "mode"),
        ("cluster", certificates("10y", "5y", "5y"), "renewAfter"),
        ("cluster", certificates("10y", "2h", "121m"), "renewAfter"),
        ("cluster", certificates("4y", "5y", "1y"), "nodeLifetime"),
        ("cluster", certificates("10y", "5 y", "1y"), "nodeLifetime"),
        ("cluster", certificates("1001y", "5y", "1y"), "1000y"),
        ("cluster", json!({ "ike": { "lifetime": "0s" } }), "1s"),
        ("cluster", json!({ "ike": { "ciphers": [] } }), "ciphers"),
        (
            "cluster",
            json!({ "ike": { "keyExchanges": ["P-256", "X25519", "P-256"] } }),
            "keyExchanges",
        ),
        (
            "cluster",
            json!({ "esp": { "ciphers": ["AES-CBC-256"] } }),
            "ciphers",
        ),
        ("cluster", json!({ "esp": { "perCpu": 128 } }), "perCpu"),
        ("cluster", json!({ "esp": { "bytes": -1 } }), "bytes"),
        ("cluster", json!({ "overlay": { "port": 0 } }), "port"),
        ("cluster", json!({ "overlay": { "port": 65536 } }), "port"),
        (
            "cluster",
            json!({ "overlay": { "podCIDRs": ["10.0.0.0/33"] } }),
            "podCIDRs",
        ),
    ];
    for (name, spec, word) in bad {
        ours::<EncryptionPolicyKind>(name, &spec).expect_err(&spec.to_string());
        let said = theirs::<EncryptionPolicyKind>(world, name, &spec).await;
        let said = said.expect_err(&spec.to_string());
        assert!(said.contains(word), "{spec}: {said}");
    }
    let nodes = |change: &dyn Fn(&mut Value)| {
        let mut spec = json!(node("n1").spec);
        change(&mut spec);
        spec
    };
    let bad = [
        nodes(&|spec| spec["addresses"] = json!([])),
        nodes(&|spec| spec["addresses"] = json!(["10.0.0"])),
        nodes(&|spec| spec["addresses"] = json!(vec!["10.0.0.1"; 17])),
        nodes(&|spec| spec["podCIDRs"] = json!(vec!["10.0.0.0/8"; 65])),
        nodes(&|spec| spec["uid"] = json!("a b")),
        nodes(&|spec| spec["bootId"] = json!("x".repeat(65))),
        nodes(&|spec| spec["datapath"] = Value::Null),
    ];
    let good = nodes(&|_| {});
    assert_eq!(
        theirs::<NodeEncryptionKind>(world, "n1", &good).await,
        Ok(())
    );
    for spec in bad {
        ours::<NodeEncryptionKind>("n1", &spec).expect_err(&spec.to_string());
        let said = theirs::<NodeEncryptionKind>(world, "n1", &spec).await;
        said.expect_err(&spec.to_string());
    }
    // A person hears of it through the store as well.
    let mut wanted = policy(Mode::Full);
    wanted.spec.esp.bytes = u64::MAX;
    let refused = world.store(Writer::Cli).apply(wanted).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
}

pub(crate) async fn defaults(world: &World) {
    let api = world.raw_of::<EncryptionPolicyKind>().await;
    let object = json!({
        "apiVersion": "testudo.dev/v1alpha1", "kind": "EncryptionPolicy",
        "metadata": { "name": "cluster" }, "spec": { "ike": {} },
    });
    let params = PatchParams::apply("helm");
    let made = api.patch("cluster", &params, &Patch::Apply(object)).await;
    let spec = made.unwrap().data["spec"].clone();
    assert_eq!(spec, json!(EncryptionPolicySpec::default()));
    let store = world.store(Writer::Cli);
    assert!(
        store
            .delete::<EncryptionPolicyKind>("cluster")
            .await
            .unwrap()
    );
}

pub(crate) async fn columns(world: &World) {
    let store = world.store(Writer::Controller);
    let mut wanted = policy(Mode::Full);
    wanted.status = policy_status();
    store.apply(wanted).await.unwrap();
    let mut wanted = node("n1");
    wanted.status = node_status();
    store.apply(wanted).await.unwrap();
    let mut wanted: Object<ExternalConnectionKind> =
        Object::new("office", serde_json::from_value(external::whole()).unwrap());
    wanted.status = judged(&wanted, None, TIME);
    store.apply(wanted).await.unwrap();
    let shown = world.kubectl(&["get", "encryptionpolicy,nodeencryption,externalconnection"]);
    eprintln!("{shown}");
    for word in [
        "Full",
        "Strict",
        "11",
        "12",
        "10.0.0.1",
        "1400",
        "2027-01-15",
        "203.0.113.7",
        "NotServed",
    ] {
        assert!(shown.contains(word), "{word}:\n{shown}");
    }
    assert!(!shown.contains("<invalid>"), "{shown}");
    let wide = world.kubectl(&["get", "testudo", "-o", "wide"]);
    eprintln!("{wide}");
    assert!(wide.contains("a sentence") && wide.contains("0a"), "{wide}");
    assert!(wide.contains("agents of this version"), "{wide}");
    for short in ["encpol", "nodeenc", "trustb", "extconn"] {
        world.kubectl(&["get", short]);
    }
    store
        .delete::<EncryptionPolicyKind>("cluster")
        .await
        .unwrap();
    store.delete::<NodeEncryptionKind>("n1").await.unwrap();
    store
        .delete::<ExternalConnectionKind>("office")
        .await
        .unwrap();
}
