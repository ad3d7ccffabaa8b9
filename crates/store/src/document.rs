//! One YAML document to one object, with the line and column of whatever is wrong.

use std::path::Path;

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use testudo_model::{API_VERSION, Kind, Object};

use crate::check::check_name;
use crate::error::Problem;

/// The largest file that is read, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Where a document stands.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Its file.
    pub(crate) file: &'a Path,
    /// Its text.
    pub(crate) text: &'a str,
    /// The lines of the file before it.
    pub(crate) lines_before: u64,
    /// The name that the object must have, if the file's name says so.
    pub(crate) name: Option<&'a str>,
}

/// What stands at the head of every object.
pub(crate) struct Header {
    /// The kind and where it stands.
    pub(crate) kind: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHeader {
    api_version: Option<Spanned<String>>,
    kind: Option<Spanned<String>>,
    metadata: Option<RawMetadata>,
}

#[derive(Deserialize)]
struct RawMetadata {
    name: Option<Spanned<String>>,
}

impl Source<'_> {
    /// A problem with this document as a whole.
    pub(crate) fn problem(&self, reason: impl Into<String>) -> Problem {
        self.problem_at(None, reason)
    }

    pub(crate) fn problem_at(
        &self,
        location: Option<Location>,
        reason: impl Into<String>,
    ) -> Problem {
        let mut problem = Problem::of_file(self.file, self.name, reason);
        match location {
            Some(l) if l.line() != 0 => {
                problem.line = l.line() + self.lines_before;
                problem.column = l.column();
            }
            _ => {
                // The first line that says anything: better than none.
                let first = self.text.lines().position(|l| !l.trim().is_empty());
                problem.line = first.unwrap_or(0) as u64 + 1 + self.lines_before;
            }
        }
        problem
    }

    fn yaml_problem(&self, error: &serde_saphyr::Error) -> Problem {
        let location = error.location();
        let mut reason = error.without_snippet().to_string();
        // Advice for programmers is none for those who write manifests.
        if let Some(at) = reason.find(", set DuplicateKeyPolicy") {
            reason.truncate(at);
        }
        // The place is told apart; the library says it again at one end of its text.
        if let Some(at) = reason.find(" at line ") {
            reason.truncate(at);
        }
        if let Some(rest) = reason.strip_prefix("error: ") {
            reason = rest.to_owned();
        }
        let mut reason = reason.lines().next().unwrap_or_default().trim().to_owned();
        if reason.is_empty() {
            reason = "this is not YAML".to_owned();
        }
        self.problem_at(location, reason)
    }

    /// Checks version, kind and name before anything else is looked at: they explain the rest.
    pub(crate) fn header(&self) -> Result<Header, Problem> {
        if self.text.trim().is_empty() {
            return Err(self.problem("the file is empty: write an object into it, or delete it"));
        }
        let header: RawHeader =
            serde_saphyr::from_str(self.text).map_err(|e| self.yaml_problem(&e))?;
        let Some(version) = header.api_version else {
            return Err(self.problem(format!("apiVersion is missing: write {API_VERSION}")));
        };
        if version.value != API_VERSION {
            return Err(self.problem_at(
                Some(version.referenced),
                format!(
                    "apiVersion \"{}\" is not {API_VERSION}",
                    cut(&version.value)
                ),
            ));
        }
        let Some(kind) = header.kind else {
            return Err(self.problem("kind is missing"));
        };
        let Some(name) = header.metadata.and_then(|m| m.name) else {
            return Err(self.problem("metadata.name is missing"));
        };
        if let Err(error) = check_name(&name.value) {
            return Err(self.problem_at(Some(name.referenced), format!("metadata.name: {error}")));
        }
        if let Some(expected) = self.name
            && expected != name.value
        {
            return Err(self.problem_at(
                Some(name.referenced),
                format!(
                    "metadata.name \"{}\" does not fit the file's name, which wants \"{expected}\"",
                    cut(&name.value)
                ),
            ));
        }
        Ok(Header { kind })
    }

