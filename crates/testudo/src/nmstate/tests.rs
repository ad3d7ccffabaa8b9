use serde_json::json;
use testudo_model::external::{ConnectionType, Endpoint, Identity};
use testudo_store::{DirStore, Store};

use super::*;

/// The two examples of OpenShift's documentation, but for what stands in angle brackets there.
fn openshift(kind: &str) -> Value {
    serde_saphyr::from_str(&format!(
        "apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata:
  name: ipsec-config
spec:
  nodeSelector:
    kubernetes.io/hostname: \"n1.example.com\"
  desiredState:
    interfaces:
    - name: host_conn
      type: ipsec
      libreswan:
        left: n1.example.com
        leftid: '%fromcert'
        leftrsasigkey: '%cert'
        leftcert: left_server
        leftmodecfgclient: false
        right: host.example.com
        rightid: '%fromcert'
        rightrsasigkey: '%cert'
        rightsubnet: 10.1.2.3/32
        ikev2: insist
        type: {kind}
"
    ))
    .unwrap()
}

/// The policy with other fields of `libreswan`; `null` takes one away.
fn changed(changes: Value) -> Value {
    let mut policy = openshift("tunnel");
    let words = &mut policy["spec"]["desiredState"]["interfaces"][0]["libreswan"];
    for (key, value) in changes.as_object().unwrap() {
        words[key.as_str()] = value.clone();
    }
    words
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    policy
}

fn read(changes: Value) -> Result<testudo_model::ExternalConnectionSpec, String> {
    let policy = Policy::read(&changed(changes))?;
    let made = policy.interfaces[0].connection.clone();
    Ok(made.unwrap().spec)
}

#[test]
fn the_examples_of_openshift_are_read_as_they_are() {
    for (word, kind) in [
        ("tunnel", ConnectionType::Tunnel),
        ("transport", ConnectionType::Transport),
    ] {
        let policy = Policy::read(&openshift(word)).unwrap();
        assert!(policy.passed_over.is_empty(), "{:?}", policy.passed_over);
        let made = policy.interfaces[0].connection.as_ref().unwrap();
        assert_eq!(made.name(), "host-conn");
        let spec = &made.spec;
        assert_eq!(spec.kind, kind);
        assert_eq!(spec.right, Endpoint::Host("host.example.com".to_owned()));
        assert_eq!(spec.left_id, Some(Identity::FromCertificate));
        let cert = spec.left_cert.as_ref().unwrap();
        assert_eq!(cert.secret_name.as_str(), "left-server");
        assert_eq!(spec.right_subnets, ["10.1.2.3/32".parse().unwrap()]);
        let labels = &spec.node_selector.match_labels;
        assert_eq!(labels["kubernetes.io/hostname"], "n1.example.com");
    }
}

#[test]
fn all_33_fields_have_a_place_or_a_reason() {
    let spec = read(json!({
        "right": "203.0.113.7", "rightid": "gate.example.com", "rightcert": "gate",
        "rightca": "%same", "rightsubnet": null,
        "rightsubnets": "{198.51.100.0/24 203.0.113.0/28}", "rightprotoport": "17/4789",
        "left": "192.0.2.1", "leftsendcert": "sendifasked", "leftsubnet": "10.0.0.0/8",
        "leftprotoport": 17, "authby": "rsa-sha2_256,ecdsa,rsa-sha2",
        "ike": "AES_GCM_256-sha512-ecp_256,aes256-sha2;modp2048", "esp": "aes_gcm256-null",
        "ikelifetime": "24h", "salifetime": 3600, "dpddelay": 30, "dpdtimeout": "120",
        "dpdaction": "restart", "ipsec-interface": "99", "hostaddrfamily": "ipv4",
        "clientaddrfamily": "ipv4", "require-id-on-certificate": false, "nm-auto-defaults": false,
    }))
    .unwrap();
    let mut ours = serde_json::to_value(&spec).unwrap();
    ours.as_object_mut().unwrap().remove("nodeSelector");
    let wanted = json!({
        "type": "tunnel", "ikev2": "insist",
        "left": "192.0.2.1", "leftId": "%fromcert", "leftSubnets": ["10.0.0.0/8"],
        "leftProtoPort": "udp", "leftCert": { "secretName": "left-server", "key": "keystore.p12" },
        "leftRsaSigKey": "%cert", "leftSendCert": "sometimes", "leftModeCfgClient": false,
        "right": "203.0.113.7", "rightId": "@gate.example.com",
        "rightSubnets": ["198.51.100.0/24", "203.0.113.0/28"], "rightProtoPort": "udp/4789",
        "rightCert": { "secretName": "gate", "key": "tls.crt" }, "rightCa": "%same",
        "rightRsaSigKey": "%cert", "authBy": ["rsa-sha2", "ecdsa"],
        "requireIdOnCertificate": false,
        "ike": ["aes_gcm256-sha2_512-dh19", "aes256-sha2_256-dh14"], "esp": ["aes_gcm256"],
        "ikeLifetime": "1d", "saLifetime": "1h", "dpdDelay": "30s", "dpdTimeout": "2m",
        "dpdAction": "restart", "ipsecInterface": 99, "hostAddrFamily": "ipv4",
        "clientAddrFamily": "ipv4",
    });
    assert_eq!(ours, wanted);
    // The 33rd, and leftsubnets.
    let text = read(json!({ "psk": "hunter2" })).unwrap_err();
    assert!(
        text.contains("psk: {secretName: NAME}") && !text.contains("hunter2"),
        "{text}"
    );
    let spec = read(json!({ "leftsubnets": ["10.0.0.0/8", "172.16.0.0/12"] })).unwrap();
    assert_eq!(spec.left_subnets.len(), 2);
}

