//! Patches of JSON documents: RFC 6902 (a list of operations) and RFC 7396 (a document of changes).

use serde::Deserialize;
use serde_json::{Map, Value};

/// One operation of a JSON patch (RFC 6902, section 4). Members that it does not know are passed over, as
/// the RFC wants.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Operation {
    /// Puts a value there, before what stands at that place of a list.
    Add { path: String, value: Value },
    /// Takes away what must be there.
    Remove { path: String },
    /// Puts a value in the place of what must be there.
    Replace { path: String, value: Value },
    /// Takes from one place and adds at another.
    Move { from: String, path: String },
    /// Adds what stands at another place.
    Copy { from: String, path: String },
    /// Fails unless this value stands there.
    Test { path: String, value: Value },
}

/// Does all operations in their order, or none.
pub(crate) fn apply(document: &Value, operations: &[Operation]) -> Result<Value, String> {
    let mut done = document.clone();
    for operation in operations {
        step(&mut done, operation)?;
    }
    Ok(done)
}

fn step(document: &mut Value, operation: &Operation) -> Result<(), String> {
    match operation {
        Operation::Add { path, value } => add(document, path, value.clone()),
        Operation::Remove { path } => remove(document, path).map(|_| ()),
        Operation::Replace { path, value } => {
            let place = look(document, path)?;
            *place = value.clone();
            Ok(())
        }
        Operation::Move { from, path } => {
            let inside = path
                .strip_prefix(from.as_str())
                .is_some_and(|rest| rest.starts_with('/'));
            if inside {
                return Err(format!("{from} cannot be moved into itself"));
            }
            let value = remove(document, from)?;
            add(document, path, value)
        }
        Operation::Copy { from, path } => {
            let value = look(document, from)?.clone();
            add(document, path, value)
        }
        Operation::Test { path, value } => match look(document, path)? {
            found if found == value => Ok(()),
            found => Err(format!("test of {path}: it is {found}, not {value}")),
        },
    }
}

/// The keys of a pointer (RFC 6901).
fn keys(pointer: &str) -> Result<Vec<String>, String> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = pointer.strip_prefix('/') else {
        return Err(format!("path {pointer:?} does not begin with /"));
    };
    let unescaped = |key: &str| {
        let mut text = String::new();
        let mut letters = key.chars();
        while let Some(letter) = letters.next() {
            text.push(match letter {
                '~' => match letters.next() {
                    Some('0') => '~',
                    Some('1') => '/',
                    _ => return Err(format!("path {pointer:?}: a ~ is written ~0 and a / ~1")),
                },
                letter => letter,
            });
        }
        Ok(text)
    };
    rest.split('/').map(unescaped).collect()
}

/// A place of a list of this length: no sign, no leading zero.
fn index(key: &str, most: usize) -> Option<usize> {
    let plain = key == "0" || !key.starts_with('0') && key.bytes().all(|b| b.is_ascii_digit());
    key.parse().ok().filter(|at| plain && *at <= most)
}

fn inner<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match value {
        Value::Object(map) => map.get_mut(key),
        Value::Array(list) => index(key, list.len()).and_then(|at| list.get_mut(at)),
        _ => None,
    }
}

fn missing(pointer: &str) -> String {
    format!("there is no {pointer}")
}

fn look<'a>(document: &'a mut Value, pointer: &str) -> Result<&'a mut Value, String> {
    let mut value = document;
    for key in keys(pointer)? {
        value = inner(value, &key).ok_or_else(|| missing(pointer))?;
    }
    Ok(value)
}

/// What holds the place, which must be there, and the last key.
fn parent<'a>(document: &'a mut Value, pointer: &str) -> Result<(&'a mut Value, String), String> {
    let mut keys = keys(pointer)?;
    let last = keys.pop().ok_or("the whole document has no place")?;
    let mut value = document;
    for key in keys {
        value = inner(value, &key).ok_or_else(|| format!("nothing holds {pointer}"))?;
    }
    Ok((value, last))
}

fn add(document: &mut Value, pointer: &str, value: Value) -> Result<(), String> {
    if pointer.is_empty() {
        *document = value;
        return Ok(());
    }
    let (place, key) = parent(document, pointer)?;
    match place {
        Value::Object(map) => {
            map.insert(key, value);
        }
        Value::Array(list) => {
            let at = match key.as_str() {
                "-" => list.len(),
                key => index(key, list.len()).ok_or_else(|| missing(pointer))?,
            };
            list.insert(at, value);
        }
        _ => return Err(format!("nothing holds {pointer}")),
    }
    Ok(())
}

