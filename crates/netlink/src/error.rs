//! What can go wrong, in words that name the operation.

use std::io;

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A netlink request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request.
    #[error("{operation}: {}{}", io::Error::from_raw_os_error(*errno), explanation(reason))]
    Refused {
        /// What was asked for, for example `create link "br0"`.
        operation: String,
        /// The error number of the kernel (positive).
        errno: i32,
        /// The kernel's explanation, where it gave one.
        reason: Option<String>,
    },
    /// The socket could not be opened or used.
    #[error("{operation}: netlink socket: {source}")]
    Socket {
        /// What was asked for.
        operation: String,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    #[error("{operation}: malformed netlink answer: {what}")]
    Malformed {
        /// What was asked for.
        operation: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is no link of that name.
    #[error("link {name:?} does not exist in this network namespace")]
    NoLink {
        /// The name asked for.
        name: String,
    },
    /// The caller asked for something that cannot be said in a request.
    #[error("{operation}: {what}")]
    Invalid {
        /// What was asked for.
        operation: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A network namespace could not be opened or entered.
    #[error("network namespace {what}: {source}")]
    Netns {
        /// Which namespace, or what was done to it.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

fn explanation(reason: &Option<String>) -> String {
    match reason {
        Some(text) => format!(" ({text})"),
        None => String::new(),
    }
}

impl Error {
    /// The kernel's error number, where the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The object exists already (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object does not exist: ENODEV, ENOENT, ESRCH, EADDRNOTAVAIL, or no such link.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NoLink { .. })
            || matches!(
                self.errno(),
                Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
            )
    }

    /// The kernel does not know what was asked for (EOPNOTSUPP): a kind of link without its module,
    /// for example.
    pub fn is_unsupported(&self) -> bool {
        self.errno() == Some(libc::EOPNOTSUPP)
    }

    /// A capability is missing (EPERM, EACCES).
    pub fn is_not_permitted(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }
}