#[test]
fn what_networkmanager_fills_in_is_filled_in() {
    let spec = read(json!({ "leftmodecfgclient": null, "rightsubnet": null })).unwrap();
    assert!(spec.left_mode_cfg_client);
    assert_eq!(spec.right_subnets, ["0.0.0.0/0".parse().unwrap()]);
    let sixth = json!({ "clientaddrfamily": "ipv6", "rightsubnet": null });
    assert_eq!(
        read(sixth).unwrap().right_subnets,
        ["::/0".parse().unwrap()]
    );
    let bare = json!({ "nm-auto-defaults": false, "leftmodecfgclient": null, "rightsubnet": null,
        "ikev2": null });
    let spec = read(bare).unwrap();
    assert!(!spec.left_mode_cfg_client && spec.right_subnets.is_empty());
    // What comes of it is said where it cannot be.
    let text = read(json!({ "type": "transport", "leftmodecfgclient": null })).unwrap_err();
    assert!(text.contains("filled in leftmodecfgclient: true"), "{text}");
    for (value, number) in [
        (json!("yes"), Some(1)),
        (json!(true), Some(1)),
        (json!("no"), None),
        (json!(7), Some(7)),
    ] {
        let spec = read(json!({ "ipsec-interface": value })).unwrap();
        assert_eq!(spec.ipsec_interface, number);
    }
    let spec = read(json!({ "dpddelay": 0, "dpdtimeout": "0s" })).unwrap();
    assert_eq!((spec.dpd_delay, spec.dpd_timeout), (None, None));
}

#[test]
fn each_refusal_names_its_field() {
    for (changes, word) in [
        (json!({ "rigth": "x" }), "rigth"),
        (json!({ "right": null }), "right"),
        (json!({ "right": "%any" }), "libreswan.right: "),
        (json!({ "ikev2": "no" }), "libreswan.ikev2: "),
        (json!({ "ikev2": false }), "libreswan.ikev2: "),
        (json!({ "ikev2": null }), "write ikev2: insist"),
        (json!({ "leftcert": "a b" }), "libreswan.leftcert: "),
        (
            json!({ "rightrsasigkey": "0sAwEAAesF" }),
            "libreswan.rightrsasigkey: ",
        ),
        (json!({ "rightid": "%any" }), "libreswan.rightid: "),
        (
            json!({ "rightsubnets": "10.0.0.0/8" }),
            "libreswan.rightsubnet: ",
        ),
        (
            json!({ "leftsubnet": "10.0.0.0/33" }),
            "libreswan.leftsubnet: ",
        ),
        (
            json!({ "leftprotoport": "gre/1" }),
            "libreswan.leftprotoport: ",
        ),
        (json!({ "authby": "rsasig,null" }), "libreswan.authby: "),
        (json!({ "ike": "aes_gcm256,3des" }), "libreswan.ike: "),
        (json!({ "esp": "aes_gcm256+aes128" }), "libreswan.esp: "),
        (json!({ "ikelifetime": "soon" }), "libreswan.ikelifetime: "),
        (
            json!({ "dpddelay": "30s", "dpdtimeout": 30 }),
            "spec.dpdTimeout: ",
        ),
        (json!({ "dpdaction": "wait" }), "wait"),
        (
            json!({ "ipsec-interface": "ipsec1" }),
            "libreswan.ipsec-interface: ",
        ),
        (
            json!({ "leftsendcert": "perhaps" }),
            "libreswan.leftsendcert: ",
        ),
        (json!({ "type": "passthrough" }), "passthrough"),
        (json!({ "leftcert": null }), "spec.leftCert: "),
    ] {
        let text = read(changes.clone()).expect_err(&changes.to_string());
        assert!(
            text.starts_with("spec.desiredState.interfaces[0]: "),
            "{changes}: {text}"
        );
        assert!(text.contains(word), "{changes}: {text}");
    }
    for (path, value, word) in [
        ("/kind", json!("NodeNetworkState"), "NodeNetworkState"),
        ("/spec/nodeSelector", json!("n1"), "spec.nodeSelector"),
        ("/spec/desiredState/interfaces", json!([]), "no interface"),
        (
            "/spec/desiredState/interfaces/0/state",
            json!("down"),
            "absent",
        ),
        ("/spec/desiredState/interfaces/0/mtu", json!(1400), "mtu"),
        (
            "/spec/desiredState/interfaces/0/name",
            json!("a b"),
            "name of an object",
        ),
    ] {
        let mut policy = openshift("tunnel");
        let (parent, key) = path.rsplit_once('/').unwrap();
        policy.pointer_mut(parent).unwrap()[key] = value;
        let text = Policy::read(&policy).expect_err(path);
        assert!(text.contains(word), "{path}: {text}");
    }
}

