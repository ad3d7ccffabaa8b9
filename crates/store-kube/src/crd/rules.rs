//! What the types do not say: rules in CEL, bounds, columns, short names.

use serde_json::{Value, json};
use testudo_model::policy::MOST_PER_CPU;

use super::external;

/// Adds a kind's rules to its schema.
pub(super) fn add(kind: &str, schema: &mut Value) {
    let spec = "/properties/spec/properties";
    match kind {
        "EncryptionPolicy" => policy(schema),
        "NodeEncryption" => {
            let addresses = format!("{spec}/addresses");
            bound(schema, &addresses, json!({ "minItems": 1, "maxItems": 16 }));
            let items = format!("{addresses}/items");
            bound(schema, &items, json!({ "maxLength": 45 }));
            rule(
                schema,
                &items,
                "isIP(self)",
                "an address of IPv4 or IPv6 is wanted",
            );
            prefixes(schema, &format!("{spec}/podCIDRs"));
            // Its one writer writes it whole, and each write goes to every agent: the names of all its fields
            // in managedFields would be half of that.
            let whole = json!({ "x-kubernetes-map-type": "atomic" });
            bound(schema, "/properties/status", whole);
            for field in ["datapath", "agentSocket"] {
                bound(
                    schema,
                    &format!("{spec}/{field}"),
                    json!({ "maxLength": 128 }),
                );
            }
        }
        "TrustBundle" => {
            named_cluster(kind, schema);
            let longest = json!({ "maxLength": 524_288 });
            for field in ["certificates", "revocationLists"] {
                bound(schema, &format!("{spec}/{field}"), longest.clone());
            }
        }
        "ExternalConnection" => external::add(schema),
        _ => {}
    }
    if schema
        .pointer("/properties/status/properties/conditions")
        .is_some()
    {
        let conditions = "/properties/status/properties/conditions";
        let by_type = json!({
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        });
        bound(schema, conditions, by_type);
    }
}

fn policy(schema: &mut Value) {
    named_cluster("EncryptionPolicy", schema);
    let spec = "/properties/spec/properties";
    let certificates = format!("{spec}/certificates");
    rule(
        schema,
        &certificates,
        &format!(
            "{} < {}",
            seconds("self.renewAfter"),
            seconds("self.nodeLifetime")
        ),
        "renewAfter must be before the certificate's end, nodeLifetime",
    );
    rule(
        schema,
        &certificates,
        &format!(
            "{} <= {}",
            seconds("self.nodeLifetime"),
            seconds("self.caLifetime")
        ),
        "nodeLifetime must not be longer than caLifetime",
    );
    for field in [
        "certificates/properties/caLifetime",
        "certificates/properties/nodeLifetime",
        "certificates/properties/renewAfter",
        "ike/properties/lifetime",
        "esp/properties/lifetime",
    ] {
        let length = seconds("self");
        rule(
            schema,
            &format!("{spec}/{field}"),
            &format!("{length} >= 1.0 && {length} <= 31536000000.0"),
            "a length of time is at least 1s and at most 1000y",
        );
    }
    for field in [
        "ike/properties/ciphers",
        "ike/properties/keyExchanges",
        "esp/properties/ciphers",
    ] {
        let path = format!("{spec}/{field}");
        bound(schema, &path, json!({ "minItems": 1, "maxItems": 8 }));
        let once = "self.all(x, self.exists_one(y, y == x))";
        rule(schema, &path, once, "no name may stand there twice");
    }
    let most = json!({ "maximum": MOST_PER_CPU });
    bound(schema, &format!("{spec}/esp/properties/perCpu"), most);
    let port = json!({ "minimum": 1, "maximum": 65535 });
    bound(schema, &format!("{spec}/overlay/properties/port"), port);
    prefixes(schema, &format!("{spec}/overlay/properties/podCIDRs"));
}

/// The seconds of a length of time, of which the pattern says that it is one.
pub(super) fn seconds(field: &str) -> String {
    format!(
        "double({field}.substring(0, size({field}) - 1)) * \
         {{'y': 31536000.0, 'w': 604800.0, 'd': 86400.0, 'h': 3600.0, 'm': 60.0, 's': 1.0}}\
         [{field}.substring(size({field}) - 1)]"
    )
}

fn named_cluster(kind: &str, schema: &mut Value) {
    let text = format!("metadata.name: the one {kind} is named \"cluster\"");
    rule(schema, "", "self.metadata.name == 'cluster'", &text);
}

fn prefixes(schema: &mut Value, path: &str) {
    bound(schema, path, json!({ "maxItems": 64 }));
    let items = format!("{path}/items");
    bound(schema, &items, json!({ "maxLength": 64 }));
    rule(
        schema,
        &items,
        "isCIDR(self)",
        "a prefix is wanted, as in 10.244.0.0/16",
    );
}

