//! Container images of a few files, made without a daemon: an archive as the OCI's image layout has it, with
//! one layer.

mod busybox;
mod closure;
mod layout;
mod testudo;

pub use busybox::BUSYBOX;
pub(crate) use busybox::busybox;
pub use layout::{File, Image};
pub use testudo::{NAME, testudo};