#[test]
fn what_is_not_ipsec_is_passed_over_and_named() {
    let mut policy = openshift("tunnel");
    policy["spec"]["maxUnavailable"] = json!(1);
    policy["spec"]["desiredState"]["routes"] = json!({});
    let interfaces = policy["spec"]["desiredState"]["interfaces"]
        .as_array_mut()
        .unwrap();
    interfaces[0]["ipv4"] = json!({ "enabled": true, "dhcp": true });
    interfaces.push(json!({ "name": "eth1", "type": "ethernet" }));
    let read = Policy::read(&policy).unwrap();
    assert_eq!(read.interfaces.len(), 1);
    let mut passed = read.passed_over;
    passed.sort();
    let wanted = [
        "spec.desiredState.interfaces[0].ipv4",
        "spec.desiredState.interfaces[1]",
        "spec.desiredState.routes",
        "spec.maxUnavailable",
    ];
    assert_eq!(passed, wanted);
}

fn absent(node: &str) -> Policy {
    let policy = json!({
        "kind": "NodeNetworkConfigurationPolicy", "apiVersion": "nmstate.io/v1",
        "metadata": { "name": "remove" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "desiredState": {
                "interfaces": [{ "name": "host_conn", "type": "ipsec", "state": "absent" }],
            },
        },
    });
    Policy::read(&policy).unwrap()
}

#[tokio::test]
async fn an_interface_that_is_to_be_absent_goes_from_its_nodes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let first = Policy::read(&openshift("tunnel")).unwrap();
    let mut second = openshift("tunnel");
    second["metadata"]["name"] = json!("other_nodes");
    second["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": "n2" });
    let second = Policy::read(&second).unwrap();
    let apply = async |policies: &[Policy]| {
        let mut names = Vec::new();
        for step in steps(&store, policies).await.unwrap() {
            match step {
                Step::Apply(made) => {
                    names.push(made.name().to_owned());
                    store.apply(*made).await.unwrap();
                }
                Step::Remove(name) => {
                    assert!(store.delete::<ExternalConnectionKind>(&name).await.unwrap());
                    names.push(format!("-{name}"));
                }
                Step::Absent(name) => names.push(format!("no {name}")),
            }
        }
        names
    };
    let both = [first.clone(), second.clone()];
    assert_eq!(apply(&both).await, ["host-conn", "host-conn.other-nodes"]);
    // Written again each is the same one.
    assert_eq!(
        apply(&[second, first]).await,
        ["host-conn.other-nodes", "host-conn"]
    );
    assert_eq!(apply(&[absent("n2")]).await, ["-host-conn.other-nodes"]);
    assert_eq!(apply(&[absent("n2")]).await, ["no host-conn"]);
    assert_eq!(apply(&[absent("n1.example.com")]).await, ["-host-conn"]);
    // One that a person wrote under that name is not taken.
    let spec = read(json!({})).unwrap();
    let theirs = ExternalConnection::new("host-conn", spec);
    store.create(theirs).await.unwrap();
    let refused = steps(&store, &both).await.unwrap_err().to_string();
    assert!(refused.contains("another name"), "{refused}");
    assert_eq!(apply(&[absent("n1.example.com")]).await, ["no host-conn"]);
}
