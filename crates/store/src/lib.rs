//! The store trait and the directory store.
#![forbid(unsafe_code)]
