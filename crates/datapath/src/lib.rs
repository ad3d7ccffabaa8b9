//! The datapath trait and its in-memory twin.
#![forbid(unsafe_code)]
