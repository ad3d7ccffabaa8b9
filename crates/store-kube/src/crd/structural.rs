//! A type's schema as an API server wants it: structural, without references, one type a field.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The formats that a CRD may have.
const FORMATS: [&str; 4] = ["date-time", "int32", "int64", "double"];

/// The structural schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    structural(schema.to_value())
}

/// Takes the defaults out: a status says what was observed.
pub(super) fn without_defaults(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A field may be called so; a default is no schema.
            if map.contains_key("type") {
                map.remove("default");
            }
            map.values_mut().for_each(without_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(without_defaults),
        _ => {}
    }
}

fn structural(schema: Value) -> Value {
    let Value::Object(map) = schema else {
        return json!({ "x-kubernetes-preserve-unknown-fields": true });
    };
    let map = one_of_names(absent_instead_of_null(map));
    let mut out = Map::new();
    for (key, value) in map {
        match key.as_str() {
            // A map whose keys are the user's has a schema for its values.
            "additionalProperties" if value.is_object() => {
                out.insert(key, structural(value));
            }
            "$schema" | "title" | "additionalProperties" | "examples" => {}
            "default" if value.is_null() => {}
            "type" => {
                let mut names = value.as_array().into_iter().flatten();
                let named = names.find(|name| *name != "null").cloned();
                out.insert(key, named.unwrap_or(value));
            }
            "const" => {
                out.insert("enum".to_owned(), json!([value]));
            }
            "format" => format(value.as_str().unwrap_or_default(), &mut out),
            "description" => {
                let text = value.as_str().unwrap_or_default();
                out.insert(key, json!(described(text)));
            }
            "properties" => {
                let inner = value.as_object().cloned().unwrap_or_default();
                let inner: Map<String, Value> = inner
                    .into_iter()
                    .map(|(name, schema)| (name, structural(schema)))
                    .collect();
                out.insert(key, Value::Object(inner));
            }
            "items" => {
                out.insert(key, structural(value));
            }
            _ => {
                out.insert(key, value);
            }
        }
    }
    Value::Object(out)
}

/// `Option` is a field that may be left out; null is nothing that anybody writes.
fn absent_instead_of_null(mut map: Map<String, Value>) -> Map<String, Value> {
    let Some(Value::Array(variants)) = map.get("anyOf") else {
        return map;
    };
    let mut real = variants.iter().filter(|v| v["type"] != "null");
    let (Some(Value::Object(one)), None) = (real.next(), real.next()) else {
        return map;
    };
    let one = one.clone();
    map.remove("anyOf");
    for (key, value) in one {
        map.entry(key).or_insert(value);
    }
    map
}

/// An enum whose variants have descriptions of their own.
fn one_of_names(mut map: Map<String, Value>) -> Map<String, Value> {
    let Some(Value::Array(variants)) = map.get("oneOf") else {
        return map;
    };
    let names: Vec<Value> = variants
        .iter()
        .flat_map(
            |variant| match (variant.get("const"), variant.get("enum")) {
                (Some(name), _) => vec![name.clone()],
                (None, Some(Value::Array(names))) => names.clone(),
                _ => Vec::new(),
            },
        )
        .collect();
    let told = variants.iter().filter_map(|variant| {
        let name = variant.get("const")?.as_str()?;
        let text = variant.get("description")?.as_str()?;
        Some(format!("{name}: {text}"))
    });
    let mut text = vec![
        map.get("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    ];
    text.extend(told);
    text.retain(|line| !line.is_empty());
    map.insert("description".to_owned(), json!(text.join("\n")));
    map.insert("type".to_owned(), json!("string"));
    map.insert("enum".to_owned(), Value::Array(names));
    map.remove("oneOf");
    map
}

fn format(format: &str, out: &mut Map<String, Value>) {
    match format {
        "uint32" => {
            out.insert("format".to_owned(), json!("int64"));
            out.insert("maximum".to_owned(), json!(u32::MAX));
        }
        "uint64" => {
            out.insert("format".to_owned(), json!("int64"));
        }
        "uint8" | "uint16" => {
            out.insert("format".to_owned(), json!("int32"));
        }
        format if FORMATS.contains(&format) => {
            out.insert("format".to_owned(), json!(format));
        }
        _ => {}
    }
}

/// A description for people who read no Rust: links are names, lines are joined.
fn described(text: &str) -> String {
    let mut out = String::new();
    for (number, line) in text.lines().enumerate() {
        if number > 0 {
            // Variants' lines stay apart, see `one_of_names`.
            let apart = line.is_empty() || out.ends_with('\n') || variant(line);
            out.push(if apart { '\n' } else { ' ' });
        }
        out.push_str(line.trim());
    }
    let mut rest = out.as_str();
    let mut plain = String::new();
    while let Some(start) = rest.find("[`") {
        let Some(length) = rest[start..].find("`]") else {
            break;
        };
        plain.push_str(&rest[..start]);
        let link = &rest[start + 2..start + length];
        plain.push_str(link.rsplit("::").next().unwrap_or(link));
        rest = &rest[start + length + 2..];
    }
    plain.push_str(rest);
    plain
}

fn variant(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(name, _)| {
        name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}