    /// The object of kind `K`.
    pub(crate) fn object<K: Kind>(&self) -> Result<Object<K>, Problem> {
        let header = self.header()?;
        if header.kind.value != K::KIND {
            return Err(self.problem_at(
                Some(header.kind.referenced),
                format!("kind \"{}\" is not {}", cut(&header.kind.value), K::KIND),
            ));
        }
        let object: Object<K> =
            serde_saphyr::from_str(self.text).map_err(|e| self.yaml_problem(&e))?;
        if let Err(reason) = K::validate(object.name(), &object.spec) {
            let mut problem = self.problem(reason);
            if let Some(line) = line_of_field(self.text, &problem.reason) {
                problem.line = line + self.lines_before;
            }
            return Err(problem);
        }
        Ok(object)
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The line of the field that a rule's message names first, as in `spec.overlay.port: …`. Finds
/// block style only; a field in flow style is told with the line of its parent.
fn line_of_field(text: &str, message: &str) -> Option<u64> {
    let path = message.split(':').next()?;
    let mut found = None;
    let mut lines = text.lines().enumerate();
    for field in path.split('.') {
        let key = format!("{field}:");
        match lines.find(|(_, line)| line.trim_start().starts_with(&key)) {
            Some((number, _)) => found = Some(number as u64 + 1),
            None => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use testudo_model::policy::{EncryptionPolicyKind, Mode};

    fn parse(text: &str) -> Result<Object<EncryptionPolicyKind>, Problem> {
        Source {
            file: Path::new("cluster.yaml"),
            text,
            lines_before: 0,
            name: Some("cluster"),
        }
        .object()
    }

    const GOOD: &str = "apiVersion: testudo.dev/v1alpha1\nkind: EncryptionPolicy\n\
        metadata:\n  name: cluster\nspec:\n  mode: Full\n";

    #[test]
    fn a_good_one() {
        assert_eq!(parse(GOOD).unwrap().spec.mode, Mode::Full);
    }

    /// (what is replaced, by what, line, column or 0 for any, a word of the reason)
    #[test]
    fn each_refusal_has_its_place_and_reason() {
        let cases: [(&str, &str, u64, u64, &str); 12] = [
            ("v1alpha1", "v2", 1, 13, "testudo.dev/v1alpha1"),
            ("kind: EncryptionPolicy", "kind: Foo", 2, 7, "\"Foo\""),
            ("name: cluster", "name: clusters", 4, 9, "clusters"),
            ("name: cluster", "name: ../x", 4, 9, "metadata.name"),
            ("  mode: Full", "  modus: Full", 6, 3, "modus"),
            ("  mode: Full", "  mode: Half", 6, 9, "Half"),
            (
                "  mode: Full",
                "  overlay:\n    port: 0",
                7,
                0,
                "spec.overlay.port",
            ),
            ("  mode: Full", "  overlay:\n    port: 70000", 7, 11, ""),
            (
                "  mode: Full",
                "  mode: Full\n  mode: Disabled",
                7,
                0,
                "mode",
            ),
            ("  mode: Full", "  mode: [Full", 0, 0, ""),
            (
                "apiVersion: testudo.dev/v1alpha1\n",
                "",
                1,
                0,
                "apiVersion is missing",
            ),
            ("spec:\n  mode: Full\n", "spec:\n", 0, 0, ""),
        ];
        for (from, to, line, column, word) in cases {
            let text = GOOD.replace(from, to);
            let problem = parse(&text).expect_err(&text);
            println!("{problem}");
            if line != 0 {
                assert_eq!(problem.line, line, "{problem}");
            }
            if column != 0 {
                assert_eq!(problem.column, column, "{problem}");
            }
            assert!(problem.reason.contains(word), "{problem}");
            assert!(!problem.reason.contains('\n'), "{problem}");
        }
    }

    #[test]
    fn every_cut_of_a_file_is_refused_or_means_what_it_says() {
        for end in 0..GOOD.len() {
            if let Ok(object) = parse(&GOOD[..end]) {
                assert_eq!(object.spec.mode, Mode::Full, "{:?}", &GOOD[..end]);
            }
        }
    }
}