/// Adds a rule in CEL to the schema at a path (RFC 6901).
pub(super) fn rule(schema: &mut Value, path: &str, rule: &str, message: &str) {
    let at = at(schema, path);
    if at.get("x-kubernetes-validations").is_none() {
        at["x-kubernetes-validations"] = json!([]);
    }
    if let Some(rules) = at["x-kubernetes-validations"].as_array_mut() {
        rules.push(json!({ "rule": rule, "message": message }));
    }
}

/// Sets keywords of the schema at a path.
pub(super) fn bound(schema: &mut Value, path: &str, keywords: Value) {
    let at = at(schema, path);
    for (key, value) in keywords.as_object().into_iter().flatten() {
        at[key.as_str()] = value.clone();
    }
}

fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    schema
        .pointer_mut(path)
        .expect("the rules name fields that the types have: a test walks them all")
}

/// What people type.
pub(super) fn short_names(kind: &str) -> Value {
    match kind {
        "EncryptionPolicy" => json!(["encpol"]),
        "NodeEncryption" => json!(["nodeenc"]),
        "ExternalConnection" => json!(["extconn"]),
        _ => json!(["trustb"]),
    }
}

/// What `kubectl get` shows; those of priority 1 only with `-o wide`.
pub(super) fn columns(kind: &str) -> Value {
    let column = |name: &str, kind: &str, path: &str| json!({ "name": name, "type": kind, "jsonPath": path });
    let wide = |name: &str, kind: &str, path: &str| json!({ "name": name, "type": kind, "jsonPath": path, "priority": 1 });
    let condition =
        |kind: &str, field: &str| format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
    let age = column("Age", "date", ".metadata.creationTimestamp");
    match kind {
        "EncryptionPolicy" => json!([
            column("Mode", "string", ".spec.mode"),
            column("Enforcement", "string", ".spec.enforcement"),
            column("Phase", "string", ".status.phase"),
            column("Target", "string", ".status.target"),
            column("Nodes", "integer", ".status.nodes"),
            column("There", "integer", ".status.nodesAcknowledged"),
            column("Tunnels", "integer", ".status.tunnelsUp"),
            column("Expected", "integer", ".status.tunnelsExpected"),
            column("Ready", "string", &condition("Ready", "status")),
            age,
            wide("Keying", "string", ".spec.keying"),
            wide("Overlay", "string", ".spec.overlay.type"),
            wide("Degraded", "string", &condition("Degraded", "status")),
            wide("Message", "string", &condition("Degraded", "message")),
            wide("Waiting-On", "string", ".status.waitingOn"),
            wide(
                "Renewing",
                "string",
                ".status.certificateRotation.waitingOn"
            ),
        ]),
        "NodeEncryption" => json!([
            column("Phase", "string", ".status.acknowledged.phase"),
            column("Datapath", "string", ".spec.datapath"),
            column("Address", "string", ".spec.addresses[0]"),
            column("Tunnels", "integer", ".status.tunnelsUp"),
            column("Expected", "integer", ".status.tunnelsExpected"),
            column("MTU", "integer", ".status.effectiveMtu"),
            column(
                "Certificate-Until",
                "string",
                ".status.certificate.notAfter"
            ),
            column("Ready", "string", &condition("Ready", "status")),
            age,
            wide("Serial", "string", ".status.certificate.serial"),
            wide("CA", "string", ".status.authorities.presented"),
            wide("Version", "string", ".status.agentVersion"),
            wide("Message", "string", &condition("Degraded", "message")),
        ]),
        "ExternalConnection" => json!([
            column("Type", "string", ".spec.type"),
            column("Right", "string", ".spec.right"),
            column("Right-Subnets", "string", ".spec.rightSubnets"),
            column("Accepted", "string", &condition("Accepted", "status")),
            column("Programmed", "string", &condition("Programmed", "status")),
            column("Reason", "string", &condition("Programmed", "reason")),
            age,
            wide("Left", "string", ".spec.left"),
            wide("Left-Subnets", "string", ".spec.leftSubnets"),
            wide("Certificate", "string", ".spec.leftCert.secretName"),
            wide("PSK", "string", ".spec.psk.secretName"),
            wide("Nodes", "string", ".spec.nodeSelector"),
            wide("Refused", "string", &condition("Accepted", "message")),
            wide("Message", "string", &condition("Programmed", "message")),
        ]),
        _ => json!([
            column("Phase", "string", ".status.phase"),
            column("Signer", "string", ".status.signer"),
            column("Signer-Until", "string", ".status.signerNotAfter"),
            column("Rotation", "integer", ".status.rotation"),
            column("Waiting", "integer", ".status.waiting"),
            age,
            wide("Other", "string", ".status.other"),
            wide("Message", "string", ".status.message"),
        ]),
    }
}
