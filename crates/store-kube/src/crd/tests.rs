use super::*;

/// Every schema of the tree, with its path.
fn walk(schema: &Value, path: String, seen: &mut dyn FnMut(&Value, &str)) {
    seen(schema, &path);
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        walk(inner, format!("{path}.{name}"), seen);
    }
    if let Some(items) = schema.get("items") {
        walk(items, format!("{path}[]"), seen);
    }
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// KEP-1979 and the API reference: what a structural schema may not have.
#[test]
fn schemas_are_structural_and_every_field_is_described() {
    for definition in all() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let mut fields = 0;
        walk(schema(&definition), kind.to_owned(), &mut |schema, path| {
            fields += 1;
            assert!(schema["type"].is_string(), "{path}: {schema}");
            for keyword in [
                "$ref", "$defs", "oneOf", "anyOf", "allOf", "const", "title", "$schema",
            ] {
                assert!(schema.get(keyword).is_none(), "{path} has {keyword}");
            }
            // A map with the user's keys has no properties beside them.
            if let Some(values) = schema.get("additionalProperties") {
                assert!(values["type"].is_string(), "{path}");
                assert!(schema.get("properties").is_none(), "{path}");
            }
            if schema["type"] == "array" {
                assert!(schema["items"].is_object(), "{path}");
            }
            let text = schema["description"].as_str().unwrap_or_default();
            assert!(!text.contains("[`"), "{path}: {text}");
            let own = path.contains(".spec.") || path.contains(".status.");
            assert!(!own || path.ends_with("[]") || !text.is_empty(), "{path}");
            if path.contains(".status") {
                assert!(schema.get("default").is_none(), "{path}");
            }
        });
        assert!(fields > 5, "{kind}");
    }
}

#[test]
fn the_defaults_are_those_of_the_types() {
    let spec = spec_schema("EncryptionPolicy").unwrap();
    let filled: serde_json::Map<String, Value> = spec["properties"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(name, schema)| Some((name.clone(), schema.get("default")?.clone())))
        .collect();
    let ours = serde_json::to_value(testudo_model::EncryptionPolicySpec::default()).unwrap();
    assert_eq!(Value::Object(filled), ours);
}

#[test]
fn conditions_are_a_map_by_type() {
    for definition in all() {
        let status = &schema(&definition)["properties"]["status"]["properties"];
        if let Some(conditions) = status.get("conditions") {
            assert_eq!(conditions["x-kubernetes-list-type"], "map");
            assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
            let fields = &conditions["items"]["properties"];
            assert!(fields.get("observedGeneration").is_some());
            assert_eq!(fields["lastTransitionTime"]["format"], "date-time");
        }
    }
}

#[test]
fn names_follow_the_kinds() {
    let names: Vec<_> = all()
        .iter()
        .map(|d| d["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "encryptionpolicies.testudo.dev",
            "nodeencryptions.testudo.dev",
            "trustbundles.testudo.dev",
            "externalconnections.testudo.dev"
        ]
    );
    assert!(spec_schema("CertificateRequest").is_none());
}

#[test]
fn the_manifest_says_what_the_definitions_say() {
    let text = manifest();
    let documents: Vec<Value> = text
        .split("---\n")
        .map(|document| serde_saphyr::from_str(document).expect(document))
        .collect();
    assert_eq!(documents, all());
    assert!(text.lines().all(|line| line.len() < 1500));
}

/// Every write of a node's status goes to every agent, with its managedFields.
#[test]
fn only_a_nodes_status_is_kept_as_one_field() {
    for definition in all() {
        let kind = &definition["spec"]["names"]["kind"];
        let whole = &schema(&definition)["properties"]["status"]["x-kubernetes-map-type"];
        assert_eq!(whole == "atomic", kind == "NodeEncryption", "{kind}");
        let spec = &schema(&definition)["properties"]["spec"];
        assert!(spec.get("x-kubernetes-map-type").is_none(), "{kind}");
    }
}

/// What people and programs rely on of the kind for hosts outside.
#[test]
fn an_external_connections_definition_says_what_it_is() {
    let all = all();
    let ours = all.last().unwrap();
    let names = &ours["spec"]["names"];
    assert_eq!(names["kind"], "ExternalConnection");
    assert_eq!(names["shortNames"], json!(["extconn"]));
    assert_eq!(names["categories"], json!(["testudo"]));
    assert_eq!(ours["spec"]["scope"], "Cluster");
    let version = &ours["spec"]["versions"][0];
    assert_eq!(version["subresources"], json!({ "status": {} }));
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let shown = columns.iter().filter(|c| c.get("priority").is_none());
    let shown: Vec<&str> = shown.map(|c| c["name"].as_str().unwrap()).collect();
    let wanted = [
        "Type",
        "Right",
        "Right-Subnets",
        "Accepted",
        "Programmed",
        "Reason",
        "Age",
    ];
    assert_eq!(shown, wanted);
    let spec = spec_schema("ExternalConnection").unwrap();
    assert_eq!(spec["required"], json!(["right"]));
    // The defaults are those of the types.
    let properties = spec["properties"].as_object().unwrap();
    let mut filled: serde_json::Map<String, Value> = properties
        .iter()
        .filter_map(|(name, schema)| Some((name.clone(), schema.get("default")?.clone())))
        .collect();
    filled.insert("right".to_owned(), json!("gate.example.com"));
    let right = "gate.example.com".parse().unwrap();
    let plain = testudo_model::ExternalConnectionSpec::to(right);
    assert_eq!(Value::Object(filled), json!(plain));
    // A key has no place in it.
    assert_eq!(properties["psk"]["type"], "object");
    assert_eq!(properties["psk"]["required"], json!(["secretName"]));
    let labels = &properties["nodeSelector"]["properties"]["matchLabels"];
    assert_eq!(labels["additionalProperties"]["type"], "string");
    assert_eq!(
        properties["dpdAction"]["enum"],
        json!(["hold", "clear", "restart"])
    );
    assert_eq!(properties["ikev2"]["enum"], json!(["insist"]));
    // Every rule says to which field it belongs, and no two the same thing.
    let mut messages = Vec::new();
    walk(spec, String::new(), &mut |schema, path| {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let message = rule["message"].as_str().unwrap().to_owned();
            assert!(message.contains(": "), "{path}: {message}");
            messages.push((message, rule["rule"].to_string()));
        }
    });
    assert!(messages.len() >= 50, "{}", messages.len());
    let count = messages.len();
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), count);
}
