//! Manifests for `apply -f` and `delete -f`: several documents in one file, every error with its
//! file and line.

use std::path::Path;

use crate::document::Source;
use crate::error::Problem;
use crate::kinds::{AnyObject, KindName};
use crate::scan::read_manifest;

/// How many documents one file may hold.
const MAX_DOCUMENTS: usize = 1024;

/// Reads a file. All errors are told, not just the first; with any, nothing should be applied.
pub fn load(path: &Path) -> Result<Vec<AnyObject>, Vec<Problem>> {
    let text = read_manifest(path).map_err(|problem| match problem.reason.as_str() {
        "it is gone" => vec![Problem::of_file(path, None, "there is no such file")],
        _ => vec![problem],
    })?;
    parse(path, &text)
}

/// Reads a text that came from `file`: standard input, say.
pub fn parse(file: &Path, text: &str) -> Result<Vec<AnyObject>, Vec<Problem>> {
    let mut objects: Vec<AnyObject> = Vec::new();
    let mut problems = Vec::new();
    for (number, (lines_before, text)) in documents(text).into_iter().enumerate() {
        let source = Source {
            file,
            text,
            lines_before,
            name: None,
        };
        if number >= MAX_DOCUMENTS {
            problems.push(source.problem(format!("more than {MAX_DOCUMENTS} documents")));
            break;
        }
        match object(&source) {
            Ok(new) => {
                let same = |old: &&AnyObject| old.kind() == new.kind() && old.name() == new.name();
                match objects.iter().find(same) {
                    Some(_) => problems.push(source.problem(format!(
                        "{} \"{}\" stands in this file twice",
                        new.kind().as_str(),
                        new.name()
                    ))),
                    None => objects.push(new),
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    if objects.is_empty() && problems.is_empty() {
        problems.push(Problem::of_file(file, None, "there is no object in it"));
    }
    if problems.is_empty() {
        Ok(objects)
    } else {
        Err(problems)
    }
}

fn object(source: &Source<'_>) -> Result<AnyObject, Problem> {
    let header = source.header()?;
    let kind = KindName::ALL
        .iter()
        .find(|kind| kind.as_str() == header.kind.value);
    match kind {
        Some(kind) => kind.parse_object(source),
        None => {
            let known: Vec<&str> = KindName::ALL.iter().map(|k| k.as_str()).collect();
            Err(source.problem_at(
                Some(header.kind.referenced),
                format!(
                    "kind \"{}\" is not known: {}",
                    header.kind.value,
                    known.join(", ")
                ),
            ))
        }
    }
}

/// The documents of a text, each with the number of lines before it. Cuts at `---` and `...` at the beginning of a line, which YAML allows nowhere inside a document
/// (1.2.2, 9.1.2: c-forbidden). Documents of comments alone are left out.
pub fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut start_line = 0;
    let mut at = 0;
    let mut push = |line: u64, part| {
        if has_content(part) {
            found.push((line, part));
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = |m: &str| {
            line.strip_prefix(m)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let next = at + line.len();
        if marker("---") {
            push(start_line, &text[start..at]);
            // The marker goes with its document: something may follow it on its line.
            (start, start_line) = (at, number as u64);
        } else if marker("...") {
            push(start_line, &text[start..at]);
            (start, start_line) = (next, number as u64 + 1);
        }
        at = next;
    }
    push(start_line, &text[start..]);
    found
}

fn has_content(part: &str) -> bool {
    part.lines().any(|line| {
        let line = line.trim();
        let line = line.strip_prefix("---").map_or(line, str::trim);
        !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: testudo.dev/v1alpha1\nkind: EncryptionPolicy\n\
        metadata:\n  name: cluster\nspec:\n  mode: Full\n";
    const BUNDLE: &str = "apiVersion: testudo.dev/v1alpha1\nkind: TrustBundle\n\
        metadata:\n  name: cluster\nspec:\n  certificates: |\n    -----BEGIN CERTIFICATE-----\n    AA==\n";

    fn read(text: &str) -> Result<Vec<AnyObject>, Vec<Problem>> {
        parse(Path::new("f.yaml"), text)
    }

    #[test]
    fn several_documents_and_empty_ones() {
        let text = format!("# head\n---\n{POLICY}---\n\n---\n# nothing\n---\n{BUNDLE}...\n");
        let objects = read(&text).unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0].kind(), KindName::Policy);
        assert_eq!(objects[1].kind(), KindName::Bundle);
    }

    #[test]
    fn every_error_is_told_with_its_line_in_the_file() {
        let bad = POLICY.replace("mode: Full", "mode: Ful");
        let unknown = POLICY.replace("EncryptionPolicy", "Pod");
        let text = format!("{POLICY}---\n{bad}---\n{unknown}---\n{POLICY}");
        let problems = read(&text).unwrap_err();
        let lines: Vec<u64> = problems.iter().map(|p| p.line).collect();
        assert_eq!(lines[..2], [13, 16], "{problems:?}");
        assert!(problems[1].reason.contains("Pod"));
        assert!(problems[2].reason.contains("twice"));
        assert!(problems[0].to_string().starts_with("f.yaml:13:"));
    }

    #[test]
    fn nothing_is_an_error() {
        for text in ["", "\n\n", "# only a comment\n", "---\n---\n"] {
            assert!(read(text).unwrap_err()[0].reason.contains("no object"));
        }
    }
}