fn remove(document: &mut Value, pointer: &str) -> Result<Value, String> {
    if pointer.is_empty() {
        return Ok(std::mem::take(document));
    }
    let (place, key) = parent(document, pointer)?;
    let removed = match place {
        Value::Object(map) => map.remove(&key),
        Value::Array(list) => match index(&key, list.len()) {
            Some(at) if at < list.len() => Some(list.remove(at)),
            _ => None,
        },
        _ => None,
    };
    removed.ok_or_else(|| missing(pointer))
}

/// The document with a merge patch in it (RFC 7396, section 2): `null` removes.
pub(crate) fn merge(document: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    let mut merged = match document {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    for (key, change) in changes {
        if change.is_null() {
            merged.remove(key);
        } else {
            let old = merged.get(key).unwrap_or(&Value::Null);
            let new = merge(old, change);
            merged.insert(key.clone(), new);
        }
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(document: Value, patch: Value) -> Result<Value, String> {
        let operations: Vec<Operation> =
            serde_json::from_value(patch).map_err(|error| error.to_string())?;
        apply(&document, &operations)
    }

    /// The cases of RFC 6902, appendix A, and of pointers.
    #[test]
    fn operations_do_what_the_rfc_says() {
        let good = [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "qux"}]),
                json!({"baz": "qux", "foo": "bar"}),
            ),
            (
                json!({"foo": ["bar", "baz"]}),
                json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
                json!({"foo": ["bar", "qux", "baz"]}),
            ),
            (
                json!({"foo": ["bar", "qux", "baz"]}),
                json!([{"op": "remove", "path": "/foo/1"}]),
                json!({"foo": ["bar", "baz"]}),
            ),
            (
                json!({"baz": "qux", "foo": "bar"}),
                json!([{"op": "replace", "path": "/baz", "value": "boo"}]),
                json!({"baz": "boo", "foo": "bar"}),
            ),
            (
                json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
                json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
                json!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
            ),
            (
                json!({"foo": ["all", "grass", "cows", "eat"]}),
                json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
                json!({"foo": ["all", "cows", "eat", "grass"]}),
            ),
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/child", "value": {"grand": {}}, "more": 1}]),
                json!({"foo": "bar", "child": {"grand": {}}}),
            ),
            (
                json!({"/": 9, "~1": 10}),
                json!([{"op": "test", "path": "/~01", "value": 10},
                       {"op": "remove", "path": "/~1"}]),
                json!({"~1": 10}),
            ),
            (
                json!({"foo": ["bar"]}),
                json!([{"op": "add", "path": "/foo/-", "value": ["abc"]},
                       {"op": "copy", "from": "/foo/0", "path": "/first"}]),
                json!({"foo": ["bar", ["abc"]], "first": "bar"}),
            ),
            (
                json!({"a": null}),
                json!([{"op": "test", "path": "/a", "value": null},
                       {"op": "add", "path": "", "value": 1}]),
                json!(1),
            ),
        ];
        for (document, patch, wanted) in good {
            assert_eq!(patched(document, patch.clone()), Ok(wanted), "{patch}");
        }
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let document = json!({"foo": "bar", "list": [1]});
        for (patch, hint) in [
            (json!({"op": "remove", "path": "/x"}), "no /x"),
            (json!({"op": "replace", "path": "/x", "value": 1}), "no /x"),
            (
                json!({"op": "add", "path": "/x/y", "value": 1}),
                "holds /x/y",
            ),
            (json!({"op": "add", "path": "/foo/y", "value": 1}), "holds"),
            (
                json!({"op": "add", "path": "/list/2", "value": 1}),
                "/list/2",
            ),
            (
                json!({"op": "add", "path": "/list/01", "value": 1}),
                "/list/01",
            ),
            (json!({"op": "remove", "path": "/list/1"}), "/list/1"),
            (json!({"op": "remove", "path": "/list/-"}), "/list/-"),
            (
                json!({"op": "test", "path": "/foo", "value": 1}),
                "\"bar\", not 1",
            ),
            (
                json!({"op": "move", "from": "/foo", "path": "/foo/a"}),
                "into itself",
            ),
            (
                json!({"op": "add", "path": "foo", "value": 1}),
                "begin with /",
            ),
            (json!({"op": "add", "path": "/~2", "value": 1}), "~0"),
            (json!({"op": "add", "path": "/foo"}), "value"),
            (json!({"op": "spam", "path": "/foo"}), "spam"),
        ] {
            let error = patched(document.clone(), json!([patch])).expect_err(hint);
            assert!(error.contains(hint), "{patch}: {error}");
        }
    }

    /// The cases of RFC 7396, appendix A.
    #[test]
    fn a_merge_does_what_the_rfc_says() {
        for (document, patch, wanted) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            assert_eq!(merge(&document, &patch), wanted, "{document} and {patch}");
        }
    }
}
