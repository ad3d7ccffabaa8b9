//! JSON documents with a patch in them, by RFC 6902 (a list of operations) or RFC 7396 (a document of
//! changes), and refusals that say what stands there.

use json_patch::jsonptr::Pointer;
use json_patch::{PatchErrorKind, PatchOperation};
use serde_json::Value;

/// Does all operations in their order, or none.
pub(crate) fn apply(document: &Value, operations: &[PatchOperation]) -> Result<Value, String> {
    let mut done = document.clone();
    // "Unsafe" says that what failed is left half done. It is a copy, and shows what was found.
    match json_patch::patch_unsafe(&mut done, operations) {
        Ok(()) => Ok(done),
        Err(error) => Err(match operations.get(error.operation) {
            Some(operation) => refusal(&done, operation, &error.kind),
            None => error.to_string(),
        }),
    }
}

/// Why an operation fails on the document as it stood before it.
fn refusal(document: &Value, operation: &PatchOperation, why: &PatchErrorKind) -> String {
    let from = match operation {
        PatchOperation::Move(it) => named(&it.from),
        PatchOperation::Copy(it) => named(&it.from),
        _ => "",
    };
    let path = named(operation.path());
    match (why, operation) {
        (PatchErrorKind::TestFailed, PatchOperation::Test(test)) => {
            let found = document.pointer(test.path.as_str());
            let found = found.unwrap_or(&Value::Null);
            format!("test of {path}: it is {found}, not {}", test.value)
        }
        (PatchErrorKind::CannotMoveInsideItself, _) => {
            format!("{from} cannot be moved into itself")
        }
        (PatchErrorKind::InvalidFromPointer, _) => format!("there is no {from}"),
        (
            PatchErrorKind::InvalidPointer,
            PatchOperation::Add(_) | PatchOperation::Move(_) | PatchOperation::Copy(_),
        ) => format!("nothing can be put at {path}: what would hold it is not there, or cannot"),
        (PatchErrorKind::InvalidPointer, PatchOperation::Remove(it)) if it.path.is_root() => {
            format!("{path} cannot be removed")
        }
        (PatchErrorKind::InvalidPointer, _) => format!("there is no {path}"),
        (why, _) => format!("{path}: {why}"),
    }
}

fn named(pointer: &Pointer) -> &str {
    match pointer.as_str() {
        "" => "the whole document",
        path => path,
    }
}

/// The document with a merge patch in it: `null` removes.
pub(crate) fn merged(document: &Value, patch: &Value) -> Value {
    let mut merged = document.clone();
    json_patch::merge(&mut merged, patch);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(document: &Value, patch: Value) -> Result<Value, String> {
        let operations: Vec<PatchOperation> =
            serde_json::from_value(patch).map_err(|error| error.to_string())?;
        apply(document, &operations)
    }

    #[test]
    fn operations_are_done_in_their_order_and_strange_members_passed_over() {
        let document = json!({"~1": 10, "list": ["a"], "old": {"x": null}});
        let patch = json!([
            {"op": "test", "path": "/~01", "value": 10},
            {"op": "test", "path": "/old/x", "value": null},
            {"op": "add", "path": "/list/-", "value": "c", "more": 1},
            {"op": "add", "path": "/list/1", "value": "b"},
            {"op": "copy", "from": "/list/2", "path": "/last"},
            {"op": "move", "from": "/old", "path": "/older"},
            {"op": "replace", "path": "/older/x", "value": {}},
            {"op": "remove", "path": "/~01"},
        ]);
        let wanted = json!({"list": ["a", "b", "c"], "last": "c", "older": {"x": {}}});
        assert_eq!(patched(&document, patch), Ok(wanted));
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let document = json!({"foo": "bar", "list": [1]});
        for (patch, hint) in [
            (json!({"op": "remove", "path": "/x"}), "there is no /x"),
            (json!({"op": "remove", "path": ""}), "the whole document"),
            (json!({"op": "replace", "path": "/x", "value": 1}), "no /x"),
            (json!({"op": "test", "path": "/x", "value": 1}), "no /x"),
            (json!({"op": "copy", "from": "/x", "path": "/y"}), "no /x"),
            (
                json!({"op": "add", "path": "/x/y", "value": 1}),
                "put at /x/y",
            ),
            (
                json!({"op": "add", "path": "/foo/y", "value": 1}),
                "put at /foo/y",
            ),
            (
                json!({"op": "add", "path": "/list/2", "value": 1}),
                "put at /list/2",
            ),
            (
                json!({"op": "add", "path": "/list/01", "value": 1}),
                "put at /list/01",
            ),
            (json!({"op": "remove", "path": "/list/1"}), "no /list/1"),
            (json!({"op": "remove", "path": "/list/-"}), "no /list/-"),
            (
                json!({"op": "test", "path": "/foo", "value": 1}),
                "test of /foo: it is \"bar\", not 1",
            ),
            (
                json!({"op": "move", "from": "/foo", "path": "/foo/a"}),
                "/foo cannot be moved into itself",
            ),
            (json!({"op": "add", "path": "foo", "value": 1}), "slash"),
            (json!({"op": "add", "path": "/~2", "value": 1}), "malformed"),
            (json!({"op": "add", "path": "/foo"}), "value"),
            (json!({"op": "spam", "path": "/foo"}), "spam"),
        ] {
            let error = patched(&document, json!([patch])).expect_err(hint);
            assert!(error.contains(hint), "{patch}: {error}");
        }
    }

    /// What a library may do to take back what it had done must not end the program.
    #[test]
    fn a_failure_after_the_whole_was_replaced_is_only_a_refusal() {
        let document = json!({"a": {"b": 1}});
        let patch = json!([
            {"op": "move", "from": "/a", "path": ""},
            {"op": "test", "path": "/b", "value": 2},
        ]);
        let error = patched(&document, patch).unwrap_err();
        assert_eq!(error, "test of /b: it is 1, not 2");
    }

    #[test]
    fn a_merge_goes_into_objects_and_null_removes() {
        let document = json!({"a": {"b": "c", "d": 1}, "list": [1, 2], "e": null});
        let patch = json!({"a": {"b": null, "x": {"y": null}}, "list": [3]});
        let wanted = json!({"a": {"d": 1, "x": {}}, "list": [3], "e": null});
        assert_eq!(merged(&document, &patch), wanted);
        assert_eq!(merged(&document, &json!(null)), json!(null));
    }
}
