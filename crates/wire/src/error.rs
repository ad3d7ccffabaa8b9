//! The one error of all parsers: what was read, where, and what is wrong with it.

use thiserror::Error;

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Problem {
    /// Fewer bytes than the structure needs.
    #[error("needs {need} bytes, {have} are there")]
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// A length field that contradicts the bytes around it.
    #[error("length field says {said}, allowed here is {min} to {max}")]
    BadLength {
        /// What the field says.
        said: usize,
        /// Smallest value that fits.
        min: usize,
        /// Largest value that fits.
        max: usize,
    },
    /// Bytes are left after the last structure.
    #[error("{left} bytes follow the end")]
    Trailing {
        /// Bytes left over.
        left: usize,
    },
    /// More of something than we accept.
    #[error("more than {limit} of them")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// A field's value is not allowed.
    #[error("value {0} is not allowed")]
    BadValue(u64),
    /// An end that lies before its start.
    #[error("the range ends before it starts")]
    Reversed,
    /// A payload of a type unknown to us has the critical bit set (RFC 7296, 2.5).
    #[error("payload type {0} is unknown and critical")]
    UnsupportedCritical(u8),
    /// The major version is not 2 (RFC 7296, 2.5).
    #[error("major version {0} is not 2")]
    MajorVersion(u8),
}

/// How the engine may answer an error (RFC 7296, 2.21 and 3.10.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// INVALID_SYNTAX.
    InvalidSyntax,
    /// UNSUPPORTED_CRITICAL_PAYLOAD, with the type as its one byte of data.
    UnsupportedCriticalPayload(u8),
    /// INVALID_MAJOR_VERSION; the number is the major version that was received.
    InvalidMajorVersion(u8),
}

/// A parse error: the thing, the place, the problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{what} at byte {offset}: {problem}")]
pub struct WireError {
    /// The structure or field that was being read.
    pub what: &'static str,
    /// Offset in bytes from the start of the buffer given to the parser.
    pub offset: usize,
    /// What is wrong.
    pub problem: Problem,
}

impl WireError {
    pub(crate) fn new(what: &'static str, offset: usize, problem: Problem) -> Self {
        Self {
            what,
            offset,
            problem,
        }
    }

    pub(crate) fn truncated(what: &'static str, offset: usize, need: usize, have: usize) -> Self {
        Self::new(what, offset, Problem::Truncated { need, have })
    }

    /// The answer that this error calls for, where one is to be given at all.
    pub fn class(&self) -> ErrorClass {
        match self.problem {
            Problem::UnsupportedCritical(kind) => ErrorClass::UnsupportedCriticalPayload(kind),
            Problem::MajorVersion(major) => ErrorClass::InvalidMajorVersion(major),
            _ => ErrorClass::InvalidSyntax,
        }
    }

    /// A name for a drop counter.
    pub fn reason(&self) -> &'static str {
        match self.problem {
            Problem::Truncated { .. } => "truncated",
            Problem::BadLength { .. } => "bad_length",
            Problem::Trailing { .. } => "trailing_bytes",
            Problem::TooMany { .. } => "too_many",
            Problem::BadValue(_) => "bad_value",
            Problem::Reversed => "reversed_range",
            Problem::UnsupportedCritical(_) => "unsupported_critical_payload",
            Problem::MajorVersion(_) => "major_version",
        }
    }
}
