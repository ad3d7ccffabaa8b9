//! What can go wrong, told so that a person can mend it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file that cannot be taken as it is; the last good version goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The object that the file should hold, by the file's name; `None` if it cannot hold one.
    pub name: Option<String>,
    /// The line, from 1; 0 where no line is to blame.
    pub line: u64,
    /// The column, from 1; 0 where no column is to blame.
    pub column: u64,
    /// What is wrong and, where it is not plain, what to do.
    pub reason: String,
}

impl Problem {
    /// Whether it is the store itself that cannot be reached, rather than an object that cannot be read:
    /// then a URL stands in the place of the file.
    pub fn is_of_the_store(&self) -> bool {
        self.name.is_none() && self.file.to_string_lossy().contains("://")
    }

    pub(crate) fn of_file(file: &Path, name: Option<&str>, reason: impl Into<String>) -> Problem {
        Problem {
            file: file.to_owned(),
            name: name.map(str::to_owned),
            line: 0,
            column: 0,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line != 0 {
            write!(f, ":{}", self.line)?;
            if self.column != 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        write!(f, ": {}", self.reason)
    }
}

/// Why a store did not do as told.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{kind} \"{name}\" is not there")]
    NotFound {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// There is such an object already.
    #[error("{kind} \"{name}\" is there already")]
    AlreadyExists {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The object has changed since the caller read it: read it again.
    #[error("{kind} \"{name}\" was changed by someone else meanwhile; read it again")]
    Conflict {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The object, or the file that holds it, breaks the rules.
    #[error("{0}")]
    Invalid(Problem),
    /// Fields of the object are kept by somebody else: reading it again would not help.
    #[error("{kind} \"{name}\": {fields} kept by \"{owner}\"; change it there")]
    Owned {
        /// The kind.
        kind: &'static str,
        /// The name.
        name: String,
        /// The fields: `spec.mode is`, `spec.mode, spec.keying are`.
        fields: String,
        /// Whose they are: the name of a field manager.
        owner: String,
    },
    /// The store, or a part of it, is missing or closed to us.
    #[error("{what}; {remedy}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The operating system refused.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether reading again and trying again may help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, StoreError::Conflict { .. })
    }

    /// Whether the object is missing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::Unavailable {
                    what: format!("cannot {operation} {}: {source}", path.display()),
                    remedy: "run as the user who owns it, or name another place with --store"
                        .to_owned(),
                }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Unavailable {
                what: format!("cannot {operation} {}: {source}", path.display()),
                remedy: "free some space there".to_owned(),
            },
            _ => StoreError::Io {
                operation,
                path: path.to_owned(),
                source,
            },
        }
    }
}
