//! `docs/lessons.md` names tests: each of them must be there.

use std::path::{Path, PathBuf};

use anyhow::Context;

const TABLE: &str = "docs/lessons.md";
/// The rows that the table must have, each once.
const ROWS: std::ops::RangeInclusive<u32> = 1..=67;
/// Numbers that were never given.
const NEVER_GIVEN: [u32; 8] = [7, 12, 21, 26, 33, 48, 54, 66];

/// Adds what is wrong with the table to `breaches`.
pub(crate) fn check(root: &Path, breaches: &mut Vec<String>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(root.join(TABLE)).context(TABLE)?;
    let is_row = |line: &&str| line.starts_with("| L") || line.starts_with("| W");
    let rows: Vec<&str> = text.lines().filter(is_row).collect();
    for number in ROWS.filter(|n| !NEVER_GIVEN.contains(n)) {
        let start = format!("| L{number:02} |");
        let count = rows.iter().filter(|row| row.starts_with(&start)).count();
        if count != 1 {
            breaches.push(format!("{TABLE}: {count} rows of L{number:02}"));
        }
    }
    for row in rows {
        for name in names(row) {
            if !exists(root, name) {
                breaches.push(format!("{TABLE}: there is no test {name}"));
            }
        }
    }
    Ok(())
}

/// What stands between backticks and has `::` in it.
fn names(row: &str) -> impl Iterator<Item = &str> {
    row.split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains("::"))
}

/// Whether `crate::module::test` names a function of a file of that module, or of the tests
/// inside or beside it.
fn exists(root: &Path, name: &str) -> bool {
    let mut parts: Vec<&str> = name.split("::").collect();
    let (Some(test), false) = (parts.pop(), parts.is_empty()) else {
        return false;
    };
    let folder = root.join("crates").join(parts.remove(0));
    let defined = format!("fn {test}(");
    files(&folder, &parts)
        .into_iter()
        .any(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(&defined)))
}

/// The files in which a module may stand.
fn files(folder: &Path, modules: &[&str]) -> Vec<PathBuf> {
    let path = modules.join("/");
    let mut found = vec![
        folder.join("src").join(format!("{path}.rs")),
        folder.join("src").join(&path).join("mod.rs"),
        folder.join("tests").join(format!("{path}.rs")),
    ];
    // Tests at the end of the file that they test.
    if let Some((&"tests", modules)) = modules.split_last() {
        let path = modules.join("/");
        found.push(folder.join("src").join(format!("{path}.rs")));
        found.push(folder.join("src").join(path).join("mod.rs"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_found_where_it_stands_and_nowhere_else() {
        let root = crate::run::root();
        let here = "xtask::lessons::tests::a_test_is_found_where_it_stands_and_nowhere_else";
        assert!(exists(&root, here));
        for wrong in [
            "xtask::lessons::tests::no_such_test",
            "xtask::house::a_test_is_found_where_it_stands_and_nowhere_else",
            "xtask",
            "::",
        ] {
            assert!(!exists(&root, wrong), "{wrong}");
        }
    }

    #[test]
    fn names_stand_between_backticks() {
        let row = "| L01 | `KE` of 0 | `ike::tests::values::a`, `b::c` |";
        assert_eq!(
            names(row).collect::<Vec<_>>(),
            ["ike::tests::values::a", "b::c"]
        );
    }
}
